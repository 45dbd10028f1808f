"""BLT's batch transform and confusion matrix (BLT sections 3.2 and 4.1, Algorithm 1, Eq. 3)."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ltnotes import data, training
from ltnotes.batches import Augmenter
from ltnotes.methods import blt
from ltnotes.methods.blt import AS_RELEASED, confusing_class_probabilities
from ltnotes.methods.common import part
from ltnotes.recipes import Recipe, Stage
from tests import toys

# --- the confusion matrix ---

CONFUSION = [[7, 2, 1], [0, 5, 0], [3, 3, 0]]


@pytest.mark.parametrize("scale", [1, 0.1])
def test_probabilities_are_the_rows_without_their_diagonal(scale):
    confusion = torch.tensor(CONFUSION, dtype=torch.float64) * scale
    expected = []
    for c, row in enumerate(confusion.tolist()):
        wrong = [0.0 if j == c else n for j, n in enumerate(row)]
        if math.fsum(wrong) == 0:  # never confused
            wrong = [0.0 if j == c else 1.0 for j in range(3)]
        expected.append([n / math.fsum(wrong) for n in wrong])
    before = confusion.clone()
    probabilities = confusing_class_probabilities(confusion)
    assert probabilities.dtype == torch.float64
    assert confusion.equal(before)
    for row, expected_row in zip(probabilities.tolist(), expected, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-12)


def test_probabilities_take_lists_and_counts():
    assert confusing_class_probabilities(CONFUSION).equal(confusing_class_probabilities(torch.tensor(CONFUSION)))


@pytest.mark.parametrize(
    "confusion",
    [[1, 2], [[1, 2, 3], [1, 2, 3]], [[1]], [[1, -1], [0, 1]], [[1, math.nan], [0, 1]], [[1, math.inf], [0, 1]]],
    ids=str,
)
def test_bad_confusion_is_refused(confusion):
    with pytest.raises(ValueError, match=r"^confusion: got"):
        confusing_class_probabilities(confusion)


# --- the transform ---

SIZE = 24


@pytest.fixture(scope="module")
def held_out():
    """digits-lt at a ratio of 20, one image of each class held out: four classes have 20 images or fewer."""
    return data.load("digits-lt", imbalance=20, validation=1)


class Network(nn.Module):
    """Enough of a classifier for images 32x32, with everything that evaluation mode changes."""

    def __init__(self):
        super().__init__()
        layers = nn.Conv2d(3, 4, 5, 4), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Tanh(), nn.Flatten()
        self.layers = nn.Sequential(*layers, nn.Linear(196, 10))

    def forward(self, images):
        return self.layers(images)


def next_class(looks=None):
    """A ``predict`` that takes every image for the class after its own, and writes down what it looked at."""

    def predict(split):
        if looks is not None:
            looks.append(split)
        return torch.eye(10)[(split.labels + 1) % 10].numpy()

    return predict


def build(source, model=None, predict=None, **options):
    torch.manual_seed(0)
    supply = {"model": model or Network(), "data": source, "class_counts": source.counts}
    return part("blt.BLT", **options).build(**supply, augment=Augmenter(source), predict=predict or next_class())


def batch(source, size=SIZE, seed=0):
    """Augmented images and labels of training images, half of them of the tail."""
    torch.manual_seed(seed)
    tail = torch.tensor([n <= 20 for n in source.counts])[source.train.labels]
    weights = torch.where(tail, 1 / tail.sum(), 1 / (~tail).sum())
    indices = torch.multinomial(weights, size, replacement=True)
    return Augmenter(source)(indices), source.train.labels[indices]


def run(transform, images, targets, weight=1.0, seed=1):
    transform.set_progress(0.5)
    torch.manual_seed(seed)
    transform.start_stage()
    transform.start_epoch()
    return transform.on_images(images, [(targets, weight)])


def tail_positions(source, targets):
    return [i for i, y in enumerate(targets.tolist()) if source.counts[y] <= 20]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 1.0])
def test_new_images_and_labels_follow_the_batch(held_out, fraction):
    images, targets = batch(held_out)
    positions = tail_positions(held_out, targets)
    wanted = positions[: math.ceil(fraction * len(positions))]
    assert 0 < len(positions) < SIZE
    augmented, [(labels, weights)] = run(build(held_out, fraction=fraction), images, targets)
    assert augmented[:SIZE].equal(images)
    assert labels.tolist() == targets.tolist() + [targets[i].item() for i in wanted]
    assert weights.tolist() == [1.0] * (SIZE + len(wanted))
    assert augmented.dtype == images.dtype and not augmented.requires_grad
    assert augmented.is_contiguous(memory_format=torch.channels_last)


def test_the_number_is_not_rounded_up_by_floating_point(held_out):
    rarest = held_out.counts.index(min(held_out.counts))
    assert 0.28 * 25 > 7
    for fraction, n in ((0.28, 7), (0.29, 8)):
        assert len(build(held_out, fraction=fraction)._choose(torch.full((25,), rarest))) == n


def test_new_images_are_hallucinated_from_their_own(held_out, monkeypatch):
    images, targets = batch(held_out)
    calls = []

    def record(model, images, classes, confidence, **options):
        calls.append((images, classes, confidence, options))
        return images + 1

    monkeypatch.setattr(blt, "hallucinate", record)
    transform = build(held_out, step_size=0.3, max_steps=4, score="probability", fraction=1.0)
    augmented, _ = run(transform, images, targets)
    positions = tail_positions(held_out, targets)
    [(sources, classes, confidence, options)] = calls
    assert sources.equal(images[positions]) and augmented[SIZE:].equal(images[positions] + 1)
    assert classes.tolist() == [(targets[i].item() + 1) % 10 for i in positions]
    assert 0.15 <= confidence.min() < confidence.max() <= 0.25
    assert options == {"step_size": 0.3, "max_steps": 4, "score": "probability"}


def confidences(source, monkeypatch, n=4000, **options):
    seen = []
    monkeypatch.setattr(blt, "hallucinate", lambda model, images, classes, p, **_: seen.extend(p.tolist()) or images)
    transform = build(source, **options)
    run(transform, torch.zeros(n, 3, 2, 2), torch.full((n,), source.counts.index(min(source.counts))))
    return seen


def test_confidences_are_uniform_in_their_range(held_out, monkeypatch):
    drawn = confidences(held_out, monkeypatch, fraction=1.0)
    assert sum(drawn) / len(drawn) == pytest.approx(0.2, abs=0.002)
    assert sum(0.15 <= p < 0.175 for p in drawn) / len(drawn) == pytest.approx(0.25, abs=0.03)


def test_a_range_of_equal_ends_is_one_confidence(held_out, monkeypatch):
    assert set(confidences(held_out, monkeypatch, min_confidence=(0.5, 0.5))) == {0.5}


def test_released_confidences_are_three_numbers(held_out, monkeypatch):
    drawn = confidences(held_out, monkeypatch, as_released=("three-thresholds",))
    shares = [sum(p == pytest.approx(level) for p in drawn) / len(drawn) for level in (0.15, 0.2, 0.25)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.04) and sum(shares) == 1


def test_a_batch_without_tail_images_stays(held_out):
    images, targets = batch(held_out)
    largest = torch.full_like(targets, held_out.counts.index(max(held_out.counts)))
    labels = [(largest, 1.0)]
    transform = build(held_out)
    transform.start_epoch()
    again, same = transform.on_images(images, labels)
    assert again is images and same is labels


@pytest.mark.parametrize("options", [{"fraction": 0.0}, {"start": 0.6}], ids=str)
def test_neither_and_before_the_start_leave_the_batch(held_out, options):
    images, targets = batch(held_out)
    again, [(labels, weight)] = run(build(held_out, **options), images, targets)
    assert again is images and labels is targets and weight == 1.0


def test_it_begins_at_its_start(held_out):
    images, targets = batch(held_out)
    assert len(run(build(held_out, start=0.5), images, targets)[0]) > SIZE


# --- weights ---


@pytest.mark.parametrize("given", [1.0, torch.linspace(0.5, 2, SIZE)], ids=["one", "each"])
@pytest.mark.parametrize("divide_by", ["augmented", "original"])
def test_the_loss_is_that_of_equation_3(held_out, given, divide_by):
    images, targets = batch(held_out)
    transform = build(held_out, weight=0.3, divide_by=divide_by, fraction=1.0)
    augmented, [(_, weights)] = run(transform, images, targets, given)
    losses = torch.rand(len(augmented), dtype=torch.float64)
    before = [1.0] * SIZE if isinstance(given, float) else given.tolist()
    total = math.fsum(w * loss for w, loss in zip(before, losses.tolist(), strict=False))
    for k, i in enumerate(tail_positions(held_out, targets)):
        total += 0.3 * before[i] * losses[SIZE + k].item()
    expected = total / (len(augmented) if divide_by == "augmented" else SIZE)
    assert (losses * weights).mean().item() == pytest.approx(expected, rel=1e-6)


# --- the tail ---


@pytest.mark.parametrize(
    ("tail", "classes"), [("few", [6, 7, 8, 9]), ("smallest", [7, 8, 9]), ("all", list(range(10)))]
)
@pytest.mark.parametrize("order", [range(10), [3, 0, 9, 1, 2, 8, 4, 7, 5, 6]], ids=["sorted", "permuted"])
def test_the_tail_is_that_of_its_name_in_any_order(held_out, tail, classes, order):
    counts = [held_out.counts[c] for c in order]
    mask = blt.tail_mask(counts, tail)
    assert sorted(order[i] for i in mask.nonzero()[:, 0].tolist()) == classes


def test_every_image_can_be_of_the_tail(held_out):
    images, targets = batch(held_out)
    assert run(build(held_out, tail="all", fraction=1.0), images, targets)[1][0][0].equal(torch.cat([targets, targets]))


def test_no_class_of_few_images_is_said_with_what_to_choose(held_out):
    with pytest.raises(ValueError, match=r"^tail: got 'few', .* smallest has 50; allowed are 'smallest' and 'all'"):
        blt.tail_mask([500, 50, 100], "few")


# --- where the confusion matrix comes from ---


@pytest.mark.parametrize(
    ("source", "expected"),
    [("validation", "vvvvv"), ("train", "ttttt"), ("test-every-second-epoch", "vvTvT")],
)
def test_the_confusion_matrix_is_made_before_every_epoch(held_out, source, expected):
    looks = []
    transform = build(held_out, predict=next_class(looks), confusion_from=source)
    for _ in range(5):
        transform.start_epoch()
    names = {id(held_out.validation): "v", id(held_out.train): "t", id(held_out.test): "T"}
    assert "".join(names[id(split)] for split in looks) == expected


def test_the_parity_of_the_epoch_is_resumed(held_out):
    looks = []
    first, again = (
        build(held_out, predict=next_class(looks), confusion_from="test-every-second-epoch") for _ in range(2)
    )
    first.start_epoch()
    first.start_epoch()
    again.load_state_dict(first.state_dict())
    again.start_epoch()
    assert looks[-1] is held_out.test


def test_without_held_out_images_the_choice_is_said(digits):
    with pytest.raises(ValueError, match=r"^confusion_from: got .* validation=1 or more, or confusion_from='train'"):
        build(digits)
    for options in (
        {"confusion_from": "train"},
        {"confusion_from": "test-every-second-epoch"},
        {"new_images": "random"},
        {"new_images": "augmented"},
    ):
        images, targets = batch(digits)
        assert len(run(build(digits, **options), images, targets)[0]) > SIZE


def test_a_random_class_is_any_other(held_out, monkeypatch):
    drawn = []
    monkeypatch.setattr(blt, "hallucinate", lambda model, images, c, p, **_: drawn.extend(c.tolist()) or images)
    looks = []
    transform = build(held_out, predict=next_class(looks), new_images="random", fraction=1.0)
    run(transform, torch.zeros(9000, 3, 2, 2), torch.full((9000,), 8))
    assert looks == []
    assert [drawn.count(c) / 9000 for c in range(10)] == pytest.approx([1 / 9] * 8 + [0, 1 / 9], abs=0.012)


# --- variants ---

CHANGES = [
    {"tail": "smallest"},
    {"fraction": 0.3},
    {"new_images": "random"},
    {"new_images": "augmented"},
    {"static": True},
    {"confusion_from": "train"},
    {"min_confidence": (0.3, 0.5)},
    {"step_size": 0.1},
    {"max_steps": 3},
    {"score": "log-probability"},
    {"score": "probability"},
    {"weight": 0.5},
    {"divide_by": "original"},
    *({"as_released": (name,)} for name in AS_RELEASED),
]


def one_class_less(source):
    """A ``predict`` under which class 9 is never confused, and training images go elsewhere than validation images."""

    def predict(split):
        shift = 2 if split is source.train else 1
        return torch.eye(10)[torch.where(split.labels == 9, 9, (split.labels + shift) % 9)].numpy()

    return predict


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_option_changes_the_batch(held_out, change):
    images, targets = batch(held_out, 27)
    results = []
    for options in ({}, change):
        model = Network()
        with torch.no_grad():  # confident enough that images finish at different steps
            torch.manual_seed(3)
            model.layers[-1].weight.normal_(0, 0.3)
        common = {"min_confidence": (0.1, 0.9), "step_size": 0.5} | options
        transform = build(held_out, model, one_class_less(held_out), **common)
        results.append(run(transform, images, targets))
    (one, [(_, weights)]), (other, [(_, other_weights)]) = results
    assert not one.equal(other) or not weights.equal(other_weights)


def test_static_images_are_made_once_and_given_out_by_class(held_out):
    model = Network()
    looks = []
    transform = build(held_out, model, next_class(looks), static=True, fraction=1.0)
    images, targets = batch(held_out)
    one, [(labels, _)] = run(transform, images, targets)
    made, kept = transform.made.clone(), held_out.train.labels[transform.pool]
    nn.init.normal_(model.layers[-1].weight)
    transform.start_epoch()
    transform.on_images(images, [(targets, 1.0)])
    assert len(looks) == 1 and transform.made.equal(made)
    assert len(made) == sum(n for n in held_out.counts if n <= 20)
    for image, y in zip(one[SIZE:], labels[SIZE:], strict=True):
        assert kept[(made == image).flatten(1).all(1).nonzero()[0, 0]] == y
    assert len({tuple(image.flatten().tolist()) for image in one[SIZE:]}) > 3
    resumed = build(held_out, static=True)
    resumed.load_state_dict(transform.state_dict())
    assert resumed.made.equal(made) and resumed.epochs == 2


def test_fresh_images_are_training_images_of_the_class(held_out, monkeypatch):
    monkeypatch.setattr(blt, "hallucinate", lambda model, images, classes, p, **_: images)
    still = replace(held_out, pad=0)
    images, targets = batch(still)
    augmented, [(labels, _)] = run(build(still, as_released=("fresh-images",), fraction=1.0), images, targets)
    everything = Augmenter(still)(torch.arange(len(still.train)))
    found = [(everything == image).flatten(1).all(1).nonzero()[0, 0].item() for image in augmented[SIZE:]]
    assert still.train.labels[found].equal(labels[SIZE:])
    assert len(set(found)) > 3
    assert not augmented[SIZE:].equal(images[tail_positions(still, targets)])


def test_as_released_numbers_are_rounded_down(held_out):
    images, targets = batch(held_out)
    n = len(tail_positions(held_out, targets))
    transform = build(held_out, as_released=("rounded-down",), fraction=0.3)
    assert 0.3 * n % 1 > 0
    assert len(run(transform, images, targets)[0]) == SIZE + int(0.3 * n)


def test_as_released_a_class_that_is_never_confused_gets_none(held_out):
    images, targets = batch(held_out)
    options = {"fraction": 1.0, "predict": one_class_less(held_out), "as_released": ("unconfused-skipped",)}
    new = run(build(held_out, **options), images, targets)[1][0][0][SIZE:].tolist()
    assert 9 in targets
    assert new == [y for y in targets.tolist() if held_out.counts[y] <= 20 and y != 9]


# --- errors ---


@pytest.mark.parametrize(
    "options",
    [
        {"fraction": -0.1},
        {"fraction": 1.1},
        {"fraction": math.nan},
        {"start": 2},
        {"weight": -1},
        {"weight": math.inf},
        {"tail": "many"},
        {"new_images": "mixed"},
        {"confusion_from": "test"},
        {"divide_by": "batch"},
        {"min_confidence": 0.2},
        {"min_confidence": (0.3, 0.2)},
        {"min_confidence": (0.3, 1.2)},
        {"min_confidence": (-0.3, 0.2)},
        {"step_size": 0},
        {"max_steps": 1.5},
        {"score": "loss"},
        {"as_released": "fresh-images"},
        {"as_released": ("fresh",)},
        {"as_released": ("fresh-images",), "static": True},
    ],
    ids=str,
)
def test_bad_options_are_refused_by_name(held_out, options):
    with pytest.raises(ValueError, match=rf"^{next(iter(options))}: got"):
        build(held_out, **options)


def test_mixed_labels_are_refused(held_out):
    images, targets = batch(held_out)
    transform = build(held_out)
    transform.start_epoch()
    with pytest.raises(ValueError, match=r"^labels: got 2 pairs"):
        transform.on_images(images, [(targets, 0.4), (targets, 0.6)])


# --- in a training ---


def train(source, checkpoint=None, **options):
    """Two stages, the second of three epochs with BLT."""
    blt_stage = Stage(
        steps=3,
        batch_size=len(source.train),
        balancer=part("balancers.power_balanced", gamma=0.9),
        transform=part("blt.BLT", **options),
    )
    stages = Stage(steps=2, batch_size=32), blt_stage
    recipe = Recipe("toy", "digits-lt", stages, imbalance=20, backbone="resnet8", validation=1)
    job = toys.train(recipe, source, checkpoint=checkpoint)
    return torch.cat([value.double().flatten() for value in job.model.state_dict().values()])


VARIANTS = [{}, {"static": True}, {"confusion_from": "test-every-second-epoch", "as_released": AS_RELEASED}]


@pytest.fixture(scope="module")
def quarter(held_out):
    kept = held_out.train.labels.argsort(stable=True)[::4]
    return replace(held_out, train=held_out.train[kept])


@pytest.mark.parametrize("options", VARIANTS, ids=["paper", "static", "released"])
def test_stopped_and_started_again_ends_bit_identical(quarter, options, tmp_path, monkeypatch):
    options = {"tail": "smallest", "max_steps": 2} | options
    write = training.save_atomically

    def save_and_stop(content, path):
        write(content, path)
        if content["epoch"] == 2:
            raise KeyboardInterrupt

    whole = train(quarter, **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "save_atomically", save_and_stop)
        patch.setattr(training, "CHECKPOINT_SHARE", math.inf)  # one after every epoch
        train(quarter, tmp_path / "c.pt", **options)
    assert train(quarter, tmp_path / "c.pt", **options).equal(whole)


def test_new_images_reach_the_weights(quarter):
    assert not train(quarter, max_steps=2).equal(train(quarter, fraction=0.0))

"""How recipes name parts, and what every loss checks."""

import pytest
import torch

from ltnotes.methods.baselines import CrossEntropy, FocalLoss, WeightedCrossEntropy
from ltnotes.methods.common import Loss, Part, Transform, part, weights_summing_to_classes
from ltnotes.methods.gcl import GCLLoss

COUNTS = [50, 10, 2]
LOSSES = [CrossEntropy(), FocalLoss(), WeightedCrossEntropy(COUNTS)]


def test_a_part_is_named_below_methods_or_by_its_own_package():
    assert part("baselines.FocalLoss").resolve() is FocalLoss
    assert part("ltnotes.methods.baselines:FocalLoss").resolve() is FocalLoss


@pytest.mark.parametrize("name", ["baselines.Nothing", "nowhere.FocalLoss", "FocalLoss", "", "no.package:X", ":"])
def test_an_unknown_part_is_refused(name):
    with pytest.raises(ValueError, match=f"method part: got '{name}'"):
        part(name)


def test_a_part_is_hashable_and_its_options_have_no_order():
    one = part("baselines.ClassBalancedLoss", beta=0.9, base="focal")
    other = part("baselines.ClassBalancedLoss", base="focal", beta=0.9)
    assert one == other
    assert hash(one) == hash(other)
    assert str(one) == "baselines.ClassBalancedLoss(base='focal', beta=0.9)"
    assert str(part("baselines.Mixup")) == "baselines.Mixup"


def test_a_part_is_built_with_its_options_and_what_it_asks_for():
    loss = part("baselines.ClassBalancedLoss", beta=0.0).build(class_counts=COUNTS, model="not asked for")
    assert loss.weight.tolist() == [1.0, 1.0, 1.0]
    assert part("baselines.FocalLoss", gamma=3.0).build(class_counts=COUNTS).gamma == 3.0


def test_an_option_that_the_part_does_not_take_is_refused_by_name():
    with pytest.raises(ValueError, match=r"baselines\.FocalLoss: got option 'gama', allowed are gamma, detach_weight"):
        part("baselines.FocalLoss", gama=2.0).build()


def test_an_option_that_the_trainer_supplies_is_refused():
    with pytest.raises(ValueError, match=r"got option 'class_counts', allowed are divide_by"):
        Part("baselines.WeightedCrossEntropy", (("class_counts", COUNTS),)).build(class_counts=COUNTS)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize(
    ("logits", "targets"),
    [((4, 3, 1), (4,)), ((3,), (3,)), ((4, 3), (3,)), ((4, 3), (4, 1)), ((4, 3), (4, 3))],
)
def test_shapes_that_do_not_fit_are_refused(loss, logits, targets):
    with pytest.raises(ValueError, match="logits, targets: got shapes"):
        loss(torch.zeros(logits), torch.zeros(targets, dtype=torch.int64))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("targets", [[0, 3], [-1, 0], [-100, 2]])
def test_targets_out_of_range_are_refused(loss, targets):
    with pytest.raises(ValueError, match=r"targets: got .* allowed are 0 to 2"):
        loss(torch.zeros(2, 3), torch.tensor(targets))


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.bool])
def test_targets_of_another_type_are_refused(dtype):
    with pytest.raises(ValueError, match=r"targets: got torch\..*, allowed is torch.int64"):
        CrossEntropy()(torch.zeros(2, 3), torch.zeros(2, dtype=dtype))


def test_a_number_of_classes_unlike_the_counts_is_refused():
    with pytest.raises(ValueError, match="logits: got 4 classes, allowed are 3"):
        WeightedCrossEntropy(COUNTS)(torch.zeros(2, 4), torch.tensor([0, 1]))


class Seen(Loss):
    def per_sample(self, logits, targets, features):
        self.dtype, self.autocast = logits.dtype, torch.is_autocast_enabled("cpu")
        return logits.sum(1)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_a_loss_computes_in_float32_or_better_outside_autocast(given, seen):
    loss = Seen()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(torch.ones(2, 3, dtype=given), torch.zeros(2, dtype=torch.int64))
    assert (loss.dtype, loss.autocast, value.item()) == (seen, False, 3.0)


def test_a_loss_without_a_formula_says_so():
    class Unfinished(Loss):
        pass

    with pytest.raises(NotImplementedError, match="Unfinished defines no per_sample"):
        Unfinished()(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))


def test_weights_sum_to_the_number_of_classes():
    weights = weights_summing_to_classes([1.0, 2.0, 5.0])
    assert weights.tolist() == [0.375, 0.75, 1.875]


def test_the_base_transform_changes_nothing():
    base, tensor, labels = Transform(), torch.arange(3), [(torch.arange(3), 1.0)]
    assert base.start_epoch() is None
    assert base.on_indices(tensor) is tensor
    for hook in (base.on_images, base.on_feature_map):
        images, kept = hook(tensor, labels)
        assert images is tensor
        assert kept is labels


def test_a_weight_for_each_sample_weighs_each_sample():

    logits, targets, weight = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([0.0, 1.0, 2.0, 0.5])
    each = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(CrossEntropy()(logits, targets, weight=weight), (weight * each).mean())
    torch.testing.assert_close(CrossEntropy()(logits, targets, weight=0.3), 0.3 * each.mean())


def test_what_the_trainer_supplies_is_no_option():
    with pytest.raises(ValueError, match=r"got option 'class_counts', allowed are divide_by"):
        part("baselines.WeightedCrossEntropy", class_counts=(1, 2))


@pytest.mark.parametrize("shape", [(4, 1), (3,), (1, 4)])
def test_weights_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"^weight: got shape"):
        CrossEntropy()(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), weight=torch.ones(shape))


def test_what_a_loss_takes_beyond_features_can_come_by_position():
    logits, targets, noise = torch.randn(3, 3), torch.tensor([0, 1, 2]), torch.rand(3, 3)
    loss = GCLLoss([5, 3, 1])
    assert loss(logits, targets, None, noise).equal(loss(logits, targets, noise=noise))


def test_a_part_within_a_part_prints_like_one():
    made = part("baselines.DeferredReweighting", loss=part("baselines.LDAMLoss", scale=20.0))
    assert str(made) == "baselines.DeferredReweighting(loss=baselines.LDAMLoss(scale=20.0))"

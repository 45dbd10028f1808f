"""Losses against plain Python written from the equations, and mixup."""

import math

import pytest
import torch
from torch.nn import functional as F

from ltnotes.methods.baselines import ClassBalancedLoss, CrossEntropy, FocalLoss, Mixup, WeightedCrossEntropy
from tests.test_counts import BAD_COUNTS

COUNTS = [50, 5000, 83, 1, 20]
BATCH = 12


# --- the equations, one sample at a time ---


def log_softmax(row):
    top = max(row)
    return [z - top - math.log(math.fsum(math.exp(other - top) for other in row)) for z in row]


def cross_entropy(row, y):
    return -log_softmax(row)[y]


def focal(gamma):
    return lambda row, y: -((1 - math.exp(log_softmax(row)[y])) ** gamma) * log_softmax(row)[y]


def weighted(weight_of_count, base=cross_entropy, divide_by="batch"):
    """The mean over the batch of w_y * base, the weights summing to C."""
    raw = [weight_of_count(n) for n in COUNTS]
    weights = [w * len(COUNTS) / sum(raw) for w in raw]

    def loss(logits, targets):
        total = sum(weights[y] * base(row, y) for row, y in zip(logits, targets, strict=True))
        return total / (len(targets) if divide_by == "batch" else sum(weights[y] for y in targets))

    return loss


def mean_of(base):
    return lambda logits, targets: sum(map(base, logits, targets)) / len(targets)


def inverse(n):
    return 1 / n


def inverse_effective(beta):
    return lambda n: (1 - beta) / (1 - beta**n)


LOSSES = {
    "CrossEntropy": (lambda c: CrossEntropy(), mean_of(cross_entropy)),
    "Focal": (lambda c: FocalLoss(), mean_of(focal(1.0))),
    "Focal gamma=2.5": (lambda c: FocalLoss(2.5), mean_of(focal(2.5))),
    "Focal gamma=0.5": (lambda c: FocalLoss(0.5), mean_of(focal(0.5))),
    "Focal detached": (lambda c: FocalLoss(2.0, detach_weight=True), mean_of(focal(2.0))),
    "Weighted": (lambda c: WeightedCrossEntropy(c), weighted(inverse)),
    "Weighted by weights": (
        lambda c: WeightedCrossEntropy(c, divide_by="weights"),
        weighted(inverse, divide_by="weights"),
    ),
    "ClassBalanced": (lambda c: ClassBalancedLoss(c), weighted(inverse_effective(0.9999))),
    "ClassBalanced beta=0.9": (lambda c: ClassBalancedLoss(c, beta=0.9), weighted(inverse_effective(0.9))),
    "ClassBalanced by weights": (
        lambda c: ClassBalancedLoss(c, divide_by="weights"),
        weighted(inverse_effective(0.9999), divide_by="weights"),
    ),
    "ClassBalanced focal": (
        lambda c: ClassBalancedLoss(c, base="focal"),
        weighted(inverse_effective(0.9999), focal(1.0)),
    ),
    "ClassBalanced focal gamma=2": (
        lambda c: ClassBalancedLoss(c, base="focal", gamma=2.0),
        weighted(inverse_effective(0.9999), focal(2.0)),
    ),
}
each_loss = pytest.mark.parametrize("make", [make for make, _ in LOSSES.values()], ids=LOSSES)


def batch(dtype=torch.float64, classes=5, scale=3.0):
    generator = torch.Generator().manual_seed(1)
    logits = scale * torch.randn(BATCH, classes, generator=generator, dtype=torch.float64)
    targets = torch.arange(BATCH) % classes  # every class is a target
    return logits.to(dtype), targets


@pytest.mark.parametrize(("make", "reference"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_the_equation(make, reference, dtype, tolerance):
    logits, targets = batch(dtype)
    loss = make(COUNTS)(logits, targets)
    assert loss.shape == ()
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(reference(logits.double().tolist(), targets.tolist()), rel=tolerance)


@pytest.mark.parametrize("name", [name for name in LOSSES if "detached" not in name])
def test_gradient_is_that_of_the_value(name):
    logits, targets = batch()
    loss = LOSSES[name][0](COUNTS)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), logits.requires_grad_())


@each_loss
def test_permuting_the_classes_changes_nothing(make):
    logits, targets = batch()
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = make([COUNTS[i] for i in order])(logits[:, order], torch.argsort(order)[targets])
    assert permuted.item() == pytest.approx(make(COUNTS)(logits, targets).item(), rel=1e-12)


@each_loss
def test_balanced_counts_are_the_unweighted_loss(make):
    logits, targets = batch()
    loss = make([7] * len(COUNTS))
    base = getattr(loss, "base", loss)
    assert loss(logits, targets).item() == pytest.approx(base(logits, targets).item(), rel=1e-12)


def gradient(loss, logits, targets):
    logits = logits.clone().requires_grad_()
    loss(logits, targets).backward()
    return logits.grad


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
def test_extreme_logits_stay_finite(make, scale, dtype):
    logits, targets = batch(dtype, scale=scale)
    assert make(COUNTS)(logits, targets).isfinite()
    assert gradient(make(COUNTS), logits, targets).isfinite().all()


@each_loss
def test_a_certain_answer_costs_nothing(make):
    targets = torch.arange(5)
    logits = 1e4 * torch.eye(5)
    assert make(COUNTS)(logits, targets).item() == pytest.approx(0, abs=1e-6)
    assert gradient(make(COUNTS), logits, targets).isfinite().all()


@each_loss
def test_8142_classes(make):
    logits, targets = batch(torch.float32, classes=8142)
    loss = make([1 + j % 997 for j in range(8142)])(logits, targets + 8000)
    assert loss.isfinite()


@each_loss
def test_half_precision_is_computed_in_float32(make):
    logits, targets = batch(torch.bfloat16)
    loss = make(COUNTS)(logits, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == make(COUNTS)(logits.float(), targets).item()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (FocalLoss(1.0), FocalLoss(1.1)),
        (WeightedCrossEntropy(COUNTS), WeightedCrossEntropy(COUNTS[::-1])),
        (WeightedCrossEntropy(COUNTS), WeightedCrossEntropy(COUNTS, divide_by="weights")),
        (ClassBalancedLoss(COUNTS), ClassBalancedLoss(COUNTS[::-1])),
        (ClassBalancedLoss(COUNTS), ClassBalancedLoss(COUNTS, beta=0.99)),
        (ClassBalancedLoss(COUNTS), ClassBalancedLoss(COUNTS, base="focal")),
        (ClassBalancedLoss(COUNTS, base="focal"), ClassBalancedLoss(COUNTS, base="focal", gamma=2.0)),
        (ClassBalancedLoss(COUNTS), ClassBalancedLoss(COUNTS, divide_by="weights")),
    ],
)
def test_every_argument_changes_the_loss(one, other):
    logits, targets = batch()
    assert abs(one(logits, targets) - other(logits, targets)) > 1e-3


def test_detaching_the_focal_weight_changes_the_gradient_and_not_the_value():
    logits, targets = batch()
    plain, detached = FocalLoss(2.0), FocalLoss(2.0, detach_weight=True)
    assert plain(logits, targets) == detached(logits, targets)
    assert (gradient(plain, logits, targets) - gradient(detached, logits, targets)).abs().max() > 1e-3


def test_the_detached_gradient_is_the_weight_times_that_of_cross_entropy():
    logits, targets = batch()
    p = logits.softmax(1)
    one_hot = F.one_hot(targets, len(COUNTS))
    weight = (1 - p[torch.arange(BATCH), targets]) ** 2
    expected = weight[:, None] * (p - one_hot) / BATCH
    torch.testing.assert_close(gradient(FocalLoss(2.0, detach_weight=True), logits, targets), expected)


def test_focal_with_gamma_zero_is_cross_entropy():
    logits, targets = batch()
    assert FocalLoss(0)(logits, targets).item() == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-14)


def test_divided_by_weights_is_torchs_weighted_cross_entropy():
    logits, targets = batch()
    expected = F.cross_entropy(logits, targets, weight=1 / torch.tensor(COUNTS, dtype=torch.float64))
    loss = WeightedCrossEntropy(COUNTS, divide_by="weights")(logits, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(("beta", "limit"), [(0, CrossEntropy()), (1 - 1e-12, WeightedCrossEntropy(COUNTS))])
def test_class_balanced_reaches_its_limits(beta, limit):
    logits, targets = batch()
    loss = ClassBalancedLoss(COUNTS, beta=beta)(logits, targets)
    assert loss.item() == pytest.approx(limit(logits, targets).item(), rel=1e-6)


@pytest.mark.parametrize("make", [WeightedCrossEntropy, ClassBalancedLoss])
@pytest.mark.parametrize("counts", BAD_COUNTS.values(), ids=BAD_COUNTS)
def test_bad_counts_are_refused_by_name(make, counts):
    with pytest.raises(ValueError, match="counts: got"):
        make(counts)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: FocalLoss(-1), "gamma"),
        (lambda: FocalLoss(float("nan")), "gamma"),
        (lambda: WeightedCrossEntropy(COUNTS, divide_by="size"), "divide_by"),
        (lambda: ClassBalancedLoss(COUNTS, divide_by="size"), "divide_by"),
        (lambda: ClassBalancedLoss(COUNTS, base="hinge"), "base"),
        (lambda: ClassBalancedLoss(COUNTS, gamma=2.0), "gamma"),
        (lambda: ClassBalancedLoss(COUNTS, base="focal", gamma=-1.0), "gamma"),
        (lambda: ClassBalancedLoss(COUNTS, beta=1.0), "beta"),
        (lambda: ClassBalancedLoss(COUNTS, beta=-0.1), "beta"),
        (lambda: Mixup(0), "alpha"),
        (lambda: Mixup(float("nan")), "alpha"),
    ],
)
def test_bad_options_are_refused_by_name(make, name):
    with pytest.raises(ValueError, match=f"^{name}: got"):
        make()


# --- mixup ---


def blend(alpha=1.0, seed=0, size=6):
    images = torch.arange(float(size))[:, None, None, None].expand(size, 3, 2, 2).clone()
    targets = torch.arange(size)
    torch.manual_seed(seed)
    return images, *Mixup(alpha).on_images(images, [(targets, 1.0)])


def test_mixup_blends_images_as_it_blends_labels():
    images, mixed, labels = blend()
    (own, own_weight), (other, other_weight) = labels
    assert own_weight + other_weight == pytest.approx(1)
    assert 0 < own_weight < 1
    torch.testing.assert_close(mixed, own_weight * images[own] + other_weight * images[other])
    assert own.tolist() == list(range(6))
    assert sorted(other.tolist()) == list(range(6))
    assert other.tolist() != own.tolist()


def test_mixup_composes_with_labels_that_are_pairs_already():
    images, targets = torch.randn(4, 3, 2, 2), torch.arange(4)
    _, labels = Mixup().on_images(images, [(targets, 0.25), (targets.flip(0), 0.75)])
    assert len(labels) == 4
    assert sum(float(weight) for _, weight in labels) == pytest.approx(1)


@pytest.mark.parametrize(("alpha", "variance"), [(1.0, 1 / 12), (0.2, 1 / (4 * 1.4)), (8.0, 1 / (4 * 17))])
def test_mixup_draws_its_share_from_a_beta_distribution(alpha, variance):
    shares = torch.tensor([float(blend(alpha, seed, size=2)[2][0][1]) for seed in range(2000)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(variance, rel=0.1)


def test_mixup_leaves_its_input_alone():
    images, _, _ = blend()
    assert images[:, 0, 0, 0].tolist() == list(range(6))

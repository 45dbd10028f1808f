"""Losses against plain Python written from the equations, and mixup."""

import math

import pytest
import torch
from torch.nn import functional as F

from ltnotes.methods.baselines import (
    ArcFaceLoss,
    ClassBalancedLoss,
    CosFaceLoss,
    CrossEntropy,
    DeferredReweighting,
    EqualizationLoss,
    FocalLoss,
    LabelAwareSmoothing,
    LDAMLoss,
    LogitAdjustedLoss,
    Mixup,
    WeightedCrossEntropy,
)
from ltnotes.methods.common import Loss, part
from ltnotes.methods.fbl import FeatureBalancedLoss
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


def with_margin(shrink, scale=30.0):
    """Cross-entropy on scaled cosines, ``shrink(cosine, y)`` in the target's place."""
    return lambda row, y: cross_entropy([scale * (shrink(c, y) if j == y else c) for j, c in enumerate(row)], y)


def ldam(max_margin=0.5, scale=30.0):
    raw = [n**-0.25 for n in COUNTS]
    return with_margin(lambda c, y: c - raw[y] * max_margin / max(raw), scale)


def cosface(margin=0.35, scale=30.0):
    return with_margin(lambda c, y: c - margin, scale)


def arcface(margin=0.5, scale=30.0):
    def shrink(c, y):
        theta = math.acos(c)
        return math.cos(theta + margin) if theta + margin < math.pi else c - margin * math.sin(margin)

    return with_margin(shrink, scale)


def adjusted(tau):
    return lambda row, y: cross_entropy(
        [z + tau * math.log(n / sum(COUNTS)) for z, n in zip(row, COUNTS, strict=True)], y
    )


def equalized(threshold, beta=lambda k: 1):
    """Without the sum's shift by the largest logit: good for small logits only."""

    def loss(row, y):
        total = 0.0
        for k, (z, n) in enumerate(zip(row, COUNTS, strict=True)):
            rare, y_k = int(n / sum(COUNTS) < threshold), int(k == y)
            total += (1 - beta(k) * rare * (1 - y_k)) * math.exp(z)
        return -math.log(math.exp(row[y]) / total)

    return loss


def smoothed(eps_of_count):
    def loss(row, y):
        eps, log_p = eps_of_count(COUNTS[y]), log_softmax(row)
        shares = [1 - eps if j == y else eps / (len(row) - 1) for j in range(len(row))]
        return -sum(q * lp for q, lp in zip(shares, log_p, strict=True))

    return loss


def between(n):
    """Quarter of a circle per range of counts: the argument of the sines of MiSLAS."""
    return math.pi * (n - min(COUNTS)) / (2 * (max(COUNTS) - min(COUNTS)))


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
    "LDAM": (lambda c: LDAMLoss(c), mean_of(ldam())),
    "LDAM 0.3, 10": (lambda c: LDAMLoss(c, 0.3, 10.0), mean_of(ldam(0.3, 10.0))),
    "CosFace": (lambda c: CosFaceLoss(), mean_of(cosface())),
    "CosFace 0.1, 10": (lambda c: CosFaceLoss(0.1, 10.0), mean_of(cosface(0.1, 10.0))),
    "ArcFace": (lambda c: ArcFaceLoss(), mean_of(arcface())),
    "ArcFace 1.2, 10": (lambda c: ArcFaceLoss(1.2, 10.0), mean_of(arcface(1.2, 10.0))),
    "LogitAdjusted": (lambda c: LogitAdjustedLoss(c), mean_of(adjusted(1.0))),
    "LogitAdjusted tau=0.5": (lambda c: LogitAdjustedLoss(c, tau=0.5), mean_of(adjusted(0.5))),
    "Equalization always": (lambda c: EqualizationLoss(c, probability=1.0), mean_of(equalized(0.5 / len(COUNTS)))),
    "Equalization always 0.01": (lambda c: EqualizationLoss(c, 0.01, 1.0), mean_of(equalized(0.01))),
    "Equalization evaluated": (lambda c: EqualizationLoss(c).eval(), mean_of(cross_entropy)),
    "LabelAware": (lambda c: LabelAwareSmoothing(c), mean_of(smoothed(lambda n: 0.3 * math.sin(between(n))))),
    "LabelAware linear": (
        lambda c: LabelAwareSmoothing(c, 0.4, 0.1, "linear"),
        mean_of(smoothed(lambda n: 0.1 + 0.3 * between(n) * 2 / math.pi)),
    ),
    "LabelAware convex": (
        lambda c: LabelAwareSmoothing(c, 0.4, 0.1, "convex"),
        mean_of(smoothed(lambda n: 0.4 + 0.3 * math.sin(1.5 * math.pi + between(n)))),
    ),
    "Deferred LDAM, before": (lambda c: DeferredReweighting(c, part("baselines.LDAMLoss")), mean_of(ldam())),
    "Deferred LDAM, after": (
        lambda c: DeferredReweighting(c, part("baselines.LDAMLoss"), start=0.0),
        weighted(inverse_effective(0.9999), ldam()),
    ),
    "Deferred by weights": (
        lambda c: DeferredReweighting(c, FocalLoss(2.0), start=0.0, beta=0.9, divide_by="weights"),
        weighted(inverse_effective(0.9), focal(2.0), divide_by="weights"),
    ),
}
each_loss = pytest.mark.parametrize("make", [make for make, _ in LOSSES.values()], ids=LOSSES)


def batch(dtype=torch.float64, classes=5, scale=3.0):
    generator = torch.Generator().manual_seed(1)
    logits = scale * torch.randn(BATCH, classes, generator=generator, dtype=torch.float64)
    targets = torch.arange(BATCH) % classes  # every class is a target
    return logits.to(dtype), targets


def samples(loss, dtype=torch.float64, classes=5):
    """Logits, or plain cosines for a loss that scales them itself."""
    logits, targets = batch(dtype, classes)
    return (logits if loss.evaluation_scale == 1 else 0.95 * logits.tanh()), targets


@pytest.mark.parametrize(("make", "reference"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_the_equation(make, reference, dtype, tolerance):
    logits, targets = samples(make(COUNTS), dtype)
    loss = make(COUNTS)(logits, targets)
    assert loss.shape == ()
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(reference(logits.double().tolist(), targets.tolist()), rel=tolerance)


@pytest.mark.parametrize("name", [name for name in LOSSES if "detached" not in name])
def test_gradient_is_that_of_the_value(name):
    loss = LOSSES[name][0](COUNTS)
    logits, targets = samples(loss)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), logits.requires_grad_())


@each_loss
def test_permuting_the_classes_changes_nothing(make):
    logits, targets = samples(make(COUNTS))
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = make([COUNTS[i] for i in order])(logits[:, order], torch.argsort(order)[targets])
    assert permuted.item() == pytest.approx(make(COUNTS)(logits, targets).item(), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in LOSSES if name.startswith(("Weighted", "ClassBal", "Deferred"))])
def test_balanced_counts_are_the_unweighted_loss(name):
    loss = LOSSES[name][0]([7] * len(COUNTS))
    logits, targets = samples(loss)
    assert loss(logits, targets).item() == pytest.approx(loss.base(logits, targets).item(), rel=1e-12)


BALANCED = [7] * len(COUNTS)


@pytest.mark.parametrize(
    ("loss", "limit"),
    [
        (LDAMLoss(BALANCED), CosFaceLoss(0.5)),
        (LDAMLoss(COUNTS, max_margin=0), CosFaceLoss(0.0)),
        (ArcFaceLoss(0.0), CosFaceLoss(0.0)),
        (LogitAdjustedLoss(BALANCED), CrossEntropy()),
        (LogitAdjustedLoss(COUNTS, tau=0), CrossEntropy()),
        (EqualizationLoss(BALANCED), CrossEntropy()),
        (EqualizationLoss(COUNTS, probability=0), CrossEntropy()),
        (EqualizationLoss(COUNTS, threshold=0), CrossEntropy()),
        (LabelAwareSmoothing(COUNTS, head=0), CrossEntropy()),
        # torch smooths over all classes, the target too.
        (LabelAwareSmoothing(BALANCED), torch.nn.CrossEntropyLoss(label_smoothing=0.3 * 5 / 4)),
        (LabelAwareSmoothing(COUNTS, 0.2, 0.2), torch.nn.CrossEntropyLoss(label_smoothing=0.2 * 5 / 4)),
        (DeferredReweighting(COUNTS, CrossEntropy(), start=0), ClassBalancedLoss(COUNTS)),
        (DeferredReweighting(COUNTS, CrossEntropy(), start=0, beta=0), CrossEntropy()),
    ],
)
def test_limits_that_are_other_losses(loss, limit):
    logits, targets = samples(loss)
    assert loss(logits, targets).item() == pytest.approx(limit(logits, targets).item(), rel=1e-12)


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


@pytest.mark.parametrize("make", [make for name, (make, _) in LOSSES.items() if "LabelAware" not in name])
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
        (LDAMLoss(COUNTS), LDAMLoss(COUNTS[::-1])),
        (LDAMLoss(COUNTS), LDAMLoss(COUNTS, max_margin=0.4)),
        (LDAMLoss(COUNTS), LDAMLoss(COUNTS, scale=20.0)),
        (CosFaceLoss(), CosFaceLoss(margin=0.3)),
        (CosFaceLoss(), CosFaceLoss(scale=20.0)),
        (ArcFaceLoss(), ArcFaceLoss(margin=0.4)),
        (ArcFaceLoss(), ArcFaceLoss(scale=20.0)),
        (LogitAdjustedLoss(COUNTS), LogitAdjustedLoss(COUNTS[::-1])),
        (LogitAdjustedLoss(COUNTS), LogitAdjustedLoss(COUNTS, tau=1.1)),
        (EqualizationLoss(COUNTS, 0.005, 1.0), EqualizationLoss(COUNTS[::-1], 0.005, 1.0)),
        (EqualizationLoss(COUNTS, 0.005, 1.0), EqualizationLoss(COUNTS, 0.01, 1.0)),
        (EqualizationLoss(COUNTS, 0.005, 1.0), EqualizationLoss(COUNTS, 0.005, 0.0)),
        (LabelAwareSmoothing(COUNTS), LabelAwareSmoothing(COUNTS[::-1])),
        (LabelAwareSmoothing(COUNTS), LabelAwareSmoothing(COUNTS, head=0.2)),
        (LabelAwareSmoothing(COUNTS), LabelAwareSmoothing(COUNTS, tail=0.1)),
        (LabelAwareSmoothing(COUNTS), LabelAwareSmoothing(COUNTS, shape="linear")),
        (LabelAwareSmoothing(COUNTS), LabelAwareSmoothing(COUNTS, shape="convex")),
        (DeferredReweighting(COUNTS, CrossEntropy()), DeferredReweighting(COUNTS, FocalLoss())),
        (DeferredReweighting(COUNTS, CrossEntropy()), DeferredReweighting(COUNTS, CrossEntropy(), start=0)),
        (
            DeferredReweighting(COUNTS, CrossEntropy(), start=0),
            DeferredReweighting(COUNTS[::-1], CrossEntropy(), start=0),
        ),
        (
            DeferredReweighting(COUNTS, CrossEntropy(), start=0),
            DeferredReweighting(COUNTS, CrossEntropy(), start=0, beta=0.9),
        ),
        (
            DeferredReweighting(COUNTS, CrossEntropy(), start=0),
            DeferredReweighting(COUNTS, CrossEntropy(), start=0, divide_by="weights"),
        ),
    ],
)
def test_every_argument_changes_the_loss(one, other):
    logits, targets = samples(one)
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


@pytest.mark.parametrize(
    "make",
    [
        WeightedCrossEntropy,
        ClassBalancedLoss,
        LDAMLoss,
        LogitAdjustedLoss,
        EqualizationLoss,
        LabelAwareSmoothing,
        lambda counts: DeferredReweighting(counts, part("baselines.LDAMLoss")),
    ],
)
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
        (lambda: LDAMLoss(COUNTS, max_margin=-0.1), "max_margin"),
        (lambda: LDAMLoss(COUNTS, scale=0), "scale"),
        (lambda: CosFaceLoss(margin=-0.1), "margin"),
        (lambda: CosFaceLoss(scale=float("nan")), "scale"),
        (lambda: ArcFaceLoss(margin=-0.1), "margin"),
        (lambda: ArcFaceLoss(margin=1.6), "margin"),
        (lambda: ArcFaceLoss(scale=-1), "scale"),
        (lambda: LogitAdjustedLoss(COUNTS, tau=-1), "tau"),
        (lambda: LogitAdjustedLoss(COUNTS, tau=float("inf")), "tau"),
        (lambda: EqualizationLoss(COUNTS, threshold=-0.1), "threshold"),
        (lambda: EqualizationLoss(COUNTS, probability=1.1), "probability"),
        (lambda: LabelAwareSmoothing(COUNTS, head=1.0), "head"),
        (lambda: LabelAwareSmoothing(COUNTS, tail=-0.1), "tail"),
        (lambda: LabelAwareSmoothing(COUNTS, shape="square"), "shape"),
        (lambda: LabelAwareSmoothing([3]), "class_counts"),
        (lambda: DeferredReweighting(COUNTS, CrossEntropy(), start=1.1), "start"),
        (lambda: DeferredReweighting(COUNTS, CrossEntropy(), beta=1.0), "beta"),
        (lambda: DeferredReweighting(COUNTS, CrossEntropy(), divide_by="size"), "divide_by"),
        (lambda: DeferredReweighting(COUNTS, "baselines.LDAMLoss"), "loss"),
        (lambda: DeferredReweighting(COUNTS, part("baselines.Mixup")), "loss"),
        (lambda: DeferredReweighting(COUNTS, LDAMLoss([3, 2])), "loss"),
        (lambda: Mixup(0), "alpha"),
        (lambda: Mixup(float("nan")), "alpha"),
    ],
)
def test_bad_options_are_refused_by_name(make, name):
    with pytest.raises(ValueError, match=f"^{name}: got"):
        make()


@pytest.mark.parametrize(
    "make",
    [LDAMLoss, LogitAdjustedLoss, EqualizationLoss, LabelAwareSmoothing, lambda c: DeferredReweighting(c, FocalLoss())],
)
def test_a_number_of_classes_unlike_the_counts_is_refused(make):
    with pytest.raises(ValueError, match="logits: got 4 classes, allowed are 5"):
        make(COUNTS)(torch.zeros(2, 4), torch.tensor([0, 1]))


# --- deferred re-weighting ---


class Recorded(Loss):
    """Sees its progress, its features and a further argument."""

    evaluation_scale = 12.0

    def set_progress(self, t):
        self.t = t

    def per_sample(self, logits, targets, features, noise=None):
        return logits.sum(1) + features.sum(1) + noise


@pytest.mark.parametrize(("t", "late"), [(0.0, False), (0.59, False), (0.6, True), (1.0, True)])
def test_the_weights_come_at_their_time_and_the_loss_is_told(t, late):
    loss = DeferredReweighting(COUNTS, Recorded(), start=0.6)
    place = loss.weight.data_ptr()
    loss.set_progress(1.0 - t)
    loss.set_progress(t)
    assert loss.base.t == t
    assert loss.weight.data_ptr() == place  # what a captured step reads
    logits, targets = batch()
    weight = ClassBalancedLoss(COUNTS).weight[targets] if late else torch.ones(BATCH)
    expected = (weight * (logits.sum(1) + 3.0)).mean()
    got = loss(logits, targets, torch.ones(BATCH, 2), noise=torch.ones(BATCH))
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_deferred_loss_is_evaluated_like_the_loss_itself():
    assert DeferredReweighting(COUNTS, Recorded()).evaluation_scale == 12.0
    assert DeferredReweighting(COUNTS, part("baselines.LDAMLoss", scale=20.0)).evaluation_scale == 20.0
    assert DeferredReweighting(COUNTS, CrossEntropy()).num_classes == len(COUNTS)


@pytest.mark.parametrize(
    "loss",
    [part("fbl.FeatureBalancedLoss"), part("gcl.GCLLoss"), part("kps.KPSLoss", gradient_adjustment=True)],
    ids=str,
)
def test_deferred_reweighting_takes_the_losses_of_the_chapters(loss):
    logits, targets = batch()
    wrapped, inner = DeferredReweighting(COUNTS, loss).eval(), loss.build(class_counts=COUNTS).eval()
    wrapped.set_progress(0.5)
    if hasattr(inner, "set_progress"):
        inner.set_progress(0.5)
    features = torch.ones(BATCH, 3, dtype=torch.float64)
    assert wrapped(logits, targets, features) == inner(logits, targets, features)


def test_features_that_the_loss_misses_are_missed_under_reweighting_too():
    logits, targets = batch()
    with pytest.raises(ValueError, match="features: got None"):
        DeferredReweighting(COUNTS, FeatureBalancedLoss(COUNTS))(logits, targets)


def test_a_deferred_recipe_part_is_plain_data():
    one = part("baselines.DeferredReweighting", loss=part("baselines.LDAMLoss", scale=20.0))
    assert hash(one) == hash(part("baselines.DeferredReweighting", loss=part("baselines.LDAMLoss", scale=20.0)))
    assert one.build(class_counts=COUNTS).base.scale == 20.0


# --- equalization ---


def test_a_given_draw_spares_the_rare_classes_that_it_marks():
    logits, targets = batch()
    mask = torch.rand(logits.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    rows = zip(logits.tolist(), targets.tolist(), mask.tolist(), strict=True)
    expected = sum(equalized(0.01, beta.__getitem__)(row, y) for row, y, beta in rows) / BATCH
    loss = EqualizationLoss(COUNTS, threshold=0.01)
    assert loss.rare.tolist() == [True, False, False, True, True]
    assert loss(logits, targets, mask=mask).item() == pytest.approx(expected, rel=1e-10)
    assert loss(logits, targets, mask=mask.double()) == loss(logits, targets, mask=mask)


def test_the_threshold_is_half_a_balanced_share_if_not_given():
    assert EqualizationLoss([50, 20, 10, 20]).rare.tolist() == [False, False, True, False]


def test_a_class_at_the_threshold_is_not_rare():
    assert EqualizationLoss([1, 3, 4], threshold=3 / 8).rare.tolist() == [True, False, False]


def test_equalization_draws_in_training_and_not_in_evaluation():
    logits, targets = batch()
    loss = EqualizationLoss(COUNTS, threshold=0.01, probability=0.5)
    assert len({loss(logits, targets).item() for _ in range(5)}) > 1
    assert loss.eval()(logits, targets) == CrossEntropy()(logits, targets)


def test_equalization_draws_each_class_with_the_stated_probability():
    # Two classes, the other one rare: a sample costs log 2, or nothing if that class is spared.
    torch.manual_seed(0)
    loss = EqualizationLoss([1000, 1], threshold=0.01, probability=0.7)
    cost = loss(torch.zeros(100_000, 2), torch.zeros(100_000, dtype=torch.int64))
    assert cost.item() == pytest.approx(0.3 * math.log(2), rel=0.02)


def test_a_spared_class_is_not_pushed_away():
    logits, targets = torch.zeros(1, 5), torch.tensor([1])
    pushed = gradient(EqualizationLoss(COUNTS, threshold=0.01, probability=1.0), logits, targets)[0]
    assert [g > 0 for g in pushed.tolist()] == [False, False, True, False, False]
    assert pushed[[0, 3, 4]].tolist() == [0, 0, 0]


def test_a_mask_of_another_shape_is_refused():
    logits, targets = batch()
    with pytest.raises(ValueError, match="mask: got"):
        EqualizationLoss(COUNTS)(logits, targets, mask=torch.ones(BATCH, 3))


# --- what the adjusted losses say ---


def test_logits_that_are_the_balanced_posterior_cost_least_under_the_adjusted_loss():
    # Of images that say nothing only the prior is known: equal logits are then best, and not for cross-entropy.
    targets = torch.arange(5).repeat_interleave(torch.tensor(COUNTS))
    logits = torch.zeros(len(targets), 5, dtype=torch.float64)
    assert gradient(LogitAdjustedLoss(COUNTS), logits, targets).sum(0).abs().max() < 1e-12
    assert gradient(CrossEntropy(), logits, targets).sum(0).abs().max() > 0.1


@pytest.mark.parametrize("shape", ["concave", "linear", "convex"])
def test_smoothing_goes_from_the_tail_to_the_head(shape):
    smoothing = LabelAwareSmoothing(COUNTS, 0.4, 0.1, shape).smoothing.tolist()
    assert smoothing[COUNTS.index(max(COUNTS))] == pytest.approx(0.4)
    assert smoothing[COUNTS.index(min(COUNTS))] == pytest.approx(0.1)
    by_size = [eps for _, eps in sorted(zip(COUNTS, smoothing, strict=True))]
    assert by_size == sorted(by_size)


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

"""Key point sensitive loss against plain Python written from thesis Eqs. 3.16, 3.20 and 3.26 to 3.30."""

import math

import pytest
import torch
from torch.nn import functional as F

from ltnotes.methods.baselines import DeferredReweighting
from ltnotes.methods.kps import PENALTIES, REVERSALS, KPSLoss, angle_penalty
from tests.methods.test_baselines import COUNTS, batch, gradient, log_softmax
from tests.test_counts import BAD_COUNTS


def falling_cosine(phi):
    """The cosine up to pi; beyond, as large-margin softmax goes on."""
    k = math.floor(phi / math.pi)
    return (-1) ** k * math.cos(phi) - 2 * k


def reference(
    rows,
    targets,
    n_base=50,
    max_margin=0.5,
    base_scale=15.0,
    gradient_adjustment=False,
    penalty="cosine",
    reversal="values",
    max_scale=math.inf,
):
    r = [math.log(n * n_base / min(COUNTS)) for n in COUNTS]
    r = [value / min(r) for value in r]
    back = [max(r) + 1 - value for value in r] if reversal == "values" else r[::-1]
    margin = [value * max_margin / max(back) for value in back]
    total = 0.0
    for row, y in zip(rows, targets, strict=True):
        scale = min(base_scale * back[y], max_scale) if gradient_adjustment else base_scale
        m = [margin[j] if j == y else 0 for j in range(len(row))]
        if penalty == "cosine":
            modified = [r[j] * c - m[j] for j, c in enumerate(row)]
        else:
            modified = [falling_cosine(back[j] * math.acos(c) + m[j]) for j, c in enumerate(row)]
        total -= log_softmax([scale * z for z in modified])[y]
    return total / len(targets)


def cosines(dtype=torch.float64, classes=5):
    logits, targets = batch(dtype, classes)
    return logits.tanh(), targets


OPTIONS = [{}, {"n_base": 10}, {"max_margin": 0.2}, {"base_scale": 30.0}, {"penalty": "angle"}, {"reversal": "list"}]


@pytest.mark.parametrize(
    "adjusted", [{}, {"gradient_adjustment": True}, {"gradient_adjustment": True, "max_scale": 32}]
)
@pytest.mark.parametrize("options", [*OPTIONS, {"penalty": "angle", "reversal": "list"}], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_the_equation(options, adjusted, dtype, tolerance):
    z, targets = cosines(dtype)
    loss = KPSLoss(COUNTS, **adjusted, **options)(z, targets)
    expected = reference(z.double().tolist(), targets.tolist(), **adjusted, **options)
    assert loss.dtype == dtype and loss.item() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("adjusted", [False, True])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradient_is_that_of_the_value(penalty, adjusted):
    z, targets = cosines()
    z = 0.9 * z  # at the anchors the angle bends too fast for differences
    loss = KPSLoss(COUNTS, gradient_adjustment=adjusted, penalty=penalty)
    assert torch.autograd.gradcheck(lambda c: loss(c, targets), z.requires_grad_())


@pytest.mark.parametrize("penalty", PENALTIES)
def test_permuting_the_classes_changes_nothing(penalty):
    z, targets = cosines()
    order = torch.tensor([3, 0, 4, 1, 2])
    options = {"gradient_adjustment": True, "penalty": penalty}
    again = KPSLoss([COUNTS[i] for i in order], **options)(z[:, order], torch.argsort(order)[targets])
    assert again.item() == pytest.approx(KPSLoss(COUNTS, **options)(z, targets).item(), rel=1e-12)


@pytest.mark.parametrize("adjusted", [False, True])
def test_balanced_counts_are_a_cosine_softmax_with_one_margin(adjusted):
    z, targets = cosines()
    expected = F.cross_entropy(15 * (z - 0.5 * F.one_hot(targets, 5)), targets)
    loss = KPSLoss([7] * 5, gradient_adjustment=adjusted)(z, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_balanced_counts_on_the_angle_are_arcface():
    z, targets = cosines()
    z = 0.8 * z  # within pi - 0.5 of the anchors: beyond, the two go on differently
    expected = F.cross_entropy(15 * (z.acos() + 0.5 * F.one_hot(targets, 5)).cos(), targets)
    assert KPSLoss([7] * 5, penalty="angle")(z, targets).item() == pytest.approx(expected.item(), rel=1e-12)


# --- on the angle ---


def test_the_angle_s_penalty_falls_without_a_jump_far_beyond_pi():
    theta = torch.linspace(0, math.pi, 10_001, dtype=torch.float64)[:, None]
    radius = torch.tensor([2.7], dtype=torch.float64)
    values = angle_penalty(theta.cos(), radius, torch.full_like(theta, 0.5))
    steps = values.diff(dim=0)
    assert (steps < 0).all() and steps.min() > -2.7 * 1.001 * math.pi / 10_000
    assert values[-1] == pytest.approx(falling_cosine(2.7 * math.pi + 0.5))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_most_is_asked_of_the_rarest(penalty):
    cosines = torch.full((5, 5), 0.5, dtype=torch.float64)
    losses = KPSLoss(COUNTS, penalty=penalty).per_sample(cosines, torch.arange(5), None).tolist()
    assert sorted(range(5), key=losses.__getitem__) == sorted(range(5), key=lambda j: -COUNTS[j])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_on_the_angle_are_finite_at_and_beyond_the_anchors(dtype):
    edge = torch.finfo(dtype).eps
    z = torch.tensor([1.0, 1 - edge / 2, 1 + edge, -1.0, edge - 1, -1 - edge, 0.0], dtype=dtype)
    z = torch.stack([z, z.flip(0), torch.ones_like(z)], dim=1)
    for y in range(3):
        targets = torch.full((len(z),), y)
        loss = KPSLoss([5000, 20, 700], penalty="angle")
        assert loss(z, targets).isfinite() and gradient(loss, z, targets).isfinite().all()


# --- as released ---


def test_the_two_reversals_agree_where_classes_are_sorted_and_geometric():
    values, backwards = (KPSLoss([4096, 512, 64, 8], reversal=reversal) for reversal in REVERSALS)
    assert torch.allclose(values.margin, backwards.margin) and torch.allclose(values.scale, backwards.scale)
    unsorted = KPSLoss([4096, 8, 64, 512], reversal="list")
    assert unsorted.margin.argmax() == 3  # not the rarest


def test_the_largest_scale_is_limited():
    limited, free = (KPSLoss(COUNTS, gradient_adjustment=True, max_scale=limit) for limit in (20.0, None))
    assert limited.scale.max() == 20 < free.scale.max() and limited.scale.min() == free.scale.min()
    released = {"gradient_adjustment": True, "max_scale": 50.0}
    assert KPSLoss([9200, 1], **released).scale.max() < 50 == KPSLoss([9300, 1], **released).scale.max()


# --- buffers and the clock ---


def test_margins_and_scales_fall_with_the_count_and_radii_rise():
    loss = KPSLoss(COUNTS)
    by_count = sorted(range(5), key=lambda j: COUNTS[j])
    for buffer, rising in ((loss.radius, True), (loss.margin, False), (loss.scale, False)):
        values = buffer[by_count].tolist()
        assert values == sorted(values, reverse=not rising)
    assert loss.radius.min() == 1 and loss.margin.max() == 0.5 and loss.scale.min() == 15


def test_the_adjustment_switches_on_with_the_clock():
    z, targets = cosines()
    loss = KPSLoss(COUNTS, gradient_adjustment=True, adjust_from=0.6)
    off, on = (KPSLoss(COUNTS, gradient_adjustment=flag)(z, targets) for flag in (False, True))
    assert loss(z, targets) == off
    for t, expected in ((0.0, off), (0.59, off), (0.6, on), (1.0, on)):
        loss.set_progress(t)
        assert loss(z, targets) == expected


def test_the_switch_is_in_place_and_leaves_no_trace_in_a_checkpoint():
    loss = KPSLoss(COUNTS, gradient_adjustment=True, adjust_from=0.6)
    address = loss.scale_in_force.data_ptr()
    assert loss.scale_in_force.tolist() == [15] * 5
    loss.set_progress(0.6)
    assert torch.equal(loss.scale_in_force, loss.scale) and loss.scale_in_force.data_ptr() == address
    assert set(loss.state_dict()) == {"radius", "margin", "scale"}


def test_under_deferred_reweighting_the_adjustment_follows_the_clock():
    z, targets = cosines()
    wrapped = DeferredReweighting(COUNTS, KPSLoss(COUNTS, gradient_adjustment=True, adjust_from=0.6), start=0.8)
    for t, adjusted in ((0.5, False), (0.7, True)):
        wrapped.set_progress(t)
        assert wrapped(z, targets) == KPSLoss(COUNTS, gradient_adjustment=adjusted)(z, targets)


def test_cosines_are_evaluated_at_the_base_scale():
    assert KPSLoss(COUNTS, base_scale=20.0, gradient_adjustment=True).evaluation_scale == 20.0


@pytest.mark.parametrize("other", [*OPTIONS[1:], {"gradient_adjustment": True}], ids=str)
def test_every_argument_changes_the_loss(other):
    z, targets = cosines()
    assert abs(KPSLoss(COUNTS)(z, targets) - KPSLoss(COUNTS, **other)(z, targets)) > 1e-3


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
def test_extreme_scores_stay_finite(scale, penalty):
    z, targets = batch(torch.float32, scale=scale)
    loss = KPSLoss(COUNTS, gradient_adjustment=True, penalty=penalty)
    assert loss(z, targets).isfinite() and gradient(loss, z, targets).isfinite().all()


@pytest.mark.parametrize("penalty", PENALTIES)
def test_8142_classes(penalty):
    z, targets = cosines(torch.float32, 8142)
    loss = KPSLoss([1 + j % 997 for j in range(8142)], gradient_adjustment=True, penalty=penalty)
    assert loss(z, targets + 8000).isfinite()


@pytest.mark.parametrize("counts", BAD_COUNTS.values(), ids=BAD_COUNTS)
def test_bad_counts_are_refused_by_name(counts):
    with pytest.raises(ValueError, match="counts: got"):
        KPSLoss(counts)


@pytest.mark.parametrize(
    "options",
    [
        {"n_base": 1},
        {"max_margin": -0.1},
        {"base_scale": 0},
        {"adjust_from": 0.6},
        {"adjust_from": float("nan")},
        {"max_scale": 50.0},
        {"max_scale": 10.0, "gradient_adjustment": True},
        {"max_scale": float("nan"), "gradient_adjustment": True},
        {"penalty": "sine"},
        {"reversal": "sorted"},
    ],
    ids=str,
)
def test_bad_options_are_refused_by_name(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        KPSLoss(COUNTS, **options)

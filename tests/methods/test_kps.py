"""Key point sensitive loss against plain Python written from thesis Eqs. 3.16 and 3.26 to 3.30."""

import math

import pytest
import torch
from torch.nn import functional as F

from ltnotes.methods.kps import KPSLoss
from tests.methods.test_baselines import COUNTS, batch, gradient, log_softmax
from tests.test_counts import BAD_COUNTS


def reference(rows, targets, n_base=50, max_margin=0.5, base_scale=15.0, adjusted=False):
    r = [math.log(n * n_base / min(COUNTS)) for n in COUNTS]
    r = [value / min(r) for value in r]
    m = [max(r) + 1 - value for value in r]
    s = [base_scale * value for value in m]
    margin = [value * max_margin / max(m) for value in m]
    total = 0.0
    for row, y in zip(rows, targets, strict=True):
        scale = s[y] if adjusted else base_scale
        total -= log_softmax([scale * (r[j] * c - (margin[j] if j == y else 0)) for j, c in enumerate(row)])[y]
    return total / len(targets)


def cosines(dtype=torch.float64, classes=5):
    logits, targets = batch(dtype, classes)
    return logits.tanh(), targets


OPTIONS = [{}, {"n_base": 10}, {"max_margin": 0.2}, {"base_scale": 30.0}]


@pytest.mark.parametrize("adjusted", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_the_equation(options, adjusted, dtype, tolerance):
    z, targets = cosines(dtype)
    loss = KPSLoss(COUNTS, gradient_adjustment=adjusted, **options)(z, targets)
    expected = reference(z.double().tolist(), targets.tolist(), adjusted=adjusted, **options)
    assert loss.dtype == dtype and loss.item() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("adjusted", [False, True])
def test_gradient_is_that_of_the_value(adjusted):
    z, targets = cosines()
    loss = KPSLoss(COUNTS, gradient_adjustment=adjusted)
    assert torch.autograd.gradcheck(lambda c: loss(c, targets), z.requires_grad_())


def test_permuting_the_classes_changes_nothing():
    z, targets = cosines()
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = KPSLoss([COUNTS[i] for i in order], gradient_adjustment=True)
    again = permuted(z[:, order], torch.argsort(order)[targets])
    assert again.item() == pytest.approx(KPSLoss(COUNTS, gradient_adjustment=True)(z, targets).item(), rel=1e-12)


@pytest.mark.parametrize("adjusted", [False, True])
def test_balanced_counts_are_a_cosine_softmax_with_one_margin(adjusted):
    z, targets = cosines()
    expected = F.cross_entropy(15 * (z - 0.5 * F.one_hot(targets, 5)), targets)
    loss = KPSLoss([7] * 5, gradient_adjustment=adjusted)(z, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


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


@pytest.mark.parametrize(
    "other", [{"n_base": 10}, {"max_margin": 0.2}, {"base_scale": 20.0}, {"gradient_adjustment": True}]
)
def test_every_argument_changes_the_loss(other):
    z, targets = cosines()
    assert abs(KPSLoss(COUNTS)(z, targets) - KPSLoss(COUNTS, **other)(z, targets)) > 1e-3


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
def test_extreme_scores_stay_finite(scale):
    z, targets = batch(torch.float32, scale=scale)
    loss = KPSLoss(COUNTS, gradient_adjustment=True)
    assert loss(z, targets).isfinite() and gradient(loss, z, targets).isfinite().all()


def test_8142_classes():
    z, targets = cosines(torch.float32, 8142)
    assert KPSLoss([1 + j % 997 for j in range(8142)], gradient_adjustment=True)(z, targets + 8000).isfinite()


@pytest.mark.parametrize("counts", BAD_COUNTS.values(), ids=BAD_COUNTS)
def test_bad_counts_are_refused_by_name(counts):
    with pytest.raises(ValueError, match="counts: got"):
        KPSLoss(counts)


@pytest.mark.parametrize(
    "options",
    [{"n_base": 1}, {"max_margin": -0.1}, {"base_scale": 0}, {"adjust_from": 0.6}, {"adjust_from": float("nan")}],
    ids=str,
)
def test_bad_options_are_refused_by_name(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        KPSLoss(COUNTS, **options)

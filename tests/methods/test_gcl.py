"""Gaussian clouded logits and CBEN against plain Python written from thesis Eqs. 5.9 to 5.15."""

import math

import pytest
import torch
from torch.nn import functional as F

from ltnotes.methods.gcl import GCLLoss, cben, cloud_sizes
from tests.methods.test_baselines import COUNTS, batch, gradient, log_softmax
from tests.test_counts import BAD_COUNTS


def clouds():
    sizes = [math.log(max(COUNTS)) - math.log(n) for n in COUNTS]
    return [size / max(sizes) for size in sizes]


def reference(rows, targets, noise, scale=30.0, multiplier=1.0, margin=0.0):
    total = 0.0
    for row, y, eps in zip(rows, targets, noise, strict=True):
        size = [multiplier * d * abs(min(max(e, -1), 1)) for d, e in zip(clouds(), eps, strict=True)]
        clouded = [scale * (c - s - (margin if j == y else 0)) for j, (c, s) in enumerate(zip(row, size, strict=True))]
        total -= log_softmax(clouded)[y]
    return total / len(targets)


def samples(dtype=torch.float64, classes=5):
    logits, targets = batch(dtype, classes)
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return logits.tanh(), targets, noise.to(dtype)


OPTIONS = [{}, {"scale": 10.0}, {"noise_multiplier": 0.5}, {"target_margin": 0.1}]
SHORT = {"noise_multiplier": "multiplier", "target_margin": "margin"}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_the_equation(options, dtype, tolerance):
    z, targets, noise = samples(dtype)
    loss = GCLLoss(COUNTS, **options)(z, targets, noise=noise)
    named = {SHORT.get(name, name): value for name, value in options.items()}
    expected = reference(z.double().tolist(), targets.tolist(), noise.double().tolist(), **named)
    assert loss.item() == pytest.approx(expected, rel=tolerance)


def test_gradient_is_that_of_the_value():
    z, targets, noise = samples()
    loss = GCLLoss(COUNTS)
    assert torch.autograd.gradcheck(lambda c: loss(c, targets, noise=noise), z.requires_grad_())


def test_permuting_the_classes_changes_nothing():
    z, targets, noise = samples()
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = GCLLoss([COUNTS[i] for i in order])
    again = permuted(z[:, order], order.argsort()[targets], noise=noise[:, order])
    assert again.item() == pytest.approx(GCLLoss(COUNTS)(z, targets, noise=noise).item(), rel=1e-12)


def test_balanced_counts_are_a_cosine_softmax():
    z, targets, noise = samples()
    expected = F.cross_entropy(30 * z, targets).item()
    assert GCLLoss([7] * 5)(z, targets, noise=noise).item() == pytest.approx(expected, rel=1e-12)


def test_noise_is_drawn_in_training_and_not_in_evaluation():
    z, targets, _ = samples()
    loss = GCLLoss(COUNTS)
    assert loss(z, targets) != loss(z, targets)
    assert loss.eval()(z, targets).item() == pytest.approx(F.cross_entropy(30 * z, targets).item(), rel=1e-12)


def test_the_drawn_noise_has_the_stated_spread_and_costs_what_its_mean_costs():
    # One class of cloud size 1 against one of 0, far from saturation: the mean loss is that of E|eps|.
    torch.manual_seed(0)
    loss = GCLLoss([1, 1000], scale=1e-3)
    z, targets = torch.zeros(200_000, 2, dtype=torch.float64), torch.zeros(200_000, dtype=torch.int64)
    mean_size = (loss(z, targets).item() - math.log(2)) * 2 / 1e-3
    assert mean_size == pytest.approx(math.sqrt(2 / math.pi) / 3, rel=0.01)


@pytest.mark.parametrize("other", [{"scale": 20.0}, {"noise_multiplier": 0.5}, {"target_margin": 0.1}])
def test_every_argument_changes_the_loss(other):
    z, targets, noise = samples()
    assert abs(GCLLoss(COUNTS)(z, targets, noise=noise) - GCLLoss(COUNTS, **other)(z, targets, noise=noise)) > 1e-3


def test_sigma_changes_the_drawn_noise():
    z, targets, _ = samples()
    values = []
    for sigma in (1 / 3, 0.1):
        torch.manual_seed(0)
        values.append(GCLLoss(COUNTS, sigma=sigma)(z, targets).item())
    assert abs(values[0] - values[1]) > 1e-3


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
def test_extreme_scores_stay_finite(scale):
    z, targets = batch(torch.float32, scale=scale)
    assert gradient(GCLLoss(COUNTS), z, targets).isfinite().all()


def test_8142_classes():
    z, targets, _ = samples(torch.float32, 8142)
    assert GCLLoss([1 + j % 997 for j in range(8142)])(z, targets + 8000).isfinite()


def test_noise_of_another_shape_is_refused():
    z, targets, noise = samples()
    with pytest.raises(ValueError, match="noise: got"):
        GCLLoss(COUNTS)(z, targets, noise=noise[:, :3])


@pytest.mark.parametrize("make", [GCLLoss, cben, cloud_sizes])
@pytest.mark.parametrize("counts", BAD_COUNTS.values(), ids=BAD_COUNTS)
def test_bad_counts_are_refused_by_name(make, counts):
    with pytest.raises(ValueError, match="counts: got"):
        make(counts)


@pytest.mark.parametrize(
    "options", [{"scale": 0}, {"noise_multiplier": -1}, {"sigma": -1}, {"target_margin": float("inf")}], ids=str
)
def test_bad_options_are_refused_by_name(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        GCLLoss(COUNTS, **options)


# --- CBEN ---


def effective_number_weights(counts, a, b):
    size = [math.log(max(counts)) - math.log(n) for n in counts]
    betas = [b * (d - min(size)) / (max(size) - min(size)) + a for d in size]
    return [(1 - beta) / (1 - beta**n) for beta, n in zip(betas, counts, strict=True)]


@pytest.mark.parametrize(("a", "b"), [(0.999, 0.0009), (0.9, 0.05), (0.99, 0.0)])
@pytest.mark.parametrize("per", ["sample", "class"])
def test_cben_equals_the_equations(a, b, per):
    weights = effective_number_weights(COUNTS, a, b)
    expected = [w * n if per == "sample" else w for w, n in zip(weights, COUNTS, strict=True)]
    expected = [w / math.fsum(expected) for w in expected]
    assert cben(COUNTS, a, b, per).tolist() == pytest.approx(expected, rel=1e-10)


def test_the_two_readings_have_opposite_shapes():
    by_sample, by_class = cben(COUNTS), cben(COUNTS, per="class")
    largest, rarest = COUNTS.index(max(COUNTS)), COUNTS.index(min(COUNTS))
    assert by_sample[largest] > by_sample[rarest] and by_class[largest] < by_class[rarest]


def test_cben_of_balanced_counts_is_uniform():
    assert cben([9] * 4).tolist() == pytest.approx([0.25] * 4)


@pytest.mark.parametrize(("options", "name"), [({"per": "batch"}, "per"), ({"a": 1.0}, "a, b"), ({"b": 0.002}, "a, b")])
def test_bad_ranges_of_cben_are_refused_by_name(options, name):
    with pytest.raises(ValueError, match=name):
        cben(COUNTS, **options)

"""Gaussian clouded logits and CBEN against plain Python written from thesis Eqs. 5.9 to 5.15."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from ltnotes.methods.baselines import FocalLoss
from ltnotes.methods.gcl import CLOUDS, GCLLoss, cben, cloud_sizes
from tests.methods.test_baselines import COUNTS, batch, gradient, log_softmax
from tests.test_counts import BAD_COUNTS

# Table 5.4
EXPRESSIONS = {
    "logarithm": lambda n, n_max: math.log(n_max) - math.log(n),
    "power-1/3": lambda n, n_max: n_max ** (1 / 3) - n ** (1 / 3),
    "power-1/4": lambda n, n_max: n_max ** (1 / 4) - n ** (1 / 4),
    "cosine": lambda n, n_max: math.cos(n / n_max * math.pi / 2),
}


def clouds(rule="logarithm", counts=COUNTS):
    largest = max(counts)
    sizes = [EXPRESSIONS[rule](n, largest) for n in counts]
    widest = max(sizes)
    return [size / widest for size in sizes]


def reference(
    rows,
    targets,
    noise,
    scale=30.0,
    noise_multiplier=1.0,
    target_margin=0.0,
    cloud="logarithm",
    focal_gamma=0.0,
):
    total = 0.0
    for row, y, eps in zip(rows, targets, noise, strict=True):
        clouded = []
        for j, (c, d, e) in enumerate(zip(row, clouds(cloud), eps, strict=True)):
            size = noise_multiplier * d * abs(min(max(e, -1), 1))
            clouded.append(scale * (c - size - (target_margin if j == y else 0)))
        log_p = log_softmax(clouded)[y]
        total -= (1 - math.exp(log_p)) ** focal_gamma * log_p
    return total / len(targets)


def samples(dtype=torch.float64, classes=5):
    logits, targets = batch(dtype, classes)
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return logits.tanh(), targets, noise.to(dtype)


OPTIONS = [
    {"scale": 10.0},
    {"noise_multiplier": 0.5},
    {"target_margin": 0.1},
    {"cloud": "power-1/3"},
    {"cloud": "power-1/4"},
    {"cloud": "cosine"},
    {"focal_gamma": 1.0},
    {"focal_gamma": 0.5},
]
SECOND_STAGE_AS_RELEASED = {"scale": 20.0, "noise_multiplier": 0.5, "target_margin": 0.1, "focal_gamma": 1.0}


@pytest.mark.parametrize("options", [{}, *OPTIONS, SECOND_STAGE_AS_RELEASED], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_the_equation(options, dtype, tolerance):
    z, targets, noise = samples(dtype)
    loss = GCLLoss(COUNTS, **options)(z, targets, noise=noise)
    expected = reference(z.double().tolist(), targets.tolist(), noise.double().tolist(), **options)
    assert loss.item() == pytest.approx(expected, rel=tolerance)


def test_gradient_is_that_of_the_value():
    z, targets, noise = samples()
    loss = GCLLoss(COUNTS)
    assert torch.autograd.gradcheck(lambda c: loss(c, targets, noise=noise), z.requires_grad_())


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_focal_weight_is_that_of_the_focal_loss_without_its_gradient(gamma):
    z, targets, noise = samples()
    loss = GCLLoss(COUNTS, focal_gamma=gamma)
    clouded = 30 * (z - loss.cloud * noise.clamp(-1, 1).abs())
    expected = gradient(FocalLoss(gamma, detach_weight=True), clouded, targets)
    got = gradient(partial(loss, noise=noise), z, targets)
    assert torch.allclose(got, 30 * expected, rtol=1e-10, atol=0)


def test_permuting_the_classes_changes_nothing():
    z, targets, noise = samples()
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = GCLLoss([COUNTS[i] for i in order])
    again = permuted(z[:, order], order.argsort()[targets], noise=noise[:, order])
    assert again.item() == pytest.approx(GCLLoss(COUNTS)(z, targets, noise=noise).item(), rel=1e-12)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_balanced_counts_are_a_cosine_softmax(cloud):
    z, targets, noise = samples()
    expected = F.cross_entropy(30 * z, targets).item()
    assert GCLLoss([7] * 5, cloud=cloud)(z, targets, noise=noise).item() == pytest.approx(expected, rel=1e-12)
    assert GCLLoss([7] * 5, cloud=cloud).cloud.tolist() == [0] * 5


@pytest.mark.parametrize("rule", CLOUDS)
@pytest.mark.parametrize("counts", [COUNTS, [3, 1], [1 + j % 997 for j in range(8142)]], ids=len)
def test_cloud_sizes_are_those_of_the_table(rule, counts):
    sizes = cloud_sizes(counts, rule)
    assert sizes.tolist() == pytest.approx(clouds(rule, counts), rel=1e-10, abs=1e-15)
    assert sizes[counts.index(max(counts))] == 0 and sizes[counts.index(min(counts))] == 1


def test_cosines_are_evaluated_at_the_scale():
    assert GCLLoss(COUNTS, scale=20.0).evaluation_scale == 20.0


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


@pytest.mark.parametrize("other", OPTIONS, ids=str)
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


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
def test_extreme_scores_stay_finite(scale, gamma):
    z, targets = batch(torch.float32, scale=scale)
    loss = GCLLoss(COUNTS, focal_gamma=gamma)
    assert loss(z, targets).isfinite() and gradient(loss, z, targets).isfinite().all()


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
    "options",
    [
        {"scale": 0},
        {"noise_multiplier": -1},
        {"sigma": -1},
        {"target_margin": float("inf")},
        {"cloud": "square"},
        {"focal_gamma": -1},
    ],
    ids=str,
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


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"per": "batch"}, "per"),
        ({"a": 1.0}, "^a: got"),
        ({"b": 0.002}, r"^a \+ b: got"),
        ({"b": 0.001}, r"^a \+ b: got"),
        ({"b": -1}, "^b: got"),
    ],
)
def test_bad_ranges_of_cben_are_refused_by_name(options, name):
    with pytest.raises(ValueError, match=name):
        cben(COUNTS, **options)

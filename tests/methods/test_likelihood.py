"""Cross-entropy on scaled scores against plain Python, and against the same built step by step."""

import math

import pytest
import torch
from torch.nn import functional as F

from ltnotes.methods.kps import KPSLoss
from ltnotes.methods.likelihood import scaled_cross_entropy
from ltnotes.methods.margins import ArcFaceLoss, LDAMLoss
from tests.methods.test_baselines import COUNTS, batch, log_softmax

OPTIONS = {
    "scale": {},
    "scale of each": {"scale": True},
    "margin": {"at_target": True},
    "radius": {"radius": True},
    "all": {"scale": True, "at_target": True, "radius": True},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def samples(options, dtype=torch.float64, classes=5):
    """Scores, targets and the arguments, of which the scale of each sample, the margin and the radius are options."""
    scores, targets = batch(dtype, classes)
    generator = torch.Generator().manual_seed(4)
    numbers = torch.rand(2 * len(scores) + classes, generator=generator, dtype=torch.float64).to(dtype) + 0.5
    scale, at_target, radius = numbers.split([len(scores), len(scores), classes])
    return (
        scores,
        targets,
        {
            "scale": scale[:, None] if "scale" in options else 1.7,
            "at_target": -at_target[:, None] if "at_target" in options else None,
            "radius": radius if "radius" in options else None,
        },
    )


def step_by_step(scores, targets, scale, at_target=None, radius=None):
    z = scale * scores * (1 if radius is None else radius)
    if at_target is not None:
        z = z + at_target * F.one_hot(targets, scores.shape[1])
    return F.cross_entropy(z, targets, reduction="none")


@each_option
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_the_equation(options, dtype, tolerance):
    scores, targets, arguments = samples(options, dtype)
    losses = scaled_cross_entropy(scores, targets, **arguments)
    assert losses.shape == targets.shape and losses.dtype == dtype
    for i, (row, y) in enumerate(zip(scores.double().tolist(), targets.tolist(), strict=True)):
        scale = arguments["scale"][i].item() if "scale" in options else 1.7
        r = arguments["radius"].tolist() if "radius" in options else [1] * 5
        a = arguments["at_target"][i].item() if "at_target" in options else 0
        z = [scale * r[j] * x + (a if j == y else 0) for j, x in enumerate(row)]
        assert losses[i].item() == pytest.approx(-log_softmax(z)[y], rel=tolerance, abs=tolerance)


@each_option
def test_gradient_is_that_of_the_value(options):
    scores, targets, arguments = samples(options)
    assert torch.autograd.gradcheck(lambda x: scaled_cross_entropy(x, targets, **arguments), scores.requires_grad_())


@each_option
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (7, 1025), (2, 8142)], ids=str)
def test_gradient_is_that_of_cross_entropy_at_any_size(options, shape):
    scores, targets, arguments = samples(options, torch.float32, shape[1])
    scores, targets = scores[: shape[0]], targets[: shape[0]]
    arguments = {k: v[: shape[0]] if k != "radius" and isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    weight = torch.arange(1.0, shape[0] + 1)
    gradients = []
    for function in (scaled_cross_entropy, step_by_step):
        x = scores.clone().requires_grad_()
        (function(x, targets, **arguments) * weight).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_slope_is_that_of_the_target_s_score_alone():
    scores, targets, _ = samples({})
    x = scores.clone().requires_grad_()
    own = F.one_hot(targets, 5)
    F.cross_entropy(2 * torch.where(own == 1, x.sin(), x), targets).backward()
    of_target = scores.gather(1, targets[:, None])
    again = scores.clone().requires_grad_()
    at_target, slope = 2 * (of_target.sin() - of_target), of_target.cos()
    scaled_cross_entropy(again, targets, 2.0, at_target, target_slope=slope).mean().backward()
    torch.testing.assert_close(again.grad, x.grad)


@pytest.mark.parametrize("make", [LDAMLoss, lambda c: ArcFaceLoss(), KPSLoss, lambda c: KPSLoss(c, penalty="angle")])
def test_a_graph_can_be_used_twice_and_its_inputs_stay_as_they_are(make):
    scores, targets = batch()
    cosines = scores.tanh()
    x = cosines.clone().requires_grad_()
    value = make(COUNTS)(x, targets)
    first, second = (torch.autograd.grad(value, x, retain_graph=True)[0] for _ in range(2))
    assert first.equal(second) and first.abs().max() > 0
    assert x.detach().equal(cosines)


@pytest.mark.parametrize("make", [LDAMLoss, lambda c: KPSLoss(c, penalty="angle")])
def test_a_second_derivative_is_refused_and_not_wrong(make):
    scores, targets = batch()
    x = scores.tanh().requires_grad_()
    with pytest.raises(RuntimeError, match=r"^create_graph: got True"):
        torch.autograd.grad(make(COUNTS)(x, targets), x, create_graph=True)


@each_option
def test_scores_in_another_order_of_memory_count_the_same(options):
    scores, targets, arguments = samples(options)
    results = []
    for x in (scores.clone(), scores.t().contiguous().t(), scores[:, :1].expand_as(scores).clone() * 0 + scores):
        x = x.detach().requires_grad_()
        losses = scaled_cross_entropy(x, targets, **arguments)
        results.append((losses.detach(), *torch.autograd.grad(losses.sum(), x)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_scores_cost_what_they_should(dtype):
    scores = torch.tensor([[1e4, 0.0, -1e4], [1e4, 0.0, -1e4], [1e4, 1e4, -1e4]], dtype=dtype, requires_grad=True)
    losses = scaled_cross_entropy(scores, torch.tensor([0, 2, 1]), 1.0)
    assert losses.tolist() == pytest.approx([0, 2e4, math.log(2)], rel=1e-6)
    losses.sum().backward()
    expected = torch.tensor([[0, 0, 0], [1, 0, -1], [0.5, -0.5, 0]], dtype=dtype)
    torch.testing.assert_close(scores.grad, expected, rtol=1e-6, atol=1e-20)


def test_a_class_at_minus_infinity_takes_no_part():
    scores, targets, _ = samples({}, torch.float32)
    masked = torch.arange(5) == (targets[:, None] + 1) % 5
    x = scores.masked_fill(masked, -math.inf).requires_grad_()
    losses = scaled_cross_entropy(x, targets, 1.0)
    losses.sum().backward()
    torch.testing.assert_close(losses, F.cross_entropy(x, targets, reduction="none"))
    assert x.grad[masked].abs().max() < 1e-29 and x.grad[~masked].abs().min() > 1e-6


def test_probabilities_that_no_normal_number_holds_are_kept_out_of_the_gradient():
    scores = torch.linspace(-110, 0, 1000)[None].requires_grad_()
    scaled_cross_entropy(scores, torch.tensor([999]), 1.0).backward()
    assert scores.grad.abs().min() > torch.finfo(torch.float32).tiny
    torch.testing.assert_close(scores.grad, scores.detach().softmax(1) - F.one_hot(torch.tensor([999]), 1000))


@pytest.mark.parametrize("make", [LDAMLoss, lambda c: ArcFaceLoss(), KPSLoss, lambda c: KPSLoss(c, penalty="angle")])
def test_half_precision_under_autocast_is_computed_in_float32(make):
    scores, targets = batch(torch.bfloat16)
    x = scores.tanh().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = make(COUNTS)(x, targets)
    value.backward()
    assert value.dtype == torch.float32 and value.item() == make(COUNTS)(x.detach().float(), targets).item()
    assert x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all()

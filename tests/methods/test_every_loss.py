"""What holds of every loss because it is plain tensor code: any derivative, ``torch.func``, ``torch.compile``."""

import inspect
from functools import partial

import pytest
import torch
from torch import nn

from ltnotes.methods.common import Loss, angle, part
from tests.methods.test_baselines import BATCH, COUNTS, batch

LOSSES = {
    "cross-entropy": part("baselines.CrossEntropy"),
    "weighted": part("baselines.WeightedCrossEntropy"),
    "weighted, divided by weights": part("baselines.WeightedCrossEntropy", divide_by="weights"),
    "focal": part("baselines.FocalLoss", gamma=2.0),
    "class-balanced focal": part("baselines.ClassBalancedLoss", base="focal"),
    "equalization": part("baselines.EqualizationLoss"),
    "logit adjustment": part("baselines.LogitAdjustedLoss"),
    "label-aware smoothing": part("baselines.LabelAwareSmoothing"),
    "LDAM": part("baselines.LDAMLoss"),
    "LDAM-DRW": part("baselines.DeferredReweighting", loss=part("baselines.LDAMLoss"), start=0.0),
    "CosFace": part("baselines.CosFaceLoss"),
    "ArcFace": part("baselines.ArcFaceLoss"),
    "KPS": part("kps.KPSLoss", gradient_adjustment=True),
    "KPS on the angle": part("kps.KPSLoss", penalty="angle"),
    "FBL": part("fbl.FeatureBalancedLoss", strength=2.0),
    "GCL": part("gcl.GCLLoss", target_margin=0.1),
    "GCL, focal": part("gcl.GCLLoss", focal_gamma=1.0),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


GENERATOR = torch.Generator().manual_seed(3)
DRAWN = {  # what a loss would draw for itself
    "noise": torch.randn(BATCH, len(COUNTS), generator=GENERATOR, dtype=torch.float64),
    "mask": torch.rand(BATCH, len(COUNTS), generator=GENERATOR) < 0.5,
}


class Fixed(nn.Module):
    """A loss at the end of its stage, that is given what it would draw."""

    def __init__(self, loss: object):
        super().__init__()
        self.loss: Loss = loss.build(class_counts=COUNTS)
        if hasattr(self.loss, "set_progress"):
            self.loss.set_progress(1.0)
        drawn = inspect.signature(self.loss.per_sample).parameters.keys() & DRAWN.keys()
        self.drawn = {name: DRAWN[name] for name in drawn}

    def forward(self, scores, targets, features):
        drawn = {name: value[: len(scores)] for name, value in self.drawn.items()}
        if scores.dtype != torch.float64:
            drawn = {name: value.float() for name, value in drawn.items()}
        return self.loss(scores, targets, features, **drawn)


built = Fixed


def samples(dtype=torch.float64):
    """Cosines well within (-1, 1), class ids and features."""
    logits, targets = batch(dtype)
    features = torch.randn(len(targets), 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return 0.9 * logits.tanh(), targets, features.to(dtype)


# GCL's focal weight passes on no gradient, so that what it gives is not the gradient of its value.
@pytest.mark.parametrize("loss", [LOSSES[name] for name in LOSSES if name != "GCL, focal"], ids=str)
def test_its_gradient_and_the_gradient_s_are_those_of_its_value(loss):
    scores, targets, features = samples()
    function = lambda z, f: built(loss)(z, targets, f)
    inputs = scores[:4].requires_grad_(), features[:4].requires_grad_()
    targets = targets[:4]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@each_loss
def test_torch_func_gives_the_gradient_of_autograd(loss):
    scores, targets, features = samples()
    made = built(loss)
    by_func = torch.func.grad(made)(scores, targets, features)
    z = scores.clone().requires_grad_()
    made(z, targets, features).backward()
    torch.testing.assert_close(by_func, z.grad)
    of_scores = partial(made, targets=targets[:2], features=features[:2])
    hessian = torch.func.hessian(of_scores)(scores[:2])
    assert hessian.shape == (2, 5, 2, 5) and hessian.isfinite().all() and hessian.abs().max() > 0


# Not those that draw for a whole batch, nor one in which a sample's weight depends on the others.
@pytest.mark.parametrize(
    "loss",
    [loss for loss in LOSSES.values() if not Fixed(loss).drawn and "divide_by" not in dict(loss.options)],
    ids=str,
)
def test_torch_func_gives_the_gradient_of_each_sample(loss):
    """As one who looks at gradients sample by sample does it."""
    scores, targets, features = samples()
    of_one = lambda z, y, f: built(loss)(z[None], y[None], f[None])
    each = torch.func.vmap(torch.func.grad(of_one))(scores, targets, features)
    whole = torch.func.grad(built(loss))(scores, targets, features)
    torch.testing.assert_close(each / len(scores), whole)


def test_an_angle_that_is_not_a_number_stays_none():
    cosines = torch.tensor([float("nan"), 1.0, 1.1, -1.0, -1.1, 0.0], dtype=torch.float64, requires_grad=True)
    theta = angle(cosines)
    assert theta[0].isnan() and theta[1:].tolist() == pytest.approx([0, 0, torch.pi, torch.pi, torch.pi / 2])
    theta[1:].sum().backward()
    assert cosines.grad[1:].tolist() == [0, 0, 0, 0, -1]


@each_loss
def test_a_compiled_loss_is_the_loss(loss):
    """Traced as one graph with its gradient; a backend that needs no C++ compiler runs it."""
    scores, targets, features = samples(torch.float32)
    torch.compiler.reset()
    results = []
    for function in (made := built(loss), torch.compile(made, backend="aot_eager", fullgraph=True)):
        z = scores.clone().requires_grad_()
        value = function(z, targets, features)
        value.backward()
        results.append((value.detach(), z.grad))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@each_loss
def test_half_precision_is_computed_in_float32(loss):
    scores, targets, features = samples(torch.bfloat16)
    z = scores.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = built(loss)(z, targets, features)
    value.backward()
    assert value.dtype == torch.float32 and value.item() == built(loss)(scores.float(), targets, features).item()
    assert z.grad.dtype == torch.bfloat16 and z.grad.isfinite().all()


@each_loss
def test_a_graph_can_be_used_twice_and_its_inputs_stay_as_they_are(loss):
    scores, targets, features = samples()
    z = scores.clone().requires_grad_()
    value = built(loss)(z, targets, features)
    first, second = (torch.autograd.grad(value, z, retain_graph=True)[0] for _ in range(2))
    assert first.equal(second) and first.abs().max() > 0 and z.detach().equal(scores)

"""Losses with margins on cosines, at the edges; their equations are tested with the other baselines."""

import math

import pytest
import torch
from torch.nn import functional as F

from ltnotes.methods import baselines, margins
from ltnotes.methods.margins import ArcFaceLoss, CosFaceLoss, LDAMLoss
from ltnotes.methods.squashing_cosine import CosineClassifier
from tests.methods.test_baselines import COUNTS, arcface, cross_entropy, gradient

each_margin = pytest.mark.parametrize(
    "loss", [LDAMLoss(COUNTS), CosFaceLoss(), ArcFaceLoss()], ids=lambda x: type(x).__name__
)


@pytest.mark.parametrize("name", ["LDAMLoss", "CosFaceLoss", "ArcFaceLoss"])
def test_they_are_named_among_the_baselines(name):
    assert getattr(baselines, name) is getattr(margins, name)


def test_ldam_margins_are_those_of_the_paper_in_any_order_of_size():
    margin = LDAMLoss([16, 1, 256, 81]).margin.tolist()
    assert margin == pytest.approx([0.5 / 2, 0.5, 0.5 / 4, 0.5 / 3], rel=1e-12)


@pytest.mark.parametrize("loss", [LDAMLoss(COUNTS, scale=7.0), CosFaceLoss(scale=7.0), ArcFaceLoss(scale=7.0)])
def test_confidences_at_evaluation_use_the_scale_of_training(loss):
    assert loss.evaluation_scale == 7.0


@each_margin
def test_the_margin_makes_the_loss_larger_for_every_sample(loss):
    cosines = 0.99 * torch.randn(500, 5, generator=torch.Generator().manual_seed(0)).tanh()
    targets = torch.arange(500) % 5
    plain = F.cross_entropy(30 * cosines, targets, reduction="none")
    assert (loss.per_sample(cosines, targets, None) >= plain).all()


@each_margin
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_finite_where_the_angle_is_0_or_pi(loss, dtype):
    edge = torch.finfo(dtype).eps
    rows = [[c, 0.1, -0.2, 0.3, -1.0] for c in (1.0, 1 - edge, 1 + edge, -1.0, edge - 1, -1 - edge, 0.0)]
    cosines = torch.tensor(rows, dtype=dtype)
    targets = torch.zeros(len(rows), dtype=torch.int64)
    assert loss(cosines, targets).isfinite()
    assert gradient(loss, cosines, targets).isfinite().all()


@pytest.mark.parametrize("c", [1.0, -1.0])
def test_arcface_at_the_edges_is_the_formula(c):
    row = [c, 0.1, -0.2, 0.3, 0.0]
    cosines = torch.tensor([row], dtype=torch.float64)
    loss = ArcFaceLoss()(cosines, torch.tensor([0])).item()
    assert loss == pytest.approx(arcface()(row, 0), rel=1e-12)


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.0, 1.57])
def test_arcface_falls_with_the_angle_also_beyond_pi_less_the_margin(margin):
    theta = torch.linspace(0, math.pi, 1001, dtype=torch.float64)
    column = ArcFaceLoss(margin).penalized(theta.cos())
    assert (column.diff() < 0).all()
    within = theta + margin < math.pi - 1e-9
    torch.testing.assert_close(column[within], (theta + margin).cos()[within])
    torch.testing.assert_close(column[~within], theta.cos()[~within] - margin * math.sin(margin))


def test_arcface_has_the_gradient_of_its_value_on_both_sides_of_pi():
    cosines = torch.tensor(
        [[-0.99, 0.2, 0.1], [-0.9, 0.2, 0.1], [-0.8, 0.3, 0.0], [0.9, 0.1, -0.5]], dtype=torch.float64
    )
    targets = torch.zeros(4, dtype=torch.int64)
    loss = ArcFaceLoss()
    assert torch.autograd.gradcheck(lambda c: loss(c, targets), cosines.requires_grad_())


def test_a_head_of_plain_cosines_learns_from_a_feature_on_its_anchor():
    head = CosineClassifier(3, 4)
    features = (2 * head.weight[:2]).detach().requires_grad_()  # cosines of 1, as close as float32 comes
    ArcFaceLoss()(head(features), torch.tensor([0, 1])).backward()
    assert features.grad.isfinite().all() and head.weight.grad.isfinite().all()
    assert head.weight.grad.abs().max() > 0


@each_margin
def test_the_targets_row_alone_has_the_margin(loss):
    row = [0.3, 0.3, -0.1, 0.3, 0.2]
    margin = {
        LDAMLoss: 0.5 * 5000**-0.25,
        CosFaceLoss: 0.35,
        ArcFaceLoss: 0.3 - math.cos(math.acos(0.3) + 0.5),
    }[type(loss)]
    expected = cross_entropy([30 * (c - margin if j == 1 else c) for j, c in enumerate(row)], 1)
    got = loss(torch.tensor([row], dtype=torch.float64), torch.tensor([1])).item()
    assert got == pytest.approx(expected, rel=1e-12)

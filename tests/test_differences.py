"""Pairs of trainings that differ in one thing: that they do, and that a loss as printed is what the paper prints."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ltnotes import differences, recipes, runs
from ltnotes.methods import baselines, gcl, kps, margins
from ltnotes.methods.common import part

COUNTS = [50, 5, 500]
EACH = [(pair, scale) for pair in differences.PAIRS for scale in pair.scales]


def called(value):
    return value.recipe + " " + value.what if isinstance(value, differences.Pair) else value


@pytest.mark.parametrize(("pair", "scale"), EACH, ids=called)
def test_the_two_are_one_training_but_for_the_difference(pair, scale):
    own, other = pair.both("cifar10-lt", 100, scale)
    assert own.hash != other.hash and own.name != other.name
    assert [(s.epochs, s.steps, s.trains) for s in own.stages] == [(s.epochs, s.steps, s.trains) for s in other.stages]
    shared = {"backbone", "head", "dataset", "imbalance", "data_seed", "pad"}
    assert all(getattr(own, field) == getattr(other, field) for field in shared)
    changed = {
        field.name
        for mine, theirs in zip(own.stages, other.stages, strict=True)
        for field in dataclasses.fields(mine)
        if getattr(mine, field.name) != getattr(theirs, field.name)
    }
    assert len(changed - {"head_learning_rate"}) == 1, changed


def test_no_two_pairs_have_one_title():
    titles = [(pair.recipe, pair.what) for pair in differences.PAIRS]
    assert len(set(titles)) == len(titles)


def test_options_are_changed_wherever_a_part_takes_them_and_nowhere_else():
    recipe = recipes.get("ldam-drw", "digits-lt", 10, "tiny")
    other = differences.changed(recipe, scale=1.0, weight_decay=0.0)
    (before,), (after,) = recipe.stages, other.stages
    assert dict(after.loss.options)["loss"] == part("baselines.LDAMLoss", scale=1.0)
    assert dataclasses.replace(after, loss=before.loss, weight_decay=before.weight_decay) == before
    assert other.name == "ldam-drw with scale=1.0, weight_decay=0.0"


@pytest.mark.parametrize("change", [{"gamma": 2.0}, {"scale": 30.0, "strength": 1.0}, {"decay": 0.01}])
def test_what_nothing_in_the_recipe_takes_or_what_it_has_already_is_refused(change):
    recipe = differences.changed(recipes.get("ldam-drw", "digits-lt", 10, "lite"), decay=0.01)
    with pytest.raises(ValueError, match=r"allowed is a field or an option of .*, with another value"):
        differences.changed(recipe, **change)


@pytest.mark.parametrize("pair", [pair for pair in differences.PAIRS if "frozen" in pair.scales], ids=called)
def test_both_train(pair, tmp_path):
    for recipe in pair.both("digits-lt", 10, "lite"):
        short = recipe.with_stages(steps=2, epochs=None)
        assert np.isfinite(runs.run(short, 0, out_dir=tmp_path).logits).all()


# --- losses as they are printed ---------------------------------------------------


def test_printed_sign_takes_log_n_off():
    z, y = torch.randn(8, 3), torch.arange(8) % 3
    log_n = torch.tensor(COUNTS, dtype=torch.float64).log()
    assert differences.PrintedSign(COUNTS)(z, y) == pytest.approx(
        F.cross_entropy(z - log_n.float(), y).item(), rel=1e-5
    )
    assert differences.PrintedSign(COUNTS)(z, y) != baselines.LogitAdjustedLoss(COUNTS)(z, y)


def test_one_draw_moves_all_scores_of_an_image_by_one_epsilon():
    loss = differences.OneDraw(COUNTS)
    z, y = torch.randn(6, 3).clamp(-1, 1), torch.zeros(6, dtype=torch.int64)
    torch.manual_seed(0)
    found = loss.per_sample(z, y, None)
    torch.manual_seed(0)
    epsilon = loss.sigma * torch.randn(6, 1)
    expected = gcl.GCLLoss(COUNTS).per_sample(z, y, None, epsilon.expand(6, 3))
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, gcl.GCLLoss(COUNTS).per_sample(z, y, None))
    loss.eval()
    torch.testing.assert_close(loss.per_sample(z, y, None), gcl.GCLLoss(COUNTS).eval().per_sample(z, y, None))


def test_turning_arcface_is_the_cosine_of_the_wider_angle_and_turns_beyond_half_a_turn():
    loss, own = differences.TurningArcFace(), margins.ArcFaceLoss()
    angles = torch.tensor([0.3, 1.5, 2.6, 2.9, 3.1])
    torch.testing.assert_close(loss.penalized(angles.cos()), (angles + 0.5).cos(), atol=1e-5, rtol=0)
    narrow = angles + 0.5 < math.pi
    torch.testing.assert_close(loss.penalized(angles.cos())[narrow], own.penalized(angles.cos())[narrow])
    assert (loss.penalized(angles.cos()).diff()[-2:] > 0).all() and (own.penalized(angles.cos()).diff() < 0).all()


def test_smoothing_over_all_leaves_a_share_to_the_target():
    loss, own = differences.SmoothingOverAll(COUNTS), baselines.LabelAwareSmoothing(COUNTS)
    z, y = torch.randn(6, 3), torch.arange(6) % 3
    epsilon = own.smoothing[y, None].float()
    wanted = (1 - epsilon) * F.one_hot(y, 3) + epsilon / 3
    torch.testing.assert_close(loss.per_sample(z, y, None), F.cross_entropy(z, wanted, reduction="none"))


def test_the_unscaled_start_ends_where_the_adjustment_begins():
    loss, own = differences.UnscaledStart(COUNTS, **differences.KPS), kps.KPSLoss(COUNTS, **differences.KPS)
    cosines, y = torch.rand(6, 3), torch.arange(6) % 3
    modified = own.radius.float() * cosines - own.margin.float() * F.one_hot(y, 3)
    for t in (0.0, 0.59):
        loss.set_progress(t)
        torch.testing.assert_close(loss.per_sample(cosines, y, None), F.cross_entropy(modified, y, reduction="none"))
    for either in (loss, own):
        either.set_progress(0.6)
    torch.testing.assert_close(loss.per_sample(cosines, y, None), own.per_sample(cosines, y, None))


def test_undivided_clouds_are_the_difference_of_logarithms():
    cloud = differences.UndividedClouds(COUNTS).cloud
    expected = math.log(max(COUNTS)) - torch.tensor(COUNTS, dtype=torch.float64).log()
    torch.testing.assert_close(cloud, expected.to(cloud.dtype))

"""Recipes: what they refuse, what their hash sees, and their three scales."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest

from ltnotes import data, recipes
from ltnotes.methods.common import part
from ltnotes.recipes import Recipe, Stage

STAGE = Stage(epochs=2)
RECIPE = Recipe("mine", "digits-lt", (STAGE,))
OTHER_STAGE = {
    "epochs": 3.0,
    "loss": part("baselines.FocalLoss"),
    "balancer": part("balancers.square_root"),
    "transform": part("baselines.Mixup"),
    "head": part("squashing_cosine.CosineClassifier"),
    "trains": "head",
    "batch_size": 64,
    "learning_rate": 0.05,
    "head_learning_rate": 0.2,
    "schedule": "cosine",
    "milestones": (0.5,),
    "decay": 0.5,
    "final_rate": 0.1,
    "keep": "best-test",
    "warmup": 0.1,
    "momentum": 0.5,
    "weight_decay": 0.0,
}
OTHER_RECIPE = {
    "dataset": "cifar10-lt",
    "stages": (STAGE, STAGE),
    "imbalance": 50,
    "backbone": "resnet8",
    "head": part("squashing_cosine.CosineClassifier"),
    "projection": 16,
    "pretrained": True,
    "validation": 1,
    "data_seed": 1,
    "pad": 2,
    "flip": False,
    "crop": "shorter",
    "sync_batchnorm": True,
}


def test_the_lists_above_hold_every_field():
    assert set(OTHER_STAGE) == {f.name for f in fields(Stage)} - {"steps"}
    assert set(OTHER_RECIPE) == {f.name for f in fields(Recipe)} - {"name"}


@pytest.mark.parametrize("field", OTHER_STAGE)
def test_the_hash_sees_every_field_of_a_stage(field):
    stage = replace(STAGE, schedule="cosine") if field == "final_rate" else STAGE
    one, other = (replace(RECIPE, stages=(each,)) for each in (stage, replace(stage, **{field: OTHER_STAGE[field]})))
    assert other.hash != one.hash


@pytest.mark.parametrize("field", OTHER_RECIPE)
def test_the_hash_sees_every_field_of_a_recipe(field):
    assert replace(RECIPE, **{field: OTHER_RECIPE[field]}).hash != RECIPE.hash


def test_the_hash_sees_the_options_of_a_part():
    one, other = (replace(RECIPE, head=part("squashing_cosine.CosineClassifier", scale=s)) for s in (1.0, 2.0))
    assert one.hash != other.hash


def test_the_hash_is_blind_to_the_name_and_to_how_a_number_is_written():
    same = Recipe("other", "digits-lt", (Stage(epochs=2.0),), imbalance=100.0)
    assert Recipe("mine", "digits-lt", (STAGE,), imbalance=100).hash == same.hash


def test_a_recipe_is_frozen_and_hashable():
    assert RECIPE in {RECIPE}
    with pytest.raises(FrozenInstanceError):
        RECIPE.backbone = "resnet20"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "epochs, steps"),
        ({"epochs": 1, "steps": 1}, "epochs, steps"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": float("nan")}, "epochs"),
        ({"epochs": "ten"}, "epochs"),
        ({"steps": -1}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"epochs": 1, "batch_size": 0}, "batch_size"),
        ({"epochs": 1, "batch_size": 64.0}, "batch_size"),
        ({"epochs": 1, "momentum": "x"}, "momentum"),
        ({"epochs": 1, "decay": -1}, "decay"),
        ({"epochs": 1, "weight_decay": -1}, "weight_decay"),
        ({"epochs": 1, "milestones": 0.5}, "milestones"),
        ({"epochs": 1, "loss": "baselines.FocalLoss"}, "loss"),
        ({"epochs": 1, "learning_rate": -0.1}, "learning_rate"),
        ({"epochs": 1, "trains": "neck"}, "trains"),
        ({"epochs": 1, "schedule": "linear"}, "schedule"),
        ({"epochs": 1, "milestones": (0.5, 1.0)}, "milestones"),
        ({"epochs": 1, "milestones": (0.0,)}, "milestones"),
        ({"epochs": 1, "keep": "best"}, "keep"),
        ({"epochs": 1, "final_rate": -0.1}, "final_rate"),
        ({"epochs": 1, "warmup": 1.0}, "warmup"),
        ({"epochs": 1, "warmup": -0.1}, "warmup"),
    ],
)
def test_a_stage_refuses_by_name(options, name):
    with pytest.raises(ValueError, match=rf"^{name}: got"):
        Stage(**options)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"stages": ()}, "stages"),
        ({"imbalance": 0.5}, "imbalance"),
        ({"imbalance": float("nan")}, "imbalance"),
        ({"backbone": "nope"}, "backbone"),
        ({"validation": -1}, "validation"),
        ({"projection": -1}, "projection"),
        ({"pretrained": 1}, "pretrained"),
        ({"data_seed": -1}, "data_seed"),
        ({"head": "linear"}, "head"),
    ],
)
def test_a_recipe_refuses_by_name(changes, name):
    with pytest.raises(ValueError, match=rf"^{name}: got"):
        replace(RECIPE, **changes)


# --- by name ---


@pytest.mark.parametrize("name", data.LARGE)
def test_blt_holds_images_of_every_large_set_out(name):
    assert recipes.get("blt", name).validation in (5, 20)


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.parametrize("scale", recipes.SCALES)
def test_every_recipe_is_whole_at_every_scale(name, scale):
    recipe = recipes.get(name, dataset="digits-lt", imbalance=20, scale=scale)
    assert (recipe.name, recipe.dataset, recipe.imbalance) == (name, "digits-lt", 20)
    for stage in recipe.stages:
        assert stage.loss.build(class_counts=[5, 2]).forward
        assert stage.balancer.build(counts=[5, 2], t=0.5).sum().item() == pytest.approx(1)
    assert recipes.describe(name)


def test_every_recipe_trains_on_frozen_features_or_says_which_part_needs_images():
    refused = set()
    for name in recipes.names():
        try:
            recipe = recipes.get(name, scale="frozen")
            assert recipe.backbone == "frozen-efficientnet-lite0"
        except ValueError as error:
            assert str(error).startswith(f"scale: got 'frozen' for {name!r}, allowed is a method without ")
            refused.add(name.split("-")[0])
    assert refused == {"blt", "cam", "plain"}


def test_a_pretrained_network_is_fine_tuned_after_its_head():
    recipe = recipes.get("gcl", scale="finetuned")
    assert (recipe.backbone, recipe.pretrained) == ("efficientnet-lite0", True)
    probe, first, second = recipe.stages
    assert (probe.trains, probe.epochs, probe.loss, probe.transform) == ("head", 2, first.loss, None)
    assert (first.trains, first.epochs, second.trains) == ("all", 3, "head")
    assert [stage.head_learning_rate for stage in recipe.stages] == [0.1 * recipes.PROBE_RATE] * 3
    assert first.learning_rate == 0.1 * recipes.TUNED_RATE


@pytest.mark.parametrize("dataset", ["cifar10-lt", "cifar100-lt", "digits-lt", "imagenet-lt", "inat2018", "a/folder"])
@pytest.mark.parametrize("imbalance", [1, 20, 100, 200, 300])
def test_blt_holds_out_at_most_half_of_the_smallest_class(dataset, imbalance, monkeypatch):
    monkeypatch.setattr(data, "is_prepared", lambda name: name == "a/folder")
    recipe = recipes.get("blt-confusion-as-released", dataset, imbalance)
    largest = {"cifar10-lt": 5000, "cifar100-lt": 500, "digits-lt": 124}.get(dataset)
    if largest:
        assert recipe.validation == min(5, largest // imbalance // 2)
    assert (dict(recipes.get("blt", dataset, imbalance).stages[1].transform.options).get("confusion_from") is None) == (
        recipe.validation > 0
    )


def test_describing_what_is_not_there_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^recipe: got 'nothing', allowed are"):
        recipes.describe("nothing")


def test_no_two_names_mean_the_same_training():
    hashes = [recipes.get(name).hash for name in recipes.names()]
    assert len(set(hashes)) == len(hashes)


def test_full_is_the_papers_training():
    (stage,) = recipes.get("ce").stages
    assert recipes.get("ce").backbone == "resnet32"
    assert (stage.epochs, stage.batch_size, stage.learning_rate, stage.momentum) == (200, 128, 0.1, 0.9)
    assert (stage.milestones, stage.decay, stage.weight_decay) == ((0.8, 0.9), 0.01, 2e-4)
    assert stage.warmup * stage.epochs == 5


def test_tiny_counts_steps_and_lite_epochs():
    (tiny,), (lite,) = (recipes.get("ce", scale=scale).stages for scale in ("tiny", "lite"))
    assert (tiny.epochs, tiny.steps) == (None, recipes.TINY_STEPS)
    assert (lite.epochs, lite.steps) == (recipes.LITE_EPOCHS, None)


def test_lite_shares_its_epochs_between_the_stages():
    two = replace(RECIPE, stages=(Stage(epochs=35), Stage(epochs=55)))
    first, second = recipes._lite(two).stages
    assert first.epochs + second.epochs == pytest.approx(recipes.LITE_EPOCHS)
    assert second.epochs / first.epochs == pytest.approx(55 / 35)


def test_lite_neither_shifts_images_nor_hashes_like_what_does():
    lite = recipes.get("ce", scale="lite")
    assert (lite.backbone, lite.pad, recipes.get("ce").pad) == ("resnet8-lite", 0, None)
    assert len({replace(lite, pad=pad).hash for pad in (None, 0, 4)}) == 3


@pytest.mark.parametrize("pad", [-1, 0.5])
def test_a_shift_that_is_no_number_of_pixels_is_refused(pad):
    with pytest.raises(ValueError, match=rf"^pad: got {pad}"):
        recipes.get("ce", pad=pad)


@pytest.mark.parametrize("scale", recipes.SCALES)
def test_changes_come_after_the_scale(scale):
    recipe = recipes.get("ce", scale=scale, epochs=3, batch_size=16, backbone="resnet20")
    assert recipe.backbone == "resnet20"
    assert (recipe.stages[0].epochs, recipe.stages[0].steps, recipe.stages[0].batch_size) == (3, None, 16)


def test_steps_take_the_place_of_epochs():
    (stage,) = recipes.get("ce", scale="lite", steps=7).stages
    assert (stage.epochs, stage.steps) == (None, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "nothing"}, r"^recipe: got 'nothing', allowed are the names that 'ltnotes recipes' lists"),
        ({"name": "cam-fusoin"}, r"^recipe: got 'cam-fusoin', .* \(close: cam-fusion, "),
        ({"name": "ce", "scale": "huge"}, r"^scale: got 'huge', allowed are tiny, lite, full"),
        ({"name": "ce", "protocol": "cui"}, r"^protocol: got 'cui', allowed are kps, fbl, gcl, blt, fsa"),
        ({"name": "blt", "protocol": "gcl"}, r"^protocol: got one with a single stage, allowed for BLT is 'blt'"),
        ({"name": "ce", "gamma": 1.0}, r"^gamma: no such field, allowed are .*backbone.*epochs"),
        ({"name": "ce", "stages": ()}, r"^stages: no such field"),
        ({"name": "ce", "imbalance": 0.1}, r"^imbalance: got"),
        ({"name": "ce", "batch_size": 0}, r"^batch_size: got"),
    ],
)
def test_get_refuses_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        recipes.get(**arguments)

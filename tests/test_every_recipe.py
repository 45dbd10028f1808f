"""Every named training from its first step to its last, at the smallest scale, its stages one by one or in one go."""

import copy
import functools
import math
from dataclasses import replace

import pytest

from ltnotes import data, recipes, runs
from ltnotes.catalogue import CHAPTERS
from ltnotes.devices import VARIABLE
from tests import toys

IMBALANCE = 20
STEPS = 15  # in each stage: an epoch and a bit of the next

digits = functools.cache(functools.partial(data.load, "digits-lt"))


def train(recipe):
    job = toys.train(recipe, digits(recipe.imbalance, validation=recipe.validation))
    return job, job.evaluate()[0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where recipes that begin alike share their beginning."""
    return tmp_path_factory.mktemp("runs")


@functools.cache
def beginning(recipe):
    """A first stage, trained in memory."""
    return train(recipe)[0]


def continued(recipe):
    """A training that goes on in memory, from stage to stage with one and the same network."""
    job = copy.copy(beginning(replace(recipe.up_to(0), name="begun")))
    job.recipe, job.model = recipe, copy.deepcopy(job.model)
    for number, stage in enumerate(recipe.stages[1:], start=1):
        job.number, job.stage = number, stage
        job._replace_head(number)
        job.run()
    return job


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_trains_to_its_end(name, cache):
    recipe = recipes.get(name, "digits-lt", IMBALANCE, "tiny", steps=STEPS)
    run = runs.run(recipe, out_dir=cache, device="cpu")
    training = [number for number, stage in enumerate(recipe.stages) if stage.steps]
    assert sorted({record["stage"] for record in run.history}) == training
    assert all(math.isfinite(record["loss"]) for record in run.history)
    assert sum(map(sum, run.metrics["confusion"])) == len(digits(IMBALANCE).test)
    assert 0 <= run.metrics["ece"] <= 1
    assert type(run.model().head) is (recipe.stages[-1].head or recipe.stages[0].head or recipe.head).resolve()
    assert len(run.record["stages"]) == len(recipe.stages)
    if len(recipe.stages) > 1:  # the beginning came from a file, and may be another recipe's
        expected = continued(recipe).model.state_dict()
        found = run.weights()
        assert found.keys() == expected.keys()
        assert all(found[key].equal(value) for key, value in expected.items())


@pytest.mark.parametrize("name", ["blt", "blt-as-released", "cam-fusion", "kps-as-released", "gcl"])
def test_a_recipe_trains_where_the_smallest_class_has_one_image(name):
    recipe = recipes.get(name, "digits-lt", 100, "tiny", steps=2)
    job, _ = train(recipe)
    assert min(job.data.counts) == 1 and math.isfinite(job.history[-1]["loss"])


@pytest.mark.parametrize("name", ["crt", "lws", "blt", "cam-fusion-block-2", "gcl"])
def test_in_half_precision_too_stages_one_by_one_are_the_training_in_one_go(name, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "bfloat16")
    recipe = recipes.get(name, "digits-lt", IMBALANCE, "tiny", steps=2, batch_size=16)
    run = runs.run(recipe, out_dir=tmp_path, device="cpu")
    assert run.precisions == ["bfloat16"] * 2
    assert all(run.weights()[key].equal(value) for key, value in continued(recipe).model.state_dict().items())


# The first of each chapter, built for data whose images are large and whose classes are many.
@pytest.mark.parametrize("dataset", ["imagenet-lt", "places-lt", "inat2017", "inat2018"])
@pytest.mark.parametrize("name", [next(iter(rows)) for _, rows in CHAPTERS.values()])
def test_a_recipe_for_large_images_trains_on_small_ones(name, dataset):
    recipe = recipes.get(name, dataset, scale="tiny", steps=2)
    assert (recipe.backbone, recipe.pretrained) == ("resnet8", False)
    small = {"dataset": "digits-lt", "imbalance": IMBALANCE, "validation": min(recipe.validation, 1), "crop": None}
    recipe = replace(recipe, **small)
    assert math.isfinite(train(recipe)[0].history[-1]["loss"])


@pytest.mark.parametrize(
    "backbone", ["resnet10", "resnet18-cifar", "resnext50", "densenet121", "efficientnet-b0", "efficientnet-lite0"]
)
def test_a_recipe_trains_any_backbone(backbone):
    recipe = recipes.get(
        "ce", "digits-lt", IMBALANCE, "tiny", steps=1, batch_size=4, backbone=backbone, learning_rate=0.001
    )
    assert math.isfinite(train(recipe)[0].history[-1]["loss"])

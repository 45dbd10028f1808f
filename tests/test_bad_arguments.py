"""Values out of range in Python: every numeric option of every loss, sampler, head and transform is named."""

import importlib
import inspect
import math
import re

import numpy as np
import pytest
import torch

from ltnotes import data, devices, metrics, models, runs, training
from ltnotes.live_stage import NonFiniteLossError
from ltnotes.methods.common import SUPPLIED, part
from ltnotes.options import choice, number, whole
from ltnotes.recipes import Recipe, Stage

MODULES = ("balancers", "baselines", "blt", "cam_fusion", "fbl", "gcl", "kps", "margins", "retraining")
COUNTS = [80, 40, 20, 10]
REQUIRED = {"baselines.DeferredReweighting": {"loss": part("baselines.CrossEntropy")}}
NEVER = (math.nan, math.inf, -math.inf, "x", True, 1e301, -1e301)


def numeric_options():
    """``(part, option)`` of all that a recipe can name and that has a number as its default."""
    for module_name in (*MODULES, "squashing_cosine"):
        module = importlib.import_module(f"ltnotes.methods.{module_name}")
        for name, target in sorted(vars(module).items()):
            own = getattr(target, "__module__", None) == module.__name__ and not name.startswith("_")
            if not own or not callable(target) or not _is_part(target):
                continue
            for option, parameter in inspect.signature(target).parameters.items():
                if type(parameter.default) in (int, float) and option not in SUPPLIED:
                    yield f"{module_name}.{name}", option


def _is_part(target):
    return bool(
        {"class_counts", "counts", "in_features", "previous", "gamma", "margin", "alpha"}
        & set(inspect.signature(target).parameters)
    ) and not {"images", "feature_map", "confusion", "scores"} & set(inspect.signature(target).parameters)


@pytest.fixture(scope="module")
def supply():
    digits = data.load("digits-lt", 20, validation=1)
    recipe = Recipe("toy", "digits-lt", (Stage(steps=1),), backbone="resnet8")
    model = training.build_model(recipe, digits.counts)
    return {
        "class_counts": digits.counts,
        "counts": digits.counts,
        "t": 0.5,
        "in_features": model.num_features,
        "num_classes": 10,
        "previous": model.head,
        "model": model,
        "data": digits,
        "augment": None,
        "predict": None,
    }


OPTIONS = sorted(set(numeric_options()))


@pytest.mark.parametrize("value", NEVER, ids=str)
@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_no_option_takes_what_is_no_number(supply, name, option, value):
    with pytest.raises(ValueError, match=rf"\b{option}\b.*: got {re.escape(repr(value))}, allowed"):
        part(name, **REQUIRED.get(name, {}), **{option: value}).build(**supply)


def test_the_options_are_all_of_them():
    assert len(OPTIONS) >= 30
    assert {"kps", "gcl", "fbl", "blt", "cam_fusion", "balancers"} <= {name.split(".")[0] for name, _ in OPTIONS}


@pytest.mark.parametrize("value", [10**400, np.float64("nan"), np.bool_(True), 1 + 2j, None, [1]], ids=str)
def test_only_finite_real_numbers_are_numbers(value):
    with pytest.raises(ValueError, match=r"^x: got .*, allowed is a finite number"):
        number("x", value)


@pytest.mark.parametrize("value", [np.int64(3), np.float32(3), 3])
def test_numpys_numbers_are_pythons(value):
    assert type(number("x", value)) in (int, float) and number("x", value, least=3, most=3) == 3
    assert type(whole("x", np.int64(3))) is int


@pytest.mark.parametrize(
    ("bounds", "value", "words"),
    [
        ({"least": 0}, -1e-9, "at least 0"),
        ({"above": 0}, 0, "above 0"),
        ({"least": 0, "most": 1}, 1.5, "at least 0 and at most 1"),
        ({"least": 0, "below": 1}, 1, "at least 0 and below 1"),
    ],
)
def test_bounds_are_said(bounds, value, words):
    with pytest.raises(ValueError, match=rf"^x: got {value}, allowed is a finite number, {words}$"):
        number("x", value, **bounds)


def test_a_choice_lists_what_it_is_from():
    with pytest.raises(ValueError, match=r"^x: got 'c', allowed are a, b$"):
        choice("x", "c", ("a", "b"))


FLAGS = (
    ("kps.KPSLoss", "gradient_adjustment"),
    ("fbl.FeatureBalancedLoss", "normalized"),
    ("baselines.FocalLoss", "detach_weight"),
    ("squashing_cosine.LinearClassifier", "bias"),
    ("blt.BLT", "static"),
)


@pytest.mark.parametrize(("name", "option"), FLAGS)
def test_a_word_is_no_truth_value(supply, name, option):
    with pytest.raises(ValueError, match=rf"^{option}: got 'no', allowed is a bool"):
        part(name, **{option: "no"}).build(**supply)


def test_numpys_numbers_in_a_recipe_are_pythons():
    made = part("balancers.power_balanced", gamma=np.float64(0.5))
    assert made == part("balancers.power_balanced", gamma=0.5)
    assert type(made.options[0][1]) is float


@pytest.mark.parametrize("t", [math.nan, -0.1, 1.1])
@pytest.mark.parametrize("name", ["kps.KPSLoss", "fbl.FeatureBalancedLoss"])
def test_progress_is_from_0_to_1(name, t):
    with pytest.raises(ValueError, match=rf"^t: got {t}, allowed is a finite number, at least 0 and at most 1"):
        part(name).build(class_counts=COUNTS).set_progress(t)


WRONG_KINDS = {
    "sizes as balancer": ({"balancer": part("gcl.cloud_sizes")}, "balancer: got"),
    "weights as balancer": ({"balancer": part("balancers.inverse_effective_number", beta=0.9)}, "balancer: got"),
    "a loss as transform": ({"transform": part("baselines.CrossEntropy")}, "transform: got"),
    "a transform as loss": ({"loss": part("baselines.Mixup")}, "loss: got"),
    "a balancer as head": ({"head": part("balancers.class_balanced")}, "counts"),
}


@pytest.mark.parametrize("kind", WRONG_KINDS)
def test_a_part_of_another_kind_is_said_before_training(kind, tmp_path):
    changes, words = WRONG_KINDS[kind]
    recipe = Recipe("toy", "digits-lt", (Stage(steps=2, batch_size=8, **changes),), backbone="resnet8")
    with pytest.raises(ValueError, match=words):
        runs.run(recipe, out_dir=tmp_path)
    assert not list(tmp_path.rglob("unfinished.pt"))


def test_seeds_may_come_from_a_generator(tmp_path):
    recipe = Recipe("toy", "digits-lt", (Stage(steps=1, batch_size=8),), backbone="resnet8")
    assert [run.seed for run in runs.over_seeds(recipe, (seed for seed in (1, 0)), out_dir=tmp_path)] == [1, 0]


# --- what losses and metrics are called with ---


@pytest.mark.parametrize("name", ["margins.LDAMLoss", "baselines.CrossEntropy", "kps.KPSLoss", "gcl.GCLLoss"])
def test_a_loss_refuses_integers_and_an_empty_batch(name):
    loss = part(name).build(class_counts=COUNTS)
    with pytest.raises(ValueError, match=r"^logits: got torch.int64, allowed are floating point numbers"):
        loss(torch.ones(2, 4, dtype=torch.int64), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"^logits, targets: got an empty batch"):
        loss(torch.ones(0, 4), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize(
    ("probabilities", "labels", "name"),
    [
        (np.full((3, 4), np.nan), np.zeros(3, int), "probabilities"),
        (np.full((3, 4), np.inf), np.zeros(3, int), "probabilities"),
        (np.full((3, 3), 0.3), np.zeros(3, int), "probabilities, labels"),
        (np.full((3, 4), 0.25), np.zeros(2, int), "probabilities, labels"),
        (np.zeros((0, 4)), np.zeros(0, int), "probabilities, labels"),
        (np.full((3, 4), 0.25), np.array([0, 1, 4]), "labels"),
        (np.full((3, 4), 0.25), np.array([0, 1, -1]), "labels"),
        (np.full((3, 4), 0.25), np.zeros(3), "labels"),
    ],
)
def test_metrics_of_nonsense_are_refused(probabilities, labels, name):
    with pytest.raises(ValueError, match=rf"^{name}: got"):
        metrics.summarize(probabilities, labels, COUNTS)


# --- runs ---

RECIPE = Recipe("toy", "digits-lt", (Stage(steps=2, batch_size=16),), imbalance=100, backbone="resnet8")


def test_numpys_integers_are_seeds(tmp_path):
    made = runs.over_seeds(RECIPE, np.arange(2), out_dir=tmp_path, device="cpu")
    assert [run.seed for run in made] == [0, 1] and all(type(run.seed) is int for run in made)


@pytest.mark.parametrize("name", ["../../x", "a/b", "/x", "..", ".x", "", "a\\b", "a\nb", "a:b", "x" * 300, "con|"])
def test_a_name_that_leads_out_of_the_cache_is_refused(name):
    with pytest.raises(ValueError, match=r"^name: got .* allowed is what can name a folder"):
        Recipe(name, "digits-lt", RECIPE.stages)


def test_a_divergence_before_the_first_checkpoint_promises_none(tmp_path):
    wild = Recipe("wild", "digits-lt", (Stage(steps=30, batch_size=16, learning_rate=1e12),), 100, "resnet8")
    with pytest.raises(NonFiniteLossError) as caught:
        runs.run(wild, out_dir=tmp_path, device="cpu")
    assert "larger batch" in str(caught.value) and "checkpoint" not in str(caught.value)


def test_the_field_that_asks_for_too_much_memory_is_named(tmp_path):
    huge = Recipe("huge", "digits-lt", (Stage(steps=1),), 100, "resnet8", projection=10**12)
    with pytest.raises(RuntimeError, match=r"^backbone='resnet8', projection=1000000000000: not enough memory \("):
        runs.run(huge, out_dir=tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), r"^batch_size=3: not enough memory \(out of memory\)$"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory"), r"^batch_size=3: not enough memory \("),
        (RuntimeError("shapes differ"), r"^shapes differ$"),
    ],
)
def test_only_a_lack_of_memory_is_called_one(error, said):
    with pytest.raises(RuntimeError, match=said), devices.naming_memory(batch_size=3):
        raise error


def test_weights_that_cannot_be_downloaded_are_called_that(monkeypatch):
    def offline(weights):
        raise OSError("no route to host")

    monkeypatch.setitem(models.BACKBONES, "resnet50", offline)
    with pytest.raises(RuntimeError, match=r"^pretrained: the weights of resnet50 could not be downloaded \(no route"):
        models.build("resnet50", 10, torch.nn.Linear, pretrained=True)

"""Recipes: whole trainings as plain data, by name, at three scales.

A recipe says everything that a training depends on but the seed. It is frozen and
hashable, and its hash names the cached run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ltnotes.data import DEFAULT_IMBALANCE
from ltnotes.methods.common import Part, part
from ltnotes.models import BACKBONES

SCALES = ("tiny", "lite", "full")
TRAINABLE = ("all", "head")
CROSS_ENTROPY = part("baselines.CrossEntropy")
INSTANCE_BALANCED = part("balancers.instance_balanced")
LINEAR = part("squashing_cosine.LinearClassifier")


@dataclass(frozen=True)
class Stage:
    """One stretch of training with one balancer, loss and schedule.

    Args:
        epochs: passes over as many images as the training set has; may be a fraction.
        steps: batches, instead of ``epochs``; exactly one of the two is given. A stage
            of 0 steps trains nothing: it only replaces the head.
        loss, balancer, transform: method parts; see :mod:`ltnotes.methods.common`.
        head: a new classifier head for this stage; the old one goes on if None. Its
            constructor is supplied ``previous``, the old head, where it asks for it, and
            its ``fit(features, labels)``, where it has one, is called with those of all
            training images before the stage begins.
        trains: "all", or "head" with the backbone frozen in evaluation mode.
        learning_rate: of the backbone and, unless ``head_learning_rate`` is given, the head.
        schedule: "step" multiplies the rate by ``decay`` at each milestone; "cosine"
            brings it to ``final_rate`` times itself along half a cosine.
        milestones: progress of the stage in (0, 1) at which the rate falls.
        warmup: share of the stage over which the rate rises linearly from 0.
        keep: "last" ends with the weights of the last epoch. "best-test" looks at the test
            set after every epoch and ends with the best, as much released code does: a
            choice made on the test set, here only to measure what it is worth.
    """

    epochs: float | None = None
    steps: int | None = None
    loss: Part = CROSS_ENTROPY
    balancer: Part = INSTANCE_BALANCED
    transform: Part | None = None
    head: Part | None = None
    trains: str = "all"
    batch_size: int = 128
    learning_rate: float = 0.1
    head_learning_rate: float | None = None
    schedule: str = "step"
    milestones: tuple[float, ...] = (0.8, 0.9)
    decay: float = 0.1
    final_rate: float = 0.0
    warmup: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 2e-4
    keep: str = "last"

    def __post_init__(self) -> None:
        given = (self.epochs, self.steps)
        _require(given.count(None) == 1, "epochs, steps", given, "exactly one of the two")
        _whole_numbers(self, {"steps": 0, "batch_size": 1})
        _numbers(self, {"epochs": 0, "learning_rate": 0, "head_learning_rate": 0, "decay": 0, "final_rate": 0})
        _numbers(self, {"warmup": 0, "momentum": 0, "weight_decay": 0})
        _of_type(self, {"loss": Part, "balancer": Part, "transform": Part | None, "head": Part | None})
        _require(self.epochs != 0, "epochs", self.epochs, "a number above 0")
        _require(self.trains in TRAINABLE, "trains", self.trains, " or ".join(TRAINABLE))
        _require(self.schedule in ("step", "cosine"), "schedule", self.schedule, "'step' or 'cosine'")
        _require(self.keep in ("last", "best-test"), "keep", self.keep, "'last' or 'best-test'")
        _of_type(self, {"milestones": tuple})
        _require(all(0 < m < 1 for m in self.milestones), "milestones", self.milestones, "progress between 0 and 1")
        _require(self.warmup < 1, "warmup", self.warmup, "a share from 0 up to, not including, 1")


@dataclass(frozen=True)
class Recipe:
    """A whole training: data, backbone, head and one or more stages.

    Args:
        imbalance: ratio of the largest to the smallest class.
        head: the classifier of the first stage.
        projection: width of a fully connected layer between pooling and head, 0 for none;
            the backbone's own if None.
        pretrained: begin with torchvision's weights for ImageNet.
        validation: training images per class held out for methods that need validation.
    """

    name: str
    dataset: str
    stages: tuple[Stage, ...]
    imbalance: float = DEFAULT_IMBALANCE
    backbone: str = "resnet32"
    head: Part = LINEAR
    projection: int | None = None
    pretrained: bool = False
    validation: int = 0
    data_seed: int = 0

    def __post_init__(self) -> None:
        _of_type(self, {"name": str, "dataset": str, "stages": tuple, "head": Part})
        _require(len(self.stages) > 0, "stages", self.stages, "one stage or more")
        _require(self.backbone in BACKBONES, "backbone", self.backbone, ", ".join(BACKBONES))
        _numbers(self, {"imbalance": 1})
        _whole_numbers(self, {"projection": 0, "validation": 0, "data_seed": 0})
        _of_type(self, {"pretrained": bool})

    @property
    def hash(self) -> str:
        """sha256 of everything but the name: two names for one training share its runs."""
        content = {key: value for key, value in asdict(self).items() if key != "name"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def with_stages(self, **changes: Any) -> Recipe:
        """The recipe with the same fields changed in every stage."""
        return replace(self, stages=tuple(replace(stage, **changes) for stage in self.stages))


def _numbers(owner: Any, lowest: dict[str, float]) -> None:
    """Check number fields against their lowest value and make them floats, so that 1 and 1.0 hash alike."""
    for name, low in lowest.items():
        value = getattr(owner, name)
        if value is None:
            continue
        ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= low
        _require(ok, name, value, f"a number from {low:g} on")
        object.__setattr__(owner, name, float(value))


def _whole_numbers(owner: Any, lowest: dict[str, int]) -> None:
    for name, low in lowest.items():
        value = getattr(owner, name)
        ok = value is None or (type(value) is int and value >= low)
        _require(ok, name, value, f"a whole number from {low} on")


def _of_type(owner: Any, kinds: dict[str, Any]) -> None:
    for name, kind in kinds.items():
        value = getattr(owner, name)
        _require(isinstance(value, kind), name, value, f"a {getattr(kind, '__name__', kind)}")


def _require(condition: bool, name: str, got: Any, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name}: got {got!r}, allowed is {allowed}")


# --- the papers' trainings ---------------------------------------------------

# What the thesis's chapters share for CIFAR: 200 epochs, 5 of warm-up, decay by 100 after
# 160 and 180, weight decay 2e-4. Its Tables 4.1 and 5.1 have batches of 128, the text of
# 3.5.1 and 4.4.1 batches of 64; 128 is also what the baselines' own papers use.
CIFAR = Stage(epochs=200, batch_size=128, milestones=(160 / 200, 180 / 200), decay=0.01, warmup=5 / 200)


def _cifar(**changes: Any) -> tuple[Stage, ...]:
    return (replace(CIFAR, **changes),)


def _full(recipe: Recipe) -> Recipe:
    return recipe


def _lite(recipe: Recipe) -> Recipe:
    """A small network, small batches, and LITE_EPOCHS in all, shared between the stages as at full scale."""
    total = sum(stage.epochs or 0 for stage in recipe.stages)
    share = LITE_EPOCHS / (total or FULL_EPOCHS)

    def shorten(stage: Stage) -> Stage:
        epochs = None if stage.epochs is None else share * stage.epochs
        steps = None if stage.steps is None else max(1, round(share * stage.steps))
        return replace(stage, epochs=epochs, steps=steps, batch_size=LITE_BATCH, decay=0.1)

    return replace(recipe, backbone="resnet8", stages=tuple(map(shorten, recipe.stages)))


def _tiny(recipe: Recipe) -> Recipe:
    """A few small batches of each stage."""
    stages = tuple(replace(stage, epochs=None, steps=TINY_STEPS, batch_size=TINY_BATCH) for stage in recipe.stages)
    return replace(recipe, backbone="resnet8", stages=stages)


FULL_EPOCHS = 200.0  # what a training that only counts steps is scaled like
LITE_EPOCHS = 10.0
LITE_BATCH = 64
TINY_STEPS = 60
TINY_BATCH = 32
SCALING: dict[str, Callable[[Recipe], Recipe]] = {"tiny": _tiny, "lite": _lite, "full": _full}


RECIPES: dict[str, tuple[str, Callable[[], tuple[Stage, ...]]]] = {
    "ce": ("cross-entropy on shuffled images", _cifar),
    "square-root": (
        "cross-entropy, classes drawn by the root of their size",
        lambda: _cifar(balancer=part("balancers.square_root")),
    ),
    "class-balanced-sampling": (
        "cross-entropy, every class drawn equally often",
        lambda: _cifar(balancer=part("balancers.class_balanced")),
    ),
    "progressive": (
        "cross-entropy, from instance- to class-balanced sampling",
        lambda: _cifar(balancer=part("balancers.progressively_balanced")),
    ),
    "power": (
        "cross-entropy, BLT's balancer (Eq. 1) with gamma = 0.9",
        lambda: _cifar(balancer=part("balancers.power_balanced", gamma=0.9)),
    ),
    "effective-number-sampling": (
        "cross-entropy, drawn by the inverse effective number",
        lambda: _cifar(balancer=part("balancers.effective_number_balanced")),
    ),
    "weighted": (
        "cross-entropy weighted by the inverse class size",
        lambda: _cifar(loss=part("baselines.WeightedCrossEntropy")),
    ),
    "focal": ("focal loss, gamma = 1", lambda: _cifar(loss=part("baselines.FocalLoss"))),
    "class-balanced": (
        "cross-entropy weighted by the inverse effective number",
        lambda: _cifar(loss=part("baselines.ClassBalancedLoss")),
    ),
    "class-balanced-focal": (
        "focal loss weighted by the inverse effective number",
        lambda: _cifar(loss=part("baselines.ClassBalancedLoss", base="focal")),
    ),
    "mixup": ("cross-entropy on blended images", lambda: _cifar(transform=part("baselines.Mixup"))),
}


def names() -> list[str]:
    """Every recipe that :func:`get` knows."""
    return sorted(RECIPES)


def describe(name: str) -> str:
    """One line on what a recipe trains."""
    return RECIPES[name][0]


def get(
    name: str,
    dataset: str = "cifar10-lt",
    imbalance: float = DEFAULT_IMBALANCE,
    scale: str = "full",
    **changes: Any,
) -> Recipe:
    """A recipe by name.

    Args:
        name: one of :func:`names`.
        dataset: as in :func:`ltnotes.data.load`.
        imbalance: ratio of the largest to the smallest class.
        scale: "full" is the paper's training; "lite" has the same shape in about a
            twentieth of the time on a CPU; "tiny" only shows that everything runs.
        changes: fields of :class:`Recipe` or of :class:`Stage` (in every stage) to
            replace, as ``epochs=30`` or ``backbone="resnet8"``.

    Raises:
        ValueError: an unknown name, scale or field, or a value that is not allowed.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe: got {name!r}, allowed are {', '.join(names())}")
    if scale not in SCALES:
        raise ValueError(f"scale: got {scale!r}, allowed are {', '.join(SCALES)}")
    of_recipe = {f.name for f in fields(Recipe)} - {"stages"}
    of_stage = {f.name for f in fields(Stage)}
    if unknown := sorted(set(changes) - of_recipe - of_stage):
        raise ValueError(f"{unknown[0]}: no such field, allowed are {', '.join(sorted(of_recipe | of_stage))}")
    recipe = Recipe(name=name, dataset=dataset, imbalance=imbalance, stages=RECIPES[name][1]())
    recipe = SCALING[scale](recipe)
    stage_changes = {key: value for key, value in changes.items() if key in of_stage and key not in of_recipe}
    if "steps" in stage_changes:
        stage_changes.setdefault("epochs", None)
    elif "epochs" in stage_changes:
        stage_changes.setdefault("steps", None)
    recipe = replace(recipe, **{key: value for key, value in changes.items() if key in of_recipe})
    return recipe.with_stages(**stage_changes)

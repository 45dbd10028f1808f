"""Recipes by name: every training of the papers, at three scales."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from ltnotes import data, features, models
from ltnotes.catalogue import RECIPES, Entry
from ltnotes.catalogue.builders import Setting
from ltnotes.options import choice
from ltnotes.protocols import LARGE, PROTOCOLS, protocol_for
from ltnotes.stages import Recipe, Stage

SCALES = ("tiny", "lite", "full")  # of chapters


def names() -> list[str]:
    """Every recipe that :func:`get` knows."""
    return sorted(RECIPES)


def describe(name: str) -> str:
    """One line on what a recipe trains.

    Raises:
        ValueError: an unknown name.
    """
    return _known(name).summary


def _known(name: str) -> Entry:
    if name not in RECIPES:
        close = difflib.get_close_matches(str(name), names(), n=3, cutoff=0.5)
        hint = f" (close: {', '.join(close)})" if close else ""
        raise ValueError(f"recipe: got {name!r}, allowed are the names that 'ltnotes recipes' lists{hint}")
    return RECIPES[name]


def get(
    name: str,
    dataset: str = "cifar10-lt",
    imbalance: float | None = None,
    scale: str = "full",
    protocol: str | None = None,
    **changes: Any,
) -> Recipe:
    """A recipe by name.

    Args:
        name: one of :func:`names`.
        dataset: as in :func:`ltnotes.data.load`.
        imbalance: ratio of the largest to the smallest class; if not given, a prepared folder's
            own, and 100 of all other data sets.
        scale: "full" is the paper's training; "lite" has the same shape in about a
            hundredth of the time on a CPU; "tiny" only shows that everything runs; "frozen"
            trains heads on frozen features, see :mod:`ltnotes.features`; "finetuned" trains
            a small pretrained network as a whole, for a few epochs.
        protocol: whose epochs, batches, rates and network: "kps", "fbl", "gcl", "blt" or
            "fsa"; the method's own paper if not given. A baseline gets the same training
            as a method by having its protocol.
        changes: fields of :class:`Recipe`, else of :class:`Stage` (in every stage that
            trains), to replace, as ``epochs=30`` or ``backbone="resnet8"``.

    Raises:
        ValueError: an unknown name, scale, protocol or field, or a value that is not allowed.
    """
    entry = _known(name)
    choice("scale", scale, SCALING)
    if protocol is not None:
        choice("protocol", protocol, PROTOCOLS)
    of_recipe = {f.name for f in fields(Recipe)} - {"stages"}
    of_stage = {f.name for f in fields(Stage)}
    if unknown := sorted(set(changes) - of_recipe - of_stage):
        raise ValueError(f"{unknown[0]}: no such field, allowed are {', '.join(sorted(of_recipe | of_stage))}")
    check_dataset(dataset)
    imbalance = data.own_imbalance(dataset) if imbalance is None else imbalance
    recipe = SCALING[scale](_build(name, dataset, imbalance, protocol or entry.protocol))
    stage_changes = {key: value for key, value in changes.items() if key in of_stage and key not in of_recipe}
    if "steps" in stage_changes:
        stage_changes.setdefault("epochs", None)
    elif "epochs" in stage_changes:
        stage_changes.setdefault("steps", None)
    recipe = replace(recipe, **{key: value for key, value in changes.items() if key in of_recipe})
    return recipe.with_stages(**stage_changes)


def check_dataset(name: str) -> None:
    """Raise ValueError for a name that is none: its training would be CIFAR's."""
    known = (*data.NAMES, *LARGE)
    if name not in known and not data.is_prepared(name):
        hint = "".join(f" (close: {other})" for other in difflib.get_close_matches(str(name), known, n=1))
        allowed = f"{', '.join(known)}, or the path of a prepared folder"
        raise ValueError(f"dataset: got {name!r}, allowed are {allowed}{hint}")


def _build(name: str, dataset: str, imbalance: float, protocol: str) -> Recipe:
    chosen = protocol_for(protocol, dataset)
    content = {
        "backbone": chosen.backbone,
        "projection": chosen.projection,
        "pretrained": chosen.pretrained,
        "crop": chosen.crop,
        **RECIPES[name].build(Setting(chosen, dataset, imbalance)),
    }
    return Recipe(name=name, dataset=dataset, imbalance=imbalance, **content)


# --- scales ------------------------------------------------------------------

FULL_EPOCHS = 200.0  # what a training that only counts steps is scaled like
LITE_EPOCHS = 36.0
LITE_BATCH = 64
FROZEN_EPOCHS = 20.0
FROZEN_BATCH = 64
FROZEN_RATE = 0.1  # of the recipe's own
FROZEN_DECAY = 0.01
PROBE_EPOCHS = 2.0  # of the head alone
PROBE_RATE = 0.05  # of the recipe's own, for the head
TUNED_EPOCHS = 3.0
TUNED_RATE = 0.01  # of the recipe's own, for the layers below
TUNED_BATCH = 64
TUNED_WARMUP = 0.1
TINY_STEPS = 30
TINY_BATCH = 32


def _full(recipe: Recipe) -> Recipe:
    return recipe


def _small(recipe: Recipe, backbone: str, stages: list[Stage]) -> Recipe:
    return replace(recipe, backbone=backbone, projection=None, pretrained=False, stages=tuple(stages))


# A stage is shortened by what the stages of the whole network add up to, so that a recipe
# that re-trains a classifier begins with the very training that it has without that.


def _shortened(recipe: Recipe, epochs: float) -> list[Stage]:
    """A recipe's stages, brought to so many epochs of training of the whole network."""
    total = sum(stage.epochs or 0 for stage in recipe.stages if stage.trains == "all")
    share = epochs / (total or FULL_EPOCHS)
    return [
        replace(
            stage,
            epochs=None if stage.epochs is None else share * stage.epochs,
            steps=stage.steps if not stage.steps else max(1, round(share * stage.steps)),
            decay=0.1,
        )
        for stage in recipe.stages
    ]


def _lite(recipe: Recipe) -> Recipe:
    """A small network, small batches, LITE_EPOCHS of training of the whole network, and no random shifts.

    What corrects the scores of a network that fits its training images, as KPS, FBL and GCL
    do, leans to the tail before that. Shifted images take so small a network ten times as
    many epochs to fit; mirror images alone it fits in these, the tail's too.
    """
    stages = [replace(stage, batch_size=LITE_BATCH) for stage in _shortened(recipe, LITE_EPOCHS)]
    return replace(_small(recipe, "resnet8-lite", stages), pad=0)


def _tiny(recipe: Recipe) -> Recipe:
    """A few small batches, shared between the stages of the whole network, and half as many for any other."""
    whole = sum(stage.trains == "all" and stage.steps != 0 for stage in recipe.stages)

    def shorten(stage: Stage) -> Stage:
        steps = TINY_STEPS // (whole if stage.trains == "all" else 2)
        return replace(stage, epochs=None, steps=0 if stage.steps == 0 else steps, batch_size=TINY_BATCH)

    return _small(recipe, "resnet8", [shorten(stage) for stage in recipe.stages])


def _frozen(recipe: Recipe) -> Recipe:
    """The head alone, on frozen features of a pretrained network, at a tenth of the rate.

    A thousand features and more let a linear head fit any tail by heart, so the weight decay
    is what such heads are commonly given: cross-entropy's logits less log n then gain two
    points on CIFAR-10-LT, and logit adjustment eight.

    Raises:
        ValueError: a method that changes images or feature maps.
    """
    for stage in recipe.stages:
        if stage.transform is not None and not stage.transform.resolve().on_features:
            raise ValueError(f"scale: got 'frozen' for {recipe.name!r}, allowed is a method without {stage.transform}")
    stages = [
        replace(
            stage,
            batch_size=FROZEN_BATCH,
            weight_decay=FROZEN_DECAY,
            learning_rate=FROZEN_RATE * stage.learning_rate,
            head_learning_rate=None if stage.head_learning_rate is None else FROZEN_RATE * stage.head_learning_rate,
        )
        for stage in _shortened(recipe, FROZEN_EPOCHS)
    ]
    return _small(recipe, models.FROZEN + features.DEFAULT, stages)


def _finetuned(recipe: Recipe) -> Recipe:
    """A small pretrained network: its head first, then the whole for a few epochs at small rates.

    The gradients of a random head would spoil the features that one is after (Kumar et al.
    2022, "Fine-tuning can distort pretrained features").
    """
    stages = [
        replace(
            stage,
            batch_size=TUNED_BATCH,
            learning_rate=(PROBE_RATE if stage.trains == "head" else TUNED_RATE) * stage.learning_rate,
            head_learning_rate=PROBE_RATE * (stage.head_learning_rate or stage.learning_rate),
            warmup=TUNED_WARMUP,
        )
        for stage in _shortened(recipe, TUNED_EPOCHS)
    ]
    probe = replace(stages[0], trains="head", transform=None, epochs=PROBE_EPOCHS, steps=None)
    stages = [probe, *stages]
    return replace(_small(recipe, models.LITE, stages), pretrained=True)


SCALING: dict[str, Callable[[Recipe], Recipe]] = {
    "tiny": _tiny,
    "lite": _lite,
    "full": _full,
    "frozen": _frozen,
    "finetuned": _finetuned,
}

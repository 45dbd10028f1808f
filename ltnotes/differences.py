"""Pairs of trainings that differ in one thing: a recipe, and the same by what a paper prints or released code does.

For differences of :file:`book/appendices/paper-against-code.csv` that no chapter on a
method measures; chapter 9 compares the two of each pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ltnotes import recipes
from ltnotes.methods import baselines, gcl, kps, margins
from ltnotes.methods.common import Part, part
from ltnotes.options import require
from ltnotes.stages import Recipe, Stage

FIELDS = frozenset(field.name for field in fields(Stage))


class Pair(NamedTuple):
    """One difference.

    Args:
        what: what the other training has.
        recipe: name of the book's own.
        other: name of a recipe, or what changes in it (:func:`changed`).
        scales: where it is measured; a method that changes images has no frozen features.
    """

    what: str
    recipe: str
    other: str | Mapping[str, Any]
    scales: tuple[str, ...] = ("lite", "frozen")

    def both(self, dataset: str, imbalance: float, scale: str) -> tuple[Recipe, Recipe]:
        """The book's own recipe and the other one."""
        own = recipes.get(self.recipe, dataset, imbalance, scale)
        if isinstance(self.other, str):
            return own, recipes.get(self.other, dataset, imbalance, scale)
        return own, changed(own, **self.other)


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with fields of its stages, or options of their method parts, changed wherever they are.

    ``changed(recipes.get("kps", "cifar10-lt"), decay=0.1, base_scale=1.0)`` changes a field of the
    stage and an option of the loss.

    Raises:
        ValueError: neither a field nor an option of anything in the recipe.
    """
    for name, value in changes.items():
        stages = tuple(_with(stage, name, value) for stage in recipe.stages)
        require(stages != recipe.stages, name, value, f"a field or an option of {recipe.name!r}, with another value")
        recipe = replace(recipe, stages=stages)
    title = ", ".join(f"{name}={_printed(value)}" for name, value in changes.items())
    return replace(recipe, name=f"{recipe.name} with {title}")


def _with(stage: Stage, name: str, value: Any) -> Stage:
    if name in FIELDS:
        return replace(stage, **{name: value})
    parts = {field: made for field in FIELDS if isinstance(made := getattr(stage, field), Part)}
    return replace(stage, **{field: _option(made, name, value) for field, made in parts.items()})


def _option(made: Part, name: str, value: Any) -> Part:
    """The part with the option, where it or a part inside it takes one of this name."""
    options = {key: _option(old, name, value) if isinstance(old, Part) else old for key, old in made.options}
    if name in signature(made.resolve()).parameters:
        options[name] = value
    return part(made.name, **options)


def _printed(value: Any) -> str:
    return str(value).rpartition(":")[2] if isinstance(value, Part) else f"{value}"


# --- losses as they are printed ---------------------------------------------------


class PrintedSign(baselines.LogitAdjustedLoss):
    """The balanced softmax of thesis Table 1.1, which takes log n off the logits of the training."""

    def __init__(self, class_counts: Sequence[int]):
        super().__init__(class_counts)
        self.log_prior.neg_()


class OneDraw(gcl.GCLLoss):
    """GCL with one epsilon of an image for all classes, as thesis Eqs. 5.10 and 5.11 print it."""

    def per_sample(self, logits: Tensor, targets: Tensor, features: Tensor | None, noise: Tensor | None = None):
        if noise is None and self.training:
            noise = self.sigma * torch.randn_like(logits[:, :1]).expand_as(logits)
        return super().per_sample(logits, targets, features, noise)


class TurningArcFace(margins.ArcFaceLoss):
    """ArcFace by Deng et al. 2019, Eq. 3 alone: beyond half a turn the target's score rises again."""

    def penalized(self, cosines: Tensor) -> Tensor:
        return torch.cos(margins.angle(cosines) + self.margin)


class SmoothingOverAll(baselines.LabelAwareSmoothing):
    """Label-aware smoothing as released: epsilon is shared among all classes, the target too."""

    def __init__(self, class_counts: Sequence[int]):
        super().__init__(class_counts)
        self.smoothing.mul_((self.num_classes - 1) / self.num_classes)


class UnscaledStart(kps.KPSLoss):
    """KPS as thesis Algorithm 3.1 prints it: Eq. 3.15, without a scale, until the gradient adjustment begins."""

    def set_progress(self, t: float) -> None:
        super().set_progress(t)
        if not self.gradient_adjustment or t < self.adjust_from:
            self.scale_in_force.fill_(1.0)


class UndividedClouds(gcl.GCLLoss):
    """GCL with the clouds of thesis Eq. 5.9: a difference of logarithms, not divided by the largest."""

    def __init__(self, class_counts: Sequence[int]):
        super().__init__(class_counts)
        self.cloud.mul_(math.log(max(class_counts) / min(class_counts)))


def _here(loss: type, **options: Any) -> Part:
    return part(f"{__name__}:{loss.__name__}", **options)


# --- the pairs ----------------------------------------------------------------------

ON_IMAGES = ("lite",)
ON_FEATURES = ("frozen",)
KPS = {"adjust_from": 0.6, "gradient_adjustment": True, "max_margin": 0.5}

PAIRS = (
    Pair("loss over the number of old images", "blt", "blt-divided-by-batch", ON_IMAGES),
    Pair("new images from epoch 2 on", "blt", {"start": 0.045}, ON_IMAGES),  # 22 epochs at `lite`
    Pair("a tenth of the learning rates", "blt", "blt-slower", ON_IMAGES),
    Pair("a tenth of the learning rates", "blt-quarter", "blt-quarter-slower", ON_IMAGES),
    Pair("Eq. 1 as weights of classes", "power", {"gamma": 1.9}, ON_FEATURES),
    Pair("the sign of Table 1.1", "logit-adjustment", {"loss": _here(PrintedSign)}, ON_FEATURES),
    Pair("loss over the sum of weights", "weighted", "weighted-as-released", ON_FEATURES),
    Pair("no gradient through the weight", "focal", "focal-as-released", ON_FEATURES),
    Pair("Beta(0.2, 0.2)", "mixup", {"alpha": 0.2}, ON_IMAGES),
    Pair("no scale", "ldam-drw", {"scale": 1.0}, ON_FEATURES),
    Pair("loss over the sum of weights", "ldam-drw", {"divide_by": "weights"}),
    Pair("the target gets a share, too", "label-aware-smoothing", {"loss": _here(SmoothingOverAll)}, ON_FEATURES),
    Pair("cos(θ + m) beyond π, too", "arcface", {"loss": _here(TurningArcFace)}, ON_FEATURES),
    Pair("rate times 0.01 at a drop", "kps", {"decay": 0.01}),
    Pair("no scale until it is adjusted", "kps", {"loss": _here(UnscaledStart, **KPS)}, ON_FEATURES),
    Pair("penalty on the angle", "kps", "kps-angle"),
    Pair("a margin of 0.2", "kps", "kps-margin-0.2-as-released", ON_FEATURES),
    Pair("all as released", "kps", "kps-as-released", ON_FEATURES),
    Pair("batches of 128", "fbl", {"batch_size": 128}),
    Pair("one draw for all classes", "gcl", {"loss": _here(OneDraw)}, ON_IMAGES),
    # of the first stage nothing is left on features that stay as they are, once a second has a head of its own
    Pair("one draw for all classes", "gcl-no-retraining", {"loss": _here(OneDraw)}, ON_FEATURES),
    Pair("clouds not divided", "gcl-no-retraining", {"loss": _here(UndividedClouds)}, ON_FEATURES),
    Pair("half the scale", "gcl-no-retraining", {"loss": part("gcl.GCLLoss", scale=15.0)}, ON_FEATURES),
)

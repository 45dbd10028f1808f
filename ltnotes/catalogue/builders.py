"""What named trainings are built with: functions that make a recipe's fields from a :class:`Setting`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ltnotes.methods.common import Part, part
from ltnotes.protocols import LARGE, Protocol
from ltnotes.stages import LINEAR, Stage


@dataclass(frozen=True)
class Setting:
    """What a training is built for: a protocol, and the data that it meets."""

    protocol: Protocol
    dataset: str
    imbalance: float

    @property
    def large(self) -> bool:
        return self.dataset in LARGE


Build = Callable[[Setting], dict[str, Any]]
Row = tuple[str, Build]

COSINE = part("squashing_cosine.CosineClassifier")
MIXUP = part("baselines.Mixup")


def plain(head: Part = LINEAR, **changes: Any) -> Build:
    """The protocol's own stages, each with the same changes."""
    return lambda setting: {"head": head, "stages": _changed(setting.protocol.stages, changes)}


def retrained(first: dict[str, Any], second: dict[str, Any], head: Part = LINEAR) -> Build:
    """The protocol's stages, then its stage for the classifier alone."""

    def build(setting: Setting) -> dict[str, Any]:
        protocol = setting.protocol
        return {"head": head, "stages": _changed(protocol.stages, first) + _changed((protocol.retraining,), second)}

    return build


def _changed(stages: tuple[Stage, ...], changes: dict[str, Any]) -> tuple[Stage, ...]:
    return tuple(replace(stage, **changes) for stage in stages)


def loss(name: str, head: Part = LINEAR, **options: Any) -> Build:
    """The protocol's stages with another loss."""
    return plain(head, loss=part(name, **options))


def sampling(name: str, **options: Any) -> Build:
    """The protocol's stages with other balancing."""
    return plain(balancer=part(f"balancers.{name}", **options))


def deferred(inner: Part) -> Part:
    """Re-weighting in the last fifth: from epoch 160 of 200 on, as in Cao et al. 2019."""
    return part("baselines.DeferredReweighting", loss=inner, start=0.8)


CLASS_BALANCED = part("balancers.class_balanced")
ZERO_STEPS = {"epochs": None, "steps": 0}


def squashing(**options: float) -> Part:
    """BLT's head (Eq. 2)."""
    return part("squashing_cosine.SquashingCosineClassifier", **options)

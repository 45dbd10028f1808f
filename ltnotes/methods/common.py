"""What all method parts share: how a recipe names them, and how a loss checks its input."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SUPPLIED = frozenset(
    ("class_counts", "counts", "t", "in_features", "num_classes", "previous", "model", "data", "augment", "predict")
)
"""Arguments that a part gets from the trainer, and a recipe therefore never sets."""


@dataclass(frozen=True)
class Part:
    """A method part by name, with its options: plain data that can be hashed, printed and stored.

    Args:
        name: ``"module.object"`` below ``ltnotes.methods`` ("balancers.class_balanced"),
            or ``"package.module:object"`` for a part of your own.
        options: sorted ``(option, value)`` pairs; use :func:`part` to write them.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def resolve(self) -> Callable[..., Any]:
        """The function or class itself.

        Raises:
            ValueError: no such module or object.
        """
        module_name, _, attribute = self.name.rpartition(":" if ":" in self.name else ".")
        if ":" not in self.name:
            module_name = f"ltnotes.methods.{module_name}"
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"method part: got {self.name!r}, which does not exist ({error});"
                " allowed is 'module.object' below ltnotes.methods, or 'package.module:object'"
            ) from None

    def build(self, **supply: Any) -> Any:
        """Call the part with its options and with those of ``supply`` that its signature names.

        Raises:
            ValueError: an option that the part does not take, or a missing one.
        """
        self.check_options()
        target = self.resolve()
        parameters = inspect.signature(target).parameters
        wanted = {key: value for key, value in supply.items() if key in parameters} | dict(self.options)
        try:
            inspect.signature(target).bind(**wanted)
        except TypeError as error:
            raise ValueError(f"{self.name}: {error}, allowed are {', '.join(parameters)}") from None
        return target(**wanted)

    def check_options(self) -> None:
        """Raise ValueError for an option that the part does not take, or that the trainer supplies."""
        allowed = [name for name in inspect.signature(self.resolve()).parameters if name not in SUPPLIED]
        for option, _ in self.options:
            if option not in allowed:
                raise ValueError(
                    f"{self.name}: got option {option!r}, allowed are {', '.join(allowed) or 'no options'}"
                )

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value if isinstance(value, Part) else repr(value)}" for key, value in self.options)
        return f"{self.name}({options})" if options else self.name


def part(name: str, **options: Any) -> Part:
    """``part("baselines.FocalLoss", gamma=2.0)``: a :class:`Part`, checked to exist."""
    plain = {option: value.item() if isinstance(value, np.generic) else value for option, value in options.items()}
    made = Part(name, tuple(sorted(plain.items())))
    made.check_options()
    return made


class Loss(nn.Module):
    """Base of all losses: checks the input, computes in float32 or better, and returns the batch mean.

    Call as ``loss(logits, targets, features=None, weight=None)`` with logits ``[B, C]``,
    class ids ``[B]``, for losses that need them pooled features ``[B, D]``, and, where
    samples count differently, a weight for all or for each, ``[B]``. The mean is over the
    batch, whatever the weights. A subclass defines :meth:`per_sample`, and may give it more
    arguments, which the call passes on. A loss that follows
    the training's progress also has ``set_progress(t)`` with ``t`` in [0, 1].

    Raises:
        ValueError: shapes that do not fit together, targets that are not int64, or (on
            the CPU, where looking costs no synchronisation) a target outside the classes.
    """

    num_classes: int | None = None
    evaluation_scale: float = 1.0
    """What a head's scores are multiplied by before their softmax at evaluation. A loss that
    takes plain cosines scales them itself, and without its scale confidences say nothing."""

    @property
    def capturable(self) -> bool:
        """Whether a GPU may replay the loss instead of calling it (:class:`ltnotes.devices.Captured`).

        One that follows the progress says so itself, if it keeps all that changes in tensors
        that it fills in place: a number in Python would stay what it was at the first replay.
        """
        return not hasattr(self, "set_progress")

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        features: Tensor | None = None,
        *more: Tensor | None,
        weight: Tensor | float | None = None,
        **named: Tensor | None,
    ) -> Tensor:
        self._check(logits, targets)
        if isinstance(weight, Tensor) and weight.shape not in ((), targets.shape):
            raise ValueError(f"weight: got shape {tuple(weight.shape)}, allowed is a number or {tuple(targets.shape)}")
        # Under autocast logits can arrive in half precision, too coarse for log-sum-exp.
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        with torch.autocast(logits.device.type, enabled=False):
            losses = self.per_sample(logits, targets, features, *more, **named)
            return losses.mean() if weight is None else (losses * weight).mean()

    def per_sample(self, logits: Tensor, targets: Tensor, features: Tensor | None) -> Tensor:
        """Loss of each sample, ``[B]``."""
        raise NotImplementedError(f"{type(self).__name__} defines no per_sample")

    def _check(self, logits: Tensor, targets: Tensor) -> None:
        if logits.ndim != 2 or targets.shape != logits.shape[:1]:
            raise ValueError(
                f"logits, targets: got shapes {tuple(logits.shape)} and {tuple(targets.shape)},"
                " allowed are [B, C] and [B]"
            )
        if not logits.is_floating_point():
            raise ValueError(f"logits: got {logits.dtype}, allowed are floating point numbers")
        if not len(targets):
            raise ValueError("logits, targets: got an empty batch, allowed are one sample and more")
        if targets.dtype != torch.int64:
            raise ValueError(f"targets: got {targets.dtype}, allowed is torch.int64")
        classes = logits.shape[1]
        if self.num_classes is not None and classes != self.num_classes:
            raise ValueError(f"logits: got {classes} classes, allowed are {self.num_classes}, as in class_counts")
        if targets.device.type == "cpu" and targets.numel() and not torch.compiler.is_compiling():
            try:
                low, high = (bound.item() for bound in targets.aminmax())
            except RuntimeError:  # within torch.func.vmap nothing has a value to look at
                return
            if not 0 <= low <= high < classes:
                raise ValueError(f"targets: got {low} to {high}, allowed are 0 to {classes - 1}")


def is_target(scores: Tensor, targets: Tensor) -> Tensor:
    """``[j = y]`` of an equation: 1 at the target's score and 0 at the others, ``[B, C]`` like ``scores``."""
    return (targets[:, None] == torch.arange(scores.shape[1], device=scores.device)).to(scores.dtype)


def angle(cosines: Tensor) -> Tensor:
    """``theta``, in radians, of a cosine.

    At 1 and -1, and beyond by rounding, the derivative of the angle is infinite. There
    the angle counts as constant.
    """
    outside = cosines.abs() >= 1
    # The inner choice keeps infinity out of the derivative: times the outer one's 0 it would be NaN.
    theta = torch.where(outside, 0.0, cosines).acos()
    return torch.where(outside, math.pi * (cosines < 0), theta)


def weights_summing_to_classes(weights: Tensor | Sequence[float]) -> Tensor:
    """Rescale class weights to sum to C, so that balanced counts give the unweighted loss."""
    weights = torch.as_tensor(weights, dtype=torch.float64)
    return weights * (len(weights) / weights.sum())


Labels = list[tuple[Tensor, float | Tensor]]
"""What a batch is trained on, pairs of class ids ``[B]`` and loss weights, one or ``[B]``; mixup has two pairs."""


class Transform:
    """Base of batch transforms: three places where a method can reach into a training step.

    The trainer builds one per stage and supplies what the constructor names among
    ``model``, ``data`` (the training data, with its validation split), ``class_counts``,
    ``augment`` (training indices to augmented images) and ``predict`` (a split to class
    probabilities ``[N, C]`` of the model as it is). Random draws come from torch's default generator, which the
    trainer seeds. ``set_progress(t)``, where defined, is told the stage's progress.
    """

    block: int | None = None
    """After how many blocks of the backbone :meth:`on_feature_map` acts; after the last if None."""
    on_features: bool = False
    """Whether it means as much on frozen features, which are images of one pixel."""
    capturable: bool = False
    """Whether a GPU may replay the three calls in a step instead of making them, see
    :class:`ltnotes.devices.Captured`: they neither wait for the device nor leave shapes to
    the data, and what changes between steps is in tensors that are filled in place."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know of the epochs before, as tensors and plain numbers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""

    def start_stage(self) -> None:
        """Called once before the stage's first epoch, and not when a run is resumed within the stage."""

    def start_epoch(self) -> None:
        """Called before the first batch of every epoch, with the model in the mode that the stage trains in."""

    def on_indices(self, indices: Tensor) -> Tensor:
        """The drawn training indices ``[B]``: a method that composes its own batches replaces them."""
        return indices

    def on_images(self, images: Tensor, labels: Labels) -> tuple[Tensor, Labels]:
        """Augmented, normalised images ``[B, 3, H, W]`` before the backbone."""
        return images, labels

    def on_feature_map(self, feature_map: Tensor, labels: Labels) -> tuple[Tensor, Labels]:
        """The backbone's map ``[B, D, h, w]``: the last before it is pooled, or that after :attr:`block`."""
        return feature_map, labels


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; then every module is back in its own, as a frozen block has one of its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode

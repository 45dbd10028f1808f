"""Cross-entropy on scores with scales and a margin: what the losses on cosines come down to."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# A CPU takes up to 40 times longer for numbers below the smallest normal one. Probabilities stay
# so far above it that their products with a gradient do, too: from exp(-70) on in float32.
LEAST_LOG = {dtype: math.log(torch.finfo(dtype).tiny) + 17 for dtype in (torch.float32, torch.float64)}


def scaled_cross_entropy(
    scores: Tensor,
    targets: Tensor,
    scale: Tensor | float,
    at_target: Tensor | None = None,
    radius: Tensor | None = None,
    target_slope: Tensor | None = None,
) -> Tensor:
    """``-log softmax(z)_y`` of each sample, ``[B]``, with ``z_j = s r_j x_j + a [j = y]``.

    What cross-entropy on such ``z`` gives, in fewer passes over ``[B, C]``. Only the scores
    get a gradient, and one that cannot be differentiated again. A probability below
    ``exp(LEAST_LOG)`` times the largest counts as that, but for the loss of its own class.

    Args:
        scores: ``x``, ``[B, C]``.
        targets: ``y``, ``[B]``.
        scale: ``s``, a number or ``[B, 1]``.
        at_target: ``a``, ``[B, 1]``, or None for 0.
        radius: ``r``, ``[C]``, or None for 1.
        target_slope: ``[B, 1]``, the derivative of ``z_y`` by ``s r_y x_y`` where ``a`` depends
            on ``x``, or None for 1.

    Raises:
        RuntimeError: in ``backward(create_graph=True)``.
    """
    return _ScaledCrossEntropy.apply(scores, targets, scale, at_target, radius, target_slope)


def check_first_derivative() -> None:
    """Raise RuntimeError where a gradient is being computed to be differentiated again."""
    if torch.is_grad_enabled():
        raise RuntimeError("create_graph: got True, allowed is False: the gradient of this loss has no derivative")


class _ScaledCrossEntropy(torch.autograd.Function):
    """One new ``[B, C]`` in each direction, all else in place: with many classes, memory is what a loss costs."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        targets: Tensor,
        scale: Tensor | float,
        at_target: Tensor | None,
        radius: Tensor | None,
        target_slope: Tensor | None,
    ) -> Tensor:
        column = targets.unsqueeze(1)
        z = scores * scale
        if radius is not None:
            z *= radius
        if at_target is not None:
            z.scatter_add_(1, column, at_target)
        z -= z.amax(dim=1, keepdim=True)
        of_target = z.gather(1, column)
        p = z.clamp_min_(LEAST_LOG[z.dtype]).exp_()
        total = p.sum(dim=1, keepdim=True)
        ctx.save_for_backward(p, total, column, radius, target_slope)
        ctx.scale = scale
        return (total.log() - of_target).squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        check_first_derivative()
        p, total, column, radius, target_slope = ctx.saved_tensors
        grad = grad.unsqueeze(1) * ctx.scale
        by_scores = (p * (grad / total)).scatter_add_(1, column, -grad)
        if target_slope is not None:
            by_scores.scatter_(1, column, by_scores.gather(1, column).mul_(target_slope))
        if radius is not None:
            by_scores *= radius
        return by_scores, None, None, None, None, None

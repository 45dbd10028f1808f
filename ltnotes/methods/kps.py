"""Key point sensitive loss and gradient adjustment (chapter 6; thesis, chapter 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltnotes.counts import check_counts
from ltnotes.methods.common import Loss


class KPSLoss(Loss):
    """Cross-entropy on ``s * (r_j cos(theta_j) - m_y [j = y])`` (thesis Eq. 3.16).

    Takes plain cosines. The radius ``r_j`` grows with a class's count, so that a sample
    close to two class anchors, a *key point*, sees a wider margin; the margin ``m_j``
    falls with the count. At evaluation the plain cosines decide.

    With gradient adjustment every logit of a sample is scaled by the ``s_y`` of its own
    class (Eq. 3.26), which is larger for rarer classes (Eq. 3.30). The thesis switches
    it on after some iterations that it does not number (Algorithm 3.1); its released
    code does so at 0.6 of the training.

    Args:
        n_base: keeps the smallest radius away from zero (Eq. 3.27); above 1.
        max_margin: the margin of the rarest class (Eq. 3.29): 0.5 for CIFAR, 0.35 for
            ImageNet-LT, 0.3 for iNaturalist.
        base_scale: ``s`` without gradient adjustment, and the ``s_y`` of the largest class with it.
        gradient_adjustment: scale each sample by its class.
        adjust_from: progress of the stage at which the adjustment begins.

    Attributes:
        radius, margin, scale: ``[C]`` buffers, Eqs. 3.27, 3.29 and 3.30.

    Raises:
        ValueError: bad counts, or an option outside its range.
    """

    radius: Tensor
    margin: Tensor
    scale: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        n_base: float = 50,
        max_margin: float = 0.5,
        base_scale: float = 15.0,
        gradient_adjustment: bool = False,
        adjust_from: float = 0.0,
    ):
        super().__init__()
        counts = torch.tensor(check_counts(class_counts), dtype=torch.float64)
        if not n_base > 1:
            raise ValueError(f"n_base: got {n_base}, allowed is any number above 1")
        if not max_margin >= 0:
            raise ValueError(f"max_margin: got {max_margin}, allowed is 0 and above")
        if not base_scale > 0:
            raise ValueError(f"base_scale: got {base_scale}, allowed is any number above 0")
        if not 0 <= adjust_from <= 1:
            raise ValueError(f"adjust_from: got {adjust_from}, allowed is a progress from 0 to 1")
        if adjust_from and not gradient_adjustment:
            raise ValueError(f"adjust_from: got {adjust_from} without gradient_adjustment, where it has no effect")
        self.num_classes = len(counts)
        self.base_scale = base_scale
        self.gradient_adjustment, self.adjust_from = gradient_adjustment, adjust_from
        self.adjusting = gradient_adjustment and adjust_from == 0
        radius = (counts * n_base / counts.min()).log()
        radius = radius / radius.min()
        reversed_radius = radius.max() + 1 - radius  # m' of Eq. 3.28
        self.register_buffer("radius", radius)
        self.register_buffer("margin", reversed_radius * (max_margin / reversed_radius.max()))
        self.register_buffer("scale", base_scale * reversed_radius)

    def set_progress(self, t: float) -> None:
        """Switch the gradient adjustment on from ``adjust_from`` on."""
        self.adjusting = self.gradient_adjustment and t >= self.adjust_from

    def per_sample(self, logits: Tensor, targets: Tensor, features: Tensor | None) -> Tensor:
        radius, margin, scale = (buffer.to(logits.dtype) for buffer in (self.radius, self.margin, self.scale))
        penalty = F.one_hot(targets, self.num_classes) * margin
        row_scale = scale[targets, None] if self.adjusting else self.base_scale
        return F.cross_entropy(row_scale * (radius * logits - penalty), targets, reduction="none")

"""Losses with a margin on the target's cosine: LDAM, CosFace, ArcFace.

They take plain cosines, as ``CosineClassifier(scale=1)`` gives, and scale them
themselves. At evaluation the cosines decide, without a margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltnotes.counts import check_counts
from ltnotes.methods.common import Loss


class _ScaledCosines(Loss):
    """Cross-entropy on ``scale`` times the cosines, of which :meth:`shrink` makes the target's smaller."""

    def __init__(self, scale: float):
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale: got {scale}, allowed is any number above 0")
        self.scale = self.evaluation_scale = scale

    def per_sample(self, logits: Tensor, targets: Tensor, features: Tensor | None) -> Tensor:
        targets_column = targets[:, None]
        shrunk = self.shrink(logits.gather(1, targets_column), targets_column)
        return F.cross_entropy(self.scale * logits.scatter(1, targets_column, shrunk), targets, reduction="none")

    def shrink(self, cosines: Tensor, targets: Tensor) -> Tensor:
        """The target's cosines ``[B, 1]`` with the margin of their classes ``[B, 1]``."""
        raise NotImplementedError(f"{type(self).__name__} defines no shrink")


class LDAMLoss(_ScaledCosines):
    """Cross-entropy on ``s * (cos(theta_j) - m_y [j = y])``, ``m_j = C / n_j**(1/4)`` (Cao et al. 2019).

    The label-distribution-aware margin is wider for rarer classes. Table 1.1 of the thesis
    leaves out the scale ``s``, without which cosines never become confident probabilities.
    LDAM-DRW is this loss in :class:`~ltnotes.methods.baselines.DeferredReweighting`.

    Args:
        max_margin: the margin of the rarest class, which fixes the constant ``C``.
        scale: ``s``.

    Attributes:
        margin: ``[C]`` buffer.

    Raises:
        ValueError: bad counts, a negative margin, or a scale that is not above 0.
    """

    margin: Tensor

    def __init__(self, class_counts: Sequence[int], max_margin: float = 0.5, scale: float = 30.0):
        super().__init__(scale)
        counts = torch.tensor(check_counts(class_counts), dtype=torch.float64)
        if not max_margin >= 0:
            raise ValueError(f"max_margin: got {max_margin}, allowed is 0 and above")
        self.num_classes = len(counts)
        self.register_buffer("margin", max_margin * (counts.min() / counts) ** 0.25)

    def shrink(self, cosines: Tensor, targets: Tensor) -> Tensor:
        return cosines - self.margin.to(cosines.dtype)[targets]


class CosFaceLoss(_ScaledCosines):
    """Cross-entropy on ``s * (cos(theta_j) - m [j = y])`` (Wang et al. 2018, Eq. 4): one margin for all classes.

    Args:
        margin: ``m``, 0.35 in the paper.
        scale: ``s``. The paper has 64 for faces; 30 is usual with few classes.

    Raises:
        ValueError: a negative margin, or a scale that is not above 0.
    """

    def __init__(self, margin: float = 0.35, scale: float = 30.0):
        super().__init__(scale)
        if not margin >= 0:
            raise ValueError(f"margin: got {margin}, allowed is 0 and above")
        self.margin = margin

    def shrink(self, cosines: Tensor, targets: Tensor) -> Tensor:
        return cosines - self.margin


class ArcFaceLoss(_ScaledCosines):
    """Cross-entropy on ``s * cos(theta_j + m [j = y])`` (Deng et al. 2019, Eq. 3): the margin is an angle.

    Where ``theta + m`` exceeds pi, ``cos(theta + m)`` would rise again with the angle, and
    the loss would reward it. There, as in the authors' released code, the target gets
    ``cos(theta) - m sin(m)``, which keeps falling.

    Args:
        margin: ``m`` in radians, 0.5 in the paper.
        scale: ``s``. The paper has 64 for faces; 30 is usual with few classes.

    Raises:
        ValueError: a margin outside [0, pi / 2], or a scale that is not above 0.
    """

    def __init__(self, margin: float = 0.5, scale: float = 30.0):
        super().__init__(scale)
        if not 0 <= margin <= math.pi / 2:
            raise ValueError(f"margin: got {margin}, allowed is an angle from 0 to pi / 2")
        self.margin = margin

    def shrink(self, cosines: Tensor, targets: Tensor) -> Tensor:
        # At 1 and -1, and beyond by rounding, the root's derivative is infinite: the floor makes it 0 there.
        sine = ((1 - cosines) * (1 + cosines)).clamp_min(torch.finfo(cosines.dtype).tiny).sqrt()
        shifted = cosines * math.cos(self.margin) - sine * math.sin(self.margin)
        beyond = cosines <= -math.cos(self.margin)
        return torch.where(beyond, cosines - self.margin * math.sin(self.margin), shifted)

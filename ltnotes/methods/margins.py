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
from ltnotes.methods.common import Loss, angle, is_target
from ltnotes.options import number


class _ScaledCosines(Loss):
    """Cross-entropy on ``scale`` times the cosines, the target's less a margin."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = self.evaluation_scale = number("scale", scale, above=0)


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
        self.num_classes = len(counts)
        self.register_buffer("margin", number("max_margin", max_margin, least=0) * (counts.min() / counts) ** 0.25)

    def per_sample(self, logits: Tensor, targets: Tensor, features: Tensor | None) -> Tensor:
        margin = self.margin.to(logits.dtype) * is_target(logits, targets)
        return F.cross_entropy(self.scale * (logits - margin), targets, reduction="none")


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
        self.margin = number("margin", margin, least=0)

    def per_sample(self, logits: Tensor, targets: Tensor, features: Tensor | None) -> Tensor:
        margin = self.margin * is_target(logits, targets)
        return F.cross_entropy(self.scale * (logits - margin), targets, reduction="none")


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
        self.margin = number("margin", margin, least=0, most=math.pi / 2)

    def per_sample(self, logits: Tensor, targets: Tensor, features: Tensor | None) -> Tensor:
        of_target = self.penalized(logits.gather(1, targets[:, None]))
        with_margin = torch.where(is_target(logits, targets).bool(), of_target, logits)
        return F.cross_entropy(self.scale * with_margin, targets, reduction="none")

    def penalized(self, cosines: Tensor) -> Tensor:
        """What the loss makes of the target's cosine, whatever the shape."""
        theta, m = angle(cosines), self.margin
        wider = cosines * math.cos(m) - theta.sin() * math.sin(m)  # cos(theta + m)
        return torch.where(theta + m < math.pi, wider, cosines - m * math.sin(m))

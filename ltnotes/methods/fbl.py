"""Feature-balanced loss and its curricula (chapter 7; thesis, chapter 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltnotes.counts import check_counts
from ltnotes.methods.common import Loss
from ltnotes.options import choice, number, of_type

# Thesis Table 4.4: how strong the stimulus is at progress t, as a share of `strength`.
CURRICULA: dict[str, Callable[[float], float]] = {
    "linear-decrease": lambda t: max(0.0, 1 - t),
    "linear": lambda t: t,
    "sine": lambda t: math.sin(t * math.pi / 2),
    "cosine": lambda t: 1 - math.cos(t * math.pi / 2),
    "parabolic": lambda t: t**2,
}


class FeatureBalancedLoss(Loss):
    """Cross-entropy on ``z_j - alpha(t) * lambda_j / |f|`` (thesis Eqs. 4.6 and 4.8).

    ``lambda_j = log n_max - log n_j`` (Eq. 4.4) costs rare classes some of their logit
    in training. The network earns it back by making their features longer. The gradient
    flows through ``|f|``; at evaluation the plain logits decide.

    The thesis says only that ``alpha`` is proportional to ``(t / T)**2`` (Eq. 4.7). Its
    released code divides lambda by its maximum and multiplies by 60 on CIFAR and by 150
    on the large data sets: ``strength=60, normalized=True``. Its schedule,
    ``(epoch / (epochs - 10))**2``, exceeds 1 at the end: for 200 epochs, ``end=0.95``.

    Eq. 4.5 drops ``alpha``, and Eq. 4.8 prints the cost below the fraction line outside the
    exponent; Eqs. 4.3 and 4.6 have both in their places.

    Args:
        strength: the constant of proportionality: ``alpha(t) = strength * curriculum(t / end)``.
        normalized: divide lambda by its maximum.
        curriculum: one of ``CURRICULA``.
        end: progress at which the curriculum has run its course; beyond it, its formula goes on.

    Attributes:
        stimulus: lambda, a ``[C]`` buffer.

    Raises:
        ValueError: bad counts or options; in the call, missing or misshaped features.
    """

    capturable = True
    stimulus: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        strength: float = 1.0,
        normalized: bool = False,
        curriculum: str = "parabolic",
        end: float = 1.0,
    ):
        super().__init__()
        log_counts = torch.tensor(check_counts(class_counts), dtype=torch.float64).log()
        self.num_classes = len(log_counts)
        self.strength = number("strength", strength, least=0)
        self.curriculum = choice("curriculum", curriculum, CURRICULA)
        self.end = number("end", end, least=0.01, most=1)
        stimulus = log_counts.max() - log_counts
        if of_type("normalized", normalized, bool) and stimulus.max() > 0:
            stimulus = stimulus / stimulus.max()
        self.register_buffer("stimulus", stimulus)
        # A tensor, so that a captured training step sees it change.
        self.register_buffer("alpha", torch.zeros((), dtype=torch.float64), persistent=False)
        self.set_progress(0.0)

    def set_progress(self, t: float) -> None:
        """Set the strength of the stimulus for progress ``t`` in [0, 1]."""
        t = number("t", t, least=0, most=1)
        self.alpha.fill_(self.strength * CURRICULA[self.curriculum](t / self.end))

    def per_sample(self, logits: Tensor, targets: Tensor, features: Tensor | None) -> Tensor:
        if features is None or features.ndim != 2 or len(features) != len(logits):
            got = None if features is None else tuple(features.shape)
            raise ValueError(f"features: got {got}, allowed is a tensor [B, D] for logits {tuple(logits.shape)}")
        norm = features.to(logits.dtype).norm(dim=1, keepdim=True).clamp_min(torch.finfo(logits.dtype).eps)
        cost = (self.alpha * self.stimulus).to(logits.dtype)
        return F.cross_entropy(logits - cost / norm, targets, reduction="none")

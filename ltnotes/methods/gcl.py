"""Gaussian clouded logits and class-based effective number sampling (chapter 8; thesis, chapter 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltnotes.counts import check_counts
from ltnotes.methods.common import Loss


def cloud_sizes(counts: Sequence[int]) -> Tensor:
    """``(log n_max - log n_j) / delta_max``, float64 ``[C]`` in [0, 1] (thesis Eq. 5.9, normalised as in 5.4.1).

    Balanced counts give zeros.
    """
    log_counts = torch.tensor(check_counts(counts, "counts"), dtype=torch.float64).log()
    sizes = log_counts.max() - log_counts
    return sizes / sizes.max() if sizes.max() > 0 else sizes


class GCLLoss(Loss):
    """Cross-entropy on ``s * (cos(theta_j) - delta_j |eps|)`` (thesis Eqs. 5.11 and 5.12).

    Takes plain cosines. ``eps ~ N(0, sigma**2)``, clamped to [-1, 1], is drawn for each
    sample and class, or given to the call as ``noise`` ``[B, C]``. The cloud size
    ``delta_j`` is 0 for the largest class and 1 for the rarest. In ``eval()`` none is drawn.

    Args:
        scale: ``s``. The thesis gives no number; its released code uses 30.
        noise_multiplier: 1 in the thesis; the released code halves the noise on CIFAR.
        target_margin: taken off the target's cosine; 0 in the thesis, 0.1 in the second
            stage of the released code.
        sigma: 1/3 in the thesis, so that the clamp hardly ever acts.

    Attributes:
        cloud: delta, a ``[C]`` buffer.

    Raises:
        ValueError: bad counts or options; in the call, noise of another shape.
    """

    cloud: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        scale: float = 30.0,
        noise_multiplier: float = 1.0,
        target_margin: float = 0.0,
        sigma: float = 1 / 3,
    ):
        super().__init__()
        self.register_buffer("cloud", cloud_sizes(check_counts(class_counts)))
        if not scale > 0:
            raise ValueError(f"scale: got {scale}, allowed is any number above 0")
        for name, value in (("noise_multiplier", noise_multiplier), ("sigma", sigma)):
            if not value >= 0:
                raise ValueError(f"{name}: got {value}, allowed is 0 and above")
        if not math.isfinite(target_margin):
            raise ValueError(f"target_margin: got {target_margin}, allowed is any finite number")
        self.num_classes = len(self.cloud)
        self.scale, self.sigma = scale, sigma
        self.noise_multiplier, self.target_margin = noise_multiplier, target_margin

    def per_sample(
        self, logits: Tensor, targets: Tensor, features: Tensor | None, noise: Tensor | None = None
    ) -> Tensor:
        if noise is not None and noise.shape != logits.shape:
            raise ValueError(
                f"noise: got {tuple(noise.shape)}, allowed is the shape of the logits, {tuple(logits.shape)}"
            )
        if noise is None and self.training:
            noise = self.sigma * torch.randn_like(logits)
        if noise is not None:
            clouds = self.noise_multiplier * self.cloud.to(logits.dtype) * noise.clamp(-1, 1).abs()
            logits = logits - clouds
        logits = logits - self.target_margin * F.one_hot(targets, self.num_classes).to(logits.dtype)
        return F.cross_entropy(self.scale * logits, targets, reduction="none")


def cben(counts: Sequence[int], a: float = 0.999, b: float = 0.0009, per: str = "sample") -> Tensor:
    """Class-based effective number sampling, class probabilities float64 ``[C]`` (thesis Eqs. 5.13 to 5.15).

    Like the effective number of Cui et al. 2019, with a ``beta_j`` of its own for each
    class, from ``a`` for the largest to ``a + b`` for the rarest.

    Args:
        a, b: range of ``beta_j``.
        per: what Eq. 5.13 weights. "sample", as the text says and all released code
            does, gives class ``j`` the probability ``gamma_j n_j``; "class" reads the sum
            in Eq. 5.14 as one over classes. The two have opposite shapes.

    Raises:
        ValueError: bad counts, ``beta_j`` outside [0, 1), or an unknown ``per``.
    """
    if per not in ("sample", "class"):
        raise ValueError(f"per: got {per!r}, allowed are 'sample' and 'class'")
    if not (0 < a < 1 and 0 <= b < 1 - a):
        raise ValueError(f"a, b: got {a} and {b}, allowed is 0 < a <= a + b < 1")
    n = torch.tensor(check_counts(counts, "counts"), dtype=torch.float64)
    beta = b * cloud_sizes(counts) + a
    gamma = (1 - beta) / -torch.expm1(n * beta.log())
    weight = gamma * n if per == "sample" else gamma
    return weight / weight.sum()

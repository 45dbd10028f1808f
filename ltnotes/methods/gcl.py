"""Gaussian clouded logits and class-based effective number sampling (chapter 8; thesis, chapter 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltnotes.counts import check_counts
from ltnotes.methods.common import Loss, is_target
from ltnotes.options import choice, number, require

# Thesis Table 5.4: a class's cloud size is how far its value here falls short of the largest class's.
CLOUDS: dict[str, Callable[[Tensor], Tensor]] = {
    "logarithm": torch.log,
    "power-1/3": lambda n: n ** (1 / 3),
    "power-1/4": lambda n: n ** (1 / 4),
    "cosine": lambda n: -torch.cos(n / n.max() * math.pi / 2),
}


def cloud_sizes(counts: Sequence[int], rule: str = "logarithm") -> Tensor:
    """``delta_j``, float64 ``[C]``: 0 for the largest class, 1 for the rarest.

    By default ``log n_max - log n_j`` (thesis Eq. 5.9), divided by its maximum (5.4.1).
    Balanced counts give zeros.

    Args:
        rule: one of ``CLOUDS``, the expressions that Table 5.4 compares. Its cosine,
            ``cos(n_j / n_max * pi / 2)``, is 0 at ``n_max`` like the others.

    Raises:
        ValueError: bad counts, or an unknown ``rule``.
    """
    of_counts = CLOUDS[choice("cloud rule", rule, CLOUDS)]
    grown = of_counts(torch.tensor(check_counts(counts, "counts"), dtype=torch.float64))
    sizes = grown.max() - grown
    return sizes / sizes.max() if sizes.max() > 0 else sizes


class GCLLoss(Loss):
    """Cross-entropy on ``s * (cos(theta_j) - delta_j |eps|)`` (thesis Eqs. 5.11 and 5.12).

    Takes plain cosines. ``eps ~ N(0, sigma**2)``, clamped to [-1, 1], is drawn for each
    sample and class, or given to the call as ``noise`` ``[B, C]``. The cloud size
    ``delta_j`` is 0 for the largest class and 1 for the rarest. In ``eval()`` none is drawn.
    Eq. 5.8 has an ``eps_j`` of its own for each class, Eqs. 5.10 and 5.11 one for all;
    here, as in the released code, each class has its own.

    Args:
        scale: ``s``. The thesis gives no number; its released code uses 30, and 20 in the second stage.
        noise_multiplier: 1 in the thesis; the released code halves the noise on CIFAR.
        target_margin: taken off the target's cosine; 0 in the thesis, 0.1 in the second
            stage of the released code.
        sigma: 1/3 in the thesis, so that the clamp hardly ever acts.
        cloud: the rule of the cloud sizes, see :func:`cloud_sizes`.
        focal_gamma: multiplies each loss by ``(1 - p_y)**focal_gamma``, like
            :class:`~ltnotes.methods.baselines.FocalLoss`; 0 in the thesis, 1 in the second stage
            of the released code, which stops the gradient through this weight.

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
        cloud: str = "logarithm",
        focal_gamma: float = 0.0,
    ):
        super().__init__()
        self.register_buffer("cloud", cloud_sizes(check_counts(class_counts), cloud))
        self.num_classes = len(self.cloud)
        self.scale = self.evaluation_scale = number("scale", scale, above=0)
        self.noise_multiplier = number("noise_multiplier", noise_multiplier, least=0)
        self.sigma = number("sigma", sigma, least=0)
        self.target_margin = number("target_margin", target_margin)
        self.focal_gamma = number("focal_gamma", focal_gamma, least=0)

    def per_sample(
        self, logits: Tensor, targets: Tensor, features: Tensor | None, noise: Tensor | None = None
    ) -> Tensor:
        if noise is not None and noise.shape != logits.shape:
            raise ValueError(
                f"noise: got {tuple(noise.shape)}, allowed is the shape of the logits, {tuple(logits.shape)}"
            )
        if noise is None:
            noise = self.sigma * torch.randn_like(logits) if self.training else torch.zeros_like(logits)
        cloud = self.noise_multiplier * self.cloud.to(logits.dtype) * noise.abs().clamp(max=1)
        clouded = logits - cloud - self.target_margin * is_target(logits, targets)
        cost = F.cross_entropy(self.scale * clouded, targets, reduction="none")
        if self.focal_gamma == 0:
            return cost
        return cost * (-torch.expm1(-cost.detach())) ** self.focal_gamma


def cben(counts: Sequence[int], a: float = 0.999, b: float = 0.0009, per: str = "sample") -> Tensor:
    """Class-based effective number sampling, class probabilities float64 ``[C]`` (thesis Eqs. 5.13 to 5.15).

    Like the effective number of Cui et al. 2019, with a ``beta_j`` of its own for each
    class, from ``a`` for the largest to ``a + b`` for the rarest. It follows the logarithmic
    cloud size, whatever the loss has: Table 5.4 compares the clouds under one sampler.

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
    a = number("a", a, above=0, below=1)
    b = number("b", b, least=0)
    require(a + b < 1, "a + b", a + b, "a number below 1")
    n = torch.tensor(check_counts(counts, "counts"), dtype=torch.float64)
    beta = b * cloud_sizes(counts) + a
    gamma = (1 - beta) / -torch.expm1(n * beta.log())
    weight = gamma * n if per == "sample" else gamma
    return weight / weight.sum()

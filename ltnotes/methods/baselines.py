"""Baselines: the losses and transforms that every chapter compares with.

Losses are called as ``loss(logits [B, C], targets [B], features=None)`` and return
the scalar batch mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltnotes.counts import check_counts
from ltnotes.methods.balancers import inverse_effective_number
from ltnotes.methods.common import Labels, Loss, Transform, weights_summing_to_classes


class CrossEntropy(Loss):
    """``-log p_y`` with ``p = softmax(z)``: the loss that knows nothing of the counts."""

    def per_sample(self, logits: Tensor, targets: Tensor, features: Tensor | None) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="none")


class FocalLoss(Loss):
    """``-(1 - p_y)**gamma * log p_y`` (Lin et al. 2017): easy samples count less.

    Args:
        gamma: 0 is cross-entropy.
        detach_weight: stop the gradient through ``(1 - p_y)**gamma``, as some released
            code does. The value of the loss is the same, the gradient is not.

    Raises:
        ValueError: a negative ``gamma``.
    """

    def __init__(self, gamma: float = 1.0, detach_weight: bool = False):
        super().__init__()
        if not gamma >= 0:
            raise ValueError(f"gamma: got {gamma}, allowed is 0 and above")
        self.gamma = gamma
        self.detach_weight = detach_weight

    def per_sample(self, logits: Tensor, targets: Tensor, features: Tensor | None) -> Tensor:
        log_p = -F.cross_entropy(logits, targets, reduction="none")
        # 1 - p = -expm1(log p) keeps its digits where p is near 1; the floor keeps the
        # derivative of the power finite for gamma < 1.
        weight = (-torch.expm1(log_p)).clamp_min(torch.finfo(logits.dtype).tiny) ** self.gamma
        return -(weight.detach() if self.detach_weight else weight) * log_p


class _ClassWeighted(Loss):
    """A base loss whose samples are weighted by their class; the weights sum to C."""

    weight: Tensor

    def __init__(self, base: Loss, weights: Tensor, divide_by: str):
        super().__init__()
        if divide_by not in ("batch", "weights"):
            raise ValueError(f"divide_by: got {divide_by!r}, allowed are 'batch' and 'weights'")
        self.base = base
        self.num_classes = len(weights)
        self.divide_by = divide_by
        self.register_buffer("weight", weights_summing_to_classes(weights))

    def per_sample(self, logits: Tensor, targets: Tensor, features: Tensor | None) -> Tensor:
        weight = self.weight.to(logits.dtype)[targets]
        if self.divide_by == "weights":
            weight = weight / weight.mean()
        return weight * self.base.per_sample(logits, targets, features)


class WeightedCrossEntropy(_ClassWeighted):
    """Cross-entropy weighted by the inverse class count, ``w_y * -log p_y`` (thesis Table 1.1).

    The weights ``1 / n_j`` are rescaled to sum to C, as Cui et al. 2019 do, so that
    balanced counts give the plain cross-entropy. The mean weight of a drawn image is
    then below 1, and the steps on a long tail are shorter than those of re-sampling.

    Args:
        divide_by: "batch" divides the sum over the batch by its size, as the formula
            says; "weights" divides by the sum of the batch's weights, as
            ``torch.nn.CrossEntropyLoss(weight=...)`` does. With the second, what one
            sample weighs depends on which others its batch happens to hold.

    Raises:
        ValueError: bad counts, or an unknown ``divide_by``.
    """

    def __init__(self, class_counts: Sequence[int], divide_by: str = "batch"):
        counts = torch.tensor(check_counts(class_counts), dtype=torch.float64)
        super().__init__(CrossEntropy(), 1 / counts, divide_by)


class ClassBalancedLoss(_ClassWeighted):
    """A loss weighted by the inverse effective number, ``(1 - beta) / (1 - beta**n_y)`` (Cui et al. 2019).

    Args:
        beta: 0 leaves the base loss unweighted; towards 1 the weights become ``1 / n_j``.
        base: "ce" or "focal".
        gamma: the focal exponent, 1.0 if not given; only with ``base="focal"``.
        divide_by: as in :class:`WeightedCrossEntropy`.

    Raises:
        ValueError: bad counts, ``beta`` outside [0, 1), an unknown ``base`` or
            ``divide_by``, or ``gamma`` where it would have no effect.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        beta: float = 0.9999,
        base: str = "ce",
        gamma: float | None = None,
        divide_by: str = "batch",
    ):
        if base not in ("ce", "focal"):
            raise ValueError(f"base: got {base!r}, allowed are 'ce' and 'focal'")
        if base == "ce" and gamma is not None:
            raise ValueError(f"gamma: got {gamma} with base='ce', where it has no effect; allowed with base='focal'")
        base_loss = CrossEntropy() if base == "ce" else FocalLoss(1.0 if gamma is None else gamma)
        super().__init__(base_loss, inverse_effective_number(check_counts(class_counts), beta), divide_by)


class Mixup(Transform):
    """Input mixup (Zhang et al. 2018): each image blended with another, and the loss with it.

    ``x = lam * x_a + (1 - lam) * x_b``, loss ``lam * L(y_a) + (1 - lam) * L(y_b)``, one
    ``lam ~ Beta(alpha, alpha)`` per batch.

    Args:
        alpha: shape of the Beta distribution; 1.0 is uniform.

    Raises:
        ValueError: ``alpha`` not above 0.
    """

    def __init__(self, alpha: float = 1.0):
        if not alpha > 0:
            raise ValueError(f"alpha: got {alpha}, allowed is any number above 0")
        self.alpha = alpha

    def on_images(self, images: Tensor, labels: Labels) -> tuple[Tensor, Labels]:
        alpha = torch.full((), self.alpha, device=images.device)
        lam = torch.distributions.Beta(alpha, alpha, validate_args=False).sample()  # looking would wait for a GPU
        partner = torch.randperm(len(images), device=images.device)
        # Not torch.lerp: it would need lam in the images' dtype.
        mixed = lam * images + (1 - lam) * images[partner]
        pairs = [(targets, weight * lam) for targets, weight in labels]
        pairs += [(targets[partner], weight * (1 - lam)) for targets, weight in labels]
        return mixed, pairs

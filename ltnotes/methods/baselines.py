"""Baselines: the losses and transforms that every chapter compares with.

Losses are called as ``loss(logits [B, C], targets [B], features=None)`` and return the scalar batch mean.
Those with a margin on cosines, and the heads of classifier re-training, are written in
:mod:`ltnotes.methods.margins` and :mod:`ltnotes.methods.retraining`, and can be named from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltnotes.counts import check_counts
from ltnotes.methods.balancers import inverse_effective_number
from ltnotes.methods.common import Labels, Loss, Part, Transform, is_target, weights_summing_to_classes
from ltnotes.methods.margins import ArcFaceLoss, CosFaceLoss, LDAMLoss  # noqa: F401
from ltnotes.methods.retraining import (  # noqa: F401
    LWSClassifier,
    NearestClassMeanClassifier,
    TauNormalizedClassifier,
)
from ltnotes.options import choice, number, of_type


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
        self.gamma = number("gamma", gamma, least=0)
        self.detach_weight = of_type("detach_weight", detach_weight, bool)

    def per_sample(self, logits: Tensor, targets: Tensor, features: Tensor | None) -> Tensor:
        cost = F.cross_entropy(logits, targets, reduction="none")
        # 1 - p = -expm1(log p) keeps its digits where p is near 1; with the smallest number
        # added, the derivative of the power is finite for gamma < 1.
        weight = (torch.finfo(logits.dtype).tiny - torch.expm1(-cost)) ** self.gamma
        return (weight.detach() if self.detach_weight else weight) * cost


class _ClassWeighted(Loss):
    """A base loss whose samples are weighted by their class; the weights sum to C."""

    weight: Tensor

    def __init__(self, base: Loss, weights: Tensor, divide_by: str):
        super().__init__()
        self.base = base
        self.num_classes = len(weights)
        self.divide_by = choice("divide_by", divide_by, ("batch", "weights"))
        self.register_buffer("weight", weights_summing_to_classes(weights))

    def per_sample(self, logits: Tensor, targets: Tensor, features: Tensor | None, **more: Tensor | None) -> Tensor:
        weight = self.weight[targets].to(logits.dtype)
        if self.divide_by == "weights":
            weight = weight / weight.mean()
        return weight * self.base.per_sample(logits, targets, features, **more)


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
        if choice("base", base, ("ce", "focal")) == "ce" and gamma is not None:
            raise ValueError(f"gamma: got {gamma} with base='ce', where it has no effect; allowed with base='focal'")
        base_loss = CrossEntropy() if base == "ce" else FocalLoss(1.0 if gamma is None else gamma)
        super().__init__(base_loss, inverse_effective_number(check_counts(class_counts), beta), divide_by)


class DeferredReweighting(_ClassWeighted):
    """Any loss, from progress ``start`` on weighted by the inverse effective number (Cao et al. 2019, Algorithm 1).

    Representations are learnt better without weights, and the decision boundary is moved at the end, when the
    learning rate is small. LDAM-DRW is ``part("baselines.DeferredReweighting", loss=part("baselines.LDAMLoss"))``.
    Features, further arguments and the progress are passed on to the loss.

    Args:
        loss: a method part, built with ``class_counts``, or a :class:`~ltnotes.methods.common.Loss`.
        start: progress of the stage at which the weights come; 0.8 is the paper's epoch 160 of 200.
        beta: as in :class:`ClassBalancedLoss`.
        divide_by: as in :class:`WeightedCrossEntropy`; the released code has "weights".

    Attributes:
        weight: the weights in force, a ``[C]`` buffer: ones until ``start``.

    Raises:
        ValueError: bad counts, ``start`` outside [0, 1], ``beta`` outside [0, 1), something
            that is no loss, or one for another number of classes.
    """

    deferred: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        loss: Part | Loss,
        start: float = 0.8,
        beta: float = 0.9999,
        divide_by: str = "batch",
    ):
        counts = check_counts(class_counts)
        base = loss.build(class_counts=counts) if isinstance(loss, Part) else loss
        if not isinstance(base, Loss):
            raise ValueError(f"loss: got {loss!r}, allowed is a Loss or a method part that builds one")
        if base.num_classes not in (None, len(counts)):
            raise ValueError(f"loss: got one for {base.num_classes} classes, allowed are {len(counts)}")
        super().__init__(base, inverse_effective_number(counts, beta), divide_by)
        self.start = number("start", start, least=0, most=1)
        self.evaluation_scale = base.evaluation_scale
        self.register_buffer("deferred", self.weight.clone(), persistent=False)
        self.set_progress(0.0)

    @property
    def capturable(self) -> bool:
        return self.base.capturable

    def set_progress(self, t: float) -> None:
        """Switch the weights on from ``start`` on: in place, so that a captured training step sees it."""
        t = number("t", t, least=0, most=1)
        self.weight.copy_(self.deferred if t >= self.start else torch.ones_like(self.deferred))
        if hasattr(self.base, "set_progress"):
            self.base.set_progress(t)


class EqualizationLoss(Loss):
    """Softmax equalization loss: rare classes are spared other classes' images (Tan et al. 2020, SEQL).

    ``-log(exp(z_y) / sum_k w_k exp(z_k))`` with ``w_k = 1 - beta T(f_k) (1 - y_k)``: ``T`` is 1
    for a class whose share ``f_k`` of all training images is below ``threshold``, and
    ``beta`` is 1 with ``probability``, drawn for each sample and class, or given to the
    call as ``mask`` ``[B, C]``. In ``eval()`` none is drawn: cross-entropy. Table 1.1 of the
    thesis has the same fraction, and leaves ``w`` unexplained.

    The paper tunes both options for each data set. The defaults are those of a public
    re-implementation on 100 classes (Zhang et al. 2021, Bag of Tricks).

    Args:
        threshold: the paper's ``lambda``, a share of the training images; if not given,
            half of the share that a class of a balanced set has, 0.005 of 100 classes.
        probability: the paper's ``gamma``; 0 is cross-entropy.

    Attributes:
        rare: T, a ``[C]`` buffer of bools.

    Raises:
        ValueError: bad counts, or an option outside [0, 1]; in the call, a mask of another shape.
    """

    rare: Tensor

    def __init__(self, class_counts: Sequence[int], threshold: float | None = None, probability: float = 0.9):
        super().__init__()
        counts = torch.tensor(check_counts(class_counts), dtype=torch.float64)
        threshold = 0.5 / len(counts) if threshold is None else threshold
        self.num_classes, self.probability = len(counts), number("probability", probability, least=0, most=1)
        self.register_buffer("rare", counts / counts.sum() < number("threshold", threshold, least=0, most=1))

    def per_sample(
        self, logits: Tensor, targets: Tensor, features: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        if mask is not None and mask.shape != logits.shape:
            raise ValueError(
                f"mask: got {tuple(mask.shape)}, allowed is the shape of the logits, {tuple(logits.shape)}"
            )
        if mask is None:
            mask = torch.rand_like(logits) < self.probability if self.training else torch.zeros_like(logits)
        spared = mask.bool() & self.rare & ~is_target(logits, targets).bool()
        return F.cross_entropy(logits.masked_fill(spared, -math.inf), targets, reduction="none")


class LogitAdjustedLoss(Loss):
    """Cross-entropy on ``z_j + tau log pi_j``, ``pi_j = n_j / N`` (Menon et al. 2021, Eq. 10).

    The logits learn what is left of the class probabilities when the prior is taken off,
    and are used without it. ``tau=1`` is the balanced softmax (Ren et al. 2020; thesis
    Eq. 4.10). Table 1.1 of the thesis has the opposite sign, which would favour the
    frequent classes once more.

    Args:
        tau: 0 is cross-entropy.

    Attributes:
        log_prior: ``log pi``, a ``[C]`` buffer.

    Raises:
        ValueError: bad counts, or a ``tau`` that is negative or not finite.
    """

    log_prior: Tensor

    def __init__(self, class_counts: Sequence[int], tau: float = 1.0):
        super().__init__()
        counts = torch.tensor(check_counts(class_counts), dtype=torch.float64)
        self.num_classes, self.tau = len(counts), number("tau", tau, least=0)
        self.register_buffer("log_prior", (counts / counts.sum()).log())

    def per_sample(self, logits: Tensor, targets: Tensor, features: Tensor | None) -> Tensor:
        return F.cross_entropy(logits + (self.tau * self.log_prior).to(logits.dtype), targets, reduction="none")


# How smoothing rises from 0 to 1 with a class's size, from the smallest (0) to the largest (1).
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "concave": lambda size: torch.sin(size * math.pi / 2),
    "linear": lambda size: size,
    "convex": lambda size: 1 - torch.cos(size * math.pi / 2),
}


class LabelAwareSmoothing(Loss):
    """Label smoothing that is stronger for larger classes (Zhong et al. 2021, MiSLAS, section 3.2).

    The target has ``1 - eps_y``, every other class ``eps_y / (C - 1)``; ``eps_y`` goes from
    ``tail`` for the smallest class to ``head`` for the largest. The released code spreads
    ``eps_y`` over all classes, the target too. Balanced counts give everyone ``head``.

    Args:
        head, tail: 0.3 and 0.0 are the released settings for CIFAR-10-LT at a ratio of 100.
        shape: one of ``SHAPES``: how ``eps`` follows ``(n - n_min) / (n_max - n_min)``.

    Attributes:
        smoothing: eps, a ``[C]`` buffer.

    Raises:
        ValueError: bad counts, fewer than two classes, ``head`` or ``tail`` outside [0, 1), or
            an unknown ``shape``.
    """

    smoothing: Tensor

    def __init__(self, class_counts: Sequence[int], head: float = 0.3, tail: float = 0.0, shape: str = "concave"):
        super().__init__()
        counts = torch.tensor(check_counts(class_counts), dtype=torch.float64)
        if len(counts) < 2:
            raise ValueError(f"class_counts: got {len(counts)} class, allowed are 2 and more")
        head, tail = number("head", head, least=0, below=1), number("tail", tail, least=0, below=1)
        rise = SHAPES[choice("shape", shape, SHAPES)]
        self.num_classes = len(counts)
        # Counted from the largest, so that balanced counts are all at 1.
        size = 1 - (counts.max() - counts) / (counts.max() - counts.min()).clamp_min(1)
        self.register_buffer("smoothing", tail + (head - tail) * rise(size))

    def per_sample(self, logits: Tensor, targets: Tensor, features: Tensor | None) -> Tensor:
        eps, own = self.smoothing[targets, None].to(logits.dtype), is_target(logits, targets)
        wanted = (1 - eps) * own + eps / (self.num_classes - 1) * (1 - own)
        return F.cross_entropy(logits, wanted, reduction="none")


class Mixup(Transform):
    """Input mixup (Zhang et al. 2018): each image blended with another, and the loss with it.

    ``x = lam * x_a + (1 - lam) * x_b``, loss ``lam * L(y_a) + (1 - lam) * L(y_b)``, one
    ``lam ~ Beta(alpha, alpha)`` per batch.

    Args:
        alpha: shape of the Beta distribution; 1.0 is uniform.

    Raises:
        ValueError: ``alpha`` not above 0.
    """

    on_features = True
    capturable = True

    def __init__(self, alpha: float = 1.0):
        self.alpha = number("alpha", alpha, above=0)

    def on_images(self, images: Tensor, labels: Labels) -> tuple[Tensor, Labels]:
        alpha = torch.full((), self.alpha, device=images.device)
        lam = torch.distributions.Beta(alpha, alpha, validate_args=False).sample()  # looking would wait for a GPU
        partner = torch.randperm(len(images), device=images.device)
        # Not torch.lerp: it would need lam in the images' dtype.
        mixed = lam * images + (1 - lam) * images[partner]
        pairs = [(targets, weight * lam) for targets, weight in labels]
        pairs += [(targets[partner], weight * (1 - lam)) for targets, weight in labels]
        return mixed, pairs

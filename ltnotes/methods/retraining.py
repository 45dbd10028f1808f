"""Classifier re-training on features that are learnt already (Kang et al. 2020; thesis 5.4.4.3).

Each class is the head of a second stage that trains the head alone, or nothing. The
fourth way of the paper, cRT, needs no class: a stage with a new head of the usual kind
and class-balanced sampling. Every head has a ``weight`` ``[C, D]``, from which class
activation maps can be drawn.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltnotes.options import number


class LWSClassifier(nn.Module):
    """Learnable weight scaling: ``s_j * z_j``, with the scores ``z`` of the previous head, frozen.

    Only ``s`` ``[C]``, which begins at 1, learns. A linear head's bias is scaled with
    its weights: ``s_j * (w_j f + b_j)``. A cosine head's scores are scaled as they are,
    so that a loss on plain cosines gets cosines times ``s_j``.

    Args:
        previous: the old head, any that has a ``weight``; copied, so that it stays as it is.

    Raises:
        ValueError: a previous head without a weight, or for other than ``num_classes``.
    """

    def __init__(self, num_classes: int, previous: nn.Module):
        super().__init__()
        weight = _weight_of(previous)
        if len(weight) != num_classes:
            raise ValueError(f"previous: got a head for {len(weight)} classes, allowed are {num_classes}")
        self.previous = copy.deepcopy(previous).requires_grad_(False)
        self.scale = nn.Parameter(weight.new_ones(num_classes))

    @property
    def weight(self) -> Tensor:
        return self.scale[:, None] * self.previous.weight

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * self.previous(features)


class TauNormalizedClassifier(nn.Module):
    """``z_j = w_j f / |w_j|**tau`` without bias, of the previous head's weights: a stage of zero steps.

    In a linear head trained on a long tail, frequent classes have the longer weights.
    After a cosine head, whose lengths mean nothing, ``tau=1`` gives ``|f| cos(theta_j)``:
    the same answers, with confidences that depend on ``|f|``; any other ``tau`` weighs
    the classes by lengths that its training never saw.

    Args:
        previous: the old head, any that has a ``weight``.
        tau: 0 leaves the weights as they are, 1 gives all the same length. The paper picks
            it on validation data.

    Attributes:
        weight: the normalised weights, a buffer ``[C, D]``.

    Raises:
        ValueError: a previous head without a weight, or a ``tau`` that is negative or not finite.
    """

    weight: Tensor

    def __init__(self, previous: nn.Module, tau: float = 1.0):
        super().__init__()
        tau = number("tau", tau, least=0, most=10)
        weight = _weight_of(previous)
        # A weight of zeros has no direction, and stays.
        length = weight.norm(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).eps)
        self.register_buffer("weight", weight / length**tau)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight)


class NearestClassMeanClassifier(nn.Module):
    """Scores by how near the mean feature of each class is; nothing is learnt, :meth:`fit` averages.

    Args:
        metric: "cosine" scores by ``cos(mean_j, f)``; "euclidean" by minus the distance,
            ``-|f - mean_j|``. The paper's second choice, the distance to means of length 1,
            gives the same answers as its first; the distance here is to the means as they are.

    Attributes:
        weight: the means, a buffer ``[C, D]``; zeros before :meth:`fit`.

    Raises:
        ValueError: an unknown ``metric``.
    """

    weight: Tensor

    def __init__(self, in_features: int, num_classes: int, metric: str = "cosine"):
        super().__init__()
        if metric not in ("cosine", "euclidean"):
            raise ValueError(f"metric: got {metric!r}, allowed are 'cosine' and 'euclidean'")
        self.metric = metric
        self.register_buffer("weight", torch.zeros(num_classes, in_features))

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Set the means to those of ``features`` ``[N, D]`` by class ``labels`` ``[N]``.

        Raises:
            ValueError: shapes that do not fit, labels that are no class ids, or a class without a sample.
        """
        num_classes, width = self.weight.shape
        if features.shape != (len(labels), width) or labels.ndim != 1:
            raise ValueError(
                f"features, labels: got shapes {tuple(features.shape)} and {tuple(labels.shape)},"
                f" allowed are [N, {width}] and [N]"
            )
        if labels.dtype != torch.int64:
            raise ValueError(f"labels: got {labels.dtype}, allowed is torch.int64")
        classes, seen = set(range(num_classes)), set(labels.tolist())
        if unknown := seen - classes:
            raise ValueError(f"labels: got {min(unknown)}, allowed are 0 to {num_classes - 1}")
        if missing := classes - seen:
            raise ValueError(f"labels: got no sample of class {min(missing)}, allowed is one or more of each class")
        sums = features.new_zeros(num_classes, width, dtype=torch.float64).index_add_(0, labels, features.double())
        self.weight.copy_(sums / labels.bincount(minlength=num_classes)[:, None])

    def forward(self, features: Tensor) -> Tensor:
        # As in a cosine head, bf16 would be too coarse.
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.weight.dtype)
            if self.metric == "cosine":
                return F.linear(F.normalize(features), F.normalize(self.weight))
            return -torch.cdist(features, self.weight, compute_mode="donot_use_mm_for_euclid_dist")


def _weight_of(previous: nn.Module) -> Tensor:
    """The weights ``[C, D]`` of a head, without their history."""
    weight = getattr(previous, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ValueError(f"previous: got {type(previous).__name__}, allowed is a head with a weight [C, D]")
    return weight.detach()

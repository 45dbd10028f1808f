"""Key point sensitive loss and gradient adjustment (chapter 6; thesis, chapter 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltnotes.counts import check_counts
from ltnotes.methods.common import Loss, angle, is_target
from ltnotes.options import choice, number, of_type


def angle_penalty(cosines: Tensor, radius: Tensor, margin: Tensor) -> Tensor:
    """``cos(r_j theta_j + m_y [j = y])`` (thesis Eq. 3.20 with plain cosines outside), ``[B, C]``.

    Beyond pi the cosine would rise again, and the loss would reward a wider angle. There
    it goes on falling as in large-margin softmax (Liu et al. 2016): ``phi`` between
    ``k pi`` and ``(k + 1) pi`` gives ``(-1)**k cos(phi) - 2 k``, smooth where the pieces meet.
    At cosines of 1 and -1, where the angle's derivative is infinite, the gradient vanishes.

    Args:
        cosines: ``[B, C]``.
        radius: ``[C]``.
        margin: ``[B, C]``, in radians, 0 but for the target.
    """
    phi = radius * angle(cosines) + margin
    k = (phi / math.pi).floor()
    return (1 - 2 * (k % 2)) * phi.cos() - 2 * k


PENALTIES = ("cosine", "angle")

# How the radii, which grow with the count, become margins and scales, which fall with it.
REVERSALS: dict[str, Callable[[Tensor], Tensor]] = {
    "values": lambda radius: radius.max() + 1 - radius,
    "list": lambda radius: radius.flip(0),
}


class KPSLoss(Loss):
    """Cross-entropy on ``s * (r_j cos(theta_j) - m_y [j = y])`` (thesis Eq. 3.16).

    Takes plain cosines. The radius ``r_j`` grows with a class's count, so that a sample
    close to two class anchors, a *key point*, sees a wider margin; the margin ``m_j``
    falls with the count. At evaluation the plain cosines decide.

    With gradient adjustment every logit of a sample is scaled by the ``s_y`` of its own
    class (Eq. 3.26), which is larger for rarer classes (Eq. 3.30). The thesis switches
    it on after some iterations that it does not number (Algorithm 3.1); its released
    code does so at 0.6 of the training.

    The thesis also puts radius and margin on the angle (Eqs. 3.19 and 3.20), without
    values and without a result. An angle falls where its cosine rises: the radii of
    Eq. 3.27 would there pull the *frequent* classes tight, against the purpose. So the
    angle is multiplied by the reversed radii of Eq. 3.28, the largest for the rarest class.

    Args:
        n_base: keeps the smallest radius away from zero (Eq. 3.27); above 1.
        max_margin: the margin of the rarest class (Eq. 3.29): 0.5 for CIFAR, 0.35 for
            ImageNet-LT, 0.3 for iNaturalist, 0.2 in the released script for CIFAR. In
            radians on the angle.
        base_scale: ``s`` without gradient adjustment, and the ``s_y`` of the largest class with it.
        gradient_adjustment: scale each sample by its class.
        adjust_from: progress of the stage at which the adjustment begins.
        penalty: one of ``PENALTIES``: radius and margin on the cosine, or on the angle.
        reversal: one of ``REVERSALS``: margins and scales follow ``r_max + 1 - r_j`` (Eq.
            3.28), or, as in the released code, the list of radii read backwards. The two
            are the same only for classes that are sorted by size and exactly geometric.
        max_scale: the largest ``s_y``, no limit if None. The released code has 50, which
            a ``base_scale`` of 15 reaches only above an imbalance ratio of 9,200.

    Attributes:
        radius, margin, scale: ``[C]`` buffers, Eqs. 3.27 (on the angle 3.28), 3.29 and 3.30.
        scale_in_force: ``[C]`` buffer: ``base_scale``, or ``scale`` once the adjustment is on.

    Raises:
        ValueError: bad counts, or an option outside its range.
    """

    capturable = True
    radius: Tensor
    margin: Tensor
    scale: Tensor
    scale_in_force: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        n_base: float = 50,
        max_margin: float = 0.5,
        base_scale: float = 15.0,
        gradient_adjustment: bool = False,
        adjust_from: float = 0.0,
        penalty: str = "cosine",
        reversal: str = "values",
        max_scale: float | None = None,
    ):
        super().__init__()
        counts = torch.tensor(check_counts(class_counts), dtype=torch.float64)
        n_base, max_margin = number("n_base", n_base, above=1, most=1e300), number("max_margin", max_margin, least=0)
        base_scale = number("base_scale", base_scale, above=0)
        adjust_from = number("adjust_from", adjust_from, least=0, most=1)
        max_scale = None if max_scale is None else number("max_scale", max_scale, least=base_scale)
        of_type("gradient_adjustment", gradient_adjustment, bool)
        for name, value in (("adjust_from", adjust_from), ("max_scale", max_scale)):
            if value and not gradient_adjustment:
                raise ValueError(f"{name}: got {value} without gradient_adjustment, where it has no effect")
        self.num_classes, self.penalty = len(counts), choice("penalty", penalty, PENALTIES)
        self.base_scale = self.evaluation_scale = base_scale
        self.gradient_adjustment, self.adjust_from = gradient_adjustment, adjust_from
        radius = (counts * n_base / counts.min()).log()
        radius = radius / radius.min()
        reversed_radius = REVERSALS[choice("reversal", reversal, REVERSALS)](radius)  # m' of Eq. 3.28
        self.register_buffer("radius", reversed_radius if penalty == "angle" else radius)
        self.register_buffer("margin", reversed_radius * (max_margin / reversed_radius.max()))
        self.register_buffer(
            "scale", (base_scale * reversed_radius).clamp(max=math.inf if max_scale is None else max_scale)
        )
        self.register_buffer("scale_in_force", torch.empty_like(self.scale), persistent=False)
        self.set_progress(0.0)

    def set_progress(self, t: float) -> None:
        """Switch the gradient adjustment on from ``adjust_from`` on: in place, so that a captured step sees it."""
        t = number("t", t, least=0, most=1)
        adjusting = self.gradient_adjustment and t >= self.adjust_from
        self.scale_in_force.copy_(self.scale if adjusting else torch.full_like(self.scale, self.base_scale))

    def per_sample(self, logits: Tensor, targets: Tensor, features: Tensor | None) -> Tensor:
        radius, margin, scale = (buffer.to(logits.dtype) for buffer in (self.radius, self.margin, self.scale_in_force))
        margin = margin * is_target(logits, targets)
        on_angle = self.penalty == "angle"
        modified = angle_penalty(logits, radius, margin) if on_angle else radius * logits - margin
        return F.cross_entropy(scale[targets, None] * modified, targets, reduction="none")

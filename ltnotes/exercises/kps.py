"""Exercises of chapter 6: margins from counts, and the loss with radius, margin and adjusted scale."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ltnotes.exercises import COUNTS, in_order
from ltnotes.exercises.engine import Case, Exercise
from ltnotes.methods.kps import KPSLoss

# --- kps_margins -----------------------------------------------------------------


def _all_counts() -> list[Case]:
    return [
        {"counts": counts, "n_base": n_base, "max_margin": max_margin}
        for counts in COUNTS
        for n_base, max_margin in ((50, 0.5), (10, 0.2))
    ]


def _margins(counts: list[int], n_base: float, max_margin: float) -> Tensor:
    return KPSLoss(counts, n_base, max_margin).margin


def _radii(counts: list[int], n_base: float) -> Tensor:
    n = torch.tensor(counts, dtype=torch.float64)
    radius = (n * n_base / n.min()).log()
    return radius / radius.min()


def _to_maximum(values: Tensor, max_margin: float) -> Tensor:
    return values * max_margin / values.max()


def _turned(radius: Tensor, one: float = 1.0) -> Tensor:
    return radius.max() + one - radius


def _logs(counts: list[int], n_base: float, divide: bool) -> Tensor:
    """Radii where one of the two divisions of Eq. 3.27 is left out."""
    n = torch.tensor(counts, dtype=torch.float64)
    if not divide:
        return (n * n_base / n.min()).log()
    radius = (n * n_base).log()
    return radius / radius.min()


kps_margins = Exercise(
    "kps_margins(counts, n_base, max_margin) returns a margin for each class, float64, [C]",
    reference=_margins,
    cases=_all_counts,
    rtol=1e-9,
    mistakes={
        "the list of radii read backwards, as in the released code. That is the reversal only where classes are"
        " sorted and exactly geometric: use r_max + 1 - r_j": lambda counts, n_base, max_margin: _to_maximum(
            _radii(counts, n_base).flip(0), max_margin
        ),
        "margins that grow with the class: these are the radii. Turn them round by Eq. 3.28": (
            lambda counts, n_base, max_margin: _to_maximum(_radii(counts, n_base), max_margin)
        ),
        "m' of Eq. 3.28 as it stands: bring its largest value to max_margin (Eq. 3.29)": (
            lambda counts, n_base, max_margin: _turned(_radii(counts, n_base))
        ),
        "m' multiplied by max_margin, and not divided by its largest value (Eq. 3.29)": (
            lambda counts, n_base, max_margin: _turned(_radii(counts, n_base)) * max_margin
        ),
        "the logarithms are not divided by the smallest of them (Eq. 3.27)": lambda counts, n_base, max_margin: (
            _to_maximum(_turned(_logs(counts, n_base, divide=False)), max_margin)
        ),
        "n_min missing: the smallest class counts as n_base images (Eq. 3.27)": lambda counts, n_base, max_margin: (
            _to_maximum(_turned(_logs(counts, n_base, divide=True)), max_margin)
        ),
        "the 1 of Eq. 3.28 missing: the largest class is left without a margin": lambda counts, n_base, max_margin: (
            _to_maximum(_turned(_radii(counts, n_base), 0.0), max_margin)
        ),
        "LDAM's margins, n**(-1/4). Those of KPS fall with log n": lambda counts, n_base, max_margin: _to_maximum(
            torch.tensor(counts, dtype=torch.float64) ** -0.25, max_margin
        ),
        "classes taken to be sorted by size. Number j of the answer belongs to counts[j], in whatever order they"
        " are": lambda counts, n_base, max_margin: _margins(in_order(counts), n_base, max_margin),
    },
)

# --- kps_loss --------------------------------------------------------------------


def _batches() -> list[Case]:
    """Cosines of both signs, classes in no order of size, and scales that differ."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for batch, counts in ((2, (500, 5000, 50)), (32, (20, 7, 300, 3000, 90)), (7, (5, 5, 2, 900))):
        loss = KPSLoss(counts, gradient_adjustment=True)
        cosines = 2 * torch.rand(batch, len(counts), generator=generator, dtype=torch.float64) - 1
        targets = torch.randint(len(counts), (batch,), generator=generator)
        targets[: min(batch, len(counts))] = torch.arange(len(counts))[:batch]
        cases.append({"cosines": cosines, "targets": targets})
        cases[-1] |= {"radius": loss.radius, "margin": loss.margin, "scale": loss.scale}
    return cases


def _own(cosines: Tensor, targets: Tensor) -> Tensor:
    return F.one_hot(targets, cosines.shape[1]).to(cosines.dtype)


def _loss(cosines: Tensor, targets: Tensor, radius: Tensor, margin: Tensor, scale: Tensor) -> Tensor:
    score = radius * cosines - margin * _own(cosines, targets)
    return F.cross_entropy(scale[targets, None] * score, targets)


kps_loss = Exercise(
    "kps_loss(cosines, targets, radius, margin, scale): cosines [B, C], targets [B], the others [C]; returns the mean",
    reference=_loss,
    cases=_batches,
    rtol=1e-9,
    mistakes={
        "every class scaled by its own s_j. The whole row of a sample is scaled by the s_y of its own class": (
            lambda c, y, radius, margin, scale: F.cross_entropy(scale * (radius * c - margin * _own(c, y)), y)
        ),
        "the margin taken off every class. Only the sample's own class is hindered": (
            lambda c, y, radius, margin, scale: F.cross_entropy(scale[y, None] * (radius * c - margin), y)
        ),
        "the margin added, which helps the sample's own class. It is taken off": (
            lambda c, y, radius, margin, scale: _loss(c, y, radius, -margin, scale)
        ),
        "the margin missing": lambda c, y, radius, margin, scale: _loss(c, y, radius, 0 * margin, scale),
        "the radius missing": lambda c, y, radius, margin, scale: _loss(c, y, torch.ones_like(radius), margin, scale),
        "the radius on the sample's own class alone. Every cosine has the radius of its class": (
            lambda c, y, radius, margin, scale: _loss(
                c * torch.where(_own(c, y) > 0, radius, 1.0), y, torch.ones_like(radius), margin, scale
            )
        ),
        "the margin not scaled: it belongs inside the bracket that s_y multiplies": (
            lambda c, y, radius, margin, scale: _loss(c, y, radius, margin / scale, scale)
        ),
        "the margin multiplied by the radius: it comes off after that": (
            lambda c, y, radius, margin, scale: _loss(c, y, radius, radius * margin, scale)
        ),
        "the scale as a weight of the loss, with scores that are not scaled": lambda c, y, radius, margin, scale: (
            scale[y] * F.cross_entropy(radius * c - margin * _own(c, y), y, reduction="none")
        ).mean(),
        "the sum over the batch, where its mean is asked for": lambda c, y, radius, margin, scale: (
            len(y) * _loss(c, y, radius, margin, scale)
        ),
    },
)

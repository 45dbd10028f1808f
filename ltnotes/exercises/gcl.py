"""The exercises of chapter 8: clouded scores, and class-based effective number sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from ltnotes.exercises import COUNTS, in_order
from ltnotes.exercises.engine import Case, Exercise
from ltnotes.methods import gcl

SORTED = "classes taken to be sorted by size. Number j of counts belongs to class j, in whatever order they are"

# --- clouded_logits --------------------------------------------------------------


def _cosines() -> list[Case]:
    """Cosines and normal noise of deviation 1/2, so that a part of it is clamped, for every set of counts."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for counts, batch, scale in zip(COUNTS, (2, 5, 8, 4), (30.0, 20.0, 30.0, 16.0), strict=False):
        shape = batch, len(counts)
        cosines = 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1
        noise = 0.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)
        noise[0, : len(counts) // 2 + 1] = torch.linspace(-1.8, 1.4, len(counts) // 2 + 1, dtype=torch.float64)
        cases.append({"cosines": cosines, "noise": noise, "counts": counts, "scale": scale})
    return cases


def _spans(counts: list[int]) -> Tensor:
    """How far the logarithm of each count lies below that of the largest."""
    log_n = torch.tensor(counts, dtype=torch.float64).log()
    return log_n.max() - log_n


def _clouded(cosines: Tensor, noise: Tensor, size: Tensor, scale: float) -> Tensor:
    return scale * (cosines - size * noise.abs().clamp(max=1))


def _right(cosines: Tensor, noise: Tensor, counts: list[int], scale: float) -> Tensor:
    return _clouded(cosines, noise, gcl.cloud_sizes(counts), scale)


def _linear_sizes(counts: list[int]) -> Tensor:
    n = torch.tensor(counts, dtype=torch.float64)
    span = n.max() - n.min()
    return (n.max() - n) / (span if span > 0 else 1.0)


clouded_logits = Exercise(
    "clouded_logits(cosines, noise, counts, scale): cosines and noise [B, C], counts a list; returns [B, C]",
    reference=_right,
    cases=_cosines,
    atol=1e-9,
    entry=lambda index, **case: f"image {index[0]}, class {index[1]}",
    mistakes={
        "the noise with its sign, so that half of it raises a score. GCL takes |noise| off": (
            lambda cosines, noise, counts, scale: (
                scale * (cosines - gcl.cloud_sizes(counts) * noise.clamp(min=-1, max=1))
            )
        ),
        "the cloud is added: it has to be taken off, so that small classes find it harder": (
            lambda cosines, noise, counts, scale: scale * (cosines + gcl.cloud_sizes(counts) * noise.abs().clamp(max=1))
        ),
        "the noise is not clamped: no draw may be more than 1": lambda cosines, noise, counts, scale: (
            scale * (cosines - gcl.cloud_sizes(counts) * noise.abs())
        ),
        "the sizes are not divided by their maximum: the smallest class has the size 1": (
            lambda cosines, noise, counts, scale: _clouded(cosines, noise, _spans(counts), scale)
        ),
        "the scale is on the cosine alone: it multiplies the cloud as well": (
            lambda cosines, noise, counts, scale: scale * cosines - gcl.cloud_sizes(counts) * noise.abs().clamp(max=1)
        ),
        "the scale is missing": lambda cosines, noise, counts, scale: _right(cosines, noise, counts, 1.0),
        "turned round: the largest class has the largest cloud": lambda cosines, noise, counts, scale: _clouded(
            cosines, noise, 1 - gcl.cloud_sizes(counts), scale
        ),
        "the logarithm missing: sizes by n_max - n_j": lambda cosines, noise, counts, scale: _clouded(
            cosines, noise, _linear_sizes(counts), scale
        ),
        "one draw for all classes of an image, the first": lambda cosines, noise, counts, scale: _right(
            cosines, noise[:, :1].expand_as(noise), counts, scale
        ),
        "the same cloud for every class: its size is missing": lambda cosines, noise, counts, scale: _clouded(
            cosines, noise, torch.ones(len(counts), dtype=torch.float64), scale
        ),
        SORTED: lambda cosines, noise, counts, scale: _right(cosines, noise, in_order(counts), scale),
        "equal counts give 0/0. Then no class has a cloud, and all sizes are 0": (
            lambda cosines, noise, counts, scale: _clouded(cosines, noise, _spans(counts) / _spans(counts).max(), scale)
        ),
    },
)

# --- cben --------------------------------------------------------------------------


def _ranges() -> list[Case]:
    return [{"counts": counts, "a": a, "b": b} for counts in COUNTS for a, b in ((0.999, 0.0009), (0.9, 0.09))]


def _omega(counts: list[int], beta: Tensor | float) -> Tensor:
    n = torch.tensor(counts, dtype=torch.float64)
    return (1 - beta) / (1 - beta**n)


def _betas(counts: list[int], a: float, b: float) -> Tensor:
    return a + b * gcl.cloud_sizes(counts)


def _drawn(counts: list[int], beta: Tensor | float) -> Tensor:
    return _shares(_omega(counts, beta) * torch.tensor(counts, dtype=torch.float64))


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum()


cben = Exercise(
    "cben(counts, a, b) returns class probabilities, float64, [C]",
    reference=gcl.cben,
    cases=_ranges,
    rtol=1e-9,
    mistakes={
        "the weight of one sample taken for the probability of its class, as Eq. 5.14 is printed. A class has n"
        " samples: multiply by n before normalising": lambda counts, a, b: _shares(
            _omega(counts, _betas(counts, a, b))
        ),
        "not normalised: the probabilities have to sum to 1": lambda counts, a, b: (
            _omega(counts, _betas(counts, a, b)) * torch.tensor(counts, dtype=torch.float64)
        ),
        "beta turned round: it is a for the largest class and a + b for the smallest": lambda counts, a, b: _drawn(
            counts, a + b - b * gcl.cloud_sizes(counts)
        ),
        "one beta for all classes, a: that is the effective number as it was": lambda counts, a, b: _drawn(counts, a),
        "one beta for all classes, a + b": lambda counts, a, b: _drawn(counts, a + b),
        "the effective number upside down: a sample's weight is one over it": lambda counts, a, b: _shares(
            torch.tensor(counts, dtype=torch.float64) / _omega(counts, _betas(counts, a, b))
        ),
        "the logarithm missing in the sizes: beta follows log(n_max) - log(n_j)": lambda counts, a, b: _drawn(
            counts, a + b * _linear_sizes(counts)
        ),
        "beta without its exponent n: all images are equally likely": lambda counts, a, b: _shares(
            torch.tensor(counts, dtype=torch.float64)
        ),
        "equal counts give 0/0 in the sizes. Then every beta is a": lambda counts, a, b: _drawn(
            counts, a + b * _spans(counts) / _spans(counts).max()
        ),
        SORTED: lambda counts, a, b: gcl.cben(in_order(counts), a, b),
    },
)

"""The exercise of chapter 3: the squashing cosine."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ltnotes.exercises.engine import Case, Exercise


def _heads() -> list[Case]:
    """Features whose lengths differ, one of them zero, and class weights whose lengths differ more."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for batch, width, classes, alpha, beta in ((2, 3, 4, 20.0, 0.5), (16, 8, 5, 16.0, 1.0), (5, 5, 5, 3.0, 4.0)):
        features = torch.randn(batch, width, generator=generator, dtype=torch.float64)
        features *= torch.linspace(0.2, 3, batch, dtype=torch.float64)[:, None]
        weight = torch.randn(classes, width, generator=generator, dtype=torch.float64)
        weight *= torch.arange(1, classes + 1, dtype=torch.float64)[:, None]
        cases.append({"features": features, "weight": weight, "alpha": alpha, "beta": beta})
    return cases


def _cosines(features: Tensor, weight: Tensor) -> Tensor:
    return F.normalize(features) @ F.normalize(weight).T


def _lengths(features: Tensor) -> Tensor:
    return features.norm(dim=1, keepdim=True)


def _squashed(features: Tensor, weight: Tensor, alpha: float, beta: float) -> Tensor:
    r = _lengths(features)
    return alpha * r / (beta + r) * _cosines(features, weight)


squashing_cosine = Exercise(
    "squashing_cosine(features, weight, alpha, beta): features [B, D], weight [C, D]; returns scores [B, C]",
    reference=_squashed,
    cases=_heads,
    atol=1e-9,
    mistakes={
        "the class weights keep their lengths. Divide each row of weight by its own": lambda f, w, alpha, beta: (
            alpha / (beta + _lengths(f)) * (f @ w.T)
        ),
        "a plain cosine head with the scale alpha: the length of the features is missing": lambda f, w, alpha, beta: (
            alpha * _cosines(f, w)
        ),
        "the length of the features comes in twice: the scale multiplies the cosine, which is free of"
        " it": lambda f, w, alpha, beta: _squashed(f, w, alpha, beta) * _lengths(f),
        "alpha missing": lambda f, w, alpha, beta: _squashed(f, w, 1.0, beta),
        "beta in the place of alpha, and alpha in that of beta": lambda f, w, alpha, beta: _squashed(f, w, beta, alpha),
        "the square of the length, r**2 / (beta + r**2), as in capsule networks": lambda f, w, alpha, beta: (
            alpha * _lengths(f) ** 2 / (beta + _lengths(f) ** 2) * _cosines(f, w)
        ),
        "one length for the whole batch: take the norm of each image's features, dim=1": lambda f, w, alpha, beta: (
            alpha * f.norm() / (beta + f.norm()) * _cosines(f, w)
        ),
    },
)

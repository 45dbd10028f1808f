"""The exercises of chapter 7: feature-balanced logits, and the pull of the stimulus on the length of features."""

from __future__ import annotations

import torch
from torch import Tensor

from ltnotes.exercises import COUNTS, in_order
from ltnotes.exercises.engine import Case, Exercise


def _stimulus(counts: list[int]) -> Tensor:
    n = torch.tensor(counts, dtype=torch.float64)
    return n.max().log() - n.log()


def _lengths(features: Tensor) -> Tensor:
    return features.norm(dim=1, keepdim=True)


def _features(batch: int, width: int, generator: torch.Generator) -> Tensor:
    """Features whose lengths differ by a factor of five."""
    features = torch.randn(batch, width, generator=generator, dtype=torch.float64)
    return features * torch.linspace(0.8, 4, batch, dtype=torch.float64)[:, None]


# --- balanced_logits -----------------------------------------------------------


def _scored() -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    cases = []
    for counts, batch, width, chi in zip(COUNTS, (2, 3, 4, 5), (2, 4, 8, 16), (1.5, 4.0, 13.0, 30.0), strict=True):
        logits = torch.randn(batch, len(counts), generator=generator, dtype=torch.float64)
        features = _features(batch, width, generator)
        cases.append({"logits": logits, "features": features, "counts": counts, "chi": chi})
    return cases


def _balanced(logits: Tensor, features: Tensor, counts: list[int], chi: float) -> Tensor:
    return logits - chi * _stimulus(counts) / _lengths(features)


balanced_logits = Exercise(
    "balanced_logits(logits, features, counts, chi): logits [B, C], features [B, D], counts a list of C ints,"
    " chi a number; returns [B, C]",
    reference=_balanced,
    cases=_scored,
    atol=1e-9,
    entry=lambda index, **case: f"image {index[0]}, class {index[1]}",
    mistakes={
        "added, where the stimulus is subtracted: in training a small class has to pay": lambda z, f, n, chi: (
            z + chi * _stimulus(n) / _lengths(f)
        ),
        "log n_j in the place of log n_max - log n_j: the largest class pays most": lambda z, f, n, chi: (
            z - chi * torch.tensor(n, dtype=torch.float64).log() / _lengths(f)
        ),
        "the logarithm is missing: n_max - n_j": lambda z, f, n, chi: (
            z - chi * (max(n) - torch.tensor(n, dtype=torch.float64)) / _lengths(f)
        ),
        "class 0 is taken for the largest class, class 1 for the next": lambda z, f, n, chi: _balanced(
            z, f, in_order(n), chi
        ),
        "one length for the whole batch: take the norm of each image's features, dim=1": lambda z, f, n, chi: (
            z - chi * _stimulus(n) / f.norm()
        ),
        "the square of the length": lambda z, f, n, chi: z - chi * _stimulus(n) / _lengths(f) ** 2,
        "multiplied by the length, where it divides: longer features would cost more": lambda z, f, n, chi: (
            z - chi * _stimulus(n) * _lengths(f)
        ),
        "the length is missing. This is logit adjustment with tau = chi": lambda z, f, n, chi: z - chi * _stimulus(n),
        "divided by the largest stimulus, as the released code does. Eq. 4.4 does not": lambda z, f, n, chi: (
            z - chi * _stimulus(n) / _stimulus(n).max().clamp_min(1e-12) / _lengths(f)
        ),
    },
)

# --- radial_pull -----------------------------------------------------------------


def _in_training() -> list[Case]:
    generator = torch.Generator().manual_seed(1)
    cases = []
    for counts, batch, width, chi in zip(COUNTS, (2, 3, 6, 9), (2, 4, 8, 16), (1.5, 4.0, 5.0, 8.0), strict=True):
        cases.append(
            {
                "logits": 2 * torch.randn(batch, len(counts), generator=generator, dtype=torch.float64),
                "targets": torch.randint(len(counts), (batch,), generator=generator),
                "features": _features(batch, width, generator),
                "counts": counts,
                "chi": chi,
            }
        )
    return cases


def _pull(z: Tensor, y: Tensor, f: Tensor, counts: list[int], chi: float) -> Tensor:
    return _radial(z, y, f, _stimulus(counts), chi)


def _radial(
    z: Tensor, y: Tensor, f: Tensor, xi: Tensor, chi: float, power: int = 2, mean: Tensor | None = None
) -> Tensor:
    r = _lengths(f)
    mean = (z - chi * xi / r).softmax(1) @ xi if mean is None else mean
    return chi / r[:, 0] ** power * (xi[y] - mean)


def _own_term(z: Tensor, y: Tensor, f: Tensor, counts: list[int], chi: float) -> Tensor:
    r, xi = _lengths(f), _stimulus(counts)
    p = (z - chi * xi / r).softmax(1).gather(1, y[:, None])[:, 0]
    return chi / r[:, 0] ** 2 * (1 - p) * xi[y]


radial_pull = Exercise(
    "radial_pull(logits, targets, features, counts, chi): logits [B, C], targets [B], features [B, D],"
    " counts a list of C ints, chi a number; returns [B]",
    reference=_pull,
    cases=_in_training,
    atol=1e-9,
    entry=lambda index, **case: f"image {index[0]}",
    mistakes={
        "the probabilities of the plain logits. In training those of the balanced logits"
        " count": lambda z, y, f, n, chi: _radial(z, y, f, _stimulus(n), chi, mean=z.softmax(1) @ _stimulus(n)),
        "the sign of the gradient. A step goes against it": lambda *case: -_pull(*case),
        "the mean stimulus is missing: this is the penalty of Eq. 4.3, which shortens"
        " nothing": lambda z, y, f, n, chi: _radial(z, y, f, _stimulus(n), chi, mean=torch.zeros(())),
        "the plain mean of the stimulus, where it is weighted by the probabilities": lambda z, y, f, n, chi: _radial(
            z, y, f, _stimulus(n), chi, mean=_stimulus(n).mean()
        ),
        "only the term of the own class: every class's probability has a part in it": _own_term,
        "divided by the length, where its square is asked for": lambda z, y, f, n, chi: _radial(
            z, y, f, _stimulus(n), chi, power=1
        ),
        "divided by the third power of the length. The gradient of 1/r is f over r**3, and f is r"
        " long": lambda z, y, f, n, chi: _radial(z, y, f, _stimulus(n), chi, power=3),
        "chi is missing in front. It is not only in the probabilities": lambda z, y, f, n, chi: (
            _pull(z, y, f, n, chi) / chi
        ),
        "class 0 is taken for the largest class, class 1 for the next": lambda z, y, f, n, chi: _pull(
            z, y, f, in_order(n), chi
        ),
    },
)

"""The exercises of chapter 10: the sum of the corrections, and class frequencies estimated without labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ltnotes.exercises import COUNTS, in_order
from ltnotes.exercises.engine import Case, Exercise
from ltnotes.methods import label_shift

Number = Tensor | float

# --- the prior that a head decides with ---------------------------------------------------


def _corrections() -> list[Case]:
    """A sampler, a weight and an adjustment, none of them neutral, for every set of counts."""
    gammas, powers, taus = (0.5, 0.5, 0.9, 0.25), (0.25, 0.5, 0.5, 1.0), (1.5, 1.5, 0.5, 0.5)
    cases = []
    for counts, gamma, power, tau in zip(COUNTS, gammas, powers, taus, strict=True):
        n = torch.tensor(counts, dtype=torch.float64)
        cases.append({"counts": counts, "p": _shares(n ** (1 - gamma)), "w": n**-power, "tau": tau})
    return cases


def _shares(values: Tensor) -> Tensor:
    return values / values.sum()


def _pi(counts: list[int]) -> Tensor:
    return _shares(torch.tensor(counts, dtype=torch.float64))


def _prior(counts: list[int], p: Number, w: Number, tau: float) -> Tensor:
    return _shares(p * w / _pi(counts) ** tau)


head_prior = Exercise(
    "head_prior(counts, p, w, tau): p and w are tensors [C]; returns class frequencies, [C], of sum 1",
    reference=_prior,
    cases=_corrections,
    rtol=1e-8,
    mistakes={
        "tau log pi added to the prior. The loss adds it to the scores, so the scores themselves have it taken off": (
            lambda counts, p, w, tau: _shares(p * w * _pi(counts) ** tau)
        ),
        "the sampler is missing: the prior begins with p, how often a class is drawn": (
            lambda counts, p, w, tau: _prior(counts, 1.0, w, tau)
        ),
        "the training frequencies in the place of the sampler's. The sampler decides what is seen": (
            lambda counts, p, w, tau: _prior(counts, _pi(counts), w, tau)
        ),
        "the training frequencies and the sampler's: the second are seen, and the first are not": (
            lambda counts, p, w, tau: _prior(counts, p * _pi(counts), w, tau)
        ),
        "the weights are missing": lambda counts, p, w, tau: _prior(counts, p, 1.0, tau),
        "the weights upside down: an image of weight 2 counts like two images": (
            lambda counts, p, w, tau: _prior(counts, p, 1 / w, tau)
        ),
        "the adjustment is missing": lambda counts, p, w, tau: _prior(counts, p, w, 0.0),
        "tau = 1, whatever tau is": lambda counts, p, w, tau: _prior(counts, p, w, 1.0),
        "priors added: their logarithms add, so they multiply": lambda counts, p, w, tau: _shares(
            p + _shares(w) + _shares(_pi(counts) ** -tau)
        ),
        "not normalised: frequencies sum to 1": lambda counts, p, w, tau: p * w / _pi(counts) ** tau,
        "the logarithm of the frequencies. Take the exponential, and normalise": (
            lambda counts, p, w, tau: _prior(counts, p, w, tau).log()
        ),
        "classes taken to be sorted by size. Number j of counts belongs to class j, in whatever order they are": (
            lambda counts, p, w, tau: _prior(in_order(counts), p, w, tau)
        ),
    },
)

# --- frequencies without labels -------------------------------------------------------------


def _posteriors() -> list[Case]:
    """Posteriors of some images for every set of counts."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for counts, images, steps in zip(COUNTS, (4, 12, 40, 60), (3, 5, 10, 4), strict=True):
        scores = 2 * torch.randn(images, len(counts), generator=generator, dtype=torch.float64)
        prior = _pi(counts)
        cases.append({"posterior": (scores + prior.log()).softmax(1), "prior": prior, "steps": steps})
    return cases


def _iterated(update: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Frequencies that begin at the prior, through so many updates of (posterior, prior, frequencies)."""

    def estimate(posterior: Tensor, prior: Tensor, steps: int) -> Tensor:
        q = prior
        for _ in range(steps):
            q = update(posterior, prior, q)
        return q

    return estimate


def _rows(weights: Tensor) -> Tensor:
    return weights / weights.sum(1, keepdim=True)


def _reference(posterior: Tensor, prior: Tensor, steps: int) -> Tensor:
    return torch.from_numpy(label_shift.estimate_by_em(posterior.numpy(), prior.numpy(), steps))


def _compounded(posterior: Tensor, prior: Tensor, steps: int) -> Tensor:
    q = prior
    for _ in range(steps):
        posterior = _rows(posterior * q / prior)
        q = posterior.mean(0)
    return q


def _counted(posterior: Tensor) -> Tensor:
    return torch.bincount(posterior.argmax(1), minlength=posterior.shape[1]) / len(posterior)


estimate_frequencies = Exercise(
    "estimate_frequencies(posterior, prior, steps): posterior [N, C], prior [C]; returns class frequencies [C]",
    reference=_reference,
    cases=_posteriors,
    rtol=1e-8,
    mistakes={
        "not divided by the prior: the posterior holds it already": _iterated(
            lambda posterior, prior, q: _rows(posterior * q).mean(0)
        ),
        "the rows are not normalised after they were weighted: each image is one image, and its row has to sum to 1": (
            _iterated(lambda posterior, prior, q: _shares((posterior * q / prior).mean(0)))
        ),
        "weighted and never normalised": _iterated(lambda posterior, prior, q: (posterior * q / prior).mean(0)),
        "the mean posterior: that is the first of the steps": lambda posterior, prior, steps: posterior.mean(0),
        "the answers counted: an image that is cat by 60 % is 0.6 of a cat": (
            lambda posterior, prior, steps: _counted(posterior)
        ),
        "the answers of each step counted, in the place of their posteriors": _iterated(
            lambda posterior, prior, q: _counted(posterior * q / prior).to(q.dtype)
        ),
        "the posterior of the last step is weighted again. Each step begins with the network's own": _compounded,
        "the sum over the images: frequencies are its mean": lambda posterior, prior, steps: (
            len(posterior) * _reference(posterior, prior, steps)
        ),
        "one step too few": lambda posterior, prior, steps: _reference(posterior, prior, steps - 1),
        "one step too many": lambda posterior, prior, steps: _reference(posterior, prior, steps + 1),
        "upside down: the weight of a class is its new frequency over the prior": _iterated(
            lambda posterior, prior, q: _rows(posterior * prior / q).mean(0)
        ),
    },
)

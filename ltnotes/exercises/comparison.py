"""The exercises of chapter 9: components of variance, and how many trainings a difference needs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from ltnotes import comparison
from ltnotes.exercises.engine import Case, Exercise

# --- components of variance ---------------------------------------------------------------


def _layouts() -> list[Case]:
    """Results in percent, with more subsets than seeds and the other way round; one without any effect of the seed."""
    rng = np.random.default_rng(0)
    cases: list[Case] = []
    for a, b, subset, seed in ((3, 3, 1.0, 0.5), (5, 3, 2.0, 0.3), (2, 6, 0.4, 1.5), (4, 4, 1.0, 0.0)):
        y = 50 + subset * rng.normal(size=(a, 1)) + seed * rng.normal(size=(1, b)) + 0.3 * rng.normal(size=(a, b))
        cases.append({"y": y.round(2)})
    # Seeds that agree more than chance: their component is estimated below 0.
    cases.append({"y": np.array([[50.0, 51.0, 49.0], [53.0, 51.5, 54.0], [47.5, 48.0, 47.0]])})
    return cases


def _parts(y: np.ndarray, ddof: int = 1) -> tuple[np.ndarray, np.ndarray, float]:
    a, b = y.shape
    rest = np.sum((y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()) ** 2)
    return y.mean(1).var(ddof=ddof), y.mean(0).var(ddof=ddof), rest / ((a - ddof) * (b - ddof))


def _floored(subset: float, seed: float, rest: float) -> tuple[float, float, float]:
    return max(0.0, float(subset)), max(0.0, float(seed)), float(rest)


def _plain(y: np.ndarray) -> tuple[float, float, float]:
    subset, seed, rest = _parts(y)
    return _floored(subset, seed, rest)


def _not_floored(y: np.ndarray) -> tuple[float, float, float]:
    subset, seed, rest = _parts(y)
    return float(subset - rest / y.shape[1]), float(seed - rest / y.shape[0]), float(rest)


def _wrong_number(y: np.ndarray) -> tuple[float, float, float]:
    subset, seed, rest = _parts(y)
    return _floored(subset - rest / y.shape[0], seed - rest / y.shape[1], rest)


def _of_all(y: np.ndarray) -> tuple[float, float, float]:
    subset, seed, _ = _parts(y)
    rest = y.var(ddof=1)
    return _floored(subset - rest / y.shape[1], seed - rest / y.shape[0], rest)


def _biased(y: np.ndarray) -> tuple[float, float, float]:
    subset, seed, rest = _parts(y, ddof=0)
    return _floored(subset - rest / y.shape[1], seed - rest / y.shape[0], rest)


def _all_observations(y: np.ndarray) -> tuple[float, float, float]:
    subset, seed, rest = _parts(y)
    a, b = y.shape
    rest *= (a - 1) * (b - 1) / (a * b - 1)
    return _floored(subset - rest / b, seed - rest / a, rest)


variance_components = Exercise(
    "variance_components(y): results [subsets, seeds]; returns the variances (subset, seed, rest)",
    reference=lambda y: tuple(comparison.variance_components(y)),
    cases=_layouts,
    rtol=1e-9,
    mistakes={
        "the variances of the means themselves: a mean over seeds still has its share of the rest in it": _plain,
        "negative: a variance that is estimated below 0 is 0": _not_floored,
        "the rest divided by the number of the wrong factor: a subset's mean is over the seeds": _wrong_number,
        "the variance of all results in the place of the rest. Take the effects of row and column off first": _of_all,
        "divided by the number of means. A variance of a few values has one degree of freedom less: ddof=1": _biased,
        "the rest divided by the number of results less 1. Row and column means use degrees of freedom, too:"
        " (a - 1)(b - 1) are left": _all_observations,
        "rows and columns exchanged: row i is subset i": lambda y: tuple(comparison.variance_components(y.T)),
        "standard deviations: square them": lambda y: tuple(map(math.sqrt, comparison.variance_components(y))),
    },
)

# --- how many trainings -----------------------------------------------------------------------


def _plans() -> list[Case]:
    settings = ((0.8, 1.0, 0.8), (0.35, 0.5, 0.8), (0.35, 1.5, 0.95), (1.7, 1.0, 0.9))
    return [{"std": std, "difference": difference, "power": power} for std, difference, power in settings]


def _first(seen: Callable[[int], float], power: float) -> int:
    """The first number from 2 on with which a difference is seen as often as this."""
    n = 2
    while seen(n) < power:
        n += 1
    return n


def _t_test(std: float, difference: float, power: float, quantile: float = 0.975, lost: int = 1) -> int:
    def seen(n: int) -> float:
        df = n - lost
        return stats.nct.sf(stats.t.ppf(quantile, df), df, difference * math.sqrt(n) / std)

    return _first(seen, power)


trainings_needed = Exercise(
    "trainings_needed(std, difference, power): returns a whole number, 2 or more, for a two-sided test at 5 %",
    reference=comparison.trainings_needed,
    cases=_plans,
    rtol=0,
    mistakes={
        "the quantile of the normal distribution. With few values the spread is not known well either: take"
        " Student's": lambda std, difference, power: _first(
            lambda n: stats.norm.sf(stats.norm.ppf(0.975) - difference * math.sqrt(n) / std), power
        ),
        "one-sided: before the study either method may be the better one, so 2.5 % lie on each side": (
            lambda std, difference, power: _t_test(std, difference, power, quantile=0.95)
        ),
        "the power is missing: with these trainings the difference is seen in half of the studies only": (
            lambda std, difference, power: _t_test(std, difference, 0.5)
        ),
        "std and difference exchanged: more spread needs more trainings": (
            lambda std, difference, power: _t_test(difference, std, power)
        ),
        "n degrees of freedom: the mean is estimated, so n - 1 are left": (
            lambda std, difference, power: _t_test(std, difference, power, lost=0)
        ),
        "a central distribution, moved by the difference. The quotient of a mean and its estimated error has the"
        " noncentral one": lambda std, difference, power: _first(
            lambda n: stats.t.sf(stats.t.ppf(0.975, n - 1) - difference * math.sqrt(n) / std, n - 1), power
        ),
        "one too many: n itself is enough if its power reaches what is asked for": (
            lambda std, difference, power: _t_test(std, difference, power) + 1
        ),
    },
)

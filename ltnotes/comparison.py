"""How far a table of results can be trusted: components of variance, intervals, and trainings needed (chapter 9).

Formulas are those of the two-way layout with random effects and one observation in each
cell (Searle, Casella and McCulloch, "Variance Components", 1992), and of Student's t-test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from ltnotes.options import number, require


class Components(NamedTuple):
    """Variances of one result, in the square of its unit."""

    subset: float
    seed: float
    rest: float

    @property
    def total(self) -> float:
        return sum(self)


def variance_components(results: Sequence[Sequence[float]] | np.ndarray) -> Components:
    """What the subset of images, the seed, and both together add to the variance of a result.

    Args:
        results: ``[subsets, seeds]``, one result of a training for each pair; two or more of each.

    A component whose estimate is below 0 is 0.

    Raises:
        ValueError: another shape, or a result that is not finite.
    """
    y = np.asarray(results, dtype=float)
    require(y.ndim == 2 and min(y.shape) > 1, "results", y.shape, "[subsets, seeds] with two or more of each")
    require(bool(np.isfinite(y).all()), "results", y.tolist(), "finite numbers")
    a, b = y.shape
    of_subset, of_seed = y.mean(1, keepdims=True), y.mean(0, keepdims=True)
    rest = np.sum((y - of_subset - of_seed + y.mean()) ** 2) / ((a - 1) * (b - 1))
    subset = (b * np.var(of_subset, ddof=1) - rest) / b
    seed = (a * np.var(of_seed, ddof=1) - rest) / a
    return Components(max(0.0, float(subset)), max(0.0, float(seed)), float(rest))


def interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's interval for the mean of independent values, two or more of them."""
    values = np.asarray(values, dtype=float).ravel()
    require(len(values) > 1, "values", len(values), "two or more")
    width = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - width), float(values.mean() + width)


def trainings_needed(std: float, difference: float, power: float = 0.8, level: float = 0.05) -> int:
    """How many values a two-sided t-test at this level needs, to see a true mean of ``difference`` with this power.

    Args:
        std: standard deviation of one value; of one difference, if pairs are compared.
        difference: in the unit of ``std``, above 0.

    Returns:
        At least two.

    Raises:
        ValueError: a number outside its range.
    """
    number("std", std, least=0)
    number("difference", difference, above=0)
    number("power", power, above=0, below=1)
    number("level", level, above=0, below=1)
    if std == 0:
        return 2
    quantiles = stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)  # a t-test needs more, never fewer
    n = max(2, math.floor((quantiles * std / difference) ** 2))
    while stats.nct.sf(stats.t.ppf(1 - level / 2, n - 1), n - 1, difference * math.sqrt(n) / std) < power:
        n += 1
    return n

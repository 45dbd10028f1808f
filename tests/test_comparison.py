"""Components of variance and intervals, against what they are defined by."""

import math

import numpy as np
import pytest
from scipy import stats

from ltnotes import comparison


def drawn(subset, seed, rest, shape, layouts=4000):
    rng = np.random.default_rng(0)
    a, b = shape
    effects = subset * rng.normal(size=(layouts, a, 1)) + seed * rng.normal(size=(layouts, 1, b))
    return effects + rest * rng.normal(size=(layouts, a, b))


@pytest.mark.parametrize("shape", [(3, 3), (5, 2)])
def test_components_are_right_in_the_mean(shape):
    """Where none is near 0, so that hardly an estimate is cut off there."""
    found = np.mean([comparison.variance_components(y) for y in drawn(2.0, 3.0, 0.5, shape)], axis=0)
    np.testing.assert_allclose(found, [4.0, 9.0, 0.25], rtol=0.1)


def test_a_component_is_never_negative():
    found = np.array([comparison.variance_components(y) for y in drawn(0, 0, 1, (3, 3), 200)])
    assert (found >= 0).all() and (found[:, :2] == 0).any(axis=0).all()


def test_intervals_cover_as_often_as_they_say():
    values = np.random.default_rng(0).normal(1.0, 2.0, size=(4000, 5))
    inside = [low <= 1.0 <= high for low, high in map(comparison.interval, values)]
    assert 0.94 < np.mean(inside) < 0.96


@pytest.mark.parametrize("std, difference", [(0.8, 1.0), (1.7, 0.6), (0.3, 1.0)])
def test_so_many_trainings_see_the_difference_as_often_as_asked(std, difference):
    n = comparison.trainings_needed(std, difference)
    values = np.random.default_rng(0).normal(difference, std, (20_000, n))
    found = stats.ttest_1samp(values, 0, axis=1).pvalue < 0.05
    fewer = stats.ttest_1samp(values[:, :-1], 0, axis=1).pvalue < 0.05 if n > 2 else np.zeros(1)
    assert found.mean() > 0.79 and fewer.mean() < 0.81


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: comparison.variance_components([[1.0, 2.0]]),
            r"^results: got \(1, 2\), allowed is \[subsets, seeds\]",
        ),
        (lambda: comparison.variance_components([[1.0, 2.0], [3.0, math.nan]]), "^results: .* allowed is finite"),
        (lambda: comparison.interval([1.0]), "^values: got 1, allowed is two or more"),
        (lambda: comparison.trainings_needed(-1.0, 1.0), "^std: got -1"),
        (lambda: comparison.trainings_needed(1.0, 0.0), "^difference: got 0"),
        (lambda: comparison.trainings_needed(1.0, 1.0, power=1.0), "^power: got 1"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

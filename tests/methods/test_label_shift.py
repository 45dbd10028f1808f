"""Decisions and estimates for other class frequencies, on a problem whose posteriors are known."""

import numpy as np
import pytest
from scipy.special import softmax

from ltnotes.methods.label_shift import adjust_to, estimate_by_confusion, estimate_by_em

PRIOR = np.array([0.7, 0.1, 0.2])
OTHER = np.array([0.1, 0.6, 0.3])
CENTRES = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])


def drawn(frequencies, size=20_000, seed=0):
    """Points of three normal classes with these frequencies, their labels, and exact scores under ``PRIOR``."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size, p=frequencies)
    points = CENTRES[labels] + rng.normal(size=(size, 2))
    log_densities = -((points[:, None] - CENTRES) ** 2).sum(2) / 2
    return log_densities + np.log(PRIOR), labels


def test_adjusted_scores_are_the_posteriors_of_the_other_frequencies():
    logits, _ = drawn(PRIOR, 100)
    expected = softmax(logits - np.log(PRIOR) + np.log(OTHER), 1)
    assert np.allclose(softmax(adjust_to(logits, 700 * PRIOR, OTHER), 1), expected)  # counts will do


@pytest.mark.parametrize("frequencies", [PRIOR, OTHER, np.ones(3) / 3])
def test_no_decision_is_right_more_often_than_the_adjusted_one(frequencies):
    logits, labels = drawn(frequencies)
    best = (adjust_to(logits, PRIOR, frequencies).argmax(1) == labels).mean()
    for other in ([1, 1, 1], PRIOR, OTHER):
        assert (adjust_to(logits, PRIOR, other).argmax(1) == labels).mean() <= best + 0.003


def test_a_class_that_is_not_there_is_never_answered():
    logits, _ = drawn(PRIOR, 1000)
    assert 0 not in adjust_to(logits, PRIOR, [0, 1, 1]).argmax(1)


def test_half_the_adjustment_goes_half_the_way():
    logits, _ = drawn(PRIOR, 10)
    half = adjust_to(logits, PRIOR, OTHER, tau=0.5)
    assert np.allclose(half, (logits + adjust_to(logits, PRIOR, OTHER)) / 2)


@pytest.mark.parametrize("frequencies", [PRIOR, OTHER, np.array([0.02, 0.49, 0.49])])
def test_frequencies_are_found_without_labels(frequencies):
    logits, labels = drawn(frequencies)
    there = np.bincount(labels) / len(labels)
    by_em = estimate_by_em(softmax(logits, 1), PRIOR)
    known, known_labels = drawn(PRIOR, seed=1)
    confusion = np.zeros((3, 3))
    np.add.at(confusion, (known_labels, known.argmax(1)), 1)
    by_confusion = estimate_by_confusion(confusion, logits.argmax(1))
    for found in (by_em, by_confusion):
        assert found.sum() == pytest.approx(1) and (found >= 0).all()
        assert np.abs(found - there).max() < 0.02
    counted = np.bincount(logits.argmax(1), minlength=3) / len(labels)
    if frequencies is not PRIOR:  # counting the answers is no estimate: they follow the prior
        assert np.abs(counted - there).max() > 0.05


def test_each_step_of_em_makes_the_images_more_likely():
    logits, _ = drawn(OTHER, 500)
    posterior = softmax(logits, 1)
    likelihoods = [np.log((posterior / PRIOR) @ estimate_by_em(posterior, PRIOR, steps)).sum() for steps in range(1, 8)]
    assert (np.diff(likelihoods) > 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adjust_to(np.zeros((2, 3)), [1, 0, 1], [1, 1, 1]), "prior: got"),
        (lambda: adjust_to(np.zeros((2, 3)), [1, 1, 1], [1, 1]), "frequencies: got"),
        (lambda: adjust_to(np.zeros((2, 3)), [1, 1, 1], [1, -1, 1]), "frequencies: got"),
        (lambda: adjust_to(np.zeros(3), [1, 1, 1], [1, 1, 1]), "prior: got"),
        (lambda: adjust_to(np.zeros((2, 3)), [1, 1, 1], [1, 1, 1], tau="1"), "tau: got '1'"),
        (lambda: estimate_by_em(np.ones((2, 3)) / 3, [0, 1, 1]), "prior: got"),
        (lambda: estimate_by_em(np.ones((2, 3)) / 3, [1, 1, 1], steps=0), "steps: got 0"),
        (lambda: estimate_by_confusion(np.eye(3)[:2], np.zeros(4, int)), "confusion: got"),
        (lambda: estimate_by_confusion(np.diag([1, 0, 1]), np.zeros(4, int)), "confusion: got"),
        (lambda: estimate_by_confusion(np.eye(3), np.zeros(0, int)), "answers: got"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()

"""Decisions for a test set whose classes have other frequencies: known ones, or estimated without labels.

Label shift: images of a class look alike in training and test, and only the class
frequencies differ. Then a posterior changes by the ratio of the frequencies alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from ltnotes.options import number, require, whole

Frequencies = Sequence[float] | np.ndarray


def adjust_to(logits: np.ndarray, prior: Frequencies, frequencies: Frequencies, tau: float = 1.0) -> np.ndarray:
    """Logits for other class frequencies, ``z_j - tau log prior_j + tau log q_j`` (Saerens et al. 2002, Eq. 2.4).

    Args:
        logits: ``[N, C]``, of a network that decides with ``prior``.
        prior: class frequencies that it was trained for, ``[C]``, above 0; class counts will do.
        frequencies: q, those of the test set, ``[C]``; where one is 0, the class is never answered.

    Raises:
        ValueError: shapes that do not fit, or numbers below 0 where there may be none.
    """
    prior, wanted = _shares("prior", prior, logits), _shares("frequencies", frequencies, logits)
    require((prior > 0).all(), "prior", prior, "frequencies above 0")
    with np.errstate(divide="ignore"):  # log 0 is what it should be
        return np.asarray(logits) + number("tau", tau) * (np.log(wanted) - np.log(prior))


def estimate_by_em(probabilities: np.ndarray, prior: Frequencies, steps: int = 200) -> np.ndarray:
    """The class frequencies of images without labels, by expectation maximisation (Saerens et al. 2002).

    Finds the frequencies under which the images are most likely. It trusts the
    probabilities: those of an overconfident network come out too even or too uneven.

    Args:
        probabilities: ``[N, C]``, of a network that decides with ``prior``.
        prior: class frequencies that it was trained for, ``[C]``, above 0.
        steps: of the iteration.

    Returns:
        ``[C]``, of sum 1.

    Raises:
        ValueError: shapes that do not fit, or a prior with a class at 0.
    """
    prior = _shares("prior", prior, probabilities)
    require((prior > 0).all(), "prior", prior, "frequencies above 0")
    frequencies = prior
    for _ in range(whole("steps", steps, least=1)):
        posterior = probabilities * (frequencies / prior)
        posterior = posterior / posterior.sum(1, keepdims=True)
        frequencies = posterior.mean(0)
    return frequencies


def estimate_by_confusion(confusion: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """The class frequencies of images without labels, from what a classifier confuses (Lipton et al. 2018).

    Of images of class j a share ``confusion[j, k]`` is called k, on any test set. So the
    shares of the answers are a mixture of its rows, and the frequencies are the weights of
    that mixture, found by least squares over weights of 0 and more.

    Args:
        confusion: ``[C, C]``, with a row of counts for each true class, measured on labelled images.
        answers: predicted class ids ``[N]`` of the images without labels.

    Returns:
        ``[C]``, of sum 1.

    Raises:
        ValueError: a class without labelled images, or no answers.
    """
    confusion = np.asarray(confusion, float)
    square = confusion.ndim == 2 and confusion.shape[0] == confusion.shape[1]
    require(square and (confusion.sum(1) > 0).all(), "confusion", confusion, "[C, C], with an image of each class")
    require(len(answers) > 0, "answers", answers, "one and more")
    answered = np.bincount(answers, minlength=len(confusion)) / len(answers)
    weights, _ = nnls((confusion / confusion.sum(1, keepdims=True)).T, answered)
    return weights / weights.sum()


def _shares(name: str, values: Frequencies, scores: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    fits = np.ndim(scores) == 2 and values.shape == np.shape(scores)[1:]
    require(fits and (values >= 0).all() and values.sum() > 0, name, values, "a number of 0 and more for each class")
    return values / values.sum()

"""Exercises of chapter 1: the metrics that see a long tail, its counts, and the adjustment of logits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ltnotes import counts as class_counts
from ltnotes import metrics
from ltnotes.exercises import COUNTS, in_order
from ltnotes.exercises.engine import Case, Exercise
from ltnotes.methods.baselines import LogitAdjustedLoss

# --- metrics from a confusion matrix --------------------------------------------


def _metric(name: str) -> Callable[[np.ndarray], float]:
    """The package's metric, from a confusion matrix: as many certain predictions as the matrix has images."""

    def metric(confusion: np.ndarray) -> float:
        classes = np.arange(len(confusion))
        labels = np.repeat(classes, confusion.sum(1))
        predictions = np.concatenate([np.repeat(classes, row) for row in confusion])
        certain = np.eye(len(confusion))[predictions]
        return metrics.summarize(certain, labels, [1] * len(confusion))[name]

    return metric


def _confusions() -> list[Case]:
    """Matrices in which every class has test images and is predicted at least once."""
    rng = np.random.default_rng(0)
    cases = [{"confusion": np.array([[3, 1, 0], [1, 8, 1], [0, 0, 1]])}]
    for counts in COUNTS[1:]:
        scattered = rng.multinomial(counts, rng.dirichlet(np.ones(len(counts)), len(counts)))
        cases.append({"confusion": scattered + np.eye(len(counts), dtype=int)})
    return cases


def _never_predicted() -> list[Case]:
    return [{"confusion": np.array([[3, 1, 0], [2, 8, 0], [0, 1, 0]])}, *_confusions()]


def _recall(confusion: np.ndarray) -> np.ndarray:
    return metrics.per_class_accuracy(confusion)


def _precision(confusion: np.ndarray) -> np.ndarray:
    return np.nan_to_num(metrics.per_class_accuracy(confusion.T))


def _f1(confusion: np.ndarray) -> np.ndarray:
    """NaN for a class that is never found, as the plain formula has it."""
    precision, recall = metrics.per_class_accuracy(confusion.T), metrics.per_class_accuracy(confusion)
    return 2 * precision * recall / (precision + recall)


def _of_means(confusion: np.ndarray) -> float:
    precision, recall = _precision(confusion).mean(), _recall(confusion).mean()
    return 2 * precision * recall / (precision + recall)


def _accuracy(confusion: np.ndarray) -> float:
    return np.trace(confusion) / confusion.sum()


macro_f1 = Exercise(
    "macro_f1(confusion): confusion [C, C] has a row for each true class; returns one number",
    reference=_metric("macro_f1"),
    cases=_never_predicted,
    mistakes={
        "the mean recall, which is balanced accuracy. F1 also asks how much of what is called class j is"
        " class j: look at the columns, too": lambda confusion: _recall(confusion).mean(),
        "the mean precision. F1 also asks how much of class j is found: look at the rows, too": lambda confusion: (
            _precision(confusion).mean()
        ),
        "the micro F1, which is plain accuracy: hits were added over the classes before dividing. Divide"
        " within each class, then take the mean": _accuracy,
        "a mean over the classes that are predicted at all. One that is never predicted counts as 0, and is"
        " one of the C that the sum is divided by": lambda confusion: np.nanmean(_f1(confusion)),
        "0 / 0 for a class that is never predicted. Its F1 is 0 by convention: keep its denominator"
        " above 0": lambda confusion: _f1(confusion).mean(),
        "the F1 of mean precision and mean recall. F1 comes first, class by class, and the mean last": _of_means,
        "a mean weighted by the images of each class, in which the tail hardly counts. Every class has the"
        " weight 1 / C": lambda confusion: np.average(np.nan_to_num(_f1(confusion)), weights=confusion.sum(1)),
    },
)

balanced_accuracy = Exercise(
    "balanced_accuracy(confusion): confusion [C, C] has a row for each true class; returns one number",
    reference=_metric("balanced_accuracy"),
    cases=_confusions,
    mistakes={
        "plain accuracy, a mean over all images, in which the large classes decide. Divide within each class,"
        " then take the mean over the classes": _accuracy,
        "the mean precision: columns were taken for rows. A class's images are its row, so its hits are"
        " divided by the sum of the row": lambda confusion: _precision(confusion).mean(),
        "a sum over the classes. Divide it by their number": lambda confusion: _recall(confusion).sum(),
        "the G-mean, the geometric mean of the recalls. Here it is the arithmetic one": lambda confusion: (
            metrics.g_mean(_recall(confusion))
        ),
        "the mean error. Accuracy is the share that is right": lambda confusion: 1 - _recall(confusion).mean(),
    },
)

# --- counts ---------------------------------------------------------------------


def _tails() -> list[Case]:
    """Here ``1 / imbalance``, its powers and roots give the same whole numbers however they are written."""
    chosen = (100, 4, 20), (5000, 10, 100), (7, 5, 1), (128, 2, 128), (500, 100, 50), (1280, 1000, 256)
    return [dict(zip(("n_max", "num_classes", "imbalance"), values, strict=True)) for values in chosen]


def _falling(n_max: int, num_classes: int, imbalance: float, steps: int | None = None) -> np.ndarray:
    """The counts before they are rounded."""
    return n_max * imbalance ** (-np.arange(num_classes) / (steps or num_classes - 1))


def _linear(n_max: int, num_classes: int, imbalance: float) -> np.ndarray:
    return np.floor(n_max + (n_max / imbalance - n_max) * np.arange(num_classes) / (num_classes - 1))


exponential_counts = Exercise(
    "exponential_counts(n_max, num_classes, imbalance) returns num_classes whole numbers",
    reference=class_counts.exponential_counts,
    cases=_tails,
    rtol=0.0,
    mistakes={
        "j / C in the exponent. The last class is j = C - 1 and has n_max / imbalance images: divide by"
        " C - 1": lambda n_max, c, imbalance: np.floor(_falling(n_max, c, imbalance, steps=c)),
        "rounding to the nearest number. The literature rounds down, with int": lambda *case: _falling(*case).round(),
        "counts that are not rounded. A class has a whole number of images: int": _falling,
        "the ratio the wrong way up: the counts grow. It is (1 / imbalance) to the power": lambda n_max, c, imbalance: (
            np.floor(_falling(n_max, c, 1 / imbalance))
        ),
        "the smallest class first. Here class 0 is the largest": lambda *case: class_counts.exponential_counts(*case)[
            ::-1
        ],
        "a straight line from n_max to the smallest class. An exponential tail multiplies by the same factor"
        " from class to class": _linear,
    },
)

# --- logits ---------------------------------------------------------------------


def _scores() -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    cases = []
    for counts, rows, tau in zip((COUNTS[0], *COUNTS), (1, 2, 4, 8, 16), (1.0, 2.0, 0.5, 1.0, 1.5), strict=True):
        logits = 3 * torch.randn(rows, len(counts), generator=generator)
        cases.append({"logits": logits, "counts": counts, "tau": tau})
    return cases


def _centred(adjusted: Tensor, **case: object) -> Tensor:
    """Without what a row's logits share, which no softmax sees."""
    return adjusted - adjusted.mean(-1, keepdim=True)


def _log_prior(counts: list[int]) -> Tensor:
    return LogitAdjustedLoss(counts).log_prior


def _shifted(shift: Callable[[list[int], float], Tensor]) -> Callable[..., Tensor]:
    return lambda logits, counts, tau: _centred(logits + shift(counts, tau))


adjust = Exercise(
    "adjust(logits, counts, tau) returns adjusted logits in the shape of the logits, [N, C]",
    reference=_shifted(lambda counts, tau: -tau * _log_prior(counts)),
    cases=_scores,
    rtol=1e-5,
    atol=1e-5,
    observe=_centred,
    entry=lambda index, **case: f"row {index[0]}, class {index[1]}, less the mean of the row",
    mistakes={
        "the wrong sign: it favours the large classes once more. Taking the prior off means to subtract its"
        " logarithm": _shifted(lambda counts, tau: tau * _log_prior(counts)),
        "the logarithm missing. Logits are logarithms, so what is subtracted is tau * log(pi), where this"
        " subtracts tau * pi": _shifted(lambda counts, tau: -tau * _log_prior(counts).exp()),
        "classes taken to be sorted by size. Column j belongs to counts[j], in whatever order they are": _shifted(
            lambda counts, tau: -tau * _log_prior(in_order(counts))
        ),
        "tau without effect. It multiplies the logarithm: inside it, as log(tau * pi), it shifts all classes"
        " alike": _shifted(lambda counts, tau: -_log_prior(counts)),
        "logits divided by pi**tau. That is the rule for probabilities; for their logarithms it is a"
        " subtraction": lambda logits, counts, tau: _centred(logits / (tau * _log_prior(counts)).exp()),
        "probabilities. Leave out the softmax: the adjusted logits are asked for": lambda logits, counts, tau: _centred(
            (logits - tau * _log_prior(counts)).softmax(1)
        ),
        "nothing adjusted: these are the logits as they came": _shifted(lambda counts, tau: torch.zeros(())),
    },
)

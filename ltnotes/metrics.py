"""What a test set says of a classifier, class by class.

The test sets are balanced, so plain accuracy and balanced accuracy agree there; both
are given, because your own test set need not be balanced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score

from ltnotes.counts import check_counts, rank_groups, shot_groups
from ltnotes.options import require, whole

CALIBRATION_BINS = 15
MOST_CONFUSION_CLASSES = 1000  # the matrix grows with their square, all else in a record with their number


def summarize(probabilities: np.ndarray, labels: np.ndarray, counts: Sequence[int]) -> dict[str, Any]:
    """Every metric of one evaluation, as plain numbers and lists that can be stored as JSON.

    Args:
        probabilities: ``[N, C]``, rows sum to 1.
        labels: ``[N]`` class ids.
        counts: training images per class, which define the groups.

    Returns:
        ``accuracy``, ``balanced_accuracy``, ``g_mean``, ``macro_f1`` and ``ece``, from 0
        to 1; ``per_class_accuracy``, a list of C; ``groups``, the mean per-class accuracy
        of many, medium, few (by images) and largest, middle, smallest (by rank), None
        for a group without classes; ``confusion``, C rows of true classes, None for more
        than ``MOST_CONFUSION_CLASSES``.

    Raises:
        ValueError: no images, shapes that do not fit, rows that are no probabilities, or a
            label that is no class.
    """
    counts = check_counts(counts, "counts")
    _check(probabilities, labels, len(counts))
    predictions, classes = probabilities.argmax(1), range(len(counts))
    hits, totals = (np.bincount(ids, minlength=len(counts)) for ids in (labels[predictions == labels], labels))
    recalls = _share(hits, totals)
    confusion = None
    if len(counts) <= MOST_CONFUSION_CLASSES:
        confusion = confusion_matrix(labels, predictions, labels=classes).tolist()
    return {
        "accuracy": float((predictions == labels).mean()),
        "balanced_accuracy": float(np.nanmean(recalls)),
        "g_mean": g_mean(recalls),
        "macro_f1": float(f1_score(labels, predictions, labels=classes, average="macro", zero_division=0)),
        "ece": expected_calibration_error(probabilities, labels),
        "per_class_accuracy": recalls.tolist(),
        "groups": group_accuracy(recalls, counts),
        "confusion": confusion,
    }


def _check(probabilities: np.ndarray, labels: np.ndarray, classes: int) -> None:
    shape = np.shape(probabilities)
    fits = len(shape) == 2 and shape[1] == classes and np.shape(labels) == shape[:1] and shape[0] > 0
    require(fits, "probabilities, labels", (shape, np.shape(labels)), f"[N, {classes}] and [N]")
    ok = bool((np.asarray(probabilities) >= 0).all() and np.allclose(np.sum(probabilities, 1), 1, atol=1e-3))
    require(ok, "probabilities", "other numbers", "rows of probabilities, of sum 1")
    in_range = labels.dtype.kind in "iu" and 0 <= labels.min() <= labels.max() < classes
    require(in_range, "labels", labels, f"a class id from 0 to {classes - 1} for each")


def per_class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Recall of each class, ``[C]``, from a confusion matrix whose rows are true classes; NaN without test images."""
    return _share(np.diag(confusion), confusion.sum(1))


def _share(hits: np.ndarray, totals: np.ndarray) -> np.ndarray:
    return np.divide(hits, totals, out=np.full(len(totals), np.nan), where=totals > 0)


def group_accuracy(recalls: Sequence[float], counts: Sequence[int]) -> dict[str, float | None]:
    """Mean per-class accuracy of each shot group and each rank group; None for a group without test images."""
    recalls = np.asarray(recalls)
    groups = {**shot_groups(counts), **rank_groups(counts)}
    tested = {name: [recalls[c] for c in members if not np.isnan(recalls[c])] for name, members in groups.items()}
    return {name: float(np.mean(found)) if found else None for name, found in tested.items()}


def g_mean(recalls: Sequence[float]) -> float:
    """Geometric mean of the per-class accuracies: 0 as soon as one class is never found."""
    recalls = np.asarray(recalls)
    recalls = recalls[~np.isnan(recalls)]
    require(len(recalls) > 0 and ((recalls >= 0) & (recalls <= 1)).all(), "recalls", recalls, "numbers from 0 to 1")
    return float(np.exp(np.log(recalls).mean())) if (recalls > 0).all() else 0.0


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Mean distance between confidence and accuracy over equal-width bins of confidence (Guo et al. 2017)."""
    _check(probabilities, labels, np.shape(probabilities)[-1])
    bins = whole("bins", bins, least=1)
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    bin_ids = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    size = np.bincount(bin_ids, minlength=bins)
    gap = np.bincount(bin_ids, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / size.sum())

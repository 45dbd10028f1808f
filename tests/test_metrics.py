"""Metrics against scikit-learn, loops and numbers worked out by hand."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from ltnotes import metrics

CLASSES = 6
COUNTS = [500, 20, 101, 100, 1, 40]


@pytest.fixture
def evaluation():
    """Probabilities whose largest is right about half of the time, and unbalanced labels."""
    rng = np.random.default_rng(0)
    labels = rng.choice(CLASSES, size=300, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1])
    scores = rng.normal(size=(300, CLASSES)) + 1.5 * np.eye(CLASSES)[labels]
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return probabilities, labels


def test_summary_equals_scikit_learn(evaluation):
    probabilities, labels = evaluation
    predictions = probabilities.argmax(1)
    summary = metrics.summarize(probabilities, labels, COUNTS)
    assert summary["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    assert summary["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert summary["macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro"))
    assert summary["confusion"] == confusion_matrix(labels, predictions).tolist()


def test_per_class_accuracy_and_g_mean_equal_a_loop(evaluation):
    probabilities, labels = evaluation
    predictions = probabilities.argmax(1)
    recalls = [float((predictions[labels == c] == c).mean()) for c in range(CLASSES)]
    summary = metrics.summarize(probabilities, labels, COUNTS)
    assert summary["per_class_accuracy"] == pytest.approx(recalls)
    assert summary["g_mean"] == pytest.approx(math.prod(recalls) ** (1 / CLASSES))


def test_groups_are_means_over_their_classes(evaluation):
    probabilities, labels = evaluation
    summary = metrics.summarize(probabilities, labels, COUNTS)
    a = summary["per_class_accuracy"]
    assert summary["groups"] == pytest.approx(
        {
            "many": (a[0] + a[2]) / 2,
            "medium": (a[3] + a[5]) / 2,
            "few": (a[1] + a[4]) / 2,
            "largest": (a[0] + a[2]) / 2,
            "middle": (a[3] + a[5]) / 2,
            "smallest": (a[1] + a[4]) / 2,
        }
    )


def test_a_group_without_classes_is_none():
    groups = metrics.group_accuracy([1.0, 0.5, 0.0], [500, 400, 300])
    assert (groups["many"], groups["medium"], groups["few"]) == (0.5, None, None)


def test_a_summary_can_be_stored_as_json(evaluation):
    summary = metrics.summarize(*evaluation, COUNTS)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_g_mean_is_zero_as_soon_as_a_class_is_never_found():
    assert metrics.g_mean([0.9, 0.0, 1.0]) == 0.0
    assert metrics.g_mean([0.25, 1.0]) == pytest.approx(0.5)


def test_a_class_without_test_images_has_no_accuracy():
    recalls = metrics.per_class_accuracy(np.array([[3, 1], [0, 0]]))
    assert recalls[0] == 0.75
    assert math.isnan(recalls[1])
    assert metrics.g_mean(recalls) == pytest.approx(0.75)


def binary(confidences):
    return np.array([[c, 1 - c] for c in confidences])


def test_calibration_error_by_hand():
    # Two bins of (0.5, 0.75] and (0.75, 1]: accuracy 1/2 at 0.65, 2/3 at 0.9.
    probabilities, labels = binary([0.6, 0.7, 0.8, 0.9, 1.0]), np.array([0, 1, 0, 1, 0])
    expected = 2 / 5 * abs(1 / 2 - 0.65) + 3 / 5 * abs(2 / 3 - 0.9)
    assert metrics.expected_calibration_error(probabilities, labels, bins=4) == pytest.approx(expected)


def test_calibration_error_equals_a_loop(evaluation):
    probabilities, labels = evaluation
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert metrics.expected_calibration_error(probabilities, labels) == pytest.approx(expected)


@pytest.mark.parametrize(("labels", "error"), [([0, 0], 0.0), ([1, 1], 1.0)])
def test_certainty_is_perfectly_calibrated_or_not_at_all(labels, error):
    assert metrics.expected_calibration_error(binary([1.0, 1.0]), np.array(labels)) == error


def test_nothing_in_a_summary_grows_faster_than_the_classes():
    labels = np.arange(metrics.MOST_CONFUSION_CLASSES + 1)
    probabilities = np.eye(len(labels))
    summary = metrics.summarize(probabilities, labels, [5] * len(labels))
    assert summary["confusion"] is None
    assert summary["accuracy"] == summary["macro_f1"] == 1
    assert len(json.dumps(summary)) < 10 * len(labels)
    few = metrics.summarize(probabilities[1:, 1:], labels[1:] - 1, [5] * (len(labels) - 1))
    assert len(few["confusion"]) == len(few["confusion"][0]) == metrics.MOST_CONFUSION_CLASSES

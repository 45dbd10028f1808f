"""Class counts, groups, and the table of CIFAR-LT sizes."""

import numpy as np
import pytest
import torch

from ltnotes.counts import check_counts, exponential_counts, imbalance_ratio, rank_groups, shot_groups

RATIOS = (10, 20, 50, 100, 200)
CIFAR10_TOTALS = (20431, 17023, 13996, 12406, 11203)
CIFAR100_TOTALS = (19573, 15907, 12608, 10847, 9502)
BAD_COUNTS = {
    "zero": [3, 0, 2],
    "negative": [3, -1],
    "float": [3.0, 2.0],
    "fraction": [2.5, 1],
    "text": ["3", "2"],
    "empty": [],
    "none": None,
    "nested": [[3, 2]],
    "float array": np.array([3.0, 2.0]),
}


@pytest.mark.parametrize("counts", BAD_COUNTS.values(), ids=BAD_COUNTS)
@pytest.mark.parametrize("function", [check_counts, imbalance_ratio, shot_groups, rank_groups])
def test_bad_counts_are_refused_by_name(function, counts):
    with pytest.raises(ValueError, match=r"^(class_)?counts: got"):
        function(counts)


@pytest.mark.parametrize("counts", [[3, 1], (3, 1), np.array([3, 1]), torch.tensor([3, 1])])
def test_any_sequence_of_whole_numbers_is_taken(counts):
    checked = check_counts(counts)
    assert checked == [3, 1]
    assert all(type(n) is int for n in checked)


@pytest.mark.parametrize(("ratio", "total"), list(zip(RATIOS, CIFAR10_TOTALS, strict=True)))
def test_cifar10_totals_are_those_of_the_literature(ratio, total):
    counts = exponential_counts(5000, 10, ratio)
    assert (sum(counts), counts[0], counts[-1]) == (total, 5000, 5000 // ratio)


@pytest.mark.parametrize(("ratio", "total"), list(zip(RATIOS, CIFAR100_TOTALS, strict=True)))
def test_cifar100_totals_are_those_of_the_literature(ratio, total):
    counts = exponential_counts(500, 100, ratio)
    assert (sum(counts), counts[0], counts[-1]) == (total, 500, 500 // ratio)


def test_cifar100_at_200_is_really_250():
    assert imbalance_ratio(exponential_counts(500, 100, 200)) == 250


@pytest.mark.parametrize(("n_max", "classes", "ratio"), [(124, 10, 100), (1000, 7, 13.5), (20, 2, 4)])
def test_exponential_counts_equal_the_formula(n_max, classes, ratio):
    expected = [int(n_max * (1 / ratio) ** (j / (classes - 1))) for j in range(classes)]
    assert exponential_counts(n_max, classes, ratio) == expected


def test_a_ratio_of_one_is_balanced():
    assert exponential_counts(124, 10, 1) == [124] * 10


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 10, 10), "n_max"),
        ((100, 1, 10), "num_classes"),
        ((100, 10, 0.5), "imbalance"),
        ((100, 10, float("nan")), "imbalance"),
        ((100, 10, float("inf")), "imbalance"),
        ((100, 10, 101), "imbalance"),
    ],
)
def test_exponential_counts_refuse_by_name(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: got"):
        exponential_counts(*arguments)


def test_imbalance_ratio_in_any_order():
    assert imbalance_ratio([7, 70, 14]) == 10


def test_shot_groups_at_their_edges():
    assert shot_groups([20, 101, 21, 100, 1, 5000]) == {"many": [1, 5], "medium": [2, 3], "few": [0, 4]}


def test_shot_groups_follow_their_thresholds():
    assert shot_groups([5, 10, 11], many=10, few=5) == {"many": [2], "medium": [1], "few": [0]}


@pytest.mark.parametrize(("many", "few"), [(20, 20), (10, 20), (100, -1)])
def test_shot_groups_refuse_crossed_thresholds(many, few):
    with pytest.raises(ValueError, match=r"^few: got"):
        shot_groups([1, 2], many=many, few=few)


def test_rank_groups_of_ten_classes_hold_3_4_and_3_in_any_order():
    counts = [50, 5000, 83, 2997, 139, 1796, 232, 1077, 387, 645]
    assert rank_groups(counts) == {"largest": [1, 3, 5], "middle": [6, 7, 8, 9], "smallest": [0, 2, 4]}


@pytest.mark.parametrize("classes", range(2, 12))
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5])
def test_rank_groups_share_no_class_and_miss_none(classes, share):
    groups = rank_groups(range(1, classes + 1), share)
    assert sorted(class_id for group in groups.values() for class_id in group) == list(range(classes))
    assert len(groups["largest"]) == len(groups["smallest"]) >= 1


def test_rank_groups_break_ties_by_class_id():
    assert rank_groups([5, 5, 5, 5], share=0.25) == {"largest": [0], "middle": [1, 2], "smallest": [3]}


@pytest.mark.parametrize("share", [0, -0.1, 0.51, float("nan")])
def test_rank_groups_refuse_a_share_by_name(share):
    with pytest.raises(ValueError, match=r"^share: got"):
        rank_groups([1, 2], share)

"""Class counts: how many training images each class has.

Counts are any sequence of positive ints in class-id order. Nothing here, or anywhere
in this package, assumes that class 0 is the largest.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from ltnotes.options import number, whole


def check_counts(counts: Sequence[int], name: str = "class_counts") -> list[int]:
    """The counts as a list of Python ints.

    Raises:
        ValueError: empty, not whole numbers, or a count below 1.
    """
    try:
        checked = [operator.index(n) for n in counts]
    except TypeError:
        raise ValueError(f"{name}: got {counts!r}, allowed is a sequence of positive ints, one per class") from None
    if not checked:
        raise ValueError(f"{name}: got an empty sequence, allowed is one positive int per class")
    for class_id, n in enumerate(checked):
        if n < 1:
            raise ValueError(f"{name}: got {n} for class {class_id}, allowed are positive ints")
    return checked


def exponential_counts(n_max: int, num_classes: int, imbalance: float) -> list[int]:
    """Counts that fall exponentially from ``n_max`` to ``n_max / imbalance`` (Cui et al. 2019; thesis 2.2.1).

    ``n_j = int(n_max * (1 / imbalance) ** (j / (C - 1)))``, rounded down as in the
    literature, so that CIFAR-10-LT at a ratio of 100 has 12,406 images everywhere.

    Raises:
        ValueError: a ratio below 1, fewer than two classes, or a ratio that would
            leave the last class without images.
    """
    n_max, num_classes = whole("n_max", n_max, least=1), whole("num_classes", num_classes, least=2)
    imbalance = number("imbalance", imbalance, least=1)
    counts = [int(n_max * (1 / imbalance) ** (j / (num_classes - 1))) for j in range(num_classes)]
    if counts[-1] < 1:
        raise ValueError(
            f"imbalance: got {imbalance}, which leaves the smallest class without images;"
            f" allowed are ratios from 1 to about {n_max} for a largest class of {n_max}"
        )
    return counts


def imbalance_ratio(counts: Sequence[int]) -> float:
    """``rho = n_max / n_min``."""
    checked = check_counts(counts, "counts")
    return max(checked) / min(checked)


def shot_groups(counts: Sequence[int], many: int = 100, few: int = 20) -> dict[str, list[int]]:
    """Class ids by how many training images they have: many (> ``many``), few (<= ``few``), medium between.

    BLT and FSA put a class of exactly 20 images into different groups; here it is few-shot.

    Raises:
        ValueError: bad counts, or ``few`` not below ``many``.
    """
    checked = check_counts(counts, "counts")
    few = number("few", few, least=0, below=number("many", many))
    groups: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
    for class_id, n in enumerate(checked):
        groups["many" if n > many else "few" if n <= few else "medium"].append(class_id)
    return groups


def rank_groups(counts: Sequence[int], share: float = 0.3) -> dict[str, list[int]]:
    """Class ids by rank of size: the largest ``share`` of the classes, the smallest ``share``, and those between.

    Small data sets need it: in CIFAR-10-LT at a ratio of 100 no class has 20 images or
    fewer, so that shot groups say nothing. With ten classes the groups hold 3, 4 and 3.
    Ties are broken by class id.

    Raises:
        ValueError: bad counts, or a share outside (0, 0.5].
    """
    checked = check_counts(counts, "counts")
    share = number("share", share, above=0, most=0.5)
    by_size = sorted(range(len(checked)), key=lambda class_id: (-checked[class_id], class_id))
    k = max(1, min(round(share * len(checked)), len(checked) // 2))
    return {
        "largest": sorted(by_size[:k]),
        "middle": sorted(by_size[k : len(by_size) - k]),
        "smallest": sorted(by_size[len(by_size) - k :]),
    }

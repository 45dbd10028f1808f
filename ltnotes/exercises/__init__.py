"""The exercises that :mod:`ltnotes.check` answers, a file per chapter, and the counts that their cases share."""

from __future__ import annotations

from ltnotes.counts import exponential_counts

FEW = [3, 12, 1]  # not in order of size, and one image: short enough for a message
EQUAL = [40, 40, 40, 40]
UNEVEN = [50, 5000, 83, 2997, 1, 20]
MANY = [exponential_counts(500, 100, 100)[37 * j % 100] for j in range(100)]  # 37 and 100 share no factor
COUNTS = (FEW, EQUAL, UNEVEN, MANY)


def in_order(counts: list[int]) -> list[int]:
    """The counts as they would be if class 0 were the largest, class 1 the next, and so on."""
    return sorted(counts, reverse=True)

"""The points of the book's toy pictures: three classes in the plane, the same in every chapter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CENTRES = ((0.0, 0.0), (2.2, 0.3), (1.0, 1.9))
BALANCED = (200, 200, 200)
LONG_TAILED = (510, 75, 15)


def clouds(sizes: Sequence[int] = LONG_TAILED, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points ``[N, 2]`` of three round clouds of deviation 1, and their classes ``[N]``.

    With the same seed a smaller class holds the first points of a larger one, so that pictures
    with other sizes differ in nothing but these. Test points have a seed of their own.

    Raises:
        ValueError: not three sizes, or one below 1.
    """
    if len(sizes) != len(CENTRES) or min(sizes) < 1:
        raise ValueError(f"sizes: got {sizes}, allowed are three positive ints")
    points = [
        np.add(centre, np.random.default_rng([seed, class_id]).normal(size=(size, 2)))
        for class_id, (centre, size) in enumerate(zip(CENTRES, sizes, strict=True))
    ]
    return np.concatenate(points), np.repeat(range(len(sizes)), sizes)

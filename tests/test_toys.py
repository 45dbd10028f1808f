"""The points of the toy pictures are the same everywhere."""

import numpy as np
import pytest

from ltnotes import toys


def test_points_belong_to_the_clouds_and_come_in_the_order_of_classes():
    points, classes = toys.clouds((4000, 2000, 1000))
    assert points.shape == (7000, 2) and np.bincount(classes).tolist() == [4000, 2000, 1000]
    for class_id, centre in enumerate(toys.CENTRES):
        assert points[classes == class_id].mean(0) == pytest.approx(centre, abs=0.1)
        assert points[classes == class_id].std(0) == pytest.approx([1, 1], abs=0.1)


def test_a_long_tail_is_made_of_the_points_of_the_balanced_picture():
    (tailed, tail_classes), (balanced, balanced_classes) = toys.clouds(), toys.clouds(toys.BALANCED)
    for class_id in (1, 2):
        fewer, more = tailed[tail_classes == class_id], balanced[balanced_classes == class_id]
        assert (fewer == more[: len(fewer)]).all()


def test_test_points_are_others():
    assert not np.isin(toys.clouds(seed=1)[0], toys.clouds(seed=0)[0]).any()


@pytest.mark.parametrize("sizes", [(3, 2), (3, 2, 0), (1, 2, 3, 4)])
def test_other_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes"):
        toys.clouds(sizes)

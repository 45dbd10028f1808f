"""Figures show what they are given: the right numbers, in the right order, in the right colours."""

from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from ltnotes import metrics, plots, recipes

COUNTS = [20, 500, 3, 90, 7]
NAMES = ["cat", "dog", "owl", "fox", "elk"]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def run_with(recalls, ece=0.1):
    recalls = np.array(recalls)
    summary = {
        "balanced_accuracy": recalls.mean(),
        "g_mean": metrics.g_mean(recalls),
        "ece": ece,
        "groups": metrics.group_accuracy(recalls, COUNTS),
    }
    return SimpleNamespace(metrics=summary, per_class_accuracy=recalls.tolist(), counts=COUNTS)


def heights(ax):
    return [patch.get_height() for patch in ax.patches]


def tick_names(ax):
    return [label.get_text() for label in ax.get_xticklabels()]


def test_class_counts_are_drawn_from_the_largest_class_on():
    ax = plots.class_counts(COUNTS, NAMES)
    assert heights(ax) == [500, 90, 20, 7, 3]
    assert tick_names(ax) == ["dog", "fox", "cat", "elk", "owl"]


def test_colours_follow_the_rank_of_a_class_and_not_its_id():
    of_class = dict(zip(NAMES, plots.class_colors(COUNTS), strict=True))
    shuffled = [3, 7, 20, 90, 500]
    of_shuffled = dict(zip(["owl", "elk", "cat", "fox", "dog"], plots.class_colors(shuffled), strict=True))
    assert of_class == of_shuffled
    assert of_class["dog"] == plots.GROUP_COLORS["largest"] and of_class["owl"] == plots.GROUP_COLORS["smallest"]


def test_class_bars_keep_values_with_their_classes():
    ax = plots.class_bars([0.1, 0.9, 0.3, 0.5, 0.7], COUNTS, NAMES)
    assert dict(zip(tick_names(ax), heights(ax), strict=True)) == dict(
        zip(NAMES, [0.1, 0.9, 0.3, 0.5, 0.7], strict=True)
    )


def test_class_lines_draw_the_mean_over_seeds():
    ax = plots.class_lines({"ce": [run_with([0.0, 1, 0.2, 0.4, 0.6]), run_with([0.2, 1, 0.4, 0.6, 0.8])]}, NAMES)
    assert ax.lines[0].get_ydata() == pytest.approx([1, 0.5, 0.1, 0.7, 0.3])
    assert to_hex(ax.lines[0].get_color()) == plots.METHOD_COLORS["ce"].lower()


def test_group_bars_draw_means_and_standard_deviations():
    runs = [run_with([0.5, 0.9, 0.1, 0.5, 0.5]), run_with([0.5, 0.7, 0.3, 0.5, 0.5])]
    ax = plots.group_bars({"ce": runs, "power": runs})
    largest = [bar.get_height() for bar in ax.containers[1]]
    expected = np.mean([run.metrics["groups"]["largest"] for run in runs])
    assert largest == pytest.approx([expected, expected])


def test_the_table_gives_mean_and_spread_in_percent():
    runs = [run_with([0.6] * 5), run_with([0.4] * 5)]
    row = plots.results_table({"ce": runs}).loc["cross-entropy"]
    assert row["balanced accuracy"] == "50.0 ± 14.1" and row["seeds"] == "2" and row["ECE"] == "10.0 ± 0.0"


def test_a_single_seed_has_no_spread():
    assert plots.mean_and_spread([0.5]) == "50.0" and plots.spread([0.5]) == 0.0


def test_confusion_rows_are_percent_of_the_true_class_in_order_of_size():
    matrix = np.diag([4, 3, 2, 1, 0]) + np.eye(5, dtype=int)[::-1]
    ax = plots.confusion(matrix, COUNTS, NAMES)
    shown = ax.collections[0].get_array().reshape(5, 5)
    order = [1, 3, 0, 4, 2]
    share = 100 * matrix / matrix.sum(1, keepdims=True)
    assert np.allclose(shown, share[np.ix_(order, order)])


def test_image_grid_leaves_the_end_of_shorter_rows_blank():
    ax = plots.image_grid({"three": np.zeros((3, 4, 4, 3), np.uint8), "one": np.zeros((1, 4, 4, 3), np.uint8)})
    image = ax.images[0].get_array()
    assert image.shape == (12, 18, 3)
    assert (image[1:5, 1:5] == 0).all() and (image[6:, 6:] == 255).all()


def test_every_method_of_the_recipes_that_chapters_compare_has_one_name_and_colour():
    assert set(plots.METHOD_COLORS) == set(plots.METHOD_NAMES) <= set(recipes.names())
    assert len({color.lower() for color in plots.METHOD_COLORS.values()}) == len(plots.METHOD_COLORS)


def point_of(container):
    """Where an errorbar stands, and how far its whiskers reach in x and y."""
    (line,), reach = container.lines[0].get_xydata(), container.lines[2]
    across, up = (np.ptp(bar.get_segments()[0], axis=0).max() / 2 for bar in reach)
    return line, across, up


def test_the_plane_has_a_point_with_its_spread_for_each_method():
    runs = [run_with([0.5, 0.9, 0.1, 0.5, 0.5]), run_with([0.5, 0.7, 0.3, 0.5, 0.5])]
    ax = plots.head_tail_plane({"ce": runs, "by hand": (0.6, 0.4)})
    largest, smallest = ([run.metrics["groups"][g] for run in runs] for g in ("largest", "smallest"))
    at, across, up = point_of(ax.containers[0])
    assert at == pytest.approx([np.mean(largest), np.mean(smallest)])
    assert (across, up) == pytest.approx((np.std(largest, ddof=1), np.std(smallest, ddof=1)))
    assert point_of(ax.containers[1])[0] == pytest.approx([0.6, 0.4])
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names[0].startswith("cross-entropy: 50.0 ±") and names[1] == "by hand"


def test_earlier_methods_are_grey_and_the_others_have_their_colours():
    ax = plots.head_tail_plane({"ce": [run_with([0.5] * 5)], "power": [run_with([0.6] * 5)]}, earlier=["ce"])
    grey, coloured = (to_hex(container.lines[0].get_color()) for container in ax.containers)
    assert grey == to_hex("0.62") and coloured == plots.METHOD_COLORS["power"].lower()


def test_a_sweep_is_a_labelled_curve_in_the_colour_of_its_method():
    sweep = [0.9, 0.8, 0.7], [0.1, 0.3, 0.4], ["", "τ = 1", "τ = 2"]
    ax = plots.head_tail_plane({"ce": (0.9, 0.1)}, {"ce, logits adjusted": sweep})
    curve = ax.lines[0]
    assert np.allclose(curve.get_xydata(), np.transpose(sweep[:2]))
    assert to_hex(curve.get_color()) == plots.METHOD_COLORS["ce"].lower()
    assert curve.get_label() == "cross-entropy, logits adjusted"
    assert {"τ = 1", "τ = 2"} <= {text.get_text() for text in ax.texts}


@pytest.mark.parametrize("points", [{"a": (0.85, 0.17), "b": (0.6, 0.5)}, {"a": (0.0, 0.0)}, {"a": (1.0, 1.0)}])
def test_lines_of_equal_mean_stay_inside_and_points_too(points):
    ax = plots.head_tail_plane(points)
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    assert all(left < x < right and low < y < high for x, y in points.values())
    for line in ax.lines:
        if line.get_linestyle() == "--":
            x, y = line.get_xydata().T
            assert np.allclose(x + y, x[0] + y[0])
            assert (
                left - 1e-9 <= x.min() and x.max() <= right + 1e-9 and low - 1e-9 <= y.min() and y.max() <= high + 1e-9
            )

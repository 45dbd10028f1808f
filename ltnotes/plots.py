"""Every figure of the book. Functions take plain arrays or runs, draw on ``ax`` and return it.

One colour for each group of classes and one for each method, the same in every
chapter, and safe for colour-blind readers (Okabe and Ito's palette).
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from ltnotes.counts import rank_groups
from ltnotes.runs import Run

BLUE, ORANGE, VERMILION, GREEN, SKY, PURPLE, YELLOW, BLACK = (
    "#0072B2",
    "#E69F00",
    "#D55E00",
    "#009E73",
    "#56B4E9",
    "#CC79A7",
    "#F0E442",
    "#333333",
)
GROUP_COLORS = {
    **dict(zip(("many", "medium", "few"), (BLUE, ORANGE, VERMILION), strict=True)),
    **dict(zip(("largest", "middle", "smallest"), (BLUE, ORANGE, VERMILION), strict=True)),
}
METHOD_COLORS = {
    "ce": BLACK,
    "square-root": SKY,
    "power": GREEN,
    "class-balanced-sampling": PURPLE,
    "progressive": YELLOW,
    "effective-number-sampling": "#8C564B",
    "weighted": "#999999",
    "class-balanced": "#7570B3",
    "focal": "#A6761D",
    "mixup": "#66A61E",
}
METHOD_NAMES = {
    "ce": "cross-entropy",
    "square-root": "square-root sampling",
    "power": "power sampling, γ = 0.9",
    "class-balanced-sampling": "class-balanced sampling",
    "progressive": "progressive sampling",
    "effective-number-sampling": "effective-number sampling",
    "weighted": "weighted loss",
    "class-balanced": "effective-number weighted loss",
    "focal": "focal loss",
    "mixup": "mixup",
}
MARKERS = "osD^vP*X<>"
RANK_GROUPS = ("largest", "middle", "smallest")
MAX_NAMED_CLASSES = 20  # more names than that overlap on an axis

Runs = Sequence[Run]


def use_style() -> None:
    """The book's look; chapters call it once."""
    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.95)
    plt.rcParams.update(
        {
            "figure.figsize": (7.6, 3.8),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "legend.frameon": False,
            "grid.alpha": 0.4,
        }
    )


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots()[1] if ax is None else ax


def _percent(ax: Axes, top: float = 1.0) -> None:
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_ylim(0, top)


def class_colors(counts: Sequence[int]) -> list[str]:
    """The colour of each class's rank group, in class-id order."""
    group_of = {class_id: name for name, members in rank_groups(counts).items() for class_id in members}
    return [GROUP_COLORS[group_of[class_id]] for class_id in range(len(counts))]


def by_size(counts: Sequence[int]) -> np.ndarray:
    """Class ids from the largest class to the smallest."""
    return np.argsort(-np.asarray(counts), kind="stable")


def class_counts(counts: Sequence[int], class_names: Sequence[str], log: bool = False, ax: Axes | None = None) -> Axes:
    """Bars of training images per class, largest first, coloured by rank group."""
    ax, order = _axes(ax), by_size(counts)
    bars = ax.bar(range(len(order)), np.asarray(counts)[order], color=np.asarray(class_colors(counts))[order])
    if len(order) <= MAX_NAMED_CLASSES:
        ax.bar_label(bars, fontsize=8, padding=1)
    _name_classes(ax, order, class_names)
    ax.set_ylabel("training images")
    if log:
        ax.set_yscale("log")
    return ax


def _name_classes(ax: Axes, order: np.ndarray, class_names: Sequence[str]) -> None:
    ax.grid(False, axis="x")
    if len(order) <= MAX_NAMED_CLASSES:
        ax.set_xticks(range(len(order)), [class_names[i] for i in order], rotation=40, ha="right")
    else:
        ax.set_xlabel("class, by rank of size")


def group_legend(ax: Axes) -> None:
    """A legend of the rank groups' colours."""
    handles = [plt.Rectangle((0, 0), 1, 1, color=GROUP_COLORS[name]) for name in RANK_GROUPS]
    ax.legend(handles, [f"{name} classes" for name in RANK_GROUPS])


def class_bars(
    values: Sequence[float],
    counts: Sequence[int],
    class_names: Sequence[str],
    errors: Sequence[float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Bars of one share per class (accuracies, say), largest class first, coloured by rank group."""
    ax, order = _axes(ax), by_size(counts)
    ax.bar(
        range(len(order)),
        np.asarray(values)[order],
        yerr=None if errors is None else np.asarray(errors)[order],
        color=np.asarray(class_colors(counts))[order],
        capsize=3,
        error_kw={"elinewidth": 1},
    )
    _name_classes(ax, order, class_names)
    _percent(ax)
    return ax


def train_and_test(
    on_train: Sequence[float],
    on_test: Sequence[float],
    counts: Sequence[int],
    class_names: Sequence[str],
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Accuracy of each class on training images (hollow) and test images (filled), joined by the gap between them."""
    ax, order = _axes(ax), by_size(counts)
    x, colors = range(len(order)), np.asarray(class_colors(counts))[order]
    hollow, filled = np.asarray(on_train)[order], np.asarray(on_test)[order]
    ax.vlines(x, filled, hollow, color=colors, lw=2)
    ax.scatter(x, hollow, s=55, facecolor="white", edgecolor=colors, zorder=3)
    ax.scatter(x, filled, s=55, color=colors, zorder=3)
    _name_classes(ax, order, class_names)
    _percent(ax)
    ax.set(title=title, ylabel="accuracy", ylim=(-0.04, 1.04))
    dots = [plt.Line2D([], [], marker="o", ls="", mec=BLACK, mfc=face) for face in ("white", BLACK)]
    ax.legend(dots, ["training images", "test images"], fontsize=8)
    return ax


def class_lines(results: Mapping[str, Runs], class_names: Sequence[str], ax: Axes | None = None) -> Axes:
    """Per-class test accuracy of several methods, largest class first: mean over seeds, and its range."""
    ax = _axes(ax)
    order = by_size(next(iter(results.values()))[0].counts)
    for (name, runs), marker in zip(results.items(), MARKERS, strict=False):
        accuracy = np.array([run.per_class_accuracy for run in runs])[:, order]
        color = METHOD_COLORS.get(name)
        (line,) = ax.plot(accuracy.mean(0), marker=marker, ms=5, color=color, label=METHOD_NAMES.get(name, name))
        ax.fill_between(range(len(order)), accuracy.min(0), accuracy.max(0), color=line.get_color(), alpha=0.15, lw=0)
    _name_classes(ax, order, class_names)
    ax.set_ylabel("test accuracy")
    _percent(ax)
    ax.legend(fontsize=8)
    return ax


def group_bars(results: Mapping[str, Runs], ax: Axes | None = None) -> Axes:
    """Accuracy on the largest, middle and smallest classes, a cluster of bars per method; whiskers are one std."""
    ax = _axes(ax)
    width = 0.8 / len(RANK_GROUPS)
    for i, group in enumerate(RANK_GROUPS):
        values = [[run.metrics["groups"][group] for run in runs] for runs in results.values()]
        ax.bar(
            np.arange(len(values)) + (i - 1) * width,
            [np.mean(v) for v in values],
            width,
            yerr=[spread(v) for v in values],
            color=GROUP_COLORS[group],
            label=f"{group} classes",
            capsize=2,
            error_kw={"elinewidth": 1},
        )
    names = ["\n".join(textwrap.wrap(METHOD_NAMES.get(name, name), 14)) for name in results]
    ax.set_xticks(range(len(names)), names, fontsize=8)
    ax.grid(False, axis="x")
    ax.set_ylabel("test accuracy")
    _percent(ax)
    ax.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.14), fontsize=8)
    return ax


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds (n - 1); 0 for a single seed, which has none to show."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def mean_and_spread(values: Sequence[float], percent: bool = True) -> str:
    """ "63.7 ± 0.4", in percent; without the second number for a single seed."""
    factor = 100 if percent else 1
    text = f"{factor * np.mean(values):.1f}"
    return f"{text} ± {factor * spread(values):.1f}" if len(values) > 1 else text


def results_table(results: Mapping[str, Runs]) -> pd.DataFrame:
    """One row per method: balanced accuracy, group accuracies, G-mean and ECE in percent, and how many seeds."""
    rows = {}
    for name, runs in results.items():
        metrics = [run.metrics for run in runs]
        rows[METHOD_NAMES.get(name, name)] = {
            "balanced accuracy": mean_and_spread([m["balanced_accuracy"] for m in metrics]),
            **{group: mean_and_spread([m["groups"][group] for m in metrics]) for group in RANK_GROUPS},
            "G-mean": mean_and_spread([m["g_mean"] for m in metrics]),
            "ECE": mean_and_spread([m["ece"] for m in metrics]),
            "seeds": str(len(runs)),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def confusion(
    matrix: Sequence[Sequence[int]], counts: Sequence[int], class_names: Sequence[str], ax: Axes | None = None
) -> Axes:
    """Where the test images of each class go, in percent of the row; largest class first."""
    ax, order = _axes(ax), by_size(counts)
    shares = np.asarray(matrix, float)[np.ix_(order, order)]
    shares = 100 * shares / shares.sum(1, keepdims=True)
    names = [class_names[i] for i in order]
    sns.heatmap(
        shares, annot=len(order) <= MAX_NAMED_CLASSES, fmt=".0f", cmap="Blues", vmin=0, vmax=100, cbar=False,
        xticklabels=names, yticklabels=names, annot_kws={"size": 8}, linewidths=0.5, square=True, ax=ax,
    )  # fmt: skip
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.tick_params(axis="x", rotation=40)
    return ax


def image_grid(rows: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Rows of images: title -> uint8 ``[n, H, W, 3]``; shorter rows stay blank at the end."""
    ax = _axes(ax)
    longest = max(len(images) for images in rows.values())
    strips = []
    for images in rows.values():
        images = np.asarray(images)
        blank = np.full((longest - len(images), *images.shape[1:]), 255, np.uint8)
        padded = np.pad(np.concatenate([images, blank]), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
        strips.append(np.concatenate(list(padded), axis=1))
    ax.imshow(np.concatenate(strips), aspect="equal", interpolation="nearest")
    height = strips[0].shape[0]
    ax.set_yticks([height * (i + 0.5) for i in range(len(rows))], list(rows))
    ax.set_xticks([])
    ax.grid(False)
    sns.despine(ax=ax, left=True, bottom=True)
    return ax


def decision_regions(
    predict: Callable[[np.ndarray], np.ndarray],
    points: np.ndarray,
    labels: np.ndarray,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A 2-D classifier's regions under its training points ``[N, 2]``; class 0 the largest, in rank-group colours."""
    ax = _axes(ax)
    colors = [GROUP_COLORS[group] for group in RANK_GROUPS]
    limits = [(points[:, i].min() - 0.7, points[:, i].max() + 0.7) for i in (0, 1)]
    grid = np.stack(np.meshgrid(*(np.linspace(low, high, 250) for low, high in limits)), -1)
    regions = predict(grid.reshape(-1, 2)).reshape(250, 250)
    ax.contourf(grid[..., 0], grid[..., 1], regions, levels=[-0.5, 0.5, 1.5, 2.5], colors=colors, alpha=0.22)
    for class_id, (color, marker) in enumerate(zip(colors, "osD", strict=True)):
        chosen = points[labels == class_id]
        size = 14 if len(chosen) > 100 else 34  # a few points have to be seen among many
        ax.scatter(*chosen.T, s=size, color=color, marker=marker, edgecolor="white", linewidth=0.5)
    ax.set(title=title, xticks=[], yticks=[])
    ax.grid(False)
    return ax


def curves(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    colors: Mapping[str, str] | None = None,
    spreads: Mapping[str, Sequence[float]] | None = None,
    percent: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Named curves over one axis, each with a marker of its own; ``spreads`` draws a band of one std."""
    ax = _axes(ax)
    for (name, y), marker in zip(lines.items(), MARKERS, strict=False):
        (line,) = ax.plot(x, y, marker=marker, ms=5, label=name, color=(colors or {}).get(name))
        if spreads:
            low, high = np.asarray(y) - spreads[name], np.asarray(y) + spreads[name]
            ax.fill_between(x, low, high, color=line.get_color(), alpha=0.15, lw=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if percent:
        _percent(ax)
    ax.legend(fontsize=8)
    return ax

"""Every figure of the book. Functions take plain arrays or runs, draw on ``ax`` and return it.

Colours are those of :mod:`ltnotes.palette`.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ltnotes.counts import rank_groups
from ltnotes.palette import COLORS, GROUP_COLORS, METHOD_COLORS, METHOD_NAMES
from ltnotes.runs import Run

BLUE, ORANGE, VERMILION, GREEN, SKY, PURPLE, YELLOW, BLACK = COLORS
MARKERS = "osD^vP*X<>p"
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
    for (name, runs), marker in zip(results.items(), itertools.cycle(MARKERS), strict=False):
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
    for images in map(np.asarray, rows.values()):
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
    for class_id, (group, color, marker) in enumerate(zip(RANK_GROUPS, colors, "osD", strict=True)):
        chosen, style = points[labels == class_id], {"color": color, "marker": marker, "edgecolor": "white"}
        size = 14 if len(chosen) > 100 else 34  # a few points have to be seen among many
        ax.scatter(*chosen.T, s=size, lw=0.5, label=f"{group} class: {len(chosen)} points", **style)
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
    for (name, y), marker in zip(lines.items(), itertools.cycle(MARKERS), strict=False):
        (line,) = ax.plot(x, y, marker=marker, ms=5, label=name, color=(colors or {}).get(name))
        if spreads:
            low, high = np.asarray(y) - spreads[name], np.asarray(y) + spreads[name]
            ax.fill_between(x, low, high, color=line.get_color(), alpha=0.15, lw=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if percent:
        _percent(ax)
    ax.legend(fontsize=8)
    return ax


def head_tail_plane(
    points: Mapping[str, Runs | tuple[float, float]],
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[str]]] | None = None,
    earlier: Collection[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """The book's running figure: accuracy on the largest classes (x) against accuracy on the smallest (y).

    On a dashed line the mean of both is the same, and with it the balanced accuracy as
    long as the middle classes stay as they are.

    Args:
        points: by method, its runs, drawn as their mean with whiskers of one std and named
            with their balanced accuracy in percent; or two accuracies, or two lists over seeds.
        curves: by name, the two accuracies along a sweep, and a label for each of its values
            ("" for none). One that begins with a method's name and a comma has its colour.
        earlier: the points of earlier chapters, which are grey.
    """
    ax = plt.subplots(figsize=(6.6, 5.2))[1] if ax is None else ax
    for name, (x, y, labels) in (curves or {}).items():
        color = METHOD_COLORS.get(name.partition(",")[0], BLACK)
        title = METHOD_NAMES.get(name.partition(",")[0], "") + name[name.find(",") :] if "," in name else name
        ax.plot(x, y, color=color, lw=1.4, marker=".", ms=7, label=title, zorder=2)
        for label, *at in zip(labels, x, y, strict=True):
            ax.annotate(label, at, (-5, -3), textcoords="offset points", ha="right", va="top", fontsize=8, color=color)
    for index, (name, found) in enumerate(points.items()):
        accuracies, title = found, METHOD_NAMES.get(name, name)
        if not isinstance(found, tuple):
            accuracies = [[run.metrics["groups"][group] for run in found] for group in ("largest", "smallest")]
            title += f": {mean_and_spread([run.metrics['balanced_accuracy'] for run in found])} %"
        (x, y), whiskers = np.transpose([(np.mean(a), spread(np.atleast_1d(a))) for a in accuracies])
        color = "0.62" if name in earlier else METHOD_COLORS.get(name)
        marker = MARKERS[index % len(MARKERS)]
        shape = {"marker": marker, "ms": 12 if marker == "*" else 8, "mec": "white", "ls": ""}
        ax.errorbar(x, y, whiskers[1:], whiskers[:1], color=color, label=title, zorder=3, **shape)
    _lines_of_equal_mean(ax)
    ax.set(xlabel="accuracy on the largest classes", ylabel="accuracy on the smallest classes")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))  # whole percents
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    return ax


def _lines_of_equal_mean(ax: Axes) -> None:
    """Dashed lines for every ten percent of the mean of both axes, which are first widened to whole twentieths."""
    (left, right), (low, high) = (
        (max(-0.03, np.floor(20 * (a - 0.02)) / 20), min(1.03, np.ceil(20 * (b + 0.02)) / 20))
        for a, b in (ax.get_xlim(), ax.get_ylim())
    )
    ax.set(xlim=(left, right), ylim=(low, high))
    for mean in np.arange(1, 10) / 10:
        ends = [x for x in (left, right) if low < 2 * mean - x < high]
        ends += [2 * mean - y for y in (low, high) if left <= 2 * mean - y <= right]
        if len(ends) < 2 or max(ends) - min(ends) < 0.02:
            continue
        x = np.array([min(ends), max(ends)])
        ax.plot(x, 2 * mean - x, color="0.75", ls="--", lw=0.8, zorder=1)
        at = max(ends) - 0.02 * (right - left), 2 * mean - max(ends) + 0.02 * (high - low)
        ax.annotate(f"mean {mean:.0%}", at, fontsize=7, color="0.45", ha="right", rotation=0, zorder=1)

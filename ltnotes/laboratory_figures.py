"""What the logit laboratory shows of one method, and its figures for readers without JavaScript.

``book/_static/laboratory-numbers.js`` computes the same in the browser; the tests compare both.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ltnotes.counts import check_counts, rank_groups
from ltnotes.metrics import CALIBRATION_BINS
from ltnotes.palette import BLACK, GREEN, METHOD_COLORS, PURPLE

KINDS = {  # of prediction sets: colour and marker
    "marginal": (BLACK, "o"),
    "class-wise": (GREEN, "s"),
    "prevalence-adjusted": (PURPLE, "D"),
}
SLACK = 1e-9  # of sums and products that would be whole without rounding
LEAST = 0.001  # share of the test set from which a bin of confidence is drawn
TAUS = np.linspace(-1, 2, 31)


@dataclass(frozen=True)
class Setting:
    """What a reader of the laboratory sets.

    Args:
        tau: log class frequency is subtracted from the scores so many times.
        prior: exponent of the test set's class frequencies: 1 as in training, 0 uniform, -1 in
            reversed order.
        temperature: the scores are divided by it first.
        alpha: prediction sets may miss the class of so many images.
        few: calibration images become few in the tail, as training images do.
    """

    tau: float = 0.0
    prior: float = 0.0
    temperature: float = 1.0
    alpha: float = 0.1
    few: bool = False

    @property
    def prior_text(self) -> str:
        return {0: "uniform", 1: "forward", -1: "backward"}.get(self.prior, f"exponent {self.prior:g}") + " test set"


STATIC = {"tau-0": Setting(), "tau-1": Setting(tau=1), "tau-1-backward": Setting(tau=1, prior=-1)}


@dataclass(frozen=True)
class Sets:
    """Prediction sets of one kind.

    Args:
        size, coverage: expected under the test prior.
        sizes, coverages: of each true class, in class-id order; a size is a number of classes.
        infinite: thresholds that are infinite: that class is in every set. For the kinds
            with one threshold 0, or all classes.
    """

    size: float
    coverage: float
    sizes: np.ndarray
    coverages: np.ndarray
    infinite: int


@dataclass(frozen=True)
class Results:
    """What comes out. Shares are from 0 to 1.

    Args:
        recalls: in class-id order.
        groups: mean recall of largest, middle and smallest.
        bins: ``[B, 3]``, for each bin of confidence its share of images, their summed confidence
            and summed accuracy, under the test prior.
        sets: by kind, see ``KINDS``.
    """

    recalls: np.ndarray
    accuracy: float
    balanced: float
    groups: dict[str, float]
    ece: float
    bins: np.ndarray
    sets: dict[str, Sets]


# --- numbers -----------------------------------------------------------------


def _by_size(counts: Sequence[int]) -> np.ndarray:
    """Class ids from the largest class to the smallest."""
    return np.argsort(-np.asarray(counts), kind="stable")


def class_shares(counts: Sequence[int], exponent: float) -> np.ndarray:
    """Class frequencies ``[C]`` of a test set: those of training to a power, or of the class of opposite rank."""
    n, order = np.array(check_counts(counts), float), _by_size(counts)
    if exponent < 0:
        n[order] = n[order[::-1]]
    shares = n ** abs(exponent)
    return shares / shares.sum()


def log_probabilities(logits: np.ndarray, counts: Sequence[int], setting: Setting) -> np.ndarray:
    """Log softmax of ``z / T - tau log pi``, ``[N, C]``."""
    scores = logits / setting.temperature - setting.tau * np.log(np.array(counts) / sum(counts))
    scores = scores - scores.max(1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))


def measure(logits: np.ndarray, labels: np.ndarray, counts: Sequence[int], setting: Setting | None = None) -> Results:
    """All numbers of the laboratory for scores ``[N, C]`` of test images of classes ``labels``, ``[N]``.

    Raises:
        ValueError: a class with fewer than two test images: one is needed to calibrate and one to show.
    """
    setting = setting or Setting()
    logs, q = log_probabilities(logits, counts, setting), class_shares(counts, setting.prior)
    tested = np.bincount(labels, minlength=len(counts))
    if tested.min() < 2:
        raise ValueError(f"labels: got {tested.tolist()} images by class, allowed are two or more of each")
    hit = logs.argmax(1) == labels
    recalls = np.bincount(labels, weights=hit, minlength=len(counts)) / tested
    bins = _reliability(np.exp(logs.max(1)), hit, (q / tested)[labels])
    return Results(
        recalls,
        accuracy=float(q @ recalls),
        balanced=float(recalls.mean()),
        groups={name: float(recalls[members].mean()) for name, members in rank_groups(counts).items()},
        ece=float(np.abs(bins[:, 2] - bins[:, 1]).sum()),
        bins=bins,
        sets=_sets(logs, labels, counts, q, setting),
    )


def _reliability(confidence: np.ndarray, hit: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weight, weighted confidence and weighted accuracy of each bin, as :func:`ltnotes.metrics` bins them."""
    ids = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    columns = (weights, weights * confidence, weights * hit)
    return np.stack([np.bincount(ids, weights=column, minlength=CALIBRATION_BINS) for column in columns], 1)


def halves(labels: np.ndarray, counts: Sequence[int], few: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the images that calibrate, and of those that are shown: every other image of each class.

    Args:
        few: of the calibrating images of a class only ``n_j / n_max`` are kept, one at least.
    """
    calibrating, shown = [], []
    for class_id in range(len(counts)):
        own = np.flatnonzero(labels == class_id)
        half = own[::2]
        kept = max(1, math.floor(len(half) * counts[class_id] / max(counts) + 0.5)) if few else len(half)
        calibrating.append(half[:kept])
        shown.append(own[1::2])
    return np.concatenate(calibrating), np.concatenate(shown)


def threshold(scores: np.ndarray, weights: np.ndarray, alpha: float) -> float:
    """The quantile at ``ceil((n + 1)(1 - alpha)) / n`` of n weighted calibration scores; infinite where that is over 1.

    With equal weights it is the ``ceil((n + 1)(1 - alpha))``-th smallest score (Vovk et al. 2005).
    """
    k = math.ceil((len(scores) + 1) * (1 - alpha) - SLACK)
    if k > len(scores):
        return math.inf
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(scores[order[np.argmax(reached >= k / len(scores) - SLACK)]])


def _sets(
    logs: np.ndarray, labels: np.ndarray, counts: Sequence[int], q: np.ndarray, setting: Setting
) -> dict[str, Sets]:
    calibrating, shown = halves(labels, counts, setting.few)
    own = labels[calibrating]
    weights = (q / np.bincount(own, minlength=len(counts)))[own]
    over_prior = logs - np.log(np.array(counts) / sum(counts))  # p(y|x) / p(y), Ding et al. 2025
    found = {}
    for kind in KINDS:
        strange = -(over_prior if kind == "prevalence-adjusted" else logs)
        scores = strange[calibrating, own]
        if kind == "class-wise":
            pairs = [(scores[own == c], weights[own == c]) for c in range(len(counts))]
            limits = np.array([threshold(s, w, setting.alpha) for s, w in pairs])
        else:
            limits = np.full(len(counts), threshold(scores, weights, setting.alpha))
        inside = strange[shown] <= limits
        found[kind] = _summary(inside, labels[shown], q, int(np.isinf(limits).sum()))
    return found


def _summary(inside: np.ndarray, labels: np.ndarray, q: np.ndarray, infinite: int) -> Sets:
    """Of which classes ``[N, C]`` are in each set, by true class."""
    shown = np.bincount(labels)
    sizes = np.bincount(labels, weights=inside.sum(1)) / shown
    coverages = np.bincount(labels, weights=inside[np.arange(len(labels)), labels]) / shown
    return Sets(float(q @ sizes), float(q @ coverages), sizes, coverages, infinite)


def curve(logits: np.ndarray, labels: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Mean recall of the largest and of the smallest classes for each of ``TAUS``, ``[21, 2]``."""
    found = [measure(logits, labels, counts, Setting(tau=float(tau))).groups for tau in TAUS]
    return np.array([(groups["largest"], groups["smallest"]) for groups in found])


# --- words and pictures ------------------------------------------------------


def describe(title: str, setting: Setting, found: Results) -> str:
    """The main numbers in words."""
    groups = ", ".join(f"{name} {value:.1%}" for name, value in found.groups.items())
    sizes = ", ".join(f"{kind} {sets.size:.2f}" for kind, sets in found.sets.items())
    return (
        f"{title}, τ = {setting.tau:g}, {setting.prior_text}: accuracy {found.accuracy:.1%},"
        f" balanced accuracy {found.balanced:.1%} ({groups}), ECE {found.ece:.1%}."
        f" Mean size of prediction sets at {1 - setting.alpha:.0%} coverage: {sizes}."
    ).replace("%", "\u00a0%")


def alternative(found: Results, classes: Sequence[str], counts: Sequence[int]) -> str:
    """What the five figures show, for those who do not see them."""
    recalls = ", ".join(f"{classes[c]} {found.recalls[c]:.0%}" for c in _by_size(counts))
    lowest = ", ".join(f"{kind} {sets.coverages.min():.0%}" for kind, sets in found.sets.items())
    return (
        f"Five charts. Recall from the largest class to the smallest: {recalls}. Largest against smallest classes:"
        f" {found.groups['largest']:.0%} and {found.groups['smallest']:.0%}. Confidence against accuracy. Mean size of"
        f" prediction sets by class. Their coverage; of the class with the lowest: {lowest}."
    ).replace("%", "\u00a0%")


def draw(
    method: str,
    setting: Setting,
    found: Results,
    made: Mapping[str, Any],
    points: Mapping[str, Mapping[str, float]],
    sweep: np.ndarray,
) -> bytes:
    """The laboratory's five figures at one setting, below each other, as SVG.

    Args:
        made: see :func:`ltnotes.laboratory.contents`.
        points: by recipe, its groups at tau = 0.
        sweep: see :func:`curve`.
    """
    order = _by_size(made["counts"])
    color_of = {c: made["groupColors"][name] for name, members in made["groups"].items() for c in members}
    with plt.rc_context({"svg.hashsalt": "laboratory", "font.size": 8.5, "axes.titlesize": 9, "axes.grid": False}):
        figure, axes = plt.subplots(5, figsize=(4.1, 14.5), constrained_layout=True)
        axes[0].bar(range(len(order)), found.recalls[order], color=[color_of[c] for c in order])
        axes[0].set(title="Recall of each class, and its training images", ylim=(0, 1))
        _plane(axes[1], method, found, points, sweep)
        _draw_reliability(axes[2], found, METHOD_COLORS[method])
        for kind, (color, marker) in KINDS.items():
            sets, style = found.sets[kind], {"color": color, "marker": marker, "ms": 4, "lw": 1, "label": kind}
            axes[3].plot(sets.sizes[order], **style)
            axes[4].plot(sets.coverages[order], **style)
        axes[3].set(title="Mean size of the prediction sets", ylabel="classes")
        axes[3].set_ylim(bottom=0)
        axes[3].legend(frameon=False, fontsize=8)
        axes[4].axhline(1 - setting.alpha, color="0.5", ls="--", lw=0.8)
        axes[4].set(title=f"Coverage of the prediction sets (dashed: {1 - setting.alpha:.0%})", ylim=(0, 1.03))
        for ax in (axes[0], axes[3], axes[4]):
            names = [f"{made['classes'][c]}, {made['counts'][c]}" for c in order]
            ax.set_xticks(range(len(order)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
        for ax in (axes[0], axes[4]):
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        for ax in axes:
            ax.spines[["top", "right"]].set_visible(False)
        content = io.BytesIO()
        figure.savefig(content, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return content.getvalue()


def _plane(ax: Axes, method: str, found: Results, points: Mapping[str, Mapping[str, float]], sweep: np.ndarray) -> None:
    for mean in (0.25, 0.5, 0.75):
        ends = np.array([max(0, 2 * mean - 1), min(1, 2 * mean)])
        ax.plot(ends, 2 * mean - ends, color="0.8", ls="--", lw=0.8, zorder=1)
    for name, groups in points.items():
        ax.plot(groups["largest"], groups["smallest"], "o", ms=3.5, color=METHOD_COLORS.get(name, BLACK), zorder=3)
    color = METHOD_COLORS[method]
    ax.plot(*sweep.T, color=color, lw=1.2, zorder=2)
    ax.plot(found.groups["largest"], found.groups["smallest"], "o", ms=9, mfc=color, mec="white", zorder=4)
    ax.set(title="Largest against smallest classes, line: τ from 0 to 2", xlim=(0, 1), ylim=(0, 1))
    ax.set(xlabel="accuracy on the largest classes", ylabel="on the smallest")
    _percent_axes(ax)


def _draw_reliability(ax: Axes, found: Results, color: str) -> None:
    weight, confidence, accuracy = found.bins[found.bins[:, 0] > LEAST].T
    ax.plot([0, 1], [0, 1], color="0.6", ls="--", lw=0.8)
    ax.plot(confidence / weight, accuracy / weight, color=color, lw=0.8)
    ax.scatter(confidence / weight, accuracy / weight, s=10 + 250 * weight, color=color, alpha=0.8, lw=0, clip_on=False)
    ax.set(title=f"Reliability, ECE {found.ece:.1%}", xlabel="confidence", ylabel="accuracy")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    _percent_axes(ax)


def _percent_axes(ax: Axes) -> None:
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(PercentFormatter(1.0))

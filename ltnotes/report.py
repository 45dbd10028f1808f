"""One HTML page on a finished run: which classes it finds, what it confuses, how sure it is, and what to try next.

The page stands alone: figures and example images are in it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import softmax
from scipy.stats import binomtest

from ltnotes import data, metrics, plots
from ltnotes.counts import rank_groups
from ltnotes.data import LongTailData
from ltnotes.diagnose import CONFIDENCE, FEW_TESTS
from ltnotes.files import write_text
from ltnotes.finished import Run
from ltnotes.options import require

TAUS = np.linspace(-1, 3, 41)
PAIRS, EXAMPLES = 6, 6  # of confused classes, and of images for each
SURE = 0.05  # by how much confidence may exceed accuracy before the page says so
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff }
table { border-collapse: collapse }
td, th { padding: .15rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left }
tr:nth-child(even) { background: #f4f4f4 }
img { max-width: 100%; height: auto }
.examples img { width: 64px; margin: 2px }
.bar { display: inline-block; height: .6rem; background: #0072B2 }
.wide { overflow-x: auto }
"""


def report(run: Run, path: Path) -> Path:
    """Write the page on a run to ``path``.

    Raises:
        ValueError: the run's data set is not the one that lies there now.
    """
    recipe = run.recipe
    dataset = data.load(recipe.dataset, recipe.imbalance, recipe.data_seed, validation=recipe.validation)
    logits, labels = run.logits, dataset.test.labels.numpy()
    same = hashlib.sha256(labels.tobytes()).hexdigest() == run.record["data"]["test_labels"]
    require(same, "run", "one that was tested on other images", f"one of {recipe.dataset} as it is prepared now")
    parts = [
        f"<h1>{html.escape(f'{recipe.name} on {dataset.name}')}</h1>",
        *_summary(run, dataset),
        "<h2>Class by class</h2>",
        *_classes(logits, labels, dataset),
        "<h2>What it confuses</h2>",
        *_confused(logits, labels, dataset),
        "<h2>How sure it is</h2>",
        *_calibration(logits, labels, dataset),
        "<h2>A correction after training</h2>",
        *_after(logits, labels, dataset.counts),
        "<h2>What to try next</h2>",
        "<ul>",
        *(f"<li>{html.escape(advice)}</li>" for advice in next_steps(run, labels)),
        "</ul>",
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{recipe.name}</title>'
    write_text(f'<!doctype html><html lang="en">{head}<style>{STYLE}</style>\n' + "\n".join(parts) + "</html>\n", path)
    return path


def _summary(run: Run, dataset: LongTailData) -> Iterator[str]:
    groups = {name: value for name, value in run.metrics["groups"].items() if value is not None}
    found = ", ".join(f"{name} {value:.1%}" for name, value in groups.items())
    made_on = run.record["environment"]
    yield (
        f"<p>Balanced accuracy {run.metrics['balanced_accuracy']:.1%} ({found}); seed {run.seed}, one run."
        f" {len(dataset.train)} training images in {dataset.num_classes} classes, the largest"
        f" {dataset.imbalance:.3g} times the smallest; {len(dataset.test)} test images."
        f" Trained in {run.seconds:.0f} s on {html.escape(made_on['device'])}, in {made_on['precision']}.</p>"
    )


def _classes(logits: np.ndarray, labels: np.ndarray, dataset: LongTailData) -> Iterator[str]:
    answers, counts = logits.argmax(1), dataset.counts
    yield '<div class="wide"><table><tr><th>class</th><th>training</th><th>test</th><th>recall</th>'
    yield f"<th>{CONFIDENCE:.0%} interval</th><th></th><th>precision</th></tr>"
    for c in plots.by_size(counts):
        own, answered = labels == c, answers == c
        hits, n = int((own & answered).sum()), int(own.sum())
        name = html.escape(dataset.class_names[c])
        precision = f"{hits / answered.sum():.0%}" if answered.any() else "never answered"
        if n:
            low, high = binomtest(hits, n).proportion_ci(CONFIDENCE, "wilson")
            cells = f"<td>{hits / n:.0%}</td><td>{low:.0%} to {high:.0%}</td>"
            cells += f'<td style="text-align:left"><span class="bar" style="width:{100 * hits / n:.0f}px"></span></td>'
        else:
            cells = "<td>no test image</td><td></td><td></td>"
        yield f"<tr><td>{name}</td><td>{counts[c]}</td><td>{n}</td>{cells}<td>{precision}</td></tr>"
    yield "</table></div>"


def _confused(logits: np.ndarray, labels: np.ndarray, dataset: LongTailData) -> Iterator[str]:
    answers, names = logits.argmax(1), dataset.class_names
    tests = np.bincount(labels, minlength=len(names))
    shares = np.zeros((len(names), len(names)))
    np.add.at(shares, (labels, answers), 1)
    np.fill_diagonal(shares, 0)
    numbers = shares.copy()
    shares /= np.maximum(tests, 1)[:, None]
    for flat in np.argsort(-shares, axis=None)[:PAIRS]:
        of, taken_for = np.unravel_index(flat, shares.shape)
        if not shares[of, taken_for]:
            break
        wrong = np.flatnonzero((labels == of) & (answers == taken_for))
        surest = wrong[np.argsort(-softmax(logits[wrong], 1)[:, taken_for])][:EXAMPLES]
        said = f"{names[of]} taken for {names[taken_for]}: {numbers[of, taken_for]:.0f} of {tests[of]}"
        yield f'<p>{html.escape(said)} ({shares[of, taken_for]:.0%}). The surest of them:</p><p class="examples">'
        yield from (_image(dataset.test.images[i].numpy(), said) for i in surest)
        yield "</p>"
    if not shares.any():
        yield "<p>Nothing: every test image is found.</p>"


def _calibration(logits: np.ndarray, labels: np.ndarray, dataset: LongTailData) -> Iterator[str]:
    probabilities = softmax(logits.astype(np.float64), 1)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    yield "<p>A confidence of 80% is worth its name if four in five such answers are right. By true class:</p>"
    yield "<table><tr><th>classes</th><th>confidence</th><th>right</th></tr>"
    for group, members in rank_groups(dataset.counts).items():
        own = np.isin(labels, members)
        if own.any():
            yield f"<tr><td>{group}</td><td>{confidence[own].mean():.0%}</td><td>{right[own].mean():.0%}</td></tr>"
            axes[0].bar(group, confidence[own].mean(), color=plots.GROUP_COLORS[group], alpha=0.4)
            axes[0].plot(group, right[own].mean(), "D", color=plots.BLACK)
    yield "</table>"
    axes[0].set(title="bars: confidence; diamonds: right", ylim=(0, 1))
    edges = np.linspace(0, 1, 11)
    which = np.clip(np.digitize(confidence, edges) - 1, 0, 9)
    there = np.unique(which)
    axes[1].plot([0, 1], [0, 1], ":", color="0.5")
    axes[1].plot([confidence[which == b].mean() for b in there], [right[which == b].mean() for b in there], "o-")
    axes[1].set(xlabel="confidence", ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1))
    error = metrics.expected_calibration_error(probabilities, labels)
    yield f"<p>Expected calibration error {error:.1%}.</p>"
    yield _figure(figure, "Confidence and accuracy by group, and accuracy over confidence.")


def after_training(logits: np.ndarray, labels: np.ndarray, counts: Sequence[int]) -> tuple[float, float, float]:
    """The best tau, and balanced accuracy without and with it on images that did not choose it.

    Each half of the test images chooses for the other; tau is the mean of both choices.
    """
    log_n = np.log(np.array(counts))
    even = np.zeros(len(labels), bool)
    even[np.argsort(labels, kind="stable")[::2]] = True  # half of each class
    found = []
    for chosen_on, tested_on in ((even, ~even), (~even, even)):
        scores = [_balanced(logits[chosen_on] - tau * log_n, labels[chosen_on]) for tau in TAUS]
        tau = TAUS[int(np.argmax(scores))]
        of_half = [_balanced(logits[tested_on] - t * log_n, labels[tested_on]) for t in (0.0, tau)]
        found.append((tau, *of_half))
    return tuple(np.mean(found, 0).tolist())


def _balanced(scores: np.ndarray, labels: np.ndarray) -> float:
    right = scores.argmax(1) == labels
    return float(np.mean([right[labels == c].mean() for c in np.unique(labels)]))


def _after(logits: np.ndarray, labels: np.ndarray, counts: Sequence[int]) -> Iterator[str]:
    log_n = np.log(np.array(counts))
    figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for group, members in rank_groups(counts).items():
        own = np.isin(labels, members)
        if own.any():
            line = [_balanced(logits[own] - tau * log_n, labels[own]) for tau in TAUS]
            ax.plot(TAUS, line, color=plots.GROUP_COLORS[group], label=f"{group} classes")
    ax.plot(TAUS, [_balanced(logits - tau * log_n, labels) for tau in TAUS], color=plots.BLACK, label="balanced")
    ax.axvline(0, color="0.6", ls=":")
    ax.set(xlabel="τ: how much of log n is subtracted from the logits", ylabel="accuracy", ylim=(0, 1))
    ax.legend(fontsize=8)
    tau, before, after = after_training(logits, labels, counts)
    yield (
        f"<p>Subtract τ log n from the logits, and the tail is answered more often. One half of the test images chose"
        f" τ for the other: {tau:.2f} on average, which takes the balanced accuracy from {before:.1%} to"
        f" {after:.1%}. Choose yours on images that are not the test set.</p>"
    )
    yield _figure(figure, "Accuracy of the groups and balanced accuracy over tau.")


def next_steps(run: Run, labels: np.ndarray) -> Iterator[str]:
    """What a reader of the page can do, most worth first; each from a number on it."""
    tau, before, after = after_training(run.logits, labels, run.counts)
    tests = np.bincount(labels, minlength=len(run.counts))
    if after - before > 0.01:
        gain = f"{100 * (after - before):.1f} points"
        stronger = "Subtract" if tau > 0 else "The correction is too strong: add"
        yield f"{stronger} {abs(tau):.1f} log n {'from' if tau > 0 else 'to'} the logits, worth {gain} here."
    groups = run.metrics["groups"]
    if groups["largest"] and groups["smallest"] is not None and groups["smallest"] > groups["largest"] + 0.05:
        yield "The tail is found more often than the head: the correction is too strong. Lower it."
    if run.metrics["ece"] > SURE:
        yield f"Confidence and accuracy are {run.metrics['ece']:.0%} apart: divide the logits by a temperature."
    if (few := int((tests < FEW_TESTS).sum())) > 0:
        yield f"{few} classes have under {FEW_TESTS} test images. Compare methods on groups of classes, or test more."
    if min(run.counts) <= 5:
        yield "For classes of 5 images and fewer look for new images first, and compare the nearest class mean, 'ncm'."
    yield "Train with two more seeds: differences below the spread between seeds mean nothing."


def _image(pixels: np.ndarray, says: str) -> str:
    return f'<img alt="{html.escape(says)}" src="{_png(Image.fromarray(pixels))}">'


def _figure(figure: Figure, says: str) -> str:
    content = io.BytesIO()
    figure.savefig(content, dpi=110)
    plt.close(figure)
    return f'<img alt="{html.escape(says)}" src="{_uri(content)}">'


def _png(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG")
    return _uri(content)


def _uri(content: io.BytesIO) -> str:
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"

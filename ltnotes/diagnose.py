"""What a folder of your own images holds, what is wrong with it, and which recipe to begin with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import norm

from ltnotes import folders
from ltnotes.counts import imbalance_ratio, rank_groups, shot_groups
from ltnotes.data import data_root
from ltnotes.files import user_path
from ltnotes.folders import Scan

CONFIDENCE = 0.95
SHOWN = 5  # examples of each finding; classes in the middle of the table
MOST_CLASSES = 24  # that are all listed
NEARLY_BALANCED = 1.5  # a ratio up to which there is no tail to speak of
FEW_TESTS = 10  # test images below which a class's recall says little


@dataclass(frozen=True)
class Diagnosis:
    """A folder's findings.

    Args:
        counts, tests: training and test images per class, in class-id order.
        notes: what is unusual, and what can't be used, each with the files where it is so.
        copies: groups of files that hold the same or nearly the same image.
        leaks: those of them that lie in training and in test.
        contradictions: those of them that lie in more than one class.
        prepared: where the images lie as a prepared data set, for recipes.
    """

    folder: Path
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    tests: tuple[int, ...]
    notes: dict[str, tuple[str, ...]]
    copies: tuple[tuple[str, ...], ...]
    leaks: tuple[tuple[str, ...], ...]
    contradictions: tuple[tuple[str, ...], ...]
    ignored: tuple[str, ...]
    split_by_folder: bool
    prepared: Path

    @property
    def ratio(self) -> float:
        return imbalance_ratio(self.counts)

    def lines(self) -> Iterator[str]:
        """The findings as a text for people, and last the recommendation."""
        names = f"{len(self.counts)} classes"
        yield f"{self.folder}: {names}, {sum(self.counts)} images to train on, {sum(self.tests)} to test on"
        yield f"largest over smallest class: {self.ratio:.3g}"
        yield from _table(self)
        if not self.split_by_folder:
            yield "the folder has no train/ and test/: test images were drawn from each class"
        for title, files in self.notes.items():
            yield _finding(f"{len(files)} x {title}", files)
        for title, groups in (
            ("one image under several classes", self.contradictions),
            ("one image in train/ and in test/, so that what is measured is too good", self.leaks),
            ("one image several times, or nearly the same", self.copies),
        ):
            if groups:
                yield _finding(f"{len(groups)} x {title}", [" = ".join(group[:SHOWN]) for group in groups])
        if self.ignored:
            yield _finding(f"{len(self.ignored)} x left out", self.ignored)
        recipe, reason = recommend(self.counts, self.tests)
        yield ""
        yield f"to begin with: {recipe}. {reason}"
        yield f"  ltnotes run {recipe} --dataset {self.prepared} --scale frozen --seed 0 1 2"


def _finding(title: str, files: Sequence[str]) -> str:
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return f"{title}: {', '.join(files[:SHOWN])}{more}"


def _table(of: Diagnosis) -> Iterator[str]:
    order = sorted(range(len(of.counts)), key=lambda c: (-of.counts[c], c))
    left_out = range(0)
    if len(order) > MOST_CLASSES:
        left_out = range(SHOWN, len(order) - 2 * SHOWN)
    group = {c: name for name, members in rank_groups(of.counts).items() for c in members}
    width = max(len(name) for name in ("class", *of.class_names))
    yield f"  {'class':<{width}}  train   test   group     recall known to"
    for rank, c in enumerate(order):
        if rank in left_out:
            if rank == left_out.start:
                yield f"  ... {len(left_out)} classes between"
            continue
        known = f"+-{100 * half_width(of.tests[c]):.0f} points" if of.tests[c] else "not at all: no test image"
        yield f"  {of.class_names[c]:<{width}}  {of.counts[c]:>5}  {of.tests[c]:>5}   {group[c]:<8}  {known}"
    shots = {name: len(members) for name, members in shot_groups(of.counts).items()}
    yield f"  many-shot (over 100) {shots['many']}, medium {shots['medium']}, few-shot (20 and fewer) {shots['few']}"


def half_width(n: int, recall: float = 0.5) -> float:
    """Half of the Wilson interval of a recall that is measured on ``n`` test images."""
    z = norm.ppf((1 + CONFIDENCE) / 2)
    return z / (1 + z**2 / n) * math.sqrt(recall * (1 - recall) / n + z**2 / (4 * n**2))


def recommend(counts: Sequence[int], tests: Sequence[int]) -> tuple[str, str]:
    """A recipe to begin with, and why.

    On frozen features of CIFAR-10-LT logit adjustment is as good as any method of the book,
    and it has one number, tau, that can be chosen after training as well.
    """
    ratio = imbalance_ratio(counts)
    if ratio <= NEARLY_BALANCED:
        return "ce", "The classes are nearly balanced: there is no tail to correct."
    reason = (
        "It trains for equal classes, and its strength can be changed after training (subtract tau log n from the"
        " logits of 'ce')."
    )
    if (tested := np.array(tests) < FEW_TESTS).any():
        reason += f" {tested.sum()} classes have under {FEW_TESTS} test images: compare methods on groups of classes."
    if min(counts) <= 5:
        reason += " For classes of 5 images and fewer, look for new images first, and compare 'ncm'."
    return "logit-adjustment", reason


def diagnose(
    folder: str | Path, size: int = 128, test_share: float = 0.2, seed: int = 0, root: str | Path | None = None
) -> Diagnosis:
    """Read a folder of images, say what it holds, and prepare it for recipes; no image leaves the machine.

    Arguments and errors are those of :func:`ltnotes.data.from_folder`.
    """
    path, where = user_path(folder), user_path(root) if root is not None else data_root()
    found = folders.scan(path, size)
    made_by = folders.how(path, size, test_share, seed)
    groups = folders.groups_of(found, folders.alike(found.pixels))
    test = folders.split(found, groups, test_share, seed)
    prepared = folders.prepare(found, test, made_by, where)
    classes, labels = len(found.class_names), found.labels
    copies = _copies(groups)
    of_kind = {
        "copies": copies,
        "leaks": [group for group in copies if len(set(test[group])) > 1],
        "contradictions": [group for group in copies if len(set(labels[group])) > 1],
    }
    return Diagnosis(
        path,
        tuple(found.class_names),
        *(tuple(np.bincount(labels[part], minlength=classes).tolist()) for part in (~test, test)),
        _notes(found),
        ignored=found.ignored,
        split_by_folder=found.usable[0].split is not None,
        prepared=prepared,
        **{kind: tuple(tuple(found.usable[i].path for i in group) for group in of) for kind, of in of_kind.items()},
    )


def _notes(found: Scan) -> dict[str, tuple[str, ...]]:
    notes = defaultdict(list)
    for file in found.files:
        for note in (*file.notes, *([f"NOT USED, {file.trouble}"] if file.trouble else [])):
            notes[note].append(file.path)
    return {note: tuple(files) for note, files in sorted(notes.items())}


def _copies(groups: np.ndarray) -> list[list[int]]:
    order = np.argsort(groups, kind="stable")
    borders = np.flatnonzero(np.diff(groups[order])) + 1
    return [group.tolist() for group in np.split(order, borders) if len(group) > 1]

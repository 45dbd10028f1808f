"""What small trainings reached that the book quotes: the table of the scale ``lite``, and the single runs of chapter 9.

A chapter shows the methods of earlier chapters beside its own. Their trainings are in
these tables already, so reading along does not cost hours. ``python -m ltnotes.lite``
trains what the table of single runs lacks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from ltnotes import papers, recipes, runs
from ltnotes.differences import PAIRS
from ltnotes.files import write_text
from ltnotes.finished import Run
from ltnotes.stages import Recipe

IMBALANCE, SEEDS = 100, [0, 1, 2]  # of `make lite-table`


def points(
    names: Sequence[str], dataset: str, imbalance: float, scale: str, seeds: Sequence[int]
) -> dict[str, list[Run] | tuple[np.ndarray, np.ndarray]]:
    """By recipe, what :func:`ltnotes.plots.head_tail_plane` draws: from the table, or trained where it has no such run.

    From the table come accuracies on the largest and the smallest classes, each as two
    values that have its mean and its standard deviation over seeds.

    Raises:
        ValueError: an unknown recipe.
    """
    known = table(dataset)
    if scale != "lite" or imbalance != IMBALANCE or list(seeds) != SEEDS:
        known = known[:0]
    return {
        name: tuple(_two_values(known.loc[name, group]) for group in ("largest", "smallest"))
        if name in known.index and known.loc[name, "seeds"] == len(SEEDS)
        else runs.over_seeds(recipes.get(name, dataset, imbalance, scale), seeds)
        for name in names
    }


def table(dataset: str) -> pd.DataFrame:
    """The page's table, by recipe: mean and standard deviation as text; empty for a data set without one."""
    path = folder() / f"{dataset}.csv"
    return pd.read_csv(path, index_col="recipe") if path.is_file() else pd.DataFrame()


def folder() -> Path:
    """Where the tables lie."""
    return papers.folder().parent / "lite"


def _two_values(entry: str) -> np.ndarray:
    mean, std = (float(number) / 100 for number in entry.split(" ± "))
    return mean + std / np.sqrt(2) * np.array([-1, 1])


# --- single runs ----------------------------------------------------------------

RUNS = "runs.csv"
REPEATED = ("ce", "logit-adjustment", "kps", "gcl")  # with every subset and seed
SUBSETS = (0, 1, 2)
FROZEN = ("ce", "logit-adjustment", "weighted", "class-balanced-sampling", "squashing-cosine", "ldam-drw")
FROZEN += ("kps", "fbl", "gcl")
ONCE = (*FROZEN, "cam-fusion", "blt")
LONG = ("fbl", "fbl-as-released")  # chapter 9: what both differences do in as many epochs as at full scale
LONG_SCORES = "results/long.npz"


def measured(wanted: Iterable[tuple[Recipe, int]]) -> pd.DataFrame:
    """A row for each recipe and seed, from the table where it has just this training, else trained now.

    Columns: recipe, subset, seed, then accuracy, balanced_accuracy, largest, middle, smallest
    and ece as shares, and seconds, device and precision.
    """
    known = {(row["recipe_hash"], int(row["seed"])): row for row in _rows(folder() / RUNS)}
    rows = []
    for recipe, seed in wanted:
        row = known.get((recipe.hash, seed)) or _row(runs.run(recipe, seed))
        rows.append({**row, "recipe": recipe.name, "subset": recipe.data_seed, "seed": seed})
    return pd.DataFrame(rows).drop(columns="recipe_hash")


def study() -> Iterator[tuple[Recipe, int]]:
    """The trainings of the table, what other pages need first."""
    for name in ONCE:
        yield recipes.get(name, "cifar10-lt", IMBALANCE, "lite"), 0
    for subset, seed, name in itertools.product(SUBSETS, SEEDS, REPEATED):
        yield recipes.get(name, "cifar10-lt", IMBALANCE, "lite", data_seed=subset), seed
    for name, seed in itertools.product(FROZEN, SEEDS):
        yield recipes.get(name, "cifar10-lt", IMBALANCE, "frozen"), seed
    for pair in PAIRS:
        for scale in pair.scales:
            yield from itertools.product(pair.both("cifar10-lt", IMBALANCE, scale), seeds_of(scale))


def long(name: str) -> Recipe:
    """A recipe of full scale, trained as long and by the same batches, with the network of `lite`."""
    small, large = (recipes.get(name, "cifar10-lt", IMBALANCE, scale) for scale in ("lite", "full"))
    return replace(large, backbone=small.backbone, name=f"{name}, long")


def long_scores(name: str) -> np.ndarray:
    """Test logits ``[N, C]`` of such a training with seed 0, less the largest of each image: kept, or made now."""
    recipe, path = long(name), folder().parent / LONG_SCORES
    with np.load(path) if path.is_file() else nullcontext({}) as kept:
        if recipe.hash in kept:
            return kept[recipe.hash].astype(np.float32)
    logits = runs.run(recipe, 0).logits
    return logits - logits.max(axis=1, keepdims=True)


def seeds_of(scale: str) -> Sequence[int]:
    """Those of a pair of :mod:`ltnotes.differences`: heads take seconds."""
    return SEEDS if scale == "frozen" else SEEDS[:1]


def keep(run: Run, path: Path | None = None) -> None:
    """Put a run into the table, in the place of one of the same recipe and seed."""
    path = path or folder() / RUNS
    row = _row(run)
    with FileLock(f"{path}.lock"):
        others = [r for r in _rows(path) if (r["recipe_hash"], int(r["seed"])) != (row["recipe_hash"], run.seed)]
        rows = sorted([*others, row], key=lambda r: (r["recipe"], r["backbone"], int(r["subset"]), int(r["seed"])))
        write_text(pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"), path)


def _row(run: Run) -> dict[str, Any]:
    metrics, made_on = run.metrics, run.record["environment"]
    shares = {name: metrics[name] for name in ("accuracy", "balanced_accuracy")}
    shares |= {group: metrics["groups"][group] for group in ("largest", "middle", "smallest")}
    return {
        "recipe": run.recipe.name,
        "backbone": run.recipe.backbone,
        "subset": run.recipe.data_seed,
        "seed": run.seed,
        **{name: round(value, 5) for name, value in {**shares, "ece": metrics["ece"]}.items()},
        "seconds": round(run.seconds, 1),
        "device": made_on["device"],
        "precision": made_on["precision"],
        "recipe_hash": run.recipe.hash,
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    return pd.read_csv(path).to_dict("records") if path.is_file() else []


if __name__ == "__main__":
    done = {(row["recipe_hash"], int(row["seed"])) for row in _rows(folder() / RUNS)}
    for recipe, seed in study():
        if (recipe.hash, seed) not in done:
            keep(runs.run(recipe, seed))
    scores = {long(name).hash: long_scores(name).astype(np.float16) for name in LONG}
    np.savez_compressed(folder().parent / LONG_SCORES, **scores)

"""What the main recipes reach at the scale ``lite``, as the book's page on it has it.

A chapter shows the methods of earlier chapters beside its own. Their trainings are in
that table already, so reading along does not cost an hour for grey points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ltnotes import papers, recipes, runs
from ltnotes.finished import Run

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
    path = papers.folder().parent / "lite" / f"{dataset}.csv"
    return pd.read_csv(path, index_col="recipe") if path.is_file() else pd.DataFrame()


def _two_values(entry: str) -> np.ndarray:
    mean, std = (float(number) / 100 for number in entry.split(" ± "))
    return mean + std / np.sqrt(2) * np.array([-1, 1])

"""The main recipes at the scale ``lite``, as the table of the book's page on it: ``python -m tests.benchmarks.lite``.

Runs that are in the cache are read from it, so the table can be made anew as they come in.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ltnotes import data, inference, metrics, recipes, runs
from ltnotes.finished import Run
from ltnotes.plots import RANK_GROUPS, mean_and_spread

MAIN = (
    *("ce", "logit-adjustment", "ldam-drw", "crt"),
    *("square-root", "power", "class-balanced-sampling", "progressive", "weighted"),
    *("squashing-cosine", "blt", "cam-fusion", "kps", "fbl", "gcl"),
)
EXPLAINING = {"cifar100-lt": ("gcl-instance-balanced",)}  # rows that say why another is where it is


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="cifar10-lt")
    parser.add_argument("--recipes", nargs="+", help="default: the main ones")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--scale", default="lite")
    parser.add_argument("--imbalance", type=float, default=100)
    parser.add_argument("--out", type=Path, default=Path("book/lite"))
    options = parser.parse_args(arguments)
    names = options.recipes or (*MAIN, *EXPLAINING.get(options.dataset, ()))
    chosen = [recipes.get(name, options.dataset, options.imbalance, options.scale) for name in names]
    rows = [row(runs.over_seeds(recipe, options.seeds)) for recipe in chosen]
    options.out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(options.out / f"{options.dataset}.csv", index=False)
    return 0


def row(some: Sequence[Run]) -> dict[str, str]:
    """A line of the table, in percent: test accuracies, and two numbers that say where they come from."""
    summaries = [run.metrics for run in some]
    groups = {g: mean_and_spread([summary["groups"][g] for summary in summaries]) for g in RANK_GROUPS}
    looked_at = np.transpose([look_at(run) for run in some])
    return {
        "recipe": some[0].recipe.name,
        "balanced accuracy": mean_and_spread([summary["balanced_accuracy"] for summary in summaries]),
        **groups,
        "tail fitted": mean_and_spread(looked_at[0]),
        "log π subtracted": mean_and_spread(looked_at[1]),
        "seeds": str(len(some)),
        # Of the quickest seed: what else ran on the machine makes the others slower.
        "minutes": f"{min(run.seconds for run in some) / 60:.1f}",
    }


def look_at(run: Run) -> tuple[float, float]:
    """Accuracy on the smallest classes' training images, seen as they are; balanced accuracy of the test
    images once log pi is subtracted from the scores."""
    recipe = run.recipe
    images = data.load(recipe.dataset, recipe.imbalance, recipe.data_seed, validation=recipe.validation)
    probabilities = inference.predict(run.model(), images.train, images)
    on_training = metrics.summarize(probabilities, images.train.labels.numpy(), run.counts)
    log_prior = np.log(np.array(run.counts) / sum(run.counts))
    adjusted = torch.from_numpy(run.logits - log_prior).softmax(1).numpy()
    subtracted = metrics.summarize(adjusted, images.test.labels.numpy(), run.counts)
    return on_training["groups"]["smallest"], subtracted["balanced_accuracy"]


if __name__ == "__main__":
    raise SystemExit(main())

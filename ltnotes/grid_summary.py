"""What a grid of reruns says when it is done: one tidy table, and a figure of the recipes in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ltnotes import plots
from ltnotes.grid import Rerun, results

MEASURE = "balanced_accuracy"


def write(reruns: Sequence[Rerun], folder: Path) -> list[Path]:
    """``table.parquet``, and ``figure.png`` if recipes were trained; nothing where nothing is done."""
    table = pd.DataFrame(results(reruns, folder))
    if table.empty:
        return []
    written = [folder / "table.parquet"]
    table.to_parquet(written[0], index=False)
    if MEASURE in table:
        figure = draw(table)
        figure.savefig(folder / "figure.png", dpi=150, bbox_inches="tight")
        plt.close(figure)
        written.append(folder / "figure.png")
    return written


def varied(table: pd.DataFrame, asked: Sequence[str]) -> list[str]:
    """Of what was asked for, the parameters with several values, seeds left out; numbers with most values first."""
    several = [name for name in asked if name in table and name != "seed" and table[name].nunique() > 1]
    return sorted(several, key=lambda name: (not pd.api.types.is_numeric_dtype(table[name]), -table[name].nunique()))


def draw(table: pd.DataFrame) -> Figure:
    """Balanced accuracy over the parameter with most numbers, a line for each recipe; the spread is over the rest."""
    plots.use_style()
    asked = [name for name in table.columns[: list(table.columns).index("accuracy")] if name != "recipe"]
    names = varied(table, asked)
    shown = table.assign(recipe=table["recipe"].map(lambda name: plots.METHOD_NAMES.get(name, name)))
    figure, ax = plt.subplots(figsize=(7, 4.2))
    style = {"data": shown, "y": MEASURE, "ax": ax, "errorbar": "sd"}
    if names and pd.api.types.is_numeric_dtype(table[names[0]]):
        second = names[1] if len(names) > 1 else None
        sns.lineplot(**style, x=names[0], hue="recipe", style=second, markers=True, err_style="bars")
    else:
        dodge = 0.4 if names and shown["recipe"].nunique() > 1 else False
        sns.pointplot(**style, x=names[0] if names else "recipe", hue="recipe", linestyles="none", dodge=dodge)
    ax.set_ylabel("balanced accuracy")
    ax.yaxis.set_major_formatter(plt.matplotlib.ticker.PercentFormatter(1.0))
    if (legend := ax.get_legend()) is not None:
        sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), fontsize=8)
        legend.set_title(None)
    return figure

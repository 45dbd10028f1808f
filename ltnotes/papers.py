"""The tables of the four papers, which the chapters quote beside what they measure.

``book/papers`` holds one CSV for each paper, a row for each cell of a table, and
``facts.csv`` for numbers of the papers' texts.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ltnotes import data

FILES = ("blt.csv", "blt-supplement.csv", "fsa.csv", "thesis.csv", "facts.csv")


def folder() -> Path:
    """Where the CSVs lie: in the book below :func:`ltnotes.data.home`, else in the one beside this package.

    Raises:
        FileNotFoundError: neither has them.
    """
    places = [root / "book" / "papers" for root in (data.home(), Path(__file__).resolve().parents[1])]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"no tables of the papers in {places[0]}; set LTNOTES_HOME to a checkout of the book")


def load(source: str | None = None, table: str | None = None) -> pd.DataFrame:
    """The cells of the papers' tables, in the order of the papers.

    Columns: source, table, method, dataset, imbalance, backbone, metric, value, text, note.
    ``text`` is the cell as printed, without the commas in counts; ``value`` is the same
    as a float, NaN where it is no number. ``imbalance`` is NaN where a data set comes at
    one ratio only; what else is empty is an empty string. Accuracies are in percent: an
    error rate is stored as the accuracy that it leaves, and ``note`` has what is printed.
    ``note`` also says where the papers contradict themselves.

    Methods are named as printed, without citations and years; "Ours" has the method's
    name. A cell for CIFAR-10-LT and CIFAR-100-LT together is a row for each. A dash has
    no row.

    Args:
        source: "BLT", "BLT-S" (its supplement), "FSA" or "thesis"; all if not given.
        table: its number, as "3.2", or the place in the text of a fact, as "text of 4.1".

    Raises:
        ValueError: an unknown source, or a table that it does not have.
    """
    cells = pd.concat(pd.read_csv(folder() / name, dtype=str, keep_default_na=False) for name in FILES)
    cells.insert(cells.columns.get_loc("value") + 1, "text", cells["value"])
    for column in ("imbalance", "value"):
        cells[column] = pd.to_numeric(cells[column], errors="coerce").astype(float)
    for column, wanted in (("source", source), ("table", table)):
        if wanted is not None:
            allowed = list(cells[column].unique())
            if wanted not in allowed:
                raise ValueError(f"{column}: got {wanted!r}, allowed is {', '.join(allowed)}")
            cells = cells[cells[column] == wanted]
    return cells.reset_index(drop=True)

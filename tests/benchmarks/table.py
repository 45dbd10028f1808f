"""What benchmarks measured: rows with targets, as a table on the terminal and as CSV files for the book."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """One measurement.

    Args:
        group: rows of a group are a table of their own in the book.
        what: what was measured, with its unit unless it is a ratio.
        bound: ">=" or "<=", how ``target`` bounds what is measured; "" without a target.
    """

    group: str
    what: str
    measured: float
    bound: str = ""
    target: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the target is; None without one."""
        if self.target is None:
            return None
        return self.measured >= self.target if self.bound == ">=" else self.measured <= self.target

    def cells(self) -> list[str]:
        verdict = {None: "", True: "reached", False: "missed"}[self.reached]
        # In words: the book's Markdown takes a line that begins with ">" for a quotation.
        target = {">=": "at least ", "<=": "at most ", "": ""}[self.bound] + number(self.target)
        return [self.what, number(self.measured), target, verdict]


def number(value: float | None) -> str:
    """Three digits and more, as a reader wants them."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(rows: Iterable[Row]) -> None:
    """Print the rows under the names of their groups."""
    cells = [(row.group, row.cells()) for row in rows]
    width = max(len(what) for _, (what, *_) in cells)
    last = None
    for group, (what, measured, target, verdict) in cells:
        if group != last:
            print(f"\n{group}")
        last = group
        print(f"  {what:<{width}}{measured:>10}{target:>15}  {verdict}")


def write(rows: Iterable[Row], folder: Path, machine: str) -> None:
    """A CSV file for each group, and what was measured on in ``machine.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.csv"):
        old.unlink()
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    for group, members in groups.items():
        columns = 4 if any(row.target is not None for row in members) else 2
        with (folder / f"{group.replace(' ', '-')}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows(
                cells[:columns] for cells in (["what", "measured", "target", ""], *(r.cells() for r in members))
            )
    (folder / "machine.md").write_text(f"{machine}, {time.strftime('%Y-%m-%d')}\n", encoding="utf-8")

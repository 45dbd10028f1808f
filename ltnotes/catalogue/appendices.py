"""Two appendices that point into the chapters: paper against code, and every table and figure of the papers.

``python -m ltnotes.catalogue.appendices`` writes both pages from ``book/appendices/*.csv``. A row names a chapter
and the id of a cell in it; the link leads to the section that the cell stands in.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ltnotes.files import write_text
from ltnotes.papers import folder

SOURCES = {  # title of the section, and what it is about
    "BLT": ("BLT", "kozerawski2020blt"),
    "BLT-S": ("BLT's supplement", "kozerawski2020supplement"),
    "FSA": ("Feature space augmentation", "chu2020feature"),
    "thesis 1": ("The thesis, chapter 1: earlier work", "li2022advances"),
    "thesis 2": ("The thesis, chapter 2: data sets and baselines", "li2022advances"),
    "thesis 3": ("The thesis, chapter 3: KPS", "li2022advances"),
    "thesis 4": ("The thesis, chapter 4: FBL", "li2022advances"),
    "thesis 5": ("The thesis, chapter 5: GCL", "li2022advances"),
}
REFERENCES = "## References\n\n```{bibliography}\n:filter: docname in docnames\n```"


class Place(NamedTuple):
    """Where a cell stands."""

    chapter: str
    title: str
    heading: str

    @property
    def anchor(self) -> str:
        """As MyST makes it of a heading."""
        return re.sub(r"[^\w\- ]", "", self.heading.strip().lower()).replace(" ", "-")

    @property
    def link(self) -> str:
        return f"[{int(self.chapter[:2])}: {self.heading}]({self.chapter}.ipynb#{self.anchor})"


def place(chapter: str, cell: str) -> Place:
    """The section of a cell, by the cell's id.

    Raises:
        LookupError: no such chapter, or no such cell in it.
    """
    places = _places(folder().parent / f"{chapter}.ipynb")
    if cell not in places:
        raise LookupError(f"{chapter}: it has no cell {cell!r}")
    return places[cell]


@functools.cache
def _places(path: Path) -> dict[str, Place]:
    if not path.is_file():
        raise LookupError(f"there is no chapter {path.stem}")
    title = heading = ""
    places = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            for marks, text in re.findall(r"^(#+) (.+)$", "".join(cell["source"]), flags=re.M):
                title, heading = (text, text) if marks == "#" else (title, text)
        places[cell["id"]] = Place(path.stem, title, heading)
    return places


def read(name: str) -> pd.DataFrame:
    """The rows of an appendix, as text."""
    return pd.read_csv(folder().parent / "appendices" / f"{name}.csv", dtype=str, keep_default_na=False)


def _heading(source: str) -> str:
    title, work = SOURCES[source]
    return f"## {title}\n\nSource: {{cite:t}}`{work}`."


# --- paper against code ------------------------------------------------------


def paper_against_code() -> str:
    """The page of every known difference, in MyST."""
    table = read("paper-against-code")
    parts = [
        "# Paper against code",
        "The released code of these papers is not what the papers print. Neither is wrong by that: code goes on after"
        " a paper is sent off, and a paper has no room for all of it. Whoever reproduces a number has to know which"
        " of the two it is a number of. In this book recipes follow the paper, and the code where a paper is silent;"
        " what the released code does instead is an option or a second recipe, so that the difference can be measured."
        " Places where a paper contradicts itself are listed too. *Effect* is what came out in the section that it"
        " links to.",
    ]
    for source, rows in table.groupby("source", sort=False):
        parts += [_heading(source), *(_difference(row) for _, row in rows.iterrows())]
    return "\n\n".join([*parts, REFERENCES]) + "\n"


def _difference(row: pd.Series) -> str:
    measured = f"**Effect:** {row['effect']}"
    if row["chapter"]:
        measured += f" ({place(row['chapter'], row['cell']).link})"
    lines = [
        f"### {row['what']}",
        f"**Paper:** {row['paper']}\\\n**Code, or elsewhere:** {row['code']}\\\n**Here:** {row['here']}\\",
    ]
    return "\n\n".join(lines) + f"\n{measured}"


# --- every table and figure --------------------------------------------------


def tables_and_figures() -> str:
    """The page of all tables and figures of the papers, in MyST."""
    table = read("tables-and-figures")
    made = table[table["chapter"] != ""]
    parts = [
        "# Every table and figure",
        f"The four papers have {sum(table['kind'] == 'table')} tables and {sum(table['kind'] == 'figure')} figures."
        f" For {len(made)} of them a cell of this book makes its own, most at the scale `lite`; the link leads to its"
        " section. The last column says in what it differs from the paper's, or why there is none yet.",
    ]
    for source, rows in table.groupby("source", sort=False):
        lines = [
            "| | shows | here | difference, or why not |",
            "|---|---|---|---|",
            *(_entry(row) for _, row in rows.iterrows()),
        ]
        parts += [_heading(source), "\n".join(lines)]
    return "\n\n".join([*parts, REFERENCES]) + "\n"


def _entry(row: pd.Series) -> str:
    link = place(row["chapter"], row["cell"]).link if row["chapter"] else ""
    return f"| {row['kind'].capitalize()} {row['number']} | {row['shows']} | {link} | {row['note']} |"


PAGES: dict[str, Any] = {"paper-against-code": paper_against_code, "tables-and-figures": tables_and_figures}

if __name__ == "__main__":
    for name, make in PAGES.items():
        write_text(make(), Path("book") / f"{name}.md")

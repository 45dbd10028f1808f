"""Exercises in the chapters: their form, and that a code exercise's solution passes its check where a stub does not."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbformat import NotebookNode

from ltnotes.check import Mistake

CHAPTERS = sorted((Path(__file__).resolve().parents[2] / "book").glob("*.ipynb"))
HEADER = re.compile(
    r"^### Exercise \d+\n\n\*\*(Calculation|Derivation|Code|Experiment)\*\* · (●○○|●●○|●●●) · \d+ minutes\n"
)
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.M | re.S)
MAX_WIDTH = 76


def exercises(chapter: NotebookNode) -> list[list[NotebookNode]]:
    """The cells of each exercise, the first of which is its text."""
    headings = [i for i, cell in enumerate(chapter.cells) if re.search(r"^##", cell.source, re.M)]
    spans = itertools.pairwise([*headings, len(chapter.cells)])
    return [chapter.cells[i:j] for i, j in spans if re.search(r"^### Exercise \d", chapter.cells[i].source, re.M)]


EXERCISES = {
    f"{path.stem}-{number}": cells
    for path in CHAPTERS
    for number, cells in enumerate(exercises(nbformat.read(path, as_version=4)), start=1)
}
CODE = {name: cells for name, cells in EXERCISES.items() if "**Code**" in cells[0].source}


def graded(cells: list[NotebookNode], flag: str) -> NotebookNode:
    (cell,) = [cell for cell in cells if cell.metadata.get("nbgrader", {}).get(flag)]
    return cell


@pytest.mark.parametrize("cells", EXERCISES.values(), ids=EXERCISES)
def test_an_exercise_has_kind_difficulty_minutes_and_a_folded_hint(cells: list[NotebookNode]) -> None:
    text = cells[0].source[cells[0].source.index("### Exercise") :]
    assert HEADER.match(text), text[:80]
    assert ":::{admonition} Hint\n:class: dropdown\n" in text


@pytest.mark.parametrize("cells", EXERCISES.values(), ids=EXERCISES)
def test_code_of_an_exercise_needs_no_scrolling(cells: list[NotebookNode]) -> None:
    lines = [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    assert [line for line in lines if len(line) > MAX_WIDTH] == []


@pytest.mark.parametrize("cells", EXERCISES.values(), ids=EXERCISES)
def test_only_code_exercises_are_graded(cells: list[NotebookNode]) -> None:
    assert any("nbgrader" in cell.metadata for cell in cells) == ("**Code**" in cells[0].source)


@pytest.mark.parametrize("cells", CODE.values(), ids=CODE)
def test_a_solution_is_followed_by_its_locked_check(cells: list[NotebookNode]) -> None:
    solution, check = graded(cells, "solution"), graded(cells, "grade")
    assert cells.index(check) == cells.index(solution) + 1
    assert len(SOLUTION.findall(solution.source)) == 1
    fields = {"grade": False, "locked": False, "solution": True, "task": False, "schema_version": 3}
    assert fields.items() <= solution.metadata.nbgrader.items()
    assert {**fields, "grade": True, "locked": True, "solution": False}.items() <= check.metadata.nbgrader.items()
    assert check.metadata.nbgrader.points > 0


def test_grade_ids_are_unique() -> None:
    ids = [cell.metadata.nbgrader.grade_id for cells in CODE.values() for cell in cells if "nbgrader" in cell.metadata]
    assert len(ids) == len(set(ids)) == 2 * len(CODE)


@pytest.mark.parametrize("cells", CODE.values(), ids=CODE)
def test_a_solution_passes_its_check_and_a_stub_does_not(cells: list[NotebookNode], capsys) -> None:
    solution, check = graded(cells, "solution").source, graded(cells, "grade").source
    names = {"np": np, "torch": torch}
    exec(solution + "\n" + check, names)
    assert capsys.readouterr().out == "right\n"
    with pytest.raises(Mistake, match="an empty stub"):
        exec(SOLUTION.sub(r"\1raise NotImplementedError", solution) + "\n" + check, names)

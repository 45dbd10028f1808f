"""Assignments made from the chapters' own exercises, for nbgrader and for a reader without it.

An assignment is never written by hand: :func:`assignment` takes the exercises of a chapter with
their solutions, and what an experiment builds on out of the chapter's own cells, set to data that
every machine has. nbgrader's own preprocessors make of it what a student gets.
"""

from __future__ import annotations

import ast
import copy
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ltnotes import slices
from ltnotes.files import write_text
from ltnotes.options import choice, require
from ltnotes.reruns import book_folder, read_notebook

LEVELS = ("lab", "homework")
"""About an hour without derivations, with one experiment at most; and all exercises of the chapter."""
SMALL = {"dataset": "digits-lt", "imbalance": 20, "scale": "lite", "seed": 0}
"""The chapters' parameters in an assignment: trained to their end on a set so small that it takes seconds."""
ONE_SEED = re.compile(r"^seeds = .*$", re.M)
TOTAL = 100  # points of an assignment
VISIBLE = 0.4  # of a code exercise's points, for the check that a student sees
HEADER = re.compile(r"### Exercise (\d+)\n\n\*\*(\w+)\*\* · ([●○]{3}) · (\d+) minutes\n\n(.*)", re.S)
ADMONITION = re.compile(r":::\{admonition\} (\w+)\n:class: dropdown\n\n(.*?)\n:::", re.S)
EQUATION = re.compile(r"\$\$\n((?:(?!\$\$).)*?)\n\$\$ \((eq-[\w-]+)\)", re.S)
LATER = "# More checks follow when the work is graded."
ROLE = re.compile(r"\{[\w:]+\}`[^`]*`")
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.M | re.S)
SETUP = (
    "import math\n\nimport numpy as np\nimport torch\nfrom torch.nn import functional as F\n\nfrom ltnotes import check"
)


@dataclass(frozen=True)
class Task:
    """An exercise of a chapter.

    Args:
        weight: how hard it is, 1 to 3.
        text, hint, solution: Markdown.
        code: the function with its solution, or an experiment's; "" where none is written.
        check: the call that checks it.
        name: of the function, in nbgrader's ids.
        before: the chapter's code cells before the exercises.
    """

    number: int
    kind: str
    weight: int
    minutes: int
    text: str
    hint: str
    solution: str
    code: str = ""
    check: str = ""
    name: str = ""
    before: tuple[str, ...] = field(default=(), repr=False)


def tasks(chapter: NotebookNode) -> list[Task]:
    """The exercises of a chapter, in their order."""
    found: list[list[NotebookNode]] = []
    before = []
    for cell in chapter.cells:
        if HEADER.search(cell.source):
            found.append([cell])
        elif found and cell.source.startswith("## "):
            break
        elif found:
            found[-1].append(cell)
        elif cell.cell_type == "code":
            small = _set_small(cell) if "parameters" in cell.metadata.get("tags", []) else cell.source
            before.append(ONE_SEED.sub("seeds = [seed]", small))
    return [_task(cells, tuple(before)) for cells in found]


def _set_small(parameters: NotebookNode) -> str:
    """The parameters' cell with ``SMALL`` in place of the chapter's values."""
    lines = parameters.source.splitlines()
    own = {line.split(":")[0]: line for line in lines}
    return "\n".join(f"{name} = {SMALL[name]!r}" if name in SMALL else line for name, line in own.items())


def _task(cells: Sequence[NotebookNode], before: tuple[str, ...]) -> Task:
    number, kind, dots, minutes, text = HEADER.search(cells[0].source).groups()
    folded = dict(ADMONITION.findall("\n".join(cell.source for cell in cells if cell.cell_type == "markdown")))
    parts, hidden = {}, []
    for cell in cells:
        if graded := cell.metadata.get("nbgrader"):
            parts["code" if graded["solution"] else "check"] = cell.source
            if graded["solution"]:
                parts["name"] = graded["grade_id"]
        elif "hide-cell" in cell.metadata.get("tags", []):
            hidden.append(cell.source)
    body, solution = ADMONITION.sub("", text).strip(), folded.get("Solution", "")
    if kind == "Experiment":
        parts["code"] = "\n".join(hidden)
    elif hidden and not parts:  # what the solution speaks of
        solution = f"{solution}\n\n```python\n{chr(10).join(hidden)}\n```".strip()
    rest = {"before": before, **parts}
    return Task(int(number), kind, dots.count("●"), int(minutes), body, folded["Hint"], solution, **rest)


def chosen(chapter: NotebookNode, level: str) -> list[Task]:
    """The exercises of one of ``LEVELS``."""
    of = tasks(chapter)
    if choice("level", level, LEVELS) == "homework":
        return of
    first = next((task for task in of if task.kind == "Experiment"), None)
    return [task for task in of if task.kind in ("Calculation", "Code") or task is first]


def points(of: Sequence[Task]) -> list[int]:
    """Whole points by difficulty, ``TOTAL`` in all; what rounding leaves goes to the first."""
    weights = [task.weight for task in of]
    given = [TOTAL * weight // sum(weights) for weight in weights]
    given[0] += TOTAL - sum(given)
    return given


# --- a notebook of them ---------------------------------------------------------------------


def assignment(name: str, level: str) -> NotebookNode:
    """The teacher's notebook, with solutions, hidden checks and what marks are given for.

    Args:
        name: of a chapter.
        level: "lab" or "homework".

    Raises:
        ValueError: an unknown level, or a chapter without exercises.
        DamagedFileError: no such chapter.
    """
    chapter = read_notebook(book_folder() / f"{name}.ipynb")
    found = chosen(chapter, level)
    require(len(found) > 0, "chapter", name, "one with exercises")
    title = chapter.cells[0].source.splitlines()[0].removeprefix("# ")
    cells = [new_markdown_cell(_opening(title, level, found)), _setup(name)]
    given: list[slices.Statement] = []
    for task, worth in zip(found, points(found), strict=True):
        cells += _from_chapter(task, given, name)
        cells += _cells(task, worth, name)
    for i, cell in enumerate(cells):
        cell["id"] = f"{name[:2]}-{level}-{i:02d}"
    book = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return new_notebook(cells=cells, metadata=book)


def _opening(title: str, level: str, found: Sequence[Task]) -> str:
    minutes = sum(task.minutes for task in found)
    return (
        f"# {title}: {level}\n\n{len(found)} exercises of the chapter, {TOTAL} points, about {minutes} minutes."
        " Replace what raises `NotImplementedError`, and write your answers where it says so. A check says *right*,"
        " or which mistake your function looks like; more checks follow when the work is graded. Keep the chapter open"
        " beside it: texts refer to its equations, sections and figures. Experiments run on the digits with one seed,"
        " also where a text names several, so that a cell takes seconds; the chapter has them on larger images."
    )


def _from_chapter(task: Task, given: list[slices.Statement], name: str) -> Iterator[NotebookNode]:
    """What an exercise uses of the chapter, less what was ``given`` before."""
    if task.kind == "Code":  # would show a solution
        return
    code = "\n".join([*_mentioned(f"{task.text}\n{task.hint}"), task.code])
    new = [s for s in slices.builds_on(code, slices.read(task.before)) if s not in given]
    sources = slices.written(new, code)
    if not sources:
        return
    given += new
    heading = f"Exercise {task.number} uses this of the chapter, here on the digits."
    yield _marked(new_markdown_cell(heading), f"from-{name}-{task.number}", locked=True)
    for i, source in enumerate(sources, start=1):
        yield _marked(new_code_cell(source), f"from-{name}-{task.number}-{i}", locked=True)


def _mentioned(text: str) -> list[str]:
    """Python among the words of a text that are set as code: names, and of calls the function."""
    found = []
    for fragment in re.findall(r"`([^`\n]+)`", ROLE.sub("", text)):
        try:
            node = ast.parse(fragment, mode="eval").body
        except SyntaxError:
            continue
        calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
        found += [n.id for part in calls or [node] for n in ast.walk(part) if isinstance(n, ast.Name)]
    return found


def _setup(name: str) -> NotebookNode:
    cell = new_code_cell(SETUP)
    cell.metadata["nbgrader"] = _graded(f"setup-{name}", locked=True)
    return cell


def _graded(grade_id: str, solution: bool = False, worth: int | None = None, locked: bool = False) -> dict:
    fields = {"grade_id": grade_id, "solution": solution, "grade": worth is not None, "locked": locked, "task": False}
    return fields | {"schema_version": 3} | ({} if worth is None else {"points": worth})


def _cells(task: Task, worth: int, chapter: str) -> Iterator[NotebookNode]:
    statement = (
        f"## Exercise {task.number}\n\n**{task.kind}** · {worth} points · {task.minutes} minutes\n\n{_plain(task.text)}"
    )
    yield _marked(
        new_markdown_cell(f"{statement}\n\n<details><summary>Hint</summary>\n\n{_plain(task.hint)}\n\n</details>"),
        f"text-{chapter}-{task.number}",
        locked=True,
    )
    if not task.check:
        if task.code:
            experiment = f"### BEGIN SOLUTION\n{task.code}\n### END SOLUTION"
            yield _marked(new_code_cell(experiment), f"code-{chapter}-{task.number}", solution=True)
        words = _plain(task.solution) or "What the code above prints."
        if task.kind == "Experiment":
            words = f"In the chapter, on its images:\n\n{words}"
        answer = f"### BEGIN SOLUTION\n{words}\n\n{_marks(task.kind, worth)}\n### END SOLUTION"
        yield _marked(new_markdown_cell(answer), f"answer-{chapter}-{task.number}", solution=True, worth=worth)
        return
    seen = round(VISIBLE * worth)
    function = task.check.split("(")[-1].rstrip(")")
    exercise = task.check.splitlines()[-1].split("(")[0]
    hidden = f"{LATER}\n### BEGIN HIDDEN TESTS\n{exercise}({function})\n### END HIDDEN TESTS"
    yield _marked(new_code_cell(task.code), task.name, solution=True)
    yield _marked(new_code_cell(f"{exercise}.example({function})"), f"check-{task.name}", worth=seen, locked=True)
    yield _marked(new_code_cell(hidden), f"hidden-{task.name}", worth=worth - seen, locked=True)


def _marked(cell: NotebookNode, grade_id: str, **fields) -> NotebookNode:
    cell.metadata["nbgrader"] = _graded(grade_id, **fields)
    return cell


MARKS = {
    "Experiment": (
        "the code measures what is asked, and the conclusion follows from that, whatever the chapter found",
        "it measures what is asked; the conclusion is missing, or the numbers do not carry it",
        "a prediction with its reason, or a plan, without a measurement",
    ),
    "": (
        "every step is there and follows",
        "the idea is right, a step is missing or wrong",
        "the quantities are set up, the idea is not",
    ),
}


def _marks(kind: str, worth: int) -> str:
    """What marks are given for; a student never sees it."""
    full, half, little = MARKS.get(kind, MARKS[""])
    lines = (f"{worth}: {full}", f"{worth // 2}: {half}", f"{worth // 5}: {little}", "0: otherwise")
    return "**Marks**\n\n" + "\n".join(f"- {line}" for line in lines)


# --- Markdown without Sphinx --------------------------------------------------------------


def _plain(text: str) -> str:
    """The same text for a notebook: roles as words, and the equations that it refers to written below it."""
    labels = list(dict.fromkeys(re.findall(r"\{eq\}`(eq-[\w-]+)`", text)))
    known = _equations(book_folder())
    text = re.sub(r"\{eq\}`eq-([\w-]+)`", r"(\1)", text)
    text = re.sub(r"\{\w+\}`([^`<]+?) <[^`>]+>`", r"\1", text)  # {doc}`words <file>`
    text = re.sub(r"\{cite:t\}`([^`]+)`", r"\1", text)
    text = re.sub(r" ?\{[\w:]+\}`[^`]+`", "", text)
    below = "".join(f"\n\n({label.removeprefix('eq-')})\n$$\n{known[label]}\n$$" for label in labels)
    return text + below


@functools.cache
def _equations(book: Path) -> dict[str, str]:
    """Every labelled equation of the chapters, by its label."""
    found = {}
    for path in sorted(book.glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                found |= {label: latex for latex, label in EQUATION.findall(cell.source)}
    return found


# --- what is written --------------------------------------------------------------------------


def make(out: Path, released: bool) -> list[Path]:
    """Write both levels of every chapter below ``out``, as ``<chapter>-<level>/<chapter>-<level>.ipynb``.

    Args:
        released: as a student gets it, without solutions; else the teacher's.
    """
    written = []
    for path in sorted(book_folder().glob("[0-9]*.ipynb")):
        for level in LEVELS:
            name = f"{path.stem}-{level}"
            notebook = assignment(path.stem, level)
            target = out / name / f"{name}.ipynb"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_text(text_of(release(notebook) if released else notebook), target)
            written.append(target)
    return written


def text_of(notebook: NotebookNode) -> str:
    """A notebook as it is written to a file."""
    return nbformat.writes(notebook) + "\n"


def release(notebook: NotebookNode) -> NotebookNode:
    """A student's copy: solutions, marks and hidden checks taken out, as nbgrader does it.

    Raises:
        ValueError: nbgrader is not installed.
    """
    try:
        from nbgrader import preprocessors
    except ImportError as error:
        raise ValueError(f"course: nbgrader is not installed ({error}); 'pip install ltnotes[course]'") from None

    notebook = copy.deepcopy(notebook)
    for kind in ("ClearSolutions", "ClearHiddenTests", "ClearOutput", "LockCells"):
        notebook, _ = getattr(preprocessors, kind)().preprocess(notebook, {})
    return notebook

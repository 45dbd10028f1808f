"""Assignments made from the chapters' own exercises, for nbgrader and for a reader without it.

An assignment is never written by hand: :func:`assignment` takes the exercises of a chapter with
their solutions, and nbgrader's own preprocessors make of it what a student gets.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ltnotes.options import choice, require
from ltnotes.reruns import book_folder, read_notebook

LEVELS = {"lab": ("Code",), "homework": ("Calculation", "Derivation", "Code")}
"""Which exercises an assignment has: those that grade themselves, in an hour; or all that need no training."""
TOTAL = 100  # points of an assignment
VISIBLE = 0.4  # of a code exercise's points, for the check that a student sees
HEADER = re.compile(r"### Exercise (\d+)\n\n\*\*(\w+)\*\* · ([●○]{3}) · (\d+) minutes\n\n(.*)", re.S)
ADMONITION = re.compile(r":::\{admonition\} (\w+)\n:class: dropdown\n\n(.*?)\n:::", re.S)
EQUATION = re.compile(r"\$\$\n((?:(?!\$\$).)*?)\n\$\$ \((eq-[\w-]+)\)", re.S)
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
        code: the function with its solution; "" where none is written.
        check: the call that checks it.
        name: of the function, in nbgrader's ids.
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


def tasks(chapter: NotebookNode) -> list[Task]:
    """The exercises of a chapter, in their order."""
    found: list[list[NotebookNode]] = []
    for cell in chapter.cells:
        if HEADER.search(cell.source):
            found.append([cell])
        elif found and cell.source.startswith("## "):
            break
        elif found:
            found[-1].append(cell)
    return [_task(cells) for cells in found]


def _task(cells: Sequence[NotebookNode]) -> Task:
    number, kind, dots, minutes, text = HEADER.search(cells[0].source).groups()
    folded = dict(ADMONITION.findall("\n".join(cell.source for cell in cells if cell.cell_type == "markdown")))
    parts = {}
    for cell in cells:
        if graded := cell.metadata.get("nbgrader"):
            parts["code" if graded["solution"] else "check"] = cell.source
            if graded["solution"]:
                parts["name"] = graded["grade_id"]
    body = ADMONITION.sub("", text).strip()
    return Task(
        int(number), kind, dots.count("●"), int(minutes), body, folded["Hint"], folded.get("Solution", ""), **parts
    )


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
        ValueError: an unknown level, or a chapter without such exercises.
    """
    kinds = LEVELS[choice("level", level, tuple(LEVELS))]
    chapter = read_notebook(book_folder() / f"{name}.ipynb")
    chosen = [task for task in tasks(chapter) if task.kind in kinds]
    require(len(chosen) > 0, "chapter", name, f"one with exercises of the kind {' or '.join(kinds)}")
    title = chapter.cells[0].source.splitlines()[0].removeprefix("# ")
    cells = [new_markdown_cell(_opening(title, level, chosen)), _setup(name)]
    for task, worth in zip(chosen, points(chosen), strict=True):
        cells += _cells(task, worth, name)
    for i, cell in enumerate(cells):
        cell["id"] = f"{name[:2]}-{level}-{i:02d}"
    book = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return new_notebook(cells=cells, metadata=book)


def _opening(title: str, level: str, chosen: Sequence[Task]) -> str:
    minutes = sum(task.minutes for task in chosen)
    return (
        f"# {title}: {level}\n\n{len(chosen)} exercises of the chapter, {TOTAL} points, about {minutes} minutes."
        " Replace what raises `NotImplementedError`, and write your answers where it says so. A check says *right*,"
        " or which mistake your function looks like; more checks follow when the work is graded."
    )


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
    if not task.code:
        answer = f"### BEGIN SOLUTION\n{_plain(task.solution)}\n\n{_marks(worth)}\n### END SOLUTION"
        yield _marked(new_markdown_cell(answer), f"answer-{chapter}-{task.number}", solution=True, worth=worth)
        return
    seen = round(VISIBLE * worth)
    function = task.check.split("(")[-1].rstrip(")")
    exercise = task.check.splitlines()[-1].split("(")[0]
    hidden = f"### BEGIN HIDDEN TESTS\n{exercise}({function})\n### END HIDDEN TESTS"
    yield _marked(new_code_cell(task.code), task.name, solution=True)
    yield _marked(new_code_cell(f"{exercise}.example({function})"), f"check-{task.name}", worth=seen, locked=True)
    yield _marked(new_code_cell(hidden), f"hidden-{task.name}", worth=worth - seen, locked=True)


def _marked(cell: NotebookNode, grade_id: str, **fields) -> NotebookNode:
    cell.metadata["nbgrader"] = _graded(grade_id, **fields)
    return cell


def _marks(worth: int) -> str:
    """What marks are given for; a student never sees it."""
    lines = (
        f"{worth}: every step is there and follows",
        f"{worth // 2}: the idea is right, a step is missing or wrong",
        f"{worth // 5}: the quantities are set up, the idea is not",
        "0: otherwise",
    )
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
            nbformat.write(release(notebook) if released else notebook, target)
            written.append(target)
    return written


def release(notebook: NotebookNode) -> NotebookNode:
    """A student's copy: solutions, marks and hidden checks taken out, as nbgrader does it.

    Raises:
        ValueError: nbgrader is not installed.
    """
    try:
        from nbgrader import preprocessors
    except ImportError as error:
        raise ValueError(f"course: nbgrader is not installed ({error}); 'pip install ltnotes[course]'") from None

    for kind in ("ClearSolutions", "ClearHiddenTests", "ClearOutput", "LockCells"):
        notebook, _ = getattr(preprocessors, kind)().preprocess(notebook, {})
    return notebook


# --- a course ---------------------------------------------------------------------------------

CONFIG = '''"""nbgrader's settings. All of them: https://nbgrader.readthedocs.io"""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "{name}"
c.CourseDirectory.root = r"{root}"
# A cell that runs longer is interrupted and counts 0; the cells after it still run.
c.ExecutePreprocessor.timeout = {timeout}
c.ExecutePreprocessor.interrupt_on_timeout = True
c.ExecutePreprocessor.error_on_timeout = {{"ename": "CellTimeoutError", "evalue": "", "traceback": []}}
c.ClearSolutions.code_stub = {{"python": "raise NotImplementedError  # your code"}}
c.ClearSolutions.text_stub = "YOUR ANSWER HERE"
c.ClearSolutions.enforce_metadata = False
'''
TIMEOUT = 60  # seconds for a cell; no cell of an assignment takes more than a few
WEEKS = (
    ("The long tail; metrics", "01-long-tail"),
    ("Sampling and weighting", "02-balancers"),
    ("Heads without lengths", "03-squashing-cosine"),
    ("Hard examples for the tail", "04-blt"),
    ("Features of others", "05-cam-fusion"),
    ("Margins, and longer features", "06-kps-ga, 07-fbl-curriculum"),
    ("Clouds on the scores", "08-gcl-cben"),
    ("Your own data: a project", "10-your-own-data"),
)


def init(folder: Path) -> Path:
    """A course for nbgrader: its settings, all assignments as sources, and a page for the teacher.

    Raises:
        ValueError: a folder that holds something already.
    """
    require(not folder.exists() or not any(folder.iterdir()), "course", str(folder), "a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    make(folder / "source", released=False)
    config = CONFIG.format(name=folder.resolve().name, root=folder.resolve(), timeout=TIMEOUT)
    (folder / "nbgrader_config.py").write_text(config, encoding="utf-8")
    (folder / "README.md").write_text(_page_for_teachers(folder.resolve().name), encoding="utf-8")
    return folder


def _page_for_teachers(name: str) -> str:
    plan = "\n".join(f"| {week} | {topic} | {chapters} |" for week, (topic, chapters) in enumerate(WEEKS, start=1))
    return f"""# {name}

Assignments of the Long-Tail Notes, for nbgrader. Each chapter has a *lab*, which grades itself and takes about an
hour, and a *homework*, whose derivations you grade by hand with the marks that stand beside the solutions.

| week | topic | chapters |
|---|---|---|
{plan}

Run these in this folder:

    ltnotes course release . 01-long-tail-lab      # release/: what students get
    ltnotes course grade . 01-long-tail-lab        # of submitted/<student>/01-long-tail-lab/
    ltnotes course feedback . 01-long-tail-lab     # feedback/<student>/: a page each
    ltnotes course grades .                        # grades.csv
    jupyter lab                                    # derivations by hand: menu Nbgrader, Formgrader

A cell that runs longer than {TIMEOUT} seconds is interrupted and counts 0. Cells with checks are put back as they
were before grading, so edits to them have no effect.
"""


STEPS = {
    "release": ("generate_assignment", "--create", "--force"),
    "grade": ("autograde", "--create", "--force"),
    "feedback": ("generate_feedback", "--force"),
    "grades": ("export",),
}


def step(name: str, folder: Path, assignment: str | None = None) -> None:
    """One of ``STEPS`` of a course, by nbgrader.

    Raises:
        ValueError: a folder that is no course, or an assignment that it does not have.
        RuntimeError: nbgrader failed; what it said goes to the terminal.
    """
    command, *options = STEPS[choice("step", name, tuple(STEPS))]
    require((folder / "nbgrader_config.py").is_file(), "course", str(folder), "a folder made by 'ltnotes course init'")
    if name != "grades":
        known = sorted(path.name for path in (folder / "source").iterdir())
        require(assignment in known, "assignment", assignment, f"one of {', '.join(known)}")
        options = [assignment, *options]
    # nbgrader starts programs that lie beside Python, also where that folder is on no path.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", command, *options], cwd=folder, env=os.environ | {"PATH": path}, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"nbgrader {command} ended with {done.returncode}, see above; what was graded before is kept"
        )

"""A course for nbgrader: made from the assignments, and led from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ltnotes.assignments import make
from ltnotes.options import choice, require

CONFIG = '''"""nbgrader's settings. All of them: https://nbgrader.readthedocs.io"""

import os

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "{name}"
c.CourseDirectory.root = os.path.dirname(os.path.abspath(__file__))  # a course can be moved
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
    ("Comparing methods", "09-comparison"),
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
    config = CONFIG.format(name=folder.resolve().name, timeout=TIMEOUT)
    (folder / "nbgrader_config.py").write_text(config, encoding="utf-8")
    (folder / "README.md").write_text(_page_for_teachers(folder.resolve().name), encoding="utf-8")
    return folder


def _page_for_teachers(name: str) -> str:
    plan = "\n".join(f"| {week} | {topic} | {chapters} |" for week, (topic, chapters) in enumerate(WEEKS, start=1))
    return f"""# {name}

Assignments of the Long-Tail Notes, for nbgrader. Each chapter has a *lab* of about an hour (a calculation, the
functions, an experiment) and a *homework* (all exercises of the chapter). Functions are graded by their checks.
Calculations, derivations and what an experiment means are graded by hand: the marks stand below each solution.

| week | topic | chapters |
|---|---|---|
{plan}

Run these in this folder:

    ltnotes course release . 01-long-tail-lab      # release/: what students get
    ltnotes course grade . 01-long-tail-lab        # of submitted/<student>/01-long-tail-lab/
    jupyter lab                                    # what is graded by hand: menu Nbgrader, Formgrader
    ltnotes course feedback . 01-long-tail-lab     # feedback/<student>/: a page each
    ltnotes course grades .                        # grades.csv

A cell that runs longer than {TIMEOUT} seconds is interrupted and counts 0; on two cores none takes more than a few,
but for chapter 10, whose network reads the digits once. Cells with checks and those from the chapter are put back as
they were before grading, so edits to them have no effect. Trainings are kept in runs/ and made once for all.
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
        [sys.executable, "-m", "nbgrader", command, *options],
        cwd=folder,
        # one cache of trainings for all students, the course's own unless another is named
        env={"LTNOTES_HOME": str(folder.resolve()), **os.environ, "PATH": path},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"nbgrader {command} ended with {done.returncode}, see above; grades given before are kept in gradebook.db"
        )

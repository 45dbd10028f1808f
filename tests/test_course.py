"""A course: made, released, handed in, graded by nbgrader and by hand."""

import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from ltnotes import assignments, course
from ltnotes.__main__ import main

pytest.importorskip("nbgrader", reason="the extra [course] is not installed")

BOOK = Path(__file__).parents[1] / "book"
CHAPTERS = sorted(path.stem for path in BOOK.glob("[0-9]*.ipynb"))


@pytest.fixture(autouse=True)
def book(monkeypatch):
    monkeypatch.setattr(assignments, "book_folder", lambda: BOOK)


LAB = "06-kps-ga-lab"


def graded(notebook):
    return [cell for cell in notebook.cells if "nbgrader" in cell.metadata]


def solved(released, teacher):
    solutions = {cell.metadata.nbgrader.grade_id: cell.source for cell in graded(teacher)}
    for cell in graded(released):
        if cell.metadata.nbgrader.solution:
            cell.source = solutions[cell.metadata.nbgrader.grade_id]


def functions(notebook):
    return [c for c in graded(notebook) if c.metadata.nbgrader.solution and c.source.startswith("def ")]


def half_right(released, teacher):
    """The first function is right for short lists alone, the second is as it was handed out."""
    solved(released, teacher)
    first, second = functions(released)
    name = re.search(r"def (\w+)\((\w+)", first.source)
    first.source += f"\n\n_right = {name[1]}\n\n\ndef {name[1]}({name[2]}, *others):\n"
    first.source += f"    return _right({name[2]}, *others) * (1 if len({name[2]}) < 4 else 2)"
    second.source = "def kps_loss(*arguments):\n    raise NotImplementedError"


def edited(released, teacher):
    for cell in graded(released):
        if cell.metadata.nbgrader.grade:
            cell.source = "print('right')"


def endless(released, teacher):
    solved(released, teacher)
    first, _ = functions(released)
    first.source = re.sub(r"(def .*)\n(.*\n)*.*", r"\1\n    while True:\n        pass", first.source)


def without_imports(released, teacher):
    solved(released, teacher)
    released.cells = [cell for cell in released.cells if "import torch" not in cell.source]


SUBMISSIONS = {  # points by checks: two functions have 28 each, of which 11 are seen
    "perfect": (solved, 56),
    "partial": (half_right, 11),
    "edited": (edited, 0),
    "endless": (endless, 28),
    "imports-nothing": (without_imports, 0),
}


def scores_in(folder):
    assert main(["course", "grades", str(folder)]) == 0
    return pd.read_csv(folder / "grades.csv", index_col="student_id")


def mark_by_hand(folder, student):
    """All points for what waits for a teacher, as the form of nbgrader does it."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{folder}/gradebook.db") as gradebook:
        notebook = gradebook.find_submission_notebook(LAB, LAB, student)
        waiting = [grade for grade in notebook.grades if grade.needs_manual_grade]
        for grade in waiting:
            grade.manual_score = grade.max_score
            grade.needs_manual_grade = False
        gradebook.db.commit()
        return len(waiting)


def test_five_submissions_get_the_scores_that_they_should(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("LTNOTES_HOME", raising=False)
    monkeypatch.setattr(course, "CONFIG", course.CONFIG.replace("{timeout}", "20"))
    folder = tmp_path / "course"
    assert main(["course", "init", str(folder)]) == 0
    assert len(list((folder / "source").iterdir())) == 2 * len(CHAPTERS)
    assert main(["course", "release", str(folder), LAB]) == 0
    for student, (change, _) in SUBMISSIONS.items():
        released, teacher = (
            nbformat.read(folder / kind / LAB / f"{LAB}.ipynb", as_version=4) for kind in ("release", "source")
        )
        change(released, teacher)
        target = folder / "submitted" / student / LAB
        target.mkdir(parents=True)
        nbformat.write(released, target / f"{LAB}.ipynb")
    assert main(["course", "grade", str(folder), LAB]) == 0
    grades = scores_in(folder)
    assert grades["score"].to_dict() == {student: score for student, (_, score) in SUBMISSIONS.items()}
    assert set(grades["max_score"]) == {assignments.TOTAL}
    assert mark_by_hand(folder, "perfect") == 2  # the calculation, and what the experiment means
    assert scores_in(folder)["score"]["perfect"] == assignments.TOTAL
    assert main(["course", "feedback", str(folder), LAB]) == 0
    assert len(list((folder / "feedback").rglob("*.html"))) == len(SUBMISSIONS)
    assert list((folder / "runs").glob("kps-*"))  # trained once, for all of them
    assert not list((folder / "autograded").rglob("runs"))


def test_what_is_no_course_and_what_it_has_not_are_named(tmp_path, capsys):
    assert main(["course", "grade", str(tmp_path), LAB]) == 2
    assert "course: got" in capsys.readouterr().err
    (tmp_path / "something").touch()
    assert main(["course", "init", str(tmp_path)]) == 2
    assert "allowed is a new or empty folder" in capsys.readouterr().err
    (tmp_path / "nbgrader_config.py").touch()
    (tmp_path / "source" / LAB).mkdir(parents=True)
    assert main(["course", "grade", str(tmp_path), "homework"]) == 2
    assert f"assignment: got 'homework', allowed is one of {LAB}" in capsys.readouterr().err

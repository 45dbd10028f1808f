"""Assignments: made from the chapters, complete for a teacher, and without what a student must not see."""

import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from ltnotes import check, course
from ltnotes.__main__ import main
from ltnotes.exercises.engine import Mistake

pytest.importorskip("nbgrader", reason="the extra [course] is not installed")

BOOK = Path(__file__).parents[1] / "book"
CHAPTERS = sorted(path.stem for path in BOOK.glob("[0-9]*.ipynb"))
EACH = pytest.mark.parametrize("name", CHAPTERS)
BOTH = pytest.mark.parametrize("level", course.LEVELS)


@pytest.fixture(autouse=True)
def book(monkeypatch):
    monkeypatch.setattr(course, "book_folder", lambda: BOOK)


def cells_of(notebook, kind):
    return [cell for cell in notebook.cells if cell.cell_type == kind]


@EACH
@BOTH
def test_an_assignment_has_a_hundred_points_and_ids_of_its_own(name, level):
    notebook = course.assignment(name, level)
    nbformat.validate(notebook)
    graded = [cell.metadata.nbgrader for cell in notebook.cells if "nbgrader" in cell.metadata]
    assert sum(cell.get("points", 0) for cell in graded) == course.TOTAL
    assert all(cell.points > 0 for cell in graded if cell.grade)
    ids = [cell.grade_id for cell in graded]
    assert len(ids) == len(set(ids))


@EACH
@BOTH
def test_a_released_copy_holds_no_solution_no_mark_and_no_hidden_check(name, level):
    teacher = course.assignment(name, level)
    kept = [cell.source for cell in teacher.cells]
    stated = "\n".join(cell.source for cell in cells_of(teacher, "markdown") if "SOLUTION" not in cell.source)
    student = course.release(teacher)
    text = "\n".join(cell.source for cell in student.cells)
    assert not re.search(r"### (BEGIN|END)|\*\*Marks\*\*", text)
    for source in kept:
        for secret in re.findall(r"### BEGIN [A-Z ]+\n(.*?)### END", source, re.S):
            lines = [line.strip() for line in secret.splitlines() if len(line.strip()) > 30]
            assert not [line for line in lines if line in text and line not in stated]  # an equation can be in both
    assert "raise NotImplementedError" in text
    assert student.cells[-1].metadata.nbgrader.locked or "YOUR ANSWER HERE" in text


@EACH
def test_the_teachers_copy_passes_its_own_checks_and_the_students_does_not(name, capsys):
    teacher = course.assignment(name, "lab")
    names = {}
    for cell in cells_of(teacher, "code"):
        exec(cell.source, names)
    assert set(capsys.readouterr().out.split()) == {"right"}
    student = course.release(course.assignment(name, "lab"))
    setup, *others = cells_of(student, "code")
    exec(setup.source, names := {})
    checks = [cell for cell in others if cell.source.startswith("check.")]
    for cell in others:
        if cell in checks:
            with pytest.raises(Mistake, match="an empty stub"):
                exec(cell.source, names)
        else:
            exec(cell.source, names)
    assert checks


@EACH
@BOTH
def test_no_role_of_sphinx_is_left_in_the_text(name, level):
    for cell in cells_of(course.assignment(name, level), "markdown"):
        assert not re.search(r"\{(eq|doc|cite|numref|ref)[:\w]*\}`|:::", cell.source), cell.source[:200]


def test_equations_that_a_text_refers_to_are_written_below_it():
    text = course._plain(
        "By {eq}`eq-01-adjusted` and {doc}`chapter 1 <01-long-tail>`, as {cite:t}`li2022advances` has it."
    )
    assert text.startswith("By (01-adjusted) and chapter 1, as li2022advances has it.\n\n(01-adjusted)\n$$\n")


def test_an_example_is_the_first_case_alone():
    exercise = check.adjust
    first = exercise.cases()[0]

    def right_once(*arguments):
        same = len(arguments[1]) == len(first["counts"])
        return exercise.reference(*arguments) * (1 if same else 2)

    exercise.example(right_once)
    with pytest.raises(Mistake):
        exercise(right_once)


def test_a_level_that_there_is_not_and_a_chapter_without_exercises_are_named():
    with pytest.raises(ValueError, match=r"^level: got 'exam', allowed are lab, homework"):
        course.assignment(CHAPTERS[0], "exam")


def test_every_check_that_a_chapter_grades_is_in_its_lab():
    for name in CHAPTERS:
        chapter = nbformat.read(BOOK / f"{name}.ipynb", as_version=4)
        graded_cells = [c for c in chapter.cells if c.metadata.get("nbgrader", {}).get("grade")]
        expected = [re.search(r"^check\.(\w+)\(", cell.source, re.M)[1] for cell in graded_cells]
        lab = "\n".join(cell.source for cell in cells_of(course.assignment(name, "lab"), "code"))
        assert expected and re.findall(r"check\.(\w+)\.example", lab) == expected


# --- a course, graded ---

LAB = "06-kps-ga-lab"


def graded(notebook):
    return [cell for cell in notebook.cells if "nbgrader" in cell.metadata]


def solved(released, teacher):
    solutions = {cell.metadata.nbgrader.grade_id: cell.source for cell in graded(teacher)}
    for cell in graded(released):
        if cell.metadata.nbgrader.solution:
            cell.source = solutions[cell.metadata.nbgrader.grade_id]


def half_right(released, teacher):
    """The first function is right for short lists alone, the second is as it was handed out."""
    solved(released, teacher)
    first, second = (cell for cell in graded(released) if cell.metadata.nbgrader.solution)
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
    first, _ = (cell for cell in graded(released) if cell.metadata.nbgrader.solution)
    first.source = re.sub(r"(def .*)\n(.*\n)*.*", r"\1\n    while True:\n        pass", first.source)


def without_imports(released, teacher):
    solved(released, teacher)
    released.cells = [cell for cell in released.cells if "import torch" not in cell.source]


SUBMISSIONS = {
    "perfect": (solved, 100),
    "partial": (half_right, 20),
    "edited": (edited, 0),
    "endless": (endless, 50),
    "imports-nothing": (without_imports, 0),
}


def test_five_submissions_get_the_scores_that_they_should(tmp_path, monkeypatch, capfd):
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
    for step in (["grade", str(folder), LAB], ["feedback", str(folder), LAB], ["grades", str(folder)]):
        assert main(["course", *step]) == 0
    grades = pd.read_csv(folder / "grades.csv", index_col="student_id")
    assert grades["score"].to_dict() == {student: score for student, (_, score) in SUBMISSIONS.items()}
    assert set(grades["max_score"]) == {course.TOTAL}
    assert len(list((folder / "feedback").rglob("*.html"))) == len(SUBMISSIONS)


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

"""Assignments: made from the chapters, complete for a teacher, and without what a student must not see."""

import ast
import copy
import functools
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from ltnotes import assignments, check
from ltnotes.exercises.engine import Mistake

pytest.importorskip("nbgrader", reason="the extra [course] is not installed")

BOOK = Path(__file__).parents[1] / "book"
CHAPTERS = sorted(path.stem for path in BOOK.glob("[0-9]*.ipynb"))
EACH = pytest.mark.parametrize("name", CHAPTERS)
BOTH = pytest.mark.parametrize("level", assignments.LEVELS)


@pytest.fixture(autouse=True)
def book(monkeypatch):
    monkeypatch.setattr(assignments, "book_folder", lambda: BOOK)


@functools.cache
def _made(name, level):
    return assignments.assignment(name, level)


def assignment(name, level):
    """The teacher's notebook, made once for all tests."""
    return copy.deepcopy(_made(name, level))


def cells_of(notebook, kind):
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def without_experiments(notebook):
    """Code cells, less those that train."""
    ids = re.compile("(from|code)-")
    return [cell for cell in cells_of(notebook, "code") if not ids.match(cell.metadata.nbgrader.grade_id)]


@EACH
@BOTH
def test_an_assignment_has_a_hundred_points_and_ids_of_its_own(name, level):
    notebook = assignment(name, level)
    nbformat.validate(notebook)
    graded = [cell.metadata.nbgrader for cell in notebook.cells if "nbgrader" in cell.metadata]
    assert sum(cell.get("points", 0) for cell in graded) == assignments.TOTAL
    assert all(cell.points > 0 for cell in graded if cell.grade)
    ids = [cell.grade_id for cell in graded]
    assert len(ids) == len(set(ids))


@EACH
@BOTH
def test_a_released_copy_holds_no_solution_no_mark_and_no_hidden_check(name, level):
    teacher = assignment(name, level)
    kept = [cell.source for cell in teacher.cells]
    stated = "\n".join(cell.source for cell in cells_of(teacher, "markdown") if "SOLUTION" not in cell.source)
    student = assignments.release(teacher)
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
    teacher = assignment(name, "lab")
    names = {}
    for cell in without_experiments(teacher):
        exec(cell.source, names)
    assert set(capsys.readouterr().out.split()) == {"right"}
    student = assignments.release(assignment(name, "lab"))
    setup, *others = without_experiments(student)
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
    for cell in cells_of(assignment(name, level), "markdown"):
        assert not re.search(r"\{(eq|doc|cite|numref|ref)[:\w]*\}`|:::", cell.source), cell.source[:200]


def test_equations_that_a_text_refers_to_are_written_below_it():
    text = assignments._plain(
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


def given_functions(notebook):
    """Functions in the cells that are given, by name: the source of each with all imports before it."""
    given = ("from-", "setup")
    cells = [c.source for c in cells_of(notebook, "code") if c.metadata.nbgrader.grade_id.startswith(given)]
    nodes = [node for cell in cells for node in ast.parse(cell).body]
    imports = "\n".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))
    return {node.name: f"{imports}\n{ast.unparse(node)}" for node in nodes if isinstance(node, ast.FunctionDef)}


@EACH
def test_no_function_that_is_given_solves_an_exercise(name, capsys):
    """In the order of the arguments that it has, and without those that have defaults."""
    notebook = assignment(name, "homework")
    checks = re.findall(r"check\.(\w+)\.example", "\n".join(cell.source for cell in notebook.cells))
    for function, source in given_functions(notebook).items():
        try:
            exec(source, names := {})
        except NameError:  # a default that other cells make
            continue
        for exercise in checks:
            with pytest.raises((Mistake, ValueError)):
                getattr(check, exercise)(names[function])


@EACH
@BOTH
def test_the_committed_copy_is_what_the_chapter_gives(name, level):
    committed = BOOK / "assignments" / f"{name}-{level}" / f"{name}-{level}.ipynb"
    fresh = assignments.release(assignment(name, level))
    assert committed.read_text(encoding="utf-8") == assignments.text_of(fresh), (
        "make it again: ltnotes course make book/assignments"
    )


def test_no_assignment_of_an_earlier_chapter_is_left():
    committed = {path.name for path in (BOOK / "assignments").iterdir()}
    assert committed == {f"{name}-{level}" for name in CHAPTERS for level in assignments.LEVELS}


@EACH
def test_a_lab_takes_about_an_hour_and_a_homework_has_all_exercises(name):
    chapter = nbformat.read(BOOK / f"{name}.ipynb", as_version=4)
    lab, homework = (assignments.chosen(chapter, level) for level in ("lab", "homework"))
    assert 45 <= sum(task.minutes for task in lab) <= 75
    assert [task.kind for task in lab].count("Experiment") == 1
    assert "Derivation" not in {task.kind for task in lab}
    assert homework == assignments.tasks(chapter)


@EACH
def test_an_experiment_has_code_to_write_and_an_answer_to_grade(name):
    cells = assignment(name, "lab").cells
    (code,) = (
        i for i, cell in enumerate(cells) if cell.metadata.get("nbgrader", {}).get("grade_id", "")[:5] == "code-"
    )
    assert cells[code].metadata.nbgrader.solution and not cells[code].metadata.nbgrader.grade
    answer = cells[code + 1]
    assert answer.metadata.nbgrader.points > 0 and "the code measures what is asked" in answer.source


def test_every_name_in_an_assignment_is_defined_in_it(tmp_path):
    assignments.make(tmp_path / "all", released=False)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", str(tmp_path / "all")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "all" / f"{CHAPTERS[0]}-lab" / f"{CHAPTERS[0]}-lab.ipynb"
    broken.write_text(broken.read_text().replace("import torch", "import math"), encoding="utf-8")
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def test_assignments_run_on_data_that_every_machine_has():
    for name in CHAPTERS:
        text = "\n".join(cell.source for cell in cells_of(assignment(name, "homework"), "code"))
        assert "cifar" not in re.sub(r"# .*", "", text)


def test_a_level_that_there_is_not_and_a_chapter_without_exercises_are_named():
    with pytest.raises(ValueError, match=r"^level: got 'exam', allowed are lab, homework"):
        assignments.assignment(CHAPTERS[0], "exam")


def test_every_check_that_a_chapter_grades_is_in_its_lab():
    for name in CHAPTERS:
        chapter = nbformat.read(BOOK / f"{name}.ipynb", as_version=4)
        graded_cells = [c for c in chapter.cells if c.metadata.get("nbgrader", {}).get("grade")]
        expected = [re.search(r"^check\.(\w+)\(", cell.source, re.M)[1] for cell in graded_cells]
        lab = "\n".join(cell.source for cell in cells_of(assignment(name, "lab"), "code"))
        assert expected and re.findall(r"check\.(\w+)\.example", lab) == expected

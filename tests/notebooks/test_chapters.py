"""The committed chapters keep the form that the book promises. Nothing is executed here: nbval does that."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

BOOK = Path(__file__).resolve().parents[2] / "book"
CHAPTERS = sorted(BOOK.glob("*.ipynb"))
PARAMETERS = {"dataset": str, "imbalance": int, "scale": str, "seed": int}
MAX_CELL_LINES = 40
CELLS = (40, 80)
WORDS = (2_500, 4_600)
FIGURES = (8, 13)
EXERCISES = (4, 6)
MACHINE_PATH = re.compile(r"(?<![\w.])(?:/(?:home|root|work|tmp|Users|usr|opt|mnt)/|[A-Z]:\\Users)")
EXERCISE = re.compile(r"^(?:#+ |\*\*|[:`]{3,}\{\w+\} )Exercise\b", re.M)
SOLUTION_TAGS = {"solution", "hide-cell"}  # a solution is tagged, or is a folded cell among the exercises


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request: pytest.FixtureRequest) -> NotebookNode:
    return nbformat.read(request.param, as_version=4)


def code_cells(chapter: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in chapter.cells if cell.cell_type == "code"]


def images(cell: NotebookNode) -> list[NotebookNode]:
    """The outputs of a cell that are pictures."""
    outputs = cell.outputs if cell.cell_type == "code" else []
    return [out for out in outputs if any(kind.startswith("image/") for kind in out.get("data", {}))]


def figures(chapter: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in chapter.cells if images(cell)]


def begins(cell: NotebookNode) -> str:
    """The first line of a cell, to name it in a message."""
    return repr(cell.source.strip().partition("\n")[0][:60])


def name_of(cell: NotebookNode) -> str | None:
    return cell.metadata.get("mystnb", {}).get("figure", {}).get("name")


def prose(cell: NotebookNode) -> str:
    """The text of a markdown cell, or the markdown that a code cell put out."""
    if cell.cell_type == "markdown":
        return cell.source
    outputs = cell.outputs if cell.cell_type == "code" else []
    return "\n".join(out["data"]["text/markdown"] for out in outputs if "text/markdown" in out.get("data", {}))


def words(chapter: NotebookNode) -> int:
    """Words of prose, without formulas, code and the directives' own lines."""
    text = "\n".join(map(prose, chapter.cells))
    text = re.sub(r"\$\$.*?\$\$|\\begin\{(\w+\*?)\}.*?\\end\{\1\}", " ", text, flags=re.S)
    text = re.sub(r"^\s*(?:`{3,}|:{3,}|:\w+:).*$|</?[a-z][^>]*>", " ", text, flags=re.M)
    return len(re.findall(r"[^\W\d_][\w'’-]*", re.sub(r"\$[^$]+\$|`[^`]+`", " x ", text)))


def test_chapters_are_valid_and_in_the_table_of_contents(chapter: NotebookNode, request) -> None:
    nbformat.validate(chapter)
    name = request.node.callspec.params["chapter"].stem
    assert re.search(rf"^\s*- file: {re.escape(name)}$", (BOOK / "_toc.yml").read_text(), re.M), f"{name}: not in _toc"


def test_first_code_cell_holds_the_parameters(chapter: NotebookNode) -> None:
    first = code_cells(chapter)[0]
    assert "parameters" in first.metadata.get("tags", [])
    tagged = [cell for cell in chapter.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in chapter.cells)


def test_parameters_are_annotated_literals(chapter: NotebookNode) -> None:
    found = {}
    for statement in ast.parse(code_cells(chapter)[0].source).body:
        assert isinstance(statement, ast.AnnAssign), f"not an annotated assignment: {ast.unparse(statement)}"
        assert isinstance(statement.value, ast.Constant), f"not a literal: {ast.unparse(statement)}"
        assert ast.unparse(statement.annotation) == type(statement.value.value).__name__
        found[ast.unparse(statement.target)] = type(statement.value.value)
    assert PARAMETERS.items() <= found.items()


def test_no_cell_is_long(chapter: NotebookNode) -> None:
    long = [begins(cell) for cell in code_cells(chapter) if cell.source.count("\n") + 1 > MAX_CELL_LINES]
    assert not long


def test_cells_words_and_figures_are_within_bounds(chapter: NotebookNode) -> None:
    assert CELLS[0] <= len(chapter.cells) <= CELLS[1]
    assert WORDS[0] <= words(chapter) <= WORDS[1]
    assert FIGURES[0] <= len(figures(chapter)) <= FIGURES[1]


def test_every_cell_was_executed_in_order(chapter: NotebookNode) -> None:
    counts = [cell.execution_count for cell in code_cells(chapter) if cell.source.strip()]
    assert counts == list(range(1, len(counts) + 1)), "not from one fresh run, top to bottom"


def test_outputs_hold_no_error_and_no_warning(chapter: NotebookNode) -> None:
    bad = []
    for cell in code_cells(chapter):
        expected = "raises-exception" in cell.metadata.get("tags", [])
        for output in cell.outputs:
            if output.output_type == "error" and not expected:
                bad.append(f"{begins(cell)}: {output.ename}: {output.evalue}")
            if output.output_type == "stream" and output.name == "stderr":
                bad.append(f"{begins(cell)}: {output.text[:100]}")
    assert not bad, "\n".join(bad)


def test_outputs_hold_no_path_of_a_machine(chapter: NotebookNode) -> None:
    bad = []
    for cell in code_cells(chapter):
        for output in cell.outputs:
            texts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
            bad += [f"{begins(cell)}: {text[:100]}" for text in texts if MACHINE_PATH.search(str(text))]
    bad += [begins(cell) for cell in chapter.cells if MACHINE_PATH.search(cell.source)]
    assert not bad, "\n".join(bad)


def test_metadata_holds_no_path_of_a_machine(chapter: NotebookNode) -> None:
    assert not MACHINE_PATH.search(str(chapter.metadata))


def test_every_figure_has_a_caption_and_alternative_text(chapter: NotebookNode) -> None:
    bad = []
    for cell in figures(chapter):
        meta = cell.metadata.get("mystnb", {})
        alt, caption = meta.get("image", {}).get("alt", ""), meta.get("figure", {}).get("caption", "")
        if len(images(cell)) != 1:
            bad.append(f"{begins(cell)}: {len(images(cell))} pictures in one cell, so captions can't tell them apart")
        if len(cell.outputs) != len(images(cell)):
            bad.append(f"{begins(cell)}: puts out more than the picture, and all of it gets the figure's name")
        if len(alt.split()) < 5:
            bad.append(f"{begins(cell)}: alternative text {alt!r}")
        if len(caption.split()) < 5:
            bad.append(f"{begins(cell)}: caption {caption!r}")
        if not re.fullmatch(r"fig-[a-z0-9-]+", name_of(cell) or ""):
            bad.append(f"{begins(cell)}: name {name_of(cell)!r}, allowed is fig-...")
    assert not bad, "\n".join(bad)


def test_figure_names_are_unique_in_the_book() -> None:
    names = [name_of(cell) for path in CHAPTERS for cell in figures(nbformat.read(path, as_version=4))]
    assert len(names) == len(set(names))


def test_prose_follows_every_figure(chapter: NotebookNode) -> None:
    bare = []
    for index, cell in enumerate(chapter.cells):
        following = chapter.cells[index + 1 : index + 3]
        if images(cell) and not any(len(prose(after).split()) > 15 for after in following):
            bare.append(begins(cell))
    assert not bare, f"no paragraph on what we see after {bare}"


def test_no_line_of_prose_is_taken_for_a_comment(chapter: NotebookNode) -> None:
    """MyST drops a line that begins with a percent sign, as one that a number before it was broken off from."""
    lost = [line for cell in chapter.cells for line in prose(cell).splitlines() if line.startswith("%")]
    assert not lost


def test_exercises_have_solutions(chapter: NotebookNode) -> None:
    exercises = [
        i for i, cell in enumerate(chapter.cells) if cell.cell_type == "markdown" and EXERCISE.search(cell.source)
    ]
    assert EXERCISES[0] <= len(exercises) <= EXERCISES[1]
    for start, end in itertools.pairwise([*exercises, len(chapter.cells)]):
        solutions = [c for c in chapter.cells[start + 1 : end] if SOLUTION_TAGS & set(c.metadata.get("tags", []))]
        assert solutions, f"no solution cell: {begins(chapter.cells[start])}"


def test_chapter_ends_with_references(chapter: NotebookNode) -> None:
    assert re.search(r"^## References$", chapter.cells[-1].source, re.M)
    assert re.search(r"\{(?:foot)?bibliography\}", chapter.cells[-1].source)


@pytest.mark.skipif(not CHAPTERS, reason="no chapters")
def test_citations_are_in_the_bibliography() -> None:
    known = set(re.findall(r"^@\w+\{([^,]+),", (BOOK / "references.bib").read_text(encoding="utf-8"), re.M))
    cited = set()
    for path in [*CHAPTERS, *BOOK.glob("*.md")]:
        for group in re.findall(r"\{(?:foot)?cite(?::\w+)?\}`([^`]+)`", path.read_text(encoding="utf-8")):
            cited |= {key.strip() for key in group.split(",")}
    assert cited <= known, f"not in references.bib: {sorted(cited - known)}"

"""Chapters in JupyterLab, on Colab and on Binder, and the development container: what can be checked without them."""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
import sys
import types
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))
CONFIG = (ROOT / "book" / "_config.yml").read_text(encoding="utf-8")


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request: pytest.FixtureRequest) -> NotebookNode:
    return nbformat.read(request.param, as_version=4)


def tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


# --- JupyterLab ---------------------------------------------------------------------------------


def test_a_chapter_opens_with_the_kernel_that_every_jupyter_has(chapter: NotebookNode) -> None:
    assert chapter.metadata.kernelspec == {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }


def test_what_the_book_folds_is_folded_in_jupyterlab(chapter: NotebookNode) -> None:
    for cell in chapter.cells:
        folded = cell.metadata.get("jupyter", {})
        if cell.cell_type == "code":
            assert folded.get("source_hidden", False) == bool(tags(cell) & {"hide-input", "hide-cell"}), cell.source
            assert folded.get("outputs_hidden", False) == ("hide-cell" in tags(cell)), cell.source


def test_headings_make_a_table_of_contents(chapter: NotebookNode) -> None:
    """One title, and no level left out, as both the book's contents and JupyterLab's need."""
    text = "\n".join(cell.source for cell in chapter.cells if cell.cell_type == "markdown")
    levels = [len(marks) for marks in re.findall(r"^(#{1,6}) \S", re.sub(r"```.*?```", "", text, flags=re.S), re.M)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


# --- Colab ----------------------------------------------------------------------------------------


def colab_cell(chapter: NotebookNode) -> NotebookNode:
    """The cell after the parameters, which it reads."""
    at = next(i for i, cell in enumerate(chapter.cells) if "parameters" in tags(cell))
    return chapter.cells[at + 1]


def test_all_chapters_have_the_same_cell_for_colab(chapter: NotebookNode) -> None:
    cell, first = colab_cell(chapter), nbformat.read(CHAPTERS[0], as_version=4)
    assert cell.source == colab_cell(first).source and "remove-cell" in tags(cell)
    repository = re.search(r"^  url: (\S+)$", CONFIG, re.M)[1]
    assert repository in cell.source


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """git, pip and python that write down how they are called; git makes the folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("git", "pip", "python"):
        make = 'mkdir -p "${@: -1}/book"' if name == "git" else ""
        script = folder / name
        script.write_text(f'#!/bin/bash\necho "{name} $*" in "$(basename "$PWD")" >> {tmp_path}/calls\n{make}\n')
        script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "content").mkdir()
    monkeypatch.chdir(tmp_path / "content")
    return tmp_path / "calls"


def run_on_colab(monkeypatch: pytest.MonkeyPatch, **parameters) -> None:
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    exec(colab_cell(nbformat.read(CHAPTERS[0], as_version=4)).source, parameters)


def test_the_cell_does_nothing_elsewhere(programs: Path) -> None:
    exec(colab_cell(nbformat.read(CHAPTERS[0], as_version=4)).source, {"dataset": "cifar10-lt", "imbalance": 100})
    assert not programs.exists()


def test_on_colab_it_fetches_installs_prepares_and_goes_to_the_book(programs: Path, monkeypatch) -> None:
    run_on_colab(monkeypatch, dataset="cifar100-lt", imbalance=50)
    assert programs.read_text().splitlines() == [
        "git clone -q --depth 1 https://github.com/long-tail-notes/ltnotes notes in content",
        "pip install -q ./notes[features] in content",
        "python -m data_prep cifar100 --imbalance 50 in notes",
    ]
    assert Path.cwd().name == "book"


def test_on_colab_the_digits_need_no_preparation_and_a_second_run_does_nothing(programs: Path, monkeypatch) -> None:
    run_on_colab(monkeypatch, dataset="digits-lt", imbalance=10)
    assert [line.split()[0] for line in programs.read_text().splitlines()] == ["git", "pip"]
    monkeypatch.chdir(programs.parent / "content")
    run_on_colab(monkeypatch, dataset="digits-lt", imbalance=10)
    assert len(programs.read_text().splitlines()) == 2


# --- Binder, and a development container ----------------------------------------------------------


def test_binder_installs_what_the_chapters_need() -> None:
    requirements = (ROOT / ".binder" / "requirements.txt").read_text().splitlines()
    assert "-e .[book,features]" in requirements
    assert (ROOT / ".binder" / "runtime.txt").read_text().strip().startswith("python-3.1")
    assert os.access(ROOT / ".binder" / "postBuild", os.X_OK)


def test_the_development_container_is_set_up_by_make() -> None:
    settings = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert settings["postCreateCommand"].startswith("make setup")
    assert re.search(r"^setup:", (ROOT / "Makefile").read_text(), re.M)

"""What ``make book`` and ``make html`` do once the chapters are executed."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest

BOOK = Path(__file__).resolve().parents[2] / "book"
CHAPTERS = sorted(BOOK.glob("*.ipynb"))
FIRST = CHAPTERS[0].stem


@pytest.fixture
def executed(tmp_path: Path) -> Path:
    """A folder with a copy of every chapter; the first has a line of its own."""
    folder = tmp_path / "executed"
    folder.mkdir()
    for path in CHAPTERS:
        shutil.copy(path, folder)
    add_cell(folder / f"{FIRST}.ipynb", "A line that only this copy has.")
    return folder


def add_cell(path: Path, text: str) -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(text))
    nbformat.write(notebook, path)


def test_executed_chapters_and_addresses_go_into_the_book(build_book, executed: Path, tmp_path: Path) -> None:
    html = tmp_path / "html"
    repository, hub = "https://github.com/somebody/elsewhere", "https://hub.example.org"
    done = build_book(html, EXECUTED=str(executed), REPO=repository, HUB=hub)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (html / f"{FIRST}.html").read_text(encoding="utf-8")
    assert "A line that only this copy has." in page
    assert f"https://colab.research.google.com/github/somebody/elsewhere/blob/main/book/{FIRST}.ipynb" in page
    assert f"{hub}/hub/user-redirect/git-pull?" in page
    assert "A line that only this copy has." not in (BOOK / f"{FIRST}.ipynb").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["executed", "html"], "left something beside the book"


def test_a_warning_fails_the_build_and_keeps_the_last_book(build_book, executed: Path, tmp_path: Path) -> None:
    html = tmp_path / "html"
    html.mkdir()
    (html / "index.html").write_text("the last good book")
    add_cell(executed / f"{FIRST}.ipynb", "See {numref}`fig-that-nobody-drew`.")
    done = build_book(html, EXECUTED=str(executed))
    assert done.returncode != 0
    assert "fig-that-nobody-drew" in done.stdout + done.stderr
    assert (html / "index.html").read_text() == "the last good book"


def test_a_missing_chapter_fails_the_build(build_book, tmp_path: Path) -> None:
    done = build_book(tmp_path / "html", EXECUTED=str(tmp_path))
    assert done.returncode != 0
    assert not (tmp_path / "html").exists()

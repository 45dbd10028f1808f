"""Chapters with parameters of one's own: what is refused, what is written, what is not done twice."""

import json
import os
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ltnotes import reruns
from ltnotes.__main__ import main

PARAMETERS = 'dataset: str = "digits-lt"\nimbalance: int = 10\nscale: str = "lite"\nseed: int = 0'


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book with one quick chapter, and the home folder that holds it."""
    folder = tmp_path / "book"
    folder.mkdir()
    (folder / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    write_chapter(folder / "01-quick.ipynb", "print(f'{dataset} {imbalance} {scale} {seed}')")
    monkeypatch.setenv("LTNOTES_HOME", str(tmp_path))
    return folder


def write_chapter(path, code):
    cells = [
        new_markdown_cell("# Quick", id="title"),
        new_code_cell(PARAMETERS, id="parameters", metadata={"tags": ["parameters"]}),
        new_code_cell(code, id="body"),
    ]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def printed(path):
    notebook = nbformat.read(path, as_version=4)
    return [output.text.strip() for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output]


def test_a_chapter_runs_with_the_parameters_asked_for(book, tmp_path):
    (output,) = reruns.execute(reruns.plan([], {"scale": ["tiny"], "seed": ["3"]}, tmp_path / "out"))
    assert printed(output) == ["digits-lt 10 tiny 3"]


def test_a_copy_with_other_parameters_says_so_below_its_title(book, tmp_path):
    (output,) = reruns.execute(reruns.plan([], {"seed": [7]}, tmp_path / "out"), prepare_only=True)
    banner = nbformat.read(output, as_version=4).cells[1]
    assert banner.metadata.tags == ["banner"]
    assert "`seed = 7`" in banner.source and "`seed = 0`" in banner.source and "dataset" not in banner.source


def test_a_copy_with_the_chapters_own_parameters_has_no_banner(book, tmp_path):
    (output,) = reruns.execute(reruns.plan([], {"seed": [0]}, tmp_path / "out"), prepare_only=True)
    assert [cell.id for cell in nbformat.read(output, as_version=4).cells] == ["title", "parameters", "body"]


def test_a_grid_makes_one_copy_for_each_combination(book, tmp_path):
    jobs = reruns.plan([], {"seed": ["0", "1"], "imbalance": ["10", "20"], "scale": ["tiny"]}, tmp_path)
    folders = {job.output.parent.name for job in jobs}
    assert folders == {f"seed={s},imbalance={i}" for s in (0, 1) for i in (10, 20)}


def test_a_finished_chapter_is_not_run_again(book, tmp_path, capsys):
    jobs = reruns.plan([], {}, tmp_path / "out")
    (output,) = reruns.execute(jobs)
    before = output.stat().st_mtime_ns
    reruns.execute(jobs)
    assert output.stat().st_mtime_ns == before and "finished already" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["source", "parameter", "force"])
def test_a_chapter_runs_again_when_what_it_is_made_from_changes(book, tmp_path, change):
    (output,) = reruns.execute(reruns.plan([], {}, tmp_path / "out"))
    before = output.stat().st_mtime_ns
    if change == "source":
        write_chapter(book / "01-quick.ipynb", "print('edited')")
    grid = {"seed": [5]} if change == "parameter" else {}
    reruns.execute(reruns.plan([], grid, tmp_path / "out"), force=change == "force")
    assert output.stat().st_mtime_ns > before


def test_a_failing_cell_is_named_and_no_output_appears(book, tmp_path):
    write_chapter(book / "01-quick.ipynb", "1 / 0")
    with pytest.raises(RuntimeError, match=r"01-quick: cell 5 failed with ZeroDivisionError"):
        reruns.execute(reruns.plan([], {"seed": [2]}, tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["01-quick.failed.ipynb"]


def test_a_kernel_that_dies_is_named_and_the_copy_kept(book, tmp_path):
    write_chapter(book / "01-quick.ipynb", "import os; os._exit(9)")
    with pytest.raises(RuntimeError, match=r"^01-quick: its kernel died in cell 5 of 5, .*; see .*failed.ipynb$"):
        reruns.execute(reruns.plan([], {"seed": [2]}, tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["01-quick.failed.ipynb"]


def test_two_processes_that_make_one_output_take_turns(book, tmp_path):
    write_chapter(book / "01-quick.ipynb", "import time; time.sleep(1)")
    command = [sys.executable, "-m", "ltnotes", "chapters", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "LTNOTES_HOME": str(book.parent)}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("done in" in text for text in said) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["01-quick.ipynb"]


def test_nothing_is_left_beside_an_output_and_it_holds_no_path_of_this_machine(book, tmp_path):
    (output,) = reruns.execute(reruns.plan([], {}, tmp_path / "out"))
    assert [path.name for path in output.parent.iterdir()] == ["01-quick.ipynb"]
    assert str(tmp_path) not in output.read_text()


def test_each_cells_time_is_kept_for_the_next_estimate(book, tmp_path):
    write_chapter(book / "01-quick.ipynb", "import time; time.sleep(0.3)")
    (output,) = reruns.execute(reruns.plan([], {}, tmp_path / "out"))
    seconds = nbformat.read(output, as_version=4).metadata.ltnotes.seconds
    assert 0.3 <= seconds["body"] < 30


BAD_VALUES = [
    ({"sede": ["1"]}, "unknown parameter 'sede'"),
    ({"scale": ["huge"]}, "scale: got 'huge'"),
    ({"seed": ["-1"]}, "seed: got -1"),
    ({"seed": ["one"]}, "seed: got 'one'"),
    ({"seed": [1.5]}, "seed: got 1.5"),
    ({"dataset": ["cifar11-lt"]}, "dataset: got 'cifar11-lt'"),
    ({"imbalance": ["0"]}, "imbalance: got 0"),
    ({"imbalance": ["100000"]}, "imbalance: got 100000"),
]


@pytest.mark.parametrize(("grid", "message"), BAD_VALUES, ids=[message for _, message in BAD_VALUES])
def test_a_bad_parameter_is_refused_before_anything_runs(book, tmp_path, grid, message):
    with pytest.raises(ValueError, match=message):
        reruns.plan([], grid, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_parameter_is_answered_with_those_allowed(book, tmp_path):
    with pytest.raises(ValueError, match="allowed are dataset: str = 'digits-lt', imbalance: int = 10, scale"):
        reruns.plan([], {"sede": ["1"]}, tmp_path)


def test_an_unknown_chapter_is_refused(book, tmp_path):
    with pytest.raises(ValueError, match="chapter: got '02-slow', allowed are 01-quick"):
        reruns.plan(["02-slow"], {}, tmp_path)


def test_data_that_is_not_prepared_is_said_before_anything_runs(book, tmp_path, monkeypatch):
    monkeypatch.setenv("LTNOTES_DATA", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"python -m data_prep cifar10 --imbalance 10"):
        reruns.plan([], {"dataset": ["cifar10-lt"]}, tmp_path / "out")


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        "null",
        '{"cells": 3}',
        '{"cells": [], "metadata": 3, "nbformat": 4, "nbformat_minor": 5}',
        "no notebook",
        "",
    ],
)
@pytest.mark.parametrize("which", ["source", "output"])
def test_what_is_no_notebook_is_named_and_kept(book, tmp_path, content, which):
    job = reruns.Job(book / "01-quick.ipynb", tmp_path / "out" / "01-quick.ipynb", {})
    damaged = getattr(job, which)
    damaged.parent.mkdir(exist_ok=True)
    damaged.write_text(content)
    with pytest.raises(RuntimeError, match=rf"^{damaged} is no notebook \(.*\); restore it, or move it away$"):
        reruns.execute([job])
    assert damaged.read_text() == content


def test_a_notebook_of_the_users_own_is_not_written_over(book, tmp_path):
    (tmp_path / "out").mkdir()
    write_chapter(tmp_path / "out" / "01-quick.ipynb", "'mine'")
    before = (tmp_path / "out" / "01-quick.ipynb").read_text()
    with pytest.raises(ValueError, match=r"01-quick.ipynb is there and no chapter's output; move it away"):
        reruns.execute(reruns.plan([], {}, tmp_path / "out"), force=True)
    assert (tmp_path / "out" / "01-quick.ipynb").read_text() == before


def test_the_books_own_chapters_are_not_written_over_with_other_parameters(book):
    with pytest.raises(ValueError, match=r"^out: got the book's own folder"):
        reruns.execute(reruns.plan([], {"seed": [9]}, book))


def test_a_value_with_a_slash_stays_below_the_outputs(book, tmp_path, monkeypatch):
    monkeypatch.setattr(reruns, "check_parameters", lambda source, wanted: {})
    for job in reruns.plan([], {"dataset": ["digits-lt", "./../../x"]}, tmp_path / "out"):
        assert job.output.parent.parent == tmp_path / "out"


def test_an_output_folder_that_cannot_be_written_is_refused(book, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="can't write to"):
        reruns.execute(reruns.plan([], {}, tmp_path / "file" / "out"))


def test_a_chapter_sees_training_progress_of_its_own_file_only(book, tmp_path, monkeypatch):
    monkeypatch.delenv("LTNOTES_PROGRESS", raising=False)
    write_chapter(book / "01-quick.ipynb", "import os; print(os.environ['LTNOTES_PROGRESS'])")
    (output,) = reruns.execute(reruns.plan([], {}, tmp_path / "out"))
    assert printed(output) == [str(tmp_path / "out" / ".01-quick.progress.json")]


def test_the_command_line_says_what_is_wrong_and_exits_with_2(book, tmp_path, capsys):
    assert main(["chapters", "-p", "sede", "1", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: 01-quick: got unknown parameter 'sede'")


def test_in_place_keeps_the_chapters_own_parameters(book, capsys):
    assert main(["chapters", "--in-place", "--seed", "1"]) == 2
    assert "seed: --in-place keeps" in capsys.readouterr().err
    assert main(["chapters", "--in-place"]) == 0
    assert printed(book / "01-quick.ipynb") == ["digits-lt 10 lite 0"]


def test_without_a_book_the_message_says_where_one_was_looked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LTNOTES_HOME", str(tmp_path))
    assert main(["chapters"]) == 2
    assert f"no book in {tmp_path}" in capsys.readouterr().err


def test_progress_shares_the_time_left_by_the_committed_times(book, tmp_path, monkeypatch):
    from ltnotes import progress

    notebook = reruns.prepare(reruns.plan([], {}, tmp_path)[0])
    notebook.metadata["ltnotes"]["seconds"] = {"title": 1.0, "parameters": 9.0, "body": 30.0}
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    display = progress.ChapterProgress([notebook])
    display.chapter("01-quick", tmp_path / "progress.json")
    assert "estimating" in display.line()
    for cell, now in (("title", 100.0), ("parameters", 102.0), ("body", 120.0)):
        clock[0] = now
        display.start_cell(cell, f"cell {cell}")
    (tmp_path / "progress.json").write_text(json.dumps({"share": 0.5, "text": "ce, seed 0", "cached": 0.0}))
    # Ten of forty seconds' worth took twenty: the rest, thirty's worth, takes sixty.
    assert display.line() == "01-quick: cell body, ce, seed 0 (50%), about 60 s left"


def test_time_that_the_run_cache_saved_counts_as_the_cells_time(book, tmp_path, monkeypatch):
    from ltnotes import progress

    notebook = reruns.prepare(reruns.plan([], {}, tmp_path)[0])
    display = progress.ChapterProgress([notebook])
    display.chapter("01-quick", tmp_path / "progress.json")
    display.start_cell("body", "cell 3 of 3")
    (tmp_path / "progress.json").write_text(json.dumps({"share": 1.0, "text": "from the cache", "cached": 120.0}))
    display.start_cell(None, "done")
    assert display.seconds["body"] == pytest.approx(120.0, abs=5)

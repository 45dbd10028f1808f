"""Grids of reruns: planned before anything runs, each in a process that may fail or be killed, and counted once."""

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from ltnotes import grid, grid_summary
from ltnotes.__main__ import main

TINY = {"dataset": ["digits-lt"], "scale": ["tiny"], "steps": [2]}
BOOK = Path(__file__).parents[1] / "book"
PYTHON = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}


# --- planning ---------------------------------------------------------------------------


def test_every_combination_is_there_once_and_has_a_key_of_its_own():
    reruns = grid.plan("recipe", ["ce", "kps"], {**TINY, "imbalance": [10, 20], "seed": [0, 1, 1]})
    assert len(reruns) == 8 and len({rerun.key for rerun in reruns}) == 8
    (same, *_) = grid.plan("recipe", ["ce"], {"seed": [0], "steps": [2], "imbalance": [10], "scale": ["tiny"]} | TINY)
    assert same == reruns[0] and same.key == reruns[0].key  # whatever the order
    assert grid.from_text(same.text) == same


@pytest.mark.parametrize(
    "kind, names, values, message",
    [
        ("recipe", [], {}, "^recipe: got 'none', allowed is one name or more"),
        ("recipe", ["no-such"], {}, "no-such"),
        ("recipe", ["ce"], {"imbalance": []}, "^imbalance: got 'no value'"),
        ("recipe", ["ce"], {**TINY, "imbalanse": [10]}, "^imbalanse: no such field"),
        ("recipe", ["ce"], {**TINY, "imbalance": [10, 0.5]}, "^imbalance: got 0.5"),
        ("recipe", ["ce"], {**TINY, "seed": [0, -1]}, "^seed: got -1"),
        ("chapter", ["09-none"], {}, "^chapter: got '09-none'"),
        ("job", ["ce"], {}, "^kind: got 'job', allowed are recipe, chapter"),
    ],
)
def test_what_can_not_run_is_said_before_anything_does(kind, names, values, message, monkeypatch):
    monkeypatch.setattr("ltnotes.reruns.book_folder", lambda: BOOK)
    with pytest.raises(ValueError, match=message):
        grid.plan(kind, names, values)


def test_values_are_read_as_python_or_as_words():
    assert grid.read_values("imbalance=50,100") == ("imbalance", [50, 100])
    assert grid.read_values("scale=tiny,lite") == ("scale", ["tiny", "lite"])
    for text in ("imbalance", "=3", "imbalance="):
        with pytest.raises(ValueError, match=r"^-p: got .*, allowed is NAME=VALUE,VALUE"):
            grid.read_values(text)


def test_a_file_says_the_same_as_the_command_line(tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text("recipes: [ce, kps]\ngrid:\n  imbalance: [50, 100]\n  scale: tiny\n")
    assert grid.read_file(file) == ("recipe", ["ce", "kps"], {"imbalance": [50, 100], "scale": ["tiny"]})
    for text in (
        "",
        "grid: {}",
        "recipes: [ce]\nchapters: [x]",
        "recipes: [1]\ngrid: {}",
        "recipes: [ce]\nmore: 1",
        "{",
    ):
        file.write_text(text)
        with pytest.raises(
            ValueError, match=r"grid: .* is no such file .* allowed is YAML with 'recipes' or 'chapters'"
        ):
            grid.read_file(file)


# --- running ------------------------------------------------------------------------------


def reruns_of(**values):
    return grid.plan("recipe", ["ce"], {**TINY, "imbalance": [10], **values})


def test_results_are_one_tidy_table_and_a_second_call_does_nothing(tmp_path, capsys):
    command = ["grid", "ce", "weighted", "-p", "dataset=digits-lt", "-p", "scale=tiny", "-p", "steps=2"]
    command += ["-p", "imbalance=10,20", "--out", str(tmp_path / "out"), "--jobs", "2"]
    assert main(command) == 0
    table = pd.read_parquet(tmp_path / "out" / "table.parquet")
    assert table.groupby(["recipe", "imbalance"]).size().tolist() == [1] * 4
    assert table["balanced_accuracy"].between(0, 1).all() and table["largest"].notna().all()
    assert (tmp_path / "out" / "figure.png").stat().st_size > 10_000
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "reruns").iterdir()}
    capsys.readouterr()
    assert main(command) == 0
    assert "4 of 4 are done already" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "reruns").iterdir()}


def test_a_rerun_that_fails_stops_no_other(tmp_path, capsys):
    """A rate beyond all bounds diverges; the recipe is allowed, so only its training can tell."""
    reruns = reruns_of(learning_rate=[0.1, 1e12], steps=[40])
    failed = grid.execute(reruns, tmp_path, grid.slots(2))
    assert [dict(rerun.values)["learning_rate"] for rerun in failed] == [1e12]
    assert "FAILED, recipe 'ce', seed 0:" in capsys.readouterr().err
    (row,) = grid.results(reruns, tmp_path)
    assert row["learning_rate"] == 0.1
    assert "NonFiniteLossError" in (tmp_path / "reruns" / f"{failed[0].key}.log").read_text()


def broken_book(folder: Path) -> Path:
    """A book of one chapter of two cells, of which the second fails for seed 1."""
    (folder / "book").mkdir()
    (folder / "book" / "_toc.yml").touch()
    parameters = nbformat.v4.new_code_cell("seed: int = 0", metadata={"tags": ["parameters"]})
    cells = [nbformat.v4.new_markdown_cell("# One"), parameters, nbformat.v4.new_code_cell("1 / (seed - 1)")]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": PYTHON})
    nbformat.write(notebook, folder / "book" / "01-one.ipynb")
    return folder


def test_a_chapter_that_fails_keeps_its_notebook(tmp_path, monkeypatch):
    monkeypatch.setenv("LTNOTES_HOME", str(broken_book(tmp_path)))
    reruns = grid.plan("chapter", ["01-one"], {"seed": [0, 1]})
    (failed,) = grid.execute(reruns, tmp_path / "out", grid.slots(2))
    assert dict(failed.values) == {"seed": 1}
    assert (tmp_path / "out" / "chapters" / failed.key / "01-one.failed.ipynb").is_file()
    (row,) = grid.results(reruns, tmp_path / "out")
    assert Path(row["notebook"]).is_file() and row["seed"] == 0


def test_none_is_lost_while_processes_are_killed(tmp_path, capsys):
    """A thread kills children as they run; each result is there once all the same."""
    reruns = reruns_of(seed=list(range(5)))
    places, stop, killed = grid.slots(2), threading.Event(), []

    def kill():
        rng = random.Random(0)
        while not stop.is_set() and len(killed) < 3:
            time.sleep(1.5 * rng.random())
            running = [place.process for place in places if place.process]
            if running:
                victim = rng.choice(running)
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(victim.pid, signal.SIGKILL)
                    killed.append(victim.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    failed = grid.execute(reruns, tmp_path, places)
    stop.set()
    killer.join()
    assert killed and not failed
    rows = list(grid.results(reruns, tmp_path))
    assert sorted(row["seed"] for row in rows) == list(range(5))


def _kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_that_is_always_killed_is_given_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grid, "TRIES", 2)
    started = []

    def start(rerun, folder, environment):
        started.append(rerun)
        return grid.grid_process.start(_kill_itself, folder / "log", os.environ)

    monkeypatch.setattr(grid, "_start", start)
    (failed,) = grid.execute(reruns_of(), tmp_path, grid.slots(1))
    assert started == [failed] * 2 and "its process was killed" in capsys.readouterr().err


# --- places and figures --------------------------------------------------------------------


def test_gpus_get_their_jobs_and_cores_share_their_threads(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in grid.slots(2)] == ["0", "1", "0", "1"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert [place.environment["OMP_NUM_THREADS"] for place in grid.slots(2)] == ["4", "4"]
    assert len(grid.slots()) == 8
    with pytest.raises(ValueError, match=r"^jobs: got 0"):
        grid.slots(0)


def table_of(**columns):
    rows = len(next(iter(columns.values())))
    return pd.DataFrame(
        {"recipe": ["ce"] * rows, **columns, "accuracy": 0.5, "balanced_accuracy": [0.1 * i for i in range(rows)]}
    )


@pytest.mark.parametrize(
    "columns, x",
    [
        ({"imbalance": [10, 50, 100], "scale": ["tiny"] * 3}, "imbalance"),
        ({"scale": ["tiny", "lite", "lite"], "seed": [0, 1, 2]}, "scale"),
        ({"seed": [0, 1, 2]}, "recipe"),
    ],
)
def test_the_figure_is_over_what_was_varied(columns, x):
    figure = grid_summary.draw(table_of(**columns))
    assert figure.axes[0].get_xlabel() == x
    plt.close(figure)

"""The benchmarks run; what they measure is for their tables, and no test's business."""

import pytest

from tests.benchmarks import gpu, lite, table
from tests.benchmarks.table import Row


def test_the_benchmark_of_a_gpu_runs_to_its_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "METHODS", ["crt", "kps"])
    monkeypatch.setattr(gpu, "SEEDS_AT_ONCE", (2,))
    small = "--device cpu --dataset digits-lt --imbalance 20 --backbone resnet8 --steps 1 --epochs 1 --no-compile"
    assert gpu.main([*small.split(), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for expected in ("seeds side by side", "share of the bandwidth bound", "kps : ce", "epochs with evaluation"):
        assert expected in said
    assert {path.stem for path in tmp_path.glob("*.csv")} == {
        f"gpu-{group}" for group in ("speed", "memory", "bound", "methods", "accuracy")
    }


def test_the_table_of_recipes_has_a_line_for_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = "--dataset digits-lt --imbalance 20 --scale tiny --recipes ce crt --seeds 0 1"
    assert lite.main([*options.split(), "--out", "here"]) == 0
    lines = (tmp_path / "here" / "digits-lt.csv").read_text().splitlines()
    assert lines[0] == "recipe,balanced accuracy,largest,middle,smallest,tail fitted,log π subtracted,seeds,minutes"
    assert [line.split(",")[0] for line in lines[1:]] == ["ce", "crt"]
    assert all(line.count(" ± ") == 6 for line in lines[1:])


@pytest.mark.parametrize(
    ("row", "cells"),
    [
        (Row("a", "speed", 2.345, ">=", 2.0), ["speed", "2.35", "at least 2", "reached"]),
        (Row("a", "cost", 2.345, "<=", 2.0), ["cost", "2.35", "at most 2", "missed"]),
        (Row("a", "images/s", 12345.6), ["images/s", "12,346", "", ""]),
    ],
)
def test_a_row_says_whether_its_target_is_reached(row, cells, tmp_path):
    assert row.cells() == cells
    table.write([row, row], tmp_path, "a machine")
    table.write([row], tmp_path, "a machine")  # the table before is gone
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 2
    assert (tmp_path / "machine.md").read_text().startswith("a machine, 20")

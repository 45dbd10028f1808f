"""Run every benchmark of the CPU and print a table: ``python -m tests.benchmarks [--out FOLDER]``.

A speed is measured as the ratio of two things that take turns; the median of the rounds
counts. Whole training loops have a process each, so that neither's workers and memory
touch the other. Real CIFAR-10-LT is needed: ``cifar10.zip`` in the folder that
``LTNOTES_CIFAR`` names, else in ``shared/data`` beside this repository. That of a GPU is
:mod:`tests.benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from data_prep.__main__ import main as data_prep
from ltnotes.devices import choose_precision
from ltnotes.provenance import environment
from tests.benchmarks.parts import exponent
from tests.benchmarks.table import Row, show, write
from tests.conftest import CIFAR_FOLDER

REPOSITORY = Path(__file__).parents[2]
GROWTH_OF_MEMORY = {
    "images": (20_000, 200_000),
    "classes": (100, 8142),
    "batch": (128, 1024),
}


def measure(name: str, root: Path, number: int) -> float:
    """The number that one measurement prints, made in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.measurements", name, str(number)]
    environment = {**os.environ, "LTNOTES_DATA": str(root)}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(result.stdout.split()[-1])


def against_plain(name: str, root: Path, steps: int, rounds: int) -> float:
    """Median of ours over plain, in images per second."""
    ratios = []
    for k in range(rounds):
        plain, ours = (measure(f"{name}-{who}", root, steps) for who in ("plain", "ours"))
        ratios.append(ours / plain)
        print(f"{name}, round {k + 1} of {rounds}: plain {plain:,.0f}, ltnotes {ours:,.0f} images/s", flush=True)
    return statistics.median(ratios)


def wholes(root: Path, steps: int, rounds: int) -> Iterator[Row]:
    """What needs a process of its own."""
    training = against_plain("training", root, steps, rounds)
    yield Row("training", "ResNet-32, ltnotes : plain loop", training, ">=", 2.0)
    augmentation = against_plain("augmentation", root, steps, rounds)
    yield Row("training", "augmentation alone, ltnotes : PIL", augmentation, ">=", 20.0)
    yield Row("training", "peak memory of a lite run, GiB", measure("memory", root, steps), "<=", 2.0)
    for what, (small, large) in GROWTH_OF_MEMORY.items():
        taken = [measure(f"memory-{what}", root, size) for size in (small, large)]
        slope = exponent(*taken, large / small)
        yield Row("growth", f"training step, {what} ({small:,}, {large:,}), exponent of memory", slope, "<=", 1.1)


def commands(root: Path) -> Iterator[Row]:
    """What a reader and a developer wait for, in an installed checkout that has executed no chapter yet."""
    outer = ("MAKEFLAGS", "MAKELEVEL", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    (root / "book").symlink_to(REPOSITORY / "book")  # a home of its own has no finished runs
    environment["LTNOTES_HOME"] = str(root)
    for target, settings in {"book": [f"CHAPTERS={root / 'chapters'}", f"HTML={root / 'html'}"], "test": []}.items():
        began = time.perf_counter()
        subprocess.run(
            ["make", target, *settings], cwd=REPOSITORY, env=environment, check=True, stdout=subprocess.DEVNULL
        )
        yield Row("waiting", f"make {target}, seconds", time.perf_counter() - began)


def parts(root: Path) -> Iterator[Row]:
    """The rows of :mod:`tests.benchmarks.parts`, as they come."""
    command = [sys.executable, "-m", "tests.benchmarks.parts"]
    environment = {**os.environ, "LTNOTES_DATA": str(root)}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            yield Row(*json.loads(line))
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="batches of 128 in a timed stretch")
    parser.add_argument("--out", type=Path, help="folder for the table as CSV files, as the book shows it")
    parser.add_argument("--commands", action="store_true", help="time make book and make test, too: 15 minutes more")
    options = parser.parse_args()
    made_on = environment(torch.device("cpu"), choose_precision(None, torch.device("cpu")))
    machine = "{device}, trained in {precision}, torch {torch}".format(**made_on)
    rows = []
    with tempfile.TemporaryDirectory() as root:
        if data_prep(["cifar10", "--source", str(CIFAR_FOLDER / "cifar10.zip"), "--out", root]):
            return 2
        sources = [wholes(Path(root), options.steps, options.rounds), parts(Path(root))]
        for source in sources + [commands(Path(root))] * options.commands:
            for row in source:
                rows.append(row)
                print(f"{row.group}: {row.what}: {row.measured:.3g}", flush=True)
            if options.out:  # what is measured is kept, whatever becomes of the rest
                write(sorted(rows, key=lambda row: row.group), options.out, machine)
    show(sorted(rows, key=lambda row: row.group))
    print(f"\n{machine}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run every benchmark and print a table: ``python -m tests.benchmarks [--rounds 3] [--steps 20]``.

A speed is measured as the ratio of two things that take turns; the median of the rounds
counts. Whole training loops have a process each, so that neither's workers and memory
touch the other. Only memory and evaluation are absolute numbers. Real CIFAR-10-LT is needed: ``cifar10.zip``
in the folder that ``LTNOTES_CIFAR`` names, else in ``shared/data`` beside this repository.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from data_prep.__main__ import main as data_prep
from ltnotes.devices import autocast_dtype
from tests.conftest import CIFAR_FOLDER

REPOSITORY = Path(__file__).parents[2]
TRAINING_TARGET, AUGMENTATION_TARGET, MEMORY_TARGET = 1.7, 20.0, 2.0


def measure(name: str, root: Path, steps: int) -> float:
    """The number that one measurement prints, made in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.measurements", name, str(steps)]
    environment = {**os.environ, "LTNOTES_DATA": str(root)}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(result.stdout.split()[-1])


def ratio(name: str, root: Path, steps: int, rounds: int) -> float:
    """Median of ours over plain, in images per second."""
    ratios = []
    for k in range(rounds):
        plain, ours = (measure(f"{name}-{who}", root, steps) for who in ("plain", "ours"))
        ratios.append(ours / plain)
        print(f"{name}, round {k + 1} of {rounds}: plain {plain:,.0f}, ltnotes {ours:,.0f} images/s", flush=True)
    return statistics.median(ratios)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="batches of 128 in a timed stretch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        if data_prep(["cifar10", "--source", str(CIFAR_FOLDER / "cifar10.zip"), "--out", root]):
            return 2
        training = ratio("training", Path(root), options.steps, options.rounds)
        augmentation = ratio("augmentation", Path(root), options.steps, options.rounds)
        memory = measure("memory", Path(root), options.steps)
        parts = measured_parts(Path(root))
    rows = [
        ("ResNet-32 training, ltnotes : plain loop", TRAINING_TARGET, ">=", training),
        ("augmentation, ltnotes : PIL", AUGMENTATION_TARGET, ">=", augmentation),
        ("peak memory of a lite run, GiB", MEMORY_TARGET, "<=", memory),
        *parts,
    ]
    precision = autocast_dtype(torch.device("cpu")) or torch.float32
    print(f"\n{torch.get_num_threads()} CPU threads, training in {precision}, torch {torch.__version__}")
    width = max(len(what) for what, *_ in rows)
    print(f"{'':<{width}}{'target':>10}{'measured':>10}")
    missed = 0
    for what, target, bound, value in rows:
        reached = target is None or (value >= target if bound == ">=" else value <= target)
        missed += not reached
        wanted = "" if target is None else f"{bound} {target:g}"
        print(f"{what:<{width}}{wanted:>10}{value:>10.2f}{'' if reached else '  missed'}")
    return 1 if missed else 0


def measured_parts(root: Path) -> list[tuple[str, float | None, str, float]]:
    """The rows of :mod:`tests.benchmarks.parts`, printed as they come."""
    command = [sys.executable, "-m", "tests.benchmarks.parts"]
    environment = {**os.environ, "LTNOTES_DATA": str(root)}
    rows = []
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            rows.append(tuple(json.loads(line)))
            print(f"{rows[-1][0]}: {rows[-1][3]:.2f}", flush=True)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return rows


if __name__ == "__main__":
    sys.exit(main())

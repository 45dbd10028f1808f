"""What a grid of reruns adds to their trainings, and whether it loses any while processes are killed.

``python -m tests.benchmarks.grid [--reruns 200] [--out FOLDER]``. First a few reruns are left alone, for what
each costs beside its training. Then one process in ten is killed, at a random time of its life.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from ltnotes import grid
from tests.benchmarks.table import Row, show, write

ALONE = 11
KILLED = 0.1
VALUES = {"dataset": ["digits-lt"], "imbalance": [10], "scale": ["tiny"], "steps": [2]}


def reruns_of(seeds: range) -> list[grid.Rerun]:
    return grid.plan("recipe", ["ce"], {**VALUES, "seed": list(seeds)})


def overhead(reruns: Sequence[grid.Rerun], folder: Path) -> list[Row]:
    """Seconds of a slot for each rerun, less those of its training, once a first one has brought up the server."""
    places = grid.slots()
    grid.execute(reruns[:1], folder, places)
    reruns = reruns[1:]
    began = time.monotonic()
    grid.execute(reruns, folder, places)
    each = (time.monotonic() - began) * len(places) / len(reruns)
    training = statistics.mean(row["seconds"] for row in grid.results(reruns, folder))
    return [Row("grid", "a rerun beside its training, s", each - training, "<=", 5.0)]


def killed_at_random(reruns: Sequence[grid.Rerun], folder: Path, life: float) -> list[Row]:
    """Reruns without a result, where each process is killed with a chance of ``KILLED``."""
    places, over, kills = grid.slots(), threading.Event(), []

    def kill() -> None:
        rng, seen, doomed = random.Random(0), set(), {}
        while not over.wait(0.02):
            running = [place.process for place in places if place.process is not None]
            for process in running:
                if process.pid not in seen:
                    seen.add(process.pid)
                    if rng.random() < KILLED:
                        doomed[process.pid] = time.monotonic() + rng.uniform(0, 0.8 * life)
            for pid, at in list(doomed.items()):
                if pid not in [process.pid for process in running]:
                    del doomed[pid]  # it was quicker
                elif time.monotonic() >= at:
                    os.kill(pid, signal.SIGKILL)
                    kills.append(doomed.pop(pid))

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        grid.execute(reruns, folder, places)
    finally:
        over.set()
        killer.join()
    rows = list(grid.results(reruns, folder))
    assert len({row["key"] for row in rows}) == len(rows), "a result is there twice"
    of = f"of {len(reruns)} reruns with {len(kills)} kills"
    return [Row("grid", f"results lost, {of}", len(reruns) - len(rows), "<=", 0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reruns", type=int, default=200)
    parser.add_argument("--out", type=Path, help="folder for the table of the book's page")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = overhead(reruns_of(range(ALONE)), Path(folder))
        rows += killed_at_random(reruns_of(range(ALONE, ALONE + arguments.reruns)), Path(folder), rows[0].measured)
    show(rows)
    if arguments.out:
        write(rows, arguments.out, "")


if __name__ == "__main__":
    main()

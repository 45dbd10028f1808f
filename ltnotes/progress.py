"""How far a training is, and how far a chapter that trains.

A training runs inside a chapter's kernel, a process of its own. It writes where it is
to the file that the environment variable ``LTNOTES_PROGRESS`` names, and
``ltnotes chapters`` reads it there.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ltnotes.files import write_text

PROGRESS_FILE = "LTNOTES_PROGRESS"
UNTIMED_CELL = 0.05  # seconds that a cell counts for which the committed copy has no time


class TrainingProgress:
    """Says how far a training is: to the file that ``LTNOTES_PROGRESS`` names, else on a terminal's last line.

    The file is how ``ltnotes chapters`` looks into a chapter that it executes.
    """

    cached_seconds = 0.0  # of training that the cache saved this process

    def __init__(self, title: str):
        self.title, self.began = title, time.monotonic()
        self.first_share: float | None = None

    def from_cache(self, seconds: float) -> None:
        """A finished run was found, which saved this much training."""
        TrainingProgress.cached_seconds += seconds
        self._to_file(1.0, "from the cache", duration(0))

    def __call__(self, share: float, text: str) -> None:
        left = self._left(share)
        if not self._to_file(share, text, left) and sys.stderr.isatty():
            line = f"\r{self.title}: {text}, {share:.0%}, {left} left \033[K"
            print(line, end="\n" if share >= 1 else "", file=sys.stderr, flush=True)

    def _to_file(self, share: float, text: str, left: str) -> bool:
        if file := os.environ.get(PROGRESS_FILE):
            content = {"share": share, "text": f"{self.title}: {text}", "left": left}
            write_text(json.dumps(content | {"cached": TrainingProgress.cached_seconds}), Path(file))
        return bool(file)

    def _left(self, share: float) -> str:
        # A resumed run starts at some share above 0, which took none of this process's time.
        if self.first_share is None:
            self.first_share, self.began = share, time.monotonic()
        done = share - self.first_share
        return duration((time.monotonic() - self.began) * (1 - share) / done) if done > 0 else "unknown time"


class ChapterProgress:
    """Which chapter and cell are running, how far a training is, and about how long all will take.

    The committed chapters carry each cell's time. They give the cells their shares of
    the work; this machine's speed is measured as the cells go by.
    """

    def __init__(self, notebooks: Iterable[dict[str, Any]]):
        self.weights: dict[str, float] = {}
        for notebook in notebooks:
            committed = notebook.metadata["ltnotes"].get("seconds", {})
            self.weights |= {cell.id: committed.get(cell.id, UNTIMED_CELL) for cell in notebook.cells}
        self.total, self.done = sum(self.weights.values()), 0.0
        self.began = time.monotonic()

    def chapter(self, title: str, progress: Path) -> Ticker:
        self.title, self.progress, self.where = title, progress, "starting"
        self.seconds: dict[str, float] = {}
        self.cell: str | None = None
        self.cached = 0.0
        self.cell_began = time.monotonic()
        return Ticker(self)

    def start_cell(self, cell_id: str | None, where: str) -> None:
        """Close the cell before, with its time, and open the next."""
        if self.cell is not None:
            # What the run cache saved counts too: the next reader starts with an empty cache.
            cached = self._training().get("cached", self.cached)
            took = time.monotonic() - self.cell_began + cached - self.cached
            self.seconds[self.cell] = round(took, 2)
            self.cached = cached
            self.done += self.weights.get(self.cell, 0.0)
        self.cell, self.where, self.cell_began = cell_id, where, time.monotonic()
        self.progress.unlink(missing_ok=True)

    def line(self) -> str:
        training = self._training()
        doing = f", {training['text']} ({training['share']:.0%})" if training else ""
        return f"{self.title}: {self.where}{doing}, {self._left()}"

    def _training(self) -> dict[str, Any]:
        try:
            return json.loads(self.progress.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # no training in this cell, or none yet

    def _left(self) -> str:
        if self.done < max(20 * UNTIMED_CELL, 0.02 * self.total):
            return "estimating what is left"
        rate = (self.cell_began - self.began) / self.done
        after_this_cell = self.total - self.done - self.weights.get(self.cell or "", 0.0)
        left = rate * (self.total - self.done) - (time.monotonic() - self.cell_began)
        return f"about {duration(max(0.0, left, rate * after_this_cell))} left"


class Ticker:
    """Shows a display's line while something runs: every second on a terminal, now and then in a log.

    Args:
        display: whose ``line()`` is shown.
        seconds: between two lines in a log.
    """

    def __init__(self, display: Any, seconds: float = 20):
        self.display, self.seconds, self.stop = display, seconds, threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *error: Any) -> None:
        self.stop.set()
        self.thread.join()
        if sys.stdout.isatty():
            print("\r\033[K", end="", flush=True)

    def _tick(self) -> None:
        terminal = sys.stdout.isatty()
        while not self.stop.wait(1 if terminal else self.seconds):
            line = self.display.line()
            print(f"\r{line}\033[K" if terminal else line, end="" if terminal else "\n", flush=True)


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"

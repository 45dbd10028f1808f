"""The work at the ledger: ``ltnotes ledger`` trains what it lacks, and ``--status`` says where it is.

One training at a time, most worth first, at low priority, from a frozen copy of the code,
for as long as it is let. Started again it goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import ltnotes
from ltnotes import data, runs
from ltnotes.counts import exponential_counts
from ltnotes.ledger import Entry, KeptRun, is_done, kept_run, path, write
from ltnotes.live_stage import NonFiniteLossError, num_steps
from ltnotes.progress import PROGRESS_FILE, Ticker, duration
from ltnotes.provenance import environment

COMMIT = "LTNOTES_LEDGER_COMMIT"  # tells the frozen copy of the code what it is a copy of
SECONDS_BETWEEN_LINES = 600  # in a log
LOWEST_PRIORITY = 15
SIZES = {"cifar10-lt": (5000, 10), "cifar100-lt": (500, 100), "digits-lt": (124, 10)}  # largest class, classes
FROZEN_COST = 0.25  # a step that trains the head alone, in steps that train everything


def work(entries: Sequence[Entry], folder: Path, device: str | None, precision: str | None, commit: str) -> int:
    """Train what the ledger lacks, and say so; returns how many trainings failed.

    What begins with a stage that another process is at is left to that process.

    Raises:
        FileNotFoundError: data that is not prepared; before anything is trained.
    """
    missing = [entry for entry in entries if not is_done(entry, folder)]
    for name, imbalance in dict.fromkeys((entry.dataset, entry.imbalance) for entry in missing):
        data.load(name, imbalance)
    failed = 0
    for entry in missing:
        try:
            with _lock(entry).acquire(timeout=0):
                if not is_done(entry, folder):
                    failed += not _train(entry, folder, device, precision, commit)
        except Timeout:
            print(f"{entry.stem}: left to another process", flush=True)
    return failed


def _train(entry: Entry, folder: Path, device: str | None, precision: str | None, commit: str) -> bool:
    print(f"{entry.stem}: begins", flush=True)
    try:
        with _Watch(entry):
            # A first stage is trained for hours, and what changed in the code since may not concern it; the record
            # names the code of each stage.
            run = runs.run(entry.recipe, entry.seed, device=device, precision=precision, any_code=True)
    except NonFiniteLossError as error:
        print(f"{entry.stem}: failed: {error}", flush=True)
        return False
    write(run, entry, folder, commit)
    accuracy = run.metrics["balanced_accuracy"]
    print(f"{entry.stem}: {accuracy:.2%} balanced accuracy, {duration(run.seconds)} of training", flush=True)
    return True


def _folder() -> Path:
    folder = data.home() / "ledger"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _lock(entry: Entry) -> FileLock:
    return FileLock(_folder() / f"{entry.family}.lock")


def _progress_file(entry: Entry) -> Path:
    return _folder() / f"{entry.stem}.progress"


class _Watch:
    """While an entry is trained, its progress goes to a file, and to the log now and then."""

    def __init__(self, entry: Entry):
        self.file = _progress_file(entry)
        self.ticker = Ticker(self, SECONDS_BETWEEN_LINES)

    def __enter__(self) -> None:
        os.environ[PROGRESS_FILE] = str(self.file)
        self.ticker.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.ticker.__exit__()
        del os.environ[PROGRESS_FILE]
        self.file.unlink(missing_ok=True)

    def line(self) -> str:
        return _doing(self.file)


def _doing(file: Path) -> str:
    """What a progress file says."""
    with suppress(OSError, ValueError):
        progress = json.loads(file.read_text(encoding="utf-8"))
        return f"{progress['text']}, {progress['share']:.0%}, {progress['left']} left"
    return "starting"


# --- where it is -------------------------------------------------------------


def status(entries: Sequence[Entry], folder: Path, device: torch.device, precision: str) -> Iterator[str]:
    """A line for each training: done, running or to do, and how long what is to do will take on this machine."""
    kept = {entry: kept_run(path(entry, folder)) for entry in entries if is_done(entry, folder)}
    here = environment(device, precision)
    numbers, left, begun = {"done": 0, "running": 0, "to do": 0}, 0.0, set()
    for entry in entries:
        seconds = None
        if run := kept.get(entry):
            state, text = "done", f"{run.metrics['balanced_accuracy']:.2%}, {duration(run.seconds)}"
        elif _progress_file(entry).is_file() and _is_held(_lock(entry)):
            state, text = "running", _doing(_progress_file(entry))
        else:
            speed = seconds_per_image(kept, entry.recipe.backbone, here)
            seconds = speed and speed * work_of(entry, begun)
            state, text = "to do", "no speed known yet" if seconds is None else f"about {duration(seconds)}"
        left += seconds or 0.0
        begun |= _beginnings(entry)
        numbers[state] += 1
        yield f"{state:<8}{entry.stem:<58}{text}"
    counted = ", ".join(f"{number} {state}" for state, number in numbers.items())
    yield f"{counted}; about {duration(left)} to do" if left else counted


def _is_held(lock: FileLock) -> bool:
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def _beginnings(entry: Entry) -> set[tuple[str, int]]:
    return {(entry.recipe.up_to(stage).hash, entry.seed) for stage in range(len(entry.recipe.stages))}


def work_of(entry: Entry, begun: Iterable[tuple[str, int]] = ()) -> float:
    """How many training images of the whole network a training amounts to, without the stages that are there."""
    images, number = 0.0, sum(exponential_counts(*SIZES[entry.dataset], entry.imbalance))
    for index, stage in enumerate(entry.recipe.stages):
        if (entry.recipe.up_to(index).hash, entry.seed) not in begun:
            cost = 1.0 if stage.trains == "all" else FROZEN_COST
            images += cost * num_steps(stage, number) * stage.batch_size
    return images


def seconds_per_image(kept: Mapping[Entry, KeptRun], backbone: str, here: dict[str, str]) -> float | None:
    """Median time of a training image in the ledger's runs of a backbone: this machine's if there are any, else all."""
    speeds: dict[bool, list[float]] = {True: [], False: []}
    for entry, run in kept.items():
        if run.recipe.backbone == backbone:
            made_on = run.record["environment"]
            alike = all(made_on[key] == here[key] for key in ("device", "precision"))
            speeds[alike].append(run.seconds / work_of(entry))
    return next((statistics.median(found) for found in (speeds[True], speeds[False]) if found), None)


# --- from a frozen copy ------------------------------------------------------


def work_from_a_copy(
    entries: Sequence[Entry], folder: Path, device: str | None, precision: str | None, arguments: Sequence[str]
) -> int:
    """:func:`work`, after starting the command anew from a copy of the package, at low priority.

    A ledger runs for days while its checkout is worked on. Parts are imported, and the hash
    of the code is taken, as trainings begin: from a copy, all of them see the same code.

    Args:
        arguments: of the command, as they were given.
    """
    if COMMIT in os.environ:
        return work(entries, folder, device, precision, os.environ[COMMIT])
    source = Path(ltnotes.__file__).parent
    content = b"".join(file.read_bytes() for file in sorted(source.rglob("*.py")))
    copy = _folder() / f"code-{hashlib.sha256(content).hexdigest()[:12]}"
    if not copy.is_dir():
        part = copy.with_name(f"{copy.name}.{os.getpid()}.part")
        shutil.copytree(source, part / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        (part / "__main__.py").write_text("import sys\n\nfrom ltnotes.__main__ import main\n\nsys.exit(main())\n")
        part.rename(copy)  # a copy that was interrupted is never taken for a whole one
    with suppress(AttributeError):  # not every system has priorities
        os.setpriority(os.PRIO_PROCESS, 0, max(LOWEST_PRIORITY, os.getpriority(os.PRIO_PROCESS, 0)))
    own = {COMMIT: commit_of(source), "LTNOTES_HOME": str(data.home().resolve())}
    print(f"the ledger: {folder}; code of commit {own[COMMIT]}, from {copy}", flush=True)
    # A folder that is run is where Python looks first, before the current one, which may be the checkout.
    os.execve(sys.executable, [sys.executable, str(copy), *arguments, "--out", str(folder)], {**os.environ, **own})


def commit_of(package: Path) -> str:
    """The commit that the package is of, with a word if it has been changed since; "unknown" outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True, check=True).stdout

    try:
        changed = " with changes" if git("status", "--porcelain", ".").strip() else ""
        return git("rev-parse", "HEAD").strip() + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

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
from ltnotes.live_stage import num_steps
from ltnotes.progress import PROGRESS_FILE, Ticker, duration
from ltnotes.provenance import COMMIT, commit, environment

SECONDS_BETWEEN_LINES = 600  # in a log
NICENESS = 15  # at least
LAUNCHER = """import os
import sys

os.environ["{name}"] = "{commit}"
from ltnotes.__main__ import main

sys.exit(main())
"""
SIZES = {"cifar10-lt": (5000, 10), "cifar100-lt": (500, 100), "digits-lt": (124, 10)}  # largest class, classes
FROZEN_COST = 0.25  # a step that trains the head alone, in steps that train everything


def work(entries: Sequence[Entry], folder: Path, device: str | None = None, precision: str | None = None) -> int:
    """Train what the ledger lacks, and say so; returns how many trainings could not be done.

    What begins with a stage that another process is at is left to it, and looked at again
    after each pass in which something was trained.

    Raises:
        OSError: the cache or the ledger can't be written.
    """
    missing = [entry for entry in entries if not is_done(entry, folder)]
    prepared = {key for key in dict.fromkeys(map(_source, missing)) if _is_prepared(*key)}
    failed = {entry for entry in missing if _source(entry) not in prepared}
    missing = [entry for entry in missing if entry not in failed]
    trained = True
    while missing and trained:
        trained = False
        for entry in missing:
            try:
                with _lock(entry).acquire(timeout=0):
                    if not is_done(entry, folder):
                        trained = True
                        if not _train(entry, folder, device, precision):
                            failed.add(entry)
            except Timeout:
                print(f"{entry.stem}: left to another process", flush=True)
        missing = [entry for entry in missing if not is_done(entry, folder) and entry not in failed]
    return 1 if failed else 0


def _source(entry: Entry) -> tuple[str, float]:
    return entry.dataset, entry.imbalance


def _is_prepared(dataset: str, imbalance: float) -> bool:
    try:
        data.load(dataset, imbalance)
    except FileNotFoundError as error:
        print(f"left out: {error}", flush=True)
        return False
    return True


def _train(entry: Entry, folder: Path, device: str | None, precision: str | None) -> bool:
    print(f"{entry.stem}: begins", flush=True)
    _began(entry).write_text(str(Path(ltnotes.__file__).parents[1]), encoding="utf-8")
    try:
        with _Watch(entry):
            # What other code made is taken, as hours went into it; the record names the code of each stage.
            run = runs.run(entry.recipe, entry.seed, device=device, precision=precision, any_code=True)
    except (ValueError, RuntimeError) as error:  # of this training; the next may be better off
        print(f"{entry.stem}: failed: {error}", flush=True)
        _began(entry).unlink()
        return False
    write(run, entry, folder)
    _began(entry).unlink()
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
        self.before = os.environ.get(PROGRESS_FILE)

    def __enter__(self) -> None:
        os.environ[PROGRESS_FILE] = str(self.file)
        self.ticker.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.ticker.__exit__()
        del os.environ[PROGRESS_FILE]
        if self.before is not None:
            os.environ[PROGRESS_FILE] = self.before
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
            text += ", by other code" if run.by_other_code else ""
        elif _progress_file(entry).is_file() and _is_held(_lock(entry)):
            state, text = "running", _doing(_progress_file(entry))
        else:
            speed = seconds_per_image(kept, entry.recipe.backbone, here)
            seconds = speed and speed * work_of(entry, begun)
            state, text = "to do", "no speed known yet" if seconds is None else f"about {duration(seconds)}"
        left += seconds or 0.0
        begun |= _beginnings(entry)
        numbers[state] += 1
        yield f"{state:<8}{entry.stem:<66}{text}"
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
    of the code is taken, as trainings begin: from a copy, all of them see the same code. A
    training that an older copy began, and was stopped in, is first finished by that copy.

    Args:
        arguments: of the command, as they were given.
    """
    if COMMIT in os.environ:
        return work(entries, folder, device, precision)
    copy = _copy_of_the_package()
    with suppress(AttributeError):  # not every system has priorities
        os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    environment = {**os.environ, "LTNOTES_HOME": str(data.home().resolve())}
    last = ["--out", str(folder)]
    for entry in entries:
        older = _copy_that_began(entry)
        if older and older != copy and not is_done(entry, folder):
            print(f"{entry.stem}: goes on from {older}, which began it", flush=True)
            alone = ["--only", entry.name, "--dataset", entry.dataset, "--seed", str(entry.seed)]
            alone += [f"--{name}={value}" for name, value in (("device", device), ("precision", precision)) if value]
            subprocess.run([sys.executable, str(older), "ledger", *alone, *last], env=environment, check=False)
    print(f"the ledger: {folder}; code of commit {commit()}, from {copy}", flush=True)
    # A folder that is run is where Python looks first, before the current one, which may be the checkout.
    os.execve(sys.executable, [sys.executable, str(copy), *arguments, *last], environment)


def _copy_of_the_package() -> Path:
    """A folder that can be run like the package."""
    source, part = Path(ltnotes.__file__).parent, _folder() / f"copy.{os.getpid()}.part"
    shutil.copytree(source, part / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    (part / "__main__.py").write_text(LAUNCHER.format(name=COMMIT, commit=commit()))
    content = [f"{file.relative_to(part)}\n{file.read_text()}" for file in sorted(part.rglob("*.py"))]
    copy = _folder() / f"code-{hashlib.sha256(''.join(content).encode()).hexdigest()[:12]}"
    try:
        part.rename(copy)
    except OSError:  # there is one of this code
        shutil.rmtree(part)
    return copy


def _began(entry: Entry) -> Path:
    return _folder() / f"{entry.stem}.began"


def _copy_that_began(entry: Entry) -> Path | None:
    with suppress(OSError):
        copy = Path(_began(entry).read_text(encoding="utf-8"))
        return copy if copy.is_dir() else None
    return None

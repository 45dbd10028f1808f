"""Finished trainings on disk: run a recipe, or read it from the cache.

A run lies in ``<out_dir>/<recipe>-<dataset>-s<seed>-<key>/code-<hash>-<precision>/``. The
key hashes recipe, data and seed. The code hash covers the modules that the run depends
on, and the code and precision of the stages that it goes on from, so that a run made by
other code, or begun by other code, is never taken for one of this code's.

The state after each stage of a recipe is a run of its own, under the hash of the stages
so far. Recipes that begin alike share it: classifier re-training goes on from the
cross-entropy run that is there anyway, and a variant of a last stage costs that stage.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from ltnotes import data, devices, distributed, features, metrics, training
from ltnotes.files import UnsealedError, file_hash, save_atomically, user_path, write_json, write_logits
from ltnotes.finished import FILES, Run, is_finished, read_run
from ltnotes.live_stage import NonFiniteLossError
from ltnotes.models import FROZEN
from ltnotes.options import of_type, require, whole
from ltnotes.progress import TrainingProgress
from ltnotes.provenance import code_hash, commit, environment
from ltnotes.stages import Recipe

UNFINISHED = "unfinished.pt"
TOGETHER = 4  # trainings side by side on a GPU
_counted: set[tuple[str, int]] = set()  # stages and seeds that this process trained, or was spared once


@dataclass(frozen=True)
class _Order:
    """What was asked for, and what went wrong on the way.

    Args:
        precision: that of trainings; runs in another count as well unless it was ``named``.
        diverged: errors of trainings, raised once those beside them are done.
    """

    recipe: Recipe
    data: data.LongTailData
    device: torch.device
    out_dir: Path
    resume: bool
    any_code: bool
    precision: str
    named: bool
    diverged: list[NonFiniteLossError] = field(default_factory=list)


def run(
    recipe: Recipe,
    seed: int = 0,
    out_dir: str | Path = "runs",
    resume: bool = True,
    device: str | None = None,
    any_code: bool = False,
    precision: str | None = None,
) -> Run:
    """A finished run of a recipe: from the cache if it is there, else trained now.

    Two processes that ask for the same run take turns; the second finds it finished.
    Arguments and errors are those of :func:`as_finished`, for one seed: that of the weights,
    the order of images and their augmentation.
    """
    return next(as_finished(recipe, [seed], out_dir, resume, device, any_code, precision))


def over_seeds(recipe: Recipe, seeds: Sequence[int], **options: Any) -> list[Run]:
    """One run per seed, in the order of ``seeds``; ``options`` as in :func:`as_finished`."""
    seeds = list(seeds)
    made = {run.seed: run for run in as_finished(recipe, seeds, **options)}
    return [made[seed] for seed in seeds]


def as_finished(
    recipe: Recipe,
    seeds: Sequence[int],
    out_dir: str | Path = "runs",
    resume: bool = True,
    device: str | None = None,
    any_code: bool = False,
    precision: str | None = None,
    together: int | None = None,
) -> Iterator[Run]:
    """A run for each seed, from the cache if it is there, else trained now; from the smallest seed to the largest.

    Args:
        out_dir: the cache. A relative path lies below :func:`ltnotes.data.home`.
        resume: False trains all stages anew, whatever the cache holds.
        device: "cpu", "cuda" or "cuda:N"; a GPU if there is one when not given.
        any_code: take a run that other code made, where this code made none.
        precision: "float32" or "bfloat16", see :func:`ltnotes.devices.choose_precision`. Where
            nothing is said, a finished run in the other precision will do.
        together: how many are trained side by side. If not given, ``TOGETHER`` on a GPU, which
            a small network leaves half idle, and one after the other on a CPU. The memory
            needed grows with it, the results stay the same.

    Raises:
        ValueError: a seed below 0, a device that is not here, or a recipe that does not
            fit the data; before anything is trained.
        FileNotFoundError: data that is not prepared.
        NonFiniteLossError: a training diverged; those beside it are finished first.
        OSError: the cache can't be written.
    """
    seeds = [whole("seed", seed) for seed in seeds]
    for name, value in (("resume", resume), ("any_code", any_code)):
        of_type(name, value, bool)
    require(str(out_dir) != "", "out_dir", out_dir, "the path of a folder")
    together = None if together is None else whole("together", together, least=1)
    distributed.begin()
    chosen = devices.choose_device(distributed.own_device() if device is None else device)
    named = bool(precision or os.environ.get(devices.VARIABLE))
    precision = devices.choose_precision(precision, chosen)
    dataset = _load(recipe.dataset, recipe.imbalance, recipe.data_seed, recipe.validation, recipe.backbone)
    width = 1 if distributed.world() > 1 else together or (TOGETHER if chosen.type == "cuda" else 1)
    in_order = sorted(set(seeds))
    for start in range(0, len(in_order), width):
        batch = in_order[start : start + width]
        order = _Order(recipe, dataset, chosen, data.home() / user_path(out_dir), resume, any_code, precision, named)
        try:
            made = _made(order, len(recipe.stages) - 1, batch)
        except OSError as error:
            names = ", ".join(str(run_folder(recipe, dataset.fingerprint, seed, order.out_dir)) for seed in batch)
            raise OSError(f"can't write the run in {names}: {error}; finished runs are unharmed") from error
        if order.diverged:
            raise order.diverged[0]
        yield from (made[seed] for seed in batch)


@functools.lru_cache(maxsize=4)
def _load(name: str, imbalance: float, seed: int, validation: int, backbone: str) -> data.LongTailData:
    """Chapters run many recipes on one data set; it is read and verified once."""
    dataset = data.load(name, imbalance, seed, validation=validation)
    return features.extract(dataset, backbone.removeprefix(FROZEN)) if backbone.startswith(FROZEN) else dataset


def run_folder(recipe: Recipe, fingerprint: str, seed: int, out_dir: Path) -> Path:
    """Where the runs of a recipe on the data with this fingerprint lie, whatever code makes them."""
    key, dataset = _key(recipe, fingerprint, seed), Path(recipe.dataset).name
    under_any_name = sorted(out_dir.glob(f"*-s{seed}-{key}"))
    return under_any_name[0] if under_any_name else out_dir / f"{recipe.name}-{dataset}-s{seed}-{key}"


def _key(recipe: Recipe, fingerprint: str, seed: int) -> str:
    return hashlib.sha256(f"{recipe.hash} {fingerprint} {seed}".encode()).hexdigest()[:12]


def _made(order: _Order, stage: int, seeds: Sequence[int]) -> dict[int, Run]:
    """Runs of the stages up to this one, found or trained; without those that diverged."""
    recipe = order.recipe.up_to(stage)
    with ExitStack() as locks:
        # Long recipes before their beginnings, small seeds before large ones: no two processes wait for each other.
        # Locks have no recipe's name, as another process may ask for the same training under another.
        waiting, unwritable = order.out_dir / ".locks", None
        try:
            waiting.mkdir(parents=True, exist_ok=True)
            for seed in seeds if distributed.is_main() else ():  # the others train with it
                locks.enter_context(FileLock(waiting / f"{_key(recipe, order.data.fingerprint, seed)}.lock"))
        except OSError as error:  # what is finished can be read from a disk that can't be written
            unwritable = error
        distributed.wait()
        folders = {seed: run_folder(recipe, order.data.fingerprint, seed, order.out_dir) for seed in seeds}
        made = {}
        for seed, folder in folders.items():
            if order.resume and (found := _find(folder, recipe, seed, order)):
                TrainingProgress(f"{recipe.name}, seed {seed}").from_cache(_not_counted_yet(found))
                made[seed] = found
                with suppress(OSError):  # of a process that was killed between its last two writings
                    for leftover in (UNFINISHED, f".{UNFINISHED}.part"):
                        (found.checkpoint.parent / leftover).unlink(missing_ok=True)
        missing = [seed for seed in seeds if seed not in made]
        if missing and unwritable:
            raise unwritable
        if missing:
            before = _made(order, stage - 1, missing) if stage else dict.fromkeys(missing)
            made |= _train(order, stage, before, folders)
        return made


def _not_counted_yet(run: Run) -> float:
    """Seconds that training this run would have taken here, without the stages that were trained or found before."""
    seconds = 0.0
    for number, stage in enumerate(run.record["stages"]):
        key = run.recipe.up_to(number).hash, run.seed
        seconds += stage["seconds"] if key not in _counted else 0.0
        _counted.add(key)
    return seconds


def _find(folder: Path, recipe: Recipe, seed: int, order: _Order) -> Run | None:
    """The finished run of this code; failing that, a word about those of other code, or one of them."""
    runs, of_old = [], []
    for path in filter(is_finished, sorted(folder.glob("code-*"))):
        try:
            runs.append(read_run(path, recipe, seed))
        except UnsealedError:
            of_old.append(path)
    runs = [run for run in runs if not order.named or set(run.precisions) == {order.precision}]
    # The precision of new trainings first, the last made last.
    runs.sort(key=lambda run: (set(run.precisions) != {order.precision}, run.record["finished"]))
    code = [code_hash(recipe.up_to(number)) for number in range(len(recipe.stages))]
    own = [run for run in runs if [stage["code"] for stage in run.record["stages"]] == code]
    if own:
        return own[0]
    if runs and order.any_code:
        return runs[-1]
    if others := [*of_old, *(run.checkpoint.parent for run in runs)]:
        print(
            f"{folder.name} was made by other code ({others[-1].name}, this is code-{code[-1]}):"
            " training it anew. runs.run(..., any_code=True) would take it as it is.",
            file=sys.stderr,
        )
    return None


def _folder_name(code: str, precision: str, before: Run | None) -> str:
    """The name of a run's own folder; what it goes on from is part of the code that made it."""
    if before is not None:
        code = hashlib.sha256(f"{before.checkpoint.parent.name} {code}".encode()).hexdigest()[:8]
    return f"code-{code}-{precision}"


def _train(order: _Order, stage: int, before: dict[int, Run | None], folders: dict[int, Path]) -> dict[int, Run]:
    """Train a stage for each seed, side by side, from the runs of the stages before it."""
    code, dataset = code_hash(order.recipe.up_to(stage)), order.data.to(order.device)
    jobs, own = [], {}
    for seed, run in before.items():
        own[seed] = folders[seed] / _folder_name(code, order.precision, run)
        if order.resume and is_finished(own[seed]):  # without a seal: it is not written over
            read_run(own[seed], order.recipe.up_to(stage), seed)
        of_several = f", stage {stage + 1} of {len(order.recipe.stages)}" if len(order.recipe.stages) > 1 else ""
        job = training.Training(
            order.recipe,
            dataset,
            seed,
            stage,
            run.weights(order.device) if run else None,
            own[seed] / UNFINISHED,
            TrainingProgress(f"{order.recipe.name}, seed {seed}{of_several}"),
            order.precision,
        )
        own[seed].mkdir(parents=True, exist_ok=True)  # after all that a bad option can raise
        jobs.append(job)
    if not order.resume:  # what is finished stays until it is replaced: other recipes may go on from it
        for folder in own.values():
            (folder / UNFINISHED).unlink(missing_ok=True)
    made = {}
    try:
        for job in training.side_by_side(jobs):
            made[job.seed] = _finish(job, before[job.seed], own[job.seed], len(jobs))
            _counted.add((order.recipe.up_to(stage).hash, job.seed))
    except NonFiniteLossError as error:
        order.diverged.append(error)
    return made


def _finish(job: training.Training, before: Run | None, folder: Path, together: int) -> Run:
    """Evaluate a training that has come to its end, and write its run; one of several processes does."""
    if distributed.is_main():
        _write(job, before, folder, together)
    distributed.wait()
    return read_run(folder, job.recipe.up_to(job.number), job.seed)


def _write(job: training.Training, before: Run | None, folder: Path, together: int) -> None:
    recipe, dataset = job.recipe.up_to(job.number), job.data
    logits, labels = job.logits(), dataset.test.labels.cpu().numpy()
    own = {
        "seconds": job.seconds,
        "side_by_side": together,
        "processes": distributed.world(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "environment": environment(job.device, job.precision),
        "code": code_hash(recipe),
        "commit": commit(),
    }
    record = {
        "recipe": asdict(recipe),
        "recipe_hash": recipe.hash,
        "data": {
            "fingerprint": dataset.fingerprint,
            "counts": dataset.counts,
            "class_names": dataset.class_names,
            "channels": dataset.channels,
            "test_labels": hashlib.sha256(labels.tobytes()).hexdigest(),
        },
        "seed": job.seed,
        "metrics": metrics.summarize(logits.softmax(1).cpu().numpy(), labels, dataset.counts),
        "history": [*(before.history if before else []), *job.history],
        **own,
        "seconds": job.seconds + (before.seconds if before else 0.0),
        "stages": [*(before.record["stages"] if before else []), own],
    }
    checkpoint, kept, run_json = (folder / name for name in FILES)
    save_atomically({"model": job.model.state_dict()}, checkpoint)
    write_logits(logits, kept)
    record["files"] = {file.name: file_hash(file) for file in (checkpoint, kept)}
    write_json(record, run_json)  # last but one: with it the run is finished
    (folder / UNFINISHED).unlink(missing_ok=True)

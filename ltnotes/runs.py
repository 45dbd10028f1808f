"""Finished trainings on disk: run a recipe, or read it from the cache.

A run lies in ``<out_dir>/<recipe>-<dataset>-s<seed>-<key>/code-<hash>-<precision>/``. The
key hashes recipe, data and seed; the code hash covers the modules that the run depends
on, so that a run made by other code is never taken for one of this code's.

The state after each stage of a recipe is a run of its own, under the hash of the stages
so far. Recipes that begin alike share it: classifier re-training goes on from the
cross-entropy run that is there anyway, and a variant of a last stage costs that stage.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from ltnotes import data, devices, metrics, training
from ltnotes.files import read_logits, save_atomically, write_logits, write_text
from ltnotes.live_stage import NonFiniteLossError
from ltnotes.progress import TrainingProgress
from ltnotes.provenance import code_hash, environment
from ltnotes.stages import Recipe

UNFINISHED = "unfinished.pt"
FINISHED = ("checkpoint.pt", "logits.npz", "run.json")  # in the order of writing
TOGETHER = 4  # trainings side by side on a GPU
_seen: set[Path] = set()  # runs that this process trained, or was spared once


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        metrics: see :func:`ltnotes.metrics.summarize`; last epoch, test set.
        history: per epoch: stage, epoch, loss, train_accuracy, learning_rate.
        checkpoint: file with the weights, for ``torch.load(..., weights_only=True)``.
        record: all that ``run.json`` holds: recipe, data, seed, seconds, device, versions,
            code, the hash of the test labels, and what each stage was made with.
    """

    recipe: Recipe
    seed: int
    metrics: dict[str, Any]
    history: list[dict[str, float]]
    checkpoint: Path
    record: dict[str, Any]

    @property
    def per_class_accuracy(self) -> list[float]:
        """Test accuracy of each class, in class-id order."""
        return self.metrics["per_class_accuracy"]

    @property
    def counts(self) -> list[int]:
        """Training images per class."""
        return self.record["data"]["counts"]

    @property
    def seconds(self) -> float:
        """Time spent training all stages, without evaluation; of trainings side by side its own share."""
        return self.record["seconds"]

    @property
    def logits(self) -> np.ndarray:
        """Scores of the test images in the order of the test set, float32 ``[N, C]``, kept with 16 bits.

        Their softmax are the class probabilities. Calibration, adjustment of the prior,
        shifted test sets and prediction sets need no more than these and the labels.
        """
        return read_logits(self.checkpoint.with_name("logits.npz"))

    def model(self) -> nn.Module:
        """The trained network on the CPU, in evaluation mode."""
        network = training.build_model(replace(self.recipe, pretrained=False), self.counts)
        for stage in self.recipe.stages:
            training.replace_head(network, stage, self.counts)
        network.load_state_dict(self.weights())
        return network.eval()

    def weights(self, device: str | torch.device = "cpu") -> dict[str, Tensor]:
        """The network's ``state_dict()``."""
        return torch.load(self.checkpoint, map_location=device, weights_only=True)["model"]


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
    for seed in seeds:
        if seed < 0:
            raise ValueError(f"seed: got {seed}, allowed are 0 and above")
    if together is not None and together < 1:
        raise ValueError(f"together: got {together}, allowed are 1 and above")
    chosen = devices.choose_device(device)
    named = bool(precision or os.environ.get(devices.VARIABLE))
    precision = devices.choose_precision(precision, chosen)
    dataset = _load(recipe.dataset, recipe.imbalance, recipe.data_seed, recipe.validation)
    width = together or (TOGETHER if chosen.type == "cuda" else 1)
    in_order = sorted(set(seeds))
    for start in range(0, len(in_order), width):
        batch = in_order[start : start + width]
        order = _Order(recipe, dataset, chosen, data.home() / out_dir, resume, any_code, precision, named)
        try:
            made = _made(order, len(recipe.stages) - 1, batch)
        except OSError as error:
            names = ", ".join(str(run_folder(recipe, dataset.fingerprint, seed, order.out_dir)) for seed in batch)
            raise OSError(f"can't write the run in {names}: {error}; finished runs are unharmed") from error
        if order.diverged:
            raise order.diverged[0]
        yield from (made[seed] for seed in batch)


@functools.lru_cache(maxsize=4)
def _load(name: str, imbalance: float, seed: int, validation: int) -> data.LongTailData:
    """Chapters run many recipes on one data set; it is read and verified once."""
    return data.load(name, imbalance, seed, validation=validation)


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
        waiting = order.out_dir / ".locks"
        waiting.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            locks.enter_context(FileLock(waiting / f"{_key(recipe, order.data.fingerprint, seed)}.lock"))
        folders = {seed: run_folder(recipe, order.data.fingerprint, seed, order.out_dir) for seed in seeds}
        made = {}
        for seed, folder in folders.items():
            if order.resume and (found := _find(folder, recipe, seed, order)):
                if folder not in _seen:
                    TrainingProgress(f"{recipe.name}, seed {seed}").from_cache(found.seconds)
                made[seed] = found
        missing = [seed for seed in seeds if seed not in made]
        if missing:
            before = _made(order, stage - 1, missing) if stage else dict.fromkeys(missing)
            made |= _train(order, stage, before, folders)
        _seen.update(folders.values())
        return made


def _find(folder: Path, recipe: Recipe, seed: int, order: _Order) -> Run | None:
    """The finished run of this code; failing that, a word about those of other code, or one of them."""
    code = f"code-{code_hash(recipe)}"
    precision = order.precision if order.named else "*"
    finished = [path.parent for path in folder.glob(f"code-*-{precision}/run.json") if _is_finished(path.parent)]
    # The wanted precision comes first, the last made of other code last.
    finished.sort(key=lambda path: (path.name != f"{code}-{order.precision}", (path / "run.json").stat().st_mtime))
    own = [path for path in finished if path.name.rpartition("-")[0] == code]
    if own:
        return read_run(own[0], recipe, seed)
    if finished and order.any_code:
        return read_run(finished[-1], recipe, seed)
    if finished:
        print(
            f"{folder.name} was made by other code ({finished[-1].name}, this is {code}): training it anew."
            " runs.run(..., any_code=True) would take it as it is.",
            file=sys.stderr,
        )
    return None


def _is_finished(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FINISHED)


def read_run(folder: Path, recipe: Recipe, seed: int) -> Run:
    """A finished run from its folder.

    Raises:
        RuntimeError: ``run.json`` can't be read.
    """
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return Run(recipe, seed, record["metrics"], record["history"], folder / "checkpoint.pt", record)
    except (ValueError, LookupError, TypeError) as error:
        raise RuntimeError(f"{folder}/run.json can't be read ({error}); delete the folder to train it anew") from None


def _train(order: _Order, stage: int, before: dict[int, Run | None], folders: dict[int, Path]) -> dict[int, Run]:
    """Train a stage for each seed, side by side, from the runs of the stages before it."""
    code = f"code-{code_hash(order.recipe.up_to(stage))}-{order.precision}"
    dataset = order.data.to(order.device)
    jobs = []
    for seed, run in before.items():
        folder = folders[seed] / code
        folder.mkdir(parents=True, exist_ok=True)
        if not order.resume:
            for name in (*FINISHED, UNFINISHED):  # a run.json without weights is no run
                (folder / name).unlink(missing_ok=True)
        of_several = f", stage {stage + 1} of {len(order.recipe.stages)}" if len(order.recipe.stages) > 1 else ""
        job = training.Training(
            order.recipe,
            dataset,
            seed,
            stage,
            run.weights(order.device) if run else None,
            folder / UNFINISHED,
            TrainingProgress(f"{order.recipe.name}, seed {seed}{of_several}"),
            order.precision,
        )
        jobs.append(job)
    made = {}
    try:
        for job in training.side_by_side(jobs):
            made[job.seed] = _finish(job, before[job.seed], folders[job.seed] / code, len(jobs))
    except NonFiniteLossError as error:
        order.diverged.append(error)
    return made


def _finish(job: training.Training, before: Run | None, folder: Path, together: int) -> Run:
    """Evaluate a training that has come to its end, and write its run."""
    recipe, dataset = job.recipe.up_to(job.number), job.data
    logits, labels = job.logits(), dataset.test.labels.cpu().numpy()
    own = {
        "seconds": job.seconds,
        "side_by_side": together,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "environment": environment(job.device, job.precision),
        "code": code_hash(recipe),
    }
    record = {
        "recipe": asdict(recipe),
        "recipe_hash": recipe.hash,
        "data": {
            "fingerprint": dataset.fingerprint,
            "counts": dataset.counts,
            "class_names": dataset.class_names,
            "test_labels": hashlib.sha256(labels.tobytes()).hexdigest(),
        },
        "seed": job.seed,
        "metrics": metrics.summarize(logits.softmax(1).cpu().numpy(), labels, dataset.counts),
        "history": [*(before.history if before else []), *job.history],
        **own,
        "seconds": job.seconds + (before.seconds if before else 0.0),
        "stages": [*(before.record["stages"] if before else []), own],
    }
    checkpoint, kept, run_json = (folder / name for name in FINISHED)
    save_atomically({"model": job.model.state_dict()}, checkpoint)
    write_logits(logits, kept)
    write_text(json.dumps(record, indent=1), run_json)  # last but one: with it the run is finished
    (folder / UNFINISHED).unlink(missing_ok=True)
    return read_run(folder, recipe, job.seed)

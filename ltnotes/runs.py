"""Finished trainings on disk: run a recipe, or read it from the cache.

A run lies in ``<out_dir>/<recipe>-<dataset>-s<seed>-<key>/code-<hash>/``. The key hashes
recipe, data and seed; the code hash covers the modules that the run depends on, so that
a run made by other code is never taken for one of this code's.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import nn

from ltnotes import data, devices, training
from ltnotes.methods.common import Part
from ltnotes.progress import TrainingProgress, write_text
from ltnotes.stages import Recipe

UNFINISHED = "unfinished.pt"
TOGETHER = 4  # trainings side by side on a GPU


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        metrics: see :func:`ltnotes.metrics.summarize`; last epoch, test set.
        history: per epoch: stage, epoch, loss, train_accuracy, learning_rate.
        checkpoint: file with the weights, for ``torch.load(..., weights_only=True)``.
        record: all that ``run.json`` holds: recipe, data, seed, seconds, device, versions, code.
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
        """Time spent training, without the evaluation at the end; of trainings side by side its own share."""
        return self.record["seconds"]

    def model(self) -> nn.Module:
        """The trained network on the CPU, in evaluation mode."""
        network = training.build_model(replace(self.recipe, pretrained=False), self.counts)
        for stage in self.recipe.stages:
            training.replace_head(network, stage, self.counts)
        saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        network.load_state_dict(saved["model"])
        return network.eval()


def run(
    recipe: Recipe,
    seed: int = 0,
    out_dir: str | Path = "runs",
    resume: bool = True,
    device: str | None = None,
    any_code: bool = False,
) -> Run:
    """A finished run of a recipe: from the cache if it is there, else trained now.

    Two processes that ask for the same run take turns; the second finds it finished.
    Arguments and errors are those of :func:`as_finished`, for one seed: that of the weights,
    the order of images and their augmentation.
    """
    return next(as_finished(recipe, [seed], out_dir, resume, device, any_code))


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
    together: int | None = None,
) -> Iterator[Run]:
    """A run for each seed, from the cache if it is there, else trained now; from the smallest seed to the largest.

    Args:
        out_dir: the cache. A relative path lies below :func:`ltnotes.data.home`.
        resume: False trains anew, whatever the cache holds.
        device: "cpu", "cuda" or "cuda:N"; a GPU if there is one when not given.
        any_code: take a run that other code made, where this code made none.
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
    dataset = _load(recipe.dataset, recipe.imbalance, recipe.data_seed, recipe.validation)
    folders = {seed: run_folder(recipe, dataset.fingerprint, seed, data.home() / out_dir) for seed in sorted(seeds)}
    width = together or (TOGETHER if chosen.type == "cuda" else 1)
    for start in range(0, len(folders), width):
        batch = dict(list(folders.items())[start : start + width])
        made = _run_together(recipe, dataset, chosen, batch, resume, any_code)
        yield from (made[seed] for seed in batch)


def _run_together(
    recipe: Recipe,
    dataset: data.LongTailData,
    device: torch.device,
    folders: dict[int, Path],
    resume: bool,
    any_code: bool,
) -> dict[int, Run]:
    """A run for each seed, found in its folder or trained beside the others, while the folders are locked."""
    try:
        with ExitStack() as locks:
            for folder in folders.values():  # in the order of seeds in every process, so that none waits in a circle
                folder.mkdir(parents=True, exist_ok=True)
                locks.enter_context(FileLock(folder / ".lock"))
            made = {}
            for seed, folder in folders.items():
                if resume and (found := _find(folder, recipe, seed, any_code)):
                    TrainingProgress(f"{recipe.name}, seed {seed}").from_cache(found.seconds)
                    made[seed] = found
            code = f"code-{code_hash(recipe)}"
            missing = {seed: folder / code for seed, folder in folders.items() if seed not in made}
            return made | (_train(recipe, dataset.to(device), missing, resume) if missing else {})
    except OSError as error:
        names = ", ".join(map(str, folders.values()))
        raise OSError(f"can't write the run in {names}: {error}; finished runs are unharmed") from error


@functools.lru_cache(maxsize=4)
def _load(name: str, imbalance: float, seed: int, validation: int) -> data.LongTailData:
    """Chapters run many recipes on one data set; it is read and verified once."""
    return data.load(name, imbalance, seed, validation=validation)


def run_folder(recipe: Recipe, fingerprint: str, seed: int, out_dir: Path) -> Path:
    """Where the runs of a recipe on the data with this fingerprint lie, whatever code makes them."""
    key = hashlib.sha256(f"{recipe.hash} {fingerprint} {seed}".encode()).hexdigest()[:12]
    dataset = Path(recipe.dataset).name
    under_any_name = sorted(out_dir.glob(f"*-s{seed}-{key}"))
    return under_any_name[0] if under_any_name else out_dir / f"{recipe.name}-{dataset}-s{seed}-{key}"


def _find(folder: Path, recipe: Recipe, seed: int, any_code: bool) -> Run | None:
    """The finished run of this code; failing that, a word about those of other code, or one of them."""
    here = folder / f"code-{code_hash(recipe)}"
    if (here / "run.json").is_file() and (here / "checkpoint.pt").is_file():
        return read_run(here, recipe, seed)
    others = sorted(folder.glob("code-*/run.json"), key=lambda path: path.stat().st_mtime)
    if not others:
        return None
    if any_code:
        return read_run(others[-1].parent, recipe, seed)
    print(
        f"{folder.name} was made by other code ({others[-1].parent.name}, this is {here.name}): training it anew."
        " runs.run(..., any_code=True) would take it as it is.",
        file=sys.stderr,
    )
    return None


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


def _train(recipe: Recipe, dataset: data.LongTailData, folders: dict[int, Path], resume: bool) -> dict[int, Run]:
    """Train a run for each seed, side by side, into its folder."""
    jobs = []
    for seed, folder in folders.items():
        if not resume:
            for name in ("checkpoint.pt", "run.json", UNFINISHED):  # a run.json without weights is no run
                (folder / name).unlink(missing_ok=True)
        progress = TrainingProgress(f"{recipe.name}, seed {seed}")
        jobs.append(training.Training(recipe, dataset, seed, folder / UNFINISHED, progress))
    return {job.seed: _finish(job, folders[job.seed], len(jobs)) for job in training.side_by_side(jobs)}


def _finish(job: training.Training, folder: Path, together: int) -> Run:
    """Evaluate a training that has come to its end, and write its run."""
    metrics, _ = job.evaluate()
    dataset, recipe = job.data, job.recipe
    record = {
        "recipe": asdict(recipe),
        "data": {"fingerprint": dataset.fingerprint, "counts": dataset.counts, "class_names": dataset.class_names},
        "seed": job.seed,
        "metrics": metrics,
        "history": job.history,
        "seconds": job.seconds,
        "side_by_side": together,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "environment": environment(job.device, job.dtype),
        "code": code_hash(recipe),
    }
    training.save_atomically({"model": job.model.state_dict()}, folder / "checkpoint.pt")
    write_text(json.dumps(record, indent=1), folder / "run.json")  # last but one: with it the run is finished
    (folder / UNFINISHED).unlink(missing_ok=True)
    return read_run(folder, recipe, job.seed)


def environment(device: torch.device, dtype: torch.dtype | None) -> dict[str, str]:
    """What a result depends on besides recipe, data, seed and code."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return {
        "device": name,
        "precision": str(dtype or torch.float32).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


# --- the code that made a run ------------------------------------------------


def code_hash(recipe: Recipe) -> str:
    """Hash of the statements that a recipe's training can run through: the training loop, the recipe's
    method parts, and all of this package that they import. Comments and docstrings don't count."""
    parts = list(_parts(recipe))
    waiting = {"ltnotes.training", *(part.resolve().__module__ for part in parts)}
    modules: set[str] = set()
    while waiting:
        module = waiting.pop()
        modules.add(module)
        waiting |= set(_source(module)[1]) - modules
    sources = [_source(module)[0] for module in sorted(modules)]
    # A part that is defined in a notebook has no file; its own source stands for it.
    sources += [inspect.getsource(target) for part in parts if _file(target := part.resolve()) is None]
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:8]


def _parts(value: Any) -> Iterator[Part]:
    """Every method part that a recipe names, also those within another part's options."""
    if isinstance(value, Part):
        yield value
        value = value.options
    elif is_dataclass(value):
        value = tuple(vars(value).values())
    if isinstance(value, tuple):
        for inner in value:
            yield from _parts(inner)


def _file(target: Any) -> str | None:
    return getattr(sys.modules[target.__module__], "__file__", None)


@functools.cache
def _source(module: str) -> tuple[str, tuple[str, ...]]:
    """A module's statements without docstrings, and the modules of this package that it imports."""
    path = getattr(sys.modules[module], "__file__", None)
    if path is None:
        return module, ()
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ltnotes"):
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} & sys.modules.keys()
            imported -= {"ltnotes"}  # a new version number changes no training
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [statement for statement in node.body if not _is_text(statement)] or [ast.Pass()]
    return ast.unparse(tree), tuple(sorted(imported))


def _is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring, of a function, a class, a module or a constant."""
    match statement:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
    return False

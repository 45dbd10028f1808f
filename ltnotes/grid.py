"""Many reruns: every combination of some values, each in a process of its own, and one table of what came out.

A rerun is named by the hash of all that it is asked for. Its result is a file of that name, so a
grid can be stopped at any time, killed in any part, enlarged, and started again.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ltnotes import data, grid_process, recipes, runs
from ltnotes.files import DamagedFileError, first_line, read_json, write_json
from ltnotes.options import choice, require, whole
from ltnotes.progress import duration
from ltnotes.stages import Recipe

KINDS = ("recipe", "chapter")
TRIES = 10  # of a rerun whose process is killed
SECONDS_BETWEEN_LOOKS = 0.05
SETTING = {"dataset": "cifar10-lt", "imbalance": None, "scale": "lite", "protocol": None}


@dataclass(frozen=True)
class Rerun:
    """One combination of values, of a recipe or of a chapter."""

    kind: str
    name: str
    values: tuple[tuple[str, Any], ...]

    @property
    def key(self) -> str:
        """Of everything that is asked for."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    @property
    def text(self) -> str:
        """As JSON, which a process of its own is given."""
        return json.dumps({"kind": self.kind, "name": self.name, "values": dict(self.values)}, sort_keys=True)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.values)])


def from_text(text: str) -> Rerun:
    content = json.loads(text)
    return Rerun(content["kind"], content["name"], tuple(sorted(content["values"].items())))


# --- what is asked for ------------------------------------------------------------------------


def plan(kind: str, names: Sequence[str], grid: Mapping[str, Sequence[Any]]) -> list[Rerun]:
    """Every combination of the values for every name, each of them looked at before anything runs.

    Args:
        kind: "recipe" or "chapter".
        grid: values by parameter. A recipe's are dataset, imbalance, scale, protocol, seed and every
            field of a recipe or stage; a chapter's are its own.

    Raises:
        ValueError: an unknown name, parameter or value.
        FileNotFoundError: data that is not prepared.
    """
    choice("kind", kind, KINDS)
    require(len(names) > 0, kind, "none", "one name or more")
    for name, values in grid.items():
        require(len(values) > 0, name, "no value", "one value or more")
    reruns = [
        Rerun(kind, name, tuple(sorted(zip(grid, values, strict=True))))
        for name in names
        for values in itertools.product(*grid.values())
    ]
    for rerun in reruns:
        if kind == "recipe":
            recipe, _ = recipe_of(rerun)
            _check_data(recipe.dataset, recipe.imbalance, recipe.data_seed, recipe.validation)
        else:
            chapter_of(rerun, Path())
    return list(dict.fromkeys(reruns))


@functools.cache
def _check_data(name: str, imbalance: float, seed: int, validation: int) -> None:
    data.load(name, imbalance, seed, validation=validation)


def recipe_of(rerun: Rerun) -> tuple[Recipe, int]:
    """The recipe and the seed that a rerun trains."""
    values = dict(rerun.values)
    seed = whole("seed", values.pop("seed", 0))
    setting = {name: values.pop(name, default) for name, default in SETTING.items()}
    return recipes.get(rerun.name, **setting, **values), seed


def chapter_of(rerun: Rerun, folder: Path) -> Any:
    """The one job of papermill that a rerun is."""
    from ltnotes import reruns  # papermill comes with the [book] extra only

    (job,) = reruns.plan([rerun.name], {name: [value] for name, value in rerun.values}, folder)
    return job


def read_values(text: str) -> tuple[str, list[Any]]:
    """``imbalance=50,100`` as a name and Python literals; what is no literal stays a string.

    Raises:
        ValueError: a text without ``=`` or without a value.
    """
    name, _, values = text.partition("=")
    require(bool(name and values), "-p", text, "NAME=VALUE,VALUE, such as imbalance=50,100")
    read = []
    for value in values.split(","):
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
        read.append(value)
    return name, read


def read_file(path: Path) -> tuple[str, list[str], dict[str, list[Any]]]:
    """Kind, names and grid from a YAML file with ``recipes`` or ``chapters``, and ``grid``.

    Raises:
        ValueError: a file that says something else.
    """
    import yaml  # comes with the [book] extra

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        kinds = [kind for kind in KINDS if f"{kind}s" in content]
        names = content[f"{kinds[0]}s"]
        grid = {str(name): v if isinstance(v, list) else [v] for name, v in (content.get("grid") or {}).items()}
        if len(kinds) != 1 or set(content) != {f"{kinds[0]}s", "grid"} or not all(isinstance(n, str) for n in names):
            raise ValueError(f"its keys are {', '.join(map(str, content))}")
    except (OSError, yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"grid: {path} is no such file ({first_line(error)}); allowed is YAML with 'recipes' or 'chapters', a list"
            " of names, and 'grid', a list of values for each parameter"
        ) from None
    return kinds[0], list(names), grid


# --- one rerun, in a process of its own -------------------------------------------------------------


def work(rerun: Rerun, folder: Path) -> bool:
    """Do a rerun and write its result, or why there is none; whether it worked."""
    began = time.time()
    try:
        result = _train(rerun) if rerun.kind == "recipe" else _execute(rerun, folder)
    except Exception as error:
        traceback.print_exc()
        write_json({"rerun": rerun.text, "error": str(error)}, failure_of(rerun, folder))
        return False
    said = {"rerun": rerun.text, "result": result, "took": time.time() - began}
    write_json(said, result_of(rerun, folder))
    failure_of(rerun, folder).unlink(missing_ok=True)
    return True


def result_of(rerun: Rerun, folder: Path) -> Path:
    return folder / "reruns" / f"{rerun.key}.json"


def failure_of(rerun: Rerun, folder: Path) -> Path:
    return folder / "reruns" / f"{rerun.key}.failed.json"


def _train(rerun: Rerun) -> dict[str, Any]:
    recipe, seed = recipe_of(rerun)
    run = runs.run(recipe, seed)
    metrics = {name: value for name, value in run.metrics.items() if isinstance(value, int | float)}
    made_on = run.record["environment"]
    return {
        "dataset": recipe.dataset,
        "imbalance": recipe.imbalance,
        **metrics,
        **{group: value for group, value in run.metrics["groups"].items() if value is not None},
        "seconds": run.seconds,
        "device": made_on["device"],
        "precision": made_on["precision"],
        "run": str(run.checkpoint.parent),
    }


def _execute(rerun: Rerun, folder: Path) -> dict[str, Any]:
    from ltnotes import reruns

    job = chapter_of(rerun, folder / "chapters" / rerun.key)
    (output,) = reruns.execute([job])
    made = reruns.read_notebook(output).metadata["ltnotes"]
    return {"seconds": sum(made.get("seconds", {}).values()), "notebook": str(output)}


def is_done(rerun: Rerun, folder: Path) -> bool:
    try:
        return read_json(result_of(rerun, folder), "it is done again")["rerun"] == rerun.text
    except (DamagedFileError, LookupError):
        return False


# --- all of them ---------------------------------------------------------------------------------


@dataclass
class Slot:
    """A place where one rerun at a time can be: some threads, or a GPU."""

    environment: dict[str, str]
    process: BaseProcess | None = None
    rerun: Rerun | None = None


def slots(jobs: int | None = None) -> list[Slot]:
    """Where reruns can be: ``jobs`` on each GPU, one if not given; without a GPU so many in all, one for each core.

    Raises:
        ValueError: fewer than one.
    """
    import torch

    jobs = None if jobs is None else whole("jobs", jobs, least=1)
    if gpus := torch.cuda.device_count():
        return [Slot({"CUDA_VISIBLE_DEVICES": str(gpu)}) for _ in range(jobs or 1) for gpu in range(gpus)]
    cores = os.cpu_count() or 1
    threads = str(max(1, cores // (jobs or cores)))
    own = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
    return [Slot(dict(own)) for _ in range(jobs or cores)]


def execute(reruns: Sequence[Rerun], folder: Path, places: Sequence[Slot]) -> list[Rerun]:
    """Do the reruns that have no result yet; those that failed.

    A rerun that raises an error is not tried again in this call, and stops no other. One whose process is
    killed is, ``TRIES`` times in all.

    Raises:
        OSError: a folder that can't be written.
    """
    (folder / "reruns").mkdir(parents=True, exist_ok=True)
    waiting = deque(rerun for rerun in reruns if not is_done(rerun, folder))
    for rerun in waiting:
        failure_of(rerun, folder).unlink(missing_ok=True)  # of an earlier call
    tries = dict.fromkeys(reruns, 0)
    failed: list[Rerun] = []
    display = Display(len(reruns), len(reruns) - len(waiting))
    try:
        while waiting or any(place.process for place in places):
            for place in places:
                if place.process is None and waiting:
                    place.rerun = waiting.popleft()
                    tries[place.rerun] += 1
                    place.process = _start(place.rerun, folder, place.environment)
                elif place.process is not None and not place.process.is_alive():
                    rerun, place.process = place.rerun, None
                    if is_done(rerun, folder):
                        display.done(rerun)
                    elif not failure_of(rerun, folder).is_file() and tries[rerun] < TRIES:
                        waiting.append(rerun)  # killed: by the system for its memory, or by a scheduler
                    else:
                        failed.append(rerun)
                        display.failed(rerun, folder)
            time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        running = [place.process for place in places if place.process is not None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
        for process in running:
            process.join()
    return failed


def _start(rerun: Rerun, folder: Path, environment: Mapping[str, str]) -> BaseProcess:
    variables = {"LTNOTES_HOME": str(data.home()), **os.environ, **environment}
    log = folder / "reruns" / f"{rerun.key}.log"
    return grid_process.start(functools.partial(work, rerun, folder.absolute()), log.absolute(), variables)


class Display:
    """A line for each rerun that ends."""

    def __init__(self, total: int, before: int):
        self.total, self.before, self.ended, self.began = total, before, 0, time.monotonic()
        if before:
            print(f"{before} of {total} are done already", file=sys.stderr)

    def done(self, rerun: Rerun) -> None:
        self._say(str(rerun))

    def failed(self, rerun: Rerun, folder: Path) -> None:
        failure = failure_of(rerun, folder)
        why = read_json(failure, "")["error"] if failure.is_file() else "its process was killed"
        self._say(f"{rerun}: FAILED, {why}")

    def _say(self, text: str) -> None:
        self.ended += 1
        left = self.total - self.before - self.ended
        each = (time.monotonic() - self.began) / self.ended
        rest = f", {duration(each * left)} left" if left else ""
        print(f"{self.before + self.ended} of {self.total}{rest}: {text}", file=sys.stderr, flush=True)


def results(reruns: Sequence[Rerun], folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each rerun that has a result: what was asked for, and what came out."""
    for rerun in reruns:
        if is_done(rerun, folder):
            said = read_json(result_of(rerun, folder), "")
            yield {rerun.kind: rerun.name, **dict(rerun.values), **said["result"], "key": rerun.key}


if __name__ == "__main__":
    sys.exit(0 if work(from_text(sys.argv[1]), Path(sys.argv[2])) else 1)

"""The ledger: which full-scale trainings are wanted, in order of worth, and the record of those that are done.

A training in the ledger is two files in ``book/results``: a JSON of all that is known of
the run, and its test logits. ``ltnotes ledger`` makes them (:mod:`ltnotes.ledger_work`),
and the book quotes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ltnotes import data, recipes
from ltnotes.catalogue import CHAPTERS
from ltnotes.files import DamagedFileError, first_line, read_json, read_logits, write_bytes, write_json
from ltnotes.finished import Run
from ltnotes.provenance import code_hash
from ltnotes.stages import Recipe, recipe_from_record

SCALE = "full"
AGAIN = "take it from the repository again, or delete it"

# --- the plan ----------------------------------------------------------------


class Group(NamedTuple):
    """Recipes that belong together; each is trained with each seed, the first seed first.

    Args:
        gpu: what takes months on a CPU: only on a GPU.
    """

    names: tuple[str, ...]
    dataset: str = "cifar10-lt"
    imbalance: float = 100.0
    seeds: tuple[int, ...] = (0,)
    gpu: bool = False


FIRST = ("ce", "kps", "gcl", "fbl", "logit-adjustment", "ldam-drw")
# FBL is followed by what could explain its distance to the paper; whatever goes on from a
# first stage that is there already costs a twentieth of a training.
SECOND = (
    *("fbl-batch-as-released", "fbl-schedule-as-released", "kps-plain", "crt", "lws", "tau-norm"),
    *("gcl-no-retraining", "gcl-instance-balanced", "gcl-class-balanced", "gcl-lws", "gcl-tau-norm"),
    *("mixup", "focal", "class-balanced-sampling", "square-root", "cosface"),
)
BLT = tuple(name for name in CHAPTERS["Chapter 4, BLT"][1] if not name.endswith("as-released"))
CIFAR10 = (*FIRST[:4], *SECOND[:2], *FIRST[4:], *SECOND[2:], *BLT, "fbl-linear")
FSA = tuple(CHAPTERS["Chapter 5, feature fusion"][1])
RATIOS = (10.0, 20.0, 50.0, 100.0, 200.0)

PLAN = (
    Group(CIFAR10),
    Group(FIRST, "cifar100-lt"),
    Group(CIFAR10, seeds=(1, 2)),
    Group(FIRST, "cifar100-lt", seeds=(1, 2)),
    Group(FSA, seeds=(0, 1, 2), gpu=True),
    Group(tuple(recipes.names()), seeds=(0, 1, 2), gpu=True),
    *(Group(FIRST, name, ratio, (0, 1, 2), True) for name in ("cifar10-lt", "cifar100-lt") for ratio in RATIOS),
)


@dataclass(frozen=True)
class Entry:
    """One training of the plan."""

    name: str
    dataset: str
    imbalance: float
    seed: int

    @cached_property
    def recipe(self) -> Recipe:
        return recipes.get(self.name, self.dataset, self.imbalance, SCALE)

    @property
    def stem(self) -> str:
        """Name of its files in the ledger, without their endings."""
        return f"{self.name}-{self.dataset}-imbalance{self.imbalance:g}-{SCALE}-seed{self.seed}"

    @property
    def family(self) -> str:
        """The same for all trainings that begin with the same stage, of which one process at a time trains one."""
        return hashlib.sha256(f"{self.recipe.up_to(0).hash} {self.seed}".encode()).hexdigest()[:12]


def plan(
    names: Sequence[str] = (), seeds: Sequence[int] = (), datasets: Sequence[str] = (), gpu: bool = False
) -> list[Entry]:
    """What is to be trained, most worth first.

    Args:
        names, seeds, datasets: only these; all if empty.
        gpu: with what is planned for a GPU.

    Raises:
        ValueError: a name, a seed or a data set that is not in the plan.
    """
    groups = [group for group in PLAN if gpu or not group.gpu]
    entries = [
        Entry(name, group.dataset, group.imbalance, seed)
        for group in groups
        for seed in group.seeds
        for name in group.names
    ]
    entries = list(dict.fromkeys(entries))
    chosen = {"name": ("--only", names), "seed": ("--seed", seeds), "dataset": ("--dataset", datasets)}
    for field, (option, wanted) in chosen.items():
        known = dict.fromkeys(getattr(entry, field) for entry in entries)
        for value in wanted:
            if value not in known:
                raise ValueError(
                    f"{option}: got {value!r}, allowed are those of the plan: {', '.join(map(str, known))}"
                )
    for field, (_, wanted) in chosen.items():
        entries = [entry for entry in entries if not wanted or getattr(entry, field) in wanted]
    return entries


# --- what is there -----------------------------------------------------------


@dataclass(frozen=True)
class KeptRun(Run):
    """A run in the ledger: all of a run but its weights. ``checkpoint`` names its JSON file."""

    @property
    def logits(self) -> np.ndarray:
        """As :attr:`ltnotes.finished.Run.logits`."""
        return read_logits(self.checkpoint.with_suffix(".npz"))

    @property
    def by_other_code(self) -> bool:
        """Whether other code than this trained it. ``other-code.csv`` beside it says what that changes."""
        return self.record["code"] != code_hash(self.recipe)

    def weights(self, device: Any = "cpu") -> dict[str, Any]:
        raise FileNotFoundError(f"{self.checkpoint.stem}: the ledger keeps no weights; train the recipe with runs.run")


def results_folder() -> Path:
    """Where the ledger lies: ``results`` of the closest book, from the current folder upwards."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        for book in (folder, folder / "book"):
            if (book / "_toc.yml").is_file() or (book / "results").is_dir():
                return book / "results"
    return data.home() / "book" / "results"


def read(folder: Path | None = None) -> list[KeptRun]:
    """Every run in the ledger, in the order of its files' names.

    Raises:
        RuntimeError: a file that can't be read.
    """
    return [kept_run(file) for file in sorted((folder or results_folder()).glob("*-seed*.json"))]


def find(
    name: str, dataset: str = "cifar10-lt", imbalance: float = data.DEFAULT_IMBALANCE, folder: Path | None = None
) -> list[KeptRun]:
    """The ledger's runs of a recipe, one for each seed that is there, smallest first; none is no error."""
    wanted = (name, dataset, float(imbalance))
    found = [run for run in read(folder) if (run.recipe.name, run.recipe.dataset, run.recipe.imbalance) == wanted]
    return sorted(found, key=lambda run: run.seed)


def kept_run(file: Path) -> KeptRun:
    """The run of one JSON file; errors as in :func:`read`."""
    record = read_json(file, AGAIN, sealed=False)
    try:
        run = KeptRun(
            recipe_from_record(record["recipe"]), record["seed"], record["metrics"], record["history"], file, record
        )
        _ = run.precisions, run.counts, float(run.seconds), record["recipe_hash"]  # what every reader asks for
        _ = run.metrics["balanced_accuracy"], run.metrics["groups"].keys()
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{file} can't be read ({first_line(error)}); {AGAIN}") from None
    if not file.stem.endswith(f"-seed{run.seed}"):
        raise DamagedFileError(f"{file} is the run of seed {run.seed}; {AGAIN}")
    return run


def write(run: Run, entry: Entry, folder: Path) -> None:
    """Put a finished run into the ledger: the logits first, as the JSON says that both are there."""
    record = {**run.record, "recipe": {**run.record["recipe"], "name": entry.name}, "scale": SCALE}
    record["data"] = {**record["data"], "subset_seed": run.recipe.data_seed}
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(run.checkpoint.with_name("logits.npz").read_bytes(), path(entry, folder).with_suffix(".npz"))
    write_json(record, path(entry, folder))


def path(entry: Entry, folder: Path) -> Path:
    """An entry's JSON file; its logits lie beside it."""
    return folder / f"{entry.stem}.json"


def is_done(entry: Entry, folder: Path) -> bool:
    """Whether the ledger holds this training, as the recipe is now; whatever code made it."""
    file = path(entry, folder)
    both = file.is_file() and file.with_suffix(".npz").is_file()
    return both and kept_run(file).record["recipe_hash"] == entry.recipe.hash

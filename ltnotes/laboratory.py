"""The data of the book's page *The logit laboratory*: test logits of several methods, packed, and the recipe of least
regret. ``python -m ltnotes.laboratory`` writes them, and the figures of the page for readers without JavaScript.

A logit takes 12 bits: the distance to the largest of its image, in steps of ``STEP``. Ten
thousand images of ten classes are 200 KB of base64.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ltnotes import data, laboratory_figures, lite, recipes, runs
from ltnotes.cli import parse
from ltnotes.counts import rank_groups
from ltnotes.diagnose import NEARLY_BALANCED
from ltnotes.files import write_bytes, write_text
from ltnotes.finished import Run
from ltnotes.laboratory_figures import STATIC, Results, measure
from ltnotes.options import require
from ltnotes.palette import GROUP_COLORS, METHOD_COLORS, METHOD_NAMES
from ltnotes.papers import folder
from ltnotes.stages import Recipe

METHODS = (
    *("ce", "logit-adjustment", "weighted", "class-balanced-sampling", "squashing-cosine", "ldam-drw"),
    *("blt", "cam-fusion", "kps", "fbl", "gcl"),
)
DATASET, IMBALANCE, SCALE, SEED = "cifar10-lt", 100, "lite", 0
TABLES = {"CIFAR-10-LT": "cifar10-lt", "CIFAR-100-LT": "cifar100-lt"}  # that regrets are taken from
STEP, LEVELS = 0.01, 1 << 12
# Jupyter Book loads every .js of _static on every page; .mjs only where a page asks for it
DATA_FILE = "laboratory-data.mjs"
VARIABLE = "window.ltnotesLaboratoryData"
STATIC_BLOCK = re.compile(r'<div class="lab-static">.*?</div>\n', re.S)

# --- packing -----------------------------------------------------------------


def pack(logits: np.ndarray) -> str:
    """Scores ``[N, C]`` as base64: each is the distance to the largest of its row, two in three bytes.

    Distances are rounded to ``STEP``, and those above ``STEP * (LEVELS - 1)`` are cut there.

    Raises:
        ValueError: not two dimensions, or a score that is not finite.
    """
    logits = np.asarray(logits, np.float64)
    ok = logits.ndim == 2 and logits.size > 0 and bool(np.isfinite(logits).all())
    require(ok, "logits", logits.shape, "finite scores [N, C]")
    steps = np.rint((logits.max(1, keepdims=True) - logits) / STEP).clip(0, LEVELS - 1).astype(np.uint16).ravel()
    first, second = np.append(steps, np.zeros(len(steps) % 2, np.uint16)).reshape(-1, 2).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8)
    return base64.b64encode(packed.tobytes()).decode()


def unpack(text: str, classes: int) -> np.ndarray:
    """What :func:`pack` packed: float64 ``[N, C]``, 0 in each row's largest entry and negative elsewhere."""
    triples = np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, 3).astype(np.uint16)
    pairs = np.stack([triples[:, 0] << 4 | triples[:, 1] >> 4, (triples[:, 1] & 15) << 8 | triples[:, 2]], 1)
    steps = pairs.ravel()
    return -STEP * steps[: len(steps) // classes * classes].reshape(-1, classes).astype(np.float64)


def cut(logits: np.ndarray) -> float:
    """The share of scores that :func:`pack` cuts."""
    return float((logits.max(1, keepdims=True) - logits > STEP * (LEVELS - 1)).mean())


# --- the data file -----------------------------------------------------------


def contents(found: Mapping[str, Run], labels: np.ndarray, regret: Mapping[str, Any]) -> dict[str, Any]:
    """All that the page's scripts read.

    Args:
        found: by recipe, a finished run; all of the same training set.
        labels: class ids of the test images, ``[N]``.
        regret: see :func:`least_regret`.

    Raises:
        ValueError: no run, runs of different counts, or labels that are not those of a run's test set.
    """
    require(len(found) > 0, "found", found, "one run or more")
    first = next(iter(found.values()))
    counts, names = first.counts, first.record["data"]["class_names"]
    for name, run in found.items():
        of_set = [n + run.recipe.validation for n in run.counts]  # images that it held out are of the set, too
        require(of_set == counts, f"counts of {name}", of_set, f"those of the others, {counts}")
        _check_labels(name, run, labels)
    return {
        "dataset": first.recipe.dataset,
        "imbalance": first.recipe.imbalance,
        "scale": SCALE,
        "classes": list(names),
        "counts": counts,
        "groups": {name: rank_groups(counts)[name] for name in ("largest", "middle", "smallest")},
        "groupColors": {name: GROUP_COLORS[name] for name in ("largest", "middle", "smallest")},
        "step": STEP,
        "labels": base64.b64encode(labels.astype(np.uint8).tobytes()).decode(),
        "methods": [_method(name, run) for name, run in found.items()],
        "regret": dict(regret),
        "nearlyBalanced": NEARLY_BALANCED,
        "commands": {name: commands(name) for name in dict.fromkeys((regret["recipe"], "ce"))},
    }


def _check_labels(name: str, run: Run, labels: np.ndarray) -> None:
    logits = run.logits
    ok = np.shape(labels) == logits.shape[:1] and min(labels) >= 0 and max(labels) < len(run.counts)
    require(ok, "labels", np.shape(labels), f"class ids of {len(logits)} test images")
    hit = logits.argmax(1) == labels
    recalls = [hit[labels == c].mean() for c in range(len(run.counts))]
    # a tie between rounded scores may go to another class than it did when the run was evaluated
    fits = np.allclose(recalls, run.per_class_accuracy, atol=0.005)
    require(fits, "labels", "others", f"the test set that {name} was evaluated on")


def _method(name: str, run: Run) -> dict[str, Any]:
    """A method's entry; ``changed`` is the share of images that packing gives another class, of nearly equal score."""
    packed = pack(run.logits)
    kept = unpack(packed, len(run.counts))[: len(run.logits)]
    return {
        "id": name,
        "name": METHOD_NAMES.get(name, name),
        "color": METHOD_COLORS.get(name, METHOD_COLORS["ce"]),
        "seed": run.seed,
        "recipe": run.record["recipe_hash"],
        "code": run.record["code"],
        "precision": run.precisions[-1],
        "cut": round(cut(run.logits), 6),
        "changed": float((kept.argmax(1) != run.logits.argmax(1)).mean()),
        "logits": packed,
    }


def write(made: Mapping[str, Any], static: Path) -> None:
    """The data file, below the book's folder of static files.

    Raises:
        OSError: it can't be written.
    """
    text = f"// Made by python -m ltnotes.laboratory\n{VARIABLE} = {json.dumps(made, indent=1)};\n"
    write_text(text, static / DATA_FILE)


def read(path: Path) -> dict[str, Any]:
    """What :func:`write` wrote.

    Raises:
        ValueError: another file.
    """
    _, _, text = path.read_text(encoding="utf-8").partition(f"{VARIABLE} = ")
    return json.loads(text.strip().removesuffix(";"))


def labels_of(made: Mapping[str, Any]) -> np.ndarray:
    """Class ids of the test images, ``[N]``."""
    return np.frombuffer(base64.b64decode(made["labels"]), np.uint8).astype(int)


def logits_of(made: Mapping[str, Any], method: str) -> np.ndarray:
    """A method's scores as the page has them, see :func:`unpack`.

    Raises:
        LookupError: a method that is not there.
    """
    text = {entry["id"]: entry["logits"] for entry in made["methods"]}[method]
    return unpack(text, len(made["classes"]))[: len(labels_of(made))]


def scores(recipe: Recipe, seed: int) -> np.ndarray:
    """Test scores ``[N, C]`` of a training: the page's where it has just this one, else a run's, trained if need be."""
    path = folder().parent / "_static" / DATA_FILE
    made = read(path) if path.is_file() else {"methods": []}
    for entry in made["methods"]:
        if (entry["recipe"], entry["seed"]) == (recipe.hash, seed):
            return logits_of(made, entry["id"])
    return runs.run(recipe, seed).logits


# --- the recipe of least regret ----------------------------------------------


def least_regret(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """The recipe that loses least, where it loses most: minimax regret over data sets (Savage 1951).

    Args:
        tables: by data set, a table as ``book/lite`` has it: indexed by recipe, with a column "balanced
            accuracy" in percent, as "49.4 ± 0.6" or "24.0", and a column "seeds".

    Returns:
        ``recipe``, ``name``, ``largest`` (its largest loss, in points), ``losses``, ``best`` and ``seeds``
        (by data set: its loss, the recipe that it loses to, of how many seeds), and ``compared``, the
        number of recipes that all tables have.

    Raises:
        ValueError: no recipe is in every table.
    """
    values = {name: table["balanced accuracy"].map(_leading_number) for name, table in tables.items()}
    common = [recipe for recipe in next(iter(values.values())).index if all(recipe in v.index for v in values.values())]
    require(len(common) > 0, "tables", list(tables), "tables that have a recipe in common")
    losses = pd.DataFrame({name: v.max() - v[common] for name, v in values.items()}).round(6)
    chosen = min(common, key=lambda recipe: (losses.loc[recipe].max(), losses.loc[recipe].mean(), recipe))
    return {
        "recipe": chosen,
        "name": METHOD_NAMES.get(chosen, chosen),
        "largest": float(losses.loc[chosen].max()),
        "losses": losses.loc[chosen].to_dict(),
        "best": {name: METHOD_NAMES.get(v.idxmax(), v.idxmax()) for name, v in values.items()},
        "seeds": {name: int(table.loc[chosen, "seeds"]) for name, table in tables.items()},
        "compared": len(common),
    }


def _leading_number(entry: Any) -> float:
    return float(str(entry).split()[0])


def commands(recipe: str) -> list[str]:
    """How a reader trains a recipe on a folder of images ``my-images``, as chapter 10 does.

    Heads on frozen features where the recipe has no more to train, else the whole small network.
    """
    try:
        recipes.get(recipe, DATASET, IMBALANCE, "frozen")
        scale = "frozen"
    except ValueError:  # it changes images or maps, which finished features do not have
        scale = "lite"
    lines = [
        "ltnotes diagnose my-images",
        f"ltnotes run {recipe} --dataset data/my-images-128px-seed0 --scale {scale} --seed 0 1 2",
    ]
    for line in lines:
        parse(line.split()[1:])
    return lines


# --- the page without JavaScript ---------------------------------------------


def results(made: Mapping[str, Any], method: str = "ce") -> dict[str, Results]:
    """What one method gets at each setting of :data:`ltnotes.laboratory_figures.STATIC`."""
    logits, labels = logits_of(made, method), labels_of(made)
    return {name: measure(logits, labels, made["counts"], setting) for name, setting in STATIC.items()}


def static_block(made: Mapping[str, Any], method: str = "ce") -> str:
    """The figures of the page for readers without JavaScript, as HTML, with their numbers in words."""
    title = METHOD_NAMES.get(method, method).capitalize()
    lines = ['<div class="lab-static">', "<!-- made by python -m ltnotes.laboratory -->"]
    lines += ["<p>The laboratory needs JavaScript. These are three of its settings.</p>"]
    for name, found in results(made, method).items():
        shown = laboratory_figures.alternative(found, made["classes"], made["counts"])
        said = laboratory_figures.describe(title, STATIC[name], found)
        picture = f'<img src="_static/laboratory/{name}.svg" alt="{shown}">'
        lines.append(f"<figure>{picture}<figcaption>{said}</figcaption></figure>")
    return "\n".join([*lines, "</div>"]) + "\n"


def fill(page: str, block: str) -> str:
    """A page with its block of static figures exchanged.

    Raises:
        ValueError: it has no such block.
    """
    require(STATIC_BLOCK.search(page) is not None, "page", page[:40], "a page with a div of class lab-static")
    return STATIC_BLOCK.sub(lambda _: block, page, count=1)


def publish(made: Mapping[str, Any], book: Path) -> None:
    """Write the data file and the static figures into a book, and their words into its page.

    Raises:
        LookupError: data without cross-entropy, which the static figures show.
        ValueError: a page without a place for them.
        OSError: it can't be written.
    """
    (book / "_static" / "laboratory").mkdir(parents=True, exist_ok=True)
    write(made, book / "_static")
    points = {
        entry["id"]: measure(logits_of(made, entry["id"]), labels_of(made), made["counts"]).groups
        for entry in made["methods"]
    }
    curve = laboratory_figures.curve(logits_of(made, "ce"), labels_of(made), made["counts"])
    for name, found in results(made).items():
        picture = laboratory_figures.draw("ce", STATIC[name], found, made, points, curve)
        write_bytes(picture, book / "_static" / "laboratory" / f"{name}.svg")
    page = book / "laboratory.md"
    write_text(fill(page.read_text(encoding="utf-8"), static_block(made)), page)


def main(methods: Sequence[str] = METHODS) -> None:
    """Take the runs from the cache, or train them, and write all that the page needs."""
    found = {name: runs.run(recipes.get(name, DATASET, IMBALANCE, SCALE), seed=SEED, any_code=True) for name in methods}
    labels = data.load(DATASET, IMBALANCE).test.labels.cpu().numpy()
    tables = {title: lite.table(name) for title, name in TABLES.items()}
    publish(contents(found, labels, least_regret(tables)), folder().parent)


if __name__ == "__main__":
    main()

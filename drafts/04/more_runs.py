"""more_runs.py NAME SEED [DATASET SCALE]: a changed recipe of chapter 4, made exactly as its notebook does."""
import linecache, sys, types
from dataclasses import replace
from pathlib import Path

import torch
from ltnotes import recipes, runs
from ltnotes.methods import blt
from ltnotes.methods.common import part

name, seed = sys.argv[1], int(sys.argv[2])
dataset, scale = (sys.argv[3:] + ["cifar10-lt", "lite"][len(sys.argv) - 3 :])[:2]
imbalance = 100


def variant(name="blt", stage=None, **options):
    recipe = recipes.get(name, dataset, imbalance, scale)
    first, second = recipe.stages
    options = dict(second.transform.options) | options
    changes = {"transform": part(second.transform.name, **options)}
    second = replace(second, **changes, **(stage or {}))
    return replace(recipe, stages=(first, second))


second = recipes.get("blt", dataset, imbalance, scale).stages[1]
if scale == "tiny":
    quarter = {"steps": 5}
else:
    quarter = {"epochs": second.epochs / 4}


def drawn(gamma):
    return {"balancer": part("balancers.power_balanced", gamma=gamma)}


def at_random():
    """The recipe of the control that is a function of the notebook, with a module that has no file, as there."""
    source = (Path(__file__).parent / "noise.py").read_text()
    main = types.ModuleType("__main__")
    linecache.cache["<noise>"] = len(source), None, source.splitlines(True), "<noise>"
    sys.modules["__main__"] = main
    main.blt, main.torch = blt, torch
    exec(compile(source, "<noise>", "exec"), vars(main))
    recipe = recipes.get("blt", dataset, imbalance, scale)
    first, second = recipe.stages
    own = {"confusion_from": "validation"} | dict(second.transform.options)
    other = part("__main__:random_direction", **own)
    return replace(recipe, stages=(first, replace(second, transform=other)))


def stretches(fraction):
    recipe = variant(fraction=fraction)
    first, second = recipe.stages
    length = {"steps": 3} if scale == "tiny" else {"epochs": 1.0}
    one = replace(second, milestones=(), **({"epochs": None} | length))
    return replace(recipe, stages=(first, *[one] * (1 if scale == "tiny" else 6)))


def short(gamma=None, batch=None, **options):
    stage = dict(quarter)
    if scale == "tiny":
        stage |= {"epochs": None}
    if gamma is not None:
        stage |= drawn(gamma)
    if batch is not None:
        stage |= {"batch_size": batch}
    return variant(stage=stage, **options)


made = {
    # three seeds
    "neither": lambda: variant(fraction=0.0),
    "copies": lambda: variant(max_steps=0),
    "augmented": lambda: variant(new_images="augmented"),
    "plain": lambda: variant(stage=drawn(0.0), fraction=0.0),
    # one
    "random": at_random,
    "stretches-blt": lambda: stretches(0.5),
    "stretches-neither": lambda: stretches(0.0),
    "short": short,
    "short-neither": lambda: short(fraction=0.0),
    "short-copies": lambda: short(max_steps=0),
    "short-gamma-0": lambda: short(0.0),
    "short-gamma-0.5": lambda: short(0.5),
    "short-gamma-1": lambda: short(1.0),
    "short-gamma-0-neither": lambda: short(0.0, fraction=0.0),
    "short-gamma-0.5-neither": lambda: short(0.5, fraction=0.0),
    "short-gamma-1-neither": lambda: short(1.0, fraction=0.0),
    "short-p-0.25": lambda: short(fraction=0.25),
    "short-p-1": lambda: short(fraction=1.0),
    "short-size-0.1": lambda: short(step_size=0.1),
    "short-size-5": lambda: short(step_size=5.0),
    "short-steps-3": lambda: short(max_steps=3),
    "short-threshold-0.05": lambda: short(min_confidence=(0.05, 0.05)),
    "short-threshold-0.5": lambda: short(min_confidence=(0.5, 0.5)),
    "short-batch-32": lambda: short(batch=32),
    "short-batch-128": lambda: short(batch=128),
    "short-batch-32-neither": lambda: short(batch=32, fraction=0.0),
    "short-batch-128-neither": lambda: short(batch=128, fraction=0.0),
}
if __name__ == "__main__":
    if name == "list":
        print(*made, sep="\n")
    else:
        recipe = made[name]()
        run = runs.run(recipe, seed)
        print(name, seed, run.checkpoint.parent, {k: round(v, 3) for k, v in run.metrics["groups"].items()}, run.seconds)

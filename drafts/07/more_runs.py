"""more_runs.py NAME SEED [DATASET SCALE]: a changed recipe of chapter 7, made exactly as its notebook does."""

import itertools
import linecache
import math
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ltnotes import data, inference, recipes, runs
from ltnotes.methods import baselines, fbl
from ltnotes.methods.common import part

name, seed = sys.argv[1], int(sys.argv[2])
dataset, scale = (sys.argv[3:] + ["cifar10-lt", "lite"][len(sys.argv) - 3 :])[:2]
imbalance = 100
images = data.load(dataset, imbalance)
counts = images.counts

# The notebook's own losses, in a module without a file, as there: their source is part of a run's code hash.
main = types.ModuleType("__main__")
sys.modules["__main__"] = main
vars(main).update(fbl=fbl, baselines=baselines, F=F, np=np, torch=torch)
for file in ("losses.py", "losses2.py"):
    source = (Path(__file__).parent / file).read_text()
    linecache.cache[f"<{file}>"] = len(source), None, source.splitlines(True), f"<{file}>"
    exec(compile(source, f"<{file}>", "exec"), vars(main))


# --- as in the notebook ---
def with_loss(loss, name="fbl", third=False):
    """A recipe with another loss, of the whole length or a third of it."""
    whole = recipes.get(name, dataset, imbalance, scale).stages[0]
    short = {"steps": 20} if scale == "tiny" else {"epochs": whole.epochs / 3}
    length = short if third else {}
    loss = loss or whole.loss
    return recipes.get(name, dataset, imbalance, scale, loss=loss, **length)


def of_strength(strength, third=False):
    loss = part("fbl.FeatureBalancedLoss", strength=strength, normalized=True)
    return with_loss(loss, third=third)


ends = (0.1, 0.5, 0.8, 1.0)
if scale != "tiny":
    ends = (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    ends = (*ends, 0.8, 0.85, 0.9, 1.0)


def stretches(name):
    """A recipe in pieces, each of which leaves a network."""
    recipe = recipes.get(name, dataset, imbalance, scale)
    (whole,) = recipe.stages
    stages = []
    for start, stop in itertools.pairwise((0.0, *ends)):
        share = stop - start
        drops = sum(start >= m for m in whole.milestones)
        changes = {
            "learning_rate": whole.learning_rate * whole.decay**drops,
            "milestones": (),
            "warmup": max(0.0, whole.warmup - start) / share,
        }
        if whole.epochs:
            changes["epochs"] = share * whole.epochs
        else:
            changes["steps"] = max(1, round(share * whole.steps))
        if name == "fbl":
            clock = {"start": start, "stop": stop}
            changes["loss"] = part("__main__:within", loss=whole.loss, **clock)
        stages.append(replace(whole, **changes))
    return replace(recipe, name=f"{name}-stretches", stages=tuple(stages))


def networks(name):
    """What each piece of a training leaves behind."""
    cut = stretches(name)
    return [runs.run(cut.up_to(i), seed) for i in range(len(ends))]


def same_cost():
    """Logit adjustment with the mean costs that FBL has on its way."""
    reciprocals = []
    for run in networks("fbl"):
        f = inference.extract_features(run.model(), images.train, images)
        reciprocals.append(float((1 / f.norm(dim=1)).mean()))
    times = np.linspace(0, 1, 41)
    strength = 60 / math.log(max(counts) / min(counts)) * times**2
    taus = strength * np.interp(times, ends, reciprocals)
    options = {"times": times.tolist(), "taus": taus.round(2).tolist()}
    options = {key: tuple(value) for key, value in options.items()}
    return with_loss(part("__main__:scheduled", **options))


# --- by name ---
def always_from_seed_0(make):
    """The schedule is that of the first seed's FBL, whatever the seed of the training."""
    global seed
    wanted, seed = seed, 0
    recipe = make()
    seed = wanted
    return recipe


def of_variant(own, moves):
    return with_loss(part("__main__:variant", own=own, moves=moves), third=True)


made = {
    "same-cost": lambda: always_from_seed_0(same_cost),
    "strength-15": lambda: of_strength(15.0),
    "strength-30": lambda: of_strength(30.0),
    **{f"third-strength-{s}": lambda s=s: of_strength(float(s), True) for s in (15, 30, 60, 120)},
    "third-ce": lambda: with_loss(None, "ce", True),
    "third-norm-stopped": lambda: of_variant(True, False),
    "third-mean": lambda: of_variant(False, True),
    "third-mean-stopped": lambda: of_variant(False, False),
    "third-penalty": lambda: with_loss(part("__main__:penalty"), third=True),
    "third-schedule": lambda: with_loss(None, "fbl-schedule-as-released", True),
}
if name in ("ce-stretches", "fbl-stretches"):
    made[name] = lambda: stretches(name.removesuffix("-stretches"))
recipe = made[name]()
run = runs.run(recipe, seed)
print(name, seed, recipe.hash[:12], run.checkpoint.parent, run.metrics["balanced_accuracy"], run.metrics["groups"])

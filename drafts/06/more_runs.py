# ruff: noqa
# fmt: off
"""more_runs.py NAME SEED [DATASET SCALE]: a changed recipe of chapter 6, made exactly as its notebook does."""
import linecache, sys, types
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F
from ltnotes import recipes, runs
from ltnotes.methods import kps
from ltnotes.methods.common import is_target, part

name, seed = sys.argv[1], int(sys.argv[2])
dataset, scale = (sys.argv[3:] + ["cifar10-lt", "lite"][len(sys.argv) - 3 :])[:2]
imbalance = 100

# The functions of the notebook, in a module that has no file, as there: each is a cell's only function of its name.
main = types.ModuleType("__main__")
sys.modules["__main__"] = main
main.kps, main.torch, main.F, main.is_target = kps, torch, F, is_target
source = (Path(__file__).parent / "custom.py").read_text()
linecache.cache["<custom>"] = len(source), None, source.splitlines(True), "<custom>"
exec(compile(source, "<custom>", "exec"), vars(main))

EDGES = (0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1)


def in_pieces(name, start=None, late=None):
    """KPS cut into stages; from the edge ``start`` on with another loss."""
    recipe = recipes.get("kps-plain", dataset, imbalance, scale)
    whole, stages = recipe.stages[0], []
    for begin, end in zip(EDGES, EDGES[1:]):
        share = end - begin
        length = {"epochs": whole.epochs and share * whole.epochs}
        if scale == "tiny":
            length = {"steps": max(1, round(share * whole.steps))}
        drops = sum(begin >= m - 1e-9 for m in whole.milestones)
        changes = {
            "milestones": (),
            "learning_rate": whole.learning_rate * whole.decay**drops,
            "warmup": whole.warmup / share if begin == 0 else 0.0,
        }
        if start is not None and begin >= start:
            changes["loss"] = late
        stages.append(replace(whole, **length, **changes))
    return replace(recipe, name=name, stages=tuple(stages))


ADJUSTED = part("kps.KPSLoss", max_margin=0.5, gradient_adjustment=True)


def changed(name, **changes):
    return recipes.get(name, dataset, imbalance, scale, **changes)


RECIPES = {
    "start-never": lambda: in_pieces("kps-start-never"),
    **{
        f"start-{start:g}": lambda start=start: in_pieces(f"kps-start-{start:g}", start, ADJUSTED)
        for start in (0, 0.4, 0.6, 0.8)
    },
    "only-weight": lambda: in_pieces("kps-only-weight", 0.6, part("__main__:half_adjusted", weight=True)),
    "only-scale": lambda: in_pieces("kps-only-scale", 0.6, part("__main__:half_adjusted", weight=False)),
    "radius": lambda: changed("kps-plain", loss=part("kps.KPSLoss", max_margin=0.0)),
    "margin": lambda: changed("ldam", loss=part("baselines.LDAMLoss", max_margin=0.5, scale=15.0), protocol="kps"),
    "permuted": lambda: changed("kps", loss=part("__main__:list_on_permuted", draw=0)),
    **{
        f"short-{base}-{epochs}": lambda base=base, epochs=epochs: changed(
            base, protocol="kps", epochs=float(epochs)
        )
        for base in ("ce", "kps")
        for epochs in (9, 18)
    },
}
if __name__ != "__main__" or len(sys.argv) > 1:
    run = runs.run(RECIPES[name](), seed)
    print(name, seed, run.metrics["balanced_accuracy"], run.metrics["groups"], run.checkpoint)

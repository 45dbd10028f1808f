"""more_runs.py NAME SEED [DATASET SCALE]: changed recipes of chapter 8, made exactly as its notebook does."""

import math
import sys
from dataclasses import replace

import torch

from ltnotes import recipes, runs
from ltnotes.methods.common import part

name, seed = sys.argv[1], int(sys.argv[2])
dataset, scale = (sys.argv[3:] + ["cifar10-lt", "lite"][len(sys.argv) - 3 :])[:2]
imbalance = 100


def clamped_normal(intervals=4000, sigma=1 / 3):
    r = (torch.arange(intervals, dtype=torch.float64) + 0.5) / intervals
    density = torch.exp(-0.5 * (r / sigma) ** 2)
    inside = math.erf(1 / (sigma * math.sqrt(2)))
    weight = inside * density / density.sum()
    return torch.cat([r, r.new_ones(1)]), torch.cat([weight, weight.new_tensor([1 - inside])])


radii, mass = clamped_normal()
mean_radius = float((mass * radii).sum())


def threshold(gap):
    """Posterior at which the plain decision changes sides, for a cloud of this size in logits."""
    return float((mass * torch.sigmoid(-gap * radii)).sum())


at_border = threshold(30.0)
same_mean = round(mean_radius, 4)
same_border = round(math.log(1 / at_border - 1) / 30.0, 4)

CLOUDS = {}
PLAIN = {"noise_multiplier": 0.0}


def fixed(multiplier):
    """A margin without noise: with so wide a normal law the clamp makes every |eps| a 1."""
    return {"noise_multiplier": multiplier, "sigma": 1e9}


def first_stage(name, loss=None, **changes):
    recipe = recipes.get("gcl-no-retraining", dataset, imbalance, scale)
    if loss is not None:
        changes["loss"] = part("gcl.GCLLoss", **loss)
    stage = replace(recipe.stages[0], **changes)
    return replace(recipe, name=name, stages=(stage,))


def then(first, name, loss, sampler):
    second = recipes.get("gcl", dataset, imbalance, scale).stages[1]
    second = replace(second, loss=part("gcl.GCLLoss", **loss), balancer=part(sampler))
    return replace(first, name=name, stages=(*first.stages, second))


losses = {"plain": PLAIN, "margin": fixed(same_mean), "clouds": CLOUDS}
samplers = {
    "instance": "balancers.instance_balanced",
    "cben": "gcl.cben",
    "effective": "balancers.effective_number_balanced",
    "class": "balancers.class_balanced",
}
firsts = {
    "plain": first_stage("gcl-no-clouds", PLAIN),
    "clouds": recipes.get("gcl-no-retraining", dataset, imbalance, scale),
}
cben = part("gcl.cben")
made = {
    "plain": lambda: firsts["plain"],
    "margin": lambda: first_stage("gcl-fixed-margin", fixed(same_mean)),
    "border": lambda: first_stage("gcl-same-border", fixed(same_border)),
    "clouds-no-mixup": lambda: first_stage("gcl-no-mixup", transform=None),
    "plain-no-mixup": lambda: first_stage("gcl-no-clouds-no-mixup", PLAIN, transform=None),
    "whole-cben-plain": lambda: first_stage("gcl-whole-cben-plain", PLAIN, balancer=cben),
    "whole-cben-clouds": lambda: first_stage("gcl-whole-cben", balancer=cben),
}
of_grid = [
    then(first, f"gcl-{a}-{b}-{c}", loss, sampler)
    for a, first in firsts.items()
    for b, loss in losses.items()
    for c, sampler in samplers.items()
]
STAGE2 = (
    "gcl-lws", "gcl-tau-norm", "gcl-instance-balanced", "gcl-class-balanced", "gcl-effective-number",
    "gcl-cben-per-class", "gcl-warm-head-as-released", "gcl-margin-as-released", "gcl-scale-as-released",
    "gcl-focal-as-released", "gcl-schedule-as-released",
)  # fmt: skip
if name == "print":
    print(same_mean, same_border, at_border)
    for title, make in made.items():
        print(title, make().hash[:12])
    sys.exit()
if name == "grid":
    todo = of_grid
elif name == "second":
    todo = [recipes.get(n, dataset, imbalance, scale) for n in STAGE2]
else:
    todo = [made[name]()]
for recipe in todo:
    run = runs.run(recipe, seed)
    print(recipe.name, seed, {k: v for k, v in run.metrics["groups"].items() if v is not None}, run.seconds)

"""Every benchmark of a GPU in one call of under ten minutes: ``python -m tests.benchmarks.gpu [--out FOLDER]``.

CIFAR-10-LT is read from where ``ltnotes.data.load`` finds it; prepare it before, with
``python -m data_prep cifar10 --imbalance 100``. With ``--device cpu --dataset digits-lt
--imbalance 20 --backbone resnet8 --steps 1 --epochs 1`` everything is run once, in a minute, and measures nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch

from ltnotes import data, devices, recipes, runs
from ltnotes.catalogue.baselines import BASELINES, HEADS
from ltnotes.methods.common import part
from ltnotes.training import Training
from tests.benchmarks.bound import bound
from tests.benchmarks.steps import BATCH, Steps, eager, medians, repeated
from tests.benchmarks.table import Row, show, write

SEEDS_AT_ONCE = (2, 4, 8)
# Balancers draw otherwise, and their steps are those of cross-entropy.
METHODS = [*BASELINES, *HEADS, "blt", "cam-fusion", "cam-fusion-block-2", "kps", "kps-angle", "fbl", "gcl"]
ROUNDS = 3


class Bench:
    """What is measured on: the data on its device, the network, and how long."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.device = devices.choose_device(options.device)
        self.source = data.load(options.dataset, options.imbalance, device=self.device)
        self.held_out = data.with_validation(self.source, 1)

    def steps(self, name: str = "ce", stage: int = 0, seed: int = 0, **changes: object) -> Steps:
        source = self.held_out if self.recipe(name).validation else self.source
        return Steps(name, source, stage, seed, backbone=self.options.backbone, **changes)

    def recipe(self, name: str = "ce", **changes: object) -> recipes.Recipe:
        return recipes.get(name, self.source.name, self.source.imbalance, **changes)

    def seconds(self, *functions: Callable[[], object]) -> float:
        """Median seconds of one call of each function, made in turn."""
        times = self.options.steps
        repeated(list(functions), 5, self.device)()  # captures, and settles clocks
        call = repeated(list(functions), times, self.device)
        return medians({"calls": call}, ROUNDS)["calls"] / times

    def peak(self, functions: list[Steps]) -> float:
        """GiB of the GPU's memory that steps need, at the most."""
        if self.device.type != "cuda":
            return float("nan")
        torch.cuda.reset_peak_memory_stats(self.device)
        repeated(list(functions), 5, self.device)()
        return torch.cuda.max_memory_allocated(self.device) / 2**30


def variants(bench: Bench) -> Iterator[Row]:
    """One step written five ways, and several seeds side by side."""

    def plain(dtype: torch.dtype | None, layout: torch.memory_format) -> Steps:
        steps = bench.steps()
        steps.job.dtype = dtype
        steps.job.model.to(memory_format=layout)
        if layout is torch.contiguous_format:
            augment = steps.job.augment
            steps.job.augment = lambda indices: augment(indices).contiguous()
        return steps

    bf16 = devices.autocast_dtype(bench.device)
    eager_ones = {
        "eager, fp32": (None, torch.contiguous_format),
        "eager, fp32, channels_last": (None, torch.channels_last),
        f"eager, {bf16 or 'fp32 (no bf16 here)'}, channels_last": (bf16, torch.channels_last),
    }
    speeds = {}
    with eager():
        for name, (dtype, layout) in eager_ones.items():
            speeds[name] = BATCH / bench.seconds(plain(dtype, layout))
    one = bench.steps()
    speeds["captured: the training loop as it is"] = BATCH / bench.seconds(one)
    memory = {1: bench.peak([one])}
    if bench.options.compile:
        compiled = bench.steps()
        compiled.job.model.backbone.compile()
        speeds["captured, with a compiled backbone"] = BATCH / bench.seconds(compiled)
    for seeds in SEEDS_AT_ONCE:
        several = [bench.steps(seed=seed) for seed in range(seeds)]
        speeds[f"captured, {seeds} seeds side by side"] = seeds * BATCH / bench.seconds(*several)
        memory[seeds] = bench.peak(several)
    for name, speed in speeds.items():
        yield Row("gpu speed", f"{name}, images/s", speed)
    alone = speeds["captured: the training loop as it is"]
    best = max(speed for name, speed in speeds.items() if "seeds" in name)
    yield Row("gpu speed", "seeds side by side : one seed, images/s", best / alone, ">=", 3.0)
    for seeds, gib in memory.items():
        yield Row("gpu memory", f"ResNet-32, batch {BATCH}, {seeds} at once, peak GiB", gib)


def bounds(bench: Bench) -> Iterator[Row]:
    return bound("gpu bound", bench.steps(), bench.seconds)


def methods(bench: Bench) -> Iterator[Row]:
    """A step of the last stage of every method of the papers, against one of cross-entropy."""
    plain = bench.seconds(bench.steps())
    for name in METHODS:
        if name.endswith("as-released"):
            continue
        stages = bench.recipe(name).stages
        trained = [number for number, stage in enumerate(stages) if stage.steps != 0]
        taken = bench.seconds(bench.steps(name, trained[-1]))
        yield Row("gpu methods", f"{name} : ce, a step of stage {trained[-1] + 1}", taken / plain)
    natural = bench.steps("blt", 1, balancer=part("balancers.instance_balanced"), **small_tail(bench))
    yield Row("gpu speed", "BLT step (natural tail) : training step", bench.seconds(natural) / plain, "<=", 2.0)


def small_tail(bench: Bench) -> dict[str, object]:
    """BLT's own tail is of classes of 20 images and fewer, which not every data set has."""
    tail = "few" if min(bench.held_out.counts) <= 20 else "smallest"
    return {"transform": part("blt.BLT", fraction=0.5, tail=tail)}


def whole_runs(bench: Bench) -> Iterator[Row]:
    """Whole trainings with their evaluation: one, and four seeds."""
    changes = {"backbone": bench.options.backbone} | ({"epochs": bench.options.epochs} if bench.options.epochs else {})
    recipe = bench.recipe(**changes)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        alone = runs.run(recipe, 0, folder, device=bench.options.device)
        taken = time.perf_counter() - began
        yield Row("gpu speed", f"a run of {recipe.stages[0].epochs:g} epochs with evaluation, seconds", taken, "<=", 20)
        began = time.perf_counter()
        several = runs.over_seeds(recipe, range(1, 5), folder, device=bench.options.device)
        yield Row("gpu speed", "four runs side by side, seconds", time.perf_counter() - began)
        accuracies = [run.metrics["balanced_accuracy"] for run in (alone, *several)]
    yield Row("gpu accuracy", "five seeds, balanced accuracy, mean in %", 100 * statistics.mean(accuracies))
    yield Row("gpu accuracy", "five seeds, balanced accuracy, deviation in points", 100 * statistics.stdev(accuracies))


def same_accuracy(bench: Bench) -> Iterator[Row]:
    """Three seeds of a shorter training, eager in fp32 and as the loop trains."""
    epochs = min(30, bench.options.epochs or 30)
    recipe = bench.recipe(backbone=bench.options.backbone, epochs=epochs)

    def accuracies(as_it_is: bool) -> list[float]:
        found = []
        with nullcontext() if as_it_is else eager():
            for seed in range(3):
                job = Training(recipe, bench.source, seed)
                job.dtype = job.dtype if as_it_is else None
                job.run()
                found.append(100 * job.evaluate()[0]["balanced_accuracy"])
        return found

    ours, reference = accuracies(True), accuracies(False)
    noise = max(statistics.stdev(reference), statistics.stdev(ours), 1e-9)
    group = "gpu accuracy"
    yield Row(group, f"{epochs} epochs, three seeds, eager in fp32, mean in %", statistics.mean(reference))
    yield Row(group, f"{epochs} epochs, three seeds, as the loop trains, mean in %", statistics.mean(ours))
    difference = abs(statistics.mean(ours) - statistics.mean(reference))
    yield Row(group, "their difference in standard deviations of a seed", difference / noise, "<=", 2.0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dataset", default="cifar10-lt")
    parser.add_argument("--imbalance", type=float)
    parser.add_argument("--backbone", default="resnet32")
    parser.add_argument("--steps", type=int, default=100, help="in a timed stretch")
    parser.add_argument("--epochs", type=int, help="of the whole runs; the recipe's own if not given")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--out", type=Path, help="folder for the table as CSV files, as the book shows it")
    options = parser.parse_args(arguments)
    bench, rows = Bench(options), []
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU"
    machine = f"{name}, torch {torch.__version__}"
    for group in (variants, bounds, whole_runs, methods, same_accuracy):
        for row in group(bench):
            rows.append(row)
            print(f"{row.group}: {row.what}: {row.measured:.4g}", flush=True)
            if options.out:  # what is measured is kept, whatever becomes of the rest
                write(sorted(rows, key=lambda row: row.group), options.out, machine)
    show(sorted(rows, key=lambda row: row.group))
    print(f"\n{machine}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Every benchmark of a GPU in one call of under ten minutes: ``python -m tests.benchmarks.gpu [--out FOLDER]``.

CIFAR-10-LT is read from where ``ltnotes.data.load`` finds it; prepare it before, with
``python -m data_prep cifar10 --imbalance 100``. With ``--device cpu --dataset digits-lt
--imbalance 20 --backbone resnet8 --steps 1 --epochs 1`` everything is run once, in a minute, and measures nothing.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
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
METHODS = [name for name in (*BASELINES, *HEADS) if not name.endswith("as-released")]
METHODS += ["blt", "cam-fusion", "cam-fusion-block-2", "kps", "kps-angle", "fbl", "gcl"]
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

    def seconds(self, *functions: Callable[[], object], warm_up: int = 5) -> float:
        """Median seconds of one call of each function, made in turn."""
        times = self.options.steps
        repeated(list(functions), min(warm_up, 5 * times), self.device)()  # captures, and settles clocks
        call = repeated(list(functions), times, self.device)
        return medians({"calls": call}, ROUNDS)["calls"] / times

    def reserved(self) -> float:
        """GiB of the GPU that are taken, CUDA graphs' own memory with them."""
        if self.device.type != "cuda":
            return 0.0
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(self.device) / 2**30


def variants(bench: Bench) -> Iterator[Row]:
    """The same step eagerly, in several precisions and layouts, and with a compiled backbone."""
    own = devices.choose_precision(None, bench.device)
    eager_ones = {
        "eager, float32": ("float32", torch.contiguous_format, partial(devices.full_float32, bench.device)),
        "eager, TF32 where there is": ("float32", torch.contiguous_format, nullcontext),
        "eager, TF32, channels_last": ("float32", torch.channels_last, nullcontext),
        f"eager, {own} as trained here, channels_last": (own, torch.channels_last, nullcontext),
    }
    for name, (precision, layout, context) in eager_ones.items():
        with eager(), context():
            steps = plain(bench, precision, layout)
            yield Row("gpu speed", f"{name}, images/s", BATCH / bench.seconds(steps))
            steps.close()
    if bench.options.compile:
        compiled = bench.steps()
        compiled.job.model.backbone.compile()
        yield Row("gpu speed", "captured, with a compiled backbone, images/s", BATCH / bench.seconds(compiled))
        compiled.close()


def plain(bench: Bench, precision: str, layout: torch.memory_format) -> Steps:
    """Steps in this precision and layout."""
    steps = bench.steps()
    steps.job.precision = precision
    steps.job.model.to(memory_format=layout)
    if layout is torch.contiguous_format:
        augment = steps.job.augment
        steps.job.augment = lambda indices: augment(indices).contiguous()
    steps.job.wait()
    return steps


def side_by_side(bench: Bench) -> Iterator[Row]:
    """The training loop as it is: one seed, and several at once."""
    speeds = {}
    for seeds in (1, *SEEDS_AT_ONCE):
        before = bench.reserved()
        several = [bench.steps(seed=seed) for seed in range(seeds)]
        speeds[seeds] = seeds * BATCH / bench.seconds(*several)
        yield Row("gpu speed", f"captured, {seeds} at once, images/s", speeds[seeds])
        yield Row("gpu memory", f"{seeds} at once, batch {BATCH}, GiB", bench.reserved() - before)
        for steps in several:
            steps.close()
    best = max(speeds.values()) / speeds[1]
    yield Row("gpu speed", "seeds side by side : one seed, images/s", best, ">=", 3.0)


def bounds(bench: Bench) -> Iterator[Row]:
    return bound("gpu bound", bench.steps(), bench.seconds)


def methods(bench: Bench) -> Iterator[Row]:
    """A step of the last stage of every method of the papers, against one of cross-entropy."""
    alone = bench.seconds(bench.steps())
    for name in METHODS:
        stages = bench.recipe(name).stages
        trained = [number for number, stage in enumerate(stages) if stage.steps != 0]
        steps = bench.steps(name, trained[-1])
        taken = bench.seconds(steps, warm_up=200 if name == "blt" else 5)
        yield Row("gpu methods", f"{name} : ce, a step of stage {trained[-1] + 1}", taken / alone)
        steps.close()
    natural = bench.steps("blt", 1, balancer=part("balancers.instance_balanced"), **small_tail(bench))
    taken = bench.seconds(natural, warm_up=200)  # batches of many sizes, each captured
    yield Row("gpu speed", "BLT step (natural tail) : training step", taken / alone, "<=", 2.0)
    natural.close()


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
        several = runs.over_seeds(recipe, range(1, 5), out_dir=folder, device=bench.options.device)
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
        with nullcontext() if as_it_is else eager(), nullcontext() if as_it_is else devices.full_float32(bench.device):
            for seed in range(3):
                job = Training(recipe, bench.source, seed, precision=None if as_it_is else "float32")
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


GROUPS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "whole-runs": whole_runs,
    "side-by-side": side_by_side,
    "bounds": bounds,
    "accuracy": same_accuracy,
    "methods": methods,
    "variants": variants,
}


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
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="what to measure")
    options = parser.parse_args(arguments)
    bench, rows, failed = Bench(options), [], []
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU"
    machine = f"{name}, torch {torch.__version__}"
    for group in options.groups:
        try:
            for row in GROUPS[group](bench):
                rows.append(row)
                print(f"{row.group}: {row.what}: {row.measured:.4g}", flush=True)
                if options.out:  # what is measured is kept, whatever becomes of the rest
                    write(sorted(rows, key=lambda row: row.group), options.out, machine)
        except Exception:  # of any kind: a GPU's time is dear, and the other groups are as good as before
            traceback.print_exc()
            failed.append(group)
    show(sorted(rows, key=lambda row: row.group))
    print(f"\n{machine}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""What the parts of a training cost, as ratios of things that take turns in one process.

``python -m tests.benchmarks.parts`` prints the rows of every group below as JSON; a row is
(what, target or None, how the target bounds it, measured).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from ltnotes import data, devices, models, recipes
from ltnotes.batches import Augmenter, draw_images
from ltnotes.counts import exponential_counts
from ltnotes.inference import predict
from ltnotes.live_stage import LiveStage
from ltnotes.methods import blt
from ltnotes.methods.common import Part, part
from ltnotes.training import Training

Row = tuple[str, float | None, str, float]
BATCH, ROUNDS = 128, 5

LOSSES: dict[str, Part] = {
    "weighted": part("baselines.WeightedCrossEntropy"),
    "focal": part("baselines.FocalLoss"),
    "class-balanced": part("baselines.ClassBalancedLoss"),
    "LDAM": part("baselines.LDAMLoss"),
    "CosFace": part("baselines.CosFaceLoss"),
    "ArcFace": part("baselines.ArcFaceLoss"),
    "equalization": part("baselines.EqualizationLoss"),
    "logit adjustment": part("baselines.LogitAdjustedLoss"),
    "label-aware smoothing": part("baselines.LabelAwareSmoothing"),
    "KPS": part("kps.KPSLoss", gradient_adjustment=True),
    "KPS on the angle": part("kps.KPSLoss", penalty="angle"),
    "FBL": part("fbl.FeatureBalancedLoss", strength=60.0, normalized=True),
    "GCL": part("gcl.GCLLoss"),
}


def medians(functions: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each function; they take turns, after one call each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def loss_step(loss: Part, batch: int, classes: int) -> Callable[[], None]:
    """Forward and backward of a loss at ``[batch, classes]``, from cosines."""
    made = loss.build(class_counts=exponential_counts(5000, classes, 100))
    scores = (2 * torch.rand(batch, classes) - 1).requires_grad_()
    targets, features = torch.randint(classes, (batch,)), torch.randn(batch, 64)

    def step() -> None:
        scores.grad = None
        made(scores, targets, features).backward()

    return step


def losses(cifar: data.LongTailData) -> list[Row]:
    rows = []
    for batch, classes, repeats in ((128, 100, 200), (512, 8142, 9)):
        steps = {name: loss_step(loss, batch, classes) for name, loss in LOSSES.items()}
        plain = loss_step(part("baselines.CrossEntropy"), batch, classes)
        taken = medians({"cross-entropy": plain, **steps}, repeats)
        rows += [
            (f"{name} : cross-entropy at [{batch}, {classes}]", 1.25, "<=", taken[name] / taken["cross-entropy"])
            for name in LOSSES
        ]
    return rows


class Steps:
    """Batches of one stage of a recipe, trained one call at a time by the training loop itself."""

    def __init__(self, name: str, cifar: data.LongTailData, stage: int, **changes: object):
        recipe = recipes.get(name, "cifar10-lt", backbone="resnet32", batch_size=BATCH, **changes)
        job = Training(replace(recipe, stages=recipe.stages[stage:][:1]), cifar, seed=0)
        job._replace_head(recipe.stages[stage], 0)
        self.live = LiveStage(job, recipe.stages[stage])
        self.live.start()
        self.live._set_mode()
        self.live._tell_time(self.live.num_steps // 2)
        self.live.transform.start_epoch()
        self.batches = iter(
            draw_images(self.live.stage.balancer.build(counts=cifar.counts, t=0.5), cifar.train.labels).split(BATCH)
        )

    def __call__(self) -> None:
        self.live.step(next(self.batches))


def bare_step(cifar: data.LongTailData) -> Callable[[], None]:
    """Forward, backward and update of the same network on one fixed batch, and nothing else."""
    model = models.build("resnet32", cifar.num_classes).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4, foreach=True)
    images, labels = Augmenter(cifar)(torch.arange(BATCH)), cifar.train.labels[:BATCH]
    dtype = devices.autocast_dtype(images.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with devices.precision(images.device, dtype):
            logits = model(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def steps(cifar: data.LongTailData) -> list[Row]:
    held_out = data.with_validation(cifar, 5)
    taken = medians(
        {
            "bare": bare_step(cifar),
            "plain": Steps("ce", cifar, 0),
            "BLT": Steps("blt", held_out, 1, balancer=part("balancers.instance_balanced")),
            "fusion": Steps("cam-fusion", cifar, 1),
            "cRT": Steps("crt", cifar, 1),
            "LWS": Steps("lws", cifar, 1),
        },
        rounds=9,
    )
    plain = taken["plain"]
    frozen = [(f"training step : {name} step", 2.5, ">=", plain / taken[name]) for name in ("fusion", "cRT", "LWS")]
    return [
        ("bare forward, backward and update : training step", 0.9, ">=", taken["bare"] / plain),
        ("BLT step (p = 0.5, natural tail) : training step; the paper's is 3.04", None, "", taken["BLT"] / plain),
        *frozen,
        ("hallucinated image and iteration : training image", 0.5, "<=", ascent(cifar) / plain),
    ]


def ascent(cifar: data.LongTailData, iterations: int = 3) -> float:
    """Seconds that a batch of images takes for one iteration of the ascent."""
    model = models.build("resnet32", cifar.num_classes).to(memory_format=torch.channels_last)
    images, classes = Augmenter(cifar)(torch.arange(BATCH)), torch.zeros(BATCH, dtype=torch.int64)
    climb = {"climb": lambda: blt.hallucinate(model, images, classes, 2.0, max_steps=iterations)}  # none is ever done
    return medians(climb)["climb"] / iterations


def evaluation(cifar: data.LongTailData) -> list[Row]:
    model = models.build("resnet32", cifar.num_classes).to(memory_format=torch.channels_last)
    taken = medians({"predict": lambda: predict(model, cifar.test, cifar)}, rounds=3)
    return [(f"evaluation of {len(cifar.test):,} images, seconds", None, "", taken["predict"])]


def start_up(cifar: data.LongTailData) -> list[Row]:
    def run(program: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", program], check=True)

    taken = medians({"torch": run("import torch, torchvision"), "ltnotes": run("import ltnotes.runs, ltnotes.recipes")})
    return [("import of ltnotes : of torch and torchvision", 1.5, "<=", taken["ltnotes"] / taken["torch"])]


def growth(cifar: data.LongTailData) -> list[Row]:
    """How cost grows, as the exponent of a power law between the smallest and the largest: 1 is linear."""

    def exponent(sizes: tuple[int, int], functions: tuple[Callable[[], object], Callable[[], object]]) -> float:
        taken = medians(dict(zip(("small", "large"), functions, strict=True)))
        ratio = torch.tensor([taken["large"] / taken["small"], sizes[1] / sizes[0]]).log()
        return float(ratio[0] / ratio[1])

    def drawing(n: int) -> Callable[[], object]:
        labels = torch.arange(n) % 100
        return lambda: draw_images(torch.full((100,), 0.01, dtype=torch.float64).softmax(0), labels.sort().values)

    def training_at(batch: int) -> Callable[[], object]:
        model = models.build("resnet8", 10).to(memory_format=torch.channels_last)
        images = Augmenter(cifar)(torch.arange(batch))
        return lambda: model(images).square().mean().backward()

    kps = LOSSES["KPS"]
    return [
        (
            "drawing an epoch, N from 20,000 to 2,000,000, exponent",
            1.1,
            "<=",
            exponent((20_000, 2_000_000), (drawing(20_000), drawing(2_000_000))),
        ),
        (
            "KPS loss, C from 100 to 8,142, exponent",
            1.1,
            "<=",
            exponent((100, 8142), (loss_step(kps, 128, 100), loss_step(kps, 128, 8142))),
        ),
        (
            "training step, batch from 32 to 512, exponent",
            1.1,
            "<=",
            exponent((32, 512), (training_at(32), training_at(512))),
        ),
    ]


GROUPS = (losses, steps, evaluation, start_up, growth)


def main() -> None:
    cifar = data.load("cifar10-lt")
    for group in GROUPS:
        for row in group(cifar):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

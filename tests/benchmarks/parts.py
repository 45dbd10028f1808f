"""What the parts of a training cost on a CPU, as ratios of things that take turns in one process.

``python -m tests.benchmarks.parts`` prints each row as a line of JSON.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch

from ltnotes import data, devices, metrics, models
from ltnotes.batches import Augmenter, draw_images
from ltnotes.counts import exponential_counts
from ltnotes.inference import predict
from ltnotes.methods import blt
from ltnotes.methods.common import Part, part
from tests.benchmarks.bound import bound
from tests.benchmarks.steps import BATCH, Steps, medians
from tests.benchmarks.table import Row

LOSSES: dict[str, Part] = {
    "cross-entropy": part("baselines.CrossEntropy"),
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
CLASSES = (10, 100, 1000, 8142)


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
    """The time of each loss, forward and backward, as a share of a training step of ResNet-32."""
    rows = []
    for classes in (10, 100):
        steps = {name: loss_step(loss, BATCH, classes) for name, loss in LOSSES.items()}
        step = medians({"step": Steps("ce", cifar)}, rounds=9)["step"]
        taken = medians(steps, rounds=200)
        rows += [Row(f"losses {classes} classes", f"{name}, %", 100 * taken[name] / step, "<=", 1.0) for name in LOSSES]
    return rows


def bare_step(cifar: data.LongTailData) -> Callable[[], None]:
    """Forward, backward and update of the same network on one fixed batch, and nothing else."""
    model = models.build("resnet32", cifar.num_classes).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4, foreach=True)
    images, labels = Augmenter(cifar)(torch.arange(BATCH)), cifar.train.labels[:BATCH]
    precision = devices.choose_precision(None, images.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with devices.autocast(images.device, precision):
            logits = model(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def steps(cifar: data.LongTailData) -> list[Row]:
    held_out = data.with_validation(cifar, 5)
    taken = medians(
        {
            "bare": bare_step(cifar),
            "plain": Steps("ce", cifar),
            "BLT": Steps("blt", held_out, 1, balancer=part("balancers.instance_balanced")),
            "fusion": Steps("cam-fusion", cifar, 1),
            "cRT": Steps("crt", cifar, 1),
            "LWS": Steps("lws", cifar, 1),
            "ascent": ascent(cifar, BATCH, iterations=2),
            "half done": ascent(cifar, BATCH, iterations=6, done=BATCH // 2),
            "half": ascent(cifar, BATCH // 2, iterations=6),
        },
        rounds=9,
    )
    plain, half = taken["plain"], taken["half done"] / taken["half"]
    group = "steps"
    frozen = [
        Row(group, f"training step : step of {name}, backbone frozen", plain / taken[name], ">=", 2.5)
        for name in ("fusion", "cRT", "LWS")
    ]
    return [
        Row(group, "bare forward, backward and update : training step", taken["bare"] / plain, ">=", 0.9),
        *frozen,
        Row(group, "hallucinated image and iteration : training image", taken["ascent"] / 2 / plain, "<=", 0.5),
        Row(group, "six iterations, half of the images done at once : of the other half alone", half),
        Row(group, "BLT step (p = 0.5, natural tail) : training step; the paper's is 3.04", taken["BLT"] / plain),
    ]


def bounds(cifar: data.LongTailData) -> Iterator[Row]:
    return bound("bound", Steps("ce", cifar), lambda function: medians({"function": function}, rounds=7)["function"])


def ascent(cifar: data.LongTailData, images: int, iterations: int, done: int = 0) -> Callable[[], object]:
    """Images climbing for some iterations, of which the first are done at the first look and the rest never."""
    model = models.build("resnet32", cifar.num_classes).to(memory_format=torch.channels_last)
    batch, classes = Augmenter(cifar)(torch.arange(images)), torch.zeros(images, dtype=torch.int64)
    confidence = 2.0 * (torch.arange(images) >= done)
    return lambda: blt.hallucinate(model, batch, classes, confidence, max_steps=iterations)


def evaluation(cifar: data.LongTailData) -> list[Row]:
    model = models.build("resnet32", cifar.num_classes).to(memory_format=torch.channels_last)
    taken = medians({"predict": lambda: predict(model, cifar.test, cifar)}, rounds=3)
    return [Row("waiting", f"evaluation of {len(cifar.test):,} images by ResNet-32, seconds", taken["predict"])]


def start_up(cifar: data.LongTailData) -> list[Row]:
    def run(program: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", program], check=True)

    taken = medians({"torch": run("import torch, torchvision"), "ltnotes": run("import ltnotes.runs, ltnotes.recipes")})
    ratio = taken["ltnotes"] / taken["torch"]
    return [Row("waiting", "import of ltnotes : of torch and torchvision", ratio, "<=", 1.5)]


# --- how cost grows: exponents of a power law between the smallest size and the largest, 1 is linear ---


def exponent(smallest: float, largest: float, factor: float) -> float:
    return math.log(largest / smallest) / math.log(factor)


def drawing(n: int) -> Callable[[], object]:
    labels = (torch.arange(n) % 100).sort().values
    return lambda: draw_images(torch.linspace(1, 2, 100, dtype=torch.float64).softmax(0), labels)


def training_at(batch: int, cifar: data.LongTailData) -> Callable[[], object]:
    model = models.build("resnet8", 10).to(memory_format=torch.channels_last)
    images = Augmenter(cifar)(torch.arange(batch))
    return lambda: model(images).square().mean().backward()


def summarizing(classes: int) -> Callable[[], object]:
    labels = torch.arange(2000) % classes
    probabilities = torch.rand(2000, classes).softmax(1).numpy()
    return lambda: metrics.summarize(probabilities, labels.numpy(), [5] * classes)


def growth(cifar: data.LongTailData) -> list[Row]:
    curves = {
        "drawing an epoch, of N images": ((20_000, 200_000, 2_000_000), drawing),
        "KPS loss, of C classes": (CLASSES, lambda c: loss_step(LOSSES["KPS"], 128, c)),
        "metrics of 2,000 images, of C classes": (CLASSES, summarizing),
        "training step, of a batch": ((32, 128, 512), lambda size: training_at(size, cifar)),
    }
    rows = []
    for what, (sizes, make) in curves.items():
        taken = list(medians({str(size): make(size) for size in sizes}).values())
        listed = ", ".join(f"{size:,}" for size in sizes)
        slope = exponent(taken[0], taken[-1], sizes[-1] / sizes[0])
        rows.append(Row("growth", f"{what} ({listed}), exponent of time", slope, "<=", 1.1))
    return rows


GROUPS = (losses, steps, bounds, evaluation, start_up, growth)


def main() -> None:
    cifar = data.load("cifar10-lt")
    for group in GROUPS:
        for row in group(cifar):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

"""One measurement a process: ``python -m tests.benchmarks.measurements NAME STEPS`` prints one number.

``... memory-images N``, ``memory-classes C`` and ``memory-batch B`` print the GiB that training
steps take with so many images, classes, or images in a batch.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ltnotes import data, models, recipes, runs
from ltnotes.batches import Augmenter
from ltnotes.training import Training

BATCH, WARM_UP = 128, 5


class PilImages(Dataset):
    """What most CIFAR code does: one PIL image at a time through torchvision's transforms."""

    def __init__(self, cifar: data.LongTailData):
        self.images, self.labels = cifar.train.images.numpy(), cifar.train.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(cifar.mean, cifar.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def training_plain(cifar: data.LongTailData, steps: int) -> float:
    """Images per second of the usual loop: fp32, NCHW, a DataLoader with two workers."""
    model = models.build("resnet32", cifar.num_classes).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    loader = DataLoader(PilImages(cifar), BATCH, shuffle=True, num_workers=2)
    for step, (images, labels) in enumerate(loader, start=1):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if step == WARM_UP:
            began = time.perf_counter()
        if step == WARM_UP + steps:
            return steps * BATCH / (time.perf_counter() - began)
    raise ValueError(f"steps: got {steps}, allowed are less than an epoch of {len(loader)}")


def training_ours(cifar: data.LongTailData, steps: int) -> float:
    """Images per second of :class:`ltnotes.training.Training`, drawing and bookkeeping included."""

    def train(count: int) -> float:
        job = Training(recipes.get("ce", steps=count, batch_size=BATCH), cifar, seed=0)
        began = time.perf_counter()
        job.run()
        return time.perf_counter() - began

    train(WARM_UP)
    return steps * BATCH / train(steps)


def per_second(augment: Callable[[torch.Tensor], object], cifar: data.LongTailData, steps: int) -> float:
    """Images per second on one core, which is all that the per-image path can use in one process."""
    torch.set_num_threads(1)
    batches = torch.randperm(len(cifar.train)).split(BATCH)
    for batch in batches[:WARM_UP]:
        augment(batch)
    began = time.perf_counter()
    for batch in batches[:steps]:
        augment(batch)
    return steps * BATCH / (time.perf_counter() - began)


def augmentation_plain(cifar: data.LongTailData, steps: int) -> float:
    """Images per second of the per-image PIL path, in one process."""
    images = PilImages(cifar)
    return per_second(lambda batch: torch.stack([images[i][0] for i in batch.tolist()]), cifar, steps)


def augmentation_ours(cifar: data.LongTailData, steps: int) -> float:
    """Images per second of the batched path."""
    return per_second(Augmenter(cifar), cifar, steps)


def memory() -> float:
    """Peak resident GiB of a ``lite`` run, from loading the data to the metrics; its length does not matter."""
    with tempfile.TemporaryDirectory() as out_dir:
        recipe = recipes.get("ce", scale="lite")
        shortened = replace(recipe, stages=tuple(replace(s, epochs=None, steps=100) for s in recipe.stages))
        runs.run(shortened, out_dir=out_dir, device="cpu")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def memory_of(images: int = 2_000, classes: int = 10, batch: int = 64) -> float:
    """GiB that a few training steps with KPS add, at their peak, to what was resident before."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    images = max(images, classes)
    labels = torch.arange(images) % classes
    split = data.Split(torch.randint(256, (images, 32, 32, 3), dtype=torch.uint8), labels)
    names = tuple(map(str, range(classes)))
    source = data.LongTailData(
        "noise", 1, 0, names, split, split[:100], None, (0.5,) * 3, (0.2,) * 3, pad=4, flip=True, fingerprint=""
    )
    Training(recipes.get("kps", scale="lite", steps=3, batch_size=batch), source, seed=0).run()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """GiB of this process in memory: now ("VmRSS"), or at the peak ("VmHWM"); Linux says."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith(field))


MEASUREMENTS = {
    "training-plain": training_plain,
    "training-ours": training_ours,
    "augmentation-plain": augmentation_plain,
    "augmentation-ours": augmentation_ours,
}


def main() -> None:
    name, number = sys.argv[1], int(sys.argv[2])
    if name.startswith("memory-"):
        print(memory_of(**{name.removeprefix("memory-"): number}))
    else:
        print(memory() if name == "memory" else MEASUREMENTS[name](data.load("cifar10-lt"), number))


if __name__ == "__main__":
    main()

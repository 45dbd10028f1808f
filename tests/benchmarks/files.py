"""How fast training images come from files: ours, torchvision's reference script's way, and timm's, which take turns.

``python -m tests.benchmarks.files [--out FOLDER]``. All three cut 224 pixels out of the same JPEG
files of 500 x 375 pixels with as many worker processes as there are cores, and hand over
normalised batches of 128. timm takes part where it is installed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from data_prep.lists import STATISTICS
from ltnotes.batches import Normalizer
from ltnotes.image_files import FileAugmenter, ImageFiles, number_of_workers
from tests.benchmarks.table import Row, show, write
from tests.conftest import CIFAR_FOLDER
from tests.listed import pictures

IMAGES, CLASSES, BATCH, ROUNDS = 1280, 4, 128, 5
MEAN, STD = STATISTICS


def write_tree(root: Path) -> None:
    """Photographs of the size that ImageNet's mostly have, with a grain that keeps the files as large."""
    rng = np.random.default_rng(0)
    for i, picture in enumerate(pictures(IMAGES)):
        pixels = np.asarray(picture.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = (pixels + rng.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
        folder = root / f"class{i % CLASSES}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)


def ours(root: Path) -> Iterator[Tensor]:
    names = np.array([path.relative_to(root).as_posix().encode() for path in sorted(root.rglob("*.jpg"))])
    augment = FileAugmenter(ImageFiles(root, names, 224), Normalizer(MEAN, STD, "cpu"), "resized", flip=True)
    batches = torch.randperm(len(names)).split(BATCH)
    augment.expect(batches)
    for batch in batches:
        yield augment(batch)


def reference(root: Path) -> Iterator[Tensor]:
    """The presets of torchvision's references/classification, with its default backend."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    loader = DataLoader(ImageFolder(str(root), transform), BATCH, shuffle=True, num_workers=number_of_workers())
    yield from (images for images, _ in loader)


def of_timm(root: Path) -> Iterator[Tensor]:
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", str(root)),
        (3, 224, 224),
        BATCH,
        is_training=True,
        color_jitter=0.0,
        mean=MEAN,
        std=STD,
        num_workers=number_of_workers(),
        device=torch.device("cpu"),
    )
    yield from (images for images, _ in loader)


WAYS: dict[str, Callable[[Path], Iterator[Tensor]]] = {"ours": ours, "reference": reference, "timm": of_timm}


def per_second(way: str, root: Path) -> float:
    """Images per second over an epoch, the start of the workers included."""
    began, seen = time.perf_counter(), 0
    for images in WAYS[way](root):
        assert images.shape[1:] == (3, 224, 224) and images.dtype == torch.float32
        seen += len(images)
    return seen / (time.perf_counter() - began)


def rows(root: Path) -> Iterator[Row]:
    others = [way for way in ("reference", "timm") if way != "timm" or find_spec("timm")]
    ratios: dict[str, list[float]] = {way: [] for way in others}
    for k in range(ROUNDS):
        speed = {}
        for way in ("ours", *others):
            command = [sys.executable, "-m", "tests.benchmarks.files", "--measure", way, "--tree", str(root)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            speed[way] = float(done.stdout.split()[-1])
        for way in others:
            ratios[way].append(speed["ours"] / speed[way])
        said = ", ".join(f"{way} {value:,.0f}" for way, value in speed.items())
        print(f"round {k + 1} of {ROUNDS}: {said} images/s", flush=True)
    for way, title in {"reference": "torchvision's reference", "timm": "timm's loader"}.items():
        if way in ratios:
            yield Row("files", f"images from files, ltnotes : {title}", statistics.median(ratios[way]), ">=", 1.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="a folder for the table")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--tree", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(per_second(options.measure, options.tree))
        return 0
    if not (CIFAR_FOLDER / "cifar10.zip").is_file():
        print(f"no {CIFAR_FOLDER / 'cifar10.zip'}: name its folder in LTNOTES_CIFAR", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        write_tree(Path(folder))
        found = list(rows(Path(folder)))
    show(found)
    if options.out:
        write(found, options.out, "")
    return 0


if __name__ == "__main__":
    sys.exit(main())

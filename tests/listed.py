"""A small tree of image files with lists in the formats of the large sets."""

from __future__ import annotations

import json
import os
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltnotes import data

COUNTS = (24, 12, 8, 5, 3)  # training images of each class
TESTED = 4
CIFAR = Path(os.environ.get("LTNOTES_CIFAR") or Path(__file__).parents[2] / "shared" / "data") / "cifar10.zip"


def pictures(number: int) -> list[Image.Image]:
    """Real photographs of CIFAR where they are, else digits."""
    if not CIFAR.is_file():
        return [Image.fromarray(image) for image in data.load("digits-lt", 1).train.images[:number].numpy()]
    with zipfile.ZipFile(CIFAR) as archive:
        names = [name for name in archive.namelist() if name.endswith((".webp", ".png", ".jpg"))][:number]
        return [Image.open(BytesIO(archive.read(name))).convert("RGB") for name in names]


FOLDERS = {  # how the lists write a training image of class c, and a test image
    "imagenet-lt": ("train/n0{c:07d}/n0{c:07d}_{i}.JPEG", "val/n0{c:07d}/ILSVRC2012_val_{i:08d}.JPEG"),
    "places-lt": ("data_256/a/place_{c}/{i:08d}.jpg", "val_256/Places365_val_{c:04d}{i:04d}.jpg"),
    "inat2018": ("train_val2018/Plantae/{c}/{i:032x}.jpg", "train_val2018/Plantae/{c}/e{i:031x}.jpg"),
    "inat2017": ("train_val_images/Aves/Bird {c}/{i:032x}.jpg", "train_val_images/Aves/Bird {c}/e{i:031x}.jpg"),
}
LISTS = {
    "imagenet-lt": ("ImageNet_LT_train.txt", "ImageNet_LT_test.txt", "ImageNet_LT_val.txt"),
    "places-lt": ("Places_LT_train.txt", "Places_LT_test.txt", "Places_LT_val.txt"),
    "inat2018": ("iNaturalist18_train.txt", "iNaturalist18_val.txt"),
    "inat2017": ("train2017.json", "val2017.json"),
}


def tree(root: Path, name: str, counts: tuple[int, ...] = COUNTS) -> tuple[Path, Path]:
    """Lists and images of a small set in the form of a large one; the two folders."""
    images, lists = root / "images", root / "lists"
    lists.mkdir(parents=True)
    train, test = FOLDERS[name]
    own = {
        LISTS[name][0]: [(train.format(c=c, i=i), c) for c, count in enumerate(counts) for i in range(count)],
        LISTS[name][1]: [(test.format(c=c, i=i), c) for c in range(len(counts)) for i in range(TESTED)],
    }
    for held_out in LISTS[name][2:]:
        own[held_out] = [(test.format(c=c, i=900 + i), c) for c in range(len(counts)) for i in range(2)]
    files = [entry for entries in own.values() for entry in entries]
    rng = np.random.default_rng(0)
    for (file, _), picture in zip(files, pictures(len(files)), strict=True):
        (images / file).parent.mkdir(parents=True, exist_ok=True)
        picture.resize((int(rng.integers(40, 70)), int(rng.integers(36, 60)))).save(images / file, "JPEG")
    for list_name, entries in own.items():
        (lists / list_name).write_text(as_json(entries) if list_name.endswith("json") else as_lines(entries))
    return lists, images


def as_lines(entries: list[tuple[str, int]]) -> str:
    return "".join(f"{file} {label}\n" for file, label in entries)


def as_json(entries: list[tuple[str, int]]) -> str:
    """iNaturalist's own form: images and annotations, not in the same order."""
    images = [{"id": 7 + i, "file_name": file, "width": 1, "height": 1} for i, (file, _) in enumerate(entries)]
    annotations = [{"id": i, "image_id": 7 + i, "category_id": label} for i, (_, label) in enumerate(entries)]
    return json.dumps({"images": images, "annotations": annotations[::-1]})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 32 pixels, so that a network takes no time."""
    monkeypatch.setattr("data_prep.lists.SIZE", 32)

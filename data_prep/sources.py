"""Where images come from: a folder or a zip of class folders, torchvision's CIFAR, scikit-learn's digits."""

from __future__ import annotations

import hashlib
import io
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ltnotes.files import file_hash, first_line
from ltnotes.folders import eight_bits

IMAGE_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".bmp")
FORMATS = ("PNG", "WEBP", "JPEG", "BMP")
LARGEST_FILE = 64 << 20  # bytes; a small image that claims more would only fill the memory


class PrepareError(Exception):
    """A source or a target that can't be used; the message says what is wrong and what is allowed."""


@dataclass(frozen=True)
class Pool:
    """All images that a data set can be drawn from.

    Args:
        images: uint8 ``[N, H, W, 3]``, training images first.
        labels: int64 ``[N]``.
        num_train: how many of them are training images; the rest is the test set.
        source: what the manifest records: kind and hash of the source.
    """

    images: np.ndarray
    labels: np.ndarray
    num_train: int
    class_names: tuple[str, ...]
    source: dict[str, str]


def read_class_folders(path: Path, num_classes: int, size: int) -> Pool:
    """``train/<class>/*`` and ``test/<class>/*`` from a folder or a zip; class ids in alphabetical order.

    Raises:
        PrepareError: a missing or corrupt source, a missing class folder, a wrong number
            of classes, or an image of another size.
    """
    if path.is_dir():
        files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        read = _naming(f"source {path} can't be read", lambda name: (path / name).read_bytes())
        return _assemble(files, read, path, num_classes, size, "folder")
    if not path.is_file():
        raise PrepareError(f"source {path} does not exist; allowed is a folder or a zip of class folders")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a damaged zip can raise anything
        raise PrepareError(f"source {path} is no readable zip: {first_line(error)}; fetch it again") from None
    with archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        _check_entries(path, [entry for entry in entries if _class_of(entry.filename)])
        files = sorted(entry.filename for entry in entries)
        return _assemble(
            files, _naming(f"source {path} is no readable zip", archive.read), path, num_classes, size, "zip"
        )


def _check_entries(path: Path, images: list[zipfile.ZipInfo]) -> None:
    for entry in images:
        if entry.file_size > LARGEST_FILE:
            most = f"allowed are {LARGEST_FILE >> 20}"
            raise PrepareError(f"source {path}: {entry.filename} unpacks to {entry.file_size >> 20} MiB, {most}")


def _naming(trouble: str, read: Callable[[str], bytes]) -> Callable[[str], bytes]:
    """``read``, whose errors name the source and the file."""

    def named(name: str) -> bytes:
        try:
            return read(name)
        except Exception as error:  # a damaged or encrypted member, an unknown compression, a file that is not ours
            raise PrepareError(f"{trouble}: {name}: {first_line(error)}; fetch it again") from None

    return named


def _class_of(name: str) -> tuple[str, str] | None:
    """("train" or "test", class folder) of an image's path, with any folders above; None for other files."""
    parts = PurePosixPath(name).parts
    if len(parts) < 3 or parts[-3] not in ("train", "test") or not name.lower().endswith(IMAGE_SUFFIXES):
        return None
    if parts[-1].startswith("."):  # what macOS adds to a zip
        return None
    return parts[-3], parts[-2]


def _assemble(
    files: list[str], read: Callable[[str], bytes], path: Path, num_classes: int, size: int, kind: str
) -> Pool:
    members = [(name, *found) for name in files if (found := _class_of(name))]
    times = Counter(PurePosixPath(name) for name, _, _ in members)  # a/b and a//b are one file
    if twice := [str(name) for name, count in times.items() if count > 1]:
        raise PrepareError(
            f"source {path}: {twice[0]} is there {times[PurePosixPath(twice[0])]} times, allowed is once"
        )
    if len(roots := sorted({str(PurePosixPath(name).parents[2]) for name, _, _ in members})) > 1:
        raise PrepareError(
            f"source {path}: train/ and test/ lie in {roots[0]}/ and in {roots[1]}/; allowed is one of them"
        )
    classes = {split: sorted({c for _, s, c in members if s == split}) for split in ("train", "test")}
    names = sorted(set(classes["train"]) | set(classes["test"]))
    for split, present in classes.items():
        if missing := [c for c in names if c not in present]:
            raise PrepareError(f"source {path}: class folder {split}/{missing[0]} is missing or holds no images")
    if len(names) != num_classes:
        raise PrepareError(
            f"source {path}: found {len(names)} class folders in train/ and test/, allowed are {num_classes}"
        )
    members.sort(key=lambda member: (member[1] == "test", member[0]))
    images = np.empty((len(members), size, size, 3), np.uint8)
    digest = hashlib.sha256()
    for i, (name, _, _) in enumerate(members):
        content = read(name)
        images[i] = _decode(content, f"{path}: {name}", size)
        digest.update(name.encode() + hashlib.sha256(content).digest())
        if i % 2000 == 0 and sys.stderr.isatty():
            print(f"\rreading {path.name}: {i} of {len(members)} images", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return Pool(
        images=images,
        labels=np.array([names.index(c) for _, _, c in members], np.int64),
        num_train=sum(split == "train" for _, split, _ in members),
        class_names=tuple(names),
        source={"kind": kind, "sha256": digest.hexdigest()},
    )


def _decode(content: bytes, name: str, size: int) -> np.ndarray:
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
            warnings.simplefilter("ignore")  # of odd metadata: what matters is an error
            width, height = image.size
            # Before any pixel is decoded: a few bytes can claim to be a gigapixel.
            pixels = _as_rgb(image) if (width, height) == (size, size) else None
    except Exception as error:  # damaged bytes make decoders raise anything
        raise PrepareError(
            f"source {name} is no readable image ({first_line(error)}); fetch the source again"
        ) from None
    if pixels is None:
        raise PrepareError(f"source {name} is {width}x{height} pixels, allowed are {size}x{size}")
    return pixels


def _as_rgb(image: Image.Image) -> np.ndarray:
    """uint8 ``[H, W, 3]``; 16 bits of grey become 8, which Pillow's own conversion clips to white."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(eight_bits(np.asarray(image)))
    return np.asarray(image.convert("RGB"))


def read_torchvision_cifar(num_classes: int, download_folder: Path) -> Pool:
    """CIFAR-10 or CIFAR-100 through torchvision, which downloads it once and checks its hash.

    Raises:
        PrepareError: no network, or a corrupt download.
    """
    from torchvision import datasets

    dataset = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[num_classes]
    try:
        train, test = (dataset(str(download_folder), train=flag, download=True) for flag in (True, False))
    except Exception as error:  # no network, a full disk, or a damaged archive or pickle
        raise PrepareError(
            f"CIFAR-{num_classes} could not be downloaded ({first_line(error)}); connect to the network, or pass"
            " --source with a folder or a zip of class folders"
        ) from None
    archive = download_folder / dataset.filename
    return Pool(
        images=np.concatenate([train.data, test.data]),
        labels=np.array(train.targets + test.targets, np.int64),
        num_train=len(train),
        class_names=tuple(train.classes),
        source={"kind": "torchvision", "sha256": file_hash(archive) if archive.is_file() else dataset.tgz_md5},
    )

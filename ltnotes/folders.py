"""A folder of your own images: found, read, brought to one size, split, and prepared like any other data set."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F

from ltnotes.files import first_line
from ltnotes.options import number, require, whole
from ltnotes.prepared import MANIFEST, channel_statistics, fingerprint, read_manifest, remove_litter, replace_prepared

TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")
LARGEST_FILE = 256 << 20  # bytes
LARGEST_IMAGE = 150_000_000  # pixels
ALIKE = 0.99  # correlation of two thumbnails from which on images count as near-duplicates
THUMBNAIL = 16  # pixels
MOST_COMPARED = 50_000  # images: comparing all pairs grows with the square
CHUNK = 2048


@dataclass(frozen=True)
class ImageFile:
    """What is known of one file.

    Args:
        path: relative to the folder.
        split: "train" or "test"; None where the folder has no splits.
        notes: what is unusual about it, such as "grey" or "animated"; it is used all the same.
        trouble: why it can't be used; None if it can.
        digest: hash of its pixels, "" if there are none.
    """

    path: str
    class_name: str
    split: str | None
    notes: tuple[str, ...] = ()
    trouble: str | None = None
    digest: str = ""


@dataclass(frozen=True)
class Scan:
    """All image files of a folder.

    Args:
        files: those that can be used first, in the order of ``pixels``, and then the others.
        pixels: uint8 ``[N, S, S, 3]`` of those that can be used.
        ignored: names of files that claim to be no images, and of folders that were left out.
    """

    folder: Path
    files: tuple[ImageFile, ...]
    pixels: np.ndarray
    ignored: tuple[str, ...]

    @property
    def usable(self) -> tuple[ImageFile, ...]:
        return self.files[: len(self.pixels)]

    @property
    def class_names(self) -> list[str]:
        """Of all class folders with an image that can be used, in alphabetical order."""
        return sorted({file.class_name for file in self.usable})

    @property
    def labels(self) -> np.ndarray:
        """Class ids int64 ``[N]`` of the images that can be used."""
        ids = {name: i for i, name in enumerate(self.class_names)}
        return np.array([ids[file.class_name] for file in self.usable], np.int64)


def scan(folder: Path, size: int = 128) -> Scan:
    """Read all images of a folder: ``<class>/*``, or ``train/<class>/*`` and ``test/<class>/*``.

    Args:
        size: S. The shorter side is brought to it, and the middle of the longer kept.

    Raises:
        ValueError: no such folder, a size below 8, or fewer than two classes with images.
    """
    size = whole("size", size, least=8)
    require(folder.is_dir(), "folder", str(folder), "a folder of class folders")
    candidates, ignored = _find(folder)
    require(len(candidates) > 0, "folder", str(folder), "a folder whose class folders hold images")
    read, files = [], []
    with ThreadPoolExecutor() as pool:
        tasks = (lambda file: _read(folder, file, size)), candidates
        for i, (file, pixels) in enumerate(pool.map(*tasks)):
            files.append(file)
            if pixels is not None:
                read.append(pixels)
            if i % 100 == 0 or i == len(candidates) - 1:
                _report("reading", i + 1, len(candidates))
    files.sort(key=lambda file: file.trouble is not None)  # stable: usable ones stay in the order of their pixels
    pixels = np.stack(read) if read else np.empty((0, size, size, 3), np.uint8)
    found = Scan(folder, tuple(files), pixels, tuple(ignored))
    classes = len(found.class_names)
    require(classes >= 2, "folder", f"{folder} with images in {classes} class folders", "two class folders and more")
    return found


def _report(doing: str, done: int, total: int) -> None:
    """On a terminal, how far it is."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{doing} {done} of {total} images", end=end, file=sys.stderr, flush=True)


def _find(folder: Path) -> tuple[list[ImageFile], list[str]]:
    """The files that claim to be images, and the names of what is left out."""
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    named = {path.name.lower(): path for path in below}
    roots: list[tuple[str | None, Path]] = [(None, folder)]
    ignored = []
    if train := next((named[name] for name in TRAIN if name in named), None):
        test = next((named[name] for name in TEST if name in named), None)
        roots = [("train", train), *([("test", test)] if test else [])]
        ignored = [f"{path.name}/" for path in below if path not in (train, test)]
    found = []
    known = Image.registered_extensions()
    for split, root in roots:
        for class_folder in sorted(path for path in root.iterdir() if path.is_dir()):
            for path in sorted(class_folder.rglob("*")):
                name = path.relative_to(folder).as_posix()
                if not path.is_file() or any(part.startswith(".") for part in Path(name).parts):
                    continue
                if path.suffix.lower() in known:
                    found.append(ImageFile(name, class_folder.name, split))
                else:
                    ignored.append(name)
    return found, ignored


# --- reading one -------------------------------------------------------------------


def _read(folder: Path, file: ImageFile, size: int) -> tuple[ImageFile, np.ndarray | None]:
    """A file with what was noticed about it, and its pixels; whatever is wrong with it is its ``trouble``."""
    path = folder / file.path

    def with_(**known: object) -> ImageFile:
        return ImageFile(file.path, file.class_name, file.split, **known)

    try:
        bytes_ = path.stat().st_size
        if bytes_ == 0:
            return with_(trouble="empty"), None
        if bytes_ > LARGEST_FILE:
            return with_(trouble=f"huge: {bytes_ >> 20} MiB, allowed are {LARGEST_FILE >> 20}"), None
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # of odd metadata: what matters is an error
            width, height = image.size
            if width * height > LARGEST_IMAGE:  # before any pixel is decoded
                return with_(trouble=f"huge: {width}x{height} pixels"), None
            notes = tuple(_notes(image, path))
            pixels = _fit(image, size)
    except Image.DecompressionBombError as error:
        return with_(trouble=f"huge: {first_line(error)}"), None
    except Exception as error:  # damaged bytes make decoders raise anything
        said = first_line(error).replace(f"{folder}/", "")
        return with_(trouble=f"unreadable: {said}"), None
    return with_(notes=notes, digest=hashlib.sha256(pixels.tobytes()).hexdigest()), pixels


def _notes(image: Image.Image, path: Path) -> Iterator[str]:
    if image.format != Image.registered_extensions().get(path.suffix.lower()):
        yield f"misnamed: {image.format} in {path.suffix}"
    kinds = {"L": "grey", "LA": "grey", "1": "grey", "CMYK": "CMYK", "P": "palette"}
    if kind := kinds.get(image.mode):
        yield kind
    if image.mode == "F" or image.mode.startswith("I"):
        yield "16-bit"
    if getattr(image, "is_animated", False):
        yield "animated"


def _fit(image: Image.Image, size: int) -> np.ndarray:
    """uint8 ``[S, S, 3]``: the first frame, upright, its middle square."""
    if image.format == "JPEG":
        image.draft("RGB", (2 * size, 2 * size))  # decodes a large photograph at a fraction of its size
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(eight_bits(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC))


def eight_bits(grey: np.ndarray) -> np.ndarray:
    """uint8 of 16 bits of grey, which Pillow's own conversion clips to white.

    Raises:
        ValueError: values that are not 8 or 16 bits.
    """
    if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > 0xFFFF:
        raise ValueError("its grey values are not 8 or 16 bits")
    return (grey >> 8).astype(np.uint8)


# --- duplicates and splits -----------------------------------------------------------


def alike(pixels: np.ndarray) -> list[tuple[int, int]]:
    """Pairs ``i < j`` of images that show nearly the same: thumbnails with a correlation of ``ALIKE`` and more.

    None are looked for among more than ``MOST_COMPARED`` images.
    """
    if len(pixels) > MOST_COMPARED:
        return []
    vectors = torch.cat([_thumbnails(pixels[i : i + CHUNK]) for i in range(0, len(pixels), CHUNK)])
    pairs = []
    for start in range(0, len(vectors), CHUNK):
        close = vectors[start : start + CHUNK] @ vectors[start:].T >= ALIKE
        first, second = close.triu(1).nonzero(as_tuple=True)
        pairs += [(start + i, start + j) for i, j in zip(first.tolist(), second.tolist(), strict=True)]
        _report("comparing", min(start + CHUNK, len(vectors)), len(vectors))
    return pairs


def _thumbnails(pixels: np.ndarray) -> Tensor:
    """``[n, 3 * THUMBNAIL**2]``, of mean 0 and length 1; of an image of one colour, of length 0."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()
    small = F.adaptive_avg_pool2d(images, THUMBNAIL).flatten(1)
    small = small - small.mean(1, keepdim=True)
    length = small.norm(dim=1, keepdim=True)
    return torch.where(length > THUMBNAIL, small / length, torch.zeros(()))


def groups_of(found: Scan, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """A number for each usable image, the same for images with the same pixels and for near-duplicates."""
    first: dict[str, int] = {}
    same = [(first.setdefault(file.digest, i), i) for i, file in enumerate(found.usable)]
    one, other = np.array([*same, *pairs]).T
    graph = coo_matrix((np.ones(len(one)), (one, other)), shape=2 * (len(same),))
    return connected_components(graph, directed=False)[1]


def split(found: Scan, groups: np.ndarray, share: float = 0.2, seed: int = 0) -> np.ndarray:
    """Which usable images are test images, bool ``[N]``: as the folder has it, else drawn class by class.

    Of a class of ``n`` images about ``share * n`` are drawn, at least one if there are two
    groups, and never all. Images of a group stay together, so that no test image has its
    double in training; a group with images of several classes is trained on.
    """
    share = number("test_share", share, above=0, below=1)
    seed = whole("seed", seed)
    if found.usable[0].split is not None:
        return np.array([file.split == "test" for file in found.usable])
    test, labels = np.zeros(len(groups), bool), found.labels
    classes = np.bincount(np.unique(np.stack([groups, labels]), axis=1)[0])  # of each group
    for class_id in range(len(found.class_names)):
        own = np.flatnonzero(labels == class_id)
        order = np.random.default_rng([seed, class_id]).permutation(np.unique(groups[own]))
        order = order[np.argsort(classes[order] > 1, kind="stable")]
        wanted = max(1, round(share * len(own)))
        for group in order[:-1]:
            if test[own].sum() >= wanted or classes[group] > 1:
                break
            test[own[groups[own] == group]] = True
    return test


# --- preparing -----------------------------------------------------------------------


def prepare(found: Scan, test: np.ndarray, made_by: dict[str, Any], root: Path) -> Path:
    """Write the images as a prepared folder below ``root``, whole or not at all.

    Args:
        test: which images are test images, ``[N]``.
        made_by: what the manifest keeps of how it was made; its ``size`` and ``seed`` are in the folder's name.

    Raises:
        ValueError: a class without training images, or no test images at all.
    """
    labels, names = found.labels, found.class_names
    counts = np.bincount(labels[~test], minlength=len(names))
    if missing := [name for name, n in zip(names, counts, strict=True) if n == 0]:
        raise ValueError(f"folder: {found.folder} has no training image of {missing[0]!r}, allowed is one and more")
    if not test.any():
        raise ValueError(f"folder: {found.folder} has a single image of each class, and so none to test with")
    arrays = {}
    for name, chosen in (("train", ~test), ("test", test)):
        arrays[f"{name}_images.npy"], arrays[f"{name}_labels.npy"] = found.pixels[chosen], labels[chosen]
    mean, std = channel_statistics(torch.from_numpy(arrays["train_images.npy"]))
    manifest = {
        "name": found.folder.resolve().name,
        "imbalance": float(counts.max() / counts.min()),
        "seed": made_by["seed"],
        "class_names": names,
        "mean": mean,
        "std": std,
        "pad": made_by["size"] // 8,  # as 4 of CIFAR's 32
        "flip": True,
        "source": made_by,
        "fingerprint": fingerprint(arrays),
    }
    target = root / f"{manifest['name']}-{made_by['size']}px-seed{made_by['seed']}"
    root.mkdir(parents=True, exist_ok=True)
    remove_litter(root)
    replace_prepared(target, arrays, manifest)
    return target


def from_folder(folder: Path, size: int, test_share: float, seed: int, root: Path) -> Path:
    """The prepared folder of a folder of images: made now, unless it is there and no file has changed since."""
    require(folder.is_dir(), "folder", str(folder), "a folder of class folders")
    made_by = how(folder, size, test_share, seed)
    target = root / f"{folder.resolve().name}-{size}px-seed{seed}"
    if (target / MANIFEST).is_file() and read_manifest(target).get("source") == made_by:
        return target
    found = scan(folder, size)
    return prepare(found, split(found, groups_of(found, alike(found.pixels)), test_share, seed), made_by, root)


def how(folder: Path, size: int, test_share: float, seed: int) -> dict[str, Any]:
    """What a prepared folder depends on: the options, and the names, sizes and times of all files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    options = {"size": whole("size", size, least=8), "seed": whole("seed", seed)}
    return {"kind": "folder", "files": digest.hexdigest(), "test_share": float(test_share), **options}

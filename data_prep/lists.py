"""The large sets: official lists of files, checked against the images that a machine has.

A list is used as it is, or not at all: it is the data set. Its hash goes into the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data_prep.prepare import holds
from data_prep.sources import PrepareError
from ltnotes.files import DamagedFileError, file_hash, first_line
from ltnotes.image_files import decode
from ltnotes.prepared import Counter, and_more, remove_litter, replace_prepared

STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of ImageNet, which all papers use here
SIZE = 224
HELD_OUT = 5  # images of a class for BLT's validation, which iNaturalist 2018 has none of
CHUNK = 64  # files that a process checks at a time


@dataclass(frozen=True)
class Official:
    """A large set.

    Args:
        files: for each split the names that its list goes by, the first that is there is read.
        classes, images: what the official training list has.
        crop: how training images are cut, where no paper says otherwise for its method.
    """

    files: dict[str, tuple[str, ...]]
    classes: int
    images: int
    crop: str = "resized"
    held_out: int = 0


def _three(prefix: str) -> dict[str, tuple[str, ...]]:
    return {"train": (f"{prefix}_train.txt",), "test": (f"{prefix}_test.txt",), "validation": (f"{prefix}_val.txt",)}


INAT2018 = {
    "train": ("iNaturalist18_train.txt", "train2018.json"),
    "test": ("iNaturalist18_val.txt", "val2018.json"),
}
SETS = {
    "imagenet-lt": Official(_three("ImageNet_LT"), 1000, 115_846, "resized-jitter"),
    "places-lt": Official(_three("Places_LT"), 365, 62_500, "resized-jitter"),
    "inat2017": Official({"train": ("train2017.json",), "test": ("val2017.json",)}, 5089, 579_184),
    "inat2018": Official(INAT2018, 8142, 437_513),
    "inat2018-blt": Official(INAT2018, 8142, 437_513, held_out=HELD_OUT),
}


@dataclass(frozen=True)
class Listed:
    """One list: names of files relative to the folder of images, and class ids int64 ``[N]``."""

    names: list[str]
    labels: np.ndarray


def prepare_listed(name: str, lists: Path, images: Path, root: Path, seed: int = 0) -> tuple[Path, bool, list[str]]:
    """Check a large set and write its prepared folder; where it is, whether it was written, and what is unusual.

    Every file is read and decoded once, which takes a while, and all that are missing or
    damaged are named together.

    Args:
        lists: the folder of the official lists.
        images: the folder that their paths are relative to.
        seed: which training images are held out, for ``inat2018-blt``.

    Raises:
        PrepareError: lists or images that are missing, damaged, or contradict each other.
    """
    official = SETS[name]
    found = {split: _find(lists, names) for split, names in official.files.items()}
    splits = {split: read_list(path) for split, path in found.items()}
    class_names = check_lists(splits, found)
    notes = _compare(official, splits["train"], len(class_names))
    if official.held_out:
        splits, class_names = hold_out(splits, class_names, official.held_out, seed)
    manifest = _manifest(name, official, splits, class_names, found, images, seed)
    target = root / name
    remove_litter(root)
    sizes = check_files(images, splits)
    manifest["fingerprint"] = _fingerprint(splits, sizes)
    if holds(target, manifest):
        return target, False, notes
    arrays = {}
    for split, listed in splits.items():
        arrays[f"{split}_names.npy"] = np.array([n.encode() for n in listed.names])
        arrays[f"{split}_labels.npy"] = listed.labels
        arrays[f"{split}_bytes.npy"] = sizes[split]
    root.mkdir(parents=True, exist_ok=True)
    replace_prepared(target, arrays, manifest)
    return target, True, notes


# --- lists ------------------------------------------------------------------------------------


def _find(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise PrepareError(
        f"lists: {folder} holds no {' and no '.join(names)}; allowed is a folder with the official lists"
    )


def read_list(path: Path) -> Listed:
    """A list of lines ``path label``, or iNaturalist's JSON of images and annotations.

    Raises:
        PrepareError: a line or a record that is neither.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return _from_json(json.loads(text)) if path.suffix == ".json" else _from_lines(text)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise PrepareError(f"lists: {path} is no such list ({first_line(error)}); fetch it again") from None


def _from_lines(text: str) -> Listed:
    names, labels = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        parts = line.rsplit(maxsplit=1)
        if len(parts) != 2 or not parts[1].isdigit():
            raise ValueError(f"line {number}: {line[:80]!r} is no path and class id")
        names.append(parts[0].strip())
        labels.append(int(parts[1]))
    if not names:
        raise ValueError("it is empty")
    return Listed(names, np.array(labels, np.int64))


def _from_json(content: Any) -> Listed:
    of_image = {record["image_id"]: int(record["category_id"]) for record in content["annotations"]}
    images = content["images"]
    return Listed([record["file_name"] for record in images], np.array([of_image[r["id"]] for r in images], np.int64))


def check_lists(splits: dict[str, Listed], paths: dict[str, Path]) -> tuple[str, ...]:
    """Class names: the folder of each class in the training list.

    Raises:
        PrepareError: class ids with gaps, a class in two folders or a folder of two classes,
            an unknown class in another list, or a file in two lists or twice.
    """
    train = splits["train"]
    classes = int(train.labels.max()) + 1
    if missing := sorted(set(range(classes)) - set(train.labels.tolist())):
        raise PrepareError(
            f"lists: {paths['train']} has no image of class {missing[0]}, allowed is one of each at least"
        )
    folders: list[str | None] = [None] * classes
    owner: dict[str, int] = {}
    for name, label in zip(train.names, train.labels.tolist(), strict=True):
        folder = str(PurePosixPath(name).parent)
        if folders[label] not in (None, folder):
            raise PrepareError(f"lists: class {label} of {paths['train']} lies in {folders[label]} and in {folder}")
        if owner.setdefault(folder, label) != label:
            raise PrepareError(f"lists: {folder} of {paths['train']} holds the classes {owner[folder]} and {label}")
        folders[label] = folder
    seen: dict[str, str] = {}
    for split, listed in splits.items():
        if listed.labels.max() >= classes:
            raise PrepareError(f"lists: {paths[split]} has class {listed.labels.max()}, allowed are 0 to {classes - 1}")
        for name, label in zip(listed.names, listed.labels.tolist(), strict=True):
            if name in seen:
                raise PrepareError(f"lists: {name} is in {seen[name]} and in {paths[split]}, allowed is once")
            seen[name] = str(paths[split])
            if owner.get(str(PurePosixPath(name).parent), label) != label:
                raise PrepareError(f"lists: {name} of {paths[split]} has class {label}, and its folder another")
    return tuple(str(folder) for folder in folders)


def _compare(official: Official, train: Listed, classes: int) -> list[str]:
    found = (classes, len(train.names))
    if found == (official.classes, official.images):
        return []
    return [
        f"the training list has {found[0]:,} classes and {found[1]:,} images;"
        f" the official one has {official.classes:,} and {official.images:,}"
    ]


def hold_out(
    splits: dict[str, Listed], class_names: tuple[str, ...], number: int, seed: int
) -> tuple[dict[str, Listed], tuple[str, ...]]:
    """BLT's iNaturalist (BLT 4): classes with fewer images dropped, so many of each held out for validation.

    Of a class with exactly so many, one stays for training. Which images are held out the
    paper does not say; the seed draws them.
    """
    counts = np.bincount(splits["train"].labels, minlength=len(class_names))
    kept = np.flatnonzero(counts >= number)
    new_id = np.full(len(class_names), -1, np.int64)
    new_id[kept] = np.arange(len(kept))
    splits = {split: _only(listed, new_id[listed.labels] >= 0, new_id) for split, listed in splits.items()}
    train = splits["train"]
    held = np.zeros(len(train.names), bool)
    for class_id, count in enumerate(np.bincount(train.labels)):
        members = np.flatnonzero(train.labels == class_id)
        drawn = np.random.default_rng([seed, class_id]).permutation(members)
        held[drawn[: min(number, count - 1)]] = True
    same = np.arange(len(kept))
    splits["validation"], splits["train"] = _only(train, held, same), _only(train, ~held, same)
    return splits, tuple(class_names[c] for c in kept)


def _only(listed: Listed, mask: np.ndarray, new_id: np.ndarray) -> Listed:
    return Listed([n for n, keep in zip(listed.names, mask, strict=True) if keep], new_id[listed.labels[mask]])


# --- images -----------------------------------------------------------------------------------


def check_files(images: Path, splits: dict[str, Listed]) -> dict[str, np.ndarray]:
    """Sizes in bytes of all files, after decoding each one.

    Raises:
        PrepareError: files that are missing or can't be decoded; all are counted, the first are named.
    """
    if not images.is_dir():
        raise PrepareError(f"images: {images} is no folder; allowed is the one that the lists' paths begin in")
    jobs = [(split, i, images / name) for split, listed in splits.items() for i, name in enumerate(listed.names)]
    sizes = {split: np.zeros(len(listed.names), np.int64) for split, listed in splits.items()}
    progress, wrong = Counter("reading the images", len(jobs)), []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(_look, (path for _, _, path in jobs), chunksize=CHUNK)
        for (split, i, _), (size, trouble) in zip(jobs, results, strict=True):
            sizes[split][i] = size
            if trouble:
                wrong.append(trouble)
            progress.one_more()
    if wrong:
        raise PrepareError(f"images: {len(wrong)} of {len(jobs)} can't be used: {and_more(wrong)}")
    return sizes


def _look(path: Path) -> tuple[int, str]:
    """A file's size, and what is wrong with it."""
    try:
        size = path.stat().st_size
    except OSError:
        return 0, f"{path} is missing"
    try:
        decode(path)
    except DamagedFileError as error:
        return size, str(error)
    return size, ""


def _manifest(
    name: str,
    official: Official,
    splits: dict[str, Listed],
    class_names: tuple[str, ...],
    found: dict[str, Path],
    images: Path,
    seed: int,
) -> dict[str, Any]:
    counts = np.bincount(splits["train"].labels, minlength=len(class_names))
    return {
        "name": name,
        "imbalance": float(counts.max() / counts.min()),
        "seed": seed,
        "counts": counts.tolist(),
        "class_names": list(class_names),
        "mean": list(STATISTICS[0]),
        "std": list(STATISTICS[1]),
        "pad": 0,
        "flip": True,
        "crop": official.crop,
        "size": SIZE,
        "images": str(images.resolve()),
        "lists": {path.name: file_hash(path) for path in found.values()},
    }


def _fingerprint(splits: dict[str, Listed], sizes: dict[str, np.ndarray]) -> str:
    """Of the lists and the sizes of files: the same set on another machine has the same one."""
    digest = hashlib.sha256()
    for split in sorted(splits):
        digest.update(split.encode() + "\n".join(splits[split].names).encode())
        digest.update(splits[split].labels.tobytes() + sizes[split].tobytes())
    return digest.hexdigest()

"""Prepared folders: arrays, and a manifest that says what they are. Neither is believed unseen."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from torch import Tensor

from ltnotes.files import UNREADABLE, DamagedFileError, file_hash, first_line, read_json, write_json

SPLITS = ("train", "test", "validation")
MANIFEST = "manifest.json"
SCRATCH, LOCK = ".scratch", ".lock"
SECONDS_TO_LOCK = 60  # a new scratch folder has its lock long before


def fingerprint(arrays: dict[str, np.ndarray]) -> str:
    """Hash of what training can see: two sources that hold the same pixels give the same one."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def is_ours(path: Path) -> bool:
    """Whether a file can belong to a prepared folder: by its name, and a readable manifest by what it holds."""
    arrays = {f"{split}_{kind}.npy" for split in SPLITS for kind in ("images", "labels", "names", "bytes")}
    if path.name != MANIFEST:
        return path.name in arrays and path.is_file()
    try:
        return "fingerprint" in json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # damaged: whose it was can't be told
        return True
    except (OSError, TypeError):  # a folder, or a number
        return False


def write_prepared(folder: Path, arrays: dict[str, np.ndarray], manifest: dict[str, Any]) -> None:
    """Write arrays, and last a sealed manifest with their sizes and hashes."""
    folder.mkdir()
    files = {}
    for name, array in arrays.items():
        np.save(folder / name, array)
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": file_hash(folder / name)}
    write_json({**manifest, "files": files}, folder / MANIFEST)


def replace_prepared(target: Path, arrays: dict[str, np.ndarray], manifest: dict[str, Any]) -> None:
    """Write a prepared folder whole or not at all, in the place of an older one."""
    with (
        tempfile.TemporaryDirectory(prefix=f".{target.name}-", suffix=SCRATCH, dir=target.parent) as scratch,
        FileLock(Path(scratch) / LOCK),
    ):
        fresh, old = Path(scratch) / "fresh", Path(scratch) / "old"
        write_prepared(fresh, arrays, manifest)
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(fresh, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise


def remove_litter(root: Path) -> None:
    """Remove what killed preparations left: old scratch folders that no living process holds the lock of."""
    for scratch in root.glob(f".*-seed*{SCRATCH}"):
        with contextlib.suppress(Timeout, OSError):  # another process may be faster
            old = time.time() - scratch.stat().st_mtime > SECONDS_TO_LOCK
            if old and {path.name for path in scratch.iterdir()} <= {"fresh", "old", LOCK}:
                with FileLock(scratch / LOCK, timeout=0):
                    shutil.rmtree(scratch)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder, after checking every file that it lists.

    Raises:
        DamagedFileError: the manifest is unreadable or was changed, or a file is missing, truncated or altered.
    """
    again = _again(folder)
    manifest = read_json(folder / MANIFEST, again)
    if "files" not in manifest:
        raise DamagedFileError(f"{folder / MANIFEST} is another record of this package; {again}")
    for file_name, expected in manifest["files"].items():
        path = folder / file_name
        if not path.is_file():
            raise DamagedFileError(f"{path} is missing; {again}")
        if path.stat().st_size != expected["bytes"]:
            raise DamagedFileError(f"{path} is truncated: {path.stat().st_size} of {expected['bytes']} bytes; {again}")
        if file_hash(path) != expected["sha256"]:
            raise DamagedFileError(f"{path} was altered: its sha256 is not the manifest's; {again}")
    return manifest


def read_prepared(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Manifest and arrays of a prepared folder, by file name; features stay memory-mapped.

    Raises:
        DamagedFileError: as :func:`read_manifest`, or arrays that are neither images uint8
            ``[N, H, W, 3]`` nor features float32 ``[N, 1, 1, D]`` nor names of image files and
            their sizes int64 ``[N]``, with class ids int64 ``[N]``.
    """
    manifest = read_manifest(folder)
    arrays = {name: _load(folder / name) for name in manifest["files"]}
    for split in SPLITS:
        if f"{split}_labels.npy" in arrays or f"{split}_images.npy" in arrays:
            _check_split(folder, split, arrays, len(manifest["class_names"]))
    return manifest, arrays


def _load(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="c")
        return array if array.dtype == np.float32 else np.array(array)
    except UNREADABLE as error:  # Python objects, or no array at all
        raise DamagedFileError(f"{path} can't be read ({first_line(error)}); {_again(path.parent)}") from None


def _check_split(folder: Path, split: str, arrays: dict[str, np.ndarray], classes: int) -> None:
    kind = "names" if f"{split}_names.npy" in arrays else "images"
    try:
        images, labels = arrays[f"{split}_{kind}.npy"], arrays[f"{split}_labels.npy"]
        sizes = arrays[f"{split}_bytes.npy"] if kind == "names" else None
    except KeyError as error:
        raise DamagedFileError(f"{folder} has no {error.args[0]}; {_again(folder)}") from None
    pixels = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
    features = images.dtype == np.float32 and images.ndim == 4 and images.shape[1:3] == (1, 1)
    files = images.dtype.kind == "S" and sizes is not None and sizes.shape == images.shape == (len(images),)
    if not (pixels or features or files):
        said = f"holds {images.dtype} {list(images.shape)}, allowed is uint8 [N, H, W, 3]"
        raise DamagedFileError(f"{folder}/{split}_{kind}.npy {said}; {_again(folder)}")
    fits = labels.dtype == np.int64 and labels.shape == images.shape[:1]
    if not fits or not (labels.size and 0 <= labels.min() <= labels.max() < classes):
        said = f"is not int64 [{len(images)}] of classes 0 to {classes - 1}"
        raise DamagedFileError(f"{folder}/{split}_labels.npy {said}; {_again(folder)}")


def check_images(folder: Path, manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Look whether all image files of a set are where and as long as they were, before anything trains on them.

    Raises:
        DamagedFileError: files that are missing or changed; the message names the first ones and how many there are.
    """
    root = Path(manifest["images"])
    splits = [split for split in SPLITS if f"{split}_names.npy" in arrays]
    known = [entry for s in splits for entry in zip(arrays[f"{s}_names.npy"], arrays[f"{s}_bytes.npy"], strict=True)]
    progress, wrong = Counter(f"looking for the images of {manifest['name']}", len(known)), []
    for name, size in known:
        path = root / name.decode()
        try:
            if path.stat().st_size != size:
                wrong.append(f"{path} has changed")
        except OSError:
            wrong.append(f"{path} is missing")
        progress.one_more()
    if wrong:
        raise DamagedFileError(f"{and_more(wrong)}; bring them back, or {_again(folder)}")


def and_more(lines: list[str], most: int = 10) -> str:
    """The first of many lines, and how many are left out."""
    return "; ".join(lines[:most]) + (f"; and {len(lines) - most} more" if len(lines) > most else "")


class Counter:
    """On a terminal, how many of many small things are done."""

    def __init__(self, doing: str, total: int):
        self.doing, self.total, self.done = doing, total, 0

    def one_more(self) -> None:
        self.done += 1
        if sys.stderr.isatty() and (self.done % 1000 == 0 or self.done == self.total):
            end = "\n" if self.done == self.total else ""
            print(f"\r{self.doing}: {self.done} of {self.total}", end=end, file=sys.stderr, flush=True)


def _again(folder: Path) -> str:
    return f"delete {folder} and prepare it again"


def channel_statistics(images: Tensor) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per channel of uint8 ``[N, H, W, 3]``, scaled to [0, 1]."""
    scaled = images.reshape(-1, 3).double() / 255
    return tuple(scaled.mean(0).tolist()), tuple(scaled.std(0).clamp_min(1e-6).tolist())

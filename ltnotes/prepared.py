"""Prepared folders: arrays, and a manifest that says what they are. Neither is believed unseen."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
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
    arrays = {f"{split}_{kind}.npy" for split in SPLITS for kind in ("images", "labels")}
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
            ``[N, H, W, 3]`` nor features float32 ``[N, 1, 1, D]``, with class ids int64 ``[N]``.
    """
    manifest = read_manifest(folder)
    arrays = {name: _load(folder / name) for name in manifest["files"]}
    for split in SPLITS:
        if f"{split}_images.npy" in arrays:
            _check_split(folder, split, arrays, len(manifest["class_names"]))
    return manifest, arrays


def _load(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="c")
        return array if array.dtype == np.float32 else np.array(array)
    except UNREADABLE as error:  # Python objects, or no array at all
        raise DamagedFileError(f"{path} can't be read ({first_line(error)}); {_again(path.parent)}") from None


def _check_split(folder: Path, split: str, arrays: dict[str, np.ndarray], classes: int) -> None:
    images, labels = (arrays[f"{split}_{kind}.npy"] for kind in ("images", "labels"))
    pixels = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3
    features = images.dtype == np.float32 and images.ndim == 4 and images.shape[1:3] == (1, 1)
    if not (pixels or features):
        said = f"holds {images.dtype} {list(images.shape)}, allowed is uint8 [N, H, W, 3]"
        raise DamagedFileError(f"{folder}/{split}_images.npy {said}; {_again(folder)}")
    fits = labels.dtype == np.int64 and labels.shape == images.shape[:1]
    if not fits or not (labels.size and 0 <= labels.min() <= labels.max() < classes):
        said = f"is not int64 [{len(images)}] of classes 0 to {classes - 1}"
        raise DamagedFileError(f"{folder}/{split}_labels.npy {said}; {_again(folder)}")


def _again(folder: Path) -> str:
    return f"delete {folder} and prepare it again"


def channel_statistics(images: Tensor) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per channel of uint8 ``[N, H, W, 3]``, scaled to [0, 1]."""
    scaled = images.reshape(-1, 3).double() / 255
    return tuple(scaled.mean(0).tolist()), tuple(scaled.std(0).clamp_min(1e-6).tolist())

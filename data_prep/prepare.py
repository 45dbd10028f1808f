"""Draw a long-tailed set from a pool of images and write it, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.sources import Pool, PrepareError
from ltnotes import data
from ltnotes.counts import exponential_counts

# The constants that the literature normalises CIFAR with, whatever the split.
CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100_STATISTICS = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


@dataclass(frozen=True)
class Request:
    """What to prepare. ``statistics`` is (mean, std) per channel; ``validation`` counts images per class."""

    name: str
    imbalance: float
    seed: int
    validation: int
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    pad: int = 4
    flip: bool = True

    @property
    def folder_name(self) -> str:
        return data.prepared_name(self.name, self.imbalance, self.seed, self.validation)


def prepare(pool: Pool, request: Request, root: Path) -> tuple[Path, bool]:
    """Write a prepared folder below ``root``; say where it is and whether anything was written.

    A folder that already holds exactly this is left alone; one that is damaged or was
    made from another source is replaced. Nothing half-written is ever seen under the
    final name.

    Raises:
        PrepareError: a ratio that the pool can't give, or a target that can't be written.
    """
    arrays, manifest = _draw(pool, request)
    target = root / request.folder_name
    if _holds(target, manifest):
        return target, False
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=root) as scratch:
            fresh = Path(scratch) / "fresh"
            _write(fresh, arrays, manifest)
            if target.exists():
                os.replace(target, Path(scratch) / "old")
            os.replace(fresh, target)
    except OSError as error:
        if _holds(target, manifest):  # another process prepared the same meanwhile
            return target, False
        raise PrepareError(
            f"can't write {target}: {error.strerror or error}; nothing was left there. Allowed is a"
            f" folder that can be written, with {sum(a.nbytes for a in arrays.values()) >> 20} MiB free"
        ) from None
    return target, True


def _draw(pool: Pool, request: Request) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays to write, and the manifest without the hashes of their files."""
    train_labels = pool.labels[: pool.num_train]
    classes = len(pool.class_names)
    n_max = int(np.bincount(train_labels, minlength=classes).max())
    try:
        counts = exponential_counts(n_max, classes, request.imbalance)
        chosen = data.choose_long_tail(train_labels, counts, request.seed)
        held_out = np.empty(0, np.int64)
        if request.validation:
            if counts[-1] <= request.validation:
                raise ValueError(
                    f"validation: got {request.validation} images per class, but the smallest class has"
                    f" {counts[-1]}; allowed are up to {counts[-1] - 1}"
                )
            per_class = [request.validation] * classes
            held_out = chosen[data.choose_long_tail(train_labels[chosen], per_class, request.seed)]
    except ValueError as error:
        raise PrepareError(str(error)) from None
    parts = {"train": np.setdiff1d(chosen, held_out), "test": np.arange(pool.num_train, len(pool.labels))}
    if request.validation:
        parts["validation"] = held_out
    arrays = {}
    for split, indices in parts.items():
        arrays[f"{split}_images.npy"] = pool.images[indices]
        arrays[f"{split}_labels.npy"] = pool.labels[indices]
    manifest = {
        "name": request.name,
        "imbalance": request.imbalance,
        "seed": request.seed,
        "validation_per_class": request.validation,
        "counts": np.bincount(pool.labels[parts["train"]], minlength=classes).tolist(),
        "class_names": list(pool.class_names),
        "mean": list(request.statistics[0]),
        "std": list(request.statistics[1]),
        "pad": request.pad,
        "flip": request.flip,
        "source": pool.source,
        "chosen_indices_sha256": hashlib.sha256(parts["train"].astype("<i8").tobytes()).hexdigest(),
        "fingerprint": _fingerprint(arrays),
    }
    return arrays, manifest


def _fingerprint(arrays: dict[str, np.ndarray]) -> str:
    """Hash of what training can see: two sources that hold the same pixels give the same one."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _holds(target: Path, manifest: dict) -> bool:
    """Whether the folder is whole and was made by the same request from the same source."""
    try:
        existing = data.read_manifest(target)
    except RuntimeError:
        return False
    return {key: value for key, value in existing.items() if key != "files"} == manifest


def _write(folder: Path, arrays: dict[str, np.ndarray], manifest: dict) -> None:
    folder.mkdir()
    files = {}
    for name, array in arrays.items():
        np.save(folder / name, array)
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": data.file_hash(folder / name)}
    text = json.dumps({**manifest, "files": files}, indent=1)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")

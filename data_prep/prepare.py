"""Draw a long-tailed set from a pool of images and write it, whole or not at all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.sources import Pool, PrepareError
from ltnotes import data
from ltnotes.counts import exponential_counts
from ltnotes.files import DamagedFileError, disk_reason
from ltnotes.prepared import fingerprint, is_ours, read_manifest, remove_litter, replace_prepared

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
        PrepareError: a ratio that the pool can't give, or a target that can't be written or
            holds files that no preparation wrote.
    """
    arrays, manifest = _draw(pool, request)
    target = root / request.folder_name
    remove_litter(root)
    if holds(target, manifest):
        return target, False
    _check_is_ours(target)
    try:
        root.mkdir(parents=True, exist_ok=True)
        replace_prepared(target, arrays, manifest)
    except OSError as error:
        if holds(target, manifest):  # another process prepared the same meanwhile
            return target, False
        raise PrepareError(
            f"can't write {target}: {disk_reason(error, root)}; nothing was left there. Allowed is a"
            f" folder that can be written, with {sum(a.nbytes for a in arrays.values()) >> 20} MiB free"
        ) from None
    return target, True


def _check_is_ours(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise PrepareError(f"{target} is a file; move it away, or choose another --out")
    if target.is_dir() and (foreign := sorted(path.name for path in target.iterdir() if not is_ours(path))):
        raise PrepareError(
            f"{target} holds {foreign[0]!r}, which no preparation wrote; move it away, or choose another --out"
        )


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
        "fingerprint": fingerprint(arrays),
    }
    return arrays, manifest


def holds(target: Path, manifest: dict) -> bool:
    """Whether the folder is whole and was made by the same request from the same source."""
    try:
        existing = read_manifest(target)
    except DamagedFileError:
        return False
    return {key: value for key, value in existing.items() if key != "files"} == manifest

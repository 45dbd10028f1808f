"""Long-tailed data sets: as uint8 tensors on the device, or as files that are read while a network trains.

``load`` reads what ``python -m data_prep`` prepared. ``digits-lt``, the embedded
default, needs no preparation: scikit-learn ships the images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltnotes.counts import check_counts
from ltnotes.devices import choose_device
from ltnotes.files import DamagedFileError, user_path
from ltnotes.image_files import ImageFiles
from ltnotes.options import number, whole
from ltnotes.prepared import MANIFEST, SPLITS, check_images, read_manifest, read_prepared

NAMES = ("digits-lt", "cifar10-lt", "cifar100-lt")
LARGE = ("imagenet-lt", "places-lt", "inat2017", "inat2018", "inat2018-blt")
"""Sets with lists of their own, whose images stay in files; the last is BLT's version of iNaturalist 2018."""
DEFAULT_IMBALANCE = 100
PIECE = 1 << 15  # images


def home() -> Path:
    """The folder below which ``data`` and ``runs`` lie.

    The environment variable ``LTNOTES_HOME``; else the closest folder, from the current
    one upwards, that holds the book (so that a chapter opened in JupyterLab and a
    command at the top share one cache); else the current folder.
    """
    if configured := os.environ.get("LTNOTES_HOME"):
        return user_path(configured)
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "book" / "_toc.yml").is_file()), here)


def data_root() -> Path:
    """Where prepared data sets lie: ``LTNOTES_DATA``, or ``data`` below :func:`home`."""
    return user_path(os.environ.get("LTNOTES_DATA") or home() / "data")


@dataclass(frozen=True)
class Split:
    """Images uint8 ``[N, H, W, 3]`` or in files, or features float32 ``[N, 1, 1, D]``; and class ids int64 ``[N]``."""

    images: Tensor | ImageFiles
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor | slice) -> Split:
        return Split(self.images[indices], self.labels[indices])

    def pieces(self, size: int = PIECE) -> Iterator[Split]:
        """The split in pieces of so many images, for what would need too much memory on all of them."""
        starts = range(0, len(self), size)
        yield from (self[start : start + size] for start in starts) if len(starts) > 1 else [self]

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class LongTailData:
    """A long-tailed training set, a balanced test set and, if asked for, held-out validation images.

    Args:
        mean, std: per channel, of images scaled to [0, 1]; of features as they are.
        pad, flip: the training augmentation that suits these images: pixels of random
            shift, and whether a mirror image still shows the same class.
        fingerprint: hash of the chosen images; two sets with the same one are the same data.
        crop: how training images in files are cut; "" of images in memory.
    """

    name: str
    imbalance: float
    seed: int
    class_names: tuple[str, ...]
    train: Split
    test: Split
    validation: Split | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad: int
    flip: bool
    fingerprint: str
    crop: str = ""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def counts(self) -> list[int]:
        """Training images per class, in class-id order."""
        return torch.bincount(self.train.labels, minlength=self.num_classes).tolist()

    @property
    def held_out(self) -> int:
        """Validation images of each class."""
        return 0 if self.validation is None else len(self.validation) // self.num_classes

    @property
    def channels(self) -> int:
        """3 of images, D of features."""
        return self.train.images.shape[-1]

    @property
    def white(self) -> float:
        """What a 1 of ``mean`` and ``std`` is in the data, 255 in images and 1 in features."""
        return 255.0 if self.train.images.dtype == torch.uint8 else 1.0

    @property
    def in_files(self) -> bool:
        """Whether images are read while a network trains."""
        return isinstance(self.train.images, ImageFiles)

    def to(self, device: torch.device | str) -> LongTailData:
        validation = None if self.validation is None else self.validation.to(device)
        return replace(self, train=self.train.to(device), test=self.test.to(device), validation=validation)


def load(
    name: str,
    imbalance: float | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    device: torch.device | str | None = None,
    validation: int = 0,
) -> LongTailData:
    """Load a data set onto a device.

    Args:
        name: one of ``NAMES`` or ``LARGE``, or the path of a prepared folder.
        imbalance: ratio of the largest to the smallest class; 100 if not given. A
            prepared folder and the large sets know their own.
        seed: which images were drawn.
        root: where prepared data sets lie; ``LTNOTES_DATA`` or ``data`` if not given.
        device: where the tensors go; the CPU if not given.
        validation: images per class to hold out from training; the training counts
            fall by as much.

    Raises:
        ValueError: unknown name, a ratio or a hold-out that leaves a class without images.
        FileNotFoundError: not prepared yet; the message holds the command that does it.
        DamagedFileError: a prepared file is missing, truncated or altered, or belongs to another set.
    """
    imbalance = None if imbalance is None else number("imbalance", imbalance, least=1)
    seed, validation = whole("seed", seed), whole("validation", validation)
    is_folder = is_prepared(name)
    if name not in (*NAMES, *LARGE) and not is_folder:
        known = ", ".join((*NAMES, *LARGE))
        raise ValueError(f"dataset: got {name!r}, allowed are {known}, or the path of a prepared folder")
    if name in LARGE and not is_folder:
        name, is_folder = _large_folder(name, user_path(root) if root is not None else data_root()), True
    if name == "digits-lt":
        from ltnotes.digits import digits  # builds on this module

        data = digits(DEFAULT_IMBALANCE if imbalance is None else imbalance, seed)
    elif is_folder:
        data = read_folder(user_path(name))
        if imbalance is not None and imbalance != data.imbalance:
            raise ValueError(f"imbalance: got {imbalance}, but {name} was prepared with {data.imbalance}")
        if seed not in (0, data.seed):
            raise ValueError(f"seed: got {seed}, but {name} was prepared with {data.seed}")
    else:
        imbalance = DEFAULT_IMBALANCE if imbalance is None else imbalance
        where = user_path(root) if root is not None else data_root()
        folder = where / prepared_name(name, imbalance, seed, validation)
        if not (folder / MANIFEST).is_file():  # the hold-out need not have been prepared
            folder = where / prepared_name(name, imbalance, seed)
        if not (folder / MANIFEST).is_file():
            raise FileNotFoundError(
                f"{name} with imbalance {_digits(imbalance)} and seed {seed} is not prepared in {folder.parent}; run"
                f" 'python -m data_prep {name.removesuffix('-lt')} --imbalance {_digits(imbalance)} --seed {seed}',"
                " or use dataset 'digits-lt', which needs no preparation"
            )
        data = read_folder(folder)
        there = prepared_name(data.name, data.imbalance, data.seed, data.held_out)
        if there != folder.name:
            raise DamagedFileError(f"{folder} holds {there}; give it back its name")
    if validation:
        data = with_validation(data, validation)
    return data.to(choose_device(device)) if device is not None else data


def _large_folder(name: str, root: Path) -> str:
    if not (root / name / MANIFEST).is_file():
        raise FileNotFoundError(
            f"{name} is not prepared in {root}; run 'python -m data_prep {name} --lists FOLDER --images FOLDER' with"
            " its official lists and images, or use dataset 'digits-lt', which needs no preparation"
        )
    return str(root / name)


def from_folder(
    folder: str | Path, size: int = 128, test_share: float = 0.2, seed: int = 0, root: str | Path | None = None
) -> LongTailData:
    """A folder of your own images, ``<class>/*`` or ``train/<class>/*`` and ``test/<class>/*``.

    It is prepared on the way, and read again only if a file in it has changed. Its path then
    names it for recipes: ``recipes.get("logit-adjustment", str(path), scale="frozen")``, where
    ``path`` is ``<root>/<folder's name>-<size>px-seed<seed>``.

    Args:
        size: pixels that images are brought to.
        test_share: of each class, where the folder has no splits; a class of a single image has none.
        seed: of that draw.
        root: where prepared data sets lie; as in :func:`load`.

    Raises:
        ValueError: no such folder, fewer than two classes, a class without training images,
            or an option out of range.
    """
    from ltnotes import folders  # SciPy and Pillow, which no other data set needs

    where = user_path(root) if root is not None else data_root()
    return read_folder(folders.from_folder(user_path(folder), size, test_share, seed, where))


def own_imbalance(name: str) -> float:
    """The ratio that a prepared folder or large set has; for any other name ``DEFAULT_IMBALANCE``."""
    where = str(data_root() / name) if name in LARGE else name
    return read_manifest(user_path(where))["imbalance"] if is_prepared(where) else DEFAULT_IMBALANCE


def is_prepared(name: str) -> bool:
    """Whether a name is the path of a prepared folder."""
    try:
        return (user_path(name) / MANIFEST).is_file()
    except OSError:  # a name that is too long for one
        return False


def prepared_name(name: str, imbalance: float, seed: int, validation: int = 0) -> str:
    """Folder name of a prepared data set below the data root."""
    held_out = f"-validation{validation}" if validation else ""
    return f"{name}-imbalance{_digits(imbalance)}-seed{seed}{held_out}"


def _digits(ratio: float) -> str:
    """Every digit, as close ratios are different sets."""
    return str(float(ratio)).removesuffix(".0")


def read_folder(folder: Path) -> LongTailData:
    """A prepared folder, or features; errors as in :func:`load`."""
    manifest, arrays = read_prepared(folder)
    if "images" in manifest:
        check_images(folder, manifest, arrays)
    splits = {name: _split(name, manifest, arrays) for name in SPLITS if f"{name}_labels.npy" in arrays}
    return LongTailData(
        name=manifest["name"],
        imbalance=manifest["imbalance"],
        seed=manifest["seed"],
        class_names=tuple(manifest["class_names"]),
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("validation"),
        mean=tuple(manifest["mean"]),
        std=tuple(manifest["std"]),
        pad=manifest["pad"],
        flip=manifest["flip"],
        fingerprint=manifest["fingerprint"],
        crop=manifest.get("crop", ""),
    )


def _split(name: str, manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> Split:
    labels = torch.from_numpy(arrays[f"{name}_labels.npy"])
    if "images" in manifest:
        return Split(ImageFiles(Path(manifest["images"]), arrays[f"{name}_names.npy"], manifest["size"]), labels)
    return Split(torch.from_numpy(arrays[f"{name}_images.npy"]), labels)


# --- choosing images ---------------------------------------------------------


def choose_long_tail(labels: np.ndarray, counts: list[int], seed: int) -> np.ndarray:
    """Indices of a long-tailed subset: ``counts[c]`` random images of each class, in the order of the source.

    The same seed shuffles a class the same way for every ratio, so the images of a
    longer tail are among those of a shorter one.

    Raises:
        ValueError: a class that needs more images than there are.
    """
    chosen, seed = [], whole("seed", seed)
    for class_id, wanted in enumerate(check_counts(counts, "counts")):
        pool = np.flatnonzero(labels == class_id)
        if wanted > len(pool):
            raise ValueError(
                f"imbalance: class {class_id} needs {wanted} images and the source holds {len(pool)};"
                " allowed is a larger ratio, or a source with more images"
            )
        chosen.append(np.random.default_rng([seed, class_id]).permutation(pool)[:wanted])
    return np.sort(np.concatenate(chosen))


def with_validation(data: LongTailData, per_class: int) -> LongTailData:
    """Hold ``per_class`` images of each class out of the training set, chosen by the data's seed.

    Raises:
        ValueError: a hold-out that would leave a class without training images, or a
            data set that already has a validation split of another size.
    """
    per_class = whole("validation", per_class, least=1)
    if data.validation is not None:
        if data.held_out == per_class or data.in_files:  # official lists are never drawn again
            return data
        raise ValueError(f"validation: {data.name} was prepared with a validation split of another size")
    if min(data.counts) <= per_class:
        raise ValueError(
            f"validation: got {per_class} images per class, but the smallest class has {min(data.counts)};"
            f" allowed are up to {min(data.counts) - 1}"
        )
    held_out = torch.from_numpy(
        choose_long_tail(data.train.labels.cpu().numpy(), [per_class] * data.num_classes, data.seed)
    )
    kept = torch.ones(len(data.train), dtype=torch.bool)
    kept[held_out] = False
    fingerprint = hashlib.sha256(f"{data.fingerprint} validation {per_class}".encode()).hexdigest()
    return replace(data, train=data.train[kept], validation=data.train[held_out], fingerprint=fingerprint)

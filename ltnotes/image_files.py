"""Images that stay in files: worker processes read, cut and augment them, some batches ahead of the training.

Sets that fit into memory are a uint8 tensor on the device. :class:`ImageFiles` stands in a split
where such a tensor would: it has a shape, can be indexed, and gives decoded images in pieces.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import io
from torchvision.transforms import v2

from ltnotes.files import DamagedFileError, first_line
from ltnotes.options import choice, whole

VARIABLE = "LTNOTES_WORKERS"
MOST_WORKERS = 16
AHEAD = 3  # batches that each worker reads before they are asked for
SHORTER = 256 / 224  # the shorter side over the side of the crop, as the papers have it
JITTER = 0.4  # of brightness, contrast and saturation
CROPS = ("resized", "resized-jitter", "shorter")
"""How training images are cut, by a random part of any size, the same with random colours, or a random place
of the image whose shorter side is a little longer than the crop."""


@dataclass(frozen=True)
class ImageFiles:
    """Images of a split in files, where small sets have a tensor uint8 ``[N, S, S, 3]``.

    Args:
        root: the folder that names are relative to.
        names: ``[N]``, bytes.
        size: S, what training and evaluation cut.
        device: where images go once they are read.
    """

    root: Path
    names: np.ndarray
    size: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype = torch.uint8

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.names), self.size, self.size, 3))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, indices: Tensor | slice) -> ImageFiles:
        return replace(self, names=self.names[indices.cpu().numpy() if isinstance(indices, Tensor) else indices])

    def to(self, device: torch.device | str) -> ImageFiles:
        return replace(self, device=torch.device(device))

    def path(self, index: int) -> Path:
        return self.root / self.names[index].decode()

    def split(self, number: int) -> Iterator[Tensor]:
        """All images as the papers test them, uint8 ``[number, S, S, 3]`` at a time, the last maybe fewer.

        Raises:
            DamagedFileError: a file that can't be read.
        """
        middle = v2.Compose([_shorter(self.size), v2.CenterCrop(self.size)])
        yield from read_ahead(self, torch.arange(len(self)).split(number), middle)


def decode(path: Path) -> Tensor:
    """A file's image, uint8 ``[3, H, W]``.

    torchvision's decoder, about twice as fast as Pillow's; Pillow for what it does not know.

    Raises:
        DamagedFileError: no image, or a damaged one.
    """
    try:
        content = path.read_bytes()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                return io.decode_image(encoded, io.ImageReadMode.RGB, apply_exif_orientation=False)
        except (RuntimeError, ValueError):  # CMYK, rare formats, or damaged
            with warnings.catch_warnings(), Image.open(BytesIO(content)) as image:
                warnings.simplefilter("ignore")
                return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except Exception as error:  # a damaged file can raise anything
        raise DamagedFileError(f"{path} can't be read ({first_line(error)}); fetch it again") from None


def training_transform(size: int, crop: str, flip: bool) -> v2.Transform:
    """How a training image is cut and changed, see :data:`CROPS`; from uint8 ``[3, H, W]`` to ``[3, size, size]``."""
    resized = v2.RandomResizedCrop(size, antialias=True)
    cut = {
        "resized": [resized],
        "resized-jitter": [resized],
        "shorter": [_shorter(size), v2.RandomCrop(size)],
    }[choice("crop", crop, CROPS)]
    mirrored = [v2.RandomHorizontalFlip()] if flip else []
    jitter = [v2.ColorJitter(JITTER, JITTER, JITTER)] if crop == "resized-jitter" else []
    return v2.Compose([*cut, *mirrored, *jitter])


def _shorter(size: int) -> v2.Transform:
    return v2.Resize(round(SHORTER * size), antialias=True)


def number_of_workers() -> int:
    """Processes that read images: ``LTNOTES_WORKERS``, else one for each core; 0 reads between the steps.

    Raises:
        ValueError: the variable holds no such number.
    """
    if configured := os.environ.get(VARIABLE):
        try:
            return whole(VARIABLE, int(configured), most=1024)
        except ValueError:
            raise ValueError(f"{VARIABLE}: got {configured!r}, allowed is a number of processes from 0 on") from None
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def read_ahead(files: ImageFiles, batches: Iterable[Tensor], transform: v2.Transform) -> Iterator[Tensor]:
    """The images of each batch of indices, uint8 ``[B, S, S, 3]`` on the files' device, in their order.

    Reading begins at once. Chance follows torch's default generator, and not the number of workers.
    """
    reader = _Reader(files, transform, int(torch.randint(2**62, ())))
    workers = number_of_workers()
    loader = DataLoader(
        reader,
        batch_sampler=[[number, *batch.tolist()] for number, batch in enumerate(batches)],
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        collate_fn=_as_it_is,
        pin_memory=files.device.type == "cuda",
    )
    coming = iter(loader)
    return (images.to(files.device, non_blocking=True) for images in coming)


def _as_it_is(batch: Any) -> Any:
    return batch


class _Reader(Dataset):
    """Reads a whole batch at a time, with chance that depends on its place in the epoch alone."""

    def __init__(self, files: ImageFiles, transform: v2.Transform, seed: int):
        self.files, self.transform, self.seed = files, transform, seed

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, numbers: Sequence[int]) -> Tensor:
        place, *indices = numbers
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed((self.seed + place) % 2**63)
            cut = [self.transform(decode(self.files.path(index))) for index in indices]
        return torch.stack(cut).permute(0, 2, 3, 1).contiguous()


class FileAugmenter:
    """Augmented training images from files, as :class:`ltnotes.batches.Augmenter` gives them from memory.

    Args:
        normalize: from uint8 ``[B, S, S, 3]`` to float ``[B, 3, S, S]``.
        crop: one of :data:`CROPS`.
    """

    def __init__(self, files: ImageFiles, normalize: Any, crop: str, flip: bool):
        self.files, self.normalize = files, normalize
        self.transform = training_transform(files.size, crop, flip)
        self.expected: list[Tensor] = []
        self.coming: Iterator[Tensor] = iter(())

    def expect(self, batches: Sequence[Tensor]) -> None:
        """Begin to read these batches of training indices, which will be asked for in this order."""
        self.expected = list(batches)
        self.coming = read_ahead(self.files, self.expected, self.transform)

    def __call__(self, indices: Tensor) -> Tensor:
        """Augmented float images ``[B, 3, S, S]``, channels_last, for training indices ``[B]``."""
        if self.expected and indices is self.expected[0]:
            del self.expected[0]
            return self.normalize(next(self.coming))
        return self.normalize(next(read_ahead(self.files, [indices], self.transform)))  # by a part of the method

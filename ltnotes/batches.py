"""From class probabilities to a normalised batch: draw, crop and flip, normalise, all on the device.

Random numbers come from torch's default generator of the device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ltnotes.data import LongTailData
from ltnotes.image_files import CROPS, FileAugmenter
from ltnotes.options import require


def draw_images(probabilities: Tensor, labels: Tensor) -> Tensor:
    """An epoch's worth of training indices ``[N]``: a class by its probability, then one of its images.

    Drawn with replacement, unless the probabilities are those of the images themselves:
    then an epoch is a shuffle, and sees every image once.

    Args:
        probabilities: ``[C]``, float64, sum 1.
        labels: ``[N]`` class ids of the training images; every class is present.
    """
    size = len(labels)
    check_probabilities(probabilities, int(labels.max()) + 1)
    probabilities = probabilities.to(labels.device)
    counts = torch.bincount(labels, minlength=len(probabilities)).double()
    if torch.allclose(probabilities, counts / size, rtol=1e-9, atol=0):
        return torch.randperm(size, device=labels.device)
    edges = probabilities.cumsum(0)
    uniform = torch.rand(2, size, dtype=torch.float64, device=labels.device)
    # The sum can round to just below 1, and a draw fall behind the last edge.
    classes = torch.searchsorted(edges, uniform[0], right=True).clamp_max(len(edges) - 1)
    starts = counts.cumsum(0) - counts
    by_class = torch.argsort(labels, stable=True)
    return by_class[(starts[classes] + (uniform[1] * counts[classes]).floor()).long()]


def check_probabilities(probabilities: Tensor, classes: int) -> None:
    """Raise ValueError for what no balancer may give: anything but a probability for each class."""
    ok = isinstance(probabilities, Tensor) and probabilities.ndim == 1 and len(probabilities) >= classes
    ok = ok and bool((probabilities >= 0).all() and (probabilities.sum() - 1).abs() < 1e-6)
    require(ok, "balancer", probabilities, f"one that gives {classes} probabilities, of sum 1")


def augmenter(
    data: LongTailData, pad: int | None = None, flip: bool | None = None, crop: str | None = None
) -> Augmenter | FileAugmenter:
    """What gives a set's augmented training images, from memory or from files.

    Args:
        pad, flip: as :class:`Augmenter` has them; images in files have no ``pad``.
        crop: how images in files are cut, one of ``CROPS``; the set's own if not given.

    Raises:
        ValueError: an option that would have no effect on this set.
    """
    if not data.in_files:
        require(crop is None, "crop", crop, f"None for {data.name}, whose images are in memory and shifted by pad")
        return Augmenter(data, pad, flip)
    require(not pad, "pad", pad, f"None for {data.name}, whose images are cut as crop says: {', '.join(CROPS)}")
    normalize = Normalizer(data.mean, data.std, data.train.labels.device)
    flip = data.flip if flip is None else flip
    return FileAugmenter(data.train.images, normalize, crop or data.crop, flip)


class Augmenter:
    """Random crops and mirror images of a training set, a batch at a time on its device.

    The padded set, and its mirror image if the data is flipped, is held once as uint8. A
    row of a crop is a window onto a row of it, and a batch is one gather of windows.
    Random numbers come from torch's default generator of that device.

    Args:
        data: the set whose training images are augmented with its own ``pad`` and ``flip``.
        pad: pixels of random shift, in place of the set's own.
        flip: whether a mirror image is as good, in place of the set's own.
    """

    def __init__(self, data: LongTailData, pad: int | None = None, flip: bool | None = None):
        images = data.train.images
        self.num_images, self.size = images.shape[:2]
        self.pad, self.flip = data.pad if pad is None else pad, data.flip if flip is None else flip
        padded = F.pad(images, (0, 0, self.pad, self.pad, self.pad, self.pad))
        pixels = torch.cat([padded, padded.flip(2)]) if self.flip else padded
        # Window k holds the pixels k to k + size - 1. Windows overlap: they are views of one memory.
        shape = pixels.numel() // data.channels - self.size + 1, data.channels * self.size
        self.windows = pixels.as_strided(shape, (data.channels, 1))
        self.normalize = Normalizer(data.mean, data.std, images.device, data.white)

    def __call__(self, indices: Tensor) -> Tensor:
        """Augmented float images ``[B, 3, H, W]``, channels_last, for training indices ``[B]``."""
        return self.normalize(self.crop(indices))

    def crop(self, indices: Tensor) -> Tensor:
        """Augmented uint8 images ``[B, H, W, 3]``."""
        device, batch = indices.device, len(indices)
        images = indices[:, None]
        top, left = torch.randint(0, 2 * self.pad + 1, (2, batch, 1), device=device)
        if self.flip:
            mirrored = torch.rand(batch, 1, device=device) < 0.5
            images = images + mirrored * self.num_images
            left = torch.where(mirrored, 2 * self.pad - left, left)
        side = self.size + 2 * self.pad
        rows = top + torch.arange(self.size, device=device)
        windows = (images * side + rows) * side + left
        return self.windows.index_select(0, windows.view(-1)).view(batch, self.size, self.size, -1)


class Normalizer:
    """``[B, H, W, C]`` to float ``[B, C, H, W]``, per channel ``(x / white - mean) / std``, channels_last."""

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str, white: float = 255.0
    ):
        deviation = white * torch.tensor(std, dtype=torch.float64)
        self.scale = (1 / deviation).float().to(device)
        self.shift = (-white * torch.tensor(mean, dtype=torch.float64) / deviation).float().to(device)

    def __call__(self, images: Tensor) -> Tensor:
        batch, height, width, channels = images.shape
        # Whole image rows at a time: broadcasting over rows of 3 numbers is five times slower on a CPU.
        rows = images.reshape(batch * height, width * channels).float()
        normalized = torch.addcmul(self.shift.repeat(width), rows, self.scale.repeat(width))
        return normalized.view(batch, height, width, channels).permute(0, 3, 1, 2)

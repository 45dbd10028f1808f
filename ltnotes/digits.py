"""The embedded data set: scikit-learn's handwritten digits, made long-tailed."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from ltnotes.counts import exponential_counts
from ltnotes.data import LongTailData, Split, choose_long_tail
from ltnotes.prepared import channel_statistics

TEST_PER_CLASS = 50


def digits(imbalance: float, seed: int) -> LongTailData:
    """scikit-learn's handwritten digits, enlarged from 8x8 to 32x32 and made long-tailed.

    Fifty images of each class are the test set. Of the rest, 124 of each class can be drawn.
    """
    from sklearn.datasets import load_digits  # half a second that only this data set should cost

    source = load_digits()
    small = torch.from_numpy(source.images).float()[:, None] / 16
    large = torch.nn.functional.interpolate(small, size=32, mode="bilinear", align_corners=False)
    images = (large * 255).round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    labels = source.target.astype(np.int64)
    test = choose_long_tail(labels, [TEST_PER_CLASS] * 10, seed=0)
    rest = np.setdiff1d(np.arange(len(labels)), test)
    pool_size = int(np.bincount(labels[rest]).min())
    train = rest[choose_long_tail(labels[rest], exponential_counts(pool_size, 10, imbalance), seed)]
    everything = Split(images, torch.from_numpy(labels))
    mean, std = channel_statistics(images[torch.from_numpy(train)])
    return LongTailData(
        name="digits-lt",
        imbalance=imbalance,
        seed=seed,
        class_names=tuple(str(digit) for digit in range(10)),
        train=everything[torch.from_numpy(train)],
        test=everything[torch.from_numpy(test)],
        validation=None,
        mean=mean,
        std=std,
        pad=2,
        flip=False,  # a mirrored 2 is no digit
        fingerprint=hashlib.sha256(images.numpy()[train].tobytes() + labels[train].tobytes()).hexdigest(),
    )

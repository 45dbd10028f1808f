"""What a network says of images: scores, class probabilities and features, in evaluation mode, without gradients.

Always in float32, whatever the network was trained in: these become numbers in a record.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ltnotes.batches import Normalizer
from ltnotes.data import LongTailData, Split
from ltnotes.devices import full_float32
from ltnotes.folding import folded
from ltnotes.methods.common import evaluating

BATCH = 125  # of larger ones a CPU asks the system for new memory in every layer


def logits(model: nn.Module, split: Split, data: LongTailData, scale: float = 1.0) -> Tensor:
    """Scores ``[N, C]`` of a split's images whose softmax are the class probabilities; on the images' device.

    Args:
        data: the set whose mean and deviation normalise the images.
        scale: what the plain scores are multiplied by, a loss's ``evaluation_scale``.
    """
    return scale * _batched(model, model, split, data)


def predict(model: nn.Module, split: Split, data: LongTailData, scale: float = 1.0) -> np.ndarray:
    """Class probabilities ``[N, C]`` of a split's images; arguments as in :func:`logits`."""
    return logits(model, split, data, scale).softmax(1).cpu().numpy()


def extract_features(model: nn.Module, split: Split, data: LongTailData) -> Tensor:
    """Pooled features ``[N, D]`` of a split's images, on the images' device."""
    return _batched(model, model.features, split, data)


@torch.no_grad()
def _batched(model: nn.Module, function: Callable[[Tensor], Tensor], split: Split, data: LongTailData) -> Tensor:
    normalize = Normalizer(data.mean, data.std, split.images.device, data.white)
    with evaluating(model), folded(model), full_float32(split.images.device):
        return torch.cat([function(normalize(images)) for images in split.images.split(BATCH)])

"""What a network says of images: class probabilities and features, in evaluation mode, without gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ltnotes.batches import Normalizer
from ltnotes.data import LongTailData, Split
from ltnotes.devices import precision
from ltnotes.folding import folded
from ltnotes.methods.common import evaluating

BATCH = 125  # of larger ones a CPU asks the system for new memory in every layer


def predict(
    model: nn.Module, split: Split, data: LongTailData, dtype: torch.dtype | None = None, scale: float = 1.0
) -> np.ndarray:
    """Class probabilities ``[N, C]`` of a split's images, from the plain scores.

    Args:
        data: the set whose mean and deviation normalise the images.
        dtype: of autocast; None leaves it off.
        scale: what the scores are multiplied by before their softmax, a loss's ``evaluation_scale``.
    """
    return (scale * _batched(model, model, split, data, dtype)).softmax(1).cpu().numpy()


def extract_features(model: nn.Module, split: Split, data: LongTailData, dtype: torch.dtype | None = None) -> Tensor:
    """Pooled features ``[N, D]`` of a split's images, float32, on the images' device."""
    return _batched(model, model.features, split, data, dtype)


@torch.no_grad()
def _batched(
    model: nn.Module,
    function: Callable[[Tensor], Tensor],
    split: Split,
    data: LongTailData,
    dtype: torch.dtype | None,
) -> Tensor:
    normalize = Normalizer(data.mean, data.std, split.images.device)
    outputs = []
    with evaluating(model), folded(model):
        for images in split.images.split(BATCH):
            with precision(images.device, dtype):
                outputs.append(function(normalize(images)).float())
    return torch.cat(outputs)

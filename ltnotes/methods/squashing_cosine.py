"""Classifier heads: linear, cosine, squashing cosine (chapter 3).

Each is built as ``Head(in_features, num_classes, **options)`` and maps pooled
features ``[B, D]`` to scores ``[B, C]``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltnotes.options import number, of_type


class LinearClassifier(nn.Linear):
    """``z = W f + b``: the ordinary last layer. Score ``[B, C]`` from features ``[B, D]``."""

    def __init__(self, in_features: int, num_classes: int, bias: bool = True):
        super().__init__(in_features, num_classes, bias=of_type("bias", bias, bool))
        nn.init.kaiming_normal_(self.weight)
        if bias:
            nn.init.zeros_(self.bias)


class CosineClassifier(nn.Module):
    """``scale * cos(w_c, f)``: norms of features and of class weights no longer matter.

    Args:
        scale: multiplies the cosines. With 1.0 the outputs are plain cosines in
            [-1, 1], as the margin losses (KPS, GCL, LDAM) expect.
    """

    def __init__(self, in_features: int, num_classes: int, scale: float = 1.0):
        super().__init__()
        self.scale = number("scale", scale, above=0)
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, features: Tensor) -> Tensor:
        # In bf16 a cosine has two digits, fewer than the margins that losses put on it.
        with torch.autocast(features.device.type, enabled=False):
            return self.scale * F.linear(F.normalize(features.to(self.weight.dtype)), F.normalize(self.weight))


class SquashingCosineClassifier(CosineClassifier):
    """Cosine scores, scaled by a bounded function of the feature norm (BLT Eq. 2).

    ``score_c = alpha * |f| / (beta + |f|) * cos(w_c, f)``

    BLT pairs it with a large-margin softmax and gives no margin. Its released code has a
    margin of 0, which is plain cross-entropy, as here.

    Args:
        alpha: the largest scale, approached as the norm grows. 20 in the BLT
            supplement (section 2); OLTR is alpha=16, beta=1; BLT's released code
            runs alpha=16, beta=0.5.
        beta: the feature norm at which half of ``alpha`` is reached. 0 gives the
            plain cosine classifier with ``scale=alpha``.
    """

    def __init__(self, in_features: int, num_classes: int, alpha: float = 20.0, beta: float = 0.5):
        super().__init__(in_features, num_classes, scale=number("alpha", alpha, above=0))
        self.beta = number("beta", beta, least=0)

    def forward(self, features: Tensor) -> Tensor:
        norm = features.to(self.weight.dtype).norm(dim=1, keepdim=True)
        return norm / (self.beta + norm).clamp_min(torch.finfo(norm.dtype).tiny) * super().forward(features)

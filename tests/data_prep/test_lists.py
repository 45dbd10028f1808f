"""Large sets: official lists checked against the images that are there."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from ltnotes import data
from ltnotes.files import DamagedFileError, file_hash
from tests.listed import COUNTS, LISTS, TESTED, small, tree  # noqa: F401

pytestmark = pytest.mark.usefixtures("small")
EACH = pytest.mark.parametrize("name", LISTS)


def prepare(root: Path, name: str, lists: Path, images: Path, *more: str) -> int:
    return main([name, "--lists", str(lists), "--images", str(images), "--out", str(root), *more])


@EACH
def test_each_format_gives_the_same_object(tmp_path, name, capsys):
    lists, images = tree(tmp_path, name)
    assert prepare(tmp_path / "data", name, lists, images) == 0
    said = capsys.readouterr().out
    assert "the training list has 5 classes and 52 images; the official one has" in said and "prepared: " in said
    loaded = data.load(name, root=tmp_path / "data")
    assert loaded.counts == list(COUNTS) and loaded.in_files and loaded.imbalance == 8
    assert np.bincount(loaded.test.labels).tolist() == [TESTED] * 5
    assert loaded.train.images.shape == (52, 32, 32, 3) and loaded.channels == 3
    assert (loaded.validation is not None) == (len(LISTS[name]) == 3)
    manifest = json.loads((tmp_path / "data" / name / "manifest.json").read_text())
    assert manifest["lists"] == {list_: file_hash(lists / list_) for list_ in LISTS[name][:3]}
    assert prepare(tmp_path / "data", name, lists, images) == 0
    assert "already prepared" in capsys.readouterr().out


def test_blts_version_of_inaturalist_holds_out_five_and_drops_smaller_classes(tmp_path):
    lists, images = tree(tmp_path, "inat2018", counts=(24, 5, 4, 12))
    assert prepare(tmp_path / "data", "inat2018-blt", lists, images) == 0
    loaded = data.load("inat2018-blt", root=tmp_path / "data")
    assert loaded.class_names == tuple(f"train_val2018/Plantae/{c}" for c in (0, 1, 3))
    assert loaded.counts == [19, 1, 7]  # of five one stays
    assert np.bincount(loaded.validation.labels).tolist() == [5, 4, 5]
    assert np.bincount(loaded.test.labels).tolist() == [TESTED] * 3
    names = [set(getattr(loaded, split).images.names.tolist()) for split in ("train", "validation", "test")]
    assert not names[0] & names[1] and not names[0] & names[2]


def test_all_missing_and_damaged_images_are_named_at_once(tmp_path, capsys):
    lists, images = tree(tmp_path, "imagenet-lt")
    files = sorted(images.rglob("*.JPEG"))
    files[0].unlink()
    files[5].write_bytes(files[5].read_bytes()[:200])
    files[9].write_bytes(b"no image")
    assert prepare(tmp_path / "data", "imagenet-lt", lists, images) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: images: 3 of 82 can't be used: ")
    assert f"{files[0]} is missing" in said and str(files[5]) in said and str(files[9]) in said
    assert not (tmp_path / "data" / "imagenet-lt").exists()


def test_images_that_changed_since_are_named_before_anything_trains(tmp_path):
    lists, images = tree(tmp_path, "places-lt")
    assert prepare(tmp_path / "data", "places-lt", lists, images) == 0
    one, two = sorted(images.rglob("*.jpg"))[:2]
    one.unlink()
    two.write_bytes(b"other")
    with pytest.raises(DamagedFileError, match=f"({one} is missing; {two} has changed|{two}.*{one})"):
        data.load("places-lt", root=tmp_path / "data")


def change(lists: Path, name: str, old: str, new: str) -> None:
    path = lists / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


TRAIN = "ImageNet_LT_train.txt"
WRONG = {
    "no class id": (TRAIN, "n00000000_0.JPEG 0", "n00000000_0.JPEG", "line 1: .* is no path and class id"),
    "a class in two folders": (TRAIN, "n00000000/n00000000_1.JPEG 0", "n00000009/x.JPEG 0", "class 0 of .* lies in"),
    "a folder of two classes": (TRAIN, "n00000000_1.JPEG 0", "n00000000_1.JPEG 1", "holds the classes 0 and 1"),
    "twice": (
        TRAIN,
        "n00000000_1.JPEG 0",
        "n00000000_2.JPEG 0",
        "is in .* and in .*, allowed is once",
    ),
    "an unknown class": ("ImageNet_LT_test.txt", " 4\n", " 5\n", "has class 5, allowed are 0 to 4"),
}


@pytest.mark.parametrize("name, old, new, message", WRONG.values(), ids=WRONG)
def test_lists_that_contradict_each_other_are_refused(tmp_path, capsys, name, old, new, message):
    lists, images = tree(tmp_path, "imagenet-lt")
    change(lists, name, old, new)
    assert prepare(tmp_path / "data", "imagenet-lt", lists, images) == 2
    assert re.search(message, capsys.readouterr().err)


def test_what_is_missing_is_said_first(tmp_path, capsys):
    lists, images = tree(tmp_path, "inat2017")
    assert prepare(tmp_path / "data", "inat2017", tmp_path, images) == 2
    assert "holds no train2017.json; allowed is a folder with the official lists" in capsys.readouterr().err
    assert prepare(tmp_path / "data", "inat2017", lists, tmp_path / "nowhere") == 2
    assert "is no folder; allowed is the one that the lists' paths begin in" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="run 'python -m data_prep inat2017 --lists FOLDER --images FOLDER'"):
        data.load("inat2017", root=tmp_path / "data")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["imagenet-lt"], "--lists: imagenet-lt needs it"),
        (["cifar10", "--lists", "x"], "--lists: has no effect on cifar10"),
        (
            ["places-lt", "--lists", "x", "--images", "x", "--imbalance", "10"],
            "--imbalance: has no effect on places-lt",
        ),
    ],
)
def test_options_that_would_have_no_effect_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err

"""Sets whose images stay in files: read as they are, cut and augmented, and trained on by every kind of method."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from data_prep.__main__ import main as data_prep
from ltnotes import data, image_files, recipes, runs
from ltnotes.batches import Normalizer, augmenter
from ltnotes.files import DamagedFileError
from ltnotes.image_files import FileAugmenter, ImageFiles, decode
from ltnotes.inference import logits
from ltnotes.training import Training
from tests.listed import COUNTS, small, tree  # noqa: F401

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """A small ImageNet-LT below the home of the test."""
    monkeypatch.setenv("LTNOTES_WORKERS", "0")
    lists, images = tree(tmp_path / "source", "imagenet-lt")
    assert data_prep(["imagenet-lt", "--lists", str(lists), "--images", str(images)]) == 0
    return data.load("imagenet-lt")


# --- reading --------------------------------------------------------------------------


def test_test_images_are_the_middle_of_the_file(listed):
    (read,) = listed.test.images.split(100)
    assert read.dtype == torch.uint8 and read.shape == (20, 32, 32, 3)
    with Image.open(listed.test.images.path(3)) as image:
        expected = v2.Compose([v2.Resize(37), v2.CenterCrop(32)])(v2.functional.pil_to_tensor(image.convert("RGB")))
    assert (read[3].permute(2, 0, 1).int() - expected.int()).abs().float().mean() < 1.5  # two decoders round apart


@pytest.mark.parametrize("mode, suffix", [("CMYK", "jpg"), ("L", "jpg"), ("RGBA", "png"), ("P", "png"), ("1", "png")])
def test_every_kind_of_image_becomes_three_channels(tmp_path, mode, suffix):
    path = tmp_path / f"image.{suffix}"
    colours = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    Image.fromarray(colours).convert(mode).save(path)
    assert decode(path).shape == (3, 20, 30)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0" + bytes(100)])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=rf"^{path} can't be read \(.*\); fetch it again"):
        decode(path)
    with pytest.raises(DamagedFileError, match=r"gone\.jpg can't be read"):
        decode(tmp_path / "gone.jpg")


def test_files_are_indexed_like_a_tensor(listed):
    files = listed.train.images
    some = torch.tensor([5, 0, 40])
    assert [files[some].path(i) for i in range(3)] == [files.path(5), files.path(0), files.path(40)]
    assert len(files[10:20]) == 10 and files[listed.train.labels == 4].shape[0] == COUNTS[4]
    assert [len(piece) for piece in listed.train.pieces(20)] == [20, 20, 12]


def crops(listed, workers, monkeypatch, crop="resized-jitter"):
    monkeypatch.setenv("LTNOTES_WORKERS", str(workers))
    augment = augmenter(listed, crop=crop)
    torch.manual_seed(7)
    batches = torch.arange(52).split(20)
    augment.expect(batches)
    return [augment(batch) for batch in batches]


def test_augmented_images_do_not_depend_on_the_number_of_workers(listed, monkeypatch):
    alone, two = crops(listed, 0, monkeypatch), crops(listed, 2, monkeypatch)
    assert [len(batch) for batch in alone] == [20, 20, 12]
    for a, b in zip(alone, two, strict=True):
        assert torch.equal(a, b) and a.shape[1:] == (3, 32, 32)


def test_the_same_image_is_cut_anew_each_time(listed, monkeypatch):
    monkeypatch.setenv("LTNOTES_WORKERS", "0")
    augment = augmenter(listed)
    same = torch.zeros(6, dtype=torch.long)
    augment.expect([same])
    first, second = augment(same), augment(torch.zeros(6, dtype=torch.long))
    assert len({image.sum().item() for image in torch.cat([first, second])}) == 12


@pytest.mark.parametrize("crop", image_files.CROPS)
def test_a_crop_changes_what_it_says(listed, monkeypatch, crop):
    """Of an image of one colour, a cut or a mirror image changes nothing, and random colours do."""
    for path in {listed.train.images.path(i) for i in range(52)}:
        Image.new("RGB", (60, 50), (100, 150, 200)).save(path, "JPEG", quality=95)
    images = torch.cat(crops(listed, 0, monkeypatch, crop))
    plain = Normalizer(listed.mean, listed.std, "cpu")(torch.tensor([[[[100, 150, 200]]]], dtype=torch.uint8))
    same = (images - plain).abs().amax((1, 2, 3)) < 0.05
    assert same.all() if crop != "resized-jitter" else not same.any()


def test_options_that_would_have_no_effect_are_refused(listed, digits):
    with pytest.raises(ValueError, match=r"^pad: got 4, allowed is None for imagenet-lt, whose images are cut as crop"):
        augmenter(listed, pad=4)
    assert augmenter(listed, pad=0)  # what the scale lite says
    with pytest.raises(ValueError, match=r"^crop: got 'shorter', allowed is None for digits-lt, whose images are in"):
        augmenter(digits, crop="shorter")
    with pytest.raises(ValueError, match=r"^crop: got 'middle', allowed are resized, resized-jitter, shorter"):
        recipes.get("ce", "imagenet-lt", scale="tiny", crop="middle")


@pytest.mark.parametrize("workers", ["two", "-1", "1.5"])
def test_a_number_of_workers_that_is_none_is_named(listed, monkeypatch, workers):
    monkeypatch.setenv("LTNOTES_WORKERS", workers)
    with pytest.raises(ValueError, match=f"^LTNOTES_WORKERS: got '{workers}', allowed is a number of processes"):
        image_files.number_of_workers()


# --- training -------------------------------------------------------------------------

METHODS = (
    "ce",
    "class-balanced-sampling",
    "blt",
    "cam-fusion",
    "gcl",  # mixup, and a head trained again
    "ncm",  # means of the features of all training images
    "fbl",
)


@pytest.mark.parametrize("name", METHODS)
def test_every_kind_of_method_trains_on_files(listed, name):
    recipe = recipes.get(name, "imagenet-lt", scale="tiny", steps=3)
    run = runs.run(recipe, 0)
    assert run.logits.shape == (20, 5) and np.isfinite(run.logits).all()
    assert runs.run(recipe, 0).checkpoint == run.checkpoint


def in_memory(listed):
    """The same set with its training images as a tensor of what the middle of each file shows."""
    from dataclasses import replace

    read = [torch.cat(list(split.images.split(50))) for split in (listed.train, listed.test)]
    splits = [data.Split(images, s.labels) for images, s in zip(read, (listed.train, listed.test), strict=True)]
    return replace(listed, train=splits[0], test=splits[1], validation=None, crop="")


def test_scores_are_those_of_the_same_images_in_memory(listed):
    recipe = recipes.get("ce", "imagenet-lt", scale="tiny", steps=2)
    job = Training(recipe, listed, seed=0, precision="float32")
    job.run()
    torch.testing.assert_close(job.logits(), logits(job.model, in_memory(listed).test, in_memory(listed)))


def test_a_training_does_not_depend_on_workers_and_goes_on_after_an_interruption(listed, monkeypatch, tmp_path):
    recipe = recipes.get("blt", "imagenet-lt", scale="tiny", steps=4)

    def trained(workers, checkpoint=None, stop=None):
        monkeypatch.setenv("LTNOTES_WORKERS", str(workers))
        job = Training(recipe, listed, 1, checkpoint=checkpoint, precision="float32")
        if stop:
            job.next_checkpoint = 0.0
            steps = job.steps()
            for _ in range(stop):
                next(steps)
            steps.close()
        else:
            job.run()
        return job.model.state_dict()

    whole = trained(0)
    for name, weight in trained(2).items():
        assert torch.equal(weight, whole[name])
    trained(0, tmp_path / "state.pt", stop=3)  # after an epoch of two batches
    assert (tmp_path / "state.pt").is_file()
    for name, weight in trained(2, tmp_path / "state.pt").items():
        assert torch.equal(weight, whole[name])


def test_a_file_that_goes_missing_while_it_trains_is_named(listed):
    recipe = recipes.get("ce", "imagenet-lt", scale="tiny", steps=4)
    job = Training(recipe, listed, 0)
    for path in {listed.train.images.path(i) for i in range(52)}:
        path.unlink()
    with pytest.raises(DamagedFileError, match=r"\.JPEG can't be read \(.*\); fetch it again"):
        job.run()


def test_fusion_needs_no_scores_of_all_images_at_once(listed, monkeypatch):
    """The classes that are confused are the same if scores come in pieces."""
    from ltnotes.methods.cam_fusion import highest_scored, most_confusing, sum_scores

    scores, labels = torch.rand(52, 5), listed.train.labels
    in_pieces = sum_scores(scores.split(7), labels)
    assert torch.equal(highest_scored(in_pieces, 3), most_confusing(scores, labels, 3))
    assert isinstance(listed.train.images, ImageFiles) and isinstance(augmenter(listed), FileAugmenter)

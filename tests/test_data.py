"""Loading data: the embedded digits, choosing a long tail, holding out, and prepared folders gone wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ltnotes import data
from ltnotes.counts import exponential_counts
from ltnotes.files import write_json
from ltnotes.prepared import write_prepared


def test_digits_lt_at_the_default_ratio():
    digits = data.load("digits-lt")
    assert digits.counts == exponential_counts(124, 10, 100)
    assert (digits.num_classes, digits.class_names) == (10, tuple("0123456789"))
    assert digits.train.images.shape == (sum(digits.counts), 32, 32, 3)
    assert digits.train.images.dtype == digits.test.images.dtype == torch.uint8
    assert digits.test.labels.bincount().tolist() == [50] * 10
    assert digits.validation is None


def test_digits_lt_is_balanced_at_a_ratio_of_one():
    assert data.load("digits-lt", imbalance=1).counts == [124] * 10


def test_digits_are_never_flipped(digits):
    assert digits.flip is False


def test_statistics_are_those_of_the_training_images(digits):
    scaled = digits.train.images.double() / 255
    assert digits.mean == pytest.approx(scaled.mean((0, 1, 2)).tolist())
    assert digits.std == pytest.approx(scaled.std((0, 1, 2)).tolist(), rel=1e-4)


def test_the_same_seed_draws_the_same_images_and_another_seed_others(digits):
    again, other = data.load("digits-lt", imbalance=20), data.load("digits-lt", imbalance=20, seed=1)
    assert again.train.images.equal(digits.train.images)
    assert again.fingerprint == digits.fingerprint != other.fingerprint
    assert other.counts == digits.counts
    assert not other.train.images.equal(digits.train.images)
    assert other.test.images.equal(digits.test.images)


def rows(split):
    return {image.tobytes() for image in split.images.numpy()}


def test_no_test_image_is_trained_on(digits):
    assert not rows(digits.train) & rows(digits.test)


def test_a_longer_tail_is_part_of_a_shorter_one(digits):
    assert rows(data.load("digits-lt", imbalance=100).train) < rows(digits.train)


# --- choosing and holding out ---


def test_choose_long_tail_takes_the_counts_in_the_order_of_the_source():
    labels = np.array([2, 0, 1, 2, 0, 2, 1, 0, 2])
    chosen = data.choose_long_tail(labels, [1, 2, 3], seed=3)
    assert np.bincount(labels[chosen]).tolist() == [1, 2, 3]
    assert chosen.tolist() == sorted(set(chosen.tolist()))


def test_choose_long_tail_names_the_class_that_is_too_small():
    with pytest.raises(ValueError, match=r"imbalance: class 1 needs 3 images and the source holds 2"):
        data.choose_long_tail(np.array([0, 0, 0, 1, 1]), [3, 3], seed=0)


def test_validation_images_leave_the_training_set(digits):
    held = data.load("digits-lt", imbalance=20, validation=5)
    assert held.validation.labels.bincount().tolist() == [5] * 10
    assert held.counts == [n - 5 for n in digits.counts]
    assert not rows(held.validation) & rows(held.train)
    assert rows(held.validation) | rows(held.train) == rows(digits.train)
    assert held.fingerprint != digits.fingerprint


def test_held_out_images_are_the_same_for_everyone():
    one, other = (data.load("digits-lt", imbalance=20, validation=2) for _ in range(2))
    assert one.validation.images.equal(other.validation.images)


@pytest.mark.parametrize(
    ("imbalance", "validation"),
    [(100, 1), (20, 6), (20, -1)],
)
def test_a_hold_out_that_empties_a_class_is_refused(imbalance, validation):
    with pytest.raises(ValueError, match=r"^validation: got"):
        data.load("digits-lt", imbalance=imbalance, validation=validation)


def test_a_second_hold_out_must_be_the_first(digits):
    held = data.with_validation(digits, 2)
    assert data.with_validation(held, 2) is held
    with pytest.raises(ValueError, match=r"^validation: .* of another size"):
        data.with_validation(held, 3)


# --- what load refuses ---


@pytest.mark.parametrize("name", ["mnist", "", "digits", "no/such/folder"])
def test_an_unknown_data_set_is_refused(name):
    with pytest.raises(ValueError, match=r"dataset: got .* allowed are digits-lt, cifar10-lt, cifar100-lt"):
        data.load(name)


@pytest.mark.parametrize("imbalance", [0.5, 0, -1, float("nan"), 125])
def test_a_ratio_that_makes_no_long_tail_is_refused(imbalance):
    with pytest.raises(ValueError, match=r"^imbalance: got"):
        data.load("digits-lt", imbalance=imbalance)


def test_data_that_is_not_prepared_names_the_command(tmp_path):
    command = "python -m data_prep cifar10 --imbalance 50 --seed 3"
    with pytest.raises(FileNotFoundError, match=f"not prepared in {tmp_path}; run '{command}'"):
        data.load("cifar10-lt", imbalance=50, seed=3, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- homes ---


def test_home_is_the_environment_variable_else_where_the_book_is(tmp_path, monkeypatch):
    assert data.home() == tmp_path
    monkeypatch.delenv("LTNOTES_HOME")
    below = tmp_path / "book" / "deeper"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert data.home() == below
    (tmp_path / "book" / "_toc.yml").touch()
    assert data.home() == tmp_path


def test_data_root_is_the_environment_variable_else_below_home(tmp_path, monkeypatch):
    assert data.data_root() == tmp_path / "data"
    monkeypatch.setenv("LTNOTES_DATA", str(tmp_path / "elsewhere"))
    assert data.data_root() == tmp_path / "elsewhere"


# --- prepared folders ---


def of_digits(folder, digits, **changes):
    """What data_prep writes, of a few digits."""
    arrays = {
        f"{split}_{kind}.npy": getattr(part, kind).numpy()
        for split, part in (("train", digits.train), ("test", digits.test))
        for kind in ("images", "labels")
    }
    manifest = {
        "name": "digits-lt",
        "imbalance": 20.0,
        "seed": 0,
        "class_names": list(digits.class_names),
        "mean": digits.mean,
        "std": digits.std,
        "pad": 2,
        "flip": False,
        "fingerprint": "abc",
    }
    write_prepared(folder, arrays | changes.pop("arrays", {}), manifest | changes)
    return folder


@pytest.fixture
def prepared(tmp_path, digits):
    return of_digits(tmp_path / "prepared", digits)


def test_a_prepared_folder_is_loaded_by_its_path(prepared, digits):
    loaded = data.load(str(prepared))
    assert loaded.train.images.equal(digits.train.images)
    assert loaded.train.labels.equal(digits.train.labels)
    assert loaded.test.images.equal(digits.test.images)
    assert (loaded.counts, loaded.mean, loaded.fingerprint) == (digits.counts, digits.mean, "abc")


def test_a_prepared_folder_knows_its_ratio(prepared):
    with pytest.raises(ValueError, match=r"^imbalance: got 50, but .* was prepared with 20"):
        data.load(str(prepared), imbalance=50)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def alter(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy"])
@pytest.mark.parametrize(
    ("damage", "word"), [(truncate, "is truncated"), (alter, "was altered"), (lambda path: path.unlink(), "is missing")]
)
def test_a_damaged_file_is_named(prepared, name, damage, word):
    damage(prepared / name)
    with pytest.raises(RuntimeError, match=f"{name} {word}.*delete {prepared} and prepare it again"):
        data.load(str(prepared))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": 3}', "[" * 100_000, "\0", '{"seal": 1}'])
def test_a_damaged_manifest_is_named(prepared, text):
    (prepared / "manifest.json").write_text(text)
    with pytest.raises(RuntimeError, match=rf"manifest.json (can't be read|has no|was).*delete {prepared} and prepare"):
        data.load(str(prepared))


@pytest.mark.parametrize(
    "edit", [{"imbalance": 50.0}, {"class_names": list("abcdefghij")}, {"fingerprint": "0"}, {"mean": [0, 0, 0]}]
)
def test_a_manifest_that_was_edited_is_not_believed(prepared, edit):
    path = prepared / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with pytest.raises(RuntimeError, match=r"manifest.json was changed after it was written; delete"):
        data.load(str(prepared))


def test_another_sealed_record_is_no_manifest(prepared):
    write_json({"metrics": {}}, prepared / "manifest.json")
    with pytest.raises(RuntimeError, match=r"manifest.json is another record of this package; delete"):
        data.load(str(prepared))


def test_a_folder_under_another_ones_name_is_not_taken_for_it(tmp_path, digits):
    wanted = tmp_path / data.prepared_name("cifar10-lt", 20.0, 0)
    of_digits(wanted, digits, name="cifar10-lt", imbalance=50.0)
    with pytest.raises(RuntimeError, match=r"imbalance20-seed0 holds cifar10-lt-imbalance50-seed0; give"):
        data.load("cifar10-lt", imbalance=20, root=tmp_path)


def test_close_ratios_have_folders_of_their_own():
    names = [data.prepared_name("cifar10-lt", ratio, 0) for ratio in (2, 2.000001, 2.0, 100.0)]
    assert names[0] == names[2] == "cifar10-lt-imbalance2-seed0" != names[1]
    assert names[3] == "cifar10-lt-imbalance100-seed0"


@pytest.mark.parametrize(
    "arrays",
    [
        {"train_images.npy": np.zeros((5, 4, 4, 3), np.float32)},
        {"train_images.npy": np.zeros((5, 4, 4), np.uint8)},
        {"train_labels.npy": np.zeros(5, np.int64)},
        {"test_labels.npy": np.full(500, 10)},
        {"test_labels.npy": np.zeros(500, np.int32)},
        {"train_labels.npy": np.array([None] * 500)},
    ],
)
def test_arrays_that_are_no_labelled_images_are_named(tmp_path, digits, arrays):
    folder = of_digits(tmp_path / "odd", digits, arrays=arrays)
    split = next(iter(arrays)).split("_")[0]
    with pytest.raises(RuntimeError, match=rf"{split}_(images|labels).npy (holds|is not|can't be read)"):
        data.load(str(folder))


@pytest.mark.parametrize("variable", ["LTNOTES_HOME", "LTNOTES_DATA"])
def test_a_tilde_is_the_home_folder(monkeypatch, variable):
    monkeypatch.setenv(variable, "~/notes")
    where = data.home() if variable == "LTNOTES_HOME" else data.data_root()
    assert where == Path.home() / "notes"


def test_real_cifar_has_the_counts_of_the_literature(cifar_root):
    cifar = data.load("cifar10-lt", imbalance=100, root=cifar_root)
    assert cifar.counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert cifar.test.labels.bincount().tolist() == [1000] * 10
    assert cifar.class_names[:2] == ("airplane", "automobile")
    # The published constants are those of the whole training set, of which this is a part.
    scaled = cifar.train.images.double() / 255
    assert scaled.mean((0, 1, 2)).tolist() == pytest.approx(cifar.mean, abs=0.05)


@pytest.mark.parametrize(("options", "name"), [({"imbalance": 0.5}, "imbalance"), ({"seed": -1}, "seed")])
@pytest.mark.parametrize("dataset", ["digits-lt", "cifar10-lt"])
def test_a_bad_ratio_or_seed_is_said_before_the_data_is_looked_for(dataset, options, name):
    with pytest.raises(ValueError, match=rf"^{name}: got"):
        data.load(dataset, **options)

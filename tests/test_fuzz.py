"""Bytes changed at random in every kind of file that is read: the right content, or one line that names the file."""

import io
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep import sources
from ltnotes import data
from ltnotes.files import DamagedFileError, read_json, read_tensors, write_json
from ltnotes.prepared import write_prepared
from tests.test_damaged_files import DAMAGES, begun, make, original  # noqa: F401

bounded = settings(
    max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (32, 32, 3), np.uint8)


def encoded(kind, mode="RGB"):
    stream = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(stream, kind)
    return stream.getvalue()


IMAGES = [encoded("png"), encoded("jpeg"), encoded("webp"), encoded("bmp"), encoded("png", "P"), encoded("png", "LA")]


@st.composite
def changed(draw, contents):
    """One of the contents, with some bytes replaced, and perhaps without its end."""
    content = bytearray(draw(st.sampled_from(contents)))
    for place, byte in draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8)):
        content[int(place * len(content))] = byte
    kept = draw(st.one_of(st.just(1.0), st.floats(0, 1)))
    return bytes(content[: int(kept * len(content))])


def one_line(error, path):
    return str(error).count("\n") == 0 and str(path) in str(error)


@seed(0)
@settings(bounded, max_examples=2000)
@given(changed(IMAGES))
def test_an_image_is_read_or_named(content):
    try:
        pixels = sources._decode(content, "zip: a.png", 32)
    except sources.PrepareError as error:
        assert one_line(error, "zip: a.png")
    else:
        assert pixels.dtype == np.uint8 and pixels.shape == (32, 32, 3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "prepared"
    labels = np.arange(6) % 2
    arrays = {f"{s}_images.npy": PIXELS[None].repeat(6, 0) for s in ("train", "test")}
    arrays |= {f"{s}_labels.npy": labels for s in ("train", "test")}
    write_prepared(
        folder,
        arrays,
        {"name": "two", "imbalance": 1.0, "seed": 0, "class_names": ["a", "b"], "mean": [0.5] * 3, "std": [0.2] * 3}
        | {"pad": 1, "flip": True, "fingerprint": "f"},
    )
    return folder


@pytest.mark.parametrize("name", ["manifest.json", "train_images.npy", "test_labels.npy"])
def test_a_prepared_folder_is_read_or_its_file_named(prepared, tmp_path, name):
    whole = data.load(str(prepared))
    folder = shutil.copytree(prepared, tmp_path / "copy")

    @seed(0)
    @bounded
    @given(changed([(prepared / name).read_bytes()]))
    def check(content):
        (folder / name).write_bytes(content)
        try:
            loaded = data.load(str(folder))
        except DamagedFileError as error:
            assert one_line(error, folder / name)
        except ValueError as error:  # no manifest at all is no prepared folder
            assert not content and "dataset: got" in str(error)
        else:
            assert loaded.train.images.equal(whole.train.images) and loaded.class_names == whole.class_names

    check()


def test_a_sealed_record_is_read_or_named(tmp_path):
    record = {"seed": 3, "metrics": {"accuracy": 0.125, "groups": [None, 1.5]}, "name": "größte"}
    path = tmp_path / "run.json"
    write_json(record, path)
    written = path.read_bytes()
    assert read_json(path, "") == record

    @seed(0)
    @settings(bounded, max_examples=500)
    @given(changed([written]))
    def check(content):
        path.write_bytes(content)
        try:
            assert read_json(path, "do that") == record
        except DamagedFileError as error:
            assert one_line(error, path) and str(error).endswith("do that")

    check()


def test_a_state_is_read_or_named(begun, tmp_path):  # noqa: F811
    path = tmp_path / "unfinished.pt"

    @seed(0)
    @bounded
    @given(changed([begun[0].read_bytes()]))
    def check(content):
        path.write_bytes(content)
        try:
            read_tensors(path, "begin anew")
        except DamagedFileError as error:
            assert one_line(error, path) and str(error).endswith("begin anew")

    check()

"""Preparing long-tailed sets: from a small tree of class folders, and from the real archive where it is found."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from data_prep import prepare as writer
from data_prep import sources
from data_prep.__main__ import main
from ltnotes import data
from ltnotes.prepared import file_hash

REPOSITORY = Path(__file__).parents[2]
CLASSES = [f"class{j}" for j in range(10)]
PER_CLASS, TEST_PER_CLASS = 20, 2
NAME = "cifar10-lt-imbalance10-seed0"


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """A folder of ten class folders with random 32x32 images."""
    folder, rng = tmp_path_factory.mktemp("source") / "tree", np.random.default_rng(0)
    for split, per_class in (("train", PER_CLASS), ("test", TEST_PER_CLASS)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                (folder / split / name / f"{i:03}.png").write_bytes(png(pixels))
    return folder


@pytest.fixture
def tree(original, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "tree"))


def zipped(folder, path, prefix="", compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def prepare(source, out, *options, imbalance="10"):
    return main(["cifar10", "--source", str(source), "--out", str(out), "--imbalance", imbalance, *options])


def content(folder):
    """Every file below a folder, hidden ones too, with its bytes and the time of its last change."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def arrays(folder):
    return {path.name: np.load(path) for path in sorted(folder.glob("*.npy"))}


# --- what is written ---


def test_the_written_set_is_the_chosen_images(original, tmp_path):
    assert prepare(original, tmp_path) == 0
    assert sorted(content(tmp_path)) == [
        f"{NAME}/{name}"
        for name in ("manifest.json", "test_images.npy", "test_labels.npy", "train_images.npy", "train_labels.npy")
    ]
    loaded = data.load("cifar10-lt", imbalance=10, root=tmp_path)
    assert loaded.counts == [int(20 * 0.1 ** (j / 9)) for j in range(10)]
    assert loaded.class_names == tuple(CLASSES)
    assert loaded.test.labels.bincount().tolist() == [2] * 10
    assert (loaded.pad, loaded.flip) == (4, True)
    for image, label in zip(loaded.train.images.numpy(), loaded.train.labels.tolist(), strict=True):
        folder = original / "train" / CLASSES[label]
        assert any(np.array_equal(image, np.asarray(Image.open(path))) for path in folder.iterdir())
    assert len({image.tobytes() for image in loaded.train.images.numpy()}) == sum(loaded.counts)


def test_arrays_can_be_memory_mapped(original, tmp_path):
    prepare(original, tmp_path)
    images = np.load(tmp_path / NAME / "train_images.npy", mmap_mode="r")
    assert isinstance(images, np.memmap)
    assert images.dtype == np.uint8


def test_the_manifest_tells_where_the_set_comes_from(original, tmp_path):
    prepare(original, tmp_path)
    manifest = json.loads((tmp_path / NAME / "manifest.json").read_text())
    assert (manifest["imbalance"], manifest["seed"], manifest["validation_per_class"]) == (10.0, 0, 0)
    assert manifest["counts"] == data.load("cifar10-lt", imbalance=10, root=tmp_path).counts
    assert manifest["source"]["kind"] == "folder"
    for name, listed in manifest["files"].items():
        assert listed["sha256"] == file_hash(tmp_path / NAME / name)


@pytest.mark.parametrize("prefix", ["", "cifar10/", "a/b/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_gives_what_its_folder_gives(original, tmp_path, prefix, compression):
    archive = zipped(original, tmp_path / "images.zip", prefix, compression)
    prepare(original, tmp_path / "one")
    prepare(archive, tmp_path / "other")
    one, other = arrays(tmp_path / "one" / NAME), arrays(tmp_path / "other" / NAME)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    fingerprints = {data.load(str(tmp_path / out / NAME)).fingerprint for out in ("one", "other")}
    assert len(fingerprints) == 1


def test_other_files_in_the_source_do_not_matter(tree, tmp_path):
    prepare(tree, tmp_path / "one")
    (tree / "README.txt").write_text("notes")
    (tree / "train" / CLASSES[0] / "Thumbs.db").write_bytes(b"junk")
    hidden = tree / "__MACOSX" / "train" / CLASSES[0]
    hidden.mkdir(parents=True)
    (hidden / "._000.png").write_bytes(b"what macOS adds to a zip")
    assert prepare(tree, tmp_path / "other") == 0
    assert {k: v[0] for k, v in content(tmp_path / "one").items()} == {
        k: v[0] for k, v in content(tmp_path / "other").items()
    }


def test_running_it_twice_changes_nothing(original, tmp_path, capsys):
    prepare(original, tmp_path)
    before = content(tmp_path)
    assert prepare(original, tmp_path) == 0
    assert content(tmp_path) == before
    assert f"already prepared: {tmp_path / NAME}" in capsys.readouterr().out


def test_a_damaged_set_is_made_again(original, tmp_path, capsys):
    prepare(original, tmp_path)
    whole = arrays(tmp_path / NAME)
    (tmp_path / NAME / "train_images.npy").write_bytes(b"half")
    assert prepare(original, tmp_path) == 0
    assert "already" not in capsys.readouterr().out.splitlines()[-1]
    assert all(np.array_equal(whole[name], array) for name, array in arrays(tmp_path / NAME).items())
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_another_source_replaces_the_set(tree, tmp_path):
    prepare(tree, tmp_path / "out")
    first = data.load("cifar10-lt", imbalance=10, root=tmp_path / "out")
    for path in (tree / "train" / CLASSES[0]).iterdir():
        path.write_bytes(png(np.zeros((32, 32, 3), np.uint8)))
    prepare(tree, tmp_path / "out")
    assert data.load("cifar10-lt", imbalance=10, root=tmp_path / "out").fingerprint != first.fingerprint
    assert [path.name for path in (tmp_path / "out").iterdir()] == [NAME]


def test_several_ratios_lie_beside_each_other(original, tmp_path):
    arguments = [
        "cifar10",
        "--source",
        str(original),
        "--out",
        str(tmp_path),
        "--seed",
        "3",
        "--imbalance",
        "10",
        "2.5",
    ]
    assert main(arguments) == 0
    names = ["cifar10-lt-imbalance10-seed3", "cifar10-lt-imbalance2.5-seed3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_validation_images_are_those_that_load_would_hold_out(original, tmp_path):
    prepare(original, tmp_path)
    prepare(original, tmp_path, "--validation", "1")
    reserved = data.load(str(tmp_path / f"{NAME}-validation1"))
    held_out = data.load("cifar10-lt", imbalance=10, root=tmp_path, validation=1)
    assert reserved.validation.labels.tolist() == list(range(10))
    assert reserved.validation.images.equal(held_out.validation.images)
    assert reserved.train.images.equal(held_out.train.images)
    assert reserved.counts == held_out.counts


# --- what is refused ---


def refused(capsys, source, out, *options, **changes):
    """The one line that a refusal prints, after checking that nothing was left behind."""
    before = content(out) if out.is_dir() else {}
    assert prepare(source, out, *options, **changes) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert (content(out) if out.is_dir() else {}) == before
    return said.err


def drop_class(tree):
    shutil.rmtree(tree / "train" / CLASSES[3])


def drop_test_class(tree):
    shutil.rmtree(tree / "test" / CLASSES[3])


def empty_class(tree):
    for path in (tree / "train" / CLASSES[3]).iterdir():
        path.unlink()


def drop_class_everywhere(tree):
    drop_class(tree)
    drop_test_class(tree)


def enlarge(tree):
    (tree / "train" / CLASSES[3] / "007.png").write_bytes(png(np.zeros((33, 32, 3), np.uint8)))


def truncate_image(tree):
    path = tree / "train" / CLASSES[3] / "007.png"
    path.write_bytes(path.read_bytes()[:200])


def no_image(tree):
    (tree / "train" / CLASSES[3] / "007.png").write_text("no image")


def everything(tree):
    shutil.rmtree(tree)
    tree.mkdir()


DAMAGES = {
    drop_class: "class folder train/class3 is missing or holds no images",
    empty_class: "class folder train/class3 is missing or holds no images",
    drop_test_class: "class folder test/class3 is missing or holds no images",
    drop_class_everywhere: "found 9 class folders in train/ and test/, allowed are 10",
    enlarge: "train/class3/007.png is 32x33 pixels, allowed are 32x32",
    truncate_image: "train/class3/007.png is no readable image",
    no_image: "train/class3/007.png is no readable image",
    everything: "found 0 class folders in train/ and test/, allowed are 10",
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(("damage", "message"), DAMAGES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_source_is_named(tree, tmp_path, capsys, kind, damage, message):
    damage(tree)
    source = tree if kind == "folder" else zipped(tree, tmp_path / "images.zip")
    said = refused(capsys, source, tmp_path / "out")
    assert str(source) in said
    assert message in said


def twice_the_tree(tree):
    shutil.copytree(tree, tree / "copy")


def bomb(tree):
    # a header that claims 60,000 x 60,000 pixels
    image = bytearray((tree / "train" / CLASSES[3] / "007.png").read_bytes())
    image[16:24] = (60_000).to_bytes(4, "big") * 2
    image[29:33] = zlib.crc32(image[12:29]).to_bytes(4, "big")
    (tree / "train" / CLASSES[3] / "007.png").write_bytes(image)


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    ("damage", "message"), [(twice_the_tree, "train/ and test/ lie in ./ and in copy/"), (bomb, "007.png is")]
)
def test_a_hostile_source_is_named(tree, tmp_path, capsys, kind, damage, message):
    damage(tree)
    source = tree if kind == "folder" else zipped(tree, tmp_path / "images.zip")
    assert message in refused(capsys, source, tmp_path / "out")


@pytest.mark.parametrize("spelling", ["./{}", "train//{}"])
def test_a_zip_that_spells_one_name_in_two_ways_is_refused(original, tmp_path, capsys, spelling):
    archive = zipped(original, tmp_path / "images.zip")
    with zipfile.ZipFile(archive, "a") as opened:
        name = next(entry.filename for entry in opened.infolist() if entry.filename.startswith("train/"))
        opened.writestr(spelling.format(name.removeprefix("train/") if "//" in spelling else name), b"again")
    assert f"{name} is there 2 times, allowed is once" in refused(capsys, archive, tmp_path / "out")


def test_a_zip_that_holds_a_name_twice_is_refused(original, tmp_path, capsys):
    archive = zipped(original, tmp_path / "images.zip")
    with zipfile.ZipFile(archive, "a") as opened, pytest.warns(UserWarning, match="Duplicate name"):
        name = next(entry.filename for entry in opened.infolist() if entry.filename.endswith("007.png"))
        opened.writestr(name, b"again")
    assert f"{name} is there 2 times, allowed is once" in refused(capsys, archive, tmp_path / "out")


def test_a_zip_whose_member_would_fill_the_memory_is_refused(original, tmp_path, capsys):
    archive = zipped(original, tmp_path / "images.zip")
    with zipfile.ZipFile(archive, "a", compression=zipfile.ZIP_DEFLATED) as opened:
        opened.writestr(f"train/{CLASSES[0]}/zero.png", bytes(65 << 20))
    assert "zero.png unpacks to 65 MiB, allowed are 64" in refused(capsys, archive, tmp_path / "out")


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_images_keep_their_shades(tree, tmp_path, bits):
    shades = np.arange(0, 256, dtype=np.uint16).repeat(4).reshape(32, 32)
    stored = Image.fromarray(shades.astype(np.uint8) if bits == 8 else shades * 257)
    for path in (tree / "test" / CLASSES[0]).iterdir():
        stored.save(path)
    assert prepare(tree, tmp_path) == 0
    loaded = data.load("cifar10-lt", imbalance=10, root=tmp_path).test
    assert (loaded.images[loaded.labels == 0].numpy() == shades[..., None]).all()


@pytest.mark.parametrize("source", ["folder", "zip"])
def test_a_file_that_may_not_be_read_is_named(original, tmp_path, capsys, monkeypatch, source):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    path = original if source == "folder" else zipped(original, tmp_path / "images.zip")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(zipfile.ZipFile, "read", refuse)
    assert "class0/000.png: [Errno 13] Permission denied" in refused(capsys, path, tmp_path / "out")


def test_an_interruption_is_one_line(original, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "_draw", interrupt)
    assert prepare(original, tmp_path / "out") == 130
    assert capsys.readouterr().err == "interrupted; nothing half-written is left\n"


def test_a_missing_archive_is_named(tmp_path, capsys):
    assert f"{tmp_path}/no.zip does not exist" in refused(capsys, tmp_path / "no.zip", tmp_path / "out")


def cut(archive):
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])


def scramble_member(archive):
    with zipfile.ZipFile(archive) as opened:
        member = opened.infolist()[50]
    content = bytearray(archive.read_bytes())
    middle = member.header_offset + 30 + len(member.filename) + member.compress_size // 2
    content[middle : middle + 64] = bytes(255 - b for b in content[middle : middle + 64])
    archive.write_bytes(content)


def scramble_start(archive):
    """Where a deflated stream says how it is coded."""
    with zipfile.ZipFile(archive) as opened:
        member = opened.infolist()[50]
    content = bytearray(archive.read_bytes())
    start = member.header_offset + 30 + len(member.filename)
    content[start : start + 4] = b"\xff" * 4
    archive.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, scramble_member, scramble_start, lambda archive: archive.write_text("no zip")])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_corrupt_archive_is_named(original, tmp_path, capsys, damage, compression):
    archive = zipped(original, tmp_path / "images.zip", compression=compression)
    damage(archive)
    assert f"source {archive} is no readable zip" in refused(capsys, archive, tmp_path / "out")


@pytest.mark.parametrize("imbalance", ["0.5", "0", "-3", "nan", "inf", "21"])
def test_a_ratio_that_gives_no_long_tail_is_refused(original, tmp_path, capsys, imbalance):
    assert "error: imbalance: got" in refused(capsys, original, tmp_path / "out", imbalance=imbalance)


def test_a_ratio_that_needs_more_images_than_there_are_is_refused(tree, tmp_path, capsys):
    for j, name in enumerate(CLASSES):
        for path in sorted((tree / "train" / name).iterdir())[int(20 * 0.1 ** (j / 9)) :]:
            path.unlink()
    assert prepare(tree, tmp_path / "out") == 0
    capsys.readouterr()
    said = refused(capsys, tree, tmp_path / "out", imbalance="5")
    assert "imbalance: class 1 needs 16 images and the source holds 15" in said


def test_a_hold_out_that_empties_a_class_is_refused(original, tmp_path, capsys):
    assert "error: validation: got 2 images per class" in refused(
        capsys, original, tmp_path / "out", "--validation", "2"
    )


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["mnist"], "invalid choice: 'mnist'"),
        (["cifar10", "--seed", "-1"], "--seed: got -1"),
        (["cifar10", "--validation", "-1"], "--validation: got -1"),
        (["cifar10", "--imbalance", "many"], "invalid float value: 'many'"),
        (["cifar10", "--ratio", "10"], "unrecognized arguments: --ratio"),
        ([], "required: dataset"),
    ],
)
def test_bad_arguments_exit_with_2(capsys, arguments, word):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert word in capsys.readouterr().err


# --- where it can't be written ---


def test_a_target_below_a_file_is_refused(original, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    said = refused(capsys, original, tmp_path / "file" / "out")
    assert f"can't write {tmp_path}/file/out/{NAME}: Not a directory" in said
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("failing", ["train_images.npy", "test_labels.npy"])
def test_a_full_disk_leaves_things_as_they_were(original, tree, tmp_path, capsys, monkeypatch, existing, failing):
    out = tmp_path / "out"
    if existing:  # made from another source, so that it is to be replaced
        (tree / "train" / CLASSES[0] / "extra.png").write_bytes(png(np.zeros((32, 32, 3), np.uint8)))
        prepare(tree, out)
        capsys.readouterr()
    save = np.save

    def fail(path, array):
        if path.name == failing:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, array)

    monkeypatch.setattr(np, "save", fail)
    assert f"can't write {out / NAME}: the disk is full (No space left on device)" in refused(capsys, original, out)


LIMITED = """
import resource, sys
from data_prep.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(main(sys.argv[1:]))
"""


def test_a_disk_that_fills_while_writing_leaves_nothing(original, tmp_path):
    arguments = ["cifar10", "--source", original, "--out", tmp_path, "--imbalance", "10"]
    command = [sys.executable, "-c", LIMITED, *map(str, arguments)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: can't write {tmp_path / NAME}")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
import numpy as np
from data_prep.__main__ import main
save = np.save
def killed(path, array):
    save(path, array)
    os.kill(os.getpid(), signal.SIGKILL)
np.save = killed
main(sys.argv[1:])
"""


def test_killed_while_writing_nothing_half_written_has_the_final_name(original, tmp_path):
    arguments = ["cifar10", "--source", original, "--out", tmp_path, "--imbalance", "10"]
    command = [sys.executable, "-c", KILLED, *map(str, arguments)]
    assert subprocess.run(command, cwd=REPOSITORY).returncode == -signal.SIGKILL
    assert not (tmp_path / NAME).exists()
    assert prepare(original, tmp_path) == 0
    assert data.load("cifar10-lt", imbalance=10, root=tmp_path).num_classes == 10


def test_what_a_killed_preparation_left_is_removed_and_that_of_a_living_one_is_not(original, tmp_path):
    arguments = ["cifar10", "--source", original, "--out", tmp_path, "--imbalance", "10"]
    subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], cwd=REPOSITORY)
    (left,) = tmp_path.iterdir()
    living, users, alike = (tmp_path / f"{name}.scratch" for name in (f".{NAME}-x", ".mine", f".{NAME}-y"))
    for folder in (living, users, alike):
        folder.mkdir()
    for folder in (users, alike):
        (folder / "thesis.tex").write_text("mine")
    with FileLock(living / ".lock"):
        for scratch in (left, living, users, alike):
            os.utime(scratch, (0, 0))
        assert prepare(original, tmp_path) == 0
    assert sorted(tmp_path.iterdir()) == sorted([living, users, alike, tmp_path / NAME])
    os.utime(living, (0, 0))
    assert prepare(original, tmp_path) == 0  # nothing is to be written, and yet it is a visit
    assert sorted(tmp_path.iterdir()) == sorted([users, alike, tmp_path / NAME])


@pytest.mark.parametrize("name", ["notes.txt", "train_images.npy.bak", "holiday"])
def test_files_of_the_users_own_are_never_deleted(original, tmp_path, capsys, name):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / name).write_text("mine")
    assert f"{tmp_path / NAME} holds '{name}', which no preparation wrote" in refused(capsys, original, tmp_path)
    assert (tmp_path / NAME / name).read_text() == "mine"


@pytest.mark.parametrize("content", ['{"mine": 1}', "[1]", "3"])
def test_a_manifest_of_the_users_own_is_kept(original, tmp_path, capsys, content):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "manifest.json").write_text(content)
    assert "holds 'manifest.json', which no preparation wrote" in refused(capsys, original, tmp_path)
    assert (tmp_path / NAME / "manifest.json").read_text() == content


def test_a_folder_in_the_place_of_an_array_is_kept(original, tmp_path, capsys):
    (tmp_path / NAME / "train_images.npy").mkdir(parents=True)
    assert "holds 'train_images.npy', which no preparation wrote" in refused(capsys, original, tmp_path)


def test_a_file_in_the_place_of_the_folder_is_kept(original, tmp_path, capsys):
    (tmp_path / NAME).write_text("mine")
    assert f"{tmp_path / NAME} is a file; move it away" in refused(capsys, original, tmp_path)
    assert (tmp_path / NAME).read_text() == "mine"


def test_the_command_line_itself(original, tmp_path):
    command = [sys.executable, "-m", "data_prep", "cifar10", "--source", str(original), "--imbalance", "10"]
    environment = {**os.environ, "LTNOTES_DATA": str(tmp_path)}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"prepared: {tmp_path / NAME}\n"


# --- torchvision's download ---


def test_without_a_network_the_message_names_the_way_out(tmp_path, monkeypatch, capsys):
    from torchvision import datasets

    def fail(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(datasets, "CIFAR10", fail)
    assert main(["cifar10", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "CIFAR-10 could not be downloaded (no network)" in said
    assert "--source" in said
    assert list(tmp_path.iterdir()) == []


class FakeCifar:
    """What torchvision's CIFAR10 offers, without a download."""

    filename, tgz_md5 = "cifar-10-python.tar.gz", "abc"
    classes = CLASSES

    def __init__(self, root, train, download):
        per_class = PER_CLASS if train else TEST_PER_CLASS
        self.targets = [c for c in range(10) for _ in range(per_class)]
        self.data = np.random.default_rng(train).integers(0, 256, (len(self.targets), 32, 32, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.targets)


def test_torchvisions_cifar_is_a_source(tmp_path, monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets, "CIFAR10", FakeCifar)
    assert main(["cifar10", "--out", str(tmp_path), "--imbalance", "10"]) == 0
    loaded = data.load("cifar10-lt", imbalance=10, root=tmp_path)
    train = FakeCifar(None, True, True)
    expected = data.choose_long_tail(np.array(train.targets), loaded.counts, seed=0)
    assert np.array_equal(loaded.train.images.numpy(), train.data[expected])
    assert np.array_equal(loaded.test.images.numpy(), FakeCifar(None, False, True).data)


# --- the real archive ---


@pytest.fixture(scope="module")
def real_pool(cifar10_zip):
    return sources.read_class_folders(cifar10_zip, 10, 32)


def request(imbalance):
    return writer.Request("cifar10-lt", imbalance, 0, 0, writer.CIFAR10_STATISTICS)


@pytest.mark.parametrize(("imbalance", "total"), [(10, 20431), (20, 17023), (50, 13996), (100, 12406), (200, 11203)])
def test_real_totals_are_those_of_the_literature(real_pool, imbalance, total):
    chosen, manifest = writer._draw(real_pool, request(imbalance))
    assert len(chosen["train_labels.npy"]) == sum(manifest["counts"]) == total
    assert len(chosen["test_labels.npy"]) == 10_000


def test_a_ratio_below_what_the_real_archive_holds_is_refused(real_pool, tmp_path):
    with pytest.raises(sources.PrepareError, match=r"imbalance: class 1 needs \d+ images and the source holds 3871"):
        writer.prepare(real_pool, request(5), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_preparing_the_real_set_again_changes_nothing(real_pool, cifar_root):
    before = content(cifar_root)
    folder, written = writer.prepare(real_pool, request(100), cifar_root)
    assert (folder.name, written) == ("cifar10-lt-imbalance100-seed0", False)
    assert content(cifar_root) == before


def test_a_truncated_real_archive_is_refused(cifar10_zip, tmp_path, capsys):
    half = tmp_path / "cifar10.zip"
    with cifar10_zip.open("rb") as file:
        half.write_bytes(file.read(1 << 20))
    assert f"source {half} is no readable zip" in refused(capsys, half, tmp_path / "out")

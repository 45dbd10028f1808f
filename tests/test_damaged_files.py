"""Files of the cache that are not what was written: named in one line, never believed, never in the way for long."""

import errno
import json
import math
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltnotes import runs, training
from ltnotes.files import DamagedFileError, read_tensors, write_json
from ltnotes.recipes import Recipe, Stage

RECIPE = Recipe("toy", "digits-lt", (Stage(steps=12, batch_size=16),), imbalance=100, backbone="resnet8")
OTHER = replace(RECIPE, stages=(Stage(steps=2, batch_size=16),))


def make(out_dir, recipe=RECIPE, seed=0):
    return runs.run(recipe, seed, out_dir=out_dir, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A cache with a finished run."""
    folder = tmp_path_factory.mktemp("cache")
    make(folder)
    return folder


@pytest.fixture
def cache(original, tmp_path):
    return shutil.copytree(original, tmp_path / "cache")


def only(cache, name):
    (path,) = cache.glob(f"toy-*/code-*/{name}")
    return path


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path, share):
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "halved": halve,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no such file"),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "nested": lambda path: path.write_text("[" * 100_000),
    "bytes": lambda path: path.write_bytes(bytes(range(256))),
}


@pytest.mark.parametrize("name", ["checkpoint.pt", "logits.npz", "run.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_named_with_what_to_do(cache, name, damage):
    path = only(cache, name)
    DAMAGES[damage](path)
    with pytest.raises(DamagedFileError, match=rf"^{path} .*; delete the folder to train it anew$") as caught:
        make(cache)
    assert "\n" not in str(caught.value)
    shutil.rmtree(path.parent)
    assert make(cache).metrics == make(cache).metrics


@pytest.mark.parametrize("edit", [{"seed": 1}, {"recipe_hash": "0"}, {"metrics": {}}, {"seconds": 0.0}])
def test_a_record_that_was_edited_is_not_believed(cache, edit):
    path = only(cache, "run.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with pytest.raises(DamagedFileError, match=r"run.json was changed after it was written; delete"):
        make(cache)


@pytest.mark.parametrize("lacking", ["recipe_hash", "seed", "metrics", "history", "stages", "data", "seconds"])
def test_a_record_of_other_code_has_to_hold_everything(cache, lacking):
    path = only(cache, "run.json")
    record = json.loads(path.read_text())
    del record["seal"], record[lacking]
    write_json(record, path)
    with pytest.raises(DamagedFileError, match=rf"run.json can't be read \(it lacks '{lacking}'\); delete"):
        make(cache)


@pytest.mark.parametrize(("recipe", "seed"), [(OTHER, 0), (RECIPE, 1)])
def test_another_runs_record_is_not_taken(cache, tmp_path, recipe, seed):
    other = make(tmp_path / "other", recipe, seed)
    for name in ("checkpoint.pt", "logits.npz", "run.json"):
        shutil.copy(other.checkpoint.with_name(name), only(cache, name))
    with pytest.raises(DamagedFileError, match=r"run.json is the run of another recipe or seed; delete"):
        make(cache)


def test_a_record_without_a_seal_is_not_believed(cache):
    path = only(cache, "run.json")
    record = json.loads(path.read_text())
    del record["seal"]
    path.write_text(json.dumps(record))
    with pytest.raises(DamagedFileError, match=r"run.json has no seal: .*; delete the folder"):
        make(cache)


def test_a_run_of_older_code_without_a_seal_is_in_nobodys_way(cache, capsys):
    path = only(cache, "run.json")
    older = path.parent.with_name("code-01234567-float32")
    path.parent.rename(older)
    record = json.loads((older / "run.json").read_text())
    del record["seal"]
    (older / "run.json").write_text(json.dumps(record))
    run = make(cache)
    assert run.checkpoint.parent != older and "was made by other code (code-01234567-float32" in capsys.readouterr().err
    assert (older / "run.json").exists() and make(cache).checkpoint == run.checkpoint


@pytest.mark.parametrize("name", ["checkpoint.pt", "logits.npz"])
def test_a_file_of_another_run_is_not_taken(cache, tmp_path, name):
    shutil.copy(make(tmp_path / "other", RECIPE, 1).checkpoint.with_name(name), only(cache, name))
    with pytest.raises(DamagedFileError, match=rf"{name} was truncated, altered or exchanged; delete the folder"):
        make(cache)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
def test_a_flipped_bit_in_weights_is_noticed(cache, share):
    path = only(cache, "checkpoint.pt")
    flip_a_bit(path, share)
    with pytest.raises(DamagedFileError, match=r"checkpoint.pt was truncated, altered or exchanged; delete"):
        make(cache)
    with pytest.raises(DamagedFileError, match=r"checkpoint.pt (was altered|can't be read) .*; again$"):
        read_tensors(path, "again")


# --- states of unfinished trainings ---


def state(content):
    return lambda path: torch.save(torch.load(path, weights_only=True) | content, path)


STATES = {
    **DAMAGES,
    "of another seed": lambda path: state({"of": [*torch.load(path)["of"][:2], 5]})(path),
    "without an owner": state({"of": None}),
    "beyond the end": state({"epoch": 99}),
    "before the first epoch": state({"epoch": 0}),
    "no epoch": state({"epoch": "x"}),
    "no weights": state({"model": {}}),
    "odd weights": state({"model": {"weight": torch.zeros(3)}}),
    "no momentum": state({"optimizer": {}}),
    "no history": state({"history": 3}),
    "a history of another length": state({"epoch": 2}),
    "no time": state({"seconds": math.nan}),
    "a best epoch that none asked for": state({"best": {"accuracy": 1.0}}),
    "momentum of nothing": lambda path: state({"optimizer": torch.load(path)["optimizer"] | {"state": {}}})(path),
    **{f"a bit flipped at {share:.0%}": lambda path, s=share: flip_a_bit(path, s) for share in (0.2, 0.4, 0.6, 0.8)},
    "a list": lambda path: torch.save([1, 2], path),
}
SHORT = replace(RECIPE, name="short", stages=(Stage(epochs=3, batch_size=64),))


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A state after the first of three epochs, and the weights that the whole training ends with."""
    folder, patch = tmp_path_factory.mktemp("begun"), pytest.MonkeyPatch()
    kept = folder / "unfinished.pt"
    write = training.save_atomically

    def keep_the_first(content, path):
        write(content, path)
        if not kept.exists() and "epoch" in content:
            shutil.copy(path, kept)

    patch.setattr(training, "save_atomically", keep_the_first)
    patch.setattr(training, "CHECKPOINT_SHARE", float("inf"))
    run = make(folder / "whole", SHORT)
    patch.undo()
    return kept, run.weights(), run.checkpoint.parent.relative_to(folder / "whole")


def weights_equal(a, b):
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


def test_a_whole_state_is_gone_on_from(begun, tmp_path, capsys):
    kept, whole, place = begun
    (tmp_path / place).mkdir(parents=True)
    shutil.copy(kept, tmp_path / place / "unfinished.pt")
    assert weights_equal(make(tmp_path, SHORT).weights(), whole)
    assert "anew" not in capsys.readouterr().err


@pytest.mark.parametrize("damage", STATES)
def test_a_damaged_state_is_set_aside_and_the_training_begins_anew(begun, tmp_path, capsys, damage):
    kept, whole, place = begun
    path = tmp_path / place / "unfinished.pt"
    path.parent.mkdir(parents=True)
    shutil.copy(kept, path)
    STATES[damage](path)
    run = make(tmp_path, SHORT)
    assert weights_equal(run.weights(), whole)
    assert [record["epoch"] for record in run.history] == [0, 1, 2]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(str(path))
    assert said[0].endswith("; the training begins anew, and the file is kept as unfinished.damaged.pt")
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([*runs.FILES, "unfinished.damaged.pt"])


@pytest.mark.parametrize("where", ["load", "restore"])
def test_a_full_gpu_is_no_damaged_state(begun, tmp_path, monkeypatch, where):
    kept, _, place = begun
    path = tmp_path / place / "unfinished.pt"
    path.parent.mkdir(parents=True)
    shutil.copy(kept, path)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    if where == "load":
        monkeypatch.setattr(torch, "load", full)
    else:
        monkeypatch.setattr(training.LiveStage, "restore_optimizer", full)
    with pytest.raises(torch.OutOfMemoryError):
        make(tmp_path, SHORT)
    assert path.read_bytes() == kept.read_bytes()


# --- disks ---


def test_a_finished_run_is_read_from_a_disk_that_cannot_be_written(cache, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert make(cache).seed == 0
    with pytest.raises(OSError, match="Read-only file system"):
        make(cache, seed=1)


def test_a_state_beside_its_finished_run_is_removed(cache):
    folder = only(cache, "run.json").parent
    for name in ("unfinished.pt", ".unfinished.pt.part"):
        (folder / name).write_bytes(b"of a process that was killed between its last two writings")
    make(cache)
    assert sorted(path.name for path in folder.iterdir()) == sorted(runs.FILES)

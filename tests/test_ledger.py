"""The ledger: its plan, its files, and the work at it."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock, Timeout

from ltnotes import data, ledger, ledger_work, metrics, provenance, recipes, runs
from ltnotes.__main__ import main
from ltnotes.files import DamagedFileError, write_json
from ltnotes.ledger import Entry
from ltnotes.live_stage import NonFiniteLossError

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "book" / "results"
SCHEMA = json.loads((RESULTS / "schema.json").read_text(encoding="utf-8"))
CE, CRT, KPS = (Entry(name, "digits-lt", 20.0, 0) for name in ("ce", "crt", "kps"))
COMMIT = "0123456789" * 4
CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """Entries train at the smallest scale."""
    monkeypatch.setattr(ledger, "SCALE", "tiny")
    for entry in (CE, CRT, KPS):  # what they remember of their recipes is of another scale
        vars(entry).pop("recipe", None)
    yield
    for entry in (CE, CRT, KPS):
        vars(entry).pop("recipe", None)


@pytest.fixture
def trained(monkeypatch):
    """The names of what was trained, in order."""
    names, run = [], runs.run
    monkeypatch.setattr(runs, "run", lambda recipe, *a, **k: (names.append(recipe.name), run(recipe, *a, **k))[1])
    return names


def work(entries, folder):
    return ledger_work.work(entries, folder, "cpu")


# --- the plan ---


def test_the_plan_begins_with_what_the_book_needs_most():
    names = [(entry.name, entry.dataset, entry.seed) for entry in ledger.plan()]
    assert names[:5] == [(name, "cifar10-lt", 0) for name in (*ledger.FIRST[:4], "fbl-batch-as-released")]
    assert len(set(names)) == len(names)
    assert names.index(("ce", "cifar100-lt", 0)) < names.index(("ce", "cifar10-lt", 1))
    assert {"blt", "blt-softmax", "crt", "lws", "tau-norm", "fbl-linear"} <= {name for name, *_ in names}
    assert not any(name.startswith("cam") for name, *_ in names)


def test_on_a_gpu_everything_is_planned_after_what_a_cpu_can_do():
    small, large = ledger.plan(), ledger.plan(gpu=True)
    assert large[: len(small)] == small
    assert {entry.name for entry in large} == set(recipes.names())
    assert {entry.imbalance for entry in large} == {10, 20, 50, 100, 200}


def test_every_entry_has_files_and_a_full_recipe_of_its_own():
    entries = ledger.plan(gpu=True)
    assert len({entry.stem for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.recipe == recipes.get(entry.name, entry.dataset, entry.imbalance, "full")


def test_what_begins_alike_is_of_one_family():
    of = {entry.name: entry.family for entry in ledger.plan(seeds=[0]) if entry.dataset == "cifar10-lt"}
    assert of["ce"] == of["crt"] == of["lws"] == of["tau-norm"] != of["kps"]
    assert of["gcl"] == of["gcl-no-retraining"] == of["gcl-lws"]
    assert Entry("ce", "cifar10-lt", 100.0, 1).family != of["ce"]


def test_a_choice_keeps_the_order_of_the_plan():
    chosen = ledger.plan(["kps", "ce"], [1, 0])
    assert [(e.name, e.dataset, e.seed) for e in chosen][:3] == [
        ("ce", "cifar10-lt", 0),
        ("kps", "cifar10-lt", 0),
        ("ce", "cifar100-lt", 0),
    ]


@pytest.mark.parametrize(("names", "seeds", "said"), [(["cee"], [], "--only: got 'cee'"), ([], [7], "--seed: got 7")])
def test_what_is_not_planned_is_refused(names, seeds, said):
    with pytest.raises(ValueError, match=rf"^{said}, allowed are those of the plan: "):
        ledger.plan(names, seeds)


# --- the work ---


def test_what_is_trained_is_kept_once_with_all_that_is_known_of_it(small, tmp_path, trained, capsys):
    folder = tmp_path / "results"
    assert work([CE, CRT], folder) == 0
    assert work([CE, CRT], folder) == 0
    assert trained == ["ce", "crt"]
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{entry.stem}.{ending}" for entry in (CE, CRT) for ending in ("json", "npz")
    ]
    made, again = ledger.read(folder)
    assert ledger.find("ce", "digits-lt", 20, folder) == [made] and ledger.find("kps", folder=folder) == []
    original = runs.run(CE.recipe)
    assert (made.recipe, made.metrics, made.history) == (original.recipe, original.metrics, original.history)
    assert np.array_equal(made.logits, original.logits)
    assert again.record["stages"][0] == made.record["stages"][0] and len(again.record["stages"]) == 2
    assert made.record["commit"] == provenance.commit() and made.record["data"]["subset_seed"] == 0
    with pytest.raises(FileNotFoundError, match="the ledger keeps no weights"):
        made.model()
    said = capsys.readouterr().out
    assert f"{CE.stem}: begins" in said and f"{CE.stem}: {made.metrics['balanced_accuracy']:.2%}" in said


def test_a_recipe_that_changed_is_trained_anew_and_other_code_is_not(small, tmp_path, trained, monkeypatch):
    work([CE], tmp_path)
    monkeypatch.setattr(runs, "code_hash", lambda recipe: "0" * 8)
    work([CE], tmp_path)
    assert trained == ["ce"]
    record = json.loads(ledger.path(CE, tmp_path).read_text())
    del record["seal"]
    write_json(record | {"recipe_hash": "1" * 64}, ledger.path(CE, tmp_path))
    work([CE], tmp_path)
    assert trained == ["ce", "ce"]
    ledger.path(CE, tmp_path).with_suffix(".npz").unlink()
    work([CE], tmp_path)
    assert trained == ["ce"] * 3


def test_what_another_process_is_at_is_left_to_it(small, tmp_path, trained, capsys):
    with FileLock(ledger_work._folder() / f"{CE.family}.lock"):
        program = (
            "from tests.test_ledger import *; ledger.SCALE = 'tiny'; work([CE, CRT, KPS], Path(sys.argv[1]));"
            " print([run.recipe.name for run in ledger.read(Path(sys.argv[1]))])"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "results")]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert f"{CE.stem}: left to another process\n{CRT.stem}: left to another process\n" in done.stdout
    assert done.stdout.endswith("['kps']\n")


@pytest.mark.parametrize("error", [NonFiniteLossError("the loss is nan"), ValueError("validation: got 99")])
def test_a_training_that_fails_is_said_and_the_next_one_is_trained(small, tmp_path, monkeypatch, capsys, error):
    run = runs.run

    def fail(recipe, *arguments, **options):
        if recipe.name == "ce":
            raise error
        return run(recipe, *arguments, **options)

    monkeypatch.setattr(runs, "run", fail)
    assert work([CE, KPS], tmp_path) == 1
    assert f"failed: {error}" in capsys.readouterr().out
    assert [run.recipe.name for run in ledger.read(tmp_path)] == ["kps"]


def test_data_that_is_not_prepared_is_said_first_and_the_rest_is_trained(small, tmp_path, trained, capsys):
    unprepared = Entry("ce", "cifar100-lt", 50.0, 0)
    assert work([CE, unprepared], tmp_path) == 1
    assert trained == ["ce"]
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("left out: cifar100-lt") and "data_prep cifar100 --imbalance 50" in first


def test_what_another_process_left_undone_is_looked_at_again(small, tmp_path, trained, monkeypatch):
    held = FileLock(ledger_work._folder() / f"{CE.family}.lock", is_singleton=True)
    held.acquire()
    write = ledger_work.write

    def release(*arguments):  # as the other process does when it dies
        write(*arguments)
        held.release()

    lock = ledger_work._lock
    monkeypatch.setattr(ledger_work, "write", release)
    monkeypatch.setattr(ledger_work, "_lock", lambda entry: _Held() if held.is_locked and entry is CE else lock(entry))
    assert work([CE, KPS], tmp_path) == 0
    assert trained == ["kps", "ce"]


class _Held:
    def acquire(self, timeout):
        raise Timeout("held")


def test_a_killed_ledger_goes_on(small, tmp_path, monkeypatch):
    expected = runs.run(CE.recipe, out_dir=tmp_path / "elsewhere").metrics

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ledger_work, "write", killed)
        work([CE], tmp_path / "results")
    assert not os.environ.get("LTNOTES_PROGRESS")
    assert list((tmp_path / "ledger").glob("*.progress")) == []
    monkeypatch.setattr("ltnotes.training.Training.steps", lambda self: pytest.fail("trained again"))
    work([CE], tmp_path / "results")
    assert ledger.read(tmp_path / "results")[0].metrics == expected


# --- where it is ---


def test_the_book_says_of_every_run_by_other_code_what_that_changes():
    said = pd.read_csv(RESULTS / "other-code.csv", keep_default_na=False)
    assert (said != "").all(axis=None)
    listed = set(said[["code", "recipe"]].itertuples(index=False, name=None))
    assert {(run.record["code"], run.recipe.name) for run in ledger.read(RESULTS) if run.by_other_code} <= listed


def test_a_run_by_other_code_is_marked(small, tmp_path):
    folder = tmp_path / "results"
    work([CE], folder)
    status = lambda: next(iter(ledger_work.status([CE], folder, CPU, "float32")))
    assert not ledger.kept_run(ledger.path(CE, folder)).by_other_code and "other code" not in status()
    record = ledger.kept_run(ledger.path(CE, folder)).record
    write_json({**record, "code": "00000000"}, ledger.path(CE, folder))
    assert ledger.kept_run(ledger.path(CE, folder)).by_other_code and status().endswith(", by other code")


def test_status_says_what_is_done_running_and_to_do(small, tmp_path, monkeypatch):
    status = lambda: list(ledger_work.status([CE, CRT, KPS], tmp_path / "results", CPU, "float32"))
    assert [line.split()[0:2] for line in status()[:3]] == [["to", "do"]] * 3
    assert "no speed known yet" in status()[0] and status()[-1] == "0 done, 0 running, 3 to do"
    work([CE], tmp_path / "results")
    with ledger_work._Watch(KPS):
        ledger_work._progress_file(KPS).write_text('{"share": 0.25, "text": "kps, seed 0: epoch 3", "left": "9 min"}')
        monkeypatch.setattr(ledger_work, "_is_held", lambda lock: Path(lock.lock_file).stem == KPS.family)
        lines = status()
    accuracy = ledger.read(tmp_path / "results")[0].metrics["balanced_accuracy"]
    assert lines[0].startswith(f"done    {CE.stem}") and f"{accuracy:.2%}" in lines[0]
    assert re.fullmatch(rf"to do   {CRT.stem} +about \d+ s", lines[1])
    assert lines[2].startswith(f"running {KPS.stem}") and "kps, seed 0: epoch 3, 25%, 9 min left" in lines[2]
    assert re.fullmatch(r"1 done, 1 running, 1 to do; about \d+ s to do", lines[3])


def test_a_lock_that_is_held_is_seen(tmp_path):
    lock = FileLock(tmp_path / "a.lock")
    assert not ledger_work._is_held(lock)
    take = "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", take, tmp_path / "a.lock"], stdin=-1, stdout=-1, text=True) as process:
        process.stdout.readline()
        assert ledger_work._is_held(FileLock(tmp_path / "a.lock"))
        process.communicate("\n")


def test_what_is_there_already_costs_nothing():
    ce, crt = (Entry(name, "cifar10-lt", 100.0, 0) for name in ("ce", "crt"))
    assert ledger_work.work_of(ce) == pytest.approx(200 * 97 * 128)  # 12,406 images are 97 batches
    from_nothing, continued = (ledger_work.work_of(crt, begun) for begun in ((), ledger_work._beginnings(ce)))
    assert from_nothing == pytest.approx(ledger_work.work_of(ce) + continued)
    assert 0 < continued < 0.02 * from_nothing


def test_this_machines_speed_counts_before_that_of_others(small, tmp_path):
    work([CE, KPS], tmp_path)
    kept = dict(zip((CE, KPS), ledger.read(tmp_path), strict=True))
    here = kept[CE].record["environment"]
    other = replace(kept[KPS], record={**kept[KPS].record, "environment": {**here, "device": "abacus"}})
    mine = ledger_work.seconds_per_image({CE: kept[CE], KPS: other}, "resnet8", here)
    assert mine == pytest.approx(kept[CE].seconds / ledger_work.work_of(CE))
    assert ledger_work.seconds_per_image({KPS: other}, "resnet8", here) is not None
    assert ledger_work.seconds_per_image(kept, "resnet50", here) is None


# --- the command ---


@pytest.fixture
def started(monkeypatch):
    """What would have been started, as (command, environment), and the priority before it."""
    commands = []
    monkeypatch.setattr(os, "execve", lambda program, command, environment: commands.append((command, environment)))
    monkeypatch.setattr(os, "setpriority", lambda which, who, value: commands.append(value))
    monkeypatch.delenv(provenance.COMMIT, raising=False)
    return commands


def test_the_command_starts_anew_from_a_copy_of_the_code_at_low_priority(tmp_path, started, capsys):
    for _ in range(2):  # the second finds the copy
        main(["ledger", "--only", "ce", "--out", str(tmp_path / "results")])
    priority, (command, environment), _, again = started
    assert again[0] == command and command[0] == sys.executable and command[2:5] == ["ledger", "--only", "ce"]
    assert command[-2:] == ["--out", str(tmp_path / "results")]
    assert priority >= 15 and environment["LTNOTES_HOME"] == str(tmp_path)
    assert list((tmp_path / "ledger").glob("*.part")) == []
    assert f"code of commit {provenance.commit()}, from {command[1]}" in capsys.readouterr().out
    # What the copy runs is the copy, even from within a checkout, and it knows its commit.
    copy = Path(command[1])
    (copy / "ltnotes" / "ledger_work.py").write_text(
        "import os\n\n\ndef work_from_a_copy(*a):\n    print(__file__, os.environ['LTNOTES_COMMIT'])\n    return 0\n"
    )
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{copy / 'ltnotes' / 'ledger_work.py'} {provenance.commit()}"


def test_what_an_older_copy_began_it_finishes(small, tmp_path, started, monkeypatch):
    older = tmp_path / "ledger" / "code-older"
    older.mkdir(parents=True)
    ledger_work._began(KPS).write_text(str(older))
    ledger_work._began(CE).write_text(str(tmp_path / "is gone"))
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: ran.append(command))
    monkeypatch.setattr(provenance, "commit_of", lambda package: COMMIT)
    provenance.commit.cache_clear()
    ledger_work.work_from_a_copy([CE, KPS], tmp_path / "results", None, "bf16", ["ledger"])
    provenance.commit.cache_clear()
    alone = ["--only", "kps", "--dataset", "digits-lt", "--seed", "0", "--precision=bf16"]
    assert ran == [[sys.executable, str(older), "ledger", *alone, "--out", str(tmp_path / "results")]]
    assert len(started) == 2  # then the new copy


def test_what_began_is_remembered_until_it_is_in_the_ledger(small, tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ledger_work, "write", killed)
        work([CE], tmp_path / "results")
    assert ledger_work._copy_that_began(CE) == REPOSITORY
    work([CE], tmp_path / "results")
    assert ledger_work._copy_that_began(CE) is None


def test_in_the_copy_the_command_works(tmp_path, monkeypatch):
    worked = []
    monkeypatch.setenv(provenance.COMMIT, COMMIT)
    monkeypatch.setattr(ledger_work, "work", lambda *arguments: worked.append(arguments) or 0)
    assert main(["ledger", "--only", "ce", "--seed", "0", "--out", str(tmp_path)]) == 0
    ((entries, folder, *_),) = worked
    assert [entry.dataset for entry in entries] == ["cifar10-lt", "cifar100-lt"] and folder == tmp_path


def test_the_commit_of_a_package_outside_a_repository_is_unknown(tmp_path):
    assert provenance.commit_of(tmp_path) == "unknown"


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--seed", "9"], ["--precision", "half"]])
def test_a_mistake_is_one_clear_line(arguments, capsys):
    assert main(["ledger", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


# --- what the repository holds ---


def records():
    return [pytest.param(path, id=path.stem) for path in sorted(RESULTS.glob("*-seed*.json"))]


def test_a_record_follows_the_schema(small, tmp_path):
    work([CRT], tmp_path)
    record = json.loads(ledger.path(CRT, tmp_path).read_text())
    of_tests = {**SCHEMA, "properties": {**SCHEMA["properties"], "scale": {"const": "tiny"}}}
    jsonschema.validate(record, of_tests)
    for name in SCHEMA["required"]:
        with pytest.raises(jsonschema.ValidationError, match=name):
            jsonschema.validate({key: value for key, value in record.items() if key != name}, of_tests)


def test_records_of_one_data_set_are_of_the_same_images():
    chosen = {}
    for run in ledger.read(RESULTS):
        source = run.record["data"]
        key = run.recipe.dataset, run.recipe.imbalance, source["subset_seed"], run.recipe.validation
        assert chosen.setdefault(key, source["fingerprint"]) == source["fingerprint"], run.checkpoint.name
    assert chosen


def test_a_record_says_what_was_trained_whatever_its_name_means_now(small, tmp_path):
    work([CE], tmp_path)
    path = ledger.path(CE, tmp_path)
    record = json.loads(path.read_text())
    record["recipe"] |= {"name": "a name of old", "backbone": "resnet32"}
    del record["seal"]
    write_json(record, path)
    (found,) = ledger.read(tmp_path)
    assert (found.recipe.name, found.recipe.backbone) == ("a name of old", "resnet32")


@pytest.mark.parametrize("edit", [{"metrics": 3}, {"metrics": {}}, {"seconds": "x"}, {"seed": 9}, {"stages": 3}])
def test_a_record_of_old_that_can_not_be_read_is_named(small, tmp_path, edit):
    work([CE], tmp_path)
    path = ledger.path(CE, tmp_path)
    record = json.loads(path.read_text())
    del record["seal"]  # which older code did not write
    path.write_text(json.dumps(record | edit))
    with pytest.raises(DamagedFileError, match=rf"^{path} .*; take it from the repository again, or delete it$"):
        ledger.read(tmp_path)


@pytest.mark.parametrize("path", records())
def test_a_kept_record_follows_the_schema_and_its_logits_give_its_metrics(path):
    run = ledger.kept_run(path)
    jsonschema.validate(run.record, SCHEMA)
    entry = Entry(run.recipe.name, run.recipe.dataset, run.recipe.imbalance, run.seed)
    assert path.stem == entry.stem
    assert run.recipe.hash == run.record["recipe_hash"], "the recipe is another now: train it anew, or take it out"
    classes = len(run.counts)
    # Both test sets of CIFAR are balanced and in the order of their classes, as they are prepared.
    labels = np.repeat(np.arange(classes), 10_000 // classes)
    probabilities = torch.from_numpy(run.logits).softmax(1).numpy()
    again = metrics.summarize(probabilities, labels, run.counts)
    for name in ("balanced_accuracy", "ece"):
        assert again[name] == pytest.approx(run.metrics[name], abs=0.002)


def test_cifar_s_test_labels_are_as_the_ledger_s_test_assumes(cifar_root):
    assert data.load("cifar10-lt", root=cifar_root).test.labels.equal(torch.arange(10).repeat_interleave(1000))

"""The cache of runs: found, not trained twice, never mixed up, and safe from kills and full disks."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltnotes import data, provenance, recipes, runs, training
from ltnotes.live_stage import NonFiniteLossError
from ltnotes.methods.common import part
from ltnotes.recipes import Recipe, Stage
from tests import toys

pytestmark = pytest.mark.usefixtures("each_precision")
REPOSITORY = Path(__file__).parents[1]
FINISHED = ["checkpoint.pt", "logits.npz", "run.json"]
RECIPE = Recipe("toy", "digits-lt", (Stage(steps=3, batch_size=16),), imbalance=100, backbone="resnet8")


@pytest.fixture
def run(tmp_path):
    """A finished run, its cache in ``tmp_path / "runs"``."""
    return runs.run(RECIPE, out_dir=tmp_path / "runs", device="cpu")


@pytest.fixture
def no_training(monkeypatch):
    """Fail if anything is trained."""

    def fail(self):
        raise AssertionError("trained again")

    def forbid():
        monkeypatch.setattr(training.Training, "steps", fail)

    return forbid


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_a_run_says_all_about_itself(run, tmp_path):
    assert run.counts == data.load("digits-lt", imbalance=100).counts
    assert run.per_class_accuracy == run.metrics["per_class_accuracy"]
    assert len(run.per_class_accuracy) == 10
    assert run.seconds > 0
    assert [sorted(record) for record in run.history] == [["epoch", "learning_rate", "loss", "stage", "train_accuracy"]]
    assert run.record["recipe"]["stages"][0]["steps"] == 3
    assert run.record["environment"]["torch"] == torch.__version__
    assert run.record["code"] == runs.code_hash(RECIPE)
    assert run.record["recipe_hash"] == RECIPE.hash
    code = f"code-{run.record['code']}-{run.record['environment']['precision']}"
    (folder,) = (tmp_path / "runs").glob("toy-*")
    assert files(folder) == [f"{code}/checkpoint.pt", f"{code}/logits.npz", f"{code}/run.json"]
    assert folder.name.startswith("toy-digits-lt-s0-")


def test_the_saved_model_gives_the_saved_metrics(run):
    digits = data.load("digits-lt", imbalance=100)
    probabilities = training.predict(run.model(), digits.test, digits)
    assert runs.training.metrics.summarize(probabilities, digits.test.labels.numpy(), run.counts) == run.metrics
    assert not run.model().training


def test_a_model_whose_last_head_builds_on_the_one_before_it_is_read_back(tmp_path):
    rescaled = Stage(steps=1, batch_size=16, head=part("tests.toys:RescaledHead"), trains="head")
    run = runs.run(replace(RECIPE, stages=(*RECIPE.stages, rescaled)), out_dir=tmp_path, device="cpu")
    saved = torch.load(run.checkpoint, weights_only=True)["model"]
    assert run.model().head.factor.equal(saved["head.factor"])
    assert run.model().head.previous.weight.equal(saved["head.previous.weight"])


def test_a_finished_run_is_read_and_not_trained(run, tmp_path, no_training):
    no_training()
    again = runs.run(RECIPE, out_dir=tmp_path / "runs", device="cpu")
    assert again == run


def test_a_run_under_another_name_is_the_same_run(run, tmp_path, no_training):
    no_training()
    assert runs.run(replace(RECIPE, name="other"), out_dir=tmp_path / "runs").metrics == run.metrics


def test_a_relative_cache_lies_below_home(tmp_path):
    found = runs.run(RECIPE, device="cpu").checkpoint
    assert found.is_relative_to(tmp_path / "runs")


def test_without_resume_it_is_trained_anew(run, tmp_path, no_training):
    again = runs.run(RECIPE, out_dir=tmp_path / "runs", resume=False, device="cpu")
    assert again.metrics == run.metrics
    no_training()
    with pytest.raises(AssertionError, match="trained again"):
        runs.run(RECIPE, out_dir=tmp_path / "runs", resume=False, device="cpu")


def test_the_folder_depends_on_recipe_data_and_seed(tmp_path):
    folders = {
        runs.run_folder(recipe, fingerprint, seed, tmp_path)
        for recipe in (RECIPE, replace(RECIPE, backbone="resnet20"))
        for fingerprint in ("a", "b")
        for seed in (0, 1)
    }
    assert len(folders) == 8


def test_over_seeds_gives_one_run_a_seed(tmp_path):
    made = runs.over_seeds(RECIPE, (0, 1), out_dir=tmp_path, device="cpu")
    assert [run.seed for run in made] == [0, 1]
    assert made[0].metrics != made[1].metrics


def test_seeds_that_train_together_are_those_that_train_alone(tmp_path):
    alone = runs.over_seeds(RECIPE, (2, 0, 1), out_dir=tmp_path / "alone", device="cpu")
    together = runs.over_seeds(RECIPE, (2, 0, 1), out_dir=tmp_path / "together", device="cpu", together=2)
    assert [run.seed for run in together] == [2, 0, 1]
    assert [run.metrics for run in together] == [run.metrics for run in alone]
    assert [run.record["side_by_side"] for run in together] == [1, 2, 2]


def test_of_seeds_that_train_together_the_finished_ones_are_read(run, tmp_path, capsys):
    made = runs.over_seeds(RECIPE, (0, 1, 0), out_dir=tmp_path / "runs", device="cpu", together=3)
    assert made[0] == made[2] == run
    assert made[1].record["side_by_side"] == 1


def test_a_seed_that_diverges_lets_those_beside_it_finish(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(NonFiniteLossError, match="seed 0"):
        toys.explode(patch, seed=0)
        runs.over_seeds(RECIPE, (0, 1), out_dir=tmp_path, device="cpu", together=2)
    assert [Path(name).name for name in files(tmp_path)] == FINISHED


@pytest.mark.parametrize("together", [0, -1])
def test_how_many_train_together_is_at_least_one(together, tmp_path):
    with pytest.raises(ValueError, match=rf"^together: got {together}, allowed is a whole number, at least 1"):
        runs.over_seeds(RECIPE, (0, 1), out_dir=tmp_path / "runs", together=together)
    assert list(tmp_path.iterdir()) == []


# --- the code that made a run ---


@pytest.fixture
def other_code(monkeypatch):
    """From now on this is other code than what made the runs so far."""

    def change():
        monkeypatch.setattr(runs, "code_hash", lambda recipe: "00000000")

    return change


def test_a_run_by_other_code_is_named_and_trained_anew(run, tmp_path, other_code, capsys):
    made_by, precision = run.record["code"], run.record["environment"]["precision"]
    other_code()
    again = runs.run(RECIPE, out_dir=tmp_path / "runs", device="cpu")
    said = capsys.readouterr().err
    assert f"was made by other code (code-{made_by}-{precision}, this is code-00000000): training it anew" in said
    assert again.record["code"] == "00000000"
    assert run.checkpoint.is_file()


def test_a_run_by_other_code_is_taken_where_the_caller_says_so(run, tmp_path, other_code, no_training, capsys):
    other_code()
    no_training()
    assert runs.run(RECIPE, out_dir=tmp_path / "runs", any_code=True, device="cpu").record == run.record
    assert capsys.readouterr().err == ""


MODULE = '''"""Old text."""
import ltnotes.training
from ltnotes.methods.common import Transform

Alias = int
"""What the alias means."""


class Shift(Transform):
    """Shifts."""

    amount = 1
    """How far."""

    def on_images(self, images, labels):
        """Add."""
        return images + self.amount, labels  # shifted
'''
UNCHANGED = [("Old text", "New text"), ("# shifted", "# moved"), ("Shifts.", "Moves."), ("Add.", "Plus.")]
UNCHANGED += [("What the alias means.", "Another name."), ("How far.", "Distance."), ("# shifted", "")]
CHANGED = [("images + self", "images - self"), ("amount = 1", "amount = 2"), ("Alias = int", "Alias = float")]


@pytest.fixture
def hash_of(tmp_path, monkeypatch):
    """The code hash of a recipe that uses a module with the given text."""
    monkeypatch.syspath_prepend(tmp_path)

    def compute(text):
        (tmp_path / "own_parts.py").write_text(text)
        provenance._source.cache_clear()
        stage = replace(RECIPE.stages[0], transform=part("own_parts:Shift"))
        return runs.code_hash(replace(RECIPE, stages=(stage,)))

    yield compute
    sys.modules.pop("own_parts", None)
    provenance._source.cache_clear()


def test_what_else_a_process_has_loaded_is_no_code_of_a_run():
    """A folder of images is read by a module that no training needs."""
    code = "from ltnotes import provenance, recipes; print(provenance.code_hash(recipes.get('ce')))"
    found = {
        subprocess.run([sys.executable, "-c", before + code], capture_output=True, text=True, check=True).stdout
        for before in ("", "import ltnotes.folders, ltnotes.diagnose, ltnotes.features; ")
    }
    assert len(found) == 1


@pytest.mark.parametrize(("old", "new"), UNCHANGED)
def test_comments_and_docstrings_do_not_count_as_code(hash_of, old, new):
    assert old in MODULE
    assert hash_of(MODULE.replace(old, new)) == hash_of(MODULE)


@pytest.mark.parametrize(("old", "new"), CHANGED)
def test_statements_count_as_code(hash_of, old, new):
    assert hash_of(MODULE.replace(old, new)) != hash_of(MODULE)


@pytest.mark.parametrize("module", ["training", "batches", "models", "data", "metrics", "counts", "methods.common"])
def test_the_hash_covers_what_training_runs_through(module, monkeypatch):
    source = provenance._source
    before = runs.code_hash(RECIPE)
    changed = lambda name: (source(name)[0] + " ", source(name)[1]) if name == f"ltnotes.{module}" else source(name)
    monkeypatch.setattr(provenance, "_source", changed)
    assert runs.code_hash(RECIPE) != before


def test_the_hash_leaves_out_what_the_training_does_not_use(monkeypatch):
    covered, source = [], provenance._source
    monkeypatch.setattr(provenance, "_source", lambda name: covered.append(name) or source(name))
    runs.code_hash(RECIPE)
    assert "ltnotes.training" in covered
    assert not {"ltnotes.recipes", "ltnotes.runs", "ltnotes.plots", "ltnotes.reruns"} & set(covered)


# --- what run refuses ---


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (RECIPE, {"seed": -1}, r"^seed: got -1"),
        (RECIPE, {"device": "cuda"}, r"^device: got 'cuda', but torch sees no CUDA"),
        (replace(RECIPE, dataset="mnist"), {}, r"^dataset: got 'mnist'"),
        (replace(RECIPE, imbalance=1000), {}, r"^imbalance: got 1000"),
        (replace(RECIPE, validation=5), {}, r"^validation: got 5"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(recipe, options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        runs.run(recipe, out_dir=tmp_path / "runs", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=rf"can't write the run in {tmp_path}/file/runs/toy.*finished runs are unharmed"):
        runs.run(RECIPE, out_dir=tmp_path / "file" / "runs", device="cpu")
    assert files(tmp_path) == ["file"]


NO_RECORDS = {"": "can't be read", "{": "can't be read", "[]": "can't be read", "{}": "has no seal"}
NO_RECORDS['{"metrics": {}}'] = "has no seal"


@pytest.mark.parametrize("text", NO_RECORDS)
def test_a_damaged_record_is_named(run, tmp_path, text):
    path = run.checkpoint.with_name("run.json")
    path.write_text(text)
    with pytest.raises(RuntimeError, match=rf"{path} {NO_RECORDS[text]}.*; delete the folder to train it anew"):
        runs.run(RECIPE, out_dir=tmp_path / "runs", device="cpu")


# --- several processes, kills, full disks ---

RUN = """
import sys
from tests.test_runs import LONG
from ltnotes import runs, training
training.CHECKPOINT_SHARE = float("inf")  # one after every epoch
run = runs.run(LONG, out_dir=sys.argv[1], device="cpu")
print(run.record["finished"], run.checkpoint)
"""
LONG = replace(
    RECIPE,
    name="long",
    stages=(
        Stage(epochs=2, batch_size=32, transform=part("baselines.Mixup")),
        Stage(epochs=2, batch_size=32, trains="head", head=part("squashing_cosine.CosineClassifier", scale=10.0)),
    ),
)


def start(out_dir, program=RUN):
    # One thread each, so that the two processes of a test finish as fast as one.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", program, str(out_dir)],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(out_dir):
    (record,) = out_dir.glob("long-digits-*/code-*/run.json")
    content = json.loads(record.read_text())
    model = torch.load(record.with_name("checkpoint.pt"), weights_only=True)["model"]
    return content["metrics"], content["history"], model


def epochs_done(out_dir):
    """Of 2 in each stage."""
    done = 0
    for stage in ("long-stage1-*", "long-digits-*"):
        if list(out_dir.glob(f"{stage}/code-*/checkpoint.pt")):
            done += 2
            continue
        for path in out_dir.glob(f"{stage}/code-*/unfinished.pt"):
            with contextlib.suppress(FileNotFoundError):  # it was removed as its stage was finished
                done += len(torch.load(path, weights_only=True)["history"])
    return done


@pytest.fixture(scope="module")
def uninterrupted(each_precision, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("uninterrupted")
    process = start(out_dir)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return outcome(out_dir)


def test_killed_at_random_moments_and_started_again_ends_bit_identical(uninterrupted, tmp_path):
    chance, kills = random.Random(0), 0
    for wanted in (1, 2, 3):  # of 4 epochs: in the first stage, at its end, in the second
        process = start(tmp_path)
        while process.poll() is None and epochs_done(tmp_path) < wanted:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        kills += process.returncode == -signal.SIGKILL
        assert epochs_done(tmp_path) >= wanted
    assert kills >= 2
    process = start(tmp_path)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    metrics, history, model = outcome(tmp_path)
    assert metrics == uninterrupted[0]
    assert history == uninterrupted[1]
    assert model.keys() == uninterrupted[2].keys()
    assert all(model[name].equal(value) for name, value in uninterrupted[2].items())
    assert [files(folder) for folder in tmp_path.glob("*/code-*")] == [FINISHED] * 2


def test_two_processes_that_ask_for_one_run_train_it_once(uninterrupted, tmp_path):
    processes = [start(tmp_path), start(tmp_path)]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert said[0][0] == said[1][0]  # the same time of finishing, the same file
    assert outcome(tmp_path)[0] == uninterrupted[0]


FULL_DISK = """
import resource, sys
from ltnotes import runs
from tests.test_runs import LONG
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    runs.run(LONG, out_dir=sys.argv[1], device="cpu")
except OSError as error:
    print(error)
"""


def test_a_disk_that_fills_while_training_is_named_and_leaves_nothing_half_written(tmp_path):
    process = start(tmp_path, FULL_DISK)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert said.startswith(f"can't write the run in {tmp_path}")
    assert files(tmp_path) == []


def test_a_disk_that_fills_at_the_end_keeps_the_training(tmp_path, monkeypatch, no_training):
    def fail(text, path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device; finished runs"):
        patch.setattr(runs, "write_json", fail)
        runs.run(RECIPE, out_dir=tmp_path, device="cpu")
    assert [Path(name).name for name in files(tmp_path)] == ["checkpoint.pt", "logits.npz", "unfinished.pt"]
    monkeypatch.setattr(training.LiveStage, "run_epoch", lambda *_: pytest.fail("trained again"))
    assert runs.run(RECIPE, out_dir=tmp_path, device="cpu").history
    assert [Path(name).name for name in files(tmp_path)] == FINISHED


def test_editing_a_part_that_has_no_file_of_its_own_changes_the_code_hash(monkeypatch):
    """Such a part is defined in a notebook: its source stands for its file, also within another part's options."""
    from ltnotes.methods.common import Part, part
    from tests import toys

    recipe = recipes.get("ce", "digits-lt", 10, "tiny")
    direct = recipe.with_stages(loss=part("tests.toys:RecordingLoss"))
    nested = recipe.with_stages(
        balancer=Part("balancers.power_balanced", (("gamma", part("tests.toys:RecordingLoss")),))
    )
    monkeypatch.setattr(toys, "__file__", None)
    provenance._source.cache_clear()
    for edited in (direct, nested):
        monkeypatch.setattr(provenance.inspect, "getsource", lambda target: "version 1")
        before = runs.code_hash(edited)
        monkeypatch.setattr(provenance.inspect, "getsource", lambda target: "version 2")
        assert runs.code_hash(edited) != before
    provenance._source.cache_clear()


def test_a_run_without_its_weights_is_not_taken_for_finished(tmp_path):
    recipe = recipes.get("ce", "digits-lt", 10, "tiny", steps=2)
    first = runs.run(recipe, out_dir=tmp_path)
    first.checkpoint.unlink()
    again = runs.run(recipe, out_dir=tmp_path)
    assert again.checkpoint.is_file() and again.metrics == first.metrics

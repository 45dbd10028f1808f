"""A run of several stages is the run of its earlier stages, continued: what is shared, and what is trained."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ltnotes import data, files, inference, progress, recipes, runs, training
from ltnotes.catalogue import CHAPTERS
from ltnotes.live_stage import LiveStage, NonFiniteLossError
from ltnotes.methods.common import part
from ltnotes.recipes import Recipe, Stage
from tests import toys

pytestmark = pytest.mark.usefixtures("each_precision")
REPOSITORY = Path(__file__).parents[1]
FIRST = Stage(steps=2, batch_size=16)
ONE = Recipe("one", "digits-lt", (FIRST,), imbalance=100, backbone="resnet8")
COSINE = part("squashing_cosine.CosineClassifier", scale=10.0)
TWO = replace(ONE, name="two", stages=(FIRST, replace(FIRST, trains="head", head=COSINE)))
THREE = replace(TWO, name="three", stages=(*TWO.stages, replace(FIRST, loss=part("baselines.FocalLoss"))))


@pytest.fixture(autouse=True)
def trained(monkeypatch):
    """What was trained, as (seed, stage), in order."""
    done, steps = [], training.Training.steps

    def record(self):
        done.append((self.seed, self.number))
        return steps(self)

    monkeypatch.setattr(training.Training, "steps", record)
    return done


def run(recipe, out_dir, **options):
    return runs.run(recipe, out_dir=out_dir, device="cpu", **options)


def test_every_stage_is_trained_once_whoever_asks_for_it(tmp_path, trained):
    for recipe in (TWO, ONE, THREE, TWO, replace(TWO, name="under another name")):
        run(recipe, tmp_path)
    assert trained == [(0, 0), (0, 1), (0, 2)]


def test_the_state_after_a_stage_is_a_run_with_all_that_a_run_has(tmp_path, trained):
    whole = run(THREE, tmp_path)
    first, second = (run(THREE.up_to(stage), tmp_path) for stage in (0, 1))
    assert len(trained) == 3
    assert first.record == run(ONE, tmp_path).record
    assert second.history == first.history + second.history[len(first.history) :] and len(second.history) > 1
    assert whole.history[: len(second.history)] == second.history
    assert first.seconds < second.seconds < whole.seconds
    assert whole.seconds == pytest.approx(sum(stage["seconds"] for stage in whole.record["stages"]))
    assert whole.record["stages"][:2] == second.record["stages"]
    assert first.record["recipe"]["name"] == "three-stage1"
    assert type(second.model().head).__name__ == "CosineClassifier"


def test_stages_of_several_seeds_are_trained_side_by_side(tmp_path, trained):
    together = runs.over_seeds(TWO, (1, 0), out_dir=tmp_path / "together", device="cpu", together=2)
    assert sorted(trained) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    alone = runs.over_seeds(TWO, (1, 0), out_dir=tmp_path / "alone", device="cpu")
    assert [one.metrics for one in together] == [one.metrics for one in alone]
    assert [stage["side_by_side"] for stage in together[0].record["stages"]] == [2, 2]


def test_a_seed_that_diverges_in_the_first_stage_lets_the_others_finish_all(tmp_path, monkeypatch, trained):
    with monkeypatch.context() as patch, pytest.raises(NonFiniteLossError, match="seed 0"):
        toys.explode(patch, seed=0)
        runs.over_seeds(TWO, (0, 1), out_dir=tmp_path, device="cpu", together=2)
    trained.clear()
    run(TWO, tmp_path, seed=1)
    assert trained == []


def test_processes_that_begin_alike_under_other_names_train_the_beginning_once(tmp_path):
    program = (
        "import sys; from tests.test_shared_stages import *;"
        " print(runs.run(eval(sys.argv[1]), out_dir=sys.argv[2], device='cpu').record['stages'][0]['finished'])"
    )
    command = [sys.executable, "-c", program]
    processes = [
        subprocess.Popen([*command, name, str(tmp_path)], cwd=REPOSITORY, stdout=-1, text=True)
        for name in ("ONE", "TWO", "THREE")
    ]
    said = {process.communicate(timeout=300)[0] for process in processes}
    assert len(said) == 1
    assert len(list(tmp_path.glob("*/code-*/run.json"))) == 3


def test_without_resume_every_stage_is_trained_anew(tmp_path, trained):
    first = run(TWO, tmp_path)
    assert run(TWO, tmp_path, resume=False).metrics == first.metrics
    assert trained == [(0, 0), (0, 1)] * 2


def test_other_code_of_the_last_stage_trains_the_last_stage_anew(tmp_path, monkeypatch, trained, capsys):
    run(TWO, tmp_path)
    code_hash = runs.code_hash
    monkeypatch.setattr(runs, "code_hash", lambda recipe: "0" * 8 if len(recipe.stages) == 2 else code_hash(recipe))
    again = run(TWO, tmp_path)
    assert trained == [(0, 0), (0, 1), (0, 1)]
    assert "two-digits-lt" in capsys.readouterr().err
    assert [stage["code"] for stage in again.record["stages"]] == [code_hash(ONE), "0" * 8]


def test_a_beginning_that_other_code_made_is_gone_on_from_where_the_caller_says_so(tmp_path, monkeypatch, trained):
    first = run(ONE, tmp_path)
    monkeypatch.setattr(runs, "code_hash", lambda recipe: "0" * 8)
    two = run(TWO, tmp_path, any_code=True)
    assert trained == [(0, 0), (0, 1)]
    assert [stage["code"] for stage in two.record["stages"]] == [first.record["code"], "0" * 8]


def test_a_bad_option_of_the_last_stage_is_said_before_the_first_trains(tmp_path, trained):
    bad = replace(FIRST, loss=part("kps.KPSLoss", n_base=0.5))
    with pytest.raises(ValueError, match=r"^n_base: got"):
        run(replace(TWO, stages=(FIRST, bad)), tmp_path)
    assert trained == []


def test_what_goes_on_from_other_code_is_not_taken_for_this_codes(tmp_path, monkeypatch, trained):
    code_hash = runs.code_hash
    with monkeypatch.context() as patch:
        patch.setattr(runs, "code_hash", lambda recipe: "0" * 8 if len(recipe.stages) == 1 else code_hash(recipe))
        run(ONE, tmp_path)
    two = run(TWO, tmp_path, any_code=True)
    assert [stage["code"] for stage in two.record["stages"]] == ["0" * 8, code_hash(TWO)]
    assert [stage["code"] for stage in run(TWO, tmp_path).record["stages"]] == [code_hash(ONE), code_hash(TWO)]
    assert trained == [(0, 0), (0, 1), (0, 0), (0, 1)]


def test_trained_anew_what_is_finished_stays_until_it_is_replaced(tmp_path, monkeypatch, trained):
    run(TWO, tmp_path)
    with pytest.raises(ValueError, match=r"^n_base: got"):
        run(replace(TWO, stages=(FIRST, replace(FIRST, loss=part("kps.KPSLoss", n_base=0.5)))), tmp_path, resume=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LiveStage, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(TWO, tmp_path, resume=False)
    trained.clear()
    assert run(ONE, tmp_path).weights() and run(TWO, tmp_path).weights()
    assert trained == []


def test_what_the_cache_saved_is_counted_once_for_each_stage(tmp_path, monkeypatch):
    """A chapter adds it to its own time, as the next reader's cache is empty."""
    made = [run(recipe, tmp_path) for recipe in (ONE, TWO, THREE)]
    monkeypatch.setattr(runs, "_counted", set())
    monkeypatch.setattr(progress.TrainingProgress, "cached_seconds", 0.0)
    for recipe in (TWO, ONE, THREE, TWO):
        run(recipe, tmp_path)
    assert progress.TrainingProgress.cached_seconds == pytest.approx(made[2].seconds)


# --- precision ---


@pytest.fixture
def nothing_named(monkeypatch):
    monkeypatch.delenv("LTNOTES_PRECISION")


def test_where_no_precision_is_named_a_run_in_any_will_do(tmp_path, trained, monkeypatch, nothing_named):
    made = run(ONE, tmp_path, precision="bf16")
    assert made.record["environment"]["precision"] == "bfloat16"
    monkeypatch.setattr(runs.devices, "multiplies_bfloat16", lambda device: False)
    assert run(ONE, tmp_path).record == made.record
    assert len(trained) == 1


@pytest.mark.parametrize("by_environment", [False, True])
def test_a_named_precision_is_what_one_gets(tmp_path, trained, monkeypatch, nothing_named, by_environment):
    half = run(ONE, tmp_path, precision="bf16")
    if by_environment:
        monkeypatch.setenv("LTNOTES_PRECISION", "float32")
    plain = run(ONE, tmp_path, precision=None if by_environment else "float32")
    assert plain.record["environment"]["precision"] == "float32"
    assert plain.checkpoint != half.checkpoint and len(trained) == 2
    assert run(ONE, tmp_path, precision="bfloat16").record == half.record
    assert run(ONE, tmp_path, precision="fp32").record == plain.record
    assert len(trained) == 2


def test_a_named_precision_is_that_of_every_stage(tmp_path, trained, monkeypatch, nothing_named):
    monkeypatch.setattr(runs.devices, "multiplies_bfloat16", lambda device: False)
    run(ONE, tmp_path, precision="bf16")
    mixed = run(TWO, tmp_path)
    assert mixed.precisions == ["bfloat16", "float32"]
    plain = run(TWO, tmp_path, precision="float32")
    assert plain.precisions == ["float32", "float32"] and plain.checkpoint != mixed.checkpoint
    assert run(TWO, tmp_path).record == plain.record  # what this machine trains comes first
    assert len(trained) == 4


def test_a_stage_goes_on_from_the_beginning_that_it_had_when_it_was_stopped(tmp_path, monkeypatch, nothing_named):
    """Not from a checkpoint that went on from another one."""
    monkeypatch.setattr(runs.devices, "multiplies_bfloat16", lambda device: False)
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", float("inf"))
    long = replace(TWO, stages=(FIRST, replace(FIRST, steps=40, trains="head")))  # of three epochs
    expected = run(long, tmp_path / "clean", precision="float32")
    run(ONE, tmp_path, precision="bf16")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Training, "_write_checkpoint", stop_after_writing(training.Training._write_checkpoint))
        run(long, tmp_path)
    assert len(list(tmp_path.glob("two-digits*/code-*/unfinished.pt"))) == 1
    found = run(long, tmp_path, precision="float32").weights()
    assert all(found[name].equal(value) for name, value in expected.weights().items())


def stop_after_writing(write):
    def stop(self, epoch, live):
        write(self, epoch, live)
        if self.number == 1:
            raise KeyboardInterrupt

    return stop


# --- logits ---


@pytest.mark.parametrize("loss", [None, part("gcl.GCLLoss")], ids=["plain scores", "cosines"])
def test_a_run_keeps_its_test_logits(tmp_path, loss):
    recipe = ONE if loss is None else ONE.with_stages(loss=loss, head=part("squashing_cosine.CosineClassifier"))
    made = run(recipe, tmp_path)
    digits = data.load("digits-lt", 100)
    assert made.logits.shape == (len(digits.test), 10) and made.logits.dtype == np.float32
    scale = 30.0 if loss else 1.0
    expected = inference.logits(made.model(), digits.test, digits, scale).numpy()
    np.testing.assert_allclose(made.logits, expected, rtol=1e-3, atol=1e-3)
    assert np.load(made.checkpoint.with_name("logits.npz"))["logits"].dtype == np.float16
    probabilities = torch.from_numpy(made.logits).softmax(1).numpy()
    again = training.metrics.summarize(probabilities, digits.test.labels.numpy(), made.counts)
    assert again["ece"] == pytest.approx(made.metrics["ece"], abs=0.005)
    assert again["accuracy"] == pytest.approx(made.metrics["accuracy"], abs=0.005)


def test_the_labels_of_the_logits_are_named_by_their_hash(tmp_path):
    other = replace(ONE, imbalance=20)  # another training set, the same test set
    hashes = {run(recipe, tmp_path).record["data"]["test_labels"] for recipe in (ONE, other)}
    assert len(hashes) == 1 and len(hashes.pop()) == 64


def test_logits_beyond_16_bits_are_kept_finite(tmp_path):
    files.write_logits(torch.tensor([[1e9, -1e9, 0.1]]), tmp_path / "logits.npz")
    kept = files.read_logits(tmp_path / "logits.npz")
    assert kept[0, :2].tolist() == [65504, -65504] and kept[0, 2] == pytest.approx(0.1, abs=1e-4)


def test_a_run_without_its_logits_is_not_taken_for_finished(tmp_path, trained):
    run(ONE, tmp_path).checkpoint.with_name("logits.npz").unlink()
    run(ONE, tmp_path)
    assert len(trained) == 2


# --- what the catalogue shares ---


def beginnings(names, scale):
    return {recipes.get(name, "cifar10-lt", 100, scale).up_to(0).hash for name in names}


@pytest.mark.parametrize("scale", recipes.SCALES)
@pytest.mark.parametrize(
    "names",
    [
        ["ce", "crt", "lws", "tau-norm", "ncm"],
        ["mixup", "mixup-crt", "mislas"],
        ["gcl", "gcl-no-retraining", "gcl-lws", "gcl-tau-norm", "gcl-instance-balanced", "gcl-class-balanced"],
        ["cam-fusion", "cam-fusion-block-2", "cam-fusion-block-3", "cam-no-fusion", "cam-fusion-weighted"],
        [name for name in CHAPTERS["Chapter 4, BLT"][1] if "as-released" not in name and "slower" not in name],
    ],
    ids=["cross-entropy", "mixup", "GCL", "fusion", "BLT"],
)
def test_recipes_that_differ_in_their_last_stage_share_the_first(names, scale):
    linear = {"blt-softmax", "plain-sampling"}  # BLT with a linear head, which begins in the first stage
    assert len(beginnings(set(names) - linear, scale)) == 1
    assert len(beginnings(names, scale)) == 1 + bool(linear & set(names))

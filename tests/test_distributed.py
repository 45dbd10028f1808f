"""Two processes of gloo train one network as one process does, and their runs are anybody's."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

from ltnotes import data, distributed, recipes, runs
from ltnotes.training import Training

SET_UP = """
import sys
from pathlib import Path

import torch

from ltnotes import distributed
from ltnotes.training import Training
from tests.test_distributed import features, head_alone, trained

torch.set_num_threads(1)
distributed.begin()
out = Path(sys.argv[1])
"""


def together(tmp_path, code, processes=2, arguments=()):
    """Run a script in so many processes; what it saved in ``out``."""
    script, out = tmp_path / "job.py", tmp_path / "out.pt"
    script.write_text(SET_UP + textwrap.dedent(code))
    launch(processes, str(script), str(out), *arguments)
    return torch.load(out, weights_only=True)


def launch(processes, *command):
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def features():
    """A long-tailed set of features: a network of its head alone, without chance but for the order of images."""
    digits = data.load("digits-lt", 10)

    def as_features(split):
        return data.Split(split.images.float().mean(3).flatten(1)[:, None, None, ::8] / 255, split.labels)

    train, test = as_features(digits.train), as_features(digits.test)
    flat = train.images.flatten(0, 2)
    statistics = {"mean": tuple(flat.mean(0).tolist()), "std": tuple((flat.std(0) + 0.1).tolist())}
    return replace(digits, train=train, test=test, pad=0, fingerprint="features", **statistics)


def head_alone(**changes):
    return recipes.get("logit-adjustment", "digits-lt", 10, "frozen", epochs=3, **changes)


def trained(checkpoint=None, **changes):
    job = Training(head_alone(**changes), features(), 0, precision="float32", checkpoint=checkpoint)
    job.run()
    return job


# --- the parts -----------------------------------------------------------------------


@pytest.fixture
def of_two(monkeypatch):
    def become(number):
        monkeypatch.setattr(distributed, "world", lambda: 2)
        monkeypatch.setattr(distributed, "rank", lambda: number)

    return become


def test_shares_are_the_whole_batch_and_no_image_twice(of_two):
    batch, shares = torch.arange(7) * 10, []
    for number in (0, 1):
        of_two(number)
        shares.append(distributed.share(batch))
    assert sorted(torch.cat(shares).tolist()) == batch.tolist() and [len(s) for s in shares] == [4, 3]
    assert distributed.share(batch[:1]).tolist() == [0]  # less than one for each: all take it


def test_one_process_is_alone_and_changes_nothing():
    assert (distributed.world(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    batch = torch.arange(5)
    assert distributed.share(batch) is not None and len(distributed.share(batch)) == 5
    before = torch.ones(3)
    distributed.average([before])
    assert before.tolist() == [1, 1, 1] and distributed.own_device() is None


def test_luck_differs_between_processes_and_stays_for_the_first(of_two):
    drawn = []
    for number in (0, 1):
        of_two(number)
        torch.manual_seed(3)
        distributed.own_luck()
        drawn.append(torch.rand(4).tolist())
    torch.manual_seed(3)
    assert drawn[0] == torch.rand(4).tolist() != drawn[1]


def test_statistics_of_the_whole_batch_need_a_gpu():
    with pytest.raises(ValueError, match=r"^sync_batchnorm: got 'a network on cpu', allowed is one on a GPU"):
        distributed.with_shared_statistics(torch.nn.Linear(2, 2))


# --- two processes ---------------------------------------------------------------------


def test_two_processes_end_with_the_weights_of_one(tmp_path):
    """Balancer, order of images, unequal shares of a last batch, momentum and schedule included."""
    code = """
    job = trained()
    if distributed.is_main():
        torch.save({"weight": job.model.state_dict(), "loss": [line["loss"] for line in job.history]}, out)
    """
    found, alone = together(tmp_path, code), trained()
    for name, weight in alone.model.state_dict().items():
        torch.testing.assert_close(found["weight"][name], weight, rtol=1e-4, atol=1e-5)
    assert found["loss"] == pytest.approx([line["loss"] for line in alone.history], rel=1e-3)


def test_a_state_of_two_processes_goes_on_in_one(tmp_path):
    code = """
    job = Training(head_alone(), features(), 0, precision="float32", checkpoint=out)
    job.next_checkpoint = 0.0
    steps = job.steps()
    while not job.history:
        next(steps)
    steps.close()
    """
    saved = together(tmp_path, code)
    assert saved["epoch"] == 1
    resumed = trained(checkpoint=tmp_path / "out.pt")
    for name, weight in trained().model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["blt", "cam-fusion"])
def test_what_two_processes_trained_is_read_by_one(tmp_path, name):
    """Every kind of method, with two stages, augmentation and normalisation layers."""
    setting = ["--dataset", "digits-lt", "--imbalance", "20", "--scale", "tiny"]
    said = launch(2, "-m", "ltnotes", "run", name, *setting, "--precision", "float32")
    assert said.count("balanced accuracy") == 1  # one of them speaks
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    run = runs.run(recipes.get(name, "digits-lt", 20, "tiny"), 0, precision="float32")
    assert run.record["processes"] == 2
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}

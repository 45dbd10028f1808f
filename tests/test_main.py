"""The command line."""

import pytest

from ltnotes import recipes
from ltnotes.__main__ import main
from ltnotes.cli import read_change, show_recipe


def test_recipes_are_listed_with_a_description(capsys):
    assert main(["recipes"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert sorted(line.split()[0] for line in lines) == recipes.names()
    assert all(recipes.describe(line.split()[0]) in line for line in lines)
    assert max(map(len, lines)) < 120


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_is_shown_in_full(name, capsys):
    assert main(["recipes", name, "--dataset", "imagenet-lt", "--protocol", "blt"]) == 0
    out = capsys.readouterr().out
    assert f"{name}: {recipes.describe(name)}" in out and "stage 1: trains everything for " in out
    assert "Part(" not in out and "None" not in out


def test_no_two_recipes_look_the_same_in_full(capsys):
    shown = set()
    for name in recipes.names():
        show_recipe(recipes.get(name))
        shown.add(capsys.readouterr().out.split("\n", 2)[2])
    assert len(shown) == len(recipes.names())


def test_a_recipe_in_full_gives_epochs_and_rates(capsys):
    assert main(["recipes", "blt", "--dataset", "inat2018"]) == 0
    out = capsys.readouterr().out
    assert "resnet34 from random weights, a layer of 512 before the head" in out
    assert "5 images of each class held out" in out
    assert "0.01, of the head 0.1, x 0.1 at epoch 23, 38, 52" in out
    assert main(["recipes", "kps", "tau-norm", "cam-fusion"]) == 0
    out = capsys.readouterr().out
    assert "0.1, rising until epoch 5, x 0.01 at epoch 160, 180" in out
    assert "stage 2: trains nothing\n    head      retraining.TauNormalizedClassifier" in out
    assert "for 6400 steps in batches of 128" in out and "0.001, constant" in out


def test_run_trains_and_reports(tmp_path, capsys):
    arguments = ["run", "ce", "--dataset", "digits-lt", "--imbalance", "10", "--scale", "tiny", "--set", "steps=2"]
    assert main([*arguments, "--seed", "0", "1", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "ce, seed 0: balanced accuracy" in out and "ce, seed 1: balanced accuracy" in out
    assert len(list(tmp_path.glob("*/code-*/run.json"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nothing"], "recipe: got 'nothing', allowed are"),
        (["run", "ce", "--scale", "huge"], "scale: got 'huge'"),
        (["run", "ce", "--set", "epochs"], "--set: got 'epochs', allowed is FIELD=VALUE"),
        (["run", "ce", "--set", "epoch=3"], "epoch: no such field"),
        (["run", "ce", "--dataset", "nothing"], "dataset: got 'nothing'"),
        (["run", "ce", "--dataset", "digits-lt", "--seed", "-1"], "seed: got -1"),
        (["run", "ce", "--dataset", "digits-lt", "--device", "abacus"], "device: got 'abacus'"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("epochs=30", ("epochs", 30)),
        ("milestones=(0.5,)", ("milestones", (0.5,))),
        ("backbone=resnet8", ("backbone", "resnet8")),
    ],
)
def test_changes_are_python_literals_or_strings(text, change):
    assert read_change(text) == change


def test_frozen_features_are_shown_as_that(capsys):
    assert main(["recipes", "ce", "--scale", "frozen"]) == 0
    said = capsys.readouterr().out
    assert "features of efficientnet-lite0, trained on ImageNet and frozen" in said and "random weights" not in said


def test_a_list_is_a_tuple():
    assert read_change("milestones=[0.5, 0.9]") == ("milestones", (0.5, 0.9))


def test_an_interruption_is_one_line(monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "get", interrupt)
    assert main(["recipes", "ce"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"

"""Bad input on the command line: one line that says what was wrong, exit code 2, and nothing written.

A row is what the user types and the words that the message must hold. ``-rP`` shows the count.
"""

import itertools
import shlex
from pathlib import Path

import pytest

from data_prep.__main__ import main as prepare
from ltnotes.__main__ import main

REPOSITORY = Path(__file__).parents[1]
TINY = "run ce --dataset digits-lt --scale tiny"
NOT_NUMBERS = ("x", "True", "[1]", "1e999", "-1e999", "-1")

# Fields of a recipe and values that none of them can have, each said with the field's name.
NUMBERS = ("learning_rate", "head_learning_rate", "decay", "final_rate", "warmup", "momentum", "weight_decay", "epochs")
WHOLE = ("steps", "batch_size", "projection", "validation", "data_seed", "pad")
FIELDS = [
    *itertools.product(NUMBERS, NOT_NUMBERS),
    *itertools.product(WHOLE, (*NOT_NUMBERS, "1.5")),
    *itertools.product(("trains", "schedule", "keep", "backbone"), ("nothing", "3", "None", "('all',)")),
    *itertools.product(("loss", "balancer", "head"), ("focal", "3", "None")),
    *itertools.product(("milestones",), ("0.5", "(0,)", "(1,)", "('a',)", "(1e999,)", "[0.5, -1]")),
    *itertools.product(("pretrained", "flip"), ("1", "yes")),
    *itertools.product(("warmup",), ("1", "2")),
    *itertools.product(("batch_size",), ("0",)),
    *itertools.product(("epochs",), ("0",)),
    *itertools.product(
        ("decay", "warmup", "momentum", "weight_decay", "learning_rate", "final_rate"), ("None", "1e300")
    ),
    *itertools.product(("batch_size", "validation", "data_seed"), ("None", "1" + "0" * 30)),
    *itertools.product(("projection", "pad"), ("1" + "0" * 30,)),
    ("momentum", "1"),
    ("final_rate", "0.5"),
    ("transform", "mixup"),
    ("trains", "rest"),
    ("pretrained", "True"),
]
ROWS = [
    *((f"{TINY} --set {shlex.quote(f'{field}={value}')}", f"error: {field}: got ") for field, value in FIELDS),
    *((f"{TINY} --set {text}", "--set: got") for text in ("steps", "name=x", "stages=3", "dataset=x", "imbalance=3")),
    *((f"{TINY} --set {text}", "--set: got") for text in ("scale=lite", "protocol=kps", "''")),
    *((f"{TINY} --set {text}=3", "no such field") for text in ("epoch", "lr", "''", "__class__", "hash")),
    *((f"run {name}", "recipe: got") for name in ("nothing", "''", "../../x", "a/b", "CE", "ce.", "~")),
    *((f"recipes {name}", "recipe: got") for name in ("nothing", "''", "../../x", "a/b", "ce nothing")),
    *((f"{command} ce --dataset {name}", "dataset: got") for command in ("run", "recipes") for name in
      ("imagenet_lt", "cifar10", "CIFAR10-LT", "digits", "''", "nothing")),
    *((f"{command} ce --dataset {name}", "dataset: got") for command in ("run", "recipes") for name in
      ("./nothing", "/nothing/there", "../x", "x" * 300)),
    ("run ce --dataset ~nosuchuser/x", "path: got '~nosuchuser/x', whose home folder is unknown"),
    (f"{TINY} --set epochs=3 --set epochs=5", "--set: got epochs=3 epochs=5, allowed is each field once"),
    ("run ce --imbalance 2.000001", "cifar10-lt with imbalance 2.000001 and seed 0 is not prepared"),
    *((f"{command} ce --dataset digits-lt --imbalance {ratio}", "imbalance: got") for command in ("run", "recipes")
      for ratio in ("0", "-1", "0.5", "nan", "inf")),
    ("run ce --dataset digits-lt --imbalance 1000", "imbalance: got 1000.0, which leaves the smallest class without"),
    ("run ce --dataset digits-lt --imbalance many", "argument --imbalance: invalid float value: 'many'"),
    *((f"{command} ce --scale {scale}", "scale: got") for command in ("run", "recipes") for scale in ("huge", "''")),
    *((f"{command} ce --protocol {name}", "protocol: got") for command in ("run", "recipes") for name in ("x", "''")),
    *((f"{TINY} --seed {seed}", "seed: got -") for seed in ("-1", "0 -2")),
    *((f"{TINY} --seed {seed}", "argument --seed: invalid int value") for seed in ("x", "1.5")),
    *((f"{TINY} --device {device}", "device: got") for device in ("abacus", "cuda:99", "meta", "''", "cpu:x")),
    *((f"{TINY} --precision {name}", "precision: got") for name in ("float16", "''", "32")),
    *((f"{TINY} --together {number}", "together") for number in ("0", "-1", "x")),
    (f"{TINY} --set validation=999", "validation: got 999 images per class, but the smallest class has"),
    ("run", "the following arguments are required"),
    ("", "the following arguments are required"),
    ("train ce", "invalid choice: 'train'"),
    (f"{TINY} --epochs 3", "unrecognized arguments: --epochs 3"),
    *((f"recipes {option}", "has no effect without a RECIPE") for option in
      ("--scale tiny", "--dataset digits-lt", "--imbalance 3", "--protocol kps", "--set epochs=3")),
    ("chapters nothing", "chapter: got 'nothing', allowed are 01-long-tail"),
    ("chapters ../x", "chapter: got '../x'"),
    ("chapters 01-long-tail -p colour red", "01-long-tail: got unknown parameter 'colour', allowed are dataset"),
    ("chapters 01-long-tail --seed 1 -p seed 2", "seed: given more than once"),
    ("chapters 01-long-tail -p seed 1 -p seed 2", "seed: given more than once"),
    *((f"chapters 01-long-tail --seed {seed}", "seed: got") for seed in ("-1", "x", "1.5", "True", "''", "[1]")),
    *((f"chapters 01-long-tail --imbalance {n} --dataset digits-lt", "imbalance: got") for n in
      ("0", "-1", "x", "1.5", "1e9", "100000")),
    *((f"chapters 01-long-tail --scale {scale}", "scale: got") for scale in ("huge", "''", "3")),
    *((f"chapters 01-long-tail --dataset {name}", "dataset: got") for name in ("imagenet_lt", "''", "./nothing")),
    ("chapters --in-place --out x", "--out: has no effect with --in-place"),
    ("chapters --prepare-only --force", "--force: has no effect with --prepare-only"),
    ("chapters --in-place --seed 3", "seed: --in-place keeps the chapters' own parameters"),
    ("diagnose", "the following arguments are required: folder"),
    ("diagnose /nothing/there", "folder: got '/nothing/there', allowed is a folder of class folders"),
    ("diagnose /dev/null", "folder: got '/dev/null', allowed is a folder of class folders"),
    ("diagnose ~nosuchuser/x", "argument folder: invalid user_path value: '~nosuchuser/x'"),
    *((f"diagnose . --{name} x", f"argument --{name}: invalid") for name in ("size", "seed", "test-share")),
    ("report", "the following arguments are required: RUN"),
    ("report /nothing/there", "/nothing/there/run.json can't be read"),
    ("report /dev/null", "/dev/null/run.json can't be read"),
    *((f"run {name} --scale frozen", f"scale: got 'frozen' for '{name}', allowed is a method without") for name in
      ("blt", "cam-fusion")),
    (f"{TINY} --set backbone=frozen-", "backbone: got 'frozen-', allowed are"),
    (f"{TINY} --set backbone=frozen-nothing", "network: got 'nothing', allowed is one of resnet18"),
    ("ledger --status --only nothing", "--only: got 'nothing', allowed are those of the plan"),
    ("ledger --status --seed 77", "--seed: got 77, allowed are those of the plan"),
    ("ledger --status --dataset nothing", "--dataset: got 'nothing', allowed are those of the plan"),
    ("ledger --status --device abacus", "device: got 'abacus'"),
    ("ledger --status --precision half", "precision: got 'half'"),
]  # fmt: skip
PREPARE = [
    ("mnist", "invalid choice: 'mnist'"),
    ("", "the following arguments are required"),
    *((f"cifar10 --imbalance {ratio}", "imbalance: got") for ratio in ("0", "-1", "0.5", "nan", "inf", "100 0")),
    *((f"cifar10 --{name} {value}", f"--{name}") for name in ("seed", "validation") for value in ("-1", "x", "1.5")),
    ("cifar10 --imbalance many", "invalid float value: 'many'"),
    ("cifar10 --source /nothing/there.zip", "source /nothing/there.zip does not exist"),
    ("cifar10 --source /dev/null", "source /dev/null does not exist"),
    ("cifar10 --source ~/nothing/there.zip", "nothing/there.zip does not exist"),
    ("cifar10 --source ~nosuchuser/x", "argument --source: invalid user_path value: '~nosuchuser/x'"),
    ("cifar10 --ratio 10", "unrecognized arguments: --ratio 10"),
]


def said(command, typed, folder, capsys):
    """What a refusal prints: its last line, after checking that it is one, and that nothing was written."""
    try:
        code = command(shlex.split(typed))
    except SystemExit as stopped:  # argparse
        code = stopped.code
    output = capsys.readouterr()
    assert code == 2, output.err
    *usage, last = output.err.splitlines()
    assert output.out == "" and "Traceback" not in output.err
    assert last.startswith("error: ") if not usage else usage[0].startswith("usage: ")
    assert [path for path in folder.iterdir() if path.name != ".locks"] == []
    return last


@pytest.mark.parametrize(("typed", "words"), ROWS, ids=[typed for typed, _ in ROWS])
def test_a_mistake_is_one_clear_line(typed, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LTNOTES_DATA", str(tmp_path))
    if typed.startswith("chapters"):
        monkeypatch.setenv("LTNOTES_HOME", str(REPOSITORY))
    out = f" --out {tmp_path}" if typed.startswith("run ce --") else ""
    assert words in said(main, typed + out, tmp_path, capsys)


@pytest.mark.parametrize(("typed", "words"), PREPARE, ids=[typed for typed, _ in PREPARE])
def test_a_mistake_in_a_preparation_is_one_clear_line(typed, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LTNOTES_DATA", str(tmp_path))
    assert words in said(prepare, typed, tmp_path, capsys)


def test_the_table_is_long_and_its_rows_differ():
    for table in (ROWS, PREPARE):
        assert len({typed for typed, _ in table}) == len(table)
    assert len(ROWS) + len(PREPARE) >= 150

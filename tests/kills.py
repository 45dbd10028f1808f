"""Kill a process before each thing that it does to a file, start it again, and compare with one that was left alone.

``python -m tests.kills WHAT EVERY`` with WHAT one of ``SCENARIOS`` tries every EVERY-th
file operation (1: all of them), and prints how many kills were survived.
"""

import hashlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import torch

from data_prep import prepare as writer
from data_prep.sources import Pool
from ltnotes import data, prepared, reruns, runs, training
from ltnotes.methods.common import part
from ltnotes.recipes import Recipe, Stage

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
FIRST = Stage(epochs=2, batch_size=128, transform=part("baselines.Mixup"))
HEAD = Stage(epochs=1, batch_size=128, trains="head", head=part("squashing_cosine.CosineClassifier", scale=10.0))
RECIPE = Recipe("toy", "digits-lt", (FIRST, HEAD), imbalance=100, backbone="resnet8")


# --- what is killed: a function of an empty folder, and what it leaves there -------


def run(folder: Path) -> Any:
    training.CHECKPOINT_SHARE = float("inf")  # a state after every epoch
    made = runs.run(RECIPE, out_dir=folder, device="cpu", precision="float32")
    weights = [hashlib.sha256(value.numpy().tobytes()).hexdigest() for value in made.weights().values()]
    history = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in made.history]
    return made.metrics, history, weights, hashlib.sha256(made.logits.tobytes()).hexdigest()


def prepare(folder: Path, source: str = "first") -> Any:
    prepared.SECONDS_TO_LOCK = -1
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 8, 8, 3), np.uint8)
    pool = Pool(images, np.arange(60) % 2, 40, ("a", "b"), {"kind": "folder", "sha256": source})
    request = writer.Request("cifar10-lt", 10.0, 0, 0, ((0.5,) * 3, (0.2,) * 3))
    target, _ = writer.prepare(pool, request, folder)
    return hashlib.sha256(data.load(str(target)).train.images.numpy().tobytes()).hexdigest()


def chapter(folder: Path) -> Any:
    os.environ["LTNOTES_HOME"] = str(folder)
    (output,) = reruns.execute(reruns.plan([], {"seed": [4]}, folder / "out"))
    return [cell.get("outputs") for cell in nbformat.read(output, as_version=4).cells]


SCENARIOS: dict[str, Callable[[Path], Any]] = {
    "run": run,
    "prepare": prepare,
    "prepare-again": prepare,
    "chapter": chapter,
}


# --- what is there before ----------------------------------------------------------


def prepared_from_another_source(folder: Path) -> None:
    prepare(folder, "second")


def book(folder: Path) -> None:
    new = nbformat.v4
    cells = [("parameters", "seed: int = 0"), ("body", "print(seed + 1)")]
    code = [new.new_code_cell(source, id=name, metadata={"tags": [name]}) for name, source in cells]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"ltnotes": {}, "kernelspec": kernel}
    notebook = new.new_notebook(cells=[new.new_markdown_cell("# A chapter", id="title"), *code], metadata=metadata)
    (folder / "book").mkdir()
    nbformat.write(notebook, folder / "book" / "01-quick.ipynb")
    (folder / "book" / "_toc.yml").touch()


BEFORE: dict[str, Callable[[Path], None]] = {"prepare-again": prepared_from_another_source, "chapter": book}


# --- killing ---------------------------------------------------------------------


def changes_a_file(event: str, arguments: tuple, folder: str) -> bool:
    below = event in ("os.remove", "os.rmdir") and arguments[1] not in (None, -1)  # of a folder that rmtree is in
    if not arguments or not (below or str(arguments[0]).startswith(folder)):
        return False
    return event in CHANGES or (event == "open" and bool((arguments[2] or 0) & WRITING))


def in_child(function: Callable[[Path], Any], folder: Path, kill_at: int | None) -> Any:
    """What the function returns in a process of its own; None if that was killed."""
    reader, sender = os.pipe()
    child = os.fork()
    if child:
        os.close(sender)
        with os.fdopen(reader) as answer:
            content = answer.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return None
        assert status == 0, f"the child ended with {status}"
        return json.loads(content)
    code = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        count = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal count
            if changes_a_file(event, arguments, str(folder)):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        found = json.dumps(function(folder), sort_keys=True, default=str)
        with os.fdopen(sender, "w") as answer:
            answer.write(found)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def listing(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if ".locks" not in path.parts)


def begin(folder: Path, what: str) -> None:
    folder.mkdir()
    BEFORE.get(what, lambda folder: None)(folder)


def survive(what: str, every: int) -> tuple[int, list[int]]:
    """How many operations were killed before, and after which of them the end was another one."""
    function, tried, failed = SCENARIOS[what], 0, []
    with tempfile.TemporaryDirectory() as scratch:
        alone = Path(scratch) / "alone"
        begin(alone, what)
        wanted, left = in_child(function, alone, None), listing(alone)
        kill_at = 1
        while True:
            folder = Path(scratch) / f"killed-{kill_at}"
            begin(folder, what)
            if in_child(function, folder, kill_at) is not None:
                return tried, failed
            tried += 1
            if in_child(function, folder, None) != wanted or listing(folder) != left:
                failed.append(kill_at)
            kill_at += every


def main(what: str, every: str) -> int:
    torch.set_num_threads(1)
    data.load("digits-lt", 100)  # so that no child has to
    tried, failed = survive(what, int(every))
    print(f"{what}: {tried - len(failed)} of {tried} kills survived{f', not {failed}' if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""The one training loop: a stage of a recipe, one clock, checkpoints on the way, evaluation at the end.

A recipe (see :mod:`ltnotes.recipes`) is a sequence of stages, each trained from the
weights that the one before left. This module trains one of them, and knows no method by
name. Everything that changes with time is told the stage's progress ``t`` in [0, 1].

A run that was killed and is started again ends, on the CPU, with the bit-identical
weights: every epoch seeds torch's generator from (seed, stage, epoch), so an epoch
depends on nothing but that and the checkpoint before it. For the same reason it does not
matter whether the stages are trained in one go.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltnotes import distributed, inference, metrics, models
from ltnotes.batches import augmenter, check_probabilities
from ltnotes.data import LongTailData, Split
from ltnotes.devices import Lane, choose_precision, naming_memory, seeded
from ltnotes.files import DamagedFileError, first_line, read_tensors, save_atomically
from ltnotes.folding import folded
from ltnotes.inference import predict  # noqa: F401  # chapters look at a network with it
from ltnotes.live_stage import LiveStage, NonFiniteLossError
from ltnotes.options import number, of_type, require, whole

HEAD, PARTS = 1 << 20, 1 << 21  # beyond any epoch: positions in the run that seed a stage's head and its parts
CHECKPOINT_SHARE = 0.05  # of the time, at most, goes into writing checkpoints
Report = Callable[[float, str], None]
"""Called with the share of the stage that is done and a line on what it is doing."""


def build_model(recipe: Any, counts: Sequence[int], channels: int = 3) -> models.Classifier:
    """The network that a recipe's first stage begins with, for images or features of so many channels."""

    def head(in_features: int, num_classes: int) -> nn.Module:
        made = recipe.head.build(in_features=in_features, num_classes=num_classes, class_counts=counts)
        return of_type("head", made, nn.Module)

    return models.build(recipe.backbone, len(counts), head, recipe.projection, recipe.pretrained, channels)


def replace_head(model: models.Classifier, stage: Any, counts: Sequence[int]) -> None:
    """Give the model the stage's own head, if it has one."""
    if stage.head is not None:
        supply = {"in_features": model.num_features, "num_classes": len(counts), "class_counts": counts}
        model.head = of_type("head", stage.head.build(previous=model.head, **supply), nn.Module)


class Training:
    """One stage of a recipe on one data set with one seed.

    Args:
        recipe: a :class:`ltnotes.recipes.Recipe`. All of its stages are looked at, so that a
            bad option is said before the first of them trains.
        data: a data set on the training device.
        stage: which stage is trained, counted from 0.
        weights: the network's ``state_dict()`` at the end of the stage before; as it is
            built, if not given.
        checkpoint: file to go on from, and to write at the end of the stage and after
            epochs, as often as ``CHECKPOINT_SHARE`` allows; none if not given.
        report: told the progress now and then.
        precision: see :func:`ltnotes.devices.choose_precision`.
    """

    def __init__(
        self,
        recipe: Any,
        data: LongTailData,
        seed: int,
        stage: int = 0,
        weights: dict[str, Tensor] | None = None,
        checkpoint: Path | None = None,
        report: Report | None = None,
        precision: str | None = None,
    ):
        self.recipe, self.data, self.seed, self.checkpoint = recipe, data, seed, checkpoint
        self.number, self.stage = stage, recipe.stages[stage]
        self.report = report or (lambda share, text: None)
        self.device = data.train.images.device
        self.precision = choose_precision(precision, self.device)
        with naming_memory(pad=recipe.pad):
            self.augment = augmenter(data, recipe.pad, recipe.flip, recipe.crop)
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        self.lane = Lane(self.device)
        self.next_checkpoint = 0.0
        self.evaluation_scale = 1.0
        with self._random(0, 0), naming_memory(backbone=recipe.backbone, projection=recipe.projection):
            begun = recipe if weights is None else replace(recipe, pretrained=False)
            self.model = build_model(begun, data.counts, data.channels).to(
                self.device, memory_format=torch.channels_last
            )
            if recipe.sync_batchnorm and distributed.world() > 1:  # one process sees the whole batch anyway
                self.model = distributed.with_shared_statistics(self.model)
        self._rehearse()
        for before in range(stage):  # so that the shapes fit what is loaded
            self._replace_head(before)
        if weights is not None:
            self.model.load_state_dict(weights)
        self._replace_head(stage)

    def run(self) -> None:
        """Train the stage to its end, from the checkpoint if there is one."""
        list(side_by_side([self]))

    def steps(self) -> Generator[None, None, None]:
        """The same, as a generator that pauses after every step."""
        self.wait()  # for what was made on other streams
        saved = self._read_checkpoint()
        begun = copy.deepcopy(self.model.state_dict()) if saved else {}
        with self._random(self.number + 1, PARTS):
            live = LiveStage(self, self.stage)
            if not saved:
                live.start()
        self.evaluation_scale = live.loss.evaluation_scale
        if saved and not self._restore(saved, live):
            self.model.load_state_dict(begun)
            yield from self.steps()
            return
        live.set_mode()
        # Folded once, as a captured step remembers where the folded weights lie.
        with folded(self.model.backbone[: live.frozen]), live.captured():
            for epoch in range(saved["epoch"] if saved else 0, live.num_epochs):
                with self._random(self.number + 1, epoch), naming_memory(batch_size=self.stage.batch_size):
                    record = yield from live.run_epoch(epoch, self.report)
                if self.stage.keep == "best-test":
                    record["test_accuracy"] = live.remember_best()
                self.history.append({"stage": self.number, "epoch": epoch, **record})
                if epoch == live.num_epochs - 1 or time.perf_counter() >= self.next_checkpoint:
                    self._write_checkpoint(epoch + 1, live)
        if live.best:
            self.model.load_state_dict(live.best["model"])
        self.wait()

    def wait(self) -> None:
        """Until the device has done all that it was told to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, torch's random numbers, the current stream and the clock are this training's."""
        began = time.perf_counter()
        with self.lane.turn():
            yield
        self.seconds += time.perf_counter() - began

    def _rehearse(self) -> None:
        """Build all parts of all stages on a copy: a bad option is said now, not after the stages before it."""
        rehearsal = copy.copy(self)
        rehearsal.model = copy.deepcopy(self.model)
        for position, stage in enumerate(self.recipe.stages):
            rehearsal._replace_head(position)
            with self._random(position + 1, PARTS):
                LiveStage(rehearsal, stage)
                check_probabilities(stage.balancer.build(counts=self.data.counts, t=0.0), self.data.num_classes)

    def _replace_head(self, number: int) -> None:
        with self._random(number + 1, HEAD):
            replace_head(self.model, self.recipe.stages[number], self.data.counts)
        self.model.head.to(self.device)

    def _random(self, *position: int) -> Any:
        """Torch's generators, seeded by the run's seed and a position in it, and put back afterwards."""
        return seeded([self.seed, *position], self.device)

    def logits(self, split: Split | None = None) -> Tensor:
        """Scores ``[N, C]`` on a split, see :func:`ltnotes.inference.logits`; the test set if not given."""
        split = self.data.test if split is None else split
        return inference.logits(self.model, split, self.data, self.evaluation_scale)

    def evaluate(self, split: Split | None = None) -> tuple[dict[str, Any], np.ndarray]:
        """Metrics and class probabilities ``[N, C]`` on a split; the test set if not given."""
        split = self.data.test if split is None else split
        probabilities = self.logits(split).softmax(1).cpu().numpy()
        return metrics.summarize(probabilities, split.labels.cpu().numpy(), self.data.counts), probabilities

    # --- checkpoints ---

    def _write_checkpoint(self, epoch: int, live: LiveStage) -> None:
        if self.checkpoint is None or not distributed.is_main():
            return
        content = {
            "of": self._identity(),
            "epoch": epoch,
            "model": self.model.state_dict(),
            "optimizer": live.optimizer.state_dict(),
            "loss": live.loss.state_dict(),
            "transform": live.transform.state_dict(),
            "best": live.best,
            "history": self.history,
            "seconds": self.seconds,
        }
        began = time.perf_counter()
        save_atomically(content, self.checkpoint)
        now = time.perf_counter()
        self.next_checkpoint = now + (now - began) / CHECKPOINT_SHARE

    def _read_checkpoint(self) -> dict | None:
        if self.checkpoint is None or not self.checkpoint.is_file():
            return None
        try:
            saved = read_tensors(self.checkpoint, "the training begins anew", self.device)
            if not isinstance(saved, dict) or saved.get("of") != self._identity():
                raise DamagedFileError(f"{self.checkpoint} is the state of another training; the training begins anew")
            return saved
        except DamagedFileError as error:
            self._set_aside(error)
            return None

    def _identity(self) -> list[Any]:
        """What a state belongs to."""
        return [self.recipe.up_to(self.number).hash, self.data.fingerprint, self.seed]

    def _restore(self, saved: dict, live: LiveStage) -> bool:
        """Go on from a state; False if it does not fit, and was set aside."""
        try:
            epoch = whole("epoch", saved["epoch"], least=1, most=live.num_epochs)
            history = of_type("history", saved["history"], list)
            require([type(line) for line in history] == [dict] * epoch, "history", len(history), f"{epoch} records")
            seconds, best = number("seconds", saved["seconds"], least=0), of_type("best", saved["best"], dict)
            require(bool(best) == (self.stage.keep == "best-test"), "best", best, "what the stage keeps")
            self.model.load_state_dict(saved["model"])
            live.restore_optimizer(saved["optimizer"])
            live.loss.load_state_dict(saved["loss"])
            live.transform.load_state_dict(saved["transform"])
            live.best, self.history, self.seconds = best, history, seconds
        except torch.OutOfMemoryError:  # nothing is wrong with the state
            raise
        except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            said = f"{self.checkpoint} does not fit ({first_line(error)}); the training begins anew"
            self._set_aside(DamagedFileError(said))
            self.history, self.seconds = [], 0.0
            return False
        return True

    def _set_aside(self, error: DamagedFileError) -> None:
        """Keep a state that can't be used under another name, and say so."""
        aside = self.checkpoint.with_suffix(".damaged.pt")
        distributed.wait()  # until all have read it
        if not distributed.is_main():
            return
        os.replace(self.checkpoint, aside)
        print(f"{error}, and the file is kept as {aside.name}", file=sys.stderr)


def side_by_side(jobs: Iterable[Training]) -> Iterator[Training]:
    """Train several at once, a step of each in turn, and yield each as it is done.

    On a GPU that one training leaves half idle their steps overlap; a CPU gains nothing.
    Each ends with the weights that it has alone.

    Raises:
        NonFiniteLossError: one of them diverged; after the others are done.
    """
    waiting = deque((job, job.steps()) for job in jobs)
    diverged = []
    try:
        while waiting:
            job, steps = waiting.popleft()
            try:
                with job.turn():
                    done = next(steps, True)  # a step yields None
            except NonFiniteLossError as error:
                diverged.append(error)
                continue
            if done:
                yield job
            else:
                waiting.append((job, steps))
    finally:
        for job, steps in waiting:  # of an error or an interruption: each puts its own random numbers back
            with job.turn():
                steps.close()
    if diverged:
        raise diverged[0]

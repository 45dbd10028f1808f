"""Training steps to time: those of the training loop itself, one call at a time."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch

from ltnotes import data, recipes
from ltnotes.batches import draw_images
from ltnotes.devices import Captured
from ltnotes.folding import folded
from ltnotes.live_stage import LiveStage
from ltnotes.training import Training

BATCH, ROUNDS = 128, 5


class Steps:
    """Batches of one stage of a recipe, trained one call at a time.

    Args:
        source: what is trained on, on the device that is timed.
        stage: the number of the stage, as in a list.
        changes: of the recipe, as in :func:`ltnotes.recipes.get`.
    """

    def __init__(self, name: str, source: data.LongTailData, stage: int = 0, seed: int = 0, **changes: object):
        changes = {"backbone": "resnet32", "batch_size": BATCH, **changes}
        recipe = recipes.get(name, source.name, source.imbalance, **changes)
        self.job = Training(recipe, source, seed, stage)
        self.job.wait()
        with self.job.turn():
            self.live = LiveStage(self.job, self.job.stage)
            self.live.start()
            self.live.set_mode()
            self.live._tell_time(self.live.num_steps // 2)
            self.live.transform.start_epoch()
            self.inside = ExitStack()  # as in a training, for as long as this is timed
            self.inside.enter_context(folded(self.job.model.backbone[: self.live.frozen]))
            self.inside.enter_context(self.live.captured())
            probabilities = self.live.stage.balancer.build(counts=source.counts, t=0.5)
            size = self.live.stage.batch_size
            epoch = draw_images(probabilities, source.train.labels).split(size)
            self.batches = itertools.cycle(batch for batch in epoch if len(batch) == size or len(epoch) == 1)

    def close(self) -> None:
        """Give back what the steps hold of the device."""
        with self.job.turn():
            self.inside.close()

    def __call__(self) -> None:
        with self.job.turn():
            self.live._tell_time(self.live.num_steps // 2)
            self.live.step(next(self.batches))


@contextmanager
def eager() -> Iterator[None]:
    """Nothing is captured inside."""
    with mock.patch.object(Captured, "__call__", lambda self, *inputs: self.function(*inputs)):
        yield


def medians(functions: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each function; they take turns, after one call each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def repeated(functions: list[Callable[[], object]], times: int, device: torch.device) -> Callable[[], None]:
    """Call each so many times in turn, and wait until the device has done it all."""

    def call() -> None:
        for _ in range(times):
            for function in functions:
                function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call

"""The one training loop: stages, one clock, evaluation at the end, checkpoints on the way.

A recipe (see :mod:`ltnotes.recipes`) is a sequence of stages. This module runs them
and knows no method by name. Everything that changes with time is told the stage's
progress ``t`` in [0, 1].

A run that was killed and is started again ends, on the CPU, with the bit-identical
weights: every epoch seeds torch's generator from (seed, stage, epoch), so an epoch
depends on nothing but that and the checkpoint before it.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltnotes import metrics, models
from ltnotes.batches import Augmenter, draw_images
from ltnotes.data import LongTailData, Split
from ltnotes.devices import autocast_dtype, precision, seeded
from ltnotes.inference import extract_features, predict
from ltnotes.methods.common import Transform

HEAD, PARTS = 1 << 20, 1 << 21  # beyond any epoch: positions in the run that seed a stage's head and its parts
STEPS_BETWEEN_LOOKS = 50  # how often the loss is read back, which on a GPU waits for it
Report = Callable[[float, str], None]
"""Called with the share of the run that is done and a line on what it is doing."""


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN; the message names the step, the recipe and what to try."""


def build_model(recipe: Any, counts: Sequence[int]) -> models.Classifier:
    """The network that a recipe's first stage begins with."""

    def head(in_features: int, num_classes: int) -> nn.Module:
        return recipe.head.build(in_features=in_features, num_classes=num_classes, class_counts=counts)

    return models.build(recipe.backbone, len(counts), head, recipe.projection, recipe.pretrained)


def replace_head(model: models.Classifier, stage: Any, counts: Sequence[int]) -> None:
    """Give the model the stage's own head, if it has one."""
    if stage.head is not None:
        supply = {"in_features": model.num_features, "num_classes": len(counts), "class_counts": counts}
        model.head = stage.head.build(previous=model.head, **supply)


class Training:
    """One recipe on one data set with one seed.

    Args:
        recipe: a :class:`ltnotes.recipes.Recipe`.
        data: a data set on the training device.
        checkpoint: file to write after every epoch and to go on from; none if not given.
        report: told the progress now and then.
    """

    def __init__(
        self,
        recipe: Any,
        data: LongTailData,
        seed: int,
        checkpoint: Path | None = None,
        report: Report | None = None,
    ):
        self.recipe, self.data, self.seed, self.checkpoint = recipe, data, seed, checkpoint
        self.report = report or (lambda share, text: None)
        self.device = data.train.images.device
        self.dtype = autocast_dtype(self.device)
        self.augment = Augmenter(data)
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        self.evaluation_scale = 1.0
        with self._random(0, 0):
            self.model = build_model(recipe, data.counts).to(self.device, memory_format=torch.channels_last)
        self._rehearse()

    def run(self) -> None:
        """Train every stage to its end, from the checkpoint if there is one."""
        saved = self._read_checkpoint()
        for index, stage in enumerate(self.recipe.stages):
            if saved and index < saved["stage"]:
                self._replace_head(stage, index)  # so that the shapes fit what is loaded
                continue
            self._run_stage(index, stage, saved if saved and index == saved["stage"] else None)

    def _rehearse(self) -> None:
        """Build all parts of all stages on a copy: a bad option is said now, not after the stages before it."""
        rehearsal = copy.copy(self)
        rehearsal.model = copy.deepcopy(self.model)
        for index, stage in enumerate(self.recipe.stages):
            rehearsal._replace_head(stage, index)
            with self._random(index + 1, PARTS):
                _Stage(rehearsal, stage)
                stage.balancer.build(counts=self.data.counts, t=0.0)

    def _run_stage(self, index: int, stage: Any, saved: dict | None) -> None:
        self._replace_head(stage, index)
        began = time.perf_counter()
        with self._random(index + 1, PARTS):
            live = _Stage(self, stage)
            if not saved:
                live.start()
        self.seconds += time.perf_counter() - began
        self.evaluation_scale = live.loss.evaluation_scale
        first_epoch = 0
        if saved:
            self._restore(saved, live)
            first_epoch = saved["epoch"]
        for epoch in range(first_epoch, live.num_epochs):
            began = time.perf_counter()
            with self._random(index + 1, epoch):
                record = live.run_epoch(epoch, self._report_from(index))
            if stage.keep == "best-test":
                record["test_accuracy"] = live.remember_best()
            self.seconds += time.perf_counter() - began
            self.history.append({"stage": index, "epoch": epoch, **record})
            self._write_checkpoint(index, epoch + 1, live)
        if live.best:
            self.model.load_state_dict(live.best["model"])

    def _replace_head(self, stage: Any, index: int) -> None:
        with self._random(index + 1, HEAD):
            replace_head(self.model, stage, self.data.counts)
        self.model.head.to(self.device)

    def _random(self, *position: int) -> Any:
        """Torch's generators, seeded by the run's seed and a position in it, and put back afterwards."""
        return seeded([self.seed, *position], self.device)

    def _report_from(self, index: int) -> Callable[[float, str], None]:
        sizes = [_num_steps(stage, len(self.data.train)) * stage.batch_size for stage in self.recipe.stages]
        before, total = sum(sizes[:index]), sum(sizes)
        return lambda t, text: self.report((before + t * sizes[index]) / total, text)

    def evaluate(self, split: Split | None = None) -> tuple[dict[str, Any], np.ndarray]:
        """Metrics and class probabilities ``[N, C]`` on a split; the test set if not given."""
        split = self.data.test if split is None else split
        probabilities = predict(self.model, split, self.data, self.dtype, self.evaluation_scale)
        return metrics.summarize(probabilities, split.labels.cpu().numpy(), self.data.counts), probabilities

    # --- checkpoints ---

    def _write_checkpoint(self, stage: int, epoch: int, live: _Stage) -> None:
        if self.checkpoint is None:
            return
        content = {
            "stage": stage,
            "epoch": epoch,
            "model": self.model.state_dict(),
            "optimizer": live.optimizer.state_dict(),
            "loss": live.loss.state_dict(),
            "transform": live.transform.state_dict(),
            "best": live.best,
            "history": self.history,
            "seconds": self.seconds,
        }
        save_atomically(content, self.checkpoint)

    def _read_checkpoint(self) -> dict | None:
        if self.checkpoint is None or not self.checkpoint.is_file():
            return None
        saved = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        return saved if "stage" in saved else None  # a finished run's weights alone are no place to go on from

    def _restore(self, saved: dict, live: _Stage) -> None:
        self.model.load_state_dict(saved["model"])
        live.optimizer.load_state_dict(saved["optimizer"])
        live.loss.load_state_dict(saved["loss"])
        live.transform.load_state_dict(saved["transform"])
        live.best = saved["best"]
        self.history, self.seconds = saved["history"], saved["seconds"]


class _Stage:
    """A stage while it runs: its loss, transform, optimiser, sampling and schedule."""

    def __init__(self, training: Training, stage: Any):
        self.training, self.stage = training, stage
        data, model = training.data, training.model
        self.num_images = len(data.train)
        self.num_steps = _num_steps(stage, self.num_images)
        self.steps_per_epoch = min(math.ceil(self.num_images / stage.batch_size), max(self.num_steps, 1))
        self.num_epochs = math.ceil(self.num_steps / self.steps_per_epoch)
        self.loss = stage.loss.build(class_counts=data.counts).to(training.device)
        supply = {
            "model": model,
            "data": data,
            "class_counts": data.counts,
            "augment": training.augment,
            "predict": lambda split: predict(model, split, data, training.dtype, self.loss.evaluation_scale),
        }
        self.transform: Transform = stage.transform.build(**supply) if stage.transform else Transform()
        blocks = len(model.backbone)
        self.frozen = {"all": 0, "head": blocks, "rest": self.transform.block or blocks}[stage.trains]
        self.optimizer = _optimizer(model, self.loss, stage, self.frozen)
        self.best: dict[str, Any] = {}

    def start(self) -> None:
        """What a stage does once, before its first epoch."""
        training, train = self.training, self.training.data.train
        if hasattr(training.model.head, "fit"):
            training.model.head.fit(
                extract_features(training.model, train, training.data, training.dtype), train.labels
            )
        self.transform.start_stage()

    def remember_best(self) -> float:
        """Accuracy on the test set after this epoch; the weights are kept if it is the best so far."""
        accuracy = self.training.evaluate()[0]["accuracy"]
        if not self.best or accuracy > self.best["accuracy"]:
            weights = {name: tensor.clone() for name, tensor in self.training.model.state_dict().items()}
            self.best = {"accuracy": accuracy, "model": weights}
        return accuracy

    def run_epoch(self, epoch: int, report: Callable[[float, str], None]) -> dict[str, float]:
        """Train one epoch; its mean loss, training accuracy and last learning rate."""
        first = epoch * self.steps_per_epoch
        steps = min(self.steps_per_epoch, self.num_steps - first)
        self._tell_time(first)
        self._set_mode()
        self.transform.start_epoch()
        indices = self._draw_epoch(first / self.num_steps, steps)
        losses, hits = [], []
        for i, batch in enumerate(indices):
            self._tell_time(first + i)
            loss, correct = self._step(batch)
            losses.append(loss)
            hits.append(correct)
            if len(losses) % STEPS_BETWEEN_LOOKS == 0 or i == steps - 1:
                self._check_finite(losses, first)
                report((first + i + 1) / self.num_steps, f"epoch {epoch + 1} of {self.num_epochs}")
        self._check_weights(first + steps)
        return {
            "loss": torch.stack(losses).mean().item(),
            "train_accuracy": torch.cat(hits).double().mean().item(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }

    def _step(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """One update: the loss, and which answers were right ``[B]``, both still on the device."""
        training, model = self.training, self.training.model
        indices = self.transform.on_indices(indices)
        targets = training.data.train.labels[indices]
        with precision(training.device, training.dtype):
            images, labels = self.transform.on_images(training.augment(indices), [(targets, 1.0)])
            block = self.transform.block
            with torch.no_grad() if self.stage.trains != "all" else nullcontext():
                maps, labels = self.transform.on_feature_map(model.feature_map(images, block), labels)
            with torch.no_grad() if self.stage.trains == "head" else nullcontext():
                features = model.from_map(maps, block)
            logits = model.head(features)
        loss = torch.stack([self.loss(logits, classes, features, weight=weight) for classes, weight in labels]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach().float(), logits.argmax(1) == labels[0][0]

    def _set_mode(self) -> None:
        model = self.training.model.train()
        for block in model.backbone[: self.frozen]:
            block.eval()

    def _tell_time(self, step: int) -> None:
        t = step / self.num_steps
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor(self.stage, t, 1 / self.num_steps)
        for listener in (self.loss, self.transform):
            if hasattr(listener, "set_progress"):
                listener.set_progress(t)

    def _draw_epoch(self, t: float, steps: int) -> tuple[Tensor, ...]:
        """The batches of an epoch, as training indices."""
        counts = self.training.data.counts
        probabilities = self.stage.balancer.build(counts=counts, t=t)
        indices = draw_images(probabilities, self.training.data.train.labels)
        return indices.split(self.stage.batch_size)[:steps]

    def _check_finite(self, losses: list[Tensor], first: int) -> None:
        finite = torch.isfinite(torch.stack(losses))
        if not finite.all():
            step = int((~finite).nonzero()[0])
            self._diverged(f"the loss is {losses[step].item()}", first + step + 1)

    def _check_weights(self, steps: int) -> None:
        """A step's loss says nothing of its own update: look before the weights become a checkpoint or a result."""
        if not all(torch.isfinite(parameter).all() for parameter in self.training.model.parameters()):
            self._diverged("a weight is not finite after the update", steps)

    def _diverged(self, what: str, step: int) -> None:
        raise NonFiniteLossError(
            f"recipe {self.training.recipe.name!r}, seed {self.training.seed}: {what} at step {step} of"
            f" {self.num_steps}. Try a learning rate below {self.stage.learning_rate:g}, a longer warm-up than"
            f" {self.stage.warmup:g} of the stage, or a larger batch; the last whole epoch is kept in the checkpoint"
        )


def _num_steps(stage: Any, num_images: int) -> int:
    if stage.steps is not None:
        return stage.steps
    return max(1, round(stage.epochs * math.ceil(num_images / stage.batch_size)))


def _optimizer(model: nn.Module, loss: nn.Module, stage: Any, frozen: int) -> torch.optim.SGD:
    """SGD over the blocks that are not frozen and the head, each with its own rate; a loss learns like the head."""
    head_rate = stage.learning_rate if stage.head_learning_rate is None else stage.head_learning_rate
    of_head = [parameter for parameter in (*model.head.parameters(), *loss.parameters()) if parameter.requires_grad]
    groups = [{"params": of_head, "lr": head_rate, "base_lr": head_rate}]
    if stage.trains != "head":
        rate, below = stage.learning_rate, [*model.backbone[frozen:].parameters(), *model.projection.parameters()]
        groups.insert(0, {"params": below, "lr": rate, "base_lr": rate})
    return torch.optim.SGD(groups, momentum=stage.momentum, weight_decay=stage.weight_decay, foreach=True)


def learning_rate_factor(stage: Any, t: float, step: float) -> float:
    """What a stage's learning rate is multiplied by at progress ``t``, one step being ``step`` long."""
    if t < stage.warmup:
        return min(1.0, (t + step) / stage.warmup)
    if stage.schedule == "cosine":
        return stage.final_rate + (1 - stage.final_rate) * 0.5 * (1 + math.cos(math.pi * t))
    # A milestone and t can be the same fraction, reached by different roundings.
    return stage.decay ** sum(t >= milestone - 1e-9 for milestone in stage.milestones)


def save_atomically(content: Any, path: Path) -> None:
    """``torch.save`` through a temporary file, so that ``path`` is always whole.

    Raises:
        OSError: the folder can't be written or the disk is full; ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")  # always the same, so that a killed process leaves one at most
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError | OSError):  # torch.save reports a full disk as a RuntimeError
            raise OSError(f"can't write {path} ({error}); what was there before is unharmed") from error
        raise

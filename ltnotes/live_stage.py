"""One stage while it trains: its loss, transform and optimiser, its epochs, and the training step.

The step is plain eager code that never waits for the device. On a GPU it is captured
and replayed (:class:`ltnotes.devices.Captured`): the same code, started at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ltnotes import distributed
from ltnotes.batches import draw_images
from ltnotes.devices import Captured, autocast
from ltnotes.inference import extract_features, predict
from ltnotes.methods.common import Loss, Transform
from ltnotes.options import of_type, require

SECONDS_BETWEEN_LOOKS = 1.0  # at the loss, which waits for a GPU


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN; the message names the step, the recipe and what to try."""


class LiveStage:
    """A stage while it runs: its loss, transform, optimiser, sampling and schedule."""

    def __init__(self, training: Any, stage: Any):
        self.training, self.stage = training, stage
        data, model = training.data, training.model
        self.num_images = len(data.train)
        self.num_steps = num_steps(stage, self.num_images)
        self.steps_per_epoch = min(math.ceil(self.num_images / stage.batch_size), max(self.num_steps, 1))
        self.num_epochs = math.ceil(self.num_steps / self.steps_per_epoch)
        self.loss = of_type("loss", stage.loss.build(class_counts=data.counts), Loss).to(training.device)
        supply = {
            "model": model,
            "data": data,
            "class_counts": data.counts,
            "augment": training.augment,
            "predict": lambda split: predict(model, split, data, self.loss.evaluation_scale),
        }
        made = stage.transform.build(**supply) if stage.transform else Transform()
        self.transform: Transform = of_type("transform", made, Transform)
        blocks = len(model.backbone)
        self.frozen = {"all": 0, "head": blocks, "rest": self.transform.block or blocks}[stage.trains]
        self.optimizer = _optimizer(model, self.loss, stage, self.frozen, training.device)
        self.learning = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.best: dict[str, Any] = {}
        self.own = self.whole = stage.batch_size  # images of the batch in this process, and in all

    def start(self) -> None:
        """What a stage does once, before its first epoch."""
        training, train = self.training, self.training.data.train
        if hasattr(training.model.head, "fit"):
            training.model.head.fit(extract_features(training.model, train, training.data), train.labels)
        self.transform.start_stage()

    def restore_optimizer(self, saved: dict[str, Any]) -> None:
        """Take the momentum from a checkpoint, and keep all else: the recipe says it, or the device.

        Raises:
            ValueError: momentum that does not fit the parameters.
        """
        own = [{key: group[key] for key in group if key != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(saved)
        for group, kept in zip(self.optimizer.param_groups, own, strict=True):
            group.update(kept)
        for parameter in (p for group in self.optimizer.param_groups for p in group["params"]):
            momentum = self.optimizer.state[parameter].get("momentum_buffer")
            fits = momentum is not None and momentum.shape == parameter.shape
            require(fits or not self.stage.momentum, "momentum", momentum, f"a tensor {list(parameter.shape)}")

    def remember_best(self) -> float:
        """Accuracy on the test set after this epoch; the weights are kept if it is the best so far."""
        accuracy = self.training.evaluate()[0]["accuracy"]
        if not self.best or accuracy > self.best["accuracy"]:
            weights = {name: tensor.clone() for name, tensor in self.training.model.state_dict().items()}
            self.best = {"accuracy": accuracy, "model": weights}
        return accuracy

    def run_epoch(self, epoch: int, report: Callable[[float, str], None]) -> Generator[None, None, dict[str, float]]:
        """Train one epoch, step by step; returns its mean loss, training accuracy and last learning rate."""
        first = epoch * self.steps_per_epoch
        steps = min(self.steps_per_epoch, self.num_steps - first)
        self._tell_time(first)
        self.set_mode()
        self.transform.start_epoch()
        drawn = self._draw_epoch(first / self.num_steps, steps)
        indices = [distributed.share(batch) for batch in drawn]
        distributed.own_luck()
        if self.training.data.in_files:  # read ahead, so the batches have to be known
            indices = [self.transform.on_indices(batch) for batch in indices]
            self.training.augment.expect(indices)
        losses, hits = [], []
        looked = time.monotonic()
        for i, batch in enumerate(indices):
            rate = self._tell_time(first + i)
            self.own, self.whole = len(batch), len(drawn[i])
            loss, correct = self.step(batch)
            losses.append(loss)
            hits.append(correct)
            if i == steps - 1 or time.monotonic() - looked > SECONDS_BETWEEN_LOOKS:
                self._check_finite(losses, first)
                report((first + i + 1) / self.num_steps, f"epoch {epoch + 1} of {self.num_epochs}")
                looked = time.monotonic()
            yield
        distributed.average_statistics(self.training.model)
        self._check_weights(first + steps)
        seen = [torch.stack(losses).double().mean(), torch.cat(hits).double().mean()]
        distributed.average(seen)
        return {
            "loss": seen[0].item(),
            "train_accuracy": seen[1].item(),
            "learning_rate": rate,
        }

    def step(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """One update on training indices ``[B]``: its loss, and which answers were right, still on the device."""
        return self.update(*self.prepare(indices))

    def prepare(self, indices: Tensor) -> list[Tensor | float]:
        """The batch before the network: images ``[B, 3, H, W]``, then class ids and loss weights in turn."""
        training = self.training
        if not training.data.in_files:  # else the batch was composed when the epoch began
            indices = self.transform.on_indices(indices)
        labels = [(training.data.train.labels[indices], 1.0)]
        with autocast(training.device, training.precision):
            images, labels = self.transform.on_images(training.augment(indices), labels)
        return [images, *(each for pair in labels for each in pair)]

    def update(self, images: Tensor, *labels: Tensor | float) -> tuple[Tensor, Tensor]:
        """Forward, backward and one step of the optimiser."""
        training, model, block = self.training, self.training.model, self.transform.block
        pairs = list(zip(labels[::2], labels[1::2], strict=True))
        with autocast(training.device, training.precision):
            with torch.no_grad() if self.stage.trains != "all" else nullcontext():
                maps, pairs = self.transform.on_feature_map(model.feature_map(images, block), pairs)
            with torch.no_grad() if self.stage.trains == "head" else nullcontext():
                features = model.from_map(maps, block)
            logits = model.head(features)
        loss = torch.stack([self.loss(logits, classes, features, weight=weight) for classes, weight in pairs]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if distributed.world() > 1:
            distributed.average_gradients(self.learning, self.own, self.whole)
        self.optimizer.step()
        return loss.detach().float(), logits.argmax(1) == pairs[0][0]

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Inside, on a GPU, as much of the step as can be is a CUDA graph; afterwards none is left on the device."""
        name = self.capturable() if self.training.device.type == "cuda" else None
        if name:
            setattr(self, name, Captured(getattr(self, name)))
        try:
            yield
        finally:
            if name:
                self.training.wait()
                delattr(self, name)
                self.optimizer.zero_grad(set_to_none=True)  # gradients lie in the graph's memory

    def capturable(self) -> str | None:
        """What a graph can hold: the whole "step", its "update" of a transform that prevents more, or nothing."""
        if not self.loss.capturable or distributed.world() > 1:
            return None
        if self.training.data.in_files:
            return "update" if self.stage.transform is None or self.transform.capturable else None
        if self.stage.transform is None or self.transform.capturable:
            return "step"
        return "update" if type(self.transform).on_feature_map is Transform.on_feature_map else None

    def set_mode(self) -> None:
        """Training mode, but for frozen blocks."""
        model = self.training.model.train()
        for block in model.backbone[: self.frozen]:
            block.eval()

    def _tell_time(self, step: int) -> float:
        """Set what changes with time; returns the learning rate of the first layers that learn."""
        t = step / self.num_steps
        factor = learning_rate_factor(self.stage, t, 1 / self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(group["base_lr"] * factor)  # in place, so that a captured step sees it
        for listener in (self.loss, self.transform):
            if hasattr(listener, "set_progress"):
                listener.set_progress(t)
        return self.optimizer.param_groups[0]["base_lr"] * factor

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
        if not nn.utils.get_total_norm(self.training.model.parameters(), math.inf).isfinite():
            self._diverged("a weight is not finite after the update", steps)

    def _diverged(self, what: str, step: int) -> None:
        checkpoint = self.training.checkpoint
        kept = "; the last whole epoch is kept in the checkpoint" if checkpoint and checkpoint.is_file() else ""
        raise NonFiniteLossError(
            f"recipe {self.training.recipe.name!r}, seed {self.training.seed}: {what} at step {step} of"
            f" {self.num_steps}. Try a learning rate below {self.stage.learning_rate:g}, a longer warm-up than"
            f" {self.stage.warmup:g} of the stage, or a larger batch{kept}"
        )


def num_steps(stage: Any, num_images: int) -> int:
    """How many batches a stage trains on."""
    if stage.steps is not None:
        return stage.steps
    return max(1, round(stage.epochs * math.ceil(num_images / stage.batch_size)))


def _optimizer(model: nn.Module, loss: nn.Module, stage: Any, frozen: int, device: torch.device) -> torch.optim.SGD:
    """SGD over the blocks that are not frozen and the head, each with its own rate; a loss learns like the head."""
    head_rate = stage.learning_rate if stage.head_learning_rate is None else stage.head_learning_rate
    of_head = [parameter for parameter in (*model.head.parameters(), *loss.parameters()) if parameter.requires_grad]
    groups = [{"params": of_head, "base_lr": head_rate}]
    if stage.trains != "head":
        below = [*model.backbone[frozen:].parameters(), *model.projection.parameters()]
        groups.insert(0, {"params": below, "base_lr": stage.learning_rate})
    for group in groups:
        group["lr"] = torch.tensor(group["base_lr"], device=device)
    kind = {"fused": True} if device.type == "cuda" else {"foreach": True}
    return torch.optim.SGD(groups, momentum=stage.momentum, weight_decay=stage.weight_decay, **kind)


def learning_rate_factor(stage: Any, t: float, step: float) -> float:
    """What a stage's learning rate is multiplied by at progress ``t``, one step being ``step`` long."""
    if t < stage.warmup:
        return min(1.0, (t + step) / stage.warmup)
    if stage.schedule == "cosine":
        return stage.final_rate + (1 - stage.final_rate) * 0.5 * (1 + math.cos(math.pi * t))
    # A milestone and t can be the same fraction, reached by different roundings.
    return stage.decay ** sum(t >= milestone - 1e-9 for milestone in stage.milestones)

"""A finished run: what is known of it, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltnotes import training
from ltnotes.files import DamagedFileError, file_hash, first_line, read_json, read_logits, read_tensors
from ltnotes.stages import Recipe, recipe_from_record

AGAIN = "delete the folder to train it anew"
FILES = ("checkpoint.pt", "logits.npz", "run.json")  # in the order of writing


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        metrics: see :func:`ltnotes.metrics.summarize`; last epoch, test set.
        history: per epoch: stage, epoch, loss, train_accuracy, learning_rate.
        checkpoint: file with the weights, for ``torch.load(..., weights_only=True)``.
        record: all that ``run.json`` holds: recipe, data, seed, seconds, device, versions,
            code, the hash of the test labels, and what each stage was made with.
    """

    recipe: Recipe
    seed: int
    metrics: dict[str, Any]
    history: list[dict[str, float]]
    checkpoint: Path
    record: dict[str, Any]

    @property
    def per_class_accuracy(self) -> list[float]:
        """Test accuracy of each class, in class-id order."""
        return self.metrics["per_class_accuracy"]

    @property
    def counts(self) -> list[int]:
        """Training images per class."""
        return self.record["data"]["counts"]

    @property
    def seconds(self) -> float:
        """Time spent training all stages, without evaluation; of trainings side by side its own share."""
        return self.record["seconds"]

    @property
    def logits(self) -> np.ndarray:
        """Scores of the test images in the order of the test set, float32 ``[N, C]``, kept with 16 bits.

        Their softmax are the class probabilities. Calibration, adjustment of the prior,
        shifted test sets and prediction sets need no more than these and the labels.
        """
        return read_logits(self.checkpoint.with_name("logits.npz"))

    @property
    def precisions(self) -> list[str]:
        """What each stage was trained in."""
        return [stage["environment"]["precision"] for stage in self.record["stages"]]

    def model(self) -> nn.Module:
        """The trained network on the CPU, in evaluation mode."""
        channels = self.record["data"].get("channels", 3)
        network = training.build_model(replace(self.recipe, pretrained=False), self.counts, channels)
        for stage in self.recipe.stages:
            training.replace_head(network, stage, self.counts)
        network.load_state_dict(self.weights())
        return network.eval()

    def weights(self, device: str | torch.device = "cpu") -> dict[str, Tensor]:
        """The network's ``state_dict()``."""
        return read_tensors(self.checkpoint, AGAIN, device)["model"]


def open_run(folder: Path) -> Run:
    """The run that lies in a folder, whatever recipe it is of.

    Raises:
        DamagedFileError: as :func:`read_run`, or no run at all.
    """
    record = read_json(folder / "run.json", AGAIN)
    try:
        recipe, seed = recipe_from_record(record["recipe"]), record["seed"]
    except (ValueError, TypeError, LookupError) as error:
        raise DamagedFileError(f"{folder}/run.json is no run of this code ({first_line(error)}); {AGAIN}") from None
    return read_run(folder, recipe, seed)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds all of a run."""
    return all((folder / name).is_file() for name in FILES)


def read_run(folder: Path, recipe: Recipe, seed: int) -> Run:
    """A finished run from its folder.

    Raises:
        DamagedFileError: one of its files is unreadable, truncated or was changed, or is another run's.
    """
    record = read_json(folder / "run.json", AGAIN)
    for name, expected in record.get("files", {}).items():
        if file_hash(folder / name) != expected:
            raise DamagedFileError(f"{folder / name} was truncated, altered or exchanged; {AGAIN}")
    try:
        owner = record["recipe_hash"], record["seed"]
        run = Run(recipe, seed, record["metrics"], record["history"], folder / "checkpoint.pt", record)
        _ = run.precisions, run.counts, run.seconds, record["finished"]  # what every reader asks for
    except (LookupError, TypeError) as error:
        raise DamagedFileError(f"{folder}/run.json can't be read (it lacks {error}); {AGAIN}") from None
    if owner != (recipe.hash, seed):
        raise DamagedFileError(f"{folder}/run.json is the run of another recipe or seed; {AGAIN}")
    return run

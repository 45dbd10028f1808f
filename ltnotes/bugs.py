"""Eight trainings with one mistake each, as people make them, beside the same training without it.

Chapter 10 shows what they look like, and asks for the cause.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from ltnotes import data, features, recipes, runs
from ltnotes.batches import draw_images
from ltnotes.data import LongTailData
from ltnotes.devices import seeded
from ltnotes.methods import balancers
from ltnotes.methods.common import part
from ltnotes.methods.kps import KPSLoss
from ltnotes.models import FROZEN
from ltnotes.options import choice
from ltnotes.stages import Recipe
from ltnotes.training import Training

HELD_OUT = 0.2  # of each class, for validation
LARGER = 64  # how many times as large the batches are that a learning rate was meant for


@dataclass(frozen=True)
class Evidence:
    """What the author of a training looks at.

    Args:
        loss, train_accuracy: per epoch.
        recalls: per class ``[C]``, by the name of the images that it was measured on.
        images: share of each class among the test images, ``[C]``.
        answers: share of each class among the answers to them, ``[C]``.
        confidence: mean probability of these answers.
    """

    loss: np.ndarray
    train_accuracy: np.ndarray
    recalls: dict[str, np.ndarray]
    images: np.ndarray
    answers: np.ndarray
    confidence: float

    @property
    def accuracy(self) -> float:
        """On the test images, as they were counted."""
        return float(np.nansum(self.images * self.recalls["test"]))


Made = Callable[[Recipe, int, bool], Evidence]


@dataclass(frozen=True)
class Bug:
    """A training, and what is wrong with it.

    Args:
        recipe: what was meant.
        cause: what is wrong.
        cure: the line that mends it.
        wrong: fields of the recipe, or of its stages, with the mistake.
        right: the same without it, where the recipe has others.
        scale: that it trains at: on frozen features, unless it is about images.
        made: from recipe, seed and whether the mistake is made to what is seen of it.
    """

    recipe: str
    cause: str
    cure: str
    wrong: dict[str, Any] = field(default_factory=dict)
    right: dict[str, Any] = field(default_factory=dict)
    scale: str = "frozen"
    made: Made = lambda recipe, seed, mistaken: _of_run(recipe, seed)


def train(
    name: str, dataset: str, imbalance: float | None = None, mistaken: bool = True, seed: int = 0, **changes: Any
) -> Evidence:
    """Train one of ``BUGS``, with its mistake or without it; most come from the run cache the second time.

    Args:
        dataset, imbalance: as in :func:`ltnotes.recipes.get`.
        changes: fields of all trainings, for shorter ones.

    Raises:
        ValueError: an unknown name, or as :func:`ltnotes.recipes.get`.
    """
    bug = BUGS[choice("bug", name, tuple(BUGS))]
    fields = changes | (bug.wrong if mistaken else bug.right)
    recipe = recipes.get(bug.recipe, dataset, imbalance, bug.scale, **fields)
    return bug.made(replace(recipe, name=f"{name}-{'wrong' if mistaken else 'right'}"), seed, mistaken)


# --- what is seen of a training -----------------------------------------------------------


def _evidence(
    history: Sequence[dict[str, float]], logits: np.ndarray, labels: np.ndarray, **others: np.ndarray
) -> Evidence:
    classes = logits.shape[1]
    answers = logits.argmax(1)
    loss, train_accuracy = (np.array([epoch[key] for epoch in history]) for key in ("loss", "train_accuracy"))
    images, answered = (np.bincount(ids, minlength=classes) / len(labels) for ids in (labels, answers))
    recalls = {"test": _recalls(answers, labels, classes), **others}
    confidence = softmax(logits.astype(float), 1).max(1).mean()
    return Evidence(loss, train_accuracy, recalls, images, answered, float(confidence))


def _recalls(answers: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    hits, totals = (np.bincount(ids, minlength=classes) for ids in (labels[answers == labels], labels))
    return np.divide(hits, totals, out=np.full(classes, np.nan), where=totals > 0)


def _of_run(recipe: Recipe, seed: int) -> Evidence:
    run = runs.run(recipe, seed)
    return _evidence(run.history, run.logits, _data(recipe).test.labels.numpy())


def _data(recipe: Recipe) -> LongTailData:
    return data.load(recipe.dataset, recipe.imbalance, recipe.data_seed)


# --- mistakes with images -----------------------------------------------------------------


def _split(recipe: Recipe, seed: int, mistaken: bool) -> Evidence:
    """With images drawn class by class and held out for validation: in this order, or in the other."""
    whole = features.extract(_data(recipe), recipe.backbone.removeprefix(FROZEN))
    labels = whole.train.labels
    if mistaken:
        drawn = _evenly(labels, whole.num_classes, seed)
        held_out = torch.arange(len(drawn)) < HELD_OUT * len(drawn)
        kept, tested = drawn[~held_out], drawn[held_out]
    else:
        held_out = _of_each_class(labels, seed)
        rest = torch.nonzero(~held_out).squeeze(1)
        kept, tested = rest[_evenly(labels[rest], whole.num_classes, seed)], torch.nonzero(held_out).squeeze(1)
    job = Training(recipe, replace(whole, train=whole.train[kept]), seed)
    job.run()
    validation = whole.train[tested]
    answers = job.logits(validation).argmax(1).cpu().numpy()
    of_validation = _recalls(answers, validation.labels.numpy(), whole.num_classes)
    return _evidence(job.history, job.logits().cpu().numpy(), whole.test.labels.numpy(), validation=of_validation)


def _evenly(labels: Tensor, classes: int, seed: int) -> Tensor:
    """As many indices as there are labels, every class equally often."""
    counts = torch.bincount(labels, minlength=classes).tolist()
    with seeded([seed, 0], labels.device):
        return draw_images(balancers.class_balanced(counts), labels)


def _of_each_class(labels: Tensor, seed: int) -> Tensor:
    """Which images are held out, bool ``[N]``; none of a class that is too small."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    for class_id in labels.unique():
        own = order[labels[order] == class_id]
        held_out[own[: int(HELD_OUT * len(own))]] = True
    return held_out


def _resampled(recipe: Recipe, seed: int, mistaken: bool) -> Evidence:
    """With test images drawn like those of training."""
    run, labels = runs.run(recipe, seed), _data(recipe).test.labels.numpy()
    chosen = np.arange(len(labels))
    if mistaken:
        weights = np.array(run.counts, float)[labels]
        chosen = np.random.default_rng(seed).choice(len(labels), len(labels), p=weights / weights.sum())
    return _evidence(run.history, run.logits[chosen], labels[chosen])


class MarginsBackwards(KPSLoss):
    """KPS whose margins belong to the classes in another order."""

    def __init__(self, class_counts: Sequence[int]):
        super().__init__(class_counts[::-1])


# --- the eight ----------------------------------------------------------------------------

BUGS: dict[str, Bug] = {
    "scale-of-1": Bug(
        "cosine",
        "The cosines go into the softmax without a scale. Cosines are at most 2 apart, which is no confident answer.",
        "logits = 16 * cosines",
        wrong={"head": part("squashing_cosine.CosineClassifier", scale=1.0)},
    ),
    "weighted-twice": Bug(
        "weighted",
        "The sampler draws all classes alike, and the loss weights them by the inverse of their size as well. Any two"
        " corrections of full strength look like this.",
        "loss = CrossEntropy() if sampler else WeightedCrossEntropy(counts)",
        wrong={"balancer": part("balancers.class_balanced")},
    ),
    "validation-sampled": Bug(
        "ce",
        "The images were drawn evenly first and split afterwards, so copies of the same tail images lie in training"
        " and in validation.",
        "train, validation = split(images); train = draw_evenly(train)",
        made=_split,
    ),
    "rate-of-another-batch": Bug(
        "ce",
        f"The learning rate is that of batches {LARGER} times as large. The end is hardly harmed, because the rate"
        " falls in time.",
        "rate = rate_of_paper * batch_size / batch_size_of_paper",
        wrong={"learning_rate": LARGER * 0.1 * recipes.FROZEN_RATE},
    ),
    "margins-backwards": Bug(
        "kps-plain",
        "The margins were computed from counts in another order than the class ids: the largest class has the margin"
        " of the smallest.",
        "counts = torch.bincount(labels, minlength=num_classes)",
        wrong={"loss": part("ltnotes.bugs:MarginsBackwards")},
    ),
    "test-resampled": Bug(
        "ce",
        "The test images were drawn with the class frequencies of training. Most of them are of the large classes, and"
        " so is the accuracy. A random split of a long-tailed collection does the same.",
        "test_loader = DataLoader(test)  # no sampler",
        made=_resampled,
    ),
    "augmentation-off": Bug(
        "ce",
        "Training images go through the transform of the test images, without random shifts and mirror images. A"
        " training without weight decay, or far too long, looks alike.",
        "train.transform, test.transform = augment, normalize",
        wrong={"pad": 0, "flip": False},
        right={"pad": None},
        scale="lite",
    ),
    "never-deferred": Bug(
        "drw",
        "Re-weighting begins at epoch 160, as in the paper, and this training ends long before.",
        "start = 0.8 * epochs",
        wrong={
            "loss": part("baselines.DeferredReweighting", loss=part("baselines.CrossEntropy"), start=1.0),
        },
    ),
}

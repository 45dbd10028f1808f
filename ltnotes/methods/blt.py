"""BLT: tail images that the classifier confuses with another class, added to every batch (chapter 4).

After Kozerawski et al. 2020, section 3 and Algorithm 1; "BLT-S" is their supplement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ltnotes.counts import rank_groups, shot_groups
from ltnotes.methods.common import Labels, Transform
from ltnotes.methods.hallucination import augment_again, check_climb, hallucinate, hallucinate_as_released
from ltnotes.options import choice, number, of_type

CHUNK = 256  # images generated at a time where no batch sets the number
IN_THE_ASCENT = ("accumulated-gradients", "shifted-classes", "stale-timeouts")
AS_RELEASED = (*IN_THE_ASCENT, "three-thresholds", "rounded-down", "fresh-images", "unconfused-skipped")
"""What the released code does otherwise than the paper; see ``as_released`` of :class:`BLT`."""


def confusing_class_probabilities(confusion: Tensor | Sequence[Sequence[float]]) -> Tensor:
    """Where images of class c go when they go wrong: row c of a float64 ``[C, C]``, zero on the diagonal, sum 1.

    The rows of a confusion matrix without its diagonal, rescaled (BLT, section 3.2). A
    class that is never confused has a row of zeros, of which the paper says nothing:
    here all other classes are then equally likely.

    Args:
        confusion: ``[C, C]``, counts or rates, row = true class, column = predicted class.

    Raises:
        ValueError: not square, fewer than two classes, or a negative or non-finite entry.
    """
    confusion = torch.as_tensor(confusion, dtype=torch.float64)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1] or len(confusion) < 2:
        raise ValueError(f"confusion: got shape {tuple(confusion.shape)}, allowed is [C, C] of two classes and more")
    if not (confusion.isfinite() & (confusion >= 0)).all():
        raise ValueError("confusion: got a negative or non-finite entry, allowed are 0 and above")
    wrong = confusion.clone().fill_diagonal_(0)
    wrong += wrong.sum(1, keepdim=True) == 0
    wrong.fill_diagonal_(0)
    return wrong / wrong.sum(1, keepdim=True)


class BLT(Transform):
    """Adds hallucinated images of the tail classes in a batch, with their own labels (BLT Algorithm 1).

    Of the ``n`` tail images in a batch the first ``ceil(fraction * n)`` (its order is random)
    each climb towards a class that theirs is confused with, by :func:`hallucinate`. The
    confusion matrix is made anew before every epoch. A batch without tail images stays.

    The paper's variants: "BLT for entire batch" is ``tail="all"``; "Augmentations" is
    ``new_images="augmented"``; "Neither" is ``fraction=0``; "BLT static targeted" and "BLT
    static random" are ``static=True`` with ``new_images="targeted"`` and ``"random"``. BLT
    with softmax and with uniform sampling are matters of head and balancer.

    The host waits for the device once a batch to learn how many tail images it holds, once
    for each step of :func:`hallucinate`, and once more for "unconfused-skipped".

    Args:
        fraction: the paper's p; 0.5 in its ablations, 0.25 in the supplement and the released
            code; the main tables do not say.
        tail: "few" (at most 20 training images), "smallest" (the smallest 30 % of the classes,
            for data where none has so few) or "all".
        new_images: "targeted" (hallucinated, towards a class drawn from the confusion matrix),
            "random" (towards any other class) or "augmented" (:func:`augment_again` instead).
        static: every tail training image gets its new image once, before the stage's first
            epoch, by the model as it then is (the paper took one trained before, without new
            images); a batch gets them by class.
        confusion_from: images that the confusion matrix is of: "validation", "train", or
            "test-every-second-epoch": in the released code the test set, evaluated after
            every second epoch, overwrites the matrix of the validation images (here of the
            training images where none are held out).
        min_confidence: range that each image's own is drawn from; with equal ends it is fixed.
        step_size, max_steps, score: see :func:`hallucinate`.
        weight: lambda of BLT Eq. 3, the loss weight of a new image; 1 in the paper.
        divide_by: what the batch's loss is divided by: "augmented", the number of all images,
            as "the regular training procedure" on Algorithm 1's output and the released code
            have it, or "original", the number without the new ones, as in Eq. 3.
        start: progress of the stage at which BLT begins. The released code skips the first
            of 55 epochs.
        as_released: names of :data:`AS_RELEASED`. The first three are those of
            :func:`hallucinate_as_released`; "three-thresholds": a confidence is the low end,
            the middle or the high end of the range; "rounded-down": ``int(fraction * n)``;
            "fresh-images": the ascent begins at a random training image of the class, as a
            comment in Algorithm 1 has it too, not at the batch's; "unconfused-skipped": a
            class that is never confused gets no image.

    Raises:
        ValueError: an option outside its range, no tail class, no validation images; in a
            step, labels of more than one kind, as mixup makes them.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        class_counts: Sequence[int],
        augment: Callable[[Tensor], Tensor],
        predict: Callable[[Any], Any],
        fraction: float = 0.5,
        tail: str = "few",
        new_images: str = "targeted",
        static: bool = False,
        confusion_from: str = "validation",
        min_confidence: tuple[float, float] = (0.15, 0.25),
        step_size: float = 0.7,
        max_steps: int = 15,
        score: str = "logit",
        weight: float = 1.0,
        divide_by: str = "augmented",
        start: float = 0.0,
        as_released: Sequence[str] = (),
    ):
        if not isinstance(min_confidence, Sequence) or len(min_confidence) != 2:
            raise ValueError(f"min_confidence: got {min_confidence!r}, allowed is a pair (low, high)")
        high = number("min_confidence", min_confidence[1], least=0, most=1)
        low = number("min_confidence", min_confidence[0], least=0, most=high)
        check_climb(step_size, max_steps, score)
        if isinstance(as_released, str) or not set(as_released) <= set(AS_RELEASED):
            raise ValueError(f"as_released: got {as_released!r}, allowed is a tuple of {', '.join(AS_RELEASED)}")
        if static and as_released:
            raise ValueError(f"as_released: got {as_released!r} with static=True, allowed is one of the two")
        self.model, self.data, self.augment, self.predict = model, data, augment, predict
        self.fraction, self.static = number("fraction", fraction, least=0, most=1), of_type("static", static, bool)
        self.new_images = choice("new_images", new_images, ("targeted", "random", "augmented"))
        self.weight, self.start = number("weight", weight, least=0), number("start", start, least=0, most=1)
        self.divide_by = choice("divide_by", divide_by, ("augmented", "original"))
        self.min_confidence, self.as_released = (low, high), frozenset(as_released)
        self.climb = partial(_ascent(self.as_released), step_size=step_size, max_steps=max_steps, score=score)
        self.epochs, self.begun = 0, start == 0
        self.splits = confusion_splits(data, confusion_from) if new_images == "targeted" else None
        self.in_tail = tail_mask(class_counts, tail).to(data.train.labels.device)
        self.pool = self.in_tail[data.train.labels].nonzero()[:, 0]  # training indices of all tail images
        self._set_confusion(torch.zeros(len(class_counts), len(class_counts)))  # all classes alike, for "random"

    def set_progress(self, t: float) -> None:
        """Begin at ``start``."""
        self.begun = number("t", t, least=0, most=1) >= self.start

    def start_stage(self) -> None:
        if self.static:
            self._look_at_confusion()
            labels = self.data.train.labels
            self.made = torch.cat([self._make(self.augment(part), labels[part]) for part in self.pool.split(CHUNK)])

    def start_epoch(self) -> None:
        if not self.static:
            self._look_at_confusion()
        self.epochs += 1

    def state_dict(self) -> dict[str, Any]:
        # The confusion matrix is not in it: every epoch begins by making its own.
        return {"epochs": self.epochs} | ({"made": self.made} if self.static else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = state["epochs"]
        if self.static:
            self.made = state["made"]

    def on_images(self, images: Tensor, labels: Labels) -> tuple[Tensor, Labels]:
        if len(labels) != 1:
            raise ValueError(f"labels: got {len(labels)} pairs of classes and weights, allowed is one; mixup makes two")
        targets, weight = labels[0]
        chosen = self._choose(targets)
        if len(chosen) == 0:
            return images, labels
        new_targets = targets[chosen]
        weight = images.new_ones(len(images)) * weight
        weights = torch.cat([weight, self.weight * weight[chosen]])
        if self.divide_by == "original":  # the loss divides by the number of all images
            weights = weights * (len(weights) / len(images))
        new_images = self._new_images(images[chosen], new_targets)
        return torch.cat([images, new_images]), [(torch.cat([targets, new_targets]), weights)]

    def _choose(self, targets: Tensor) -> Tensor:
        """Positions in the batch of the images that are to have a new one."""
        if not self.begun:
            return targets[:0]
        tail = self.in_tail[targets].nonzero()[:, 0]
        share = self.fraction * len(tail)
        # Without the small number 0.1 * 30 is above 3.
        chosen = tail[: int(share) if "rounded-down" in self.as_released else math.ceil(share - 1e-9)]
        if "unconfused-skipped" in self.as_released:
            chosen = chosen[self.confused[targets[chosen]]]
        return chosen

    def _new_images(self, images: Tensor, targets: Tensor) -> Tensor:
        """A new image of each class, made from the batch's image of it unless an option says otherwise."""
        if not self.static and "fresh-images" not in self.as_released:
            return self._make(images, targets)
        same_class = self.data.train.labels[self.pool] == targets[:, None]
        drawn = draw(same_class)  # of the tail's images, a random one of each class
        return self.made[drawn] if self.static else self._make(self.augment(self.pool[drawn]), targets)

    def _make(self, images: Tensor, targets: Tensor) -> Tensor:
        """A new image from each."""
        if self.new_images == "augmented":
            return augment_again(images, self.data.mean, self.data.std, self.data.flip)
        confusing_classes = draw(self.confusing[targets])
        share = torch.rand(targets.shape, device=images.device)
        if "three-thresholds" in self.as_released:
            share = (3 * share).floor() / 2
        low, high = self.min_confidence
        return self.climb(self.model, images, confusing_classes, low + (high - low) * share)

    def _look_at_confusion(self) -> None:
        if self.splits is None:
            return
        split = self.splits[self.epochs > 0 and self.epochs % 2 == 0]
        answers = [torch.as_tensor(self.predict(piece)).argmax(1) for piece in split.pieces()]
        predicted = torch.cat(answers).to(split.labels.device)
        classes = len(self.in_tail)
        pairs = torch.bincount(split.labels * classes + predicted, minlength=classes**2)
        self._set_confusion(pairs.view(classes, classes))

    def _set_confusion(self, confusion: Tensor) -> None:
        self.confused = (confusion.sum(1) > confusion.diagonal()).to(self.in_tail.device)
        self.confusing = confusing_class_probabilities(confusion).float().to(self.in_tail.device)


def _ascent(as_released: frozenset[str]) -> Callable[..., Tensor]:
    chosen = {name.replace("-", "_"): name in as_released for name in IN_THE_ASCENT}
    return partial(hallucinate_as_released, **chosen) if any(chosen.values()) else hallucinate


def draw(weights: Tensor) -> Tensor:
    """A column of each row of ``weights`` ``[B, N]``, by weight; ``torch.multinomial`` would wait for the device."""
    edges = weights.double().cumsum(1)
    uniform = torch.rand(len(edges), 1, dtype=torch.float64, device=edges.device) * edges[:, -1:]
    return torch.searchsorted(edges, uniform, right=True)[:, 0].clamp_max(weights.shape[1] - 1)


def tail_mask(class_counts: Sequence[int], tail: str) -> Tensor:
    """Which classes are tail classes, bool ``[C]``; see :class:`BLT`.

    Raises:
        ValueError: bad counts, an unknown ``tail``, or no class of 20 images or fewer for "few".
    """
    choice("tail", tail, ("few", "smallest", "all"))
    groups = shot_groups(class_counts) | rank_groups(class_counts) | {"all": range(len(class_counts))}
    if not groups[tail]:
        raise ValueError(
            f"tail: got 'few', but no class has 20 images or fewer, the smallest has {min(class_counts)};"
            " allowed are 'smallest' and 'all'"
        )
    mask = torch.zeros(len(class_counts), dtype=torch.bool)
    mask[list(groups[tail])] = True
    return mask


def confusion_splits(data: Any, confusion_from: str) -> tuple[Any, Any]:
    """What the confusion matrix is of in most epochs, and in every second one; see :class:`BLT`.

    Raises:
        ValueError: an unknown ``confusion_from``, or validation images that are not there.
    """
    held_out = data.validation
    splits = {
        "validation": (held_out, held_out),
        "train": (data.train, data.train),
        "test-every-second-epoch": (held_out or data.train, data.test),
    }
    choice("confusion_from", confusion_from, splits)
    if splits[confusion_from][0] is None:
        raise ValueError(
            f"confusion_from: got {confusion_from!r}, but no images are held out for validation;"
            " allowed are a recipe with validation=1 or more, or confusion_from='train'"
        )
    return splits[confusion_from]

"""Exercises of chapter 2: class probabilities, drawing with them, and the weighted loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ltnotes.exercises import COUNTS, EQUAL, in_order
from ltnotes.exercises.engine import Case, Exercise, Mistake
from ltnotes.methods import balancers
from ltnotes.methods.baselines import WeightedCrossEntropy

# --- class probabilities --------------------------------------------------------

SORTED = "classes taken to be sorted by size. Number j of the answer belongs to counts[j], in whatever order they are"


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum()


def _powers(counts: list[int], exponent: float) -> Tensor:
    return torch.tensor(counts, dtype=torch.float64) ** exponent


def _with(name: str, *values: float) -> Callable[[], list[Case]]:
    """Every set of counts with every value of an argument."""
    return lambda: [{"counts": counts, name: value} for counts in COUNTS for value in values]


power_balanced = Exercise(
    "power_balanced(counts, gamma) returns class probabilities, float64, [C]",
    reference=balancers.power_balanced,
    cases=_with("gamma", 0.9, 0.0, 0.5, 1.0),
    rtol=1e-9,
    mistakes={
        "the weight of one sample taken for the probability of its class. A class has n samples, so its"
        " share is n times that weight: n**(1 - gamma)": lambda counts, gamma: _normalised(_powers(counts, -gamma)),
        "the probability of one image. A class is drawn as often as all of its n images"
        " together": lambda counts, gamma: balancers.power_balanced(counts, gamma) / _powers(counts, 1),
        "not normalised: the probabilities have to sum to 1": lambda counts, gamma: _powers(counts, 1 - gamma),
        "the weights of the samples as they stand, n**-gamma, neither multiplied by the samples of the class"
        " nor normalised": lambda counts, gamma: _powers(counts, -gamma),
        "the weights of the samples as BLT's Eq. 1 has them, sum(n) / n**gamma, neither multiplied by the"
        " samples of the class nor normalised": lambda counts, gamma: sum(counts) * _powers(counts, -gamma),
        SORTED: lambda counts, gamma: balancers.power_balanced(in_order(counts), gamma),
        "gamma as the exponent. It is 1 - gamma: 0 is instance-balanced, 1 class-balanced": lambda counts, gamma: (
            _normalised(_powers(counts, gamma))
        ),
        "the sign of the exponent turned: the rarest class is drawn most. It is 1 - gamma, where this has"
        " gamma - 1": lambda counts, gamma: _normalised(_powers(counts, gamma - 1)),
        "the logarithm missing: a softmax of (1 - gamma) * n. With log(n) in the place of n it is"
        " right": lambda counts, gamma: ((1 - gamma) * _powers(counts, 1)).softmax(0),
    },
)


def _weights(counts: list[int], beta: float) -> Tensor:
    return balancers.inverse_effective_number(counts, beta)


effective_number_balanced = Exercise(
    "effective_number_balanced(counts, beta) returns class probabilities, float64, [C]",
    reference=balancers.effective_number_balanced,
    cases=_with("beta", 0.9, 0.99, 0.999),
    rtol=1e-9,
    mistakes={
        "the weight of one sample taken for the probability of its class. A class has n samples: multiply by"
        " n before normalising": lambda counts, beta: _normalised(_weights(counts, beta)),
        "not normalised: the probabilities have to sum to 1": lambda counts, beta: (
            _weights(counts, beta) * _powers(counts, 1)
        ),
        "the weights of the samples as they stand, neither multiplied by the samples of the class nor"
        " normalised": _weights,
        SORTED: lambda counts, beta: balancers.effective_number_balanced(in_order(counts), beta),
        "the effective number itself. The weight of a sample is one over it, times the n samples of the"
        " class": lambda counts, beta: _normalised(1 / _weights(counts, beta)),
        "the effective number in place of one over it: the fraction is upside down": lambda counts, beta: _normalised(
            _powers(counts, 1) / _weights(counts, beta)
        ),
        "a weight that is the same for every class, so that images are equally likely. beta needs its"
        " exponent n": lambda counts, beta: balancers.instance_balanced(counts),
    },
)

# --- drawing --------------------------------------------------------------------

CLASS_DEVIATIONS, IMAGE_DEVIATIONS = 5, 7  # more for images, because there are more of them
RARE = 7  # draws that an image may have beyond that: the deviation of a rare one says little


def _training_sets() -> list[Case]:
    """Labels in any order. The first case draws as many images as there are, which needs no replacement.

    In the others every image is expected often enough for one that never comes to be seen.
    """
    generator = torch.Generator().manual_seed(0)
    few, many = [30, 120, 1, 60, 5], COUNTS[-1][:20]
    many = [max(1, n // 25) for n in many]
    cases = []
    for counts, gamma, size in (
        (few, 1.0, sum(few)),
        (few, 0.3, 30_000),
        (EQUAL[:2], 0.0, 10_000),
        (many, 0.9, 30_000),
    ):
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        shuffled = labels[torch.randperm(len(labels), generator=generator)]
        cases.append({"p": balancers.power_balanced(counts, gamma), "labels": shuffled, "size": size})
    cases.append(
        {"p": torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), "labels": torch.arange(60) % 3, "size": 10_000}
    )
    return cases


def _observed(indices: Tensor, p: Tensor, labels: Tensor, size: int) -> Tensor:
    """How often each class and each image was drawn, and how many different images: ``[C + N + 1]``.

    Raises:
        Mistake: another shape, or something that is no index of an image.
    """
    if indices.shape != (size,):
        raise Mistake(f"returns shape {list(indices.shape)}, expected {[size]}: an index for each of the size draws")
    outside = indices[(indices != indices.floor()) | (indices < 0) | (indices >= len(labels))]
    if len(outside):
        raise Mistake(f"returns {outside[0]:g}, which is no index of {len(labels)} images")
    per_image = torch.bincount(indices.long(), minlength=len(labels)).double()
    return _statistics(per_image, (per_image > 0).sum(), p, labels)


def _statistics(per_image: Tensor, different: Tensor | int, p: Tensor, labels: Tensor) -> Tensor:
    per_class = torch.zeros(len(p), dtype=torch.float64).index_add(0, labels, per_image)
    return torch.cat([per_class, per_image, torch.as_tensor([different], dtype=torch.float64)])


def _expected(chance: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """What is expected where an image's chance in each draw is a function of ``p``, labels and counts ``[C]``."""

    def expected(p: Tensor, labels: Tensor, size: int) -> Tensor:
        q = _normalised(chance(p, labels, torch.bincount(labels, minlength=len(p)).double()))
        return _statistics(size * q, (1 - (1 - q) ** size).sum(), p, labels)

    return expected


def _allowed(expected: Tensor, p: Tensor, labels: Tensor, size: int) -> Tensor:
    """Binomial deviations, of each class its own; that of different images is at most this (Jensen)."""
    total = torch.full_like(expected, size)
    total[-1] = len(labels)
    deviation = (expected * (1 - expected / total).clamp_min(0)).sqrt()
    allowed = CLASS_DEVIATIONS * deviation + 1e-6
    images = slice(len(p), -1)
    # An image that is never to be drawn has no deviation, and no margin.
    allowed[images] = (IMAGE_DEVIATIONS * deviation[images] + RARE) * (expected[images] > 0)
    return allowed


def _without_one(position: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The chances where the first (0) or last (-1) image of a class is forgotten, unless it is the only one."""

    def chance(p: Tensor, labels: Tensor, n: Tensor) -> Tensor:
        q = (p / (n - 1).clamp_min(1))[labels]
        for class_id in range(len(p)):
            members = (labels == class_id).nonzero()[:, 0]
            if len(members) > 1:
                q[members[position]] = 0
        return q

    return chance


def _each_once(p: Tensor, labels: Tensor, size: int) -> Tensor:
    """No image twice. Where more are drawn than there are, no answer agrees with this many different ones."""
    return _statistics(torch.full((len(labels),), size / len(labels)).double(), size, p, labels)


def _named(index: tuple[int], p: Tensor, labels: Tensor, size: int) -> str:
    (i,) = index
    if i < len(p):
        return f"draws of class {i}, which has {int((labels == i).sum())} of the images"
    i -= len(p)
    return f"draws of image {i}, of class {labels[i]}" if i < len(labels) else "different images"


draw = Exercise(
    "draw(p, labels, size): class probabilities p [C], labels [N]; returns indices of images, [size]",
    reference=_expected(lambda p, labels, n: (p / n)[labels]),
    cases=_training_sets,
    observe=_observed,
    allowed=_allowed,
    entry=_named,
    mistakes={
        "the probability of a class given to each of its images, so that the tail is drawn too rarely. The n"
        " images of a class share it: p / n for each": _expected(lambda p, labels, n: p[labels]),
        "labels taken to be sorted: positions were counted class after class. Look up which images have the"
        " label, with torch.where or argsort": _expected(lambda p, labels, n: (p / n)[labels.sort().values]),
        "the last image of each class is never drawn. randint leaves out its upper end already, and a uniform"
        " number times n is rounded down to 0 ... n - 1": _expected(_without_one(-1)),
        "the first image of each class is never drawn. Positions within a class begin at 0": _expected(_without_one(0)),
        "drawn without replacement: no image comes twice. A tail of few images has to repeat them": _each_once,
        "every image equally likely: p has no effect": _expected(lambda p, labels, n: torch.ones(len(labels)).double()),
        "the classes that were drawn. An index of an image of that class is asked for": _expected(
            lambda p, labels, n: F.pad(p, (0, len(labels) - len(p)))
        ),
    },
)

# --- the weighted loss ----------------------------------------------------------


def _batches() -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    cases = []
    for counts, size in zip(COUNTS, (3, 16, 32, 64), strict=True):
        logits = 2 * torch.randn(size, len(counts), generator=generator)
        targets = torch.randint(len(counts), (size,), generator=generator)
        cases.append({"logits": logits, "targets": targets, "counts": counts})
    return cases


def _loss(weights: Callable[[Tensor], Tensor], reduction: str = "mean") -> Callable[..., Tensor]:
    """Cross-entropy with weights that are a function of the counts, over the batch's size or not divided."""

    def loss(logits: Tensor, targets: Tensor, counts: list[int]) -> Tensor:
        per_sample = F.cross_entropy(logits, targets, reduction="none")
        weighted = weights(torch.tensor(counts, dtype=torch.float64))[targets] * per_sample
        return weighted.mean() if reduction == "mean" else weighted.sum()

    return loss


def _rescaled(weights: Tensor) -> Tensor:
    return len(weights) * _normalised(weights)


weighted_cross_entropy = Exercise(
    "weighted_cross_entropy(logits, targets, counts): logits [B, C], targets [B]; returns one number",
    reference=lambda logits, targets, counts: WeightedCrossEntropy(counts)(logits, targets),
    cases=_batches,
    rtol=1e-5,
    mistakes={
        "divided by the sum of the batch's weights, as torch's weight= does. Then what a sample weighs depends"
        " on its batch: divide by the batch size": lambda logits, targets, counts: WeightedCrossEntropy(
            counts, divide_by="weights"
        )(logits, targets),
        "weights that are not rescaled. 1 / n has to be multiplied so that the C weights sum to C": _loss(
            lambda n: 1 / n
        ),
        "weights that sum to 1. They have to sum to C, so that equal counts give plain cross-entropy": _loss(
            lambda n: _normalised(1 / n)
        ),
        "weights with a mean of 1 over the images. Here the mean over the classes is 1": _loss(lambda n: n.mean() / n),
        "weights that grow with n: the tail counts even less. The weight of a class is one over its count": _loss(
            _rescaled
        ),
        "no weights: plain cross-entropy": _loss(torch.ones_like),
        "a sum over the batch. Divide it by the batch size": _loss(lambda n: _rescaled(1 / n), "sum"),
        "classes taken to be sorted by size. The weight of a sample is that of counts[target], in whatever"
        " order they are": lambda logits, targets, counts: WeightedCrossEntropy(in_order(counts))(logits, targets),
        "the sign of the logarithm: a loss is minus the log-probability": _loss(lambda n: -_rescaled(1 / n)),
    },
)

"""The exercises of chapter 5: a class activation map, and the classes that a class is confused with."""

from __future__ import annotations

import torch
from torch import Tensor

from ltnotes.exercises.engine import Case, Exercise

# --- class_activation_map ------------------------------------------------------


def _maps() -> list[Case]:
    """Maps of both signs whose ranges differ from image to image, none a square of channels, one of them constant."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for batch, width, height, across in ((2, 3, 2, 2), (6, 5, 3, 4), (4, 4, 4, 4)):
        maps = torch.randn(batch, width, height, across, generator=generator, dtype=torch.float64)
        maps *= torch.linspace(0.5, 3, batch, dtype=torch.float64)[:, None, None, None]
        weight = torch.randn(batch, width, generator=generator, dtype=torch.float64)
        cases.append({"feature_map": maps, "class_weight": weight})
    constant = cases[-1]["feature_map"][:1].mean((2, 3), keepdim=True).expand(1, 4, 4, 4)
    last = {name: value.clone() for name, value in cases[-1].items()}
    last["feature_map"][1] = constant[0].round(decimals=1)
    return [*cases, last]


def _raw(maps: Tensor, weight: Tensor) -> Tensor:
    return (maps * weight[:, :, None, None]).sum(1)


def _scaled(a: Tensor, low: Tensor, high: Tensor, constant: float = 0.0) -> Tensor:
    span = high - low
    return torch.where(span > 0, (a - low) / torch.where(span > 0, span, 1.0), constant)


def _per_image(a: Tensor) -> Tensor:
    return _scaled(a, a.amin((1, 2), keepdim=True), a.amax((1, 2), keepdim=True))


def _over_channels(maps: Tensor, weight: Tensor) -> Tensor:
    each = maps * weight[:, :, None, None]
    return _scaled(each, each.amin((2, 3), keepdim=True), each.amax((2, 3), keepdim=True)).sum(1)


class_activation_map = Exercise(
    "class_activation_map(feature_map, class_weight): feature_map [B, D, h, w], class_weight [B, D]; returns [B, h, w]",
    reference=lambda maps, weight: _per_image(_raw(maps, weight)),
    cases=_maps,
    atol=1e-9,
    entry=lambda index, **case: f"image {index[0]}, row {index[1]}, column {index[2]}",
    mistakes={
        "a ReLU before the normalisation, as in Grad-CAM. FSA's map has none": lambda maps, weight: _per_image(
            _raw(maps, weight).clamp_min(0)
        ),
        "not normalised: bring each image's map to [0, 1]": _raw,
        "normalised over the whole batch. Minimum and maximum belong to one image each: the last two"
        " axes": lambda maps, weight: _scaled(_raw(maps, weight), _raw(maps, weight).amin(), _raw(maps, weight).amax()),
        "divided by the maximum alone: subtract the minimum first": lambda maps, weight: (
            _raw(maps, weight) / _raw(maps, weight).amax((1, 2), keepdim=True)
        ),
        "normalised channel by channel, and then summed: sum over the channels first": _over_channels,
        "the mean over the channels without the weights of the class": lambda maps, weight: _per_image(maps.sum(1)),
        "standardised to mean 0 and deviation 1, where minimum and maximum are asked for": lambda maps, weight: (
            (_raw(maps, weight) - _raw(maps, weight).mean((1, 2), keepdim=True))
            / _raw(maps, weight).std((1, 2), keepdim=True)
        ),
        "softmax over the places, where minimum and maximum are asked for": lambda maps, weight: (
            _raw(maps, weight).flatten(1).softmax(1).view(len(maps), *maps.shape[2:])
        ),
        "a map that is the same everywhere gives 0/0. It says nothing, and becomes zeros": lambda maps, weight: _scaled(
            _raw(maps, weight),
            _raw(maps, weight).amin((1, 2), keepdim=True),
            _raw(maps, weight).amax((1, 2), keepdim=True),
            torch.nan,
        ),
        "upside down: the place that speaks most for the class has to be 1": lambda maps, weight: _per_image(
            -_raw(maps, weight)
        ),
        "one class's weights for all images, those of the first": lambda maps, weight: _per_image(
            _raw(maps, weight[:1].expand_as(weight))
        ),
    },
)

# --- most_confusing ------------------------------------------------------------


def _scored() -> list[Case]:
    """Probabilities of classes of very different sizes, in mixed order, that are confused one-sidedly; then logits."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    of_many = [3 * (7 * j % 23) + 1 for j in range(23)]
    for sizes, top, sharpness in (([3] * 4, 1, 1.0), ((20, 3, 60, 7, 1), 2, 2.0), (of_many, 3, 1.5)):
        classes = len(sizes)
        labels = torch.arange(classes).repeat_interleave(torch.tensor(sizes))
        labels = labels[torch.randperm(len(labels), generator=generator)]
        affinity = sharpness * torch.randn(classes, classes, generator=generator, dtype=torch.float64)
        affinity += 2 * torch.eye(classes, dtype=torch.float64)
        noise = torch.randn(len(labels), classes, generator=generator, dtype=torch.float64)
        scores = (affinity[labels] + noise).softmax(1)
        cases.append({"scores": scores, "labels": labels, "top": top})
    logits = {**cases[-1], "scores": cases[-1]["scores"].log() - 1.0}
    return [*cases, logits]


def _by_label(scores: Tensor, labels: Tensor) -> Tensor:
    classes = scores.shape[1]
    return torch.stack([scores[labels == c].mean(0) for c in range(classes)])


def _ranked(table: Tensor, top: int, own: float | None = -torch.inf, descending: bool = True) -> Tensor:
    table = table.clone()
    if own is not None:
        table.fill_diagonal_(own)
    return table.argsort(1, descending=descending)[:, :top]


def _sums(scores: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([scores[labels == c].sum(0) for c in range(scores.shape[1])])


def _answers(scores: Tensor, labels: Tensor) -> Tensor:
    """How often each class is answered for the images of each, without a score."""
    hits = torch.zeros_like(scores).scatter(1, scores.argmax(1, keepdim=True), 1.0)
    return _by_label(hits, labels)


most_confusing = Exercise(
    "most_confusing(scores, labels, top): scores [N, C], labels [N], top a number; returns class ids [C, top]",
    reference=lambda scores, labels, top: _ranked(_by_label(scores, labels), top),
    cases=_scored,
    entry=lambda index, **case: f"class {index[0]}, place {index[1] + 1}",
    mistakes={
        "the class itself is not excluded": lambda scores, labels, top: _ranked(_by_label(scores, labels), top, None),
        "column for row: these are the classes whose images score it highest. FSA asks what the class's own images"
        " score": lambda scores, labels, top: _ranked(_by_label(scores, labels).T, top),
        "column for row, and sums in the place of means, so that large classes win": lambda scores, labels, top: (
            _ranked(_sums(scores, labels).T, top)
        ),
        "the least confusing classes: the highest means come first": lambda scores, labels, top: _ranked(
            _by_label(scores, labels), top, torch.inf, False
        ),
        "the diagonal is set to 0, which is not the lowest where scores are negative": lambda scores, labels, top: (
            _ranked(_by_label(scores, labels), top, 0.0)
        ),
        "how often a class is answered, in the place of its mean score": lambda scores, labels, top: _ranked(
            _answers(scores, labels), top
        ),
        "the same classes for every row: the mean is over all images": lambda scores, labels, top: _ranked(
            scores.mean(0).expand(scores.shape[1], -1), top
        ),
        "the highest score of a single image, in the place of the mean": lambda scores, labels, top: _ranked(
            torch.stack([scores[labels == c].amax(0) for c in range(scores.shape[1])]), top
        ),
    },
)

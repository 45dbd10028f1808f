"""Feature fusion by class activation maps (chapter 5; Chu et al., Feature Space Augmentation, ECCV 2020: FSA).

Phase I trains as usual. Phase II fine-tunes the classifier on batches of which one half
are head images; the other half are tail images, and samples fused from what is specific
to a tail image and what is generic in images of the classes it is confused with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltnotes.counts import check_counts
from ltnotes.methods.common import Labels, Transform
from ltnotes.options import choice, number, whole

MOST_PER_IMAGE = 1000


def class_activation_map(feature_map: Tensor, class_weight: Tensor) -> Tensor:
    """``M(x, y) = sum_k w_k f_k(x, y)``, min-max normalised per image to [0, 1], ``[B, h, w]`` (FSA Eq. 1).

    Without ReLU. Scaling ``w`` changes nothing, so the weights of a cosine classifier will
    do. A constant map, which says nothing, becomes zeros: all of it is class-generic.

    Args:
        feature_map: ``[B, D, h, w]``, the last before pooling.
        class_weight: ``[B, D]``, the classifier's weights of each image's class.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if feature_map.ndim != 4 or class_weight.shape != feature_map.shape[:2]:
        raise ValueError(
            f"feature_map, class_weight: got shapes {tuple(feature_map.shape)} and {tuple(class_weight.shape)},"
            " allowed are [B, D, h, w] and [B, D]"
        )
    # Not einsum: autocast would round it to half precision.
    return _min_max((feature_map * class_weight[:, :, None, None]).sum(1))


def _min_max(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    span = high - low
    return (maps - low) / span.masked_fill(span == 0, 1)


def head_classes(counts: Sequence[int], ratio: float = 0.9) -> list[int]:
    """The fewest largest classes that hold at least ``ratio`` of the images, largest first, ties by id (FSA 5.4).

    Raises:
        ValueError: bad counts, or a ratio outside (0, 1].
    """
    counts = check_counts(counts, "counts")
    ratio = number("ratio", ratio, above=0, most=1)
    by_size = sorted(range(len(counts)), key=lambda class_id: (-counts[class_id], class_id))
    needed = Fraction(str(ratio)) * sum(counts)  # as written: the float 0.9 is a little more than nine tenths
    held = accumulate(counts[class_id] for class_id in by_size)
    return by_size[: 1 + sum(images < needed for images in held)]


def most_confusing(scores: Tensor, labels: Tensor, top: int = 3) -> Tensor:
    """Of each class, the other classes that its own samples score highest, int64 ``[C, top]`` (FSA 4.2).

    Highest mean first, ties by id. All other classes are ranked, as 4.2 says; elsewhere FSA
    has only head classes give features (2.3).

    Args:
        scores: ``[N, C]``, classification scores of the training images.
        labels: ``[N]`` class ids; every class is present.

    Raises:
        ValueError: shapes that do not fit together, a class without samples, or a ``top``
            beyond the other classes.
    """
    scores, labels = torch.as_tensor(scores), torch.as_tensor(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"scores, labels: got shapes {tuple(scores.shape)} and {tuple(labels.shape)}, allowed are [N, C] and [N]"
        )
    classes = scores.shape[1]
    top = whole("top", top, least=1, most=classes - 1)
    labels = labels.to(scores.device)
    present = labels.unique()
    if present.tolist() != list(range(classes)):
        raise ValueError(
            f"labels: got classes {present}, allowed are 0 to {classes - 1}, each with at least one sample"
        )
    return highest_scored(sum_scores([scores], labels), top)


def sum_scores(scores: Iterable[Tensor], labels: Tensor) -> Tensor:
    """What each class's samples score in sum, ``[C, C]``, from scores ``[b, C]`` in the order of the labels ``[N]``."""
    sums, done = None, 0
    for batch in scores:
        classes = labels[done : done + len(batch)].to(batch.device)
        sums = batch.new_zeros(batch.shape[1], batch.shape[1]) if sums is None else sums
        sums.index_add_(0, classes, batch)
        done += len(batch)
    return sums


def highest_scored(sums: Tensor, top: int) -> Tensor:
    """Of each class, the other classes with the highest sums ``[C, C]``, int64 ``[C, top]``."""
    # In each row, sums are in the order of the means.
    return sums.clone().fill_diagonal_(-torch.inf).argsort(dim=1, descending=True, stable=True)[:, :top]


def fuse(
    tail_map: Tensor,
    tail_cam: Tensor,
    other_map: Tensor,
    other_cam: Tensor,
    tau_specific: float,
    tau_generic: float,
    ratio: Tensor | float,
    spatial: bool = False,
    weighted: bool = False,
) -> Tensor:
    """Class-specific vectors of one map with class-generic vectors of another, ``[B, D, h, w]`` (FSA Algorithm 1).

    Of the ``L = h * w`` vectors of a fused map, ``round(ratio * L)`` are drawn from where
    ``tail_cam >= tau_specific``, the others from where ``other_cam <= tau_generic``. FSA
    says nothing of sets that are too small. Here a set is drawn from without replacement,
    and anew once it is used up. Where no location reaches a threshold, those that come
    closest are the set, so that none is ever empty.

    Args:
        tail_map, other_map: ``[B, D, h, w]``.
        tail_cam, other_cam: ``[B, h, w]``, each for its map's own class.
        ratio: gamma, one or ``[B]``, in [0, 1].
        spatial: for maps that are not pooled next, keep generic vectors at their place.
            FSA 5.4 replaces "class-specific features in F_u^g", which has none, by those
            "in F_c^g", which are not there either. Read as: vectors of the tail go first to
            locations that are not generic in the other map; one that gets none and is
            not generic gets another generic vector. If False, places mean nothing.
        weighted: multiply every vector by its activation, as Eqs. 2 and 3 have it. The
            text (4.2) and Algorithm 1 use binary masks.

    Raises:
        ValueError: shapes that do not fit together, or a number outside [0, 1].
    """
    _check_shapes(tail_map, tail_cam, other_map, other_cam)
    tau_specific = number("tau_specific", tau_specific, least=0, most=1)
    tau_generic = number("tau_generic", tau_generic, least=0, most=1)
    if not isinstance(ratio, Tensor):  # to look into a tensor would wait for a GPU
        number("ratio", ratio, least=0, most=1)
    elif ratio.shape not in ((), tail_map.shape[:1]):
        raise ValueError(f"ratio: got shape {tuple(ratio.shape)}, allowed is one number or {tuple(tail_map.shape[:1])}")
    size = tail_map.shape[2:]
    places = size.numel()
    tail_cam, other_cam = tail_cam.flatten(1), other_cam.flatten(1)
    specific = tail_cam >= tail_cam.amax(1, keepdim=True).clamp_max(tau_specific)
    generic = other_cam <= other_cam.amin(1, keepdim=True).clamp_min(tau_generic)
    from_tail, from_other = _draw(specific, places), _draw(generic, places)
    turn = location = torch.arange(places, device=tail_map.device).expand_as(generic)
    if spatial:
        turn = _shuffle(~generic).argsort(1)
        from_tail = from_tail.gather(1, turn)
        from_other = torch.where(generic, location, from_other.gather(1, turn))
    tail, other = tail_map.flatten(2), other_map.flatten(2)
    if weighted:
        tail, other = tail * tail_cam[:, None].to(tail), other * other_cam[:, None].to(other)
    taken = turn < (ratio * torch.full_like(turn[:, 0], places)).round()[:, None]
    return torch.where(taken[:, None], _at(tail, from_tail), _at(other, from_other)).unflatten(2, size)


def _shuffle(mask: Tensor) -> Tensor:
    """Positions of each row ``[B, L]`` in random order, those in the mask first."""
    return (torch.rand(mask.shape, device=mask.device) + ~mask).argsort(1)


def _draw(mask: Tensor, number: int) -> Tensor:
    """Positions ``[B, number]`` in each row's mask, without replacement until it is used up."""
    turns = torch.arange(number, device=mask.device)
    return _shuffle(mask).gather(1, turns % mask.sum(1, keepdim=True).clamp_min(1))  # empty if activations are NaN


def _at(vectors: Tensor, locations: Tensor) -> Tensor:
    return vectors.gather(2, locations[:, None].expand(-1, vectors.shape[1], -1))


def _check_shapes(tail_map: Tensor, tail_cam: Tensor, other_map: Tensor, other_cam: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in (tail_map, tail_cam, other_map, other_cam)]
    plane = shapes[0][:1] + shapes[0][2:]
    if len(shapes[0]) != 4 or shapes != [shapes[0], plane, shapes[0], plane]:
        raise ValueError(
            f"tail_map, tail_cam, other_map, other_cam: got shapes {shapes},"
            " allowed are [B, D, h, w] for both maps and [B, h, w] for both activations"
        )


class CAMFusion(Transform):
    """Balanced batches of tail images, fused samples of tail classes, and head images (FSA Algorithm 1).

    Whatever was drawn, a batch of ``2 N_t (1 + N_a)`` is composed anew: ``N_t`` tail
    images; ``N_a`` partners of each, from the classes it is most confused with, which the
    fused samples will replace; ``N_t (1 + N_a)`` head images, a number that 4.3 has and
    Algorithm 1 draws ``N_t`` times. ``N_t`` is what fits the batch size, and at least 1,
    as an epoch's last batch may be short. Gamma is drawn uniformly for each fused sample.
    Activations use the class weights that the stage begins with: give it no new head.

    Args:
        num_confusing, per_image: ``N_f`` and ``N_a``. A tail image's partners are of
            different classes, drawn from the ``N_f``, and of each once more when all are used.
        tau_specific, tau_generic: thresholds of the activation. FSA gives no values; these
            are those of a public re-implementation.
        head_ratio: see :func:`head_classes`.
        block: after how many blocks of the backbone maps are fused; after the last if
            None. Before the last, the activation of the last map is resized, and places
            are kept (``spatial`` in :func:`fuse`).
        fusion: False is FSA's "No Aug", the balanced batch alone: more tail images take
            the place of the fused samples.
        draw: what is drawn uniformly in each half of the batch, which FSA does not say.
            "class" draws a class, then one of its images, as 5.2 calls the batches class
            balanced; "image" draws an image.
        weighted: see :func:`fuse`.

    Raises:
        ValueError: bad counts or options, or no tail class; in a step, a last map of 1x1.
    """

    capturable = True

    def __init__(
        self,
        model: Any,
        data: Any,
        class_counts: Sequence[int],
        predict: Callable[[Any], Any],
        num_confusing: int = 3,
        per_image: int = 3,
        tau_specific: float = 0.8,
        tau_generic: float = 0.2,
        head_ratio: float = 0.9,
        block: int | None = None,
        fusion: bool = True,
        draw: str = "class",
        weighted: bool = False,
    ):
        counts = check_counts(class_counts)
        head = head_classes(counts, number("head_ratio", head_ratio, above=0, most=1))
        tail = sorted(set(range(len(counts))) - set(head))
        if not tail:
            raise ValueError(
                f"head_ratio: got {head_ratio}, which leaves no class to the tail, allowed is a smaller one"
            )
        self.model, self.train, self.predict = model, data.train, predict
        self.num_confusing = whole("num_confusing", num_confusing, least=1, most=len(counts) - 1)
        self.per_image = whole("per_image", per_image, least=1, most=MOST_PER_IMAGE)
        thresholds = {"tau_specific": tau_specific, "tau_generic": tau_generic}
        self.thresholds = [number(name, value, least=0, most=1) for name, value in thresholds.items()]
        self.block = None if block is None else whole("block", block, least=1, most=len(model.backbone))
        self.fusion, self.weighted = fusion, weighted
        device = data.train.labels.device
        self.by_class = torch.argsort(data.train.labels, stable=True)
        self.counts = torch.tensor(counts, device=device)
        self.starts = self.counts.cumsum(0) - self.counts
        # A class that is drawn as often as it has images: its images are drawn uniformly.
        times = self.counts if choice("draw", draw, ("class", "image")) == "image" else torch.ones_like(self.counts)
        self.tail, self.head = (
            torch.tensor(half, device=device).repeat_interleave(times[half]) for half in (tail, head)
        )
        # From the map after the block to the last, as phase I left it: the network itself goes on learning.
        self.rest = copy.deepcopy(model.backbone[len(model.backbone) if block is None else block :]).eval()
        self.phase_one: dict[str, Tensor] = {}

    def start_stage(self) -> None:
        """Keep the class weights of phase I, and find the classes that each class is confused with."""
        if self.fusion:
            scores = (torch.as_tensor(self.predict(piece)) for piece in self.train.pieces())
            confusing = highest_scored(sum_scores(scores, self.train.labels), self.num_confusing)
            weight = self.model.class_weight.detach().clone()
            self.phase_one = {"class_weight": weight, "confusing": confusing.to(weight.device)}

    def state_dict(self) -> dict[str, Any]:
        return {**self.phase_one, "rest": self.rest.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rest.load_state_dict(state["rest"])
        self.phase_one = {name: value for name, value in state.items() if name != "rest"}

    def on_indices(self, indices: Tensor) -> Tensor:
        tails, partners, heads = self._sizes(len(indices))
        head = self._classes(self.head, heads)
        if not self.fusion:
            return self._images(torch.cat([self._classes(self.tail, tails + partners), head]))
        tail = self._classes(self.tail, tails)
        confusing = self.phase_one["confusing"][tail]
        chosen = _draw(torch.ones_like(confusing, dtype=torch.bool), self.per_image)
        return self._images(torch.cat([tail, confusing.gather(1, chosen).flatten(), head]))

    def on_feature_map(self, feature_map: Tensor, labels: Labels) -> tuple[Tensor, Labels]:
        if not self.fusion:
            return feature_map, labels
        ((targets, weight),) = labels
        sizes = self._sizes(len(targets))
        tail_map, other_map, head_map = feature_map.split(sizes)
        tail, other, head = targets.split(sizes)
        tail_cam, other_cam = self._activation(tail_map, tail), self._activation(other_map, other)
        maps, cams, classes = (x.repeat_interleave(self.per_image, 0) for x in (tail_map, tail_cam, tail))
        ratio = torch.rand(len(other), device=targets.device)
        spatial = self.block is not None
        fused = fuse(maps, cams, other_map, other_cam, *self.thresholds, ratio, spatial, self.weighted)
        return torch.cat([tail_map, fused, head_map]), [(torch.cat([tail, classes, head]), weight)]

    def _activation(self, feature_map: Tensor, classes: Tensor) -> Tensor:
        """Activations of the images' own classes, at the size of the map after :attr:`block`."""
        last = self.rest(feature_map)
        if last.shape[2:].numel() == 1:
            raise ValueError(
                "feature_map: got a last map of 1x1, which has no class activation map, allowed is a larger one"
            )
        cam = class_activation_map(last, self.phase_one["class_weight"][classes])
        # Interpolation flattens the extremes, and the thresholds expect them at 0 and 1.
        return _min_max(F.interpolate(cam[:, None], feature_map.shape[2:], mode="bilinear")[:, 0])

    def _sizes(self, batch: int) -> tuple[int, int, int]:
        """Tail images, partners and head images of a batch."""
        tails = max(1, batch // (2 * (1 + self.per_image)))
        return tails, tails * self.per_image, tails * (1 + self.per_image)

    @staticmethod
    def _classes(pool: Tensor, number: int) -> Tensor:
        return pool[torch.randint(len(pool), (number,), device=pool.device)]

    def _images(self, classes: Tensor) -> Tensor:
        """An image of each class ``[n]``, as training indices."""
        uniform = torch.rand(len(classes), dtype=torch.float64, device=classes.device)
        return self.by_class[self.starts[classes] + (uniform * self.counts[classes]).long()]

"""New images from old ones, by gradient ascent (chapter 4; BLT, section 3.1) or plain augmentation (section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from ltnotes.folding import folded
from ltnotes.methods.common import evaluating
from ltnotes.options import choice, number, whole

SCORES = {
    "logit": lambda logits: logits,
    "log-probability": lambda logits: logits.log_softmax(1),
    "probability": lambda logits: logits.softmax(1),
}


def hallucinate(
    model: nn.Module,
    images: Tensor,
    confusing_classes: Tensor,
    min_confidence: float | Tensor,
    step_size: float = 0.7,
    max_steps: int = 15,
    score: str = "logit",
) -> Tensor:
    """Images ``[B, 3, H, W]`` climbed towards other classes: ``I <- I + step_size * dS_c(I) / dI``, each by itself.

    An image is done as soon as the softmax probability of its class reaches ``min_confidence``,
    at the latest after ``max_steps`` steps; one that is there already returns as it came. BLT
    speaks of "the posterior probability or logit", and bounds the same score that it climbs,
    by 0.15 to 0.25. Only a probability fits such bounds, and the logit is its usual score:
    the default climbs the logit and stops on the probability.

    The model is in evaluation mode meanwhile, and :func:`ltnotes.folding.folded`. Its weights,
    their gradients, its BatchNorm statistics and its modes are as before, whatever the
    caller's autograd and autocast.

    The host waits for the device once a step, to learn which images are done: they take no
    part in the steps after.

    Args:
        model: its scores ``[B, C]`` are logits: plain cosines, which a loss is yet to scale, say little of confidence.
        images: normalised, as the model takes them; dtype and memory format stay.
        confusing_classes: ``[B]``, int64, the class c of each image.
        min_confidence: a probability, one for all or ``[B]``; above 1 no image is ever done.
        step_size: delta, in units of the normalised image; 0.7 in BLT.
        max_steps: 15 in BLT.
        score: S, one of "logit", "log-probability", "probability".

    Raises:
        ValueError: shapes that do not fit together, or an argument outside its range; class
            ids and a tensor of confidences are looked at on the CPU only.
    """
    thresholds = check_ascent(images, confusing_classes, min_confidence, step_size, max_steps, score)
    rows = torch.arange(len(images), device=images.device)
    with evaluating(model), torch.inference_mode(False), torch.enable_grad(), folded(model):
        result = images.detach().clone()
        for _ in range(max_steps):
            current = result[rows].requires_grad_()
            scores, confidence = look(model, current, confusing_classes[rows], score)
            below = (confidence < thresholds[rows]).nonzero()[:, 0]
            if len(below) == 0:
                break
            scores = of_class(scores, confusing_classes[rows])[below]
            gradient = torch.autograd.grad(scores.sum(), current)[0]  # in evaluation mode no image sees another
            rows = rows[below]
            result[rows] += step_size * gradient[below]
    return result


def hallucinate_as_released(
    model: nn.Module,
    images: Tensor,
    confusing_classes: Tensor,
    min_confidence: float | Tensor,
    step_size: float = 0.7,
    max_steps: int = 15,
    score: str = "logit",
    *,
    accumulated_gradients: bool = True,
    shifted_classes: bool = True,
    stale_timeouts: bool = True,
) -> Tensor:
    """What BLT's released code does in place of :func:`hallucinate`, each difference to be had alone.

    Args:
        accumulated_gradients: an image's gradient is never zeroed, so that a step repeats all
            before it: on a linear model k steps move ``k (k + 1) / 2`` times as far as one.
        shifted_classes: in a step in which some of n images finish, the m others have moved
            up in the list of classes, and not in the batch of scores. The first m of the n
            rows climb the classes of the m survivors in turn, so that an image can climb the
            class of another, and the rows after them get no gradient.
        stale_timeouts: the images left after the last step are read from the batch that the
            network saw last: that step is lost, and if others finished in it, the first m
            rows come back under the labels of the m survivors.
    """
    thresholds = check_ascent(images, confusing_classes, min_confidence, step_size, max_steps, score)
    rows = torch.arange(len(images), device=images.device)
    with evaluating(model), torch.inference_mode(False), torch.enable_grad(), folded(model):
        result = images.detach().clone()
        current, gradient = result.clone(), torch.zeros_like(result)
        for _ in range(max_steps):
            seen = current.requires_grad_()
            scores, confidence = look(model, seen, confusing_classes[rows], score)
            result[rows] = seen.detach()
            below = (confidence < thresholds[rows]).nonzero()[:, 0]
            rows = rows[below]
            if len(rows) == 0:
                break
            climbing = scores[: len(rows)] if shifted_classes else scores[below]
            fresh = torch.autograd.grad(of_class(climbing, confusing_classes[rows]).sum(), seen)[0]
            gradient = gradient + fresh if accumulated_gradients else fresh
            current = (seen.detach() + step_size * gradient)[below]
            gradient = gradient[below]
            result[rows] = seen.detach()[: len(rows)] if stale_timeouts else current
    return result


def augment_again(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], flip: bool) -> Tensor:
    """Rotations, crops, mirror images and colour jitter of images ``[B, 3, H, W]``, each by itself.

    What BLT compares hallucination with. The paper gives no strengths: these are those of
    its released code. One image at a time, with numbers drawn on the host, which waits for
    the device.

    Args:
        images: normalised with ``mean`` and ``std``.
        flip: whether a mirror image still shows the same class.
    """
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(images.shape[2:], scale=(0.3, 1.0), antialias=True),
            v2.RandomHorizontalFlip(0.5 if flip else 0.0),
            v2.RandomRotation(10),
            v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
        ]
    )
    mean, std = (images.new_tensor(values)[:, None, None] for values in (mean, std))
    with torch.autocast(images.device.type, enabled=False):  # in half precision a rotation misses its pixels
        new = torch.stack([augment(image) for image in (images * std + mean).clamp(0, 1)])
    return images.clone().copy_((new - mean) / std)


def of_class(values: Tensor, classes: Tensor) -> Tensor:
    """From ``[B, C]`` the value of each row's class, ``[B]``."""
    return values.gather(1, classes[:, None])[:, 0]


def look(model: nn.Module, images: Tensor, classes: Tensor, score: str) -> tuple[Tensor, Tensor]:
    """The scores ``[B, C]`` to climb, and the confidence in each image's class, ``[B]``; in float32 or better."""
    logits = model(images)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if classes.device.type == "cpu" and classes.numel():
        low, high = classes.min().item(), classes.max().item()
        if not 0 <= low <= high < logits.shape[1]:
            raise ValueError(f"confusing_classes: got {low} to {high}, allowed are 0 to {logits.shape[1] - 1}")
    return SCORES[score](logits), of_class(logits.detach().softmax(1), classes)


def check_ascent(
    images: Tensor,
    confusing_classes: Tensor,
    min_confidence: float | Tensor,
    step_size: float,
    max_steps: int,
    score: str,
) -> Tensor:
    """The confidences to reach, ``[B]``; ValueError for what :func:`hallucinate` can't take."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images: got {tuple(images.shape)} of {images.dtype}, allowed are floats [B, 3, H, W]")
    size = images.shape[:1]
    if confusing_classes.shape != size or confusing_classes.dtype != torch.int64:
        raise ValueError(
            f"confusing_classes: got {tuple(confusing_classes.shape)} of {confusing_classes.dtype},"
            f" allowed is int64 {tuple(size)}, one for each image"
        )
    if not isinstance(min_confidence, Tensor):
        min_confidence = torch.full(size, min_confidence, dtype=torch.float64)
    if min_confidence.ndim and min_confidence.shape != size:
        raise ValueError(f"min_confidence: got {tuple(min_confidence.shape)}, allowed is one number or {tuple(size)}")
    if min_confidence.device.type == "cpu" and not (min_confidence >= 0).all():
        raise ValueError(f"min_confidence: got {min_confidence.tolist()}, allowed are 0 and above")
    check_climb(step_size, max_steps, score)
    return min_confidence.to(images.device).expand(size)


def check_climb(step_size: float, max_steps: int, score: str) -> None:
    """Raise ValueError for options of the ascent outside their range."""
    number("step_size", step_size, above=0)
    whole("max_steps", max_steps)
    choice("score", score, SCORES)

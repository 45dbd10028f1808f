"""Exercises of chapter 4: confusing classes, and the ascent of a linear network."""

from __future__ import annotations

import torch
from torch import Tensor

from ltnotes.exercises.engine import Case, Exercise
from ltnotes.methods import blt

# --- confusing classes ----------------------------------------------------------


def _matrices() -> list[Case]:
    """Counts of errors, with a class that is never confused in all but the first."""
    generator = torch.Generator().manual_seed(0)
    small = torch.tensor([[6.0, 1.0, 3.0], [4.0, 5.0, 1.0], [2.0, 2.0, 1.0]], dtype=torch.float64)
    cases: list[Case] = [{"confusion": small}]
    for classes in (4, 20):
        confusion = torch.randint(1, 30, (classes, classes), generator=generator).double()
        confusion[1] = 0
        confusion[1, 1] = 9
        cases.append({"confusion": confusion})
    return cases


def _rows(confusion: Tensor) -> Tensor:
    return confusion / confusion.sum(1, keepdim=True)


def _without_diagonal(confusion: Tensor) -> Tensor:
    return confusion.clone().fill_diagonal_(0)


def _filled(confusion: Tensor) -> Tensor:
    """The errors, with ones where a class has none."""
    wrong = _without_diagonal(confusion)
    wrong += wrong.sum(1, keepdim=True) == 0
    return wrong.fill_diagonal_(0)


confusing_class_probabilities = Exercise(
    "confusing_class_probabilities(confusion): [C, C], row = true class; returns [C, C], each row a distribution",
    reference=blt.confusing_class_probabilities,
    cases=_matrices,
    rtol=1e-9,
    mistakes={
        "the diagonal kept: most images would be sent to the class that they are in. Set it to 0 before the"
        " rows are summed": _rows,
        "the diagonal removed after the division, so that rows do not sum to 1": lambda confusion: _without_diagonal(
            _rows(confusion)
        ),
        "divided by the sums of the columns. A row belongs to a class, and sums to 1: keepdim=True, or [:, None]": (
            lambda confusion: _filled(confusion) / _filled(confusion).sum(0)
        ),
        "transposed: where the wrong answers of a class come from. Row j asks where the images of class j go": (
            lambda confusion: blt.confusing_class_probabilities(confusion.T)
        ),
        "a class that is never confused has a row that can't be drawn from, 0 / 0 or zeros. All others are then"
        " equally likely": lambda confusion: _rows(_without_diagonal(confusion)),
        "a class that is never confused can be sent to itself: its row is 1 / (C - 1) without its own class": (
            lambda confusion: _rows(
                _without_diagonal(confusion) + (_without_diagonal(confusion).sum(1, keepdim=True) == 0)
            )
        ),
        "not divided: the rows have to sum to 1": _filled,
        "the most confusing class alone. Every class is drawn by its share of the errors": lambda confusion: (
            torch.nn.functional.one_hot(_filled(confusion).argmax(1), len(confusion)).double()
        ),
        "a softmax of the counts. Divide them by their sum": lambda confusion: (
            confusion.clone().fill_diagonal_(-torch.inf).softmax(1)
        ),
    },
    entry=lambda index, confusion: f"class {index[0]} taken for {index[1]}",
)

# --- the ascent -----------------------------------------------------------------


def _images() -> list[Case]:
    """Images of three and more classes; the first is above its threshold at once, others need a few steps."""
    generator = torch.Generator().manual_seed(1)
    cases: list[Case] = []
    for batch, width, classes, size, steps in ((3, 2, 3, 0.4, 10), (16, 6, 5, 0.2, 4), (12, 8, 10, 0.7, 15)):
        weight = 0.7 * torch.randn(classes, width, generator=generator, dtype=torch.float64)
        x = torch.randn(batch, width, generator=generator, dtype=torch.float64)
        order = (x @ weight.T).argsort(1)
        chosen = order[:, 0]  # the least probable class
        chosen[0] = order[0, -1]  # and one that is there already
        confidence = 0.15 + 0.3 * torch.rand(batch, generator=generator, dtype=torch.float64)
        cases.append(
            {
                "x": x,
                "weight": weight,
                "classes": chosen,
                "confidence": confidence,
                "step_size": size,
                "max_steps": steps,
            }
        )
    return cases


def _climb(
    x: Tensor,
    weight: Tensor,
    classes: Tensor,
    confidence: Tensor,
    step_size: float,
    max_steps: int,
    *,
    direction: str = "logit",
    watch: str = "target",
    stop: str = "each",
    add_up: bool = False,
) -> Tensor:
    x, rows, total = x.clone(), torch.arange(len(x)), torch.zeros_like(x)
    own = (x @ weight.T).argmax(1)
    for _ in range(max_steps):
        p = (x @ weight.T).softmax(1)
        watched = {"target": p[rows, classes], "own": p[rows, own], "largest": p.max(1).values}[watch]
        if watch == "logit":
            watched = (x @ weight.T)[rows, classes]
        below = watched < confidence
        if stop == "all":
            below = below | below.any()
        elif stop == "first":
            below = below & below.all()
        elif stop == "never":
            below = torch.ones_like(below)
        gradient = {
            "logit": weight[classes],
            "log-probability": weight[classes] - p @ weight,
            "probability": p[rows, classes][:, None] * (weight[classes] - p @ weight),
            "sign": weight[classes].sign(),
            "down": -weight[classes],
            "own": -weight[own],
        }[direction]
        total = total + gradient if add_up else gradient
        x = x + step_size * total * below[:, None]
    return x


def _variant(**changes: object):
    return lambda *arguments: _climb(*arguments, **changes)


climb_linear = Exercise(
    "climb_linear(x, weight, classes, confidence, step_size, max_steps): x [B, D], weight [C, D]; returns [B, D]",
    reference=_climb,
    cases=_images,
    rtol=1e-7,
    atol=1e-9,
    mistakes={
        "gradients that add up over the steps, as in BLT's released code. Each step has a gradient of its own": (
            _variant(add_up=True)
        ),
        "downhill: the step has the wrong sign, and the score of the class falls": _variant(direction="down"),
        "climbs the logarithm of the probability: the mean of the weights is subtracted. Climb the logit": (
            _variant(direction="log-probability")
        ),
        "climbs the probability itself, whose gradient is next to nothing at the start. Climb the logit": (
            _variant(direction="probability")
        ),
        "the sign of the gradient, as in the fast gradient sign method. The step is the gradient itself": (
            _variant(direction="sign")
        ),
        "walks away from the class that is most probable at the start. Climb towards classes": _variant(
            direction="own"
        ),
        "stops by the probability of the largest class. Watch that of the class that is climbed": _variant(
            watch="largest"
        ),
        "goes on until all images have arrived: one that is done has to stay where it is": _variant(stop="all"),
        "stops all images when the first has arrived. Each stops by itself": _variant(stop="first"),
        "never stops before the last step: the threshold has no effect": _variant(stop="never"),
        "one step less than max_steps": lambda x, w, classes, confidence, size, steps: _climb(
            x, w, classes, confidence, size, steps - 1
        ),
        "a single step. Repeat it, at most max_steps times": lambda x, w, classes, confidence, size, steps: _climb(
            x, w, classes, confidence, size, 1
        ),
        "step_size has no effect: every step is the whole gradient": lambda x, w, classes, confidence, size, steps: (
            _climb(x, w, classes, confidence, 1.0, steps)
        ),
    },
    entry=lambda index, **case: f"image {index[0]}, value {index[1]}",
)

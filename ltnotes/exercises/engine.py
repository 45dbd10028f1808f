"""How an exercise answers: a reader's function against the reference, then against mistakes that are often made.

An exercise is data, an :class:`Exercise`: the exact reference, the cases on which both are
called, and wrong variants by the sentence that describes them. What is compared is every
number of the answer by itself, so that an error in one small class is not lost among the rest.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

LOOSE = 1e-3  # relative; what float32 can lose to cancellation, and less than any two variants differ by
SHOWN = 9  # numbers of an argument that a message repeats

Case = Mapping[str, Any]
"""The arguments of one call, by name and in their order."""


class Mistake(AssertionError):  # noqa: N818 (readers see the name)
    """What is wrong with a reader's function, in a sentence or two."""

    def _render_traceback_(self) -> list[str]:
        """IPython asks for this: the sentence alone, because the way through this module helps nobody."""
        return [f"Mistake: {self}"]


@dataclass(frozen=True)
class Exercise:
    """One exercise; calling it with a reader's function checks that function.

    Args:
        call: how the function is called and what it returns, shown where a call fails.
        reference: from a case's arguments to the exact answer.
        cases: makes the cases, the one that reads best in a message first.
        mistakes: wrong variants of the reference, by a sentence that says what is wrong and where to look.
        rtol, atol: tolerance for each number of the answer by itself.
        observe: from an answer and a case to what is compared; the reference and the variants give
            that already. The answer itself if not given.
        allowed: for random answers in place of the tolerance: from what is expected, and a case, to
            the deviation that each number may have.
        entry: from the index of a number and a case to its name in a message.

    Raises:
        ValueError: in the call, something that is no function.
        Mistake: in the call, a function that is not right.
    """

    call: str
    reference: Callable[..., Any]
    cases: Callable[[], list[Case]]
    mistakes: Mapping[str, Callable[..., Any]]
    rtol: float = 1e-6
    atol: float = 0.0
    observe: Callable[..., Tensor] | None = None
    allowed: Callable[..., Tensor] | None = None
    entry: Callable[..., str] | None = None

    def __call__(self, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise ValueError(
                f"function: got {_short(function)}, allowed is your function itself, not called: {self.call}"
            )
        with _same_luck(), np.errstate(all="ignore"):
            wrong = find_mistake(self, function)
        if wrong:
            raise Mistake(wrong)
        print("right")

    def example(self, function: Callable[..., Any]) -> None:
        """The same on the first case alone: what is seen of a check before work is graded."""
        replace(self, cases=lambda: self.cases()[:1])(function)


def find_mistake(exercise: Exercise, function: Callable[..., Any]) -> str | None:
    """What is wrong with a function, None if nothing is."""
    cases, answers, failure = exercise.cases(), [], None
    for case in cases:
        try:
            answers.append(_answer(exercise, function, case))
        except Mistake as mistake:
            failure = str(mistake)
            break
    answered = list(zip(answers, cases, strict=False))

    def agrees(variant: Callable[..., Any], loose: bool = False) -> bool:
        return all(_agreement(exercise, got, variant(*case.values()), case, loose).all() for got, case in answered)

    if agrees(exercise.reference):
        return failure
    # A function may fail in a later case: what it answered before can tell why, if it fits one variant only.
    known = [sentence for sentence, variant in exercise.mistakes.items() if agrees(variant, loose=True)]
    if len(known) == 1:
        return f"looks like: {known[0]}"
    if not exercise.allowed and agrees(exercise.reference, loose=True):
        return f"nearly right, but rounded, as in float32: compute in float64. {_difference(exercise, answered)}"
    return _difference(exercise, answered)


def _answer(exercise: Exercise, function: Callable[..., Any], case: Case) -> Tensor:
    """What a function answers in one case, ready to be compared.

    Raises:
        Mistake: nothing, an exception, a changed argument, something other than numbers, or another shape.
    """
    given = copy.deepcopy(dict(case))
    try:
        answer = function(*given.values())
    except NotImplementedError as error:
        raise Mistake(f"an empty stub: it raises NotImplementedError {error}".rstrip()) from None
    except Exception as error:
        told = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise Mistake(f"raises {told}{_line(function, error)}. {exercise.call}, here with {_shown(case)}") from None
    for name, value in case.items():
        if not _same(value, given[name]):
            raise Mistake(f"changes its argument {name} in place: work on a copy")
    if answer is None:
        raise Mistake("returns nothing yet: an empty stub, or a forgotten return")
    try:
        numbers = answer.detach().cpu() if isinstance(answer, Tensor) else torch.from_numpy(np.array(answer))
        got = numbers.to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise Mistake(f"returns {_short(answer)}, which can't be read as numbers. {exercise.call}") from None
    if exercise.observe:
        got = exercise.observe(got, **case)
    expected = _numbers(exercise.reference(*case.values()))
    if got.shape != expected.shape:
        raise Mistake(f"returns {_size(got)}, expected {_size(expected)}. {exercise.call}, here with {_shown(case)}")
    return got


def _agreement(exercise: Exercise, got: Tensor, answer: Any, case: Case, loose: bool) -> Tensor:
    """Where an answer agrees with a variant's: bools in its shape, all False if the variant's has another."""
    expected = _numbers(answer)
    if expected.shape != got.shape:
        return torch.zeros_like(got, dtype=torch.bool)
    if exercise.allowed:
        allowed = exercise.allowed(expected, **case)
    else:
        allowed = exercise.atol + max(exercise.rtol, LOOSE if loose else 0) * expected.abs()
    # Equal first, because infinity less infinity is not a number.
    return (got == expected) | ((got - expected).abs() <= allowed) | (got.isnan() & expected.isnan())


def _difference(exercise: Exercise, answered: list[tuple[Tensor, Case]]) -> str:
    """The first number of the first case that differs from the reference."""
    for got, case in answered:
        agreement = _agreement(exercise, got, exercise.reference(*case.values()), case, loose=False)
        if not agreement.all():
            break
    expected = _numbers(exercise.reference(*case.values()))
    index = tuple((~agreement).nonzero()[0].tolist())
    name = exercise.entry or (lambda index, **case: f"class {index[-1]}")
    margin = f" ± {exercise.allowed(expected, **case)[index]:.3g}" if exercise.allowed else ""
    place = f"{name(index, **case)}: " if index else ""
    return f"{place}got {got[index]:.10g}, expected {expected[index]:.10g}{margin}, with {_shown(case)}"


@contextmanager
def _same_luck() -> Iterator[None]:
    """Random numbers start alike in every check, so that a verdict stays; the reader's own go on as if nothing was."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _line(function: Callable[..., Any], error: Exception) -> str:
    """Where in a reader's function an exception arose, empty for what is not written in Python."""
    code, frame, line = getattr(function, "__code__", None), error.__traceback__, 0
    while frame:
        if frame.tb_frame.f_code is code:
            line = frame.tb_lineno - code.co_firstlineno + 1
        frame = frame.tb_next
    return f" in line {line} of your function" if line else ""


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return bool(np.array_equal(one, other))


def _numbers(answer: Any) -> Tensor:
    return torch.as_tensor(answer, dtype=torch.float64)


def _size(numbers: Tensor) -> str:
    return f"shape {list(numbers.shape)}" if numbers.ndim else "a single number"


def _shown(case: Case) -> str:
    return ", ".join(f"{name} = {_short(value)}" for name, value in case.items())


def _short(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        few = value.ndim and value.reshape(-1).shape[0] <= SHOWN
        return str(np.asarray(value.tolist()).round(4).tolist()) if few else f"numbers of shape {list(value.shape)}"
    if isinstance(value, list) and len(value) > SHOWN:
        return f"[{', '.join(map(str, value[:3]))}, ...] of length {len(value)}"
    return f"{type(value).__name__} {value!r}"[:80] if not isinstance(value, list | int | float) else repr(value)

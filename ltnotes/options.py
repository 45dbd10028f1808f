"""Options, checked: a value as plain Python has it, or one sentence that says what was wrong and what is allowed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from typing import Any

LARGEST = 1e12
LARGEST_WHOLE = 2**63 - 1


def number(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """The value, if it is a number within the bounds; numpy's numbers as Python's.

    Args:
        least, most: bounds that are allowed themselves.
        above, below: bounds that are not. Where neither bounds a side, ``LARGEST`` does, so that
            products of options stay finite in float32.

    Raises:
        ValueError: a truth value, text, infinity, NaN or anything out of bounds.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    ok = (
        real
        and (-LARGEST if least is None and above is None else -math.inf) <= value
        and value <= (LARGEST if most is None and below is None else math.inf)
        and (least is None or value >= least)
        and (most is None or value <= most)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    far = f" of at most {LARGEST:g}" if real and abs(value) > LARGEST else ""
    require(ok, name, value, f"a finite number{far}{_bounds(least, most, above, below)}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def whole(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """The value, if it is a whole number within the bounds; numpy's integers as Python's.

    Raises:
        ValueError: a truth value, text, a fraction or anything out of bounds.
    """
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    ok = integral and least <= value <= (LARGEST_WHOLE if most is None else most)
    far = f" of at most {LARGEST_WHOLE}" if integral and value > LARGEST_WHOLE else ""
    require(ok, name, value, f"a whole number{far}{_bounds(least, most, None, None)}")
    return int(value)


def choice(name: str, value: Any, allowed: Collection[str]) -> str:
    """The value, if it is one of the names that are allowed.

    Raises:
        ValueError: it is not.
    """
    if not (isinstance(value, str) and value in allowed):
        raise ValueError(f"{name}: got {value!r}, allowed are {', '.join(allowed)}")
    return value


def of_type(name: str, value: Any, kind: Any) -> Any:
    """The value, if it is of a type.

    Raises:
        ValueError: it is not.
    """
    require(isinstance(value, kind), name, value, f"a {getattr(kind, '__name__', kind)}")
    return value


def require(condition: bool, name: str, got: Any, allowed: str) -> None:
    """Raise ValueError in the words that all of this package uses, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name}: got {got!r}, allowed is {allowed}")


def _bounds(least: float | None, most: float | None, above: float | None, below: float | None) -> str:
    words = {"at least": least, "above": above, "at most": most, "below": below}
    said = [f"{word} {bound:g}" for word, bound in words.items() if bound is not None]
    return f", {' and '.join(said)}" if said else ""

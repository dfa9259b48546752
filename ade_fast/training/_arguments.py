"""Checks of arguments that the training layer shares: numbers, each named with its layer."""

from __future__ import annotations

import math
from typing import Any

from .._integers import as_integer

SEEDS = 2**64
"""How many seeds torch's generators take."""


def integer(layer: str, name: str, value: Any, low: int, high: int | None = None) -> int:
    """``value``, of any type that counts as an integer (numpy's too), as an int within its limits."""
    try:
        number = as_integer(value)
    except TypeError:
        raise ValueError(f"{layer}: {name} must be an integer >= {low}, got {value!r}") from None
    if number < low:
        raise ValueError(f"{layer}: {name} must be an integer >= {low}, got {number}")
    if high is not None and number > high:
        raise ValueError(f"{layer}: {name} must be an integer <= {high}, got {number}")
    return number


def number(layer: str, name: str, value: Any, wanted: str = "finite and >= 0", *, zero: bool = True) -> float:
    """``value``, of any type that float() takes but text, as a finite float, positive or (with ``zero``) 0."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        result = float(value)
    except (TypeError, ValueError, RuntimeError):  # the last: a tensor of several elements
        raise TypeError(f"{layer}: {name} must be a number, {wanted}, got {value!r}") from None
    if not math.isfinite(result) or result < 0 or (result == 0 and not zero):
        raise ValueError(f"{layer}: {name} must be {wanted}, got {value!r}")
    return result

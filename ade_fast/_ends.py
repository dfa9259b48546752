"""What an unroll's own evaluations know of f at its two ends, for who would evaluate it there once more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ._current import Current

Potential = Callable[[Tensor], Tensor]


class End(NamedTuple):
    """value: f(x^T), [B], differentiable. gradient: ∇f(x^T), [B, D], whose graph leads to f's weights alone, x^T being
    a constant in it; None where f is not piecewise linear."""

    value: Tensor
    gradient: Tensor | None


class Ends(Current):
    """f where the first unroll began and the last one ended, of those that were made while this was current and that
    know: the fused ones on the CPU, where gradients are recorded."""

    _place = threading.local()

    def __init__(self) -> None:
        self._found: tuple[Tensor, Tensor, End] | None = None
        self._start: _Known | None = None
        self._end: _Known | None = None

    def found(self, x: Tensor, start: Tensor, value: Tensor, gradient: Tensor | None) -> None:
        """By the operator, with its end points; whose they are is for `belong` to say."""
        self._found = x, start, End(value, gradient)

    def belong(self, potential: Potential, x0: Tensor, x: Tensor, shift: Tensor | float) -> None:
        """What was found with x is f at x0 and x, less a constant."""
        if self._found is None or self._found[0] is not x:
            return
        (_, start, (value, gradient)), self._found = self._found, None
        if self._start is None:
            self._start = _Known.at(potential, x0, start + shift)
        self._end = _Known.at(potential, x, End(value + shift, gradient))

    def start_of(self, potential: Potential, x0: Tensor) -> Tensor | None:
        """f(x0), [B], without a graph, or None if it is not known of this potential at these very points."""
        return _at(self._start, potential, x0)

    def end_of(self, potential: Potential, x: Tensor) -> End | None:
        """The same of f at x."""
        return _at(self._end, potential, x)


class _Known(NamedTuple):
    """f at points: where they lie, and their version, so that they are known again unless somebody wrote to them."""

    potential: Potential
    x: Tensor
    version: int
    found: Any

    @classmethod
    def at(cls, potential: Potential, x: Tensor, found: Any) -> _Known:
        return cls(potential, x, x._version, found)


def _at(known: _Known | None, potential: Potential, x: Tensor) -> Any:
    """What is known, if it is of this potential at these very points: the dynamics may have gone on from there, or have
    been given another potential."""
    if known is None or known.potential is not potential or known.x.data_ptr() != x.data_ptr():
        return None
    same = known.x.shape == x.shape and known.x.stride() == x.stride() and known.version == x._version
    return known.found if same else None

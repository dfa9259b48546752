"""What an unroll's own evaluations know of f at its two ends, for who would evaluate it there once more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

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
        self._found: tuple[Tensor, End] | None = None
        self._start: tuple[Potential, Tensor, Tensor] | None = None
        self._end: tuple[Potential, Tensor, End] | None = None

    def found(self, start: Tensor, value: Tensor, gradient: Tensor | None) -> None:
        """By the operator; whose they are is for `belong` to say."""
        self._found = start, End(value, gradient)

    def belong(self, potential: Potential, x0: Tensor, x: Tensor, shift: Tensor | float) -> None:
        """What was found in between is f at x0 and x, less a constant."""
        if self._found is None:
            return
        (start, (value, gradient)), self._found = self._found, None
        if self._start is None:
            self._start = potential, x0, start + shift
        self._end = potential, x, End(value + shift, gradient)

    def start_of(self, potential: Potential, x0: Tensor) -> Tensor | None:
        """f(x0), [B], without a graph, or None if it is not known of this potential at this very tensor."""
        return self._start[2] if _is_at(self._start, potential, x0) else None

    def end_of(self, potential: Potential, x: Tensor) -> End | None:
        """The same of f at x."""
        return self._end[2] if _is_at(self._end, potential, x) else None


def _is_at(known: tuple | None, potential: Potential, x: Tensor) -> bool:
    """Whether the points are these very ones, or a view of all of them: the dynamics may have gone on from there, or
    have been given another potential."""
    if known is None or known[0] is not potential:
        return False
    return known[1].data_ptr() == x.data_ptr() and known[1].numel() == x.numel()

"""zuko's rational-quadratic splines by one operator (schema: ``csrc/bind/spline.cpp``): differentiable once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributions import Transform
from zuko.transforms import MonotonicRQSTransform

from .._ops import has_kernels_for, in_reverse_mode_alone, ops

BOUND, LEAST = 5.0, 1e-3
"""Of zuko's NSF: the box [-5, 5], and the least slope."""
_MAX_PIECES = 64  # csrc/launch/spline.h

_spline = ops.rational_quadratic_spline.default
_here = threading.local()


@contextmanager
def differentiable_once() -> Iterator[None]:
    """In here the splines are the operator's, which has no second derivative: asking for one raises."""
    before, _here.once = getattr(_here, "once", False), True
    try:
        yield
    finally:
        _here.once = before


def univariate(widths: Tensor, heights: Tensor, slopes: Tensor) -> Transform:
    """The spline of unconstrained widths and heights ``(*, K)`` and inner slopes ``(*, K - 1)``."""
    if getattr(_here, "once", False) and _takes(widths):
        return _Spline(widths, heights, slopes)
    return MonotonicRQSTransform(widths, heights, slopes, bound=BOUND, slope=LEAST)


def _takes(widths: Tensor) -> bool:
    if torch.compiler.is_compiling() or not 2 <= widths.shape[-1] <= _MAX_PIECES:
        return False
    return has_kernels_for(widths) and in_reverse_mode_alone()


class _Spline(MonotonicRQSTransform):
    """zuko's transform, its numbers left as they are for the operator."""

    def __init__(self, widths: Tensor, heights: Tensor, slopes: Tensor) -> None:
        Transform.__init__(self)
        self._numbers = (widths, heights, slopes)

    @property
    def bins(self) -> int:
        return self._numbers[0].shape[-1]

    def _map(self, x: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        # In one dimension the numbers are the same for all samples.
        numbers = (n.expand(*x.shape, n.shape[-1]) for n in self._numbers)
        return _spline(x, *numbers, BOUND, LEAST, inverse)

    def _call(self, x: Tensor) -> Tensor:
        return self._map(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._map(y, inverse=True)[0]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(x)

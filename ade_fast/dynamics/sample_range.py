"""The range that samples are clamped to after every drift: numbers, or one interval per dimension."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..fields import Layout

Bound = float | Tensor


def checked_range(layer: str, given: Any) -> tuple[Bound, Bound]:
    """(lo, hi): floats where they hold for all dimensions, else tensors of the shapes given, float64 on the CPU."""
    wrong = TypeError(
        f"{layer}: sample_range must be a pair of numbers (lo, hi), of tensors that broadcast to the event, or None, "
        f"got {given!r}"
    )
    try:
        lo, hi = (_bound(bound) for bound in given)
    except (TypeError, ValueError, RuntimeError):
        raise wrong from None
    try:
        below = torch.as_tensor(lo) < torch.as_tensor(hi)
    except RuntimeError:
        raise ValueError(
            f"{layer}: sample_range must have bounds that broadcast to one shape, got "
            f"{tuple(torch.as_tensor(lo).shape)} and {tuple(torch.as_tensor(hi).shape)}"
        ) from None
    if not bool(below.all()):
        which = "" if below.dim() == 0 else " in every dimension"
        raise ValueError(f"{layer}: sample_range must have lo < hi{which}, got ({_shown(lo)}, {_shown(hi)})")
    return lo, hi


def _bound(given: Any) -> Bound:
    if not isinstance(given, Tensor) or given.numel() == 1:
        return float(given)
    if given.is_complex() or given.dtype == torch.bool or given.requires_grad:
        raise TypeError
    bound = given.detach().to("cpu", torch.float64, copy=True)
    return float(bound.flatten()[0]) if bool((bound == bound.flatten()[0]).all()) else bound


def _shown(bound: Bound) -> object:
    return bound.tolist() if isinstance(bound, Tensor) else bound


class SampleRange:
    """The range as one unroll has it.

    numbers: (lo, hi) as the step operators take them: infinite where there is an interval per dimension, to which x is
    then clamped after the operator.
    """

    def __init__(self, layer: str, pair: tuple[Bound, Bound] | None, layout: Layout) -> None:
        self.numbers: tuple[float, float] = (-math.inf, math.inf)
        self._rows: tuple[Tensor, Tensor] | None = None
        self._moved: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}
        if pair is None:
            return
        lo, hi = pair
        if not isinstance(lo, Tensor) and not isinstance(hi, Tensor):
            self.numbers = lo, hi
            return
        try:
            low, high = (
                layout.rows(torch.as_tensor(bound, dtype=torch.float64).expand(1, *layout.event)) for bound in pair
            )
        except RuntimeError:
            shapes = " and ".join(str(tuple(torch.as_tensor(bound).shape)) for bound in pair)
            raise ValueError(
                f"{layer}: sample_range must broadcast to the event {layout.event}, got shapes {shapes}"
            ) from None
        self._rows = low, high

    @property
    def per_dimension(self) -> bool:
        return self._rows is not None

    def rows(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """lo and hi, [1, D], as `like` is."""
        key = like.dtype, like.device
        if key not in self._moved:
            assert self._rows is not None  # `per_dimension`
            low, high = self._rows
            self._moved[key] = low.to(like), high.to(like)
        return self._moved[key]

    def clamp(self, x: Tensor) -> Tensor:
        """x [B, D] as an operator left it, clamped where the operator could not."""
        return torch.clamp(x, *self.rows(x)) if self.per_dimension else x

    def pulled(self, dx: Tensor, before: Callable[[], Tensor]) -> Tensor:
        """dx, the cotangent of the clamped x, as that of x `before`: torch.clamp's derivative, 1 on the bounds too."""
        if not self.per_dimension:
            return dx
        x = before()
        lo, hi = self.rows(x)
        return dx.masked_fill((x < lo) | (x > hi), 0.0)

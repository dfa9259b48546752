"""A potential at a condition: labels or features beside each x."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .with_base import WithBase

Condition = Tensor | Sequence[Tensor]


class Conditioned(nn.Module):
    """``x -> potential(x, condition)``, for a condition of B rows and x of any number: row i of x has row i mod B.

    So several samples for each row of a condition, the data and as many samples, and the states of several steps are
    evaluated at once. Made by `conditioned`.

    Attributes:
        potential: f, called as ``f(x, condition)``; the condition is a tensor, or the tuple that it was given as.
    """

    takes_any_rows = False

    def __init__(self, potential: Callable[..., Tensor], condition: Tensor | tuple[Tensor, ...]) -> None:
        super().__init__()
        self.potential = potential
        self._single = isinstance(condition, Tensor)
        tensors = (condition,) if self._single else condition
        # As buffers, tensors that were computed from others (an embedding) are seen, and get their gradients.
        for i, tensor in enumerate(tensors):
            self.register_buffer(f"condition_{i}", tensor, persistent=False)
        self._names = [f"condition_{i}" for i in range(len(tensors))]

    def forward(self, x: Tensor) -> Tensor:
        rows = tuple(_tiled(self.get_buffer(name), len(x)) for name in self._names)
        return self.potential(x, rows[0] if self._single else rows)


def _tiled(condition: Tensor, n: int) -> Tensor:
    """Rows 0, 1, … B - 1, 0, 1, … of a condition, n of them."""
    b = len(condition)
    if n == b:
        return condition
    if b == 1:
        return condition.expand(n, *condition.shape[1:])
    return condition[torch.arange(n, device=condition.device) % b]


def conditioned(
    layer: str,
    potential: Callable[..., Tensor],
    condition: Condition | None,
    n: int | None = None,
    device: torch.device | None = None,
) -> Callable[..., Tensor]:
    """The potential at a condition, as a function of x alone; itself where the condition is None.

    The Gaussian of a `WithBase` stays outside, so that it is still seen.

    Args:
        layer: who asks, for error messages. potential: f, called as ``f(x, condition)``.
        condition: a tensor ``[B, ...]`` of any dtype, or a tuple of such, B >= 1.
        n: number of x's rows, a multiple of B; device: of x. None: not known.

    Raises: TypeError, ValueError.
    """
    if condition is None:
        return potential
    tensors = (condition,) if isinstance(condition, Tensor) else tuple(condition) if _is_several(condition) else ()
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise TypeError(
            f"{layer}: condition must be a tensor, a tuple of tensors or None, got {type(condition).__name__}"
        )
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if any(not shape or shape[0] < 1 for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"{layer}: condition must have B >= 1 rows, the same number in all parts, got shapes {shapes}")
    if n is not None and n % shapes[0][0] != 0:
        raise ValueError(
            f"{layer}: condition must have as many rows as x, or a divisor of them: x has {n}, condition {shapes[0][0]}"
        )
    if device is not None and any(tensor.device != device for tensor in tensors):
        raise ValueError(f"{layer}: condition must be on x's device {device}, got {[str(t.device) for t in tensors]}")
    if not callable(potential):
        raise TypeError(f"{layer}: potential must be callable, f(x, condition), got {type(potential).__name__}")
    if type(potential) is not WithBase:
        return Conditioned(potential, tensors[0] if isinstance(condition, Tensor) else tensors)
    whole = copy.copy(potential)
    whole.__dict__["_modules"] = {}
    whole.potential = conditioned(layer, potential.potential, condition)
    whole.__dict__["takes_any_rows"] = False
    return whole


def first_length(condition: Condition | None) -> int | None:
    """Number of rows, as far as it can be told: `conditioned` checks it."""
    part = condition[0] if _is_several(condition) and condition else condition
    return len(part) if isinstance(part, Tensor) and part.dim() > 0 else None


def _is_several(condition: object) -> bool:
    return isinstance(condition, (tuple, list))

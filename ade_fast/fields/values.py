"""f at given points, once differentiable: by the fused operators where they know the potential."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .._ops import in_reverse_mode_alone
from ..potentials.with_base import WithBase
from .affine import why_whole
from .mlp import MLPField


def fused_value(potential: Callable, x: Tensor) -> Tensor | None:
    """f(x), [B], from one operator; None where there is none for this potential and x [B, *event]."""
    found = _fused(potential, x, want_grad=False)
    return None if found is None else found[0]


def fused_value_and_grad(potential: Callable, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """(f(x) [B], ∇f(x) [B, *event]) from one operator, both differentiable once; or None."""
    return _fused(potential, x, want_grad=True)


def _fused(potential: Callable, x: Tensor, want_grad: bool) -> tuple[Tensor, ...] | None:
    whole = potential
    if type(whole) is WithBase:
        if why_whole(whole) is not None:
            return None
        potential = whole.potential
    field = MLPField.match(potential)
    if isinstance(field, str) or tuple(x.shape[1:]) != (field.spec.dim,) or field.refuses(x) is not None:
        return None
    if not in_reverse_mode_alone():
        return None  # transforms that do not see through the operators
    x = x.contiguous()
    if whole is potential:
        return field.value_and_grad(x) if want_grad else (field.value(x),)
    pull, centre, normaliser = whole.precision(x.shape[1:], x.dtype)
    if want_grad:
        value, grad = field.value_and_grad(x, (pull, centre))
        return value + normaliser, grad
    return (field.value(x, (pull, centre)) + normaliser,)

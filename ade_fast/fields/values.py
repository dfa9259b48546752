"""f at given points, once differentiable: by the fused operators where they know the potential."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .._mlp_weighted_op import weighted_value
from .._ops import in_reverse_mode_alone
from ..potentials.with_base import WithBase
from .affine import why_whole
from .mlp import Base, MLPField


def fused_value(potential: Callable[..., Tensor], x: Tensor) -> Tensor | None:
    """f(x), [B], from one operator; None where there is none for this potential and x [B, *event]."""
    found = _fused(potential, x, want_grad=False)
    return None if found is None else found[0]


def fused_value_and_grad(potential: Callable[..., Tensor], x: Tensor) -> tuple[Tensor, Tensor] | None:
    """(f(x) [B], ∇f(x) [B, *event]) from one operator, both differentiable once; or None."""
    found = _fused(potential, x, want_grad=True)
    if found is None:
        return None
    value, grad = found
    return value, grad


def fused_weighted_value(potential: Callable[..., Tensor], x: Tensor, factor: Tensor) -> Tensor | None:
    """Σ factor f(x), a scalar, with its derivatives from the same evaluation; factor [B], a constant. Or None."""
    found = fused_sum(potential, x)
    if found is None or x.device.type != "cpu":
        return None
    field, base, normaliser = found
    total = weighted_value(x.contiguous(), factor, *field.weights(), field.spec.numbers, base)
    return total if normaliser is None else total + normaliser * factor.sum()


class FusedSum(NamedTuple):
    """An MLP that the operators know, and where there is one the Gaussian beside it with log N's constant."""

    field: MLPField
    base: Base | None
    normaliser: Tensor | None


def fused_sum(potential: Callable[..., Tensor], x: Tensor) -> FusedSum | None:
    """A potential as the operators take it at x [B, *event], or None where they do not know it."""
    found = fused_sum_or_why(potential, x)
    return None if isinstance(found, str) else found


def fused_sum_or_why(potential: Callable[..., Tensor], x: Tensor) -> FusedSum | str:
    """The same, or the reason why they do not know it."""
    whole = potential if type(potential) is WithBase else None
    if whole is not None:
        if (why := why_whole(whole)) is not None:
            return why
        potential = whole.potential
    field = MLPField.match(potential)
    if isinstance(field, str):
        return field
    if tuple(x.shape[1:]) != (field.spec.dim,):
        return f"its events have shape {tuple(x.shape[1:])}, and the potential takes {field.spec.dim} numbers"
    if (why := field.refuses(x)) is not None:
        return why
    if not in_reverse_mode_alone():
        return "a transform of torch.func or forward mode is on, which does not see through the operators"
    if whole is None:
        return FusedSum(field, None, None)
    pull, centre, normaliser = whole.precision(x.shape[1:], x.dtype)
    return FusedSum(field, (pull, centre), normaliser)


def _fused(potential: Callable[..., Tensor], x: Tensor, want_grad: bool) -> tuple[Tensor, ...] | None:
    found = fused_sum(potential, x)
    if found is None:
        return None
    field, base, normaliser = found
    x = x.contiguous()
    value, *grad = field.value_and_grad(x, base) if want_grad else (field.value(x, base),)
    return (value if normaliser is None else value + normaliser, *grad)

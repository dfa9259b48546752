"""A number whose derivatives were computed together with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._once import refuse_batched, refuse_derivative
from ._ops import _Function


def with_derivatives(total: Tensor, derivatives: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """A scalar as a function of `inputs`, once differentiable, of known derivatives (shaped like the inputs)."""
    return _Known.apply((total, derivatives), *inputs)


class _Known(_Function):
    @staticmethod
    def forward(ctx: Any, known: tuple[Tensor, Sequence[Tensor]], *inputs: Tensor) -> Tensor:
        total, ctx.derivatives = known
        ctx.save_for_backward(*inputs)  # changes in place before the backward pass raise
        return total

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batched(dtotal)
        inputs = ctx.saved_tensors
        with torch.no_grad():
            derivatives: list[Tensor | None] = list(torch._foreach_mul(ctx.derivatives, dtotal))
        if torch.is_grad_enabled():
            derivatives = refuse_derivative(derivatives, [*inputs, dtotal])
        wanted = ctx.needs_input_grad[1:]
        return None, *(d if want else None for d, want in zip(derivatives, wanted, strict=True))

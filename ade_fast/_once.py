"""Derivatives that have no derivative of their own, and say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor


def refuse_batched(*cotangents: Tensor | None) -> None:
    """Raises RuntimeError where many cotangents are pulled back at once: kernels take them one by one."""
    functorch = torch._C._functorch
    batched = any(c is not None and functorch.is_legacy_batchedtensor(c) for c in cotangents)
    if batched or functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            "batched gradients (is_grads_batched=True, jacobian(vectorize=True), torch.func transforms of a backward "
            "pass) do not go through the dynamics and their kernels: take them one by one, with vectorize=False say"
        )


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:n])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> NoReturn:
        raise RuntimeError(
            "the dynamics are differentiable only once: there is no derivative of these gradients. "
            "ade_fast.reference has the same equations in eager code, which can be differentiated again"
        )


def refuse_derivative(derivatives: Sequence[Tensor | None], inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same tensors, as functions of `inputs` whose derivative raises.

    A constant would do where nobody asks, but its missing derivative would pass for a zero where somebody does.
    """
    given = [d for d in derivatives if d is not None]
    refusing = iter(_Refusal.apply(len(given), *given, *(t for t in inputs if t is not None)))
    return [None if d is None else next(refusing) for d in derivatives]

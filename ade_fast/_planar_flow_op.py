"""Fake kernels and derivatives of the planar flow's operator (schema: ``csrc/bind/planar_flow.cpp``).

``planar_flow(z, u, w, b) -> (x, log_det, heights)`` has all layers in it, and the constraint that makes them invertible
(`initial.PlanarFlow`). heights ``[n_layers, n]`` are kept for the backward pass, and have no derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._mlp_ops import wants_grad
from ._ops import (
    _Function,
    _library,
    _refuse_derivative,
    _skipping_autograd,
    _through,
    below_autograd,
    has_kernels_for,
    in_reverse_mode_alone,
    ops,
)

_MAX_DIM = 16  # csrc/launch/planar_flow.h
# Overloads, not their packets: resolving those costs small calls as much as a tensor.
_flow = ops.planar_flow.default
_flow_backward = _skipping_autograd(ops.planar_flow_backward.default)


class _PlanarFlow(_Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with below_autograd():
            x, log_det, heights = _flow(*inputs)
        ctx.save_for_backward(*inputs, heights)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(heights)
        return x, log_det, heights

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, dlog_det: Tensor | None, _dheights: None) -> tuple[Tensor | None, ...]:
        z, *rest = ctx.saved_tensors
        dx = torch.zeros_like(z) if dx is None else dx
        dlog_det = z.new_zeros(len(z)) if dlog_det is None else dlog_det
        derivatives = _flow_backward(dx, dlog_det, z, *rest)
        return tuple(d if wanted else None for d, wanted in zip(derivatives, ctx.needs_input_grad, strict=True))


def _register() -> None:
    @torch.library.register_fake("ade_fast::planar_flow")  # type: ignore[untyped-decorator]
    def planar_flow(z: Tensor, u: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return z.new_empty(z.shape), z.new_empty(z.shape[:1]), z.new_empty((b.shape[0], z.shape[0]))

    @torch.library.register_fake("ade_fast::planar_flow_backward")  # type: ignore[untyped-decorator]
    def planar_flow_backward(
        dx: Tensor, dlog_det: Tensor, z: Tensor, u: Tensor, w: Tensor, b: Tensor, heights: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(t.new_empty(t.shape) for t in (z, u, w, b))

    _library.impl("planar_flow", _through(_flow, _PlanarFlow), "Autograd")
    _refuse_derivative(ops.planar_flow_backward.default)


def takes(z: Tensor, *parameters: Tensor) -> bool:
    """Whether the operator can take these tensors, z ``(n, dim)`` and u, w, b, and give all derivatives asked for."""
    if torch.compiler.is_compiling():  # fuses the plain formula itself
        return False
    if not has_kernels_for(z) or any(p.dtype != z.dtype for p in parameters):
        return False
    if any(p.device != z.device for p in parameters) or not 1 <= z.shape[1] <= _MAX_DIM or len(parameters[0]) == 0:
        return False
    return in_reverse_mode_alone()


def planar_flow(z: Tensor, u: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``(x, log_det)`` of the operator, differentiable once: at a lower price than by ``torch.ops``.

    z ``(n, dim)``; u, w ``(n_layers, dim)``; b ``(n_layers,)``; x ``(n, dim)``; log_det ``(n,)``.
    """
    inputs = (z, u, w, b)
    if wants_grad(*inputs):
        return _PlanarFlow.apply(*inputs)[:2]
    with below_autograd():
        return _flow(*inputs)[:2]


_register()

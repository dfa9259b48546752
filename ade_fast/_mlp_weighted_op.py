"""Σ factor · f(x) of an MLP potential, with its gradients, from one evaluation (schema: ``csrc/bind/mlp.cpp``).

``mlp_weighted_value(x, factor, weights, biases, …) -> (value, dx, dweights, dbiases)``: value [B] is f(x), the rest the
derivatives of the sum. A loss that is linear in f, of known factors, needs no second evaluation for its backward pass:
contrastive divergence is one. On the CPU alone. The operator has no derivative; `weighted_value` has one, once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._mlp_ops import Tensors, wants_grad
from ._once import refuse_batched, refuse_derivative
from ._ops import _Function, _library, below_autograd, ops

_weighted_value = ops.mlp_weighted_value.default


def weighted_value(
    x: Tensor,
    factor: Tensor,
    weights: Tensors,
    biases: Tensors,
    numbers: Sequence[float],
    base: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Σ factor f(x), a scalar, differentiable in x, weights and biases; factor [B] a constant.

    numbers: activation to precision of the schema. base: pull and centre, [D], constants.
    """
    if not wants_grad(x, *weights, *biases):
        with below_autograd():
            return factor @ ops.mlp_field.default(x, weights, biases, *numbers, True, False, *(base or ()))[0]
    return _WeightedValue.apply((factor, numbers, base or ()), x, *weights, *biases)


class _WeightedValue(_Function):
    @staticmethod
    def forward(ctx, constants: tuple, *tensors: Tensor):
        factor, numbers, base = constants
        x, layers = tensors[0], len(tensors) // 2
        with below_autograd():
            value, dx, dweights, dbiases = _weighted_value(
                x, factor, tensors[1 : 1 + layers], tensors[1 + layers :], *numbers, *base
            )
            ctx.derivatives = [dx, *dweights, *dbiases]
            ctx.save_for_backward(*tensors)  # changes in place before the backward pass raise
            return factor @ value

    @staticmethod
    def backward(ctx, dsum: Tensor):
        refuse_batched(dsum)
        tensors = ctx.saved_tensors
        with torch.no_grad():
            derivatives = list(torch._foreach_mul(ctx.derivatives, dsum))
        if torch.is_grad_enabled():
            derivatives = refuse_derivative(derivatives, [*tensors, dsum])
        wanted = ctx.needs_input_grad[1:]
        return None, *(d if want else None for d, want in zip(derivatives, wanted, strict=True))


def _register() -> None:
    @torch.library.register_fake("ade_fast::mlp_weighted_value")
    def fake(x, factor, weights, biases, *rest):
        like = [[t.new_empty(t.shape) for t in tensors] for tensors in (weights, biases)]
        return x.new_empty(x.shape[:1]), x.new_empty(x.shape), *like

    def without_graph(*values):
        with below_autograd():
            return _weighted_value(*values)

    _library.impl("mlp_weighted_value", without_graph, "Autograd")


_register()

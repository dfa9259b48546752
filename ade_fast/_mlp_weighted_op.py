"""Σ factor · f(x) of an MLP potential, with its gradients, from one evaluation (schema: ``csrc/bind/mlp.cpp``).

``mlp_weighted_value(x, factor, weights, biases, …) -> (value, dx, dweights, dbiases)``: value [B] is f(x), the rest the
derivatives of the sum. A loss that is linear in f, of known factors, needs no second evaluation for its backward pass:
contrastive divergence is one. On the CPU alone. The operator has no derivative; `weighted_value` has one, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._known import with_derivatives
from ._mlp_ops import Tensors, wants_grad
from ._ops import _library, below_autograd, ops

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
    with below_autograd():
        value, dx, dweights, dbiases = _weighted_value(x, factor, weights, biases, *numbers, *(base or ()))
        total = factor @ value
    return with_derivatives(total, [dx, *dweights, *dbiases], [x, *weights, *biases])


def _register() -> None:
    @torch.library.register_fake("ade_fast::mlp_weighted_value")  # type: ignore[untyped-decorator]
    def fake(
        x: Tensor, factor: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *rest: Any
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        dweights, dbiases = ([t.new_empty(t.shape) for t in tensors] for tensors in (weights, biases))
        return x.new_empty(x.shape[:1]), x.new_empty(x.shape), dweights, dbiases

    def without_graph(*values: Any) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        with below_autograd():
            return _weighted_value(*values)

    _library.impl("mlp_weighted_value", without_graph, "Autograd")


_register()

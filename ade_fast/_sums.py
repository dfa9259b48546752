"""What an objective sums up, by one operator each (``csrc/bind/sums.cpp``) where all that is given is on the CPU and of
one dtype: half a dozen of torch's, and as many for the way back, take as long as a small network's whole gradient.
Elsewhere by torch's own.

``kinetic(v, weight) -> energy``: [B, D] -> [B]. ``mean_square(first, second) -> mean``: of [B1, D] and [B2, D] or None.
``means(tensors) -> means``: scalars. All three are differentiable once, the weight excepted.
``total_norms(first, second) -> norms``: [2], of two lists, and ``numbers(tensors)``, scalars in one tensor, have no
derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._mlp_ops import wants_grad
from ._once import refuse_batched
from ._ops import (
    _Function,
    _library,
    _refuse_derivative,
    _register_fake,
    _skipping_autograd,
    _through,
    below_autograd,
    has_kernels_for,
    in_reverse_mode_alone,
    ops,
)

_kinetic, _mean_square = ops.kinetic.default, ops.mean_square.default
_means, _numbers, _total_norms = ops.means.default, ops.numbers.default, ops.total_norms.default
_kinetic_backward = _skipping_autograd(ops.kinetic_backward.default)
_mean_square_backward = _skipping_autograd(ops.mean_square_backward.default)


def kinetic(v: Tensor, weight: Tensor) -> Tensor:
    """weight/2 |v|^2 of each row: [B, D] -> [B], in v's dtype. weight: a scalar."""
    if not (takes_all(v) and takes_number(weight)):
        return weight.to(v) / 2 * v.square().sum(1)
    if wants_grad(v):
        return _Kinetic.apply(v, weight)
    with below_autograd():
        return _kinetic(v, weight)


def mean_square(first: Tensor, second: Tensor | None = None) -> Tensor:
    """E |u|^2 over the rows u of one or both, [B, *event], a scalar."""
    first, second = first.flatten(1), None if second is None else second.flatten(1)
    if not (takes_all(first) if second is None else takes_all(first, second)):
        return (first if second is None else torch.cat([first, second])).square().sum(1).mean()
    if wants_grad(first, second):
        return _MeanSquare.apply(first, second)
    with below_autograd():
        return _mean_square(first, second)


def means(*tensors: Tensor) -> Sequence[Tensor]:
    """The mean of each, scalars."""
    if not takes_all(*tensors):
        return [t.mean() for t in tensors]
    if wants_grad(*tensors):
        return _Means.apply(*tensors)
    with below_autograd():
        return _means(tensors)


def total_norms(*groups: Sequence[Tensor]) -> Tensor:
    """The norm of all elements of each of one or two groups of tensors, [n], without a graph; of none it is 0."""
    everything = [t for group in groups for t in group]
    if everything and takes_all(*everything):
        first, *others = groups
        with below_autograd():
            return _total_norms(first, others[0]) if others else _total_norms(first, [])[:1]
    norms = [nn.utils.get_total_norm(group) for group in groups]
    return torch.stack([norm.to(norms[0]) for norm in norms])


def numbers(tensors: Sequence[Tensor]) -> Tensor:
    """Scalars in one tensor [n], without a graph, of the first one's dtype."""
    if takes_all(*tensors):
        with below_autograd():
            return _numbers(tensors)
    return torch.stack([t.detach().to(tensors[0]) for t in tensors])


def takes_all(*tensors: Tensor) -> bool:
    """Whether the operators can take these, and give all derivatives that are wanted."""
    if torch.compiler.is_compiling():  # fuses the plain formulas itself
        return False
    dtype = tensors[0].dtype
    return (
        has_kernels_for(tensors[0]) and all(t.is_cpu and t.dtype == dtype for t in tensors) and in_reverse_mode_alone()
    )


def takes_number(weight: Tensor) -> bool:
    plain = weight.dim() == 0 and weight.is_cpu and not weight.requires_grad
    return plain and weight.dtype in (torch.float32, torch.float64)


class _Kinetic(_Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(v, weight)
        with below_autograd():
            return _kinetic(v, weight)

    @staticmethod
    def backward(ctx: Any, denergy: Tensor) -> tuple[Tensor, None]:
        refuse_batched(denergy)
        return _kinetic_backward(denergy, *ctx.saved_tensors), None


class _MeanSquare(_Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor | None) -> Tensor:
        ctx.save_for_backward(first, second)
        with below_autograd():
            return _mean_square(first, second)

    @staticmethod
    def backward(ctx: Any, dmean: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batched(dmean)
        derivatives = _mean_square_backward(dmean, *ctx.saved_tensors)
        return tuple(d if wanted else None for d, wanted in zip(derivatives, ctx.needs_input_grad, strict=True))


class _Means(_Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.shapes = [t.shape for t in tensors]
        with below_autograd():
            return tuple(_means(tensors))

    @staticmethod
    def backward(ctx: Any, *dmeans: Tensor) -> tuple[Tensor | None, ...]:
        """Linear, so that autograd differentiates it again."""
        return tuple(
            (d / shape.numel()).expand(shape) if wanted else None
            for d, shape, wanted in zip(dmeans, ctx.shapes, ctx.needs_input_grad, strict=True)
        )


def _register() -> None:
    @torch.library.register_fake("ade_fast::mean_square")  # type: ignore[untyped-decorator]
    def fake_mean_square(first: Tensor, second: Tensor | None) -> Tensor:
        return first.new_empty(())

    @torch.library.register_fake("ade_fast::kinetic")  # type: ignore[untyped-decorator]
    def fake_kinetic(v: Tensor, weight: Tensor) -> Tensor:
        return v.new_empty(v.shape[:1])

    @torch.library.register_fake("ade_fast::means")  # type: ignore[untyped-decorator]
    def fake_means(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [t.new_empty(()) for t in tensors]

    @torch.library.register_fake("ade_fast::numbers")  # type: ignore[untyped-decorator]
    def fake_numbers(tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].new_empty((len(tensors),))

    @torch.library.register_fake("ade_fast::total_norms")  # type: ignore[untyped-decorator]
    def fake_total_norms(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        return [*first, *second][0].new_empty((2,))

    differentiable = {
        ops.kinetic_backward.default: (_kinetic, _Kinetic),
        ops.mean_square_backward.default: (_mean_square, _MeanSquare),
    }
    for backward, (op, function) in differentiable.items():
        _register_fake(backward)
        _library.impl(op._schema.name, _through(op, function), "Autograd")
        _refuse_derivative(backward)
    for op in (_means, _numbers, _total_norms):
        _refuse_derivative(op, "has no derivative: it is for numbers that nobody differentiates")


_register()

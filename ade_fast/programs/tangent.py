"""The mixed derivative of a piecewise-linear potential by a tangent pass: 3 U where its kinks are at hand.

U is the cost of one evaluation of f. Where f is piecewise linear in x, ⟨∇_x f(x), u⟩ is f's linear part around x
applied to u: the same network without its biases, with every kink (ReLU, leaky ReLU) replaced by the slope it has at
x. So ∂_θ⟨∇_x f(x), u⟩ is an ordinary gradient of that tangent network, and autograd's double backward (4 U more than
the gradient, of which 2 U go into multiplying by zeros) is not needed.

The tangent pass calls the potential itself, on u, and changes what the functions it calls do (`Following`): biases are
dropped, kinks take their slopes from the recorded values, and max pooling its choice. This works for any module or
callable made of known functions; at any other one it gives up, and the caller takes the double-backward route.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .following import (
    ADDITIVE,
    AFFINE,
    KINKS,
    MAX_POOLS,
    Following,
    Unsupported,
    concatenated_dim,
    is_inplace,
    slope_of,
)


class _Tangent(Following):
    """Within this block, functions of tensors that depend on u are replaced by their tangents."""

    def __init__(self, u: Tensor, kinks: Sequence[Tensor]) -> None:
        super().__init__(u)
        self._kinks = iter(kinks)

    def followed_to(self, result: object) -> bool:
        """Whether `result` is a value that was followed all the way, past every kink that was recorded."""
        return self.depends(result) and next(self._kinks, None) is None

    def apply(self, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        if func in ADDITIVE:
            return func(*(self._addend(a) for a in args), **kwargs)
        if func is torch.cat:
            return torch.cat([self._addend(t) for t in args[0]], concatenated_dim(args, kwargs))
        if func in AFFINE:
            position = AFFINE[func]
            kwargs = {**kwargs, "bias": None} if "bias" in kwargs else kwargs
            return func(*(None if i == position else a for i, a in enumerate(args)), **kwargs)
        if func in MAX_POOLS:
            return self._chosen(args[0])
        return self._kink(func, args, kwargs) if func in KINKS else func(*args, **kwargs)

    def _kink(self, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        kink, slope = next(self._kinks, None), slope_of(func, args, kwargs)
        if kink is None or not kink.is_floating_point() or kink.shape != args[0].shape:
            raise Unsupported("a kink that was not recorded")
        # autograd's own formulas: the slope is read off the sign of the recorded value in the same pass
        if slope == 0.0:
            result = torch.ops.aten.threshold_backward(args[0], kink, 0.0)
        else:
            result = torch.ops.aten.leaky_relu_backward(args[0], kink, slope, True)
        return args[0].copy_(result) if is_inplace(func, args, kwargs) else result

    def _chosen(self, u: Tensor) -> Tensor:
        """The entries of u that were the largest of their windows: indices of images, of height 1 where u has none."""
        indices = next(self._kinks, None)
        if indices is None or indices.dtype != torch.int64 or u.dim() < 3 or indices.shape[:2] != u.shape[:2]:
            raise Unsupported("max pooling that was not recorded")
        chosen = u.flatten(2).gather(2, indices.flatten(2))
        return chosen if u.dim() == 3 else chosen.view(indices.shape)

    def _addend(self, value):
        """A term that does not depend on x has zero tangent (it still takes part in broadcasting)."""
        if self.depends(value):
            return value
        return torch.zeros_like(value) if isinstance(value, Tensor) else 0


def tangent(potential: Callable, u: Tensor, kinks: Sequence[Tensor]) -> tuple[Tensor | None, dict[int, Tensor]]:
    """⟨∇_x f(x), u⟩ for each row, [N]: f's tangent at the x where `kinks` were recorded, applied to u [N, *event].

    kinks: `GraphFacts.kinks` at those rows. Differentiable with respect to whatever f depends on. None if the
    potential is made of functions whose tangents are not known here. And the tensors that it used, by id, zeros in the
    tangent (biases) included.
    """
    mode = _Tangent(u, kinks)
    try:
        with mode:
            slope = potential(u)
            reached = mode.followed_to(slope)
            slope = slope.reshape(-1)
    except Unsupported:
        return None, {}
    return slope if reached else None, mode.used

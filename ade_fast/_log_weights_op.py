"""What log-weights are made of, and their figures, by one operator each (``csrc/bind/log_weights.cpp``). On the CPU
alone, and without a derivative but for the first, which is linear.

``log_weights(value, energy, log_q, weight, size) -> log_w``: value - energy - log_q - size/2 log(2 pi / weight), [K],
of a scalar weight that nobody differentiates by.

``normal_log_density(noise) -> log_q``: log N(noise; 0, I), [B, D] -> [B].

``log_weight_figures(log_w) -> (log_mean, ess)``: of [K], scalars: log mean w, and (mean w)^2 / mean w^2. Where
all weights are 0, one is infinite or one is not a number, they are those of torch's own formulas.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._mlp_ops import wants_grad
from ._ops import _Function, _library, _refuse_derivative, _through, below_autograd, ops
from ._sums import takes_all, takes_number

_density, _figures = ops.normal_log_density.default, ops.log_weight_figures.default
_weights = ops.log_weights.default


def normal_log_density(noise: Tensor) -> Tensor:
    """The operator, of noise that is plain (`_ops.is_plain_on_cpu`)."""
    with below_autograd():
        return _density(noise)


def log_weight_figures(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """The operator, of plain log-weights."""
    with below_autograd():
        return _figures(log_w)


class _LogWeights(_Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        with below_autograd():
            return _weights(*inputs)

    @staticmethod
    def backward(ctx: Any, dlog_w: Tensor) -> tuple[Tensor | None, ...]:
        """Linear, so that autograd differentiates it again."""
        less = -dlog_w
        return dlog_w, less, less, None, None


def takes(weight: Tensor, *of_samples: Tensor) -> bool:
    """Whether ``log_weights`` can take these, and give all derivatives that are wanted."""
    return takes_number(weight) and takes_all(*of_samples)


def log_weights(value: Tensor, energy: Tensor, log_q: Tensor, weight: Tensor, size: int) -> Tensor:
    """The operator, of what it `takes`."""
    if wants_grad(value, energy, log_q):
        return _LogWeights.apply(value, energy, log_q, weight, size)
    with below_autograd():
        return _weights(value, energy, log_q, weight, size)


def _register() -> None:
    @torch.library.register_fake("ade_fast::log_weights")  # type: ignore[untyped-decorator]
    def fake_weights(value: Tensor, *_: object) -> Tensor:
        return value.new_empty(value.shape)

    @torch.library.register_fake("ade_fast::normal_log_density")  # type: ignore[untyped-decorator]
    def fake(noise: Tensor) -> Tensor:
        return noise.new_empty(noise.shape[:1])

    @torch.library.register_fake("ade_fast::log_weight_figures")  # type: ignore[untyped-decorator]
    def fake_of_figures(log_w: Tensor) -> tuple[Tensor, Tensor]:
        return log_w.new_empty(()), log_w.new_empty(())

    _library.impl("log_weights", _through(_weights, _LogWeights), "Autograd")
    for op in (_density, _figures):
        _refuse_derivative(op, "has no derivative: it is for numbers that nobody differentiates")


_register()

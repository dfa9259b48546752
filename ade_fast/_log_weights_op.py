"""What log-weights are made of, and their figures, by one operator each (``csrc/bind/log_weights.cpp``). On the CPU
alone, and without a derivative but for the first, which is linear.

``log_weights(value, energy, log_q, weight, size) -> log_w``: value - energy - log_q - size/2 log(2 pi / weight), [K],
of a scalar weight that nobody differentiates by.

``normal_log_density(noise) -> log_q``: log N(noise; 0, I), [B, D] -> [B].

``renyi_bound(log_w, log_b, power, share) -> (bound, dlog_w, dlog_b)``: (1/p) log((1 - share) mean w^p + share mean b^p)
of [K] and [M] or None, and its derivatives; p > 0 is a scalar that nobody differentiates by.

``tempered_power(log_w, levels, min_ess, most) -> power``: the largest beta, of ``levels`` steps up to ``most``, for
which the w^beta of [K] have an effective sample size of at least min_ess; at least the first.

``log_weight_figures(log_w) -> (log_mean, ess)``: of [K], scalars: log mean w, and (mean w)^2 / mean w^2. Where
all weights are 0, one is infinite or one is not a number, they are those of torch's own formulas.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._mlp_ops import wants_grad
from ._once import refuse_batched, refuse_derivative
from ._ops import _Function, _library, _refuse_derivative, _through, below_autograd, ops
from ._sums import takes_all, takes_number

_density, _figures, _power, _renyi = (
    ops.normal_log_density.default, ops.log_weight_figures.default, ops.tempered_power.default, ops.renyi_bound.default
)  # fmt: skip
_weights = ops.log_weights.default


def normal_log_density(noise: Tensor) -> Tensor:
    """The operator, of noise that is plain (`_ops.is_plain_on_cpu`)."""
    with below_autograd():
        return _density(noise)


def log_weight_figures(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """The operator, of plain log-weights."""
    with below_autograd():
        return _figures(log_w)


def tempered_power(log_w: Tensor, levels: int, min_ess: float, most: float) -> Tensor:
    """The operator, of plain log-weights."""
    with below_autograd():
        return _power(log_w, levels, min_ess, most)


def renyi_bound(log_w: Tensor, log_b: Tensor | None, power: Tensor, share: float) -> Tensor:
    """The bound alone, of what it `takes`, differentiable once."""
    if wants_grad(log_w, log_b):
        return _RenyiBound.apply(log_w, log_b, power, share)
    with below_autograd():
        return _renyi(log_w, log_b, power, share)[0]


class _RenyiBound(_Function):
    @staticmethod
    def forward(ctx: Any, log_w: Tensor, log_b: Tensor | None, power: Tensor, share: float) -> Tensor:
        with below_autograd():
            bound, *derivatives = _renyi(log_w, log_b, power, share)
        # The inputs are what a derivative's derivative would depend on.
        ctx.save_for_backward(*derivatives, log_w, log_b)
        return bound

    @staticmethod
    def backward(ctx: Any, dbound: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batched(dbound)
        *derivatives, log_w, log_b = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        with torch.no_grad():
            found = [dbound * d if want else None for d, want in zip(derivatives, wanted, strict=True)]
        if torch.is_grad_enabled():
            found = refuse_derivative(found, [log_w, log_b, dbound])
        return *found, None, None


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

    @torch.library.register_fake("ade_fast::tempered_power")  # type: ignore[untyped-decorator]
    def fake_power(log_w: Tensor, levels: int, min_ess: float, most: float) -> Tensor:
        return log_w.new_empty(())

    @torch.library.register_fake("ade_fast::renyi_bound")  # type: ignore[untyped-decorator]
    def fake_bound(log_w: Tensor, log_b: Tensor | None, power: Tensor, share: float) -> tuple[Tensor, ...]:
        return (
            log_w.new_empty(()),
            log_w.new_empty(log_w.shape),
            log_w.new_empty((0,) if log_b is None else log_b.shape),
        )

    for op in (_density, _figures, _power, _renyi):
        _refuse_derivative(op, "has no derivative: it is for numbers that nobody differentiates")


_register()

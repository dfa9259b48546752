"""What log-weights are made of, and their figures, by one operator each (``csrc/bind/log_weights.cpp``). On the CPU
alone, and without a derivative.

``normal_log_density(noise) -> log_q``: log N(noise; 0, I), [B, D] -> [B].

``log_weight_figures(log_w) -> (log_mean, ess)``: of [K], scalars: log mean w, and (mean w)^2 / mean w^2, float64. Where
all weights are 0, one is infinite or one is not a number, they are those of torch's own formulas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._ops import _refuse_derivative, below_autograd, ops

_density, _figures = ops.normal_log_density.default, ops.log_weight_figures.default


def normal_log_density(noise: Tensor) -> Tensor:
    """The operator, of noise that is plain (`_ops.is_plain_on_cpu`)."""
    with below_autograd():
        return _density(noise)


def log_weight_figures(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """The operator, of plain log-weights."""
    with below_autograd():
        return _figures(log_w)


def _register() -> None:
    @torch.library.register_fake("ade_fast::normal_log_density")  # type: ignore[untyped-decorator]
    def fake(noise: Tensor) -> Tensor:
        return noise.new_empty(noise.shape[:1])

    @torch.library.register_fake("ade_fast::log_weight_figures")  # type: ignore[untyped-decorator]
    def fake_of_figures(log_w: Tensor) -> tuple[Tensor, Tensor]:
        return log_w.new_empty(()), log_w.new_empty((), dtype=torch.float64)

    for op in (_density, _figures):
        _refuse_derivative(op, "has no derivative: it is for numbers that nobody differentiates")


_register()

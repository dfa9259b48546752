"""Leapfrog's kicks and drifts from its step sizes in one operator, and the way back in another
(``csrc/bind/merged_steps.cpp``): half a dozen of torch's take a tenth of a small batch's unroll. On the CPU alone, and
without a derivative.

``merged_steps(step, steps) -> (kick, drift)``: step [T, D] or [1, D] -> [T + 1, D] and [T, D], as
`dynamics.base.merged_kicks`. ``merged_steps_backward(dkick, ddrift, per_step) -> dstep``: [T, D] or, summed over steps,
[1, D]; ddrift may be None.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._ops import _refuse_derivative, below_autograd, ops

_steps, _backward = ops.merged_steps.default, ops.merged_steps_backward.default


def merged_steps(step: Tensor, n_steps: int) -> tuple[Tensor, Tensor]:
    """The operator, of a step that is plain (`_ops.is_plain_on_cpu`)."""
    with below_autograd():
        return _steps(step, n_steps)


def merged_steps_vjp(dkick: Tensor, ddrift: Tensor | None, per_step: bool) -> Tensor:
    """``merged_steps_backward``, of plain cotangents."""
    with below_autograd():
        return _backward(dkick, ddrift, per_step)


def _register() -> None:
    @torch.library.register_fake("ade_fast::merged_steps")  # type: ignore[untyped-decorator]
    def fake(step: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        return step.new_empty((steps + 1, step.shape[1])), step.new_empty((steps, step.shape[1]))

    @torch.library.register_fake("ade_fast::merged_steps_backward")  # type: ignore[untyped-decorator]
    def fake_backward(dkick: Tensor, ddrift: Tensor | None, per_step: bool) -> Tensor:
        return dkick.new_empty((dkick.shape[0] - 1 if per_step else 1, dkick.shape[1]))

    for op in (_steps, _backward):
        _refuse_derivative(op, "has no derivative: it is for numbers that nobody differentiates")


_register()

"""The figures of an unroll in one operator, its adjoint's in another (``csrc/bind/figures.cpp``). On the CPU alone.

``unroll_figures(value, gradient, force, v, drifting, log_det, v0, step, damping, …) -> (table, momentum_clipped)``:
what `dynamics.diagnostics.Diagnostics` says of value [n, B], gradient [n, B, D], force and v [n, B, L], drifting
[m, B, L] and log_det [n, B]; all but the first two may be None. With step [n - 1, L] or [1, L] v is what the kick at
each x_t left, and v_{t+1} = damping v + step / 2 clip(force), v_0 = v0. table [9, n] has the rows `ROWS`, zeros where
there is no such thing; momentum_clipped [m].

``adjoint_figures(norm, other) -> table``: mean and largest, [2, n], of norms [n, B], of two parts or of one.

They have no derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._ops import _library, below_autograd, ops

ROWS = (
    *("value", "grad_norm", "momentum_norm", "energy", "energy_error", "acceptance", "log_det"),
    *("energy_error_max", "grad_clipped"),
)

_unroll, _adjoint = ops.unroll_figures.default, ops.adjoint_figures.default


def unroll_figures(*values: Any) -> tuple[Tensor, Tensor]:
    """The operator without a graph, whatever requires grad."""
    with below_autograd():
        return _unroll(*values)


def adjoint_figures(*values: Tensor | None) -> Tensor:
    """The operator without a graph, whatever requires grad."""
    with below_autograd():
        return _adjoint(*values)


def _register() -> None:
    @torch.library.register_fake("ade_fast::unroll_figures")  # type: ignore[untyped-decorator]
    def fake(
        value: Tensor, gradient: Tensor, force: Tensor | None, v: Tensor | None, drifting: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        drifts = 0 if drifting is None else len(drifting)
        return value.new_empty((len(ROWS), len(value))), value.new_empty((drifts,))

    @torch.library.register_fake("ade_fast::adjoint_figures")  # type: ignore[untyped-decorator]
    def fake_of_adjoint(norm: Tensor, other: Tensor | None) -> Tensor:
        return norm.new_empty((2, len(norm)))

    _library.impl("unroll_figures", unroll_figures, "Autograd")
    _library.impl("adjoint_figures", adjoint_figures, "Autograd")


_register()

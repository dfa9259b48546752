"""The figures of an unroll in one operator (schema: ``csrc/bind/figures.cpp``). On the CPU alone.

``unroll_figures(value, gradient, force, v, drifting, log_det, …) -> (table, momentum_clipped)``: what
`dynamics.diagnostics.Diagnostics` says of value [n, B], gradient [n, B, D], force and v [n, B, L], drifting [m, B, L]
and log_det [n, B]; all but the first two may be None. table [9, n] has the rows `ROWS`, zeros where there is no such
thing; momentum_clipped [m]. It has no derivative.
"""

from __future__ import annotations

import torch

from ._ops import _library, below_autograd, ops

ROWS = (
    *("value", "grad_norm", "momentum_norm", "energy", "energy_error", "acceptance", "log_det"),
    *("energy_error_max", "grad_clipped"),
)

_figures = ops.unroll_figures.default


def unroll_figures(*values):
    """The operator without a graph, whatever requires grad."""
    with below_autograd():
        return _figures(*values)


def _register() -> None:
    @torch.library.register_fake("ade_fast::unroll_figures")
    def fake(value, gradient, force, v, drifting, *rest):
        drifts = 0 if drifting is None else len(drifting)
        return value.new_empty((len(ROWS), len(value))), value.new_empty((drifts,))

    _library.impl("unroll_figures", unroll_figures, "Autograd")


_register()

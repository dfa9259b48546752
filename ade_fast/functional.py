"""Functional forms of the dynamics: the layers' computation with step sizes (and scales) as arguments.

Each takes the arguments of the layer of the same name, and returns `ade.DynamicsOutput`. `step_size` is a number or
a tensor (which may require grad and need not be a leaf). Numbers must be positive; of a tensor, that is the caller's
affair here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .dynamics import base
from .dynamics.base import DynamicsOutput, Options
from .dynamics.damped_leapfrog import check_damping, run_damped_leapfrog
from .dynamics.generalized_leapfrog import (
    Couplings,
    Scale,
    check_couplings,
    check_momentum_shape,
    run_generalized_leapfrog,
)
from .dynamics.leapfrog import run_leapfrog

__all__ = ["damped_leapfrog", "generalized_leapfrog", "leapfrog"]


def _options(layer: str, options: dict) -> Options:
    unknown = sorted(options.keys() - Options.__dataclass_fields__.keys())
    if unknown:
        raise TypeError(f"{layer}: unknown option {unknown[0]!r}; options are {sorted(Options.__dataclass_fields__)}")
    checked = Options(**options)
    checked.validate(layer)
    return checked


def _step(layer: str, step_size: float | Tensor, name: str = "step_size") -> Tensor:
    if isinstance(step_size, Tensor):
        return base.check_real(layer, step_size, name)
    return base.check_step_size(layer, step_size, name, torch.float64)  # cast to the states' dtype at every call


def leapfrog(
    potential: Callable,
    x0: Tensor,
    v0: Tensor | None,
    step_size: float | Tensor,
    n_steps: int,
    *,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    **options,
) -> DynamicsOutput:
    """T leapfrog steps, eqs. (10), (11). Options: those of `ade.Leapfrog`."""
    layer = "leapfrog"
    checked, step = _options(layer, options), _step(layer, step_size)
    n_steps = base.check_n_steps(layer, n_steps)
    return run_leapfrog(layer, potential, x0, v0, step, n_steps, checked, generator=generator, context=context)[0]


def damped_leapfrog(
    potential: Callable,
    x0: Tensor,
    v0: Tensor | None,
    step_size: float | Tensor,
    n_steps: int,
    damping: float = 0.5,
    *,
    drift_step: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    **options,
) -> DynamicsOutput:
    """The released image code's update. Options: those of `ade.DampedLeapfrog`; `drift_step` may require grad."""
    layer = "damped_leapfrog"
    checked, step = _options(layer, options), _step(layer, step_size)
    n_steps = base.check_n_steps(layer, n_steps)
    return run_damped_leapfrog(
        layer, potential, x0, v0, step, n_steps, checked, damping=check_damping(layer, damping),
        drift_step=_step(layer, drift_step, "drift_step"), generator=generator, context=context,
    )[0]  # fmt: skip


def generalized_leapfrog(
    potential: Callable,
    x0: Tensor,
    v0: Tensor | None,
    step_size: float | Tensor,
    n_steps: int,
    *,
    scale_v: Scale = None,
    scale_x: Scale = None,
    shift_v: Callable | None = None,
    shift_x: Callable | None = None,
    momentum_shape: int | tuple[int, ...] | None = None,
    momentum_step_size: float | Tensor | None = None,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    **options,
) -> DynamicsOutput:
    """T generalized leapfrog steps, eq. (13). Options: those of `ade.GeneralizedLeapfrog`."""
    layer = "generalized_leapfrog"
    checked, step = _options(layer, options), _step(layer, step_size)
    n_steps = base.check_n_steps(layer, n_steps)
    couplings = Couplings(scale_v, scale_x, shift_v, shift_x)
    check_couplings(layer, couplings)
    eta_v = None if momentum_step_size is None else _step(layer, momentum_step_size, "momentum_step_size")
    return run_generalized_leapfrog(
        layer, potential, x0, v0, step, n_steps, checked, couplings,
        momentum_shape=check_momentum_shape(layer, momentum_shape), momentum_step_size=eta_v,
        generator=generator, context=context,
    )[0]  # fmt: skip

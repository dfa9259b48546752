"""Functional forms of the dynamics: the layers' computation with step sizes (and scales) as arguments.

Each takes the arguments of the layer of the same name, and returns what it returns. `step_size` is a number or
a tensor (which may require grad and need not be a leaf). Numbers must be positive; of a tensor, that is the caller's
affair here. All take ``condition=``, as the layers do: the potential is then called as f(x, condition).
`diagnostics` is None or a `Watch`, which is where those of the unroll are found.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .dynamics import base
from .dynamics.annealed_leapfrog import (
    AnnealedOutput,
    Refreshment,
    check_refresh,
    even_bridges,
    run_annealed_leapfrog,
)
from .dynamics.base import DynamicsOutput, Options
from .dynamics.continuous import Divergence, check_h, check_scalar_time, run_continuous
from .dynamics.damped_leapfrog import check_damping, run_damped_leapfrog
from .dynamics.deterministic_langevin import run_deterministic_langevin
from .dynamics.diagnostics import Alarm, Diagnostics, Watched
from .dynamics.generalized_leapfrog import (
    Couplings,
    Scale,
    check_couplings,
    check_momentum_shape,
    run_generalized_leapfrog,
)
from .dynamics.langevin import LangevinOutput, Shifts, check_shifts, run_langevin
from .dynamics.leapfrog import run_leapfrog
from .dynamics.log_det import LogDet
from .dynamics.ode import SolverOptions
from .potentials.conditioned import Condition

__all__ = [
    "Watch",
    "annealed_leapfrog",
    "continuous_langevin",
    "damped_leapfrog",
    "deterministic_langevin",
    "generalized_continuous_langevin",
    "generalized_leapfrog",
    "langevin",
    "leapfrog",
]


def _conditional(form: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a functional form an argument ``condition=``."""

    @functools.wraps(form)
    def call(
        potential: Callable[..., Tensor], x0: Tensor, *args: Any, condition: Condition | None = None, **options: Any
    ) -> Any:
        return form(base.at_condition(form.__name__, potential, condition, x0), x0, *args, **options)

    return call


def _options(layer: str, options: dict[str, Any], without: frozenset[str] = frozenset()) -> Options:
    known = Options.__dataclass_fields__.keys() - without
    unknown = sorted(options.keys() - known)
    if unknown:
        raise TypeError(f"{layer}: unknown option {unknown[0]!r}; options are {sorted(known)}")
    checked = Options(**options)
    checked.validate(layer)
    return checked


def _step(layer: str, step_size: float | Tensor, name: str = "step_size") -> Tensor:
    if isinstance(step_size, Tensor):
        return base.check_real(layer, step_size, name)
    return base.check_step_size(layer, step_size, name, torch.float64)  # cast to the states' dtype at every call


class Watch:
    """Takes the diagnostics of calls: ``watch = Watch(); leapfrog(..., diagnostics=watch); watch.diagnostics``."""

    def __init__(self) -> None:
        self._alarm = Alarm()
        self._latest: Watched | None = None

    @property
    def diagnostics(self) -> Diagnostics | None:
        """Those of the latest call with this watch, as a layer's; None before one."""
        return None if self._latest is None else self._latest.diagnostics

    def _over(self, layer: str, options: Options) -> Watched:
        self._latest = Watched(layer, self._alarm, options)
        return self._latest


def _watched(layer: str, watch: Watch | None, options: Options) -> Watched | None:
    if watch is None:
        return None
    if not isinstance(watch, Watch):
        raise TypeError(f"{layer}: diagnostics must be None or an ade.functional.Watch, got {type(watch).__name__}")
    return watch._over(layer, options)


@_conditional
def leapfrog(
    potential: Callable[..., Tensor],
    x0: Tensor,
    v0: Tensor | None,
    step_size: float | Tensor,
    n_steps: int,
    *,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    diagnostics: Watch | None = None,
    **options: Any,
) -> DynamicsOutput:
    """T leapfrog steps, eqs. (10), (11). Options: those of `ade.Leapfrog`.

    Shapes: x0 [B, *event]; the rest, and what it raises, as `ade.Leapfrog`.
    """
    layer = "leapfrog"
    checked, step = _options(layer, options), _step(layer, step_size)
    n_steps = base.check_n_steps(layer, n_steps)
    return run_leapfrog(
        layer, potential, x0, v0, step, n_steps, checked, generator=generator, context=context,
        watched=_watched(layer, diagnostics, checked),
    )[0]  # fmt: skip


@_conditional
def damped_leapfrog(
    potential: Callable[..., Tensor],
    x0: Tensor,
    v0: Tensor | None,
    step_size: float | Tensor,
    n_steps: int,
    damping: float = 0.5,
    *,
    drift_step: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    diagnostics: Watch | None = None,
    **options: Any,
) -> DynamicsOutput:
    """The released image code's update. Options: those of `ade.DampedLeapfrog`; `drift_step` may require grad.

    Shapes: x0 [B, *event]; the rest, and what it raises, as `ade.DampedLeapfrog`.
    """
    layer = "damped_leapfrog"
    checked, step = _options(layer, options), _step(layer, step_size)
    n_steps = base.check_n_steps(layer, n_steps)
    return run_damped_leapfrog(
        layer, potential, x0, v0, step, n_steps, checked, damping=check_damping(layer, damping),
        drift_step=_step(layer, drift_step, "drift_step"), generator=generator, context=context,
        watched=_watched(layer, diagnostics, checked),
    )[0]  # fmt: skip


@_conditional
def generalized_leapfrog(
    potential: Callable[..., Tensor],
    x0: Tensor,
    v0: Tensor | None,
    step_size: float | Tensor,
    n_steps: int,
    *,
    scale_v: Scale = None,
    scale_x: Scale = None,
    shift_v: Callable[..., Tensor] | None = None,
    shift_x: Callable[..., Tensor] | None = None,
    momentum_shape: int | tuple[int, ...] | None = None,
    momentum_step_size: float | Tensor | None = None,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    diagnostics: Watch | None = None,
    **options: Any,
) -> DynamicsOutput:
    """T generalized leapfrog steps, eq. (13). Options: those of `ade.GeneralizedLeapfrog`.

    Shapes: x0 [B, *event]; the rest, and what it raises, as `ade.GeneralizedLeapfrog`.
    """
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
        watched=_watched(layer, diagnostics, checked),
    )[0]  # fmt: skip


@_conditional
def annealed_leapfrog(
    potential: Callable[..., Tensor],
    x0: Tensor,
    v0: Tensor | None,
    step_size: float | Tensor,
    n_steps: int,
    *,
    initial: object,
    refresh: float | Tensor = 0.5,
    bridges: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    diagnostics: Watch | None = None,
    **options: Any,
) -> AnnealedOutput:
    """T annealed leapfrog steps. Options: those of `ade.AnnealedLeapfrog`.

    `refresh` (between 0 and 1) and `bridges` (β_t, [T], the last 1) may be tensors that require grad.

    Shapes: x0 [B, *event]; the rest, and what it raises, as `ade.AnnealedLeapfrog`.
    """
    layer = "annealed_leapfrog"
    checked = _options(layer, options, without=frozenset({"momentum_clip", "sample_range"}))
    step, n_steps = _step(layer, step_size), base.check_n_steps(layer, n_steps)
    if not isinstance(refresh, Tensor):
        refresh = torch.tensor(check_refresh(layer, refresh), dtype=torch.float64)
    elif base.check_real(layer, refresh, "refresh").dim() > 0:
        raise ValueError(f"{layer}: refresh must be a single number, got shape {tuple(refresh.shape)}")
    if bridges is None:
        bridges = even_bridges(n_steps)
    elif not isinstance(bridges, Tensor):
        raise TypeError(f"{layer}: bridges must be a tensor or None, got {type(bridges).__name__}")
    elif tuple(base.check_real(layer, bridges, "bridges").shape) != (n_steps,):
        raise ValueError(f"{layer}: bridges must have shape ({n_steps},), one per step, got {tuple(bridges.shape)}")
    return run_annealed_leapfrog(
        layer, potential, x0, v0, step, n_steps, checked, initial=initial, refreshment=Refreshment.of(refresh),
        bridges=bridges, noise=noise, generator=generator, context=context,
        watched=_watched(layer, diagnostics, checked),
    )[0]  # fmt: skip


@_conditional
def langevin(
    potential: Callable[..., Tensor],
    x0: Tensor,
    step_size: float | Tensor,
    n_steps: int,
    *,
    noise_std: float | Tensor | None = None,
    shift_v: Callable[..., Tensor] | None = None,
    shift_x: Callable[..., Tensor] | None = None,
    momentum_shape: int | tuple[int, ...] | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    diagnostics: Watch | None = None,
    **options: Any,
) -> LangevinOutput:
    """T Langevin steps, eqs. (14), (15). Options: those of `ade.Langevin`; `noise_std` may require grad.

    Shapes: x0 [B, *event]; the rest, and what it raises, as `ade.Langevin`.
    """
    layer = "langevin"
    checked, step = _options(layer, options), _step(layer, step_size)
    n_steps = base.check_n_steps(layer, n_steps)
    shifts = Shifts(shift_v, shift_x)
    check_shifts(layer, shifts)
    return run_langevin(
        layer, potential, x0, None, step, n_steps, checked,
        noise_std=step.sqrt() if noise_std is None else _step(layer, noise_std, "noise_std"), shifts=shifts,
        momentum_shape=check_momentum_shape(layer, momentum_shape), noise=noise, generator=generator, context=context,
        watched=_watched(layer, diagnostics, checked),
    )[0]  # fmt: skip


@_conditional
def deterministic_langevin(
    potential: Callable[..., Tensor],
    x0: Tensor,
    step_size: float | Tensor,
    n_steps: int,
    *,
    log_det: str = "exact",
    order: int = 10,
    n_probes: int = 1,
    spectral_bound: float | None = None,
    probes: Tensor | None = None,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    diagnostics: Watch | None = None,
    **options: Any,
) -> DynamicsOutput:
    """T deterministic Langevin steps, eq. (30). Options: those of `ade.DeterministicLangevin`.

    Shapes: x0 [B, *event]; the rest, and what it raises, as `ade.DeterministicLangevin`.
    """
    layer = "deterministic_langevin"
    checked = _options(layer, options, without=frozenset({"grad_clip", "momentum_clip", "sample_range"}))
    step, n_steps = _step(layer, step_size), base.check_n_steps(layer, n_steps)
    how = LogDet.of(layer, log_det, order, n_probes, spectral_bound)
    return run_deterministic_langevin(
        layer, potential, x0, None, step, n_steps, checked, how, probes=probes, generator=generator, context=context,
        watched=_watched(layer, diagnostics, checked),
    )[0]  # fmt: skip


@_conditional
def continuous_langevin(
    potential: Callable[..., Tensor],
    x0: Tensor,
    time: float | Tensor = 1.0,
    *,
    divergence: Literal["exact", "hutchinson"] = "exact",
    n_probes: int = 1,
    probes: Tensor | None = None,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    **options: Any,
) -> DynamicsOutput:
    """The flow of ∇f, eq. (33). Options (the solver's): those of `ade.ContinuousLangevin`.

    Shapes: x0 [B, *event]; the rest, and what it raises, as `ade.ContinuousLangevin`.
    """
    layer = "continuous_langevin"
    return _continuous(
        layer, potential, x0, time, None, Divergence(divergence, n_probes), options,
        probes=probes, generator=generator, context=context,
    )  # fmt: skip


@_conditional
def generalized_continuous_langevin(
    potential: Callable[..., Tensor],
    x0: Tensor,
    h: Callable[..., Tensor],
    time: float | Tensor = 1.0,
    *,
    divergence: Literal["exact", "hutchinson"] = "exact",
    n_probes: int = 1,
    probes: Tensor | None = None,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    **options: Any,
) -> DynamicsOutput:
    """The flow of h(∇f(x), f(x), x), eq. (37). Options: those of `ade.GeneralizedContinuousLangevin`.

    Shapes: x0 [B, *event]; the rest, and what it raises, as `ade.GeneralizedContinuousLangevin`.
    """
    layer = "generalized_continuous_langevin"
    return _continuous(
        layer, potential, x0, time, check_h(layer, h), Divergence(divergence, n_probes), options,
        probes=probes, generator=generator, context=context,
    )  # fmt: skip


def _continuous(
    layer: str,
    potential: Callable[..., Tensor],
    x0: Tensor,
    time: float | Tensor,
    h: Callable[..., Tensor] | None,
    divergence: Divergence,
    options: dict[str, Any],
    **given: Any,
) -> DynamicsOutput:
    known = SolverOptions.__dataclass_fields__
    unknown = sorted(options.keys() - known)
    if unknown:
        raise TypeError(f"{layer}: unknown option {unknown[0]!r}; options are {sorted(known)}")
    checked = SolverOptions(**options)
    checked.validate(layer)
    divergence.validate(layer)
    time = check_scalar_time(layer, _step(layer, time, "time"))
    return run_continuous(layer, potential, x0, None, time, checked, divergence, h=h, **given)[0]

"""Continuous-time dynamics of ∇f and of functions of it, eqs. (33) and (37)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .._integers import as_integer
from .._slow_paths import note_slow_path
from ..fields import (
    AutogradField,
    Layout,
    Surroundings,
)
from . import base
from .base import DynamicsOutput
from .flow import Flow, match_mlp, refuse_kinks
from .ode import SolverOptions, solve
from .trace import rademacher
from .unroll import refuse_transforms, savable, why_under_autograd

_DIVERGENCES = ("exact", "hutchinson")
# From so many dimensions on, as many vector-Jacobian products an evaluation are the better part of the work.
_MANY = 64


class Divergence(NamedTuple):
    """How tr ∂(dx/dt)/∂x is computed; probes count where it is estimated."""

    mode: Literal["exact", "hutchinson"] = "exact"
    n_probes: int = 1

    def validate(self, layer: str) -> None:
        if self.mode not in _DIVERGENCES:
            raise ValueError(f"{layer}: divergence must be one of {_DIVERGENCES}, got {self.mode!r}")
        try:
            n_probes = as_integer(self.n_probes)
        except TypeError:
            raise TypeError(f"{layer}: n_probes must be an integer, got {type(self.n_probes).__name__}") from None
        if n_probes < 1:
            raise ValueError(f"{layer}: n_probes must be at least 1, got {n_probes}")

    def rows(
        self, layer: str, probes: object, layout: Layout, x0: Tensor, generator: torch.Generator | None
    ) -> Tensor | None:
        """Probes as rows [P, B, D], as given or drawn; None where the trace is exact."""
        if self.mode == "exact":
            if probes is not None:
                raise ValueError(f"{layer}: probes belong to divergence='hutchinson', which this is not")
            if layout.size > _MANY:
                note_slow_path(
                    f"{layer} exact divergence",
                    f"{layer}: divergence='exact' takes {layout.size} vector-Jacobian products of ∇f an evaluation; "
                    f"'hutchinson' takes n_probes (and has no weights)",
                )
            return None
        shape = (self.n_probes, *x0.shape)
        if probes is None:
            base.check_generator(layer, generator, x0)
            return rademacher((*shape[:2], layout.size), x0, generator)
        if not isinstance(probes, Tensor):
            raise TypeError(f"{layer}: probes must be a tensor or None, got {type(probes).__name__}")
        if tuple(probes.shape) != shape:
            raise ValueError(f"{layer}: probes must have shape {shape}, (n_probes, *x0.shape), got {(*probes.shape,)}")
        if probes.dtype != x0.dtype or probes.device != x0.device:
            raise TypeError(
                f"{layer}: probes must be {x0.dtype} on {x0.device} as x0 is, got {probes.dtype} on {probes.device}"
            )
        return layout.rows(probes.detach().flatten(0, 1)).view(*shape[:2], layout.size)


@base.outside_of_graphs
def run_continuous(
    layer: str,
    potential: Callable[..., Tensor],
    x0: Tensor,
    v0: None,
    time: Tensor,
    options: SolverOptions,
    divergence: Divergence,
    *,
    h: Callable[..., Tensor] | None = None,
    probes: Tensor | None = None,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    check_potential: bool = False,
) -> tuple[DynamicsOutput, int]:
    """Continuous dynamics from checked options; also the number of the solver's steps."""
    base.check_x0(layer, x0)
    if x0.dtype == torch.bfloat16:
        raise TypeError(f"{layer}: x0 must be float32 or float64, got {x0.dtype}, which has too few digits to solve in")
    if v0 is not None:
        raise ValueError(f"{layer}: v0 must be None: there is no momentum")
    options.check_resolution(layer, x0.dtype)
    captured = base.check_context(layer, context)
    base.check_potential(layer, potential, x0, check_potential)
    if time.dim() > 0 and time.device != x0.device:
        raise ValueError(f"{layer}: time is on {time.device}, x0 is on {x0.device}")
    refuse_transforms(layer, (x0, time, probes))
    layout = Layout.of(x0)
    probe_rows = divergence.rows(layer, probes, layout, x0, generator)
    functions = {"potential": potential} | ({} if h is None else {"h": h})
    learning = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    # Steps are refined until errors are small: of a potential in low precision they never would be.
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(learning),
        torch.autocast(x0.device.type, enabled=False),
    ):
        rows, probe_rows, *known = savable((layout.rows(x0), probe_rows, *captured))
        time = time.to(device=x0.device, dtype=x0.dtype)
        x, log_det, n_steps = _run(layer, functions, rows, time, layout, options, probe_rows, tuple(known))
    return DynamicsOutput(layout.events(x), None, log_det), n_steps


def _run(
    layer: str,
    functions: dict[str, Callable[..., Tensor]],
    rows: Tensor,
    time: Tensor,
    layout: Layout,
    options: SolverOptions,
    probes: Tensor | None,
    context: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor, int]:
    """(x rows, log_det, number of steps)."""
    if len(rows) == 0:
        return rows.clone(), rows.sum(1), 0
    surroundings = Surroundings(layer, functions, rows.device, context)
    refuse_kinks(layer, functions["potential"], layout, rows, surroundings)
    field = AutogradField(layer, functions["potential"], layout, surroundings.known)
    mlp = match_mlp(layer, functions, layout, rows)
    flow = Flow(layer, options, field, functions.get("h"), probes, surroundings, mlp)
    with flow.held():
        adjoint = options.adjoint and torch.is_grad_enabled()
        if adjoint:
            name = flow.find_inputs(rows)
            slower = "gradients go through the solver's steps (adjoint=False, more memory)"
            if (why := why_under_autograd(flow.inputs.tensors, surroundings, name, slower)) is not None:
                note_slow_path(f"{layer}: {why}", f"{layer}: {why}")
                adjoint = False
        x, log_det = solve(flow, rows, time, adjoint=adjoint)
        if adjoint:
            flow.end_forward(rows)
    return x, log_det, flow.n_steps


def check_scalar_time(layer: str, time: Tensor) -> Tensor:
    if time.dim() > 0:
        raise ValueError(f"{layer}: time must be a single number, got shape {tuple(time.shape)}")
    return time


def check_h(layer: str, h: object) -> Callable[..., Tensor]:
    if not callable(h):
        raise TypeError(f"{layer}: h must be callable, h(grad, value, x), got {type(h).__name__}")
    return h


def refuse_diagnostics(layer: str, diagnostics: bool) -> None:
    if diagnostics:
        raise ValueError(f"{layer}: diagnostics must be False: there are no steps but the solver's own")


class _Continuous(nn.Module):
    """What the two layers share: time, solver and divergence."""

    has_momentum = False

    def __init__(
        self,
        time: float | Tensor,
        learn_time: bool,
        options: SolverOptions,
        divergence: Divergence,
        check_potential: bool,
    ) -> None:
        super().__init__()
        layer = type(self).__name__
        time = check_scalar_time(layer, base.check_step_size(layer, time, "time"))
        if learn_time:
            self.time = nn.Parameter(time)
        else:
            self.register_buffer("time", time)
        divergence.validate(layer)
        options.validate(layer)
        self.solver_options, self.divergence, self.n_probes = options, divergence.mode, divergence.n_probes
        self._check_potential = check_potential
        self.last_steps: int | None = None

    @property
    def estimates_log_det(self) -> bool:
        """Whether log_det is only estimated, so that there are no weights."""
        return self.divergence == "hutchinson"

    def momentum_shape(self, event: tuple[int, ...]) -> None:
        """There is no momentum."""
        return None

    def _solve(
        self, potential: Callable[..., Tensor], x0: Tensor, v0: None, h: Callable[..., Tensor] | None, **options: Any
    ) -> DynamicsOutput:
        output, self.last_steps = run_continuous(
            type(self).__name__, potential, x0, v0, self.time, self.solver_options,
            Divergence(self.divergence, self.n_probes), h=h, check_potential=self._check_potential, **options,
        )  # fmt: skip
        return output

    def extra_repr(self) -> str:
        return f"time={self.time.item():.3g}, divergence={self.divergence!r}, solver={self.solver_options.solver!r}"


class ContinuousLangevin(_Continuous):
    """The flow of ∇f: dx/dt = ∇f(x), d log q(x(t))/dt = -∇²f(x), from 0 to `time`.

    Source: eq. (33); the limit of T deterministic Langevin steps (30) of `time` / T each. Solved by torchdiffeq, which
    has to be installed. Called as ``layer(potential, x0, v0=None, *, probes=None, generator=None, context=None) ->
    DynamicsOutput(x, v, log_det)``: v is None, and v0 has to be; log_det = ∫ ∇²f(x(t)) dt.

    f has to be smooth (twice differentiable, and once more for gradients): one that is seen to be piecewise linear is
    refused, since its flow changes volume at the kinks alone. One step size serves the batch; the error of each sample
    is held below the tolerances, and so the samples of a batch influence each other's ends to that extent. Where the
    flow contracts strongly (f sharply peaked) many small steps are taken: ``last_steps`` tells how many.

    Shapes: x0 [B, *event], float32 or float64, any strides; under autocast too, whose precision is not used here.

    Gradients: for x0, `time` and everything the potential depends on (`context` as in `Leapfrog`), to within the
    tolerances; by the adjoint once differentiable.

    Args:
        time: how long the flow runs, > 0, a number. Kept raw as ``self.time``.
        learn_time: whether ``time`` is a parameter or a buffer.
        divergence: "exact": ∇²f by as many vector-Jacobian products as x has dimensions. "hutchinson": estimated
            without bias by `n_probes` of them, with probes ±1 that are drawn from `generator` once a call, or given as
            `probes` [n_probes, B, *event]; x is the same, but there are no importance weights of estimated log-dets.
        n_probes: for "hutchinson".
        solver: "dopri5", "dopri8", "bosh3", "fehlberg2" or "adaptive_heun".
        rtol, atol: relative and absolute error of a step, of x and log_det forward, of all cotangents backward.
        adjoint: gradients by the adjoint equation (34), in memory that does not grow with the number of evaluations
            (the states between steps are kept: backwards in time they could not be found again); or, if False, those of
            the solver's own steps, by autograd: exact for what was computed, and differentiable more than once.
        max_steps: a call that tries more raises.
        check_potential: probe the potential at every call for randomness and for mixing samples of the batch.

    Raises:
        ImportError: torchdiffeq is missing.
        ValueError, TypeError: a wrong argument.
        NonFiniteError: the flow leaves the numbers.
        RuntimeError: the solver's steps become too small or too many.
    """

    def __init__(
        self,
        time: float | Tensor = 1.0,
        *,
        learn_time: bool = True,
        divergence: Literal["exact", "hutchinson"] = "exact",
        n_probes: int = 1,
        solver: str = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-6,
        adjoint: bool = True,
        max_steps: int = 10_000,
        check_potential: bool = False,
    ) -> None:
        options = SolverOptions(solver, rtol, atol, adjoint, max_steps)
        super().__init__(time, learn_time, options, Divergence(divergence, n_probes), check_potential)

    @base.conditional
    def forward(
        self,
        potential: Callable[..., Tensor],
        x0: Tensor,
        v0: None = None,
        *,
        probes: Tensor | None = None,
        generator: torch.Generator | None = None,
        context: Tensor | Sequence[Tensor] | None = None,
        diagnostics: bool = False,
    ) -> DynamicsOutput:
        refuse_diagnostics(type(self).__name__, diagnostics)
        return self._solve(potential, x0, v0, None, probes=probes, generator=generator, context=context)


class GeneralizedContinuousLangevin(_Continuous):
    """The flow of a function of ∇f, f and x: dx/dt = h(∇f(x), f(x), x), d log q(x(t))/dt = -tr ∂h/∂x.

    Source: eq. (37). The trace is that of the whole derivative by x, through ∇f and f as well. Calls, shapes,
    gradients, options and errors as in `ContinuousLangevin`; gradients reach h too.

    Args (beside `ContinuousLangevin`'s):
        h: a module or callable, ``h(grad, value, x)`` with grad and x [B, *event] and value [B], to [B, *event];
            smooth, and a function of each sample alone.
    """

    def __init__(
        self,
        h: Callable[..., Tensor],
        time: float | Tensor = 1.0,
        *,
        learn_time: bool = True,
        divergence: Literal["exact", "hutchinson"] = "exact",
        n_probes: int = 1,
        solver: str = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-6,
        adjoint: bool = True,
        max_steps: int = 10_000,
        check_potential: bool = False,
    ) -> None:
        options = SolverOptions(solver, rtol, atol, adjoint, max_steps)
        super().__init__(time, learn_time, options, Divergence(divergence, n_probes), check_potential)
        self.h = check_h("GeneralizedContinuousLangevin", h)

    @base.conditional
    def forward(
        self,
        potential: Callable[..., Tensor],
        x0: Tensor,
        v0: None = None,
        *,
        probes: Tensor | None = None,
        generator: torch.Generator | None = None,
        context: Tensor | Sequence[Tensor] | None = None,
        diagnostics: bool = False,
    ) -> DynamicsOutput:
        refuse_diagnostics(type(self).__name__, diagnostics)
        return self._solve(potential, x0, v0, self.h, probes=probes, generator=generator, context=context)

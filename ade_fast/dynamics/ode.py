"""Solves dx/dt = a function of x alone by torchdiffeq, and differentiates the solution by the adjoint, eq. (34)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from .._engine import derivatives
from .._integers import as_integer
from .._once import refuse_batched, refuse_derivative
from ..fields import Inputs
from .base import NonFiniteError, is_number

SOLVERS: tuple[str, ...] = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
"""torchdiffeq's explicit Runge-Kutta methods that control their error. With steps of a fixed size, log_det would not be
that of the map that was computed."""

# Relative errors below this many units of rounding cannot be told from noise: steps would shrink without end.
_ROUNDINGS = 10

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SolverOptions:
    """How an equation is solved; see `ContinuousLangevin`."""

    solver: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-6
    adjoint: bool = True
    max_steps: int = 10_000

    def validate(self, layer: str) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"{layer}: solver must be one of {SOLVERS}, got {self.solver!r}")
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if not is_number(value):
                raise TypeError(f"{layer}: {name} must be a number, got {type(value).__name__}")
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{layer}: {name} must be positive and finite, got {value}")
        if not isinstance(self.adjoint, bool):
            raise TypeError(f"{layer}: adjoint must be True or False, got {self.adjoint!r}")
        try:
            max_steps = as_integer(self.max_steps)
        except TypeError:
            raise TypeError(f"{layer}: max_steps must be an integer, got {type(self.max_steps).__name__}") from None
        if max_steps < 1:
            raise ValueError(f"{layer}: max_steps must be at least 1, got {max_steps}")
        odeint(layer)

    def check_resolution(self, layer: str, dtype: torch.dtype) -> None:
        """Raises ValueError for a tolerance that states of `dtype` cannot show."""
        least = _ROUNDINGS * torch.finfo(dtype).eps
        if self.rtol < least:
            raise ValueError(
                f"{layer}: rtol={self.rtol:g} is below what {dtype} resolves ({least:.1e}): raise it, or use float64"
            )


def odeint(layer: str) -> Callable[..., Any]:
    """torchdiffeq's solver. Raises: ImportError with what to do."""
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise ImportError(f"{layer} needs torchdiffeq: pip install torchdiffeq (or ade_fast[ode])") from error
    return odeint


State = Tensor | tuple[Tensor, ...]
OfState = TypeVar("OfState", Tensor, tuple[Tensor, ...])


class Step(NamedTuple):
    """An accepted step: the state [B, D + 1] where it began, and its length."""

    state: Tensor
    length: float


class _Watched:
    """A right-hand side as the solver calls it, with an eye on the steps it takes."""

    def __init__(self, layer: str, rate: Callable[[Any], State], max_steps: int, keep: bool) -> None:
        self._layer, self._rate, self._keep = layer, rate, keep
        self._left = self._max_steps = max_steps
        self.steps: list[Step] = []

    def __call__(self, t: Tensor, state: State) -> State:
        return self._rate(state)

    def callback_step(self, t: Tensor, state: State, length: Tensor) -> None:
        """Before every step that is tried. (torchdiffeq's own words, where it has any, name none of the arguments.)"""
        parts = state if isinstance(state, tuple) else (state,)
        if not all(bool(torch.isfinite(part).all()) for part in parts) or not length > 0:
            raise NonFiniteError(
                f"{self._layer}: a state or its rate of change is NaN or infinite: f or its derivatives are, or "
                f"samples fly to infinity in finite time: reduce time"
            )
        if not t + length > t or self._left == 0:
            raise RuntimeError(
                f"{self._layer}: the solver's steps have become too small (after {self._max_steps - self._left} of "
                f"max_steps={self._max_steps}): ∇f jumps or changes too fast for an explicit solver: reduce time, use "
                f"a smoother f, or raise rtol and atol"
            )
        self._left -= 1

    def callback_accept_step(self, t: Tensor, state: State, length: Tensor) -> None:
        if self._keep:
            assert isinstance(state, Tensor)
            self.steps.append(Step(state, float(length)))


@torch.no_grad()  # which also keeps the choice of steps out of autograd's graph
def _norm(error: State) -> Tensor:
    """The largest of the samples' root mean squares, so that an error is as large in any batch; of rows [B, D].

    Of the state [B, D + 1] the log-determinant counts by itself, as one of D + 1 it would hide.
    """
    parts = error if isinstance(error, tuple) else (error[:, :-1], error[:, -1:])
    return torch.stack([part.square().mean(1).max().sqrt() for part in parts if part.numel() > 0]).max()


def integrate(
    layer: str,
    rate: Callable[[OfState], OfState],
    start: OfState,
    length: float,
    options: SolverOptions,
    *,
    first_step: float | None = None,
    keep: bool = False,
) -> tuple[OfState, list[Step]]:
    """The state after `length` of time from `start`, and with `keep` the steps there; differentiable.

    Shapes: the state is [B, D + 1], or a tuple of rows [B, ...] each; `rate` maps it to the same.

    Raises: NonFiniteError; RuntimeError where the solver makes no way.
    """
    device = (start[0] if isinstance(start, tuple) else start).device
    times = torch.tensor([0.0, length], dtype=torch.float64, device=device)
    watched = _Watched(layer, rate, options.max_steps, keep)
    chosen = {"norm": _norm, "step_t": times[1:]} | ({} if first_step is None else {"first_step": first_step})
    found = odeint(layer)(
        watched, start, times, rtol=options.rtol, atol=options.atol, method=options.solver, options=chosen
    )
    end: Any = tuple(part[1] for part in found) if isinstance(found, tuple) else found[1]
    return end, watched.steps


class Problem(Protocol):
    """An equation over rows: `rate` maps x [B, D] to (dx/dt, d log_det/dt), [B, D + 1], a function of `inputs`."""

    layer: str
    options: SolverOptions
    inputs: Inputs
    n_steps: int

    def rate(self, x: Tensor) -> Tensor: ...

    def backward_context(self) -> AbstractContextManager[None]: ...


def _start(x: Tensor) -> Tensor:
    """The state [B, D + 1] at log_det 0."""
    return torch.nn.functional.pad(x, (0, 1))


def solve(problem: Problem, x: Tensor, time: Tensor, *, adjoint: bool) -> tuple[Tensor, Tensor]:
    """(x [B, D], log_det [B]) after `time`, a scalar, from x; once differentiable by the adjoint, else through the
    solver's steps.

    The equation is solved over [0, 1], at `time` times its rate.
    """
    if adjoint:
        return _Adjoint.apply(problem, x, time, *problem.inputs.tensors)
    end, steps = integrate(
        problem.layer, lambda state: time * problem.rate(state[:, :-1]), _start(x), 1.0, problem.options, keep=True
    )
    problem.n_steps = len(steps)
    return end[:, :-1], end[:, -1]


class _Adjoint(torch.autograd.Function):
    """Eq. (34), solved step by step from the states where the solver's steps began: rebuilding them backwards in time
    is unstable where the flow contracts, as that of ∇f does near every mode (Zhuang et al. 2020)."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, x: Tensor, time: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        end, steps = integrate(
            problem.layer, lambda state: time * problem.rate(state[:, :-1]), _start(x), 1.0, problem.options, keep=True
        )
        problem.n_steps = len(steps)
        # Saved through autograd, as in `unroll`: what is changed in place before the backward pass raises there.
        possible = {id(t) for t in problem.inputs.possible}
        certain = [None if id(t) in possible else t for t in inputs]
        ctx.problem, ctx.n_inputs, ctx.lengths = problem, len(inputs), [step.length for step in steps]
        ctx.save_for_backward(x, time, *certain, end, *(step.state for step in steps))
        return end[:, :-1].clone(), end[:, -1].clone()

    @staticmethod
    def backward(ctx: Any, dx: Tensor, dlog_det: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batched(dx, dlog_det)
        x, time, *rest = ctx.saved_tensors
        end, *states = rest[ctx.n_inputs :]
        problem, wants = ctx.problem, ctx.needs_input_grad[1:]
        cotangent = torch.cat([dx, dlog_det.unsqueeze(1)], 1)
        with torch.no_grad(), problem.backward_context():
            found = _adjoint(problem, states, ctx.lengths, end, time, cotangent, wants)
        if torch.is_grad_enabled():  # create_graph=True: these gradients have no derivative
            found = refuse_derivative(found, [x, time, *rest[: ctx.n_inputs], dx, dlog_det])
        return None, *(f if want else None for f, want in zip(found, wants, strict=True))


def _adjoint(
    problem: Problem,
    states: Sequence[Tensor],
    lengths: Sequence[float],
    end: Tensor,
    time: Tensor,
    cotangent: Tensor,
    wants: Sequence[bool],
) -> list[Tensor | None]:
    """The cotangents of x, time and the problem's inputs, from that of the end [B, D + 1]."""
    # Tolerances are absolute, cotangents are as small as a batch is large; all of this is linear in them.
    scale = cotangent.abs().max()
    cotangent = cotangent / torch.where(scale > 0, scale, 1.0)
    dx, dlog_det = cotangent[:, :-1], cotangent[:, -1:]
    asked = [t for t, want in zip((time, *problem.inputs.tensors), wants[1:], strict=True) if want]
    asked = [t for t in asked if t.requires_grad]  # a player may have been frozen between the passes
    totals = [torch.zeros_like(t, dtype=dx.dtype, device=dx.device).view(1, -1) for t in asked]

    def rate(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Backwards in time: of x, of its cotangent, and of those of everything else."""
        at, d, *_ = state
        with torch.enable_grad():
            at = at.detach().requires_grad_()
            forward = time * problem.rate(at)
        found = derivatives([forward], [at, *asked], [torch.cat([d, dlog_det], 1)])
        rates = [_like(f, s) for s, f in zip(state[1:], found, strict=True)]
        return -forward.detach()[:, :-1], *rates

    at = end[:, :-1]
    for state, length in zip(reversed(states), reversed(lengths), strict=True):
        start = (at, dx, *map(torch.zeros_like, totals))
        (_, dx, *more), _ = integrate(problem.layer, rate, start, length, problem.options, first_step=length)
        totals = [total + part for total, part in zip(totals, more, strict=True)]
        at = state[:, :-1]
    of = {id(t): (scale * total).view_as(t).to(t) for t, total in zip(asked, totals, strict=True)}
    dtime, *of_inputs = [of.get(id(t)) for t in (time, *problem.inputs.tensors)]
    return [scale * dx, dtime, *_of_inputs(problem, of_inputs)]


def _like(derivative: Tensor | None, state: Tensor) -> Tensor:
    """A derivative, None for zero, as the solver keeps it."""
    return torch.zeros_like(state) if derivative is None else derivative.to(state).reshape(state.shape)


def _of_inputs(problem: Problem, found: list[Tensor | None]) -> list[Tensor | None]:
    """The inputs' cotangents: what was only possible and never met gets none, not even zeros."""
    possible = {id(t) for t in problem.inputs.possible}
    met = [
        None if f is None or (id(t) in possible and not bool(f.any())) else f
        for t, f in zip(problem.inputs.tensors, found, strict=True)
    ]
    return problem.inputs.derivatives(problem.layer, met)

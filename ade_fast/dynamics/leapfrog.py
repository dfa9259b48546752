"""Leapfrog dynamics, eqs. (10) and (11)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .._ops import ops, ops_without_autograd
from .._record import Record
from ..fields import AffineForce, GradientSide, Layout, MLPField, Plan, Surroundings
from . import base
from .base import Clip, Dynamics, DynamicsOutput, Options
from .diagnostics import Observed, Watched
from .networks import NetworkPair
from .unroll import Args, GradientFunction, differentiate

if TYPE_CHECKING:
    from .chain import Chain


class LeapfrogProgram:
    """T drifts between T + 1 merged kicks, with damping m (1 for leapfrog).

    args: x⁰ [B, D], v⁰ [B, D], and as given step size and drift step (or None), as rows kick steps [T + 1, D] and
    drift steps [T, D]. Outputs: x^T, v^T.
    """

    record: Record | None = None
    hands_on_momentum = True

    def __init__(self, layer: str, n_steps: int, damping: float, options: Options, steps: base.MergedSteps) -> None:
        self.n_steps, self.n_kicks = n_steps, n_steps + 1
        self._steps = steps
        self._layer = layer
        self._grad_clip = options.grad_clip
        self._check_finite = options.check_finite
        self._kick = (damping, *base.clip_code(options.grad_clip))
        self._range = options.range_of(layer, steps.layout)
        self._drift = (*base.clip_code(options.momentum_clip), *self._range.numbers)

    def fused(
        self, field: MLPField, args: Args, gaussian: AffineForce | None, **options: Any
    ) -> tuple[Tensor, Tensor] | None:
        damping, *grad_clip = self._kick
        *momentum_clip, lo, hi = self._drift
        x, v, *_ = args
        return field.scheduled_unroll(
            x, v, self._steps.schedule(x), damping=damping, grad_clip=grad_clip, momentum_clip=momentum_clip,
            bounds=(lo, hi), base=None if gaussian is None else (gaussian.pull, gaussian.centre), **options,
        )  # fmt: skip

    def as_rows(self, args: Args) -> tuple[Tensor, ...]:
        x, v, *_ = args
        return x, v, *self._steps.rows(x)

    def networks(self) -> Sequence[NetworkPair]:
        return ()

    def prepare(self, around: Surroundings, args: Args, grad: Tensor, keep: bool) -> str | None:
        return None  # no networks

    def forward(self, grad: GradientFunction, args: Args, saved: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        x, v, kick_steps, drift_steps = args
        kicks, drifts = kick_steps.unbind(), drift_steps.unbind()
        run = ops if torch.is_grad_enabled() else ops_without_autograd
        for t in range(self.n_steps):
            x_before = x
            x, v = run.leapfrog_kick_drift(x, v, grad(t, x), kicks[t], drifts[t], *self._kick, *self._drift)
            x = self._range.clamp(x)
            base.check_finite(self._check_finite, self._layer, t, self.n_steps, x, v)
            if saved is not None:
                saved += [x_before, v]
            if self.record is not None:
                self.record.momenta.append(v.detach())
        if saved is not None:
            saved.append(x)
        v = run.leapfrog_kick(v, grad(self.n_steps, x), kicks[-1], *self._kick)
        base.check_finite(self._check_finite, self._layer, self.n_steps - 1, self.n_steps, x, v)
        if self.record is not None:
            self.record.momenta.append(v.detach())
        return x, v

    def backward(
        self,
        side: GradientSide,
        args: Args,
        saved: Sequence[Tensor],
        cotangents: tuple[Tensor, ...],
        wants: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        _, _, kick_steps, drift_steps = args
        kicks, drifts = kick_steps.unbind(), drift_steps.unbind()
        n = self.n_steps
        x, v_after = saved[0::2], saved[1::2]
        dx, dv = cotangents
        dkicks: list[Tensor] = [dv] * (n + 1)
        ddrifts: list[Tensor] = [dv] * n
        for t in range(n, -1, -1):
            g = side.recall(t, x[t])
            if t == n:
                dv, dg, dkicks[t] = ops_without_autograd.leapfrog_kick_backward(dv, g, kicks[t], *self._kick)
            else:
                dx = self._pulled_to_before(dx, x[t], v_after[t], drifts[t])
                dx, dv, dg, dkicks[t], ddrifts[t] = ops_without_autograd.leapfrog_kick_drift_backward(
                    dx, dv, x[t], v_after[t], g, kicks[t], drifts[t], *self._kick, *self._drift
                )
            hessian_u = side.pull(t, x[t], dg, want_x=t > 0 or wants[0])
            if hessian_u is not None:
                dx = dx + hessian_u
            if side.record is not None:
                side.record.went_back(t, dx, dv)
        return dx, dv, torch.stack(dkicks), torch.stack(ddrifts)

    def _pulled_to_before(self, dx: Tensor, x: Tensor, v: Tensor, drift: Tensor) -> Tensor:
        """The cotangent of what a drift from x by v left, before a range per dimension clamped it."""
        return self._range.pulled(dx, lambda: ops_without_autograd.leapfrog_drift(x, v, drift, *self._drift))

    def observe(self, record: Record, args: Args) -> Observed:
        """v_t is what the half kick that ends a step leaves."""
        x0, v0, step_size, _ = args
        force, after = record.stacked("gradient"), record.stacked("momenta")
        damping = self._kick[0]
        step = self._steps.step_rows(x0, step_size)
        log_det = None  # 0
        if damping != 1:
            kicks = torch.arange(1, self.n_kicks + 1, dtype=step.dtype, device=step.device)
            kicks[0] = 0  # before the first kick
            log_det = kicks * (x0.shape[1] * math.log(damping))
        v0 = v0.detach().to(after.dtype)
        return Observed(force, after, after[:-1], log_det, v0, step, damping, conserves=True)


@base.outside_of_graphs
def run_leapfrog(
    layer: str,
    potential: Callable[..., Tensor],
    x0: Tensor,
    v0: Tensor | None,
    step_size: Tensor,
    n_steps: int,
    options: Options,
    *,
    damping: float = 1.0,
    drift_step: Tensor | None = None,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    watched: Watched | None = None,
) -> tuple[DynamicsOutput, Plan | None]:
    """Leapfrog, or damped leapfrog with its own drift step, from checked options."""
    base.check_x0(layer, x0)
    event = tuple(x0.shape[1:])
    captured = base.check_context(layer, context)
    v0 = base.draw_momentum(layer, x0, event, generator) if v0 is None else base.check_v0(layer, v0, x0, event)
    base.check_potential(layer, potential, x0, options.check_potential)
    layout = Layout.of(x0)
    steps = base.MergedSteps(layer, n_steps, layout, step_size, drift_step)
    kind = LeapfrogProgram
    if options.memory == "reversible":
        from .reversible import ReversibleLeapfrogProgram as kind  # which builds on this file
    program = kind(layer, n_steps, damping, options, steps)
    args = (layout.rows(x0), layout.rows(v0), step_size, drift_step)
    (x, v), plan = differentiate(layer, potential, program, args, layout, options, captured, watched)
    return DynamicsOutput(layout.events(x), layout.events(v), base.zero_log_det(x0)), plan


class Leapfrog(Dynamics):
    """T leapfrog steps driven by ∇f: v½ = v + η/2 F(x); x' = x + η v½; v' = v½ + η/2 F(x'), F = ∇f.

    Source: eqs. (10), (11). Reference: ``reference.leapfrog``. Called as ``layer(potential, x0, v0=None, *,
    generator=None, context=None, diagnostics=False) -> DynamicsOutput(x, v, log_det)``; log_det is 0. T + 1 evaluations
    of ∇f.

    Shapes: x0, v0 [B, *event], float32, float64 or bfloat16 (arithmetic in float32), any strides; channels-last
    batches stay channels-last. v0=None draws N(0, I) with `generator`. `potential` maps (B, *event) to (B,) or (B, 1).
    `context`: tensors that the potential captured, are not leaves, and are to receive gradients.

    Gradients: exact back-propagation through time for x0, v0, step sizes and everything the potential depends on;
    once differentiable.

    `diagnostics`: whether ``self.diagnostics`` is to be those of this call (`Diagnostics`: energy errors, norms,
    clipped fractions by steps; after the backward pass the adjoint's norms). An adjoint that explodes is warned of
    (`ExplodingGradientWarning`). Outputs and gradients are the same, bit for bit.

    Args:
        n_steps: T.
        step_size: η > 0, in units of x per unit of momentum: a number, a tensor broadcastable to the event (one per
            dimension), or with a leading axis of length T (one per step). Kept raw as ``self.step_size``.
        learn_step_size: whether ``step_size`` is a parameter or a buffer.
        step_size_positive: keep its logarithm instead, ``log_step_size``: raw ones may turn negative as they are
            learned (a leapfrog backwards in time). ``step_size`` is then computed from it.
        grad_clip: `Clip` of ∇f where v is updated.
        momentum_clip: `Clip` of v where x is updated; the state v itself is never clipped.
        sample_range: (lo, hi): x is clamped after every drift. Numbers, or tensors that broadcast to the event (without
            the fused MLP kernels). log_det ignores this clip.
        gradient: "full" (21); "truncated" (38): the potential's parameters get no gradient through the unroll;
            "stopped": ∇f(x_t) is a constant; "none": outputs are detached.
        memory: "graph" keeps autograd's graphs of the evaluations (the MLP kernels, on the CPU: the products through
            hidden layers); "masks" keeps the states and one bit per unit of a piecewise-linear potential ("states" for
            others); "states" keeps the states and evaluates again; "reversible" keeps nothing that grows with T
            (but log2(1/m) bits an entry and step for `damping`, and entries that `sample_range` stops) and rebuilds the
            states bit for bit, on fixed-point states (2^-32 in float32, 2^-44 in float64), without the fused MLP
            kernels; "auto" takes the first of "graph", "masks", "states" that fits ``ade.set_memory_budget``.
        check_finite: raise `NonFiniteError` naming the step at which a state stops being finite (synchronises).
        check_potential: probe the potential at every call for randomness and for mixing samples of the batch.

    Raises: ValueError, TypeError for wrong arguments; NonFiniteError.
    """

    def __init__(
        self,
        n_steps: int,
        step_size: float | Tensor = 0.1,
        *,
        learn_step_size: bool = True,
        step_size_positive: bool = False,
        grad_clip: Clip | None = None,
        momentum_clip: Clip | None = None,
        sample_range: tuple[float | Tensor, float | Tensor] | None = None,
        gradient: Literal["full", "truncated", "stopped", "none"] = "full",
        memory: Literal["graph", "masks", "states", "reversible", "auto"] = "auto",
        check_finite: bool = False,
        check_potential: bool = False,
    ) -> None:
        options = Options(grad_clip, momentum_clip, sample_range, gradient, memory, check_finite, check_potential)
        super().__init__(n_steps, step_size, learn_step_size, options, step_size_positive)

    @base.conditional
    def forward(
        self,
        potential: Callable[..., Tensor],
        x0: Tensor,
        v0: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        context: Tensor | Sequence[Tensor] | None = None,
        diagnostics: bool = False,
    ) -> DynamicsOutput:
        watched = self._watched(diagnostics)
        output, plan = run_leapfrog(
            "Leapfrog", potential, x0, v0, self.step_size, self.n_steps, self.options,
            generator=generator, context=context, watched=watched,
        )  # fmt: skip
        return self._planned(output, plan, watched)

    def chain(
        self,
        potential: Callable[..., Tensor],
        x0: Tensor,
        n_transitions: int,
        *,
        generator: torch.Generator | None = None,
    ) -> Chain:
        """Samples of p_f by Hamiltonian Monte Carlo: `n_transitions` times T steps from a new v ~ N(0, I).

        A transition's end is accepted with probability min(1, exp(H - H')), H = -f + ½‖v‖², else x stays: p_f is
        invariant, whatever the clips. No gradients, and no density: the output has no log_q.

        Raises: ValueError, TypeError: x0 requires grad; `sample_range`; step sizes per step that do not read the same
        backwards; and as the layer.
        """
        from .chain import run_chain  # which runs this module's steps

        return run_chain(potential, x0, n_transitions, self.step_size, self.n_steps, self.options, generator)

"""Generalized leapfrog dynamics, eq. (13)."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from .._ops import ops, ops_without_autograd
from .._record import Record
from ..fields import AffineForce, GradientSide, Layout, MLPField, Plan, Surroundings, generalized_kicks
from . import base
from .base import Clip, Dynamics, DynamicsOutput, Options
from .diagnostics import Observed, Watched, clipped
from .networks import NetworkPair
from .unroll import Args, GradientFunction, differentiate

Scale = float | Tensor | Callable[..., Tensor] | None


@dataclass(frozen=True)
class Couplings:
    """S_v, S_x (None, a tensor that broadcasts, or a callable) and g_v, g_x (None for the identity, or a callable)."""

    scale_v: Scale = None
    scale_x: Scale = None
    shift_v: Callable[..., Tensor] | None = None
    shift_x: Callable[..., Tensor] | None = None


class GeneralizedLeapfrogProgram:
    """T drifts between T + 1 merged kicks, v of dimension L and x of dimension D.

    args: x⁰ [B, D], v⁰ [B, L], half momentum steps [T, L], drift steps [T, D], constant S_v [1, L], [T, L] or None,
    constant S_x [1, D], [T, D] or None; as rows, where S_v changes from step to step, the merged kicks [T + 1, L] of
    `generalized_kicks` and their scales [T + 1, L] take the places of half steps and S_v.
    Outputs: x^T, v^T, log_det [B].
    """

    record: Record | None = None
    hands_on_momentum = True

    def __init__(
        self,
        layer: str,
        n_steps: int,
        couplings: Couplings,
        layout: Layout,
        momentum: Layout,
        options: Options,
        tempered: bool,
    ) -> None:
        self.n_steps, self.n_kicks = n_steps, n_steps + 1
        self._layer = layer
        self._check_finite = options.check_finite
        self._grad_clip = options.grad_clip
        self._force_clip = base.clip_code(options.grad_clip)
        self._range = options.range_of(layer, layout)
        self._drift = (*base.clip_code(options.momentum_clip), *self._range.numbers)
        names = ("scale_v", "shift_v"), ("scale_x", "shift_x")
        scale_v = couplings.scale_v if callable(couplings.scale_v) else None
        scale_x = couplings.scale_x if callable(couplings.scale_x) else None
        self._kick_nets = NetworkPair(layer, names[0], scale_v, couplings.shift_v, (layout, layout), momentum)
        self._drift_nets = NetworkPair(layer, names[1], scale_x, couplings.shift_x, (momentum,), layout)
        # One pass over memory for kick and drift, where the drift needs nothing but v.
        self._fused = not self._drift_nets.functions
        # The kick ops have one S_v: two of them at one x are merged beforehand.
        self._tempered = tempered

    def fused(
        self, field: MLPField, args: Args, gaussian: AffineForce | None, **options: Any
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        if self._kick_nets.functions or self._drift_nets.functions:
            return None
        x, v, half_steps, drift_steps, scale_v, scale_x = args
        kick, log_decay = generalized_kicks(half_steps, scale_v)
        *momentum_clip, lo, hi = self._drift
        if gaussian is not None:
            options |= {"pull": gaussian.pull.expand_as(kick), "centre": gaussian.centre.expand_as(kick)}
        return field.unroll(
            x, v, kick, drift_steps, log_decay=log_decay,
            log_stretch=None if scale_x is None else scale_x.expand_as(drift_steps),
            grad_clip=self._force_clip, momentum_clip=momentum_clip, bounds=(lo, hi), **options,
        )[:3]  # fmt: skip

    def as_rows(self, args: Args) -> tuple[Tensor | None, ...]:
        if not self._tempered:
            return args
        x, v, half_steps, drift_steps, scale_v, scale_x = args
        kick, log_decay = generalized_kicks(half_steps, scale_v)
        return x, v, kick, drift_steps, log_decay, scale_x

    def networks(self) -> Sequence[NetworkPair]:
        return (self._kick_nets, self._drift_nets)

    def prepare(self, around: Surroundings, args: Args, grad: Tensor, keep: bool) -> str | None:
        """Finds the networks' inputs by evaluating them at the first step's arguments."""
        kick_captured = self._kick_nets.prepare(around, (grad, args[0]), keep)
        drift_captured = self._drift_nets.prepare(around, (args[1],), keep)
        return kick_captured or drift_captured

    def _steps(self, kicks: Sequence[Tensor], t: int) -> tuple[Tensor, Tensor | None]:
        """Steps of the kick at x_t: of the half kick that ends a step, and of the one that begins the next.

        There is but one where it is the first or the last kick, or merged beforehand.
        """
        if self._tempered:
            return kicks[t], None
        if t == 0:
            return kicks[0], None
        return kicks[t - 1], kicks[t] if t < self.n_steps else None

    def forward(self, grad: GradientFunction, args: Args, saved: list[Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        x, v, kick_steps, drift_steps, const_v, const_x = args
        kicks, drifts = kick_steps.unbind(), drift_steps.unbind()
        consts_v, consts_x = _each(const_v, self.n_kicks), _each(const_x, self.n_steps)
        log_det = base.zero_log_det(x)
        run = ops if torch.is_grad_enabled() else ops_without_autograd
        for t in range(self.n_kicks):
            if saved is not None:
                saved += [x, v]
            g = grad(t, x)
            scale, force = self._kick_nets(t, g, x)
            scale, force = consts_v[t] if scale is None else scale, g if force is None else force
            if self.record is not None and self._kick_nets.functions:
                self.record.kicks.append((None if scale is None else scale.detach(), force.detach()))
            step, next_step = self._steps(kicks, t)
            if t == self.n_steps:
                v, gain = run.generalized_leapfrog_kick(v, force, scale, step, next_step, *self._force_clip)
                log_det = log_det + gain
            elif self._fused:
                x, v, gain = run.generalized_leapfrog_kick_drift(
                    x, v, force, scale, consts_x[t], step, next_step, drifts[t], *self._force_clip, *self._drift
                )
                log_det = log_det + gain
            else:
                v, gain = run.generalized_leapfrog_kick(v, force, scale, step, next_step, *self._force_clip)
                scale_x, u = self._drift_nets(t, v)
                scale_x, u = consts_x[t] if scale_x is None else scale_x, v if u is None else u
                x, gain_x = run.generalized_leapfrog_drift(x, u, scale_x, drifts[t], *self._drift)
                log_det = log_det + gain + gain_x
                if self.record is not None and self._drift_nets.functions.get("scale_x") is not None:
                    self.record.gains.append(gain_x.detach())
            if t < self.n_steps:
                x = self._range.clamp(x)
            if self.record is not None:
                self.record.momenta.append(v.detach())
            base.check_finite(self._check_finite, self._layer, min(t, self.n_steps - 1), self.n_steps, x, v)
        return x, v, log_det

    def backward(
        self,
        side: GradientSide,
        args: Args,
        saved: Sequence[Tensor],
        cotangents: tuple[Tensor, ...],
        wants: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        _, _, kick_steps, drift_steps, const_v, const_x = args
        kicks, drifts = kick_steps.unbind(), drift_steps.unbind()
        consts_v, consts_x = _each(const_v, self.n_kicks), _each(const_x, self.n_steps)
        xs, vs = saved[0::2], saved[1::2]
        dx, dv, dlog_det = cotangents
        dconsts_v: list[Tensor | None] = [None] * self.n_kicks
        dconsts_x: list[Tensor | None] = [None] * self.n_steps
        dends: list[Tensor] = [dlog_det] * self.n_kicks  # of the half kick that ends step t - 1
        dbegins: list[Tensor] = [dlog_det] * self.n_kicks  # of the one that begins step t
        ddrifts: list[Tensor] = [dlog_det] * self.n_steps
        for t in range(self.n_steps, -1, -1):
            x, v = xs[t], vs[t]
            g = side.recall(t, x)
            scale, force = self._kick_nets.recall(t, g, x)
            learned_scale, learned_force = scale is not None, force is not None
            scale, force = scale if learned_scale else consts_v[t], force if learned_force else g
            step, next_step = self._steps(kicks, t)
            if t < self.n_steps and self._fused:
                dx = self._pulled_to_before(dx, x, vs[t + 1], consts_x[t], drifts[t])
                backward = ops_without_autograd.generalized_leapfrog_kick_drift_backward
                dx, dv, dforce, dscale, dconsts_x[t], dstep, dnext, ddrifts[t] = backward(
                    dx, dv, dlog_det, x, v, vs[t + 1], force, scale, consts_x[t], step, next_step, drifts[t],
                    *self._force_clip, *self._drift,
                )  # fmt: skip
            else:
                if t < self.n_steps:
                    dx, dv_drift, dconsts_x[t], ddrifts[t] = self._drift_backward(
                        t, dx, dlog_det, x, vs[t + 1], consts_x[t], drifts[t]
                    )
                    dv = dv + dv_drift
                dv, dforce, dscale, dstep, dnext = ops_without_autograd.generalized_leapfrog_kick_backward(
                    dv, dlog_det, v, force, scale, step, next_step, *self._force_clip
                )
            if t == 0:
                dbegins[t] = dstep
            else:
                dends[t], dbegins[t] = dstep, dnext
            if not learned_scale:
                dconsts_v[t] = dscale
            dg, dx_nets = self._kick_nets.pull(t, dscale if learned_scale else None, dforce if learned_force else None)
            if not learned_force:
                dg = dforce if dg is None else dg + dforce
            hessian_u = None if dg is None else side.pull(t, x, dg, want_x=t > 0 or wants[0])
            for more in (dx_nets, hessian_u):
                dx = dx if more is None else dx + more
            if side.record is not None:
                side.record.went_back(t, dx, dv)
        if self._tempered:
            dkicks = torch.stack([dbegins[0], *dends[1:]])
        else:
            dkicks = torch.stack([dbegins[t] + dends[t + 1] for t in range(self.n_steps)])
        return dx, dv, dkicks, torch.stack(ddrifts), _of_each(dconsts_v, const_v), _of_each(dconsts_x, const_x)

    def observe(self, record: Record, args: Args) -> Observed:
        """v_t is what the half kick that ends a step leaves."""
        _, v0, half, _, const_v, const_x = args
        force, after = record.stacked("gradient"), record.stacked("momenta")
        scale = after.new_zeros(1, 1, 1) if const_v is None else const_v.detach().unsqueeze(1)
        begins = ends = scale.expand(self.n_steps, 1, half.shape[1])  # S_v of both half kicks of each step
        if record.kicks:
            force = torch.stack([force for _, force in record.kicks]).to(after)
            if "scale_v" in self._kick_nets.functions:
                both = torch.stack([scale for scale, _ in record.kicks if scale is not None]).to(after)
                begins, ends = both[:-1], both[1:]
        kicked = half.detach().unsqueeze(1) * clipped(force[1:], self._grad_clip)
        v = torch.cat([v0.detach().to(after).unsqueeze(0), after[:-1] * ends.exp() + kicked])
        gains = (begins + ends).sum(2)
        if const_x is not None:
            gains = gains + const_x.detach().expand(self.n_steps, -1).sum(1, keepdim=True)
        if record.gains:
            gains = gains + torch.stack(record.gains)
        log_det = torch.cat([gains.new_zeros(1, gains.shape[1]), gains.cumsum(0)])
        return Observed(force, v, None if self._drift_nets.functions else after[:-1], log_det, conserves=True)

    def _pulled_to_before(self, dx: Tensor, x: Tensor, u: Tensor, scale_x: Tensor | None, drift: Tensor) -> Tensor:
        """The cotangent of what a drift from x by u left, before a range per dimension clamped it."""
        return self._range.pulled(
            dx, lambda: ops_without_autograd.generalized_leapfrog_drift(x, u, scale_x, drift, *self._drift)[0]
        )

    def _drift_backward(
        self,
        t: int,
        dx: Tensor,
        dlog_det: Tensor,
        x: Tensor,
        v: Tensor,
        const_x: Tensor | None,
        drift: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """(dx, dv, d constant S_x or None, d drift step) of a drift whose S_x or g_x is a network."""
        scale_x, found = self._drift_nets.recall(t, v)
        learned_scale, learned_u = scale_x is not None, found is not None
        scale_x, u = scale_x if learned_scale else const_x, v if found is None else found
        dx = self._pulled_to_before(dx, x, u, scale_x, drift)
        dx, du, dscale, ddrift = ops_without_autograd.generalized_leapfrog_drift_backward(
            dx, dlog_det, x, u, scale_x, drift, *self._drift
        )
        (dv,) = self._drift_nets.pull(t, dscale if learned_scale else None, du if learned_u else None)
        if not learned_u:
            dv = du if dv is None else dv + du
        constant = dscale if const_x is not None and not learned_scale else None
        return dx, torch.zeros_like(v) if dv is None else dv, constant, ddrift


def _each(constant: Tensor | None, n: int) -> Sequence[Tensor | None]:
    """A constant S, [1, D] or [n, D], at each of n places, [1, D]."""
    return [None] * n if constant is None else constant.expand(n, -1).split(1)


def _of_each(terms: Sequence[Tensor | None], constant: Tensor | None) -> Tensor | None:
    """The cotangent of a constant S from those at each of its places."""
    return None if constant is None else torch.cat(cast("list[Tensor]", list(terms))).sum_to_size(constant.shape)


def _scale_rows(layer: str, name: str, scale: Scale, n_steps: int, layout: Layout, x0: Tensor) -> Tensor | None:
    """A constant S as one row per step, [T, D], or for all of them, [1, D]; None where S is absent or a network."""
    if scale is None or callable(scale):
        return None
    scale = scale if isinstance(scale, Tensor) else torch.tensor(float(scale), dtype=torch.float64)
    return base.step_rows(layer, scale, n_steps, layout, x0, name, "event" if name == "scale_x" else "momentum")


@base.outside_of_graphs
def run_generalized_leapfrog(
    layer: str,
    potential: Callable[..., Tensor],
    x0: Tensor,
    v0: Tensor | None,
    step_size: Tensor,
    n_steps: int,
    options: Options,
    couplings: Couplings,
    *,
    momentum_shape: tuple[int, ...] | None = None,
    momentum_step_size: Tensor | None = None,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    watched: Watched | None = None,
) -> tuple[DynamicsOutput, Plan | None]:
    """Generalized leapfrog from checked options."""
    base.check_x0(layer, x0)
    event = tuple(x0.shape[1:])
    layout = Layout.of(x0)
    momentum_event = event if momentum_shape is None else momentum_shape
    momentum = layout if momentum_event == event else Layout(momentum_event)
    if momentum_event != event:
        for name in ("shift_v", "shift_x"):
            if getattr(couplings, name) is None:
                raise ValueError(
                    f"{layer}: {name} must map between the event {event} and the momentum {momentum_event}: "
                    f"the identity (None) does not"
                )
        if momentum_step_size is None and step_size.dim() > 0:
            raise ValueError(
                f"{layer}: momentum_step_size must be given when the momentum {momentum_event} differs from the event "
                f"{event} and step_size is not a single number, got None"
            )
    captured = base.check_context(layer, context)
    v0 = (
        base.draw_momentum(layer, x0, momentum_event, generator)
        if v0 is None
        else base.check_v0(layer, v0, x0, momentum_event)
    )
    base.check_potential(layer, potential, x0, options.check_potential)
    drift = base.step_rows(layer, step_size, n_steps, layout, x0)
    if momentum_step_size is not None:
        eta_v = base.step_rows(layer, momentum_step_size, n_steps, momentum, x0, "momentum_step_size", "momentum")
    elif momentum is layout:
        eta_v = drift
    else:
        eta_v = base.step_rows(layer, step_size, n_steps, momentum, x0)
    scale_v = _scale_rows(layer, "scale_v", couplings.scale_v, n_steps, momentum, x0)
    args = (
        layout.rows(x0),
        momentum.rows(v0),
        (0.5 * eta_v).expand(n_steps, -1),
        drift.expand(n_steps, -1),
        scale_v,
        _scale_rows(layer, "scale_x", couplings.scale_x, n_steps, layout, x0),
    )
    tempered = scale_v is not None and len(scale_v) > 1
    program = GeneralizedLeapfrogProgram(layer, n_steps, couplings, layout, momentum, options, tempered)
    (x, v, log_det), plan = differentiate(layer, potential, program, args, layout, options, captured, watched)
    return DynamicsOutput(layout.events(x), momentum.events(v), log_det), plan


def check_couplings(layer: str, couplings: Couplings) -> None:
    for name in ("scale_v", "scale_x"):
        scale = getattr(couplings, name)
        if isinstance(scale, Tensor):
            base.check_real(layer, scale, name)
        elif base.is_number(scale):
            check_finite_scale(layer, torch.tensor(float(scale)), name)
        elif scale is not None and not callable(scale):
            raise TypeError(
                f"{layer}: {name} must be None, a number, a tensor, a parameter or a module, got {type(scale).__name__}"
            )
    for name in ("shift_v", "shift_x"):
        shift = getattr(couplings, name)
        if shift is not None and not callable(shift):
            raise TypeError(f"{layer}: {name} must be None (identity) or a module, got {type(shift).__name__}")


def check_finite_scale(layer: str, scale: Tensor, name: str) -> None:
    if not bool(torch.isfinite(scale).all()):
        raise ValueError(f"{layer}: {name} must be finite, got {scale[~torch.isfinite(scale)].flatten()[0].item()}")


def check_momentum_shape(layer: str, momentum_shape: object) -> tuple[int, ...] | None:
    if momentum_shape is None:
        return None
    shape = (momentum_shape,) if isinstance(momentum_shape, numbers.Integral) else momentum_shape
    sizes = shape if isinstance(shape, (tuple, list)) else (None,)
    if not all(isinstance(n, numbers.Integral) and not isinstance(n, bool) and int(n) > 0 for n in sizes):
        raise ValueError(
            f"{layer}: momentum_shape must be a positive integer or a tuple of them, got {momentum_shape!r}"
        )
    return tuple(map(int, sizes))


class GeneralizedLeapfrog(Dynamics):
    """T generalized leapfrog steps with scales S and couplings g, and their log-determinant.

    v½ = v ⊙ exp S_v(F, x) + η/2 g_v(F, x);  x' = x ⊙ exp S_x(v½) + η g_x(v½);
    v' = v½ ⊙ exp S_v(F', x') + η/2 g_v(F', x'), with F = ∇f(x), F' = ∇f(x').
    log_det is the sum over steps of Σ S_v(F, x) + Σ S_x(v½) + Σ S_v(F', x').

    Source: eq. (13); the log-determinant is that of the change of variables, where the paper's (17), (18) err.
    Reference: ``reference.generalized_leapfrog``. Calls, shapes, gradients and errors as in `Leapfrog`; gradients
    reach the scales and couplings too. v may have another shape than x (`momentum_shape`). Each pair of half kicks at
    one x shares its evaluations: T + 1 calls of ∇f, S_v and g_v.

    Args (beside `Leapfrog`'s):
        scale_v, scale_x: S_v(F, x) and S_x(v): None (0), a number or tensor (broadcast over the momentum or event; a
            number counts once per dimension in the log-determinant), a parameter, or a module. A tensor or parameter
            with a leading axis of length T has one S per step: momenta tempered from step to step. S_v of a step is in
            both of its half kicks.
        shift_v, shift_x: g_v(F, x) and g_x(v): None (identity in F and v) or a module. `grad_clip` acts on g_v's
            output and `momentum_clip` on g_x's; the networks see raw values.
        momentum_shape: shape of one sample's momentum; None is the event's.
        momentum_step_size: η of the kicks where it is not `step_size` (needed when shapes differ).
    """

    def __init__(
        self,
        n_steps: int,
        step_size: float | Tensor = 0.1,
        *,
        scale_v: Scale = None,
        scale_x: Scale = None,
        shift_v: Callable[..., Tensor] | None = None,
        shift_x: Callable[..., Tensor] | None = None,
        momentum_shape: int | tuple[int, ...] | None = None,
        momentum_step_size: float | Tensor | None = None,
        learn_step_size: bool = True,
        step_size_positive: bool = False,
        grad_clip: Clip | None = None,
        momentum_clip: Clip | None = None,
        sample_range: tuple[float | Tensor, float | Tensor] | None = None,
        gradient: Literal["full", "truncated", "stopped", "none"] = "full",
        memory: Literal["graph", "masks", "states", "auto"] = "auto",
        check_finite: bool = False,
        check_potential: bool = False,
    ) -> None:
        layer = "GeneralizedLeapfrog"
        options = Options(grad_clip, momentum_clip, sample_range, gradient, memory, check_finite, check_potential)
        super().__init__(n_steps, step_size, learn_step_size, options, step_size_positive)
        check_couplings(layer, Couplings(scale_v, scale_x, shift_v, shift_x))
        self._momentum_shape = check_momentum_shape(layer, momentum_shape)
        if momentum_step_size is None:
            self.momentum_step_size = None
        else:
            step = base.check_step_size(layer, momentum_step_size, "momentum_step_size")
            self._register_step("momentum_step_size", step, learn_step_size)
        self._register_scale("scale_v", scale_v)
        self._register_scale("scale_x", scale_x)
        self.shift_v, self.shift_x = shift_v, shift_x

    def _register_scale(self, name: str, scale: Scale) -> None:
        if base.is_number(scale):
            scale = torch.tensor(float(scale), dtype=torch.float64)  # cast to the states' dtype at every call
        if isinstance(scale, Tensor):
            check_finite_scale("GeneralizedLeapfrog", scale, name)
        if isinstance(scale, Tensor) and not isinstance(scale, nn.Parameter):
            if scale.requires_grad:
                raise ValueError(
                    f"GeneralizedLeapfrog: {name} must not require grad as a tensor: pass an nn.Parameter, or a module "
                    f"that computes it at every call"
                )
            self.register_buffer(name, scale.clone())  # the caller's may change
        else:  # None, a parameter, a module or a plain callable
            setattr(self, name, scale)

    def momentum_shape(self, event: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(event) if self._momentum_shape is None else self._momentum_shape

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
        couplings = Couplings(self.scale_v, self.scale_x, self.shift_v, self.shift_x)
        output, plan = run_generalized_leapfrog(
            "GeneralizedLeapfrog", potential, x0, v0, self.step_size, self.n_steps, self.options, couplings,
            momentum_shape=self._momentum_shape, momentum_step_size=self.momentum_step_size,
            generator=generator, context=context, watched=watched,
        )  # fmt: skip
        return self._planned(output, plan, watched)

"""Stochastic Langevin dynamics, eqs. (14), (15), (19): a momentum drawn anew at every step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .._ops import ops, ops_without_autograd
from .._philox_op import draw_seed, philox_normal
from .._record import Record
from .._slow_paths import note_slow_path
from ..fields import AffineForce, GradientSide, Layout, MLPField, Plan, Surroundings
from . import base
from .base import Clip, Dynamics, Options
from .diagnostics import Observed, Watched
from .generalized_leapfrog import check_momentum_shape
from .networks import NetworkPair
from .unroll import Args, GradientFunction, differentiate


class LangevinOutput(NamedTuple):
    """End of a Langevin unroll.

    x: x^T, [B, *event]. v: v^1 … v^T, [T, B, *momentum]. log_det: 0, [B]. log_noise: Σ_t log N(ξ^t; 0, σ_t²), [B].
    """

    x: Tensor
    v: Tensor
    log_det: Tensor
    log_noise: Tensor


class Shifts(NamedTuple):
    """g_v(F, x) and g_x(v): None for the identity in F and v, or a callable."""

    v: Callable[..., Tensor] | None = None
    x: Callable[..., Tensor] | None = None


class LangevinProgram:
    """T steps v = σ ξ + k clip(g_v(∇f(x), x)), x ← clamp(x + clip(g_x(v))), v of dimension L and x of dimension D.

    args: x⁰ [B, D]; rows k and σ [T, L]; ξ [T, B, L], or None and the seed [1] of `philox_normal`, from which the
    backward pass has the noise again. Outputs: x^T; v of each step, [T, B, L]; Σ_t ½ ‖ξ_t‖², [B].
    """

    record: Record | None = None
    hands_on_momentum = False

    def __init__(
        self, layer: str, n_steps: int, shifts: Shifts, layout: Layout, momentum: Layout, options: Options
    ) -> None:
        self.n_steps = self.n_kicks = n_steps
        self._layer = layer
        self._check_finite = options.check_finite
        self._kick = (1.0, *base.clip_code(options.grad_clip))
        self._range = options.range_of(layer, layout)
        self._drift = (*base.clip_code(options.momentum_clip), *self._range.numbers)
        self._kick_nets = NetworkPair(layer, ("scale_v", "shift_v"), None, shifts.v, (layout, layout), momentum)
        self._drift_nets = NetworkPair(layer, ("scale_x", "shift_x"), None, shifts.x, (momentum,), layout)
        self._size = momentum.size

    def fused(
        self, field: MLPField, args: Args, gaussian: AffineForce | None, **options: Any
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Kicks of a momentum that is forgotten at once and drawn anew, the last drift outside."""
        x, kick, std, noise, _ = args
        if self._kick_nets.functions or self._drift_nets.functions:
            return None
        if self.n_steps == 1:  # the operator has a drift at least, and one kick is no unroll
            return None
        if noise is not None and noise.requires_grad:
            why = f"{self._layer}: the fused MLP kernels do not take noise that requires grad: autograd does"
            note_slow_path(why, why)
            return None
        drawn = noise is None
        if drawn:
            noise = self._all_noise(args)
        if gaussian is not None:
            options |= {"pull": gaussian.pull.expand_as(kick), "centre": gaussian.centre.expand_as(kick)}
        *momentum_clip, lo, hi = self._drift
        one = torch.ones_like(kick[1:])
        log_decay = torch.full_like(kick, -torch.inf)
        log_decay[0] = 0
        v, later = std[0] * (noise[0].clone() if drawn else noise[0]), noise[1:]  # a view would keep all of it
        with self._drawn_again(args, later) if drawn else contextlib.nullcontext():
            end = field.unroll(
                x, v, kick, one, log_decay=log_decay, noise=later, noise_v=std[1:],
                noise_x=torch.zeros_like(one), grad_clip=self._kick[1:], momentum_clip=momentum_clip, bounds=(lo, hi),
                want_momenta=True, **options,
            )  # fmt: skip
        x = ops.leapfrog_drift(end.x, end.v, one[0], *self._drift)
        assert end.momenta is not None  # they were wanted
        return x, end.momenta, noise.square().sum((0, 2)) / 2

    def _all_noise(self, args: Args) -> Tensor:
        return torch.stack([self._noise(args, t) for t in range(self.n_steps)])

    def _drawn_again(self, args: Args, later: Tensor) -> contextlib.AbstractContextManager[None]:
        """Where autograd would keep the noise of all steps but the first, it keeps the seed."""
        if not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]  # the caller wants none
            return contextlib.nullcontext()
        x, *others = args
        like, place = x.detach(), (later.data_ptr(), later.shape)

        def pack(tensor: Tensor) -> Tensor | None:
            return None if (tensor.data_ptr(), tensor.shape) == place else tensor

        def unpack(tensor: Tensor | None) -> Tensor:
            return self._all_noise((like, *others))[1:] if tensor is None else tensor

        return torch.autograd.graph.saved_tensors_hooks(pack, unpack)

    def as_rows(self, args: Args) -> tuple[Tensor | None, ...]:
        return args

    def networks(self) -> Sequence[NetworkPair]:
        return (self._kick_nets, self._drift_nets)

    def prepare(self, around: Surroundings, args: Args, grad: Tensor, keep: bool) -> str | None:
        """Finds the networks' inputs by evaluating them at the first step's x and ξ."""
        kick_captured = self._kick_nets.prepare(around, (grad, args[0]), keep)
        if not self._drift_nets.functions:
            return kick_captured
        with torch.no_grad():
            xi = _scaled(args, 0, self._noise(args, 0))
        drift_captured = self._drift_nets.prepare(around, (xi,), keep)
        return kick_captured or drift_captured

    def _noise(self, args: Args, t: int) -> Tensor:
        """ξ_t, rows [B, L]: as given, or by the seed."""
        x, _, _, noise, seed = args
        if noise is not None:
            return noise[t]
        like = x if x.shape[1] == self._size else x.new_empty(len(x), self._size)
        return philox_normal(like, seed, t)

    def forward(self, grad: GradientFunction, args: Args, saved: list[Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        x, kick, std, _, _ = args
        one = std.new_ones(x.shape[1])
        run = ops if torch.is_grad_enabled() else ops_without_autograd
        energy, drawn = base.zero_log_det(x), []
        for t in range(self.n_steps):
            if saved is not None:
                saved.append(x)
            noise, g = self._noise(args, t), grad(t, x)
            _, force = self._kick_nets(t, g, x)
            force = g if force is None else force
            if self.record is not None:
                self.record.kicks.append((None, force.detach()))
            xi = _scaled(args, t, noise)
            if self._drift_nets.functions:
                v = run.leapfrog_kick(xi, force, kick[t], *self._kick)
                _, u = self._drift_nets(t, v)
                x = run.leapfrog_drift(x, u, one, *self._drift)
            else:
                x, v = run.leapfrog_kick_drift(x, xi, force, kick[t], one, *self._kick, *self._drift)
            x = self._range.clamp(x)
            drawn.append(v)
            if self.record is not None:
                self.record.momenta.append(v.detach())
            energy = energy + noise.to(energy.dtype).square().sum(1) / 2
            base.check_finite(self._check_finite, self._layer, t, self.n_steps, x, v)
        momenta = torch.stack(drawn)
        if saved is not None:
            saved.append(momenta)
        return x, momenta, energy

    def backward(
        self,
        side: GradientSide,
        args: Args,
        saved: Sequence[Tensor],
        cotangents: tuple[Tensor, ...],
        wants: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        _, kick, std, given, _ = args
        *xs, momenta = saved
        dx, dmomenta, denergy = cotangents
        one = std.new_ones(dx.shape[1])
        dkick, dstd = torch.empty_like(kick), torch.empty_like(std)
        dgiven = torch.empty_like(given) if wants[3] else None
        for t in range(self.n_steps - 1, -1, -1):
            x, v, dv = xs[t], momenta[t], dmomenta[t]
            g = side.recall(t, x)
            _, force = self._kick_nets.recall(t, g, x)
            learned_force = force is not None
            force = force if learned_force else g
            if self._drift_nets.functions:
                dx, dv_drift = self._drift_backward(t, dx, x, v, one)
                dxi, dforce, dkick[t] = ops_without_autograd.leapfrog_kick_backward(
                    dv if dv_drift is None else dv + dv_drift, force, kick[t], *self._kick
                )
            else:
                dx = self._pulled_to_before(dx, x, v, one)
                dx, dxi, dforce, dkick[t], _ = ops_without_autograd.leapfrog_kick_drift_backward(
                    dx, dv, x, v, force, kick[t], one, *self._kick, *self._drift
                )
            if wants[2]:
                dstd[t] = (dxi.to(std.dtype) * self._noise(args, t)).sum(0)
            if dgiven is not None:
                dgiven[t] = std[t] * dxi + denergy.unsqueeze(1) * given[t]
            dg, dx_nets = self._kick_nets.pull(t, None, dforce if learned_force else None)
            if not learned_force:
                dg = dforce
            hessian_u = None if dg is None else side.pull(t, x, dg, want_x=t > 0 or wants[0])
            for more in (dx_nets, hessian_u):
                dx = dx if more is None else dx + more
            if side.record is not None:
                side.record.went_back(t, dx)
        return dx, dkick, dstd if wants[2] else None, dgiven, None

    def observe(self, record: Record, args: Args) -> Observed:
        """Every step has a momentum of its own: there is no energy from one to the next."""
        force, v = record.stacked("gradient"), record.stacked("momenta")
        if record.kicks:
            force = torch.stack([force for _, force in record.kicks]).to(v)
        return Observed(force, v, None if self._drift_nets.functions else v, v.new_zeros(self.n_steps))

    def _pulled_to_before(self, dx: Tensor, x: Tensor, v: Tensor, one: Tensor) -> Tensor:
        """The cotangent of what a drift from x by v left, before a range per dimension clamped it."""
        return self._range.pulled(dx, lambda: ops_without_autograd.leapfrog_drift(x, v, one, *self._drift))

    def _drift_backward(self, t: int, dx: Tensor, x: Tensor, v: Tensor, one: Tensor) -> tuple[Tensor, Tensor | None]:
        """(dx, dv) of a drift by g_x."""
        _, u = self._drift_nets.recall(t, v)
        assert u is not None
        dx = self._pulled_to_before(dx, x, u, one)
        dx, du, _ = ops_without_autograd.leapfrog_drift_backward(dx, x, u, one, *self._drift)
        (dv,) = self._drift_nets.pull(t, None, du)
        return dx, dv


def _scaled(args: Args, t: int, noise: Tensor) -> Tensor:
    """σ_t ξ_t, rows [B, L]."""
    x, _, std, _, _ = args
    return (std[t] * noise).to(x.dtype)


def _given_noise(layer: str, noise: object, n_steps: int, momentum: Layout, x0: Tensor) -> Tensor:
    """ξ as rows [T, B, L]."""
    if not isinstance(noise, Tensor):
        raise TypeError(f"{layer}: noise must be a tensor or None, got {type(noise).__name__}")
    shape = (n_steps, x0.shape[0], *momentum.event)
    if tuple(noise.shape) != shape:
        raise ValueError(f"{layer}: noise must have shape {shape}, (T, B, *momentum), got {tuple(noise.shape)}")
    if noise.dtype != x0.dtype:
        raise TypeError(f"{layer}: noise must have x0's dtype {x0.dtype}, got {noise.dtype}")
    if noise.device != x0.device:
        raise ValueError(f"{layer}: noise must be on x0's device {x0.device}, got {noise.device}")
    return momentum.rows(noise.flatten(0, 1)).view(n_steps, x0.shape[0], momentum.size)


def _momentum_layout(layer: str, layout: Layout, momentum_shape: tuple[int, ...] | None, shifts: Shifts) -> Layout:
    if momentum_shape is None or momentum_shape == layout.event:
        return layout
    for name, shift in (("shift_v", shifts.v), ("shift_x", shifts.x)):
        if shift is None:
            raise ValueError(
                f"{layer}: {name} must map between the event {layout.event} and the momentum {momentum_shape}: "
                f"the identity (None) does not"
            )
    return Layout(momentum_shape)


def _log_density_of_noise(energy: Tensor, std: Tensor) -> Tensor:
    """Σ_t log N(σ_t ξ_t; 0, σ_t²), [B], from Σ_t ½ ‖ξ_t‖² [B] and σ [T, L]."""
    return -energy - (std.log() + 0.5 * math.log(2 * math.pi)).sum()


@base.outside_of_graphs
def run_langevin(
    layer: str,
    potential: Callable[..., Tensor],
    x0: Tensor,
    v0: None,
    step_size: Tensor,
    n_steps: int,
    options: Options,
    *,
    noise_std: Tensor,
    shifts: Shifts,
    momentum_shape: tuple[int, ...] | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    watched: Watched | None = None,
) -> tuple[LangevinOutput, Plan | None]:
    """Langevin steps from checked options."""
    base.check_x0(layer, x0)
    if v0 is not None:
        raise ValueError(f"{layer}: v0 must be None: momenta are drawn at every step (noise= gives them)")
    layout = Layout.of(x0)
    momentum = _momentum_layout(layer, layout, momentum_shape, shifts)
    captured = base.check_context(layer, context)
    base.check_generator(layer, generator, x0)
    base.check_potential(layer, potential, x0, options.check_potential)
    what = "event" if momentum is layout else "momentum"
    with torch.set_grad_enabled(torch.is_grad_enabled() and options.gradient != "none"):
        eta = base.step_rows(layer, step_size, n_steps, momentum, x0, what=what).expand(n_steps, -1)
        std = base.step_rows(layer, noise_std, n_steps, momentum, x0, "noise_std", what).expand(n_steps, -1)
        check_noise_std(layer, std)
        given = None if noise is None else _given_noise(layer, noise, n_steps, momentum, x0)
        seed = draw_seed(x0.device, generator) if noise is None else None
        program = LangevinProgram(layer, n_steps, shifts, layout, momentum, options)
        args = (layout.rows(x0), 0.5 * eta, std, given, seed)
        (x, v, energy), plan = differentiate(layer, potential, program, args, layout, options, captured, watched)
        log_noise = _log_density_of_noise(energy, std)
        v = momentum.events(v.flatten(0, 1)).unflatten(0, (n_steps, x0.shape[0]))
    base.check_finite(options.check_finite, layer, n_steps - 1, n_steps, log_noise)
    return LangevinOutput(layout.events(x), v, base.zero_log_det(x0), log_noise), plan


def check_noise_std(layer: str, std: Tensor) -> None:
    """A learned step size that is not positive any more has no root. On CUDA the look would wait for the device: there
    the noise is NaN, which `check_finite` names."""
    if std.device.type == "cpu" and not bool((std > 0).all()):
        raise ValueError(
            f"{layer}: noise_std must be positive, got {std.detach().min().item():.3g}: without noise_std= it is "
            "√step_size, and a learned step size went below 0; give noise_std=, or take a smaller learning rate"
        )


def check_shifts(layer: str, shifts: Shifts) -> None:
    for name, shift in (("shift_v", shifts.v), ("shift_x", shifts.x)):
        if shift is not None and not callable(shift):
            raise TypeError(f"{layer}: {name} must be None (identity) or a module, got {type(shift).__name__}")


class Langevin(Dynamics):
    """T Langevin steps, each with a momentum of its own: v' = ξ + η/2 g_v(F(x), x), x' = x + g_x(v'), F = ∇f.

    ξ ~ N(0, σ²) is drawn at every step; with g the identity and σ = √η this is the unadjusted Langevin algorithm.
    The map from (x⁰, ξ¹ … ξ^T) to (x^T, v¹ … v^T) keeps volume, so log q(x^T, v) = log q⁰(x⁰) + log_noise, and the
    importance weights of `DualSampler` are those of all momenta, (9).

    Source: eqs. (14), (15), (19). Reference: ``reference.langevin``. Called as ``layer(potential, x0, v0=None, *,
    noise=None, generator=None, context=None) -> LangevinOutput(x, v, log_det, log_noise)``: v [T, B, *event] has all
    momenta, log_det is 0, log_noise [B] is Σ_t log N(ξ^t; 0, σ_t²). v0 has to be None. T evaluations of ∇f.

    `noise`: standard normals ξ/σ, [T, B, *event]. None draws them: counter-based (Philox4x32-10), from a seed that is
    one draw of `generator`. They are the same for any number of threads, and a sample's are its own in any batch; the
    backward pass draws them once more instead of keeping them.

    Shapes, gradients, options and errors as in `Leapfrog`. Gradients reach σ, g_v and g_x too, and through log_noise σ;
    ``sample_range`` leaves log_noise as it is.

    Args (beside `Leapfrog`'s):
        step_size: η > 0, in the forms of `Leapfrog`; broadcast over the momentum where that differs from the event.
        noise_std: σ > 0, in the same forms; None is √η, at every call that of the step size as it is then.
        learn_noise_std: whether σ is a parameter of its own (from √η where it is None). Kept as ``log_noise_std``.
        shift_v, shift_x: g_v(F, x) and g_x(v): None (the identity in F and v) or a module. `grad_clip` acts on g_v's
            output and `momentum_clip` on g_x's; the networks see raw values.
        momentum_shape: shape of one sample's momentum at a step; None is the event's.
    """

    log_noise_std: Tensor | None

    def __init__(
        self,
        n_steps: int,
        step_size: float | Tensor = 0.1,
        *,
        noise_std: float | Tensor | None = None,
        learn_noise_std: bool = False,
        learn_step_size: bool = True,
        step_size_positive: bool = False,
        shift_v: Callable[..., Tensor] | None = None,
        shift_x: Callable[..., Tensor] | None = None,
        momentum_shape: int | tuple[int, ...] | None = None,
        grad_clip: Clip | None = None,
        momentum_clip: Clip | None = None,
        sample_range: tuple[float | Tensor, float | Tensor] | None = None,
        gradient: Literal["full", "truncated", "stopped", "none"] = "full",
        memory: Literal["graph", "masks", "states", "auto"] = "auto",
        check_finite: bool = False,
        check_potential: bool = False,
    ) -> None:
        layer = "Langevin"
        options = Options(grad_clip, momentum_clip, sample_range, gradient, memory, check_finite, check_potential)
        super().__init__(n_steps, step_size, learn_step_size, options, step_size_positive)
        if not isinstance(learn_noise_std, bool):
            raise TypeError(f"{layer}: learn_noise_std must be True or False, got {learn_noise_std!r}")
        check_shifts(layer, Shifts(shift_v, shift_x))
        self._momentum_shape = check_momentum_shape(layer, momentum_shape)
        initial = self.step_size.detach().double().sqrt()
        if noise_std is not None:
            initial = base.check_step_size(layer, noise_std, "noise_std", torch.float64).double()
        self._initial_noise_std = initial.cpu()
        if noise_std is None and not learn_noise_std:
            self.register_buffer("log_noise_std", None)
        else:
            self._register_step("log_noise_std", initial.log().to(self.step_size), learn_noise_std)
        self.shift_v, self.shift_x = shift_v, shift_x

    @property
    def noise_std(self) -> Tensor:
        """σ, in the shape that was given, or √η; differentiable."""
        return self.step_size.sqrt() if self.log_noise_std is None else self.log_noise_std.exp()

    def momentum_shape(self, event: tuple[int, ...]) -> None:
        """There is no momentum from outside: the layer draws its own."""
        return None

    def default_momentum_weight(self, event: tuple[int, ...]) -> Tensor:
        """1/σ² at initialisation, (T,), float64; where σ differs between dimensions, of its mean square."""
        momentum = tuple(event) if self._momentum_shape is None else self._momentum_shape
        variance = self._initial_noise_std.square()
        per_step = variance.dim() == 1 + len(momentum)
        return 1 / (variance.flatten(1).mean(1) if per_step else variance.mean()).expand(self.n_steps)

    @base.conditional
    def forward(
        self,
        potential: Callable[..., Tensor],
        x0: Tensor,
        v0: None = None,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        context: Tensor | Sequence[Tensor] | None = None,
        diagnostics: bool = False,
    ) -> LangevinOutput:
        watched = self._watched(diagnostics)
        output, plan = run_langevin(
            "Langevin", potential, x0, v0, self.step_size, self.n_steps, self.options, noise_std=self.noise_std,
            shifts=Shifts(self.shift_v, self.shift_x), momentum_shape=self._momentum_shape, noise=noise,
            generator=generator, context=context, watched=watched,
        )  # fmt: skip
        return self._planned(output, plan, watched)

    def extra_repr(self) -> str:
        if self.log_noise_std is None:
            return super().extra_repr()
        std = self.noise_std.detach()
        shown = f"{std.item():.3g}" if std.dim() == 0 else f"of shape {tuple(std.shape)}"
        return f"{super().extra_repr()}, noise_std={shown}"

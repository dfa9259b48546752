"""Annealed leapfrog: bridging potentials from a Gaussian to f, with partly refreshed momenta and the path's weight."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .._ops import ops, ops_without_autograd
from .._record import Record
from .._slow_paths import note_slow_path
from ..fields import AffineForce, GradientSide, Layout, MLPField, Plan, Surroundings
from . import base
from .base import Clip, Dynamics, Options
from .diagnostics import Observed, Watched
from .networks import NetworkPair
from .unroll import Args, GradientFunction, differentiate


class AnnealedOutput(NamedTuple):
    """End of an annealed unroll.

    x: x^T, v: v^T, [B, *event]. log_det: 0, [B]. log_noise: what the refreshed momenta add to log q, [B].
    """

    x: Tensor
    v: Tensor
    log_det: Tensor
    log_noise: Tensor


class Refreshment(NamedTuple):
    """v' = keep v + renew ξ, keep² + renew² = 1: log keep and renew as 0-d tensors."""

    log_keep: Tensor
    renew: Tensor

    @classmethod
    def of(cls, refresh: Tensor) -> Refreshment:
        """From the part of the variance that is drawn anew; differentiable between 0 and 1."""
        return cls(torch.log1p(-refresh) / 2, refresh.sqrt())

    @classmethod
    def of_logit(cls, logit: Tensor) -> Refreshment:
        """The same of sigmoid(logit), with finite derivatives wherever that rounds to 0 or 1."""
        return cls(functional.logsigmoid(-logit) / 2, (functional.logsigmoid(logit) / 2).exp())


class AnnealedProgram:
    """T kicks by an affine function of ∇f, and between them T - 1 drifts with noise.

    v ← v + kick_t clip(scale_t ∇f(x) - pull_t (x - centre));  x ← x + drift_t v + noise_x_t ξ_t,
    v ← decay_t v + noise_v_t ξ_t.
    args: x [B, D] at the first kick, v⁰ [B, D], and rows: kick [T, D]; drift, log decay (as rows, decay), noise_x,
    noise_v [T - 1, D]; scale [T]; pull [T, D]; centre [D]; ξ [T - 1, B, D]. Outputs: x at the last kick, v^T, and [B]
    the sum over drifts of ½ (‖v‖² - ‖v'‖²).
    """

    record: Record | None = None
    hands_on_momentum = False

    def __init__(self, layer: str, n_steps: int, options: Options) -> None:
        self.n_steps = self.n_kicks = n_steps
        self._layer = layer
        self._check_finite = options.check_finite
        self._stopped = options.gradient == "stopped"
        self._kick = (1.0, *base.clip_code(options.grad_clip))

    def fused(
        self, field: MLPField, args: Args, gaussian: AffineForce | None = None, **options: Any
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        x, v, kick, drift, log_decay, noise_x, noise_v, scale, pull, centre, noise = args
        if self.n_steps == 1:  # the operator has a drift at least, and one kick is no unroll
            return None
        if noise.requires_grad:
            why = f"{self._layer}: the fused MLP kernels do not anneal by noise that requires grad: autograd does"
            note_slow_path(why, why)
            return None
        if gaussian is not None:  # whose force is annealed with f's
            of_base = scale.unsqueeze(1) * gaussian.pull
            centre = (of_base * gaussian.centre + pull * centre) / (of_base + pull)
            pull = of_base + pull
        end = field.unroll(
            x, v, kick, drift, scale=scale, pull=pull, centre=centre.expand_as(pull), noise=noise, noise_v=noise_v,
            noise_x=noise_x, log_decay=functional.pad(log_decay, (0, 0, 1, 0)), grad_clip=self._kick[1:],
            want_momenta=True, **options,
        )  # fmt: skip
        assert end.momenta is not None  # they were wanted
        before = end.momenta[:-1]
        after = _refreshed(before, log_decay.exp().unsqueeze(1), noise_v.unsqueeze(1), noise)
        return end.x, end.v, (before.square() - after.square()).sum((0, 2)) / 2

    def as_rows(self, args: Args) -> tuple[Tensor, ...]:
        before, log_decay, after = args[:4], args[4], args[5:]
        return *before, log_decay.exp(), *after

    def networks(self) -> Sequence[NetworkPair]:
        return ()

    def prepare(self, around: Surroundings, args: Args, grad: Tensor, keep: bool) -> str | None:
        return None  # no networks

    def forward(self, grad: GradientFunction, args: Args, saved: list[Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        x, v, kick, drift, decay, noise_x, noise_v, scale, pull, centre, noise = args
        log_noise = base.zero_log_det(x)
        run = ops if torch.is_grad_enabled() else ops_without_autograd
        for t in range(self.n_steps):
            force = _bridge_force(grad(t, x), x, scale[t], pull[t], centre)
            v = run.leapfrog_kick(v, force.detach() if self._stopped else force, kick[t], *self._kick)
            if saved is not None:
                saved += [x, v]
            if self.record is not None:
                self.record.momenta.append(v.detach())
            if t < self.n_steps - 1:
                before, v = v, _refreshed(v, decay[t], noise_v[t], noise[t])
                x = torch.addcmul(torch.addcmul(x, drift[t], before), noise_x[t], noise[t]).to(x.dtype)
                log_noise = log_noise + (before.square() - v.square()).sum(1, dtype=log_noise.dtype) / 2
            base.check_finite(self._check_finite, self._layer, t, self.n_steps, x, v)
        return x, v, log_noise

    def backward(
        self,
        side: GradientSide,
        args: Args,
        saved: Sequence[Tensor],
        cotangents: tuple[Tensor, ...],
        wants: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        _, _, kick, drift, decay, noise_x, noise_v, scale, pull, centre, noise = args
        xs, vs = saved[0::2], saved[1::2]
        dtype = xs[0].dtype
        dx, dv, dlog_noise = cotangents
        dlog_noise = dlog_noise.unsqueeze(1)
        dkick, ddrift, ddecay, dnoise_x, dnoise_v = map(torch.empty_like, (kick, drift, decay, noise_x, noise_v))
        dscale, dpull, dcentre = map(torch.zeros_like, (scale, pull, centre))
        dnoise = torch.empty_like(noise) if wants[-1] else None
        for t in range(self.n_steps - 1, -1, -1):
            x, v = xs[t], vs[t]
            if t < self.n_steps - 1:
                xi = noise[t]
                dv = dv - dlog_noise * _refreshed(v, decay[t], noise_v[t], xi)
                ddrift[t], dnoise_x[t] = (dx * v).sum(0), (dx * xi).sum(0)
                ddecay[t], dnoise_v[t] = (dv * v).sum(0), (dv * xi).sum(0)
                if dnoise is not None:
                    dnoise[t] = noise_x[t] * dx + noise_v[t] * dv
                dv = decay[t] * dv + drift[t] * dx + dlog_noise * v
            g = side.recall(t, x)
            force = _bridge_force(g, x, scale[t], pull[t], centre)
            dv, dforce, dkick[t] = ops_without_autograd.leapfrog_kick_backward(
                dv.to(dtype), force, kick[t], *self._kick
            )
            if self._stopped:
                if side.record is not None:
                    side.record.went_back(t, dx)
                continue
            dscale[t] = (dforce * g).sum()
            dpull[t] = -(dforce * (x - centre)).sum(0)
            dcentre += pull[t] * dforce.sum(0)
            dx = torch.addcmul(dx, pull[t], dforce, value=-1)
            hessian_u = side.pull(t, x, (scale[t] * dforce).to(dtype), want_x=t > 0 or wants[0])
            if hessian_u is not None:
                dx = dx + hessian_u
            if side.record is not None:
                side.record.went_back(t, dx)
        rows = (dkick, ddrift, ddecay, dnoise_x, dnoise_v, dscale, dpull, dcentre)
        return dx.to(dtype), dv, *rows, dnoise

    def observe(self, record: Record, args: Args) -> Observed:
        """The potential changes from step to step, and the momenta are refreshed: no energy is conserved."""
        *_, scale, pull, centre, _ = args
        gradient, x, v = map(record.stacked, ("gradient", "x", "momenta"))
        force = _bridge_force(gradient, x, scale.view(-1, 1, 1), pull.unsqueeze(1), centre)
        return Observed(force.detach(), v, None, v.new_zeros(self.n_steps))


def _bridge_force(grad: Tensor, x: Tensor, scale: Tensor, pull: Tensor, centre: Tensor) -> Tensor:
    """scale ∇f(x) - pull (x - centre), rows [B, D]."""
    return torch.addcmul(scale * grad, pull, x - centre, value=-1).to(grad.dtype)


def _refreshed(v: Tensor, decay: Tensor, noise_v: Tensor, noise: Tensor) -> Tensor:
    """decay v + noise_v ξ, rows [B, D]."""
    return torch.addcmul(decay * v, noise_v, noise).to(v.dtype)


def _start(layer: str, initial: object) -> tuple[object, object]:
    """(mean, std) of the Gaussian that the bridges start at."""
    if initial is None:
        raise TypeError(
            f"{layer}: initial must be given: the Gaussian that the bridges start at, such as ade.initial.Gaussian or "
            f"a pair (mean, std); inside an ade.DualSampler it is the sampler's own"
        )
    if isinstance(initial, (tuple, list)) and len(initial) == 2:
        return tuple(initial)
    mean, log_std, std = (getattr(initial, name, None) for name in ("mean", "log_std", "std"))
    if mean is None or (log_std is None and std is None):
        raise TypeError(
            f"{layer}: initial must be a Gaussian with .mean and .log_std (or .std), or a pair (mean, std), got "
            f"{type(initial).__name__}"
        )
    return mean, std if log_std is None else log_std.exp()


def _row(layer: str, name: str, value: object, layout: Layout, x0: Tensor) -> Tensor:
    """A number or tensor of the Gaussian as a row [D], in the accumulation dtype; differentiable."""
    if not isinstance(value, Tensor):
        if not base.is_number(value):
            raise TypeError(f"{layer}: initial's {name} must be a number or a tensor, got {type(value).__name__}")
        if name == "std" and not value > 0:
            raise ValueError(f"{layer}: initial's std must be positive, got {value}")
        value = torch.tensor(float(value), dtype=torch.float64)
    if value.dim() > 0 and value.device != x0.device:
        raise ValueError(f"{layer}: initial's {name} is on {value.device}, x0 is on {x0.device}: move it with .to(...)")
    base.check_real(layer, value, f"initial's {name}")
    value = value.to(device=x0.device, dtype=base.accumulation_dtype(x0.dtype))
    try:
        return layout.rows(value.expand(1, *layout.event))[0]
    except RuntimeError:
        raise ValueError(
            f"{layer}: initial's {name} must broadcast to the event {layout.event}, got shape {tuple(value.shape)}"
        ) from None


def _noise_rows(
    layer: str,
    noise: object,
    n_steps: int,
    layout: Layout,
    x0: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """ξ as rows [T - 1, B, D]: as given, or drawn."""
    shape = (n_steps - 1, *x0.shape)
    if noise is None:
        return torch.randn((*shape[:2], layout.size), generator=generator, dtype=x0.dtype, device=x0.device)
    if not isinstance(noise, Tensor):
        raise TypeError(f"{layer}: noise must be a tensor or None, got {type(noise).__name__}")
    if tuple(noise.shape) != shape:
        raise ValueError(f"{layer}: noise must have shape {shape}, (T - 1, *x0.shape), got {tuple(noise.shape)}")
    if noise.dtype != x0.dtype:
        raise TypeError(f"{layer}: noise must have x0's dtype {x0.dtype}, got {noise.dtype}")
    if noise.device != x0.device:
        raise ValueError(f"{layer}: noise must be on x0's device {x0.device}, got {noise.device}")
    return layout.rows(noise.flatten(0, 1)).view(*shape[:2], layout.size)


def even_bridges(n_steps: int) -> Tensor:
    """(t + 1) / T, [T], float64."""
    return torch.arange(1, n_steps + 1, dtype=torch.float64) / n_steps


@base.outside_of_graphs
def run_annealed_leapfrog(
    layer: str,
    potential: Callable[..., Tensor],
    x0: Tensor,
    v0: Tensor | None,
    step_size: Tensor,
    n_steps: int,
    options: Options,
    *,
    initial: object,
    refreshment: Refreshment,
    bridges: Tensor,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    watched: Watched | None = None,
) -> tuple[AnnealedOutput, Plan | None]:
    """Annealed leapfrog from checked options; bridges [T]."""
    base.check_x0(layer, x0)
    event, layout = tuple(x0.shape[1:]), Layout.of(x0)
    mean, std = _start(layer, initial)
    captured = base.check_context(layer, context)
    base.check_generator(layer, generator, x0)
    v0 = base.draw_momentum(layer, x0, event, generator) if v0 is None else base.check_v0(layer, v0, x0, event)
    base.check_potential(layer, potential, x0, options.check_potential)
    with torch.set_grad_enabled(torch.is_grad_enabled() and options.gradient != "none"):
        mean, std = _row(layer, "mean", mean, layout, x0), _row(layer, "std", std, layout, x0)
        like = functools.partial(torch.Tensor.to, device=x0.device, dtype=mean.dtype)
        eta = base.step_rows(layer, step_size, n_steps, layout, x0).expand(n_steps, -1)
        beta, log_keep, renew = map(like, (bridges, *refreshment))
        half, rows = eta / 2, (n_steps - 1, layout.size)
        v = layout.rows(v0)
        args = (
            torch.addcmul(layout.rows(x0), half[0], v).to(x0.dtype),
            v,
            eta,
            torch.addcmul(half[:-1], log_keep.exp(), half[1:]),
            log_keep.expand(rows),
            renew * half[1:],
            renew.expand(rows),
            beta,
            (1 - beta).unsqueeze(1) / std.square(),
            mean,
            _noise_rows(layer, noise, n_steps, layout, x0, generator),
        )
        program = AnnealedProgram(layer, n_steps, options)
        (x, v, log_noise), plan = differentiate(layer, potential, program, args, layout, options, captured, watched)
        x = torch.addcmul(x, half[-1], v).to(x0.dtype)
    base.check_finite(options.check_finite, layer, n_steps - 1, n_steps, x)
    return AnnealedOutput(layout.events(x), layout.events(v), base.zero_log_det(x0), log_noise), plan


def check_refresh(layer: str, refresh: object) -> float:
    if not base.is_number(refresh):
        raise TypeError(f"{layer}: refresh must be a number, got {type(refresh).__name__}")
    if not 0 < refresh <= 1:
        raise ValueError(f"{layer}: refresh must be in (0, 1], got {refresh}")
    return float(refresh)


def check_bridges(layer: str, bridges: object, n_steps: int) -> Tensor:
    """Bridges as a tensor [T] of its own, float64; None is the even ones."""
    if bridges is None:
        return even_bridges(n_steps)
    try:
        beta = torch.as_tensor(bridges, dtype=torch.float64).detach().to("cpu", copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{layer}: bridges must be {n_steps} numbers or None, got {bridges!r}") from error
    if tuple(beta.shape) != (n_steps,):
        raise ValueError(f"{layer}: bridges must have one entry per step, shape ({n_steps},), got {tuple(beta.shape)}")
    if not bool((beta.diff(prepend=beta.new_zeros(1)) > 0).all()) or beta[-1] != 1:
        raise ValueError(f"{layer}: bridges must increase from above 0 to 1, got {beta.tolist()}")
    return beta


class AnnealedLeapfrog(Dynamics):
    """T leapfrog steps from a Gaussian to f over bridging potentials, with partly refreshed momenta.

    x ← x + η/2 v;  v ← v + η F_t(x);  x ← x + η/2 v, with the force F_t = β_t ∇f(x) - (1 - β_t) (x - mean) / std²; and
    between two steps v' = √(1 - r) v + √r ξ, ξ ~ N(0, I). Every line is a shear or a refresh that is reversible with
    respect to N(0, I), so the weights of whole paths are known exactly: with log q = log q⁰ + log_noise,
    log_noise = Σ_t ½ (‖v‖² - ‖v'‖²), E[exp(f(x^T) - ½ ‖v^T‖²) / q] = Z (2π)^{d/2}. They even out as T grows, whatever
    f is; those of `Leapfrog` are q⁰'s own at any T.

    Source: Zhang et al. 2021 (differentiable annealed importance sampling), Geffner and Domke 2021 (uncorrected
    Hamiltonian annealing). Reference: ``reference.annealed_leapfrog``. Called as ``layer(potential, x0, v0=None, *,
    initial, noise=None, generator=None, context=None) -> AnnealedOutput(x, v, log_det, log_noise)``; log_det is 0.
    T evaluations of ∇f. `DualSampler` gives its own Gaussian as `initial`, and anneals in the base variables of a flow.

    `initial`: the Gaussian that the bridges start at: an object with ``mean`` and ``log_std`` (or ``std``), such as
    `ade.initial.Gaussian`, or a pair (mean, std) of numbers or tensors that broadcast to the event.
    `noise`: ξ, [T - 1, B, *event]; None draws it, after v0, with `generator`.

    Shapes, gradients, options and errors as in `Leapfrog`. Gradients reach the bridges, r, mean and std too;
    ``gradient="stopped"`` takes the whole force F_t for a constant, and "truncated" gives none to the potential alone.
    There is no momentum_clip (log_noise needs v as it is) and no sample_range (weights need a density).

    Args:
        n_steps: T.
        step_size: η > 0, in the forms of `Leapfrog`.
        refresh: r in (0, 1], the part of the momentum's variance that is drawn anew between two steps. At 1 momenta
            are drawn from N(0, I) every time, and r stays 1. Kept as ``refresh_logit`` (None at 1).
        bridges: β_t, T increasing numbers in (0, 1], the last 1; None is (t + 1) / T. Kept as ``bridge_logits`` [T],
            whose softmax are the increments: they stay increasing, and end at 1.
        learn_step_size, learn_refresh, learn_bridges: whether these are parameters or buffers.
        grad_clip: `Clip` of the force F_t; weights stay exact.
    """

    refresh_logit: Tensor | None
    bridge_logits: Tensor
    anneals = True
    """Whether calls need `initial`."""

    def __init__(
        self,
        n_steps: int,
        step_size: float | Tensor = 0.1,
        *,
        refresh: float = 0.5,
        bridges: Sequence[float] | Tensor | None = None,
        learn_step_size: bool = True,
        step_size_positive: bool = False,
        learn_refresh: bool = True,
        learn_bridges: bool = True,
        grad_clip: Clip | None = None,
        gradient: Literal["full", "truncated", "stopped", "none"] = "full",
        memory: Literal["graph", "masks", "states", "auto"] = "auto",
        check_finite: bool = False,
        check_potential: bool = False,
    ) -> None:
        options = Options(grad_clip, None, None, gradient, memory, check_finite, check_potential)
        super().__init__(n_steps, step_size, learn_step_size, options, step_size_positive)
        layer = "AnnealedLeapfrog"
        share = torch.tensor(check_refresh(layer, refresh), dtype=torch.float64)
        increments = check_bridges(layer, bridges, self.n_steps).diff(prepend=share.new_zeros(1))
        dtype = self.step_size.dtype
        if share < 1:
            self._register_step("refresh_logit", share.logit().to(dtype), learn_refresh)
        else:
            self.register_buffer("refresh_logit", None)
        self._register_step("bridge_logits", increments.log().to(dtype), learn_bridges)

    @property
    def refresh(self) -> Tensor:
        """r, a scalar; differentiable."""
        return self.step_size.new_ones(()) if self.refresh_logit is None else self.refresh_logit.sigmoid()

    @property
    def bridges(self) -> Tensor:
        """β_t, [T], the last exactly 1; differentiable."""
        inner = self.bridge_logits.softmax(0).cumsum(0)[:-1]
        return torch.cat([inner, inner.new_ones(1)])

    @base.conditional
    def forward(
        self,
        potential: Callable[..., Tensor],
        x0: Tensor,
        v0: Tensor | None = None,
        *,
        initial: object = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        context: Tensor | Sequence[Tensor] | None = None,
        diagnostics: bool = False,
    ) -> AnnealedOutput:
        watched = self._watched(diagnostics)
        logit = self.refresh_logit
        refreshment = Refreshment.of(self.refresh) if logit is None else Refreshment.of_logit(logit)
        output, plan = run_annealed_leapfrog(
            "AnnealedLeapfrog", potential, x0, v0, self.step_size, self.n_steps, self.options, initial=initial,
            refreshment=refreshment, bridges=self.bridges, noise=noise, generator=generator, context=context,
            watched=watched,
        )  # fmt: skip
        return self._planned(output, plan, watched)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, refresh={self.refresh.item():.3g}"

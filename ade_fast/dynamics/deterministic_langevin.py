"""Deterministic Langevin dynamics (B.1): gradient steps without a momentum, and what they do to volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .._record import Record
from ..fields import AffineForce, GradientSide, Layout, MLPField, Plan, Surroundings, pinned
from . import base
from .base import Dynamics, DynamicsOutput, Options
from .diagnostics import Observed, Watched
from .log_det import LogDet
from .log_det_along import Drawn, log_det_along
from .networks import NetworkPair
from .trace import rademacher
from .unroll import Args, GradientFunction, differentiate


class DeterministicLangevinProgram:
    """T steps x ← x + η ∇f(x).

    args: x⁰ [B, D] and η [T, D]. Outputs: x^T, and x_0 … x_{T-1}, [T, B, D].
    """

    record: Record | None = None
    hands_on_momentum = False

    def __init__(self, layer: str, n_steps: int, options: Options) -> None:
        self.n_steps = self.n_kicks = n_steps
        self._layer = layer
        self._check_finite = options.check_finite

    def fused(
        self, field: MLPField, args: Args, gaussian: AffineForce | None, **options: Any
    ) -> tuple[Tensor, Tensor] | None:
        """Kicks of a momentum that is forgotten at once, the last drift outside."""
        x, eta = args
        if self.n_steps == 1:  # the operator has a drift at least, and one kick is no unroll
            return None
        base_rows = {}
        if gaussian is not None:
            base_rows = {"pull": gaussian.pull.expand_as(eta), "centre": gaussian.centre.expand_as(eta)}
        end = field.unroll(
            x, torch.zeros_like(x), eta, torch.ones_like(eta[1:]), log_decay=torch.full_like(eta, -torch.inf),
            want_momenta=True, **base_rows, **options,
        )  # fmt: skip
        assert end.momenta is not None  # they were wanted
        states = torch.cat([x.unsqueeze(0), x + end.momenta[:-1].cumsum(0)])
        return end.x + end.v, states

    def as_rows(self, args: Args) -> tuple[Tensor, ...]:
        return args

    def networks(self) -> Sequence[NetworkPair]:
        return ()

    def prepare(self, around: Surroundings, args: Args, grad: Tensor, keep: bool) -> str | None:
        return None  # no networks

    def forward(self, grad: GradientFunction, args: Args, saved: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        x, eta = args
        states = []
        for t in range(self.n_steps):
            states.append(x)
            x = torch.addcmul(x, eta[t], grad(t, x)).to(x.dtype)
            base.check_finite(self._check_finite, self._layer, t, self.n_steps, x)
        stacked = torch.stack(states)
        if saved is not None:
            saved.append(stacked)
        return x, stacked

    def backward(
        self,
        side: GradientSide,
        args: Args,
        saved: Sequence[Tensor],
        cotangents: tuple[Tensor, ...],
        wants: Sequence[bool],
    ) -> tuple[Tensor, Tensor]:
        _, eta = args
        (states,) = saved
        dx, dstates = cotangents
        deta = torch.empty_like(eta)
        for t in range(self.n_steps - 1, -1, -1):
            deta[t] = (dx * side.recall(t, states[t])).sum(0)
            hessian_u = side.pull(t, states[t], (eta[t] * dx).to(dx.dtype), want_x=t > 0 or wants[0])
            dx = dx + dstates[t] if hessian_u is None else dx + dstates[t] + hessian_u
            if side.record is not None:
                side.record.went_back(t, dx)
        return dx, deta

    def observe(self, record: Record, args: Args) -> Observed:
        """There is no momentum; the log-determinants of all steps are computed later, together."""
        return Observed(record.stacked("gradient"))


def _probe_rows(
    layer: str,
    probes: object,
    n_probes: int,
    n_steps: int,
    layout: Layout,
    x0: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """z as rows [P, T, B, D] in the accumulation dtype: as given, or drawn."""
    dtype = base.accumulation_dtype(x0.dtype)
    if probes is None:
        return rademacher((n_probes, n_steps, x0.shape[0], layout.size), x0.new_empty(0, dtype=dtype), generator)
    if not isinstance(probes, Tensor):
        raise TypeError(f"{layer}: probes must be a tensor or None, got {type(probes).__name__}")
    shape = (n_probes, n_steps, *x0.shape)
    if tuple(probes.shape) != shape:
        raise ValueError(
            f"{layer}: probes must have shape {shape}, (n_probes, n_steps, *x0.shape), got {tuple(probes.shape)}"
        )
    if probes.device != x0.device:
        raise ValueError(f"{layer}: probes must be on x0's device {x0.device}, got {probes.device}")
    rows = layout.rows(probes.detach().flatten(0, 2))
    return rows.to(dtype).view(n_probes, n_steps, x0.shape[0], layout.size)


def _draw(
    layer: str,
    how: LogDet,
    probes: object,
    n_steps: int,
    layout: Layout,
    x0: Tensor,
    generator: torch.Generator | None,
) -> Drawn:
    """What estimates of the log-determinant need of the generator: the probes first."""
    base.check_generator(layer, generator, x0)
    if not how.wants_probes:
        if probes is not None:
            raise ValueError(f"{layer}: probes are of log_det='taylor' and 'chebyshev', got log_det={how.mode!r}")
        return Drawn()
    rows = _probe_rows(layer, probes, how.n_probes, n_steps, layout, x0, generator)
    if how.spectral_bound is not None:
        return Drawn(rows)
    return Drawn(rows, torch.randn(rows.shape[1:], generator=generator, dtype=rows.dtype, device=rows.device))


@base.outside_of_graphs
def run_deterministic_langevin(
    layer: str,
    potential: Callable[..., Tensor],
    x0: Tensor,
    v0: None,
    step_size: Tensor,
    n_steps: int,
    options: Options,
    how: LogDet,
    *,
    probes: Tensor | None = None,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    watched: Watched | None = None,
) -> tuple[DynamicsOutput, Plan | None]:
    """Deterministic Langevin steps and their log-determinant from checked options."""
    base.check_x0(layer, x0)
    if v0 is not None:
        raise ValueError(f"{layer}: v0 must be None: there is no momentum")
    captured = base.check_context(layer, context)
    base.check_potential(layer, potential, x0, options.check_potential)
    if torch.is_inference_mode_enabled():  # where ∇f could not be computed
        with torch.inference_mode(False), torch.no_grad():
            return run_deterministic_langevin(
                layer, potential, x0.clone(), None, step_size, n_steps, options, how,
                probes=probes, generator=generator, context=context, watched=watched,
            )  # fmt: skip
    layout = Layout.of(x0)
    drawn = _draw(layer, how, probes, n_steps, layout, x0, generator)
    with torch.set_grad_enabled(torch.is_grad_enabled() and options.gradient != "none"), pinned(potential):
        eta = base.step_rows(layer, step_size, n_steps, layout, x0).expand(n_steps, -1)
        program = DeterministicLangevinProgram(layer, n_steps, options)
        args = (layout.rows(x0), eta)
        (x, states), plan = differentiate(layer, potential, program, args, layout, options, captured, watched)
        log_det = log_det_along(layer, potential, states, eta, how, drawn, layout, options, captured)
    base.check_finite(options.check_finite, layer, n_steps - 1, n_steps, log_det)
    return DynamicsOutput(layout.events(x), None, log_det), plan


class DeterministicLangevin(Dynamics):
    """T gradient steps x' = x + η F(x), F = ∇f, with log|det ∂x'/∂x| = log|det(I + ηH(x))|, H = ∇²f.

    Source: B.1, eq. (30). Reference: ``reference.deterministic_langevin``. Called as ``layer(potential, x0, v0=None,
    *, probes=None, generator=None, context=None) -> DynamicsOutput(x, v, log_det)``. There is no momentum: v is None,
    and v0 has to be. T evaluations of ∇f, and what ``log_det`` takes at x_0 … x_{T-1}.

    A step is one-to-one where every eigenvalue of ηH is above -1, and only there does log_det give a density. Where it
    is not (f bends down by more than 1/η), a UserWarning says so: from the Hessian itself with "exact", from the bound
    with the expansions. The steps and log_det are computed all the same.

    A piecewise-linear f has log_det 0, on a `WithBase` that of the Gaussian, in closed form under every ``log_det``.
    That is right between the kinks alone: at a kink the step jumps, samples overlap or leave a gap, and densities and
    weights are wrong (a UserWarning).

    Shapes, gradients, ``context`` and errors as in `Leapfrog`. Gradients reach x0, step sizes and everything that f
    depends on through log_det too (third derivatives of f); ``gradient="stopped"`` takes H for a constant as well.

    Args:
        n_steps: T.
        step_size: η > 0, in the forms of `Leapfrog`.
        log_det: "exact": the determinant of the Hessian from D Hessian-vector products at each step, for small D; the
            only one with importance weights. "taylor", "chebyshev": expansions of it from ``order`` products, by
            random probes; both are unbiased but for what the expansion leaves out, which with b = max(η) β falls as
            (2b/(1+b))^(order+1) and as ρ^-(order+1), ρ = 1/b + √(1/b² - 1). "laplacian": η tr H, which is log_det to
            first order in η, from D products, without probes.
        order: degree of the expansion.
        n_probes: probes per sample and step, with entries ±1, drawn from `generator` once a call; ``probes``
            [n_probes, T, B, *event] replaces the draw.
        spectral_bound: β, a bound of the eigenvalues' size of H, for the expansions. None: each η_t H(x_t) has its own,
            estimated from below by ten power iterations (as many products more) and enlarged by a fifth; it counts as
            a constant. Too small a bound slows an expansion down, and far too small a one makes it diverge. At b >= 1
            (a UserWarning) the expansions still converge, slowly, where the step is one-to-one ("chebyshev" down to
            eigenvalues of -0.99); else log_det is meaningless.
        learn_step_size: whether ``step_size`` is a parameter or a buffer.
        gradient, memory, check_finite, check_potential: as in `Leapfrog`. Clips there are none: log_det is that of
            the gradient itself.

    Raises: ValueError, TypeError for wrong arguments; NonFiniteError; as `Leapfrog`.
    """

    has_momentum = False

    def __init__(
        self,
        n_steps: int,
        step_size: float | Tensor = 0.1,
        *,
        log_det: Literal["exact", "taylor", "chebyshev", "laplacian"] = "exact",
        order: int = 10,
        n_probes: int = 1,
        spectral_bound: float | None = None,
        learn_step_size: bool = True,
        step_size_positive: bool = False,
        gradient: Literal["full", "truncated", "stopped", "none"] = "full",
        memory: Literal["graph", "masks", "states", "auto"] = "auto",
        check_finite: bool = False,
        check_potential: bool = False,
    ) -> None:
        options = Options(None, None, None, gradient, memory, check_finite, check_potential)
        super().__init__(n_steps, step_size, learn_step_size, options, step_size_positive)
        self._how = LogDet.of("DeterministicLangevin", log_det, order, n_probes, spectral_bound)

    @property
    def estimates_log_det(self) -> bool:
        """Whether log_det is only estimated, so that there are no weights."""
        return self._how.is_estimated

    def momentum_shape(self, event: tuple[int, ...]) -> None:
        """There is no momentum."""
        return None

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
        watched = self._watched(diagnostics)
        output, plan = run_deterministic_langevin(
            "DeterministicLangevin", potential, x0, v0, self.step_size, self.n_steps, self.options, self._how,
            probes=probes, generator=generator, context=context, watched=watched,
        )  # fmt: skip
        return self._planned(output, plan, watched)

    def extra_repr(self) -> str:
        how = self._how
        shown = [super().extra_repr(), f"log_det={how.mode!r}"]
        if how.wants_probes:
            bound = "" if how.spectral_bound is None else f", spectral_bound={how.spectral_bound:g}"
            shown.append(f"order={how.order}, n_probes={how.n_probes}{bound}")
        return ", ".join(shown)

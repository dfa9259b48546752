"""Σ_t log|det(I + ηH(x_t))| along an unroll, differentiable once: third derivatives of f, by autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._engine import derivatives
from .._once import refuse_batched, refuse_derivative
from .._slow_paths import note_slow_path
from ..fields import (
    AutogradField,
    Checksum,
    Dependence,
    Draws,
    Layout,
    MLPField,
    OtherGradient,
    Surroundings,
    memory_budget,
    refuse_observed,
    without_base,
)
from ..fields.graph import GraphFacts, inspect_graph, saved_bytes, sequence_number
from ..fields.surroundings import Inputs
from ..potentials._checks import independent_of_x
from ..programs import Watch
from .base import Options, accumulation_dtype
from .log_det import LogDet, exact, folds, power_iteration, warn_bound, warn_folds, warn_kinks
from .unroll import why_under_autograd

# Expansions divide by the bound.
_LEAST_BOUND = 1e-3


@dataclass(frozen=True)
class Points:
    """Rows at which a log-determinant is wanted: x and eta [N, D]; probes [P, N, D] and start [N, D], or None."""

    x: Tensor
    eta: Tensor
    probes: Tensor | None
    start: Tensor | None

    def at(self, x: Tensor, eta: Tensor) -> Points:
        return Points(x, eta, self.probes, self.start)


@dataclass(frozen=True)
class Drawn:
    """What a call draws: probes z [P, T, B, D] and starts of power iterations [T, B, D], rows, or None."""

    probes: Tensor | None = None
    starts: Tensor | None = None

    def step(self, t: int) -> tuple[Tensor | None, Tensor | None]:
        """Those of one step, [P, B, D] and [B, D]."""
        return (
            None if self.probes is None else self.probes[:, t],
            None if self.starts is None else self.starts[t],
        )


class LogDetField:
    """log|det(I + diag(η) H(x))| of one potential, at any rows. See `log_det_along` for the arguments."""

    def __init__(
        self,
        layer: str,
        potential: Callable[..., Tensor],
        how: LogDet,
        layout: Layout,
        x0: Tensor,
        context: Sequence[Tensor],
    ) -> None:
        self.layer, self._how, self._layout = layer, how, layout
        self.surroundings = Surroundings(layer, {"potential": potential}, x0.device, context)
        self.draws = Draws(x0.device)
        self.potential, self._base = without_base(layer, potential, layout, x0, accumulation_dtype(x0.dtype))
        self._field = AutogradField(layer, self.potential, layout, self.surroundings.known, self._base)
        self.kinked = False
        self._curved: list[Tensor] = []
        self.folded: list[Tensor] = []
        self.bounds: list[Tensor] = []

    @property
    def known_linear(self) -> bool:
        """Whether f is seen to be piecewise linear without an evaluation."""
        field = MLPField.match(self.potential)
        return isinstance(field, MLPField) and field.spec.piecewise_linear

    def evaluate(self, at: Points) -> tuple[Tensor, GraphFacts | None]:
        """[N], as a function of the leaves x and eta and of what f depends on; and what f's graph says, None where f is
        piecewise linear."""
        born_after = sequence_number()
        events = self._layout.events(at.x)
        watch = Watch(events)
        with torch.enable_grad():
            y = self._field.value(events, watch)
        facts = inspect_graph(y, at.x, self._field.known, born_after)
        if not facts.reaches_x:
            raise independent_of_x(self._field.layer)
        program = self._field.program_of(watch)
        if program is None:
            return self._of_smooth(y, at), facts
        self.kinked = self.kinked or bool(program.kinks)
        return self.of_linear(at.eta), None

    def evaluate_under_autograd(self, at: Points) -> Tensor:
        """The same of an f that is not piecewise linear, as a function of whatever x and eta were computed from."""
        x = at.x if at.x.requires_grad else at.x.detach().requires_grad_()
        with torch.enable_grad():
            y = self._field.value(self._layout.events(x))
        return self._of_smooth(y, at.at(x, at.eta))

    def of_linear(self, eta: Tensor) -> Tensor:
        """Of an f with H = 0 where it is differentiable, with its base's H = -pull: exact, but for the kinks."""
        if self._base is None:
            return eta.new_zeros(len(eta))
        self.folded.append((eta.detach() * self._base.pull >= 1).any(1))
        return (1 - eta * self._base.pull).abs().log().sum(1)

    def _of_smooth(self, y: Tensor, at: Points) -> Tensor:
        learning = torch.is_grad_enabled()
        with torch.enable_grad():
            (grad,) = derivatives([y], [at.x], [torch.ones_like(y)], create_graph=True)
        if grad is None or not grad.requires_grad:  # affine in x by operations that are not known to be
            return self.of_linear(at.eta)

        def hessian_times(u: Tensor, create_graph: bool = learning) -> Tensor:
            (found,) = derivatives([grad], [at.x], [u.to(grad.dtype)], retain_graph=True, create_graph=create_graph)
            if found is not None:
                self._curved.append(found.detach().any())
            found = torch.zeros_like(u) if found is None else found.to(at.eta.dtype)
            return found if self._base is None else found - self._base.pull * u

        if self._how.wants_probes:
            return self._expanded(hessian_times, at)
        dim = at.x.shape[1]
        units = torch.eye(dim, dtype=at.eta.dtype, device=at.eta.device).unsqueeze(1).expand(dim, *at.x.shape)
        if self._how.mode == "laplacian":
            return sum((at.eta * unit * hessian_times(unit)).sum(1) for unit in units)
        hessian = torch.stack([hessian_times(unit) for unit in units], 1)
        self.folded.append(folds(hessian.detach(), at.eta.detach()))
        return exact(hessian, at.eta)

    def _expanded(self, hessian_times: Callable[..., Tensor], at: Points) -> Tensor:
        if at.start is None:
            assert self._how.spectral_bound is not None
            bound = at.eta.abs().amax(1) * self._how.spectral_bound
        else:
            eta = at.eta.detach()
            bound = power_iteration(lambda u: eta * hessian_times(u, False), at.start, eta)
        bound = bound.clamp(min=_LEAST_BOUND)
        self.bounds.append(bound.detach())

        def product(u: Tensor) -> Tensor:
            return at.eta * hessian_times(u)

        assert at.probes is not None
        total: Any = sum(self._how.expand(product, z, bound) for z in at.probes.unbind())
        return total / len(at.probes)

    def warn(self) -> None:
        """Says where a step is no one-to-one map, as far as was seen."""
        # An f that no program is of, but whose ∇f has no derivative anywhere.
        if self.kinked or (self._curved and not torch.stack(self._curved).any()):
            warn_kinks(self.layer)
        if self.folded:
            folded = torch.cat(self.folded)
            if (count := int(folded.sum())) > 0:
                warn_folds(self.layer, count, len(folded))
        if self.bounds:
            bounds = torch.cat(self.bounds)
            if len(bounds) and (largest := float(bounds.max())) >= 1:
                warn_bound(self.layer, largest)


class _LogDet(torch.autograd.Function):
    """`value` as a function of x, eta and inputs, by the graph of its evaluation, kept as `tape` or made again."""

    @staticmethod
    def forward(
        ctx: Any,
        field: LogDetField,
        drawn: tuple[Tensor | None, Tensor | None],
        tape: tuple[Points, Tensor] | None,  # a tuple, so that autograd does not see it
        key: object,  # of what was drawn
        value: Tensor,
        inputs: Inputs,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.field, ctx.drawn, ctx.tape, ctx.key, ctx.inputs = field, drawn, tape, key, inputs
        if tape is None:
            ctx.found = Checksum()
            ctx.found.add(0, value.unsqueeze(1))
        ctx.save_for_backward(*tensors)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        field, (x, eta, *_) = ctx.field, ctx.saved_tensors
        refuse_batched(cotangent)
        refuse_observed(field.layer, ctx.inputs)
        retain = torch._C._autograd._get_current_graph_task_keep_graph()
        with field.surroundings.held():
            if ctx.tape is None:
                at = Points(x.detach().requires_grad_(), eta.detach().requires_grad_(), *ctx.drawn)
                with torch.enable_grad(), field.draws.repeated(ctx.key):
                    tape, facts = field.evaluate(at)
                again = Checksum()
                again.add(0, tape.unsqueeze(1), want_size=False)
                ctx.found.compare(again, OtherGradient(field.layer, "the log-determinant"))
                if ctx.inputs.tensors:
                    of = Dependence(field.layer, "potential", ctx.inputs, field.surroundings.frozen)
                    used = () if facts is None else [id(t) for t in (*facts.known, *facts.leaves)]
                    of.note([tape], at.x, at.eta, used=used)
                    of.check()
            else:
                at, tape = ctx.tape
                ctx.tape = ctx.tape if retain else None
            found = derivatives([tape], [at.x, at.eta, *ctx.inputs.tensors], [cotangent], retain_graph=retain)
        totals: list[Tensor | None]
        totals = [torch.zeros_like(t) if d is None else d for t, d in zip((at.x, at.eta), found[:2], strict=True)]
        totals += ctx.inputs.derivatives(field.layer, found[2:])
        wanted = ctx.needs_input_grad[6:]
        totals = [d if want else None for d, want in zip(totals, wanted, strict=True)]
        if torch.is_grad_enabled():
            totals = refuse_derivative(totals, [*ctx.saved_tensors, cotangent])
        return None, None, None, None, None, None, *totals


def log_det_along(
    layer: str,
    potential: Callable[..., Tensor],
    states: Tensor,
    eta: Tensor,
    how: LogDet,
    drawn: Drawn,
    layout: Layout,
    options: Options,
    context: Sequence[Tensor],
) -> Tensor:
    """Σ_t log|det(I + diag(η_t) H(x_t))|, [B], in the accumulation dtype.

    Memory as in `Leapfrog`: "graph" keeps the steps' graphs, "states" evaluates again. f that is piecewise linear where
    it is evaluated has H = 0.

    Args:
        states: x_t, t < T, rows [T, B, D]. eta: [T, D]. drawn: probes and starts.
        options: gradient and memory. context: as in `Leapfrog`.
    """
    learning = torch.is_grad_enabled() and options.gradient != "none"
    if options.gradient == "stopped":
        states = states.detach()
    with torch.set_grad_enabled(learning):
        field = LogDetField(layer, potential, how, layout, states, context)
        batch = states.shape[1]
        rows = eta.unsqueeze(1).expand(-1, batch, -1)
        if field.known_linear:
            field.kinked = True
            total = field.of_linear(eta).sum().expand(batch)
        else:
            with field.surroundings.held():
                total = _step_by_step(field, states, rows, drawn, options)
                field.surroundings.refuse_changed_buffers()
        field.warn()
    return total


def _step_by_step(field: LogDetField, states: Tensor, eta: Tensor, drawn: Drawn, options: Options) -> Tensor:
    """The sum over steps, [B]. How much their graphs take is measured at the first one, and decides on the others'."""
    keep = options.memory != "states"
    total = eta.new_zeros(states.shape[1])
    for t, x in enumerate(states.unbind()):
        value, graph_bytes = _at(field, Points(x, eta[t], *drawn.step(t)), keep, options)
        total = total + value
        if t == 0 and options.memory == "auto":
            keep = graph_bytes * len(states) <= memory_budget(states.device)
    return total


def _at(field: LogDetField, at: Points, keep: bool, options: Options) -> tuple[Tensor, int]:
    """log|det| at some points, [N], differentiable as `options` say; and the bytes of its graph."""
    learning = torch.is_grad_enabled()
    leaves = at.at(at.x.detach().requires_grad_(), at.eta.detach().requires_grad_(learning))
    key = object()
    with field.draws.recorded(key):
        value, facts = field.evaluate(leaves)
    graph_bytes = saved_bytes(value, ())
    if not value.requires_grad:
        return value, graph_bytes
    inputs = Inputs()
    if options.gradient == "full" and facts is not None:
        inputs = Inputs([*facts.known, *facts.leaves])
        if (why := why_under_autograd(inputs.tensors, field.surroundings, facts.captured)) is not None:
            note_slow_path(f"{field.layer}: {why}", f"{field.layer}: {why}")
            return field.evaluate_under_autograd(at), graph_bytes
    tensors = (at.x, at.eta, *inputs.tensors)
    if not any(t.requires_grad for t in tensors):
        return value.detach(), graph_bytes
    tape = (leaves, value) if keep else None
    return _LogDet.apply(field, (at.probes, at.start), tape, key, value.detach(), inputs, *tensors), graph_bytes

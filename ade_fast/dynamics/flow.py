"""The right-hand side of a continuous-time dynamics: ∇f or a function of it, and its divergence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..fields import (
    AutogradField,
    Checksum,
    Dependence,
    Inputs,
    Layout,
    MLPField,
    OtherGradient,
    Surroundings,
    refuse_observed,
    without_base,
)
from ..fields.graph import inspect_graph, sequence_number
from ..fields.mlp import Base
from .laplacian import gradient_and_laplacian
from .ode import SolverOptions
from .trace import jacobian_trace, unit_rows


class Flow:
    """dx/dt = ∇f(x), or h(∇f(x), f(x), x), and its trace: a `Problem` for the solver.

    Args:
        field: of f. h: or None. probes: rows [P, B, D], or None for exact traces.
        surroundings: of everything that is evaluated.
        mlp: f where it is an MLP, and the base beside it or None; None where it is anything else.
    """

    _at: Tensor  # since `end_forward`
    _found: tuple[Checksum, Dependence]

    def __init__(
        self,
        layer: str,
        options: SolverOptions,
        field: AutogradField,
        h: Callable[..., Tensor] | None,
        probes: Tensor | None,
        surroundings: Surroundings,
        mlp: tuple[MLPField, Base | None] | None = None,
    ) -> None:
        self.layer, self.options, self.inputs, self.n_steps = layer, options, Inputs(), 0
        self._field, self._h, self._layout = field, h, field.layout
        self._probes, self._surroundings, self._mlp = probes, surroundings, mlp

    def rate(self, x: Tensor) -> Tensor:
        """(dx/dt, tr ∂(dx/dt)/∂x) at rows x [B, D], [B, D + 1]; differentiable where gradients are on."""
        learning = torch.is_grad_enabled()
        if self._mlp is not None and (self._probes is None or not learning):
            return self._rate_of_mlp(x, learning)
        with torch.enable_grad():
            if not (learning and x.requires_grad):
                x = x.detach().requires_grad_()
            velocity = self._velocity(x)
        trace = jacobian_trace(velocity, x, self._probes)
        rate = torch.cat([velocity, trace.unsqueeze(1)], 1)
        return rate if learning else rate.detach()

    def _rate_of_mlp(self, x: Tensor, learning: bool) -> Tensor:
        """The same of an MLP's ∇f: a solver's step is several of them, and many are taken to sample alone."""
        assert self._mlp is not None
        field, base = self._mlp
        if learning:
            grad, trace = gradient_and_laplacian(field, x, base)
        elif self._probes is None:
            grad, trace = field.grad_and_trace(x, unit_rows(x), base)
        else:
            grad, trace = field.grad_and_trace(x, self._probes, base)
            trace = trace / len(self._probes)
        return torch.cat([grad, trace.unsqueeze(1)], 1)

    def _velocity(self, x: Tensor) -> Tensor:
        events = self._layout.events(x)
        value = self._field.value(events)
        (grad,) = torch.autograd.grad(value, x, torch.ones_like(value), create_graph=True)
        if self._h is None:
            return grad
        velocity = self._h(self._layout.events(grad), value, events)
        if not isinstance(velocity, Tensor) or velocity.shape != events.shape:
            got = tuple(velocity.shape) if isinstance(velocity, Tensor) else type(velocity).__name__
            raise ValueError(f"{self.layer}: h must return x's shape {tuple(events.shape)}, got {got}")
        if velocity.dtype != x.dtype:
            raise TypeError(f"{self.layer}: h must return x's dtype {x.dtype}, got {velocity.dtype}")
        return self._layout.rows(velocity)

    def find_inputs(self, x: Tensor) -> str | None:
        """Finds everything that f and h depend on, from one evaluation; returns a captured node's name or None."""
        facts = [self._field.first_value(x).facts]
        if self._h is not None:
            born_after = sequence_number()
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                velocity = self._velocity(leaf)
            if velocity.requires_grad:
                facts.append(inspect_graph(velocity, leaf, self._surroundings.known, born_after))
        certain = {id(t): t for found in facts for t in (*found.known, *found.leaves)}
        self.inputs = self._surroundings.inputs(list(certain.values()))
        return next((found.captured for found in facts if found.captured is not None), None)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Everything that is evaluated is as it was when the call began."""
        with self._surroundings.held():
            yield
            self._surroundings.refuse_changed_buffers()

    def end_forward(self, x: Tensor) -> None:
        """Notes the rate at one x: solvers that control their errors come past no x twice, so the backward pass looks
        there whether f is still the same."""
        self._at = x.detach()
        self._found = self._look()

    def _look(self) -> tuple[Checksum, Dependence]:
        values, tensors = (
            Checksum(),
            Dependence(self.layer, "the rate of change", self.inputs, self._surroundings.frozen),
        )
        with torch.enable_grad():
            x = self._at.clone().requires_grad_()
            rate = self.rate(x)
        values.add(0, rate)
        tensors.note([rate], x)
        return values, tensors

    @contextlib.contextmanager
    def backward_context(self) -> Iterator[None]:
        refuse_observed(self.layer, self.inputs)
        with self._surroundings.held():
            (values, tensors), (values_again, tensors_again) = self._found, self._look()
            values.compare(values_again, OtherGradient(self.layer, "the rate of change"))
            tensors_again.check(tensors)
            yield


def match_mlp(
    layer: str, functions: dict[str, Callable[..., Tensor]], layout: Layout, x: Tensor
) -> tuple[MLPField, Base | None] | None:
    """f as a smooth MLP that has kernels at rows like x, and its base as those take it; or None."""
    inner, base = without_base(layer, functions["potential"], layout, x, x.dtype)
    field = MLPField.match(inner)
    if "h" in functions or isinstance(field, str) or layout.event != (field.spec.dim,) or field.refuses(x):
        return None
    return field, None if base is None else (base.pull, base.centre)


def _has_kinks(field: AutogradField, x: Tensor) -> bool:
    """Whether ∇f is constant around each of the points x, and yet depends on where they are."""
    first = field.first_value(x)
    if first.program is not None:
        return bool(first.program.kinks)
    u = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    hessian_u, _ = field.vjp(first.gradient(keep_graph=True, keep="nothing"), u, (), want_x=True)
    return hessian_u is not None and not bool(hessian_u.any())


def refuse_kinks(
    layer: str, potential: Callable[..., Tensor], layout: Layout, x: Tensor, surroundings: Surroundings
) -> None:
    """∇f of a piecewise-linear f jumps, and where it does log_det jumps too, which no derivative of f can tell."""
    inner, _ = without_base(layer, potential, layout, x, x.dtype)
    if isinstance(mlp := MLPField.match(inner), MLPField):
        kinked = mlp.spec.piecewise_linear
    else:
        with surroundings.held():
            kinked = _has_kinks(AutogradField(layer, inner, layout, surroundings.known), x)
    if kinked:
        raise ValueError(
            f"{layer}: potential is piecewise linear (ReLU?): ∇f jumps at its kinks, and so does the log-determinant "
            f"there, while the Laplacian is 0: use a smooth activation such as softplus, silu or tanh"
        )

"""The gradient field of any PyTorch potential, by autograd."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .._engine import derivatives
from ..potentials._checks import independent_of_x
from ..programs import Kept, Program, Watch
from .affine import AffineForce
from .agreement import Dependence, OtherGradient, agrees
from .contents import modules_of
from .graph import GraphFacts, inspect_graph, saved_bytes, sequence_number
from .layout import Layout
from .surroundings import Inputs

Keep = Literal["nothing", "bits", "deltas"]
"""What a program's evaluation keeps for the derivative of ∇f (`Kept`)."""


@dataclass
class Evaluation:
    """One evaluation of ∇f.

    grad: ∇_x f(x), rows [B, D], detached.
    value: f(x), [B], detached.
    graph: (x, ∇f(x)), a leaf and its differentiable gradient, when the autograd graph was kept, else None.
    kept: what a program left for the derivative of ∇f, else None.
    """

    grad: Tensor
    value: Tensor
    graph: tuple[Tensor, Tensor] | None = None
    kept: Kept | None = None


class AutogradField:
    """∇_x f, and the derivatives of it that an adjoint wants, for one unroll.

    Args:
        layer: name of the dynamics, for error messages.
        potential: callable, [B, *event] -> [B] or [B, 1].
        layout: how rows [B, D] map to events.
        known: differentiable inputs known beforehand (effective weights, `context=` tensors).
        base: what `whole` and `whole_vjp` add to the potential's own part (`WithBase`), or None. All other methods are
            about the potential alone: so it is still seen to be piecewise linear.
    """

    def __init__(
        self,
        layer: str,
        potential: Callable[..., Tensor],
        layout: Layout,
        known: Sequence[Tensor] = (),
        base: AffineForce | None = None,
    ) -> None:
        self.layer = layer
        self.potential = potential
        self.layout = layout
        self.known = tuple(known)
        self._base = base

    def whole(self, grad: Tensor, x: Tensor) -> Tensor:
        """The force at x, rows [B, D], from the potential's own ∇f(x)."""
        return grad if self._base is None else self._base.added_to(grad, x)

    def whole_vjp(self, hessian_u: Tensor | None, u: Tensor) -> Tensor | None:
        """H u of the force, rows [B, D], from the potential's own; None for zero."""
        return hessian_u if self._base is None else self._base.vjp_added_to(hessian_u, u)

    def first_value(self, rows: Tensor) -> FirstValue:
        """f at the first point of an unroll, with everything that is to be learned from it."""
        born_after = sequence_number()
        x = self._leaf(rows)
        watch = Watch(x)
        with torch.enable_grad():
            y = self.value(x, watch)
        facts = inspect_graph(y, x, self.known, born_after)
        if not facts.reaches_x:
            raise independent_of_x(self.layer)
        program = self.program_of(watch)
        bits = None if program is None else watch.bits()
        return FirstValue(self, x, y, facts, saved_bytes(y, self.known), None if bits is None else program, bits)

    def program_of(self, watch: Watch) -> Program | None:
        """What a watched evaluation was, if all of it is known."""
        program, known = watch.program(), {id(t) for t in self.known}
        # What torch.vmap, say, made of x unseen has a graph.
        if program is None or any(t.grad_fn is not None and id(t) not in known for t in program.constants):
            return None
        return program

    def whole_value(self, value: Tensor, x: Tensor) -> Tensor:
        """f and the base's log-density at x, [B], from the potential's own f(x) and rows [B, D]."""
        return value if self._base is None else value + self._base.log_density(x)

    def evaluate(self, rows: Tensor, *, keep_graph: bool = False, dependence: Dependence | None = None) -> Evaluation:
        """∇f at rows [B, D], keeping what `vjp` needs.

        Raises: OtherGradient if f depends on something that it did not depend on (`dependence`).
        """
        x = self._leaf(rows)
        with torch.enable_grad():
            y = self.value(x)
        if dependence is not None:
            dependence.note([y], x)
        return self._gradient(x, y, keep_graph)

    def evaluate_by(self, program: Program, rows: Tensor, keep: Keep) -> Evaluation | None:
        """∇f at rows [B, D] by the program; None if f is something else there."""
        x = self._leaf(rows)
        found = program.evaluate(self.potential, x)
        if found is None:
            return None
        return self._by_program(program, check_value(self.layer, found[0], x), found[1], keep)

    def _by_program(self, program: Program, y: Tensor, bits: Sequence[Tensor], keep: Keep) -> Evaluation:
        with torch.no_grad():
            grad, deltas = program.gradient(bits, len(y), keep == "deltas")
            kept = None if keep == "nothing" else Kept(bits, deltas)
            return Evaluation(self.layout.rows(grad), y.detach(), kept=kept)

    def mixed_by(
        self,
        program: Program,
        rows: Tensor,
        u: Tensor,
        inputs: Sequence[Tensor],
        kept: Sequence[Kept],
        grads: Tensor,
        tolerance: float,
    ) -> Sequence[Tensor | None]:
        """∂_inputs Σ ⟨∇f(x), u⟩ over any number of rows [N, D]: 2 U or 3 U by what evaluations there kept, one after
        another; 4 U if that is nothing.

        grads: ∇f(x) rows as the forward pass found them. tolerance: for what is found here to agree with them.

        Raises: OtherGradient if it does not.
        """
        with torch.no_grad():
            kept = kept or [Kept(program.again(self.layout.events(rows)))]
            slope, found = program.derivatives(kept, self.layout.events(u))
            if not agrees(slope, u, grads, tolerance):
                raise OtherGradient(self.layer)
        return [found.get(id(t)) if t.requires_grad else None for t in inputs]

    def vjp(
        self,
        evaluation: Evaluation,
        u: Tensor,
        inputs: Sequence[Tensor],
        want_x: bool,
        retain_graph: bool = False,
    ) -> tuple[Tensor | None, Sequence[Tensor | None]]:
        """(H u, ∂_inputs ⟨∇f(x), u⟩) from an evaluation that kept its graph: double backward, 4 U.

        u: rows [B, D]. The graph is freed unless `retain_graph`. H u is None when it is not wanted or zero; so is the
        derivative for an input that ∇f(x) does not depend on.
        """
        targets = ([evaluation.graph[0]] if want_x and evaluation.graph else []) + list(inputs)
        if evaluation.graph is None or not targets:  # ∇f depends on nothing that requires grad, or nobody asks
            return None, (None,) * len(inputs)
        with self._explaining_caches():
            found = derivatives([evaluation.graph[1]], targets, [self.layout.events(u)], retain_graph=retain_graph)
        if not want_x:
            return None, found
        return (None if found[0] is None else self.layout.rows(found[0])), found[1:]

    def _leaf(self, rows: Tensor) -> Tensor:
        return self.layout.events(rows.detach()).requires_grad_()

    def _gradient(self, x: Tensor, y: Tensor, keep_graph: bool = False) -> Evaluation:
        grad = None
        if y.requires_grad:
            with torch.enable_grad(), self._explaining_caches():
                (grad,) = derivatives([y], [x], [torch.ones_like(y)], create_graph=keep_graph)
        if grad is None:
            raise independent_of_x(self.layer)
        graph = (x, grad) if keep_graph and grad.requires_grad else None
        return Evaluation(self.layout.rows(grad.detach()), y.detach(), graph)

    def value(self, x: Tensor, watch: Watch | None = None) -> Tensor:
        """f at events x, checked, [B]."""
        try:
            with watch or contextlib.nullcontext():
                y = self.potential(x)
                if watch is not None:
                    watch.end(y)
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # out of memory, say
                raise
            raise self._explained(error, x) from error
        return check_value(self.layer, y, x)

    @contextlib.contextmanager
    def _explaining_caches(self) -> Iterator[None]:
        """What PyTorch says when an evaluation leads into the graph of another one, said of the potential."""
        try:
            yield
        except RuntimeError as error:
            if "graph a second time" not in str(error):
                raise
            raise RuntimeError(
                f"{self.layer}: potential keeps a tensor of one evaluation for the next (a cache?), or captured one "
                f"that requires grad: compute it at every evaluation, or before the call and pass it as context= "
                f"({error})"
            ) from error

    def _explained(self, error: RuntimeError, x: Tensor) -> Exception:
        """What PyTorch says deep inside a layer, said of the arguments."""
        for module in modules_of(self.potential):
            for parameter in module.parameters(recurse=False):
                if parameter.dtype != x.dtype and "dtype" in str(error):
                    return TypeError(
                        f"{self.layer}: potential's parameters are {parameter.dtype}, x0 is {x.dtype}: convert one of "
                        f"them with .to(...) ({error})"
                    )
        return RuntimeError(f"{self.layer}: potential failed at x of shape {tuple(x.shape)}, {x.dtype}: {error}")


@dataclass
class FirstValue:
    """f at x⁰, before its gradient is taken: the point where an unroll decides how to go on.

    facts: what the evaluation's graph says. graph_bytes: what autograd saved for y. program: f's, with the `bits` of
    its kinks here, or None.
    """

    field: AutogradField
    x: Tensor
    y: Tensor
    facts: GraphFacts
    graph_bytes: int
    program: Program | None = None
    bits: Sequence[Tensor] | None = None

    def suits(self, inputs: Inputs) -> bool:
        """Whether the program has derivatives for the inputs, and for nothing else: no weight that is not among them,
        and no part for autograd alone (of what `torch.vmap` hides, say)."""
        if self.program is None:
            return False
        there, used = {id(t) for t in inputs.tensors}, {id(t) for t in self.program.constants}
        return all(id(w) in there for w in self.program.weights) and all(id(t) in used for t in inputs.certain)

    def as_later(self) -> None:
        """Takes the bits from the program's own evaluation: ∇f is then, to the last bit, what it finds here later.

        Autograd's may be others where a kink's argument is within rounding of zero.
        """
        if self.program is not None:
            found = self.program.evaluate(self.field.potential, self.x)
            self.program, self.bits = (None, None) if found is None else (self.program, found[1])

    def gradient(self, *, keep_graph: bool, keep: Keep) -> Evaluation:
        """∇f: by the program if there is one, else by autograd; `keep` and `keep_graph` are theirs."""
        if self.program is not None:
            found = self.field._by_program(self.program, self.y, self.bits, keep)
            self.y, self.bits = found.value, None  # lets go of the graph
            return found
        return self.field._gradient(self.x, self.y, keep_graph)


def check_value(layer: str, y: object, x: Tensor) -> Tensor:
    """The potential's output, [B] or [B, 1], as [B]."""
    if not isinstance(y, Tensor):
        raise TypeError(f"{layer}: potential must return a tensor of shape ({x.shape[0]},), got {type(y).__name__}")
    if not y.is_floating_point():
        raise TypeError(f"{layer}: potential must return real numbers, got {y.dtype}")
    if tuple(y.shape) not in ((x.shape[0],), (x.shape[0], 1)):
        raise ValueError(
            f"{layer}: potential must map x {tuple(x.shape)} to one value per sample, shape ({x.shape[0]},) or "
            f"({x.shape[0]}, 1), got {tuple(y.shape)}"
        )
    return y.reshape(x.shape[0])

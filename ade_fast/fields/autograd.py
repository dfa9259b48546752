"""The gradient field of any PyTorch potential, by autograd."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._slow_paths import note_slow_path
from .engine import derivatives
from .graph import GraphFacts, inspect_graph, sequence_number
from .layout import Layout
from .memory import SavedBytes, WeakVersions
from .modules import modules_of
from .tangent import tangent

# Potentials that the tangent pass cannot follow (see tangent.py), so that it is not tried at every call.
_WITHOUT_TANGENT: weakref.WeakKeyDictionary[Callable, bool] = weakref.WeakKeyDictionary()


@dataclass
class Evaluation:
    """One evaluation of ∇f.

    grad: ∇_x f(x), rows [B, D], detached.
    graph: (x, ∇f(x)), a leaf and its differentiable gradient, when the autograd graph was kept, else None.
    kinks: values of the kinks (`GraphFacts.kinks`) when they were kept and are known, else None.
    """

    grad: Tensor
    graph: tuple[Tensor, Tensor] | None = None
    kinks: Sequence[Tensor] | None = None


class NotPiecewiseLinear(Exception):
    """A potential that looked piecewise linear at the first step is not so at another."""


class AutogradField:
    """∇_x f, its vector-Jacobian products and its mixed derivative, for one unroll.

    Args:
        layer: name of the dynamics, for error messages.
        potential: callable, [B, *event] -> [B] or [B, 1].
        layout: how rows [B, D] map to events.
        known: differentiable inputs known beforehand (effective weights, `context=` tensors).
    """

    def __init__(self, layer: str, potential: Callable, layout: Layout, known: Sequence[Tensor] = ()) -> None:
        self.layer = layer
        self.potential = potential
        self.layout = layout
        self.known = tuple(known)

    def first_value(self, rows: Tensor) -> FirstValue:
        """f at the first point of an unroll, with everything that is to be learned from it."""
        saved = SavedBytes(exempt=self.known)
        born_after = sequence_number()
        with saved.counting():
            x, y = self._evaluate(rows)
        facts = inspect_graph(y, x, self.known, born_after)
        if not facts.reaches_x:
            raise self._independent_of_x()
        return FirstValue(self, x, y, facts, saved.total, saved.constants)

    def gradient(self, rows: Tensor) -> Tensor:
        """∇f at rows [B, D], and nothing kept."""
        x, y = self._evaluate(rows)
        if not y.requires_grad:
            raise self._independent_of_x()
        return self._gradient(x, y, keep_graph=False).grad

    def _independent_of_x(self) -> ValueError:
        return ValueError(
            f"{self.layer}: potential's output does not depend on x through autograd: it must be differentiable in x "
            f"(is it detached, or computed under no_grad?)"
        )

    def evaluate(
        self, rows: Tensor, *, keep_graph: bool = False, keep_kinks: bool = False, check_linear: bool = False
    ) -> Evaluation:
        """∇f at rows [B, D], keeping what `vjp` needs or what `mixed` needs.

        Raises: NotPiecewiseLinear if kinks are to be kept, or it is to be checked, and f is not piecewise linear there.
        """
        x, y = self._evaluate(rows)
        kinks = self._kinks(x, y) if keep_kinks or check_linear else None
        return self._gradient(x, y, keep_graph, kinks if keep_kinks else None)

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
        found = derivatives([evaluation.graph[1]], targets, [self.layout.events(u)], retain_graph=retain_graph)
        if not want_x:
            return None, found
        return (None if found[0] is None else self.layout.rows(found[0])), found[1:]

    def mixed(
        self, rows: Tensor, u: Tensor, inputs: Sequence[Tensor], kinks: Sequence[Tensor] | None
    ) -> Sequence[Tensor | None]:
        """∂_inputs Σ ⟨∇f(x), u⟩ of a piecewise-linear f over any number of rows [N, D].

        3 U with the kinks of the forward pass, 4 U when f is evaluated here to get them, 6 U by double backward
        where the tangent pass does not know one of the potential's functions.

        Raises: NotPiecewiseLinear if the evaluation at these rows is not piecewise linear.
        """
        x = y = None
        if kinks is None:
            x, y = self._evaluate(rows)
            kinks = self._kinks(x, y)
        if kinks is not None and has_tangent(self.potential):
            with torch.enable_grad():
                slope = tangent(self.potential, self.layout.events(u), kinks)
            if slope is not None:
                if not slope.requires_grad:
                    return (None,) * len(inputs)
                return derivatives([slope], inputs, [torch.ones_like(slope)])
        with contextlib.suppress(TypeError):  # no weak reference, or not hashable
            _WITHOUT_TANGENT[self.potential] = True
        if y is None:
            x, y = self._evaluate(rows)
        return self.vjp(self._gradient(x, y, keep_graph=True), u, inputs, want_x=False)[1]

    def _evaluate(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(x, f(x)) on a new leaf x."""
        with torch.enable_grad():
            x = self.layout.events(rows.detach()).requires_grad_()
            return x, self.value(x)

    def _kinks(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...] | None:
        facts = inspect_graph(y, x, self.known)
        if not facts.piecewise_linear:
            raise NotPiecewiseLinear
        return facts.kinks

    def _gradient(self, x: Tensor, y: Tensor, keep_graph: bool, kinks: Sequence[Tensor] | None = None) -> Evaluation:
        with torch.enable_grad():
            (grad,) = derivatives([y], [x], [torch.ones_like(y)], create_graph=keep_graph)
        if grad is None:
            raise self._independent_of_x()
        graph = (x, grad) if keep_graph and grad.requires_grad else None
        return Evaluation(self.layout.rows(grad.detach()), graph, kinks)

    def value(self, x: Tensor) -> Tensor:
        """f at events x, checked, [B]."""
        try:
            y = self.potential(x)
        except RuntimeError as error:
            if (explained := self._explained(error, x)) is None:
                raise
            raise explained from error
        return check_value(self.layer, y, x)

    def _explained(self, error: RuntimeError, x: Tensor) -> TypeError | None:
        """What PyTorch says deep inside a layer when dtypes differ, said of the arguments; None for other errors."""
        for module in modules_of(self.potential):
            for parameter in module.parameters(recurse=False):
                if parameter.dtype != x.dtype and "dtype" in str(error):
                    return TypeError(
                        f"{self.layer}: potential's parameters are {parameter.dtype}, x0 is {x.dtype}: convert one of "
                        f"them with .to(...) ({error})"
                    )
        return None


@dataclass
class FirstValue:
    """f at x⁰, before its gradient is taken: the point where an unroll decides how to go on.

    facts: what the evaluation's graph says. graph_bytes: what autograd saved for y. constants: tensors without
    gradients that it saved and that outlive the evaluation (captured ones, frozen weights), with their versions.
    """

    field: AutogradField
    x: Tensor
    y: Tensor
    facts: GraphFacts
    graph_bytes: int
    constants: WeakVersions

    def gradient(self, *, keep_graph: bool, keep_kinks: bool) -> Evaluation:
        return self.field._gradient(self.x, self.y, keep_graph, self.facts.kinks if keep_kinks else None)


def has_tangent(potential: Callable) -> bool:
    """False once the tangent pass has met a function of this potential that it does not know."""
    try:
        return potential not in _WITHOUT_TANGENT
    except TypeError:
        return True


def check_value(layer: str, y: object, x: Tensor) -> Tensor:
    """The potential's output, [B] or [B, 1], as [B]."""
    if not isinstance(y, Tensor):
        raise TypeError(f"{layer}: potential must return a tensor of shape ({x.shape[0]},), got {type(y).__name__}")
    if tuple(y.shape) not in ((x.shape[0],), (x.shape[0], 1)):
        raise ValueError(
            f"{layer}: potential must map x {tuple(x.shape)} to one value per sample, shape ({x.shape[0]},) or "
            f"({x.shape[0]}, 1), got {tuple(y.shape)}"
        )
    return y.reshape(x.shape[0])


def note_no_time_batch(potential: Callable, why: Exception) -> None:
    name = getattr(potential, "__name__", type(potential).__name__)
    note_slow_path(
        f"time batch {id(potential)}",
        f"potential {name} cannot be evaluated on the rows of several steps at once ({why}): the mixed derivative "
        f"runs step by step. Let it accept any batch size (do not capture tensors with a batch dimension)",
    )

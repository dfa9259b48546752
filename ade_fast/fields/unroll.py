"""The gradient side of one unroll: evaluates ∇f at x⁰ … x^T forward, and answers for its derivatives backward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .._record import Record
from ..programs import Kept
from .agreement import Checksum, Dependence, OtherGradient, tolerance_of
from .autograd import AutogradField, Evaluation, FirstValue, Keep
from .memory import memory_budget
from .surroundings import Draws, Inputs, Surroundings, is_observed

GradientMode = Literal["full", "truncated", "stopped"]
Memory = Literal["graph", "masks", "states", "reversible"]

# Autograd saves for ∇f (a graph of f and of its gradient) about this many times what it saves for f.
_GRAPH_OF_GRADIENT = 3
# Rows of the time-batched mixed derivative are taken in chunks whose evaluation saves about this many bytes. A GPU
# wants its matrix products filled; a CPU fills its cores with a few hundred rows, and pays for memory that it touches
# for the first time (a chunk of 11,000 rows of an MLP spent more time in page faults than in arithmetic).
_CHUNK_BYTES = {"cpu": 2 << 20, "cuda": 512 << 20}


@dataclass(frozen=True)
class Plan:
    """How one unroll is differentiated.

    memory: ``"graph"``, ``"masks"``, ``"states"`` or ``"reversible"``: what the backward pass finds (after ``"auto"``
        has chosen).
    field: who evaluates ∇f (``"autograd"``; ``"program"``: the same functions one by one, for piecewise-linear
        potentials made of known ones; ``"mlp"``: fused kernels).
    piecewise_linear: the adjoint runs without network calls, with one time-batched mixed derivative ("program", "mlp").
    captured: name of the autograd node of a non-leaf tensor that the potential captured, or None.
    chunk_rows: rows per evaluation of the time-batched mixed derivative.
    """

    memory: Memory
    field: str = "autograd"
    piecewise_linear: bool = False
    captured: str | None = None
    chunk_rows: int = 1


def kept_per_gradient(first: FirstValue, memory: str = "graph") -> int:
    """Bytes that a memory plan keeps of one evaluation of ∇f, beside the states: "graph" or "masks"."""
    if first.program is not None:
        bits = first.program.bit_bytes * len(first.x)
        return bits if memory == "masks" else bits + first.program.delta_bytes * len(first.x)
    if memory == "masks":
        return 0
    return first.graph_bytes * _GRAPH_OF_GRADIENT


def choose_plan(first: FirstValue, memory: Memory | Literal["auto"], n_kicks: int) -> Plan:
    """The plan for `memory` in {"graph", "masks", "states", "reversible", "auto"}, from the evaluation at x⁰."""
    # A piecewise-linear f, too, goes step by step where nothing is to be kept of the steps.
    linear = first.program is not None and memory != "reversible"
    chosen: Memory
    if memory == "auto":
        budget = memory_budget(first.x.device)
        tried: tuple[Memory, ...] = ("graph", "masks")
        fitting = (m for m in tried if kept_per_gradient(first, m) * n_kicks <= budget)
        chosen = next(fitting, "states")
    else:
        chosen = memory
    if chosen == "masks" and first.program is None:
        chosen = "states"
    batch = max(first.x.shape[0], 1)
    bytes_per_row = max(first.graph_bytes // batch, 1)
    chunk_rows = max(_CHUNK_BYTES.get(first.x.device.type, 64 << 20) // bytes_per_row, 1)
    return Plan(chosen, "autograd" if first.program is None else "program", linear, first.facts.captured, chunk_rows)


class GradientSide:
    """∇f along one unroll.

    Forward: ``grad(t, x)`` for t = 0 … T. Backward, for t = T … 0: ``recall(t, x)`` gives ∇f(x_t) again,
    ``pull(t, x, u)`` takes the cotangent u of ∇f(x_t) and returns H u (None for zero); ``finish`` returns the
    derivatives for `inputs`.

    Args:
        field: the field.
        first: f at x⁰, and the program if there is one.
        inputs: tensors whose derivatives `finish` returns.
        plan: see `Plan`.
        mode: "full"; "truncated" (no `inputs`: H u alone, eq. (38)); "stopped" (∇f is a constant).
        n_kicks: T + 1.
        surroundings: of the potential and of whatever else is evaluated along the unroll.
        draws: what evaluations draw; the first one's are there.
        record: where evaluations are written down, or None.
    """

    def __init__(
        self,
        field: AutogradField,
        first: FirstValue,
        inputs: Inputs,
        plan: Plan,
        mode: GradientMode,
        n_kicks: int,
        surroundings: Surroundings,
        draws: Draws,
        record: Record | None,
    ) -> None:
        self.plan = plan
        self.record = record
        self.inputs = inputs
        self.guarded: tuple[Tensor, ...] = ()  # not inputs, but must not change before the backward pass either
        self._field = field
        self._mode = mode
        self._n_kicks = n_kicks
        self._surroundings = surroundings
        self._draws = draws
        self._program = first.program
        # Evaluations before this one are the program's. If f is another at a later step (control flow that depends on
        # x), they are autograd's from there on.
        self._programmed = 0 if self._program is None else n_kicks
        self._found = Checksum()  # of what the backward pass evaluates again, if anything
        self._tapes: list[Evaluation | None] = [None] * n_kicks
        self._grads: list[Tensor] = []
        self._begin_backward()
        self._first: Evaluation | None = first.gradient(keep_graph=self._with_graph, keep=self._kept)

    def first_grad(self, x: Tensor) -> Tensor:
        """∇f(x⁰), rows [B, D], before the unroll asks for it."""
        return self._field.whole(self._first.grad, x)

    def _keeps_grad(self, t: int) -> bool:
        """Whether ∇f(x_t) is saved with the states, because the adjoint does not evaluate it again."""
        return self.plan.memory != "reversible" and (t < self._programmed or self._mode == "stopped")

    @property
    def _keeps_graph(self) -> bool:
        return self._mode != "stopped" and self.plan.memory == "graph" and not self.plan.piecewise_linear

    @property
    def _with_graph(self) -> bool:
        """Whether autograd's evaluations of the forward pass have graphs: to the last bit the same as in the backward
        pass only if they are made in the same way."""
        return self._keeps_graph or self.plan.memory == "reversible"

    @property
    def _kept(self) -> Keep:
        """What the program's evaluations keep for the mixed derivative."""
        if self._mode != "full" or not self.inputs.tensors:
            return "nothing"
        return {"graph": "deltas", "masks": "bits"}.get(self.plan.memory, "nothing")

    # Forward.
    def grad(self, t: int, x: Tensor) -> Tensor:
        """∇f(x_t), rows [B, D]."""
        if self._first is not None and t == 0:
            evaluation, self._first = self._first, None
        else:
            with self._draws.recorded(t):
                evaluation = self._evaluate(t, x)
            self._surroundings.refuse_changed_buffers()
        if self._keeps_grad(t):
            self._grads.append(evaluation.grad)
        elif not self._keeps_graph:
            self._found.add(t, evaluation.grad)
        if self._keeps_graph or evaluation.kept is not None:
            self._tapes[t] = evaluation
        whole = self._field.whole(evaluation.grad, x)
        if self.record is not None:
            self.record.evaluated(x, self._field.whole_value(evaluation.value, x), whole)
        return whole

    def _evaluate(self, t: int, x: Tensor) -> Evaluation:
        if self._program is not None and t < self._programmed:
            with self._draws.undone() as undo:
                found = self._field.evaluate_by(self._program, x, self._kept)
                if found is not None:
                    return found
                undo()
            self._programmed = t
        with_graph = self._with_graph
        return self._field.evaluate(x, keep_graph=with_graph, dependence=self._dependence if with_graph else None)

    def end_forward(self) -> list[Tensor]:
        """∇f(x_t) that the backward pass will need and that are not evaluated again, to be saved with the states."""
        grads, self._grads = self._grads, []
        return grads

    # Backward.
    def _begin_backward(self) -> None:
        self._total = Sum(len(self.inputs.tensors))
        self._cotangents: list[tuple[Tensor, Tensor, Tensor, Kept | None]] = []
        self._found_again = Checksum()
        self._dependence: Dependence | None = None  # of gradients that nobody wants
        if self._mode == "full":
            self._dependence = Dependence(self._field.layer, "potential", self.inputs, self._surroundings.frozen)
            if self._program is not None and self._programmed:
                self._dependence.note([], used={id(t) for t in self._program.constants})
        self._retain = True
        self._current: Evaluation | None = None
        self._tolerance: float | None = None

    @contextlib.contextmanager
    def backward_context(self, grads: Sequence[Tensor]) -> Iterator[None]:
        """The potential as the forward pass saw it, in the same surroundings.

        grads: what `end_forward` gave.
        """
        refuse_observed(self._field.layer, self.inputs)
        with self._surroundings.held():
            self._begin_backward()
            self._grads = list(grads)
            # The tapes are part of the graph of the pass that runs now: freed as it goes, unless it retains it.
            self._retain = torch._C._autograd._get_current_graph_task_keep_graph()
            yield
        self._grads = []

    def recall(self, t: int, x: Tensor) -> Tensor:
        """∇f(x_t) in the backward pass: as saved, from its tape, or evaluated again with its graph."""
        return self._field.whole(self._recall(t, x), x)

    def _recall(self, t: int, x: Tensor) -> Tensor:
        self._current = None
        if self._keeps_grad(t):
            return self._grads[t]
        if (tape := self._tapes[t]) is not None:
            return tape.grad
        with self._draws.repeated(t):
            # As the program found it, with what the mixed derivative wants of a step.
            if self._program is not None and t < self._programmed:
                wanted: Keep = "deltas" if self._mode == "full" and self.inputs.tensors else "bits"
                self._current = self._field.evaluate_by(self._program, x, wanted)
            if self._current is None:
                self._current = self._field.evaluate(x, keep_graph=True, dependence=self._dependence)
        self._found_again.add(t, self._current.grad, want_size=False)
        return self._current.grad

    def pull(self, t: int, x: Tensor, u: Tensor, want_x: bool) -> Tensor | None:
        """Takes u, the cotangent of ∇f(x_t), rows [B, D]; returns H u or None."""
        if self._mode == "stopped":
            return None
        hessian_u = self._pull(t, x, u, want_x)
        return self._field.whole_vjp(hessian_u, u) if want_x else None

    def _pull(self, t: int, x: Tensor, u: Tensor, want_x: bool) -> Tensor | None:
        """The same of the potential's own part."""
        if not want_x and not self.inputs.tensors:
            return None
        tape, current = self._tapes[t], self._current
        evaluation, self._current = tape or current, None
        retain = tape is not None and self._retain
        if not retain:
            self._tapes[t] = None
        if t < self._programmed and (evaluation is None or evaluation.kept is not None):  # piecewise linear: H u = 0
            if self.inputs.tensors:
                kept = None if evaluation is None else evaluation.kept
                grad = self._grads[t] if self._keeps_grad(t) or evaluation is None else evaluation.grad
                self._cotangents.append((x, u, grad, kept))
                if len(self._cotangents) == self._steps_at_once(len(x)):
                    self._add_mixed()
            return None
        assert evaluation is not None  # recalled
        hessian_u, derivatives = self._field.vjp(evaluation, u, self.inputs.tensors, want_x, retain)
        self._total.add(derivatives)
        return hessian_u

    def _steps_at_once(self, rows: int) -> int:
        return 1 if self.plan.memory == "reversible" else max(self.plan.chunk_rows // max(rows, 1), 1)

    def _add_mixed(self) -> None:
        """Adds the mixed derivative of the program's steps since it was last taken."""
        if not self._cotangents:
            return
        assert self._program is not None
        x, u, grads, kept = zip(*self._cotangents, strict=True)
        self._cotangents = []
        kept = [k for k in kept if k is not None]  # all of them, unless an earlier pass came as far as here
        kept = kept if len(kept) == len(x) else []
        x, u, grads = map(_batch, (x, u, grads))
        if self._tolerance is None:
            self._tolerance = tolerance_of([grads, *self._program.constants], grads.device)
        program, inputs = self._program, self.inputs.tensors
        self._total.add(self._field.mixed_by(program, x, u, inputs, kept, grads, self._tolerance))

    def finish(self) -> list[Tensor | None]:
        """Derivatives for `inputs`."""
        self._add_mixed()
        found = self.inputs.derivatives(self._field.layer, self._total.terms)
        if self._found:
            self._found.compare(self._found_again, OtherGradient(self._field.layer))
            if self._dependence is not None:
                self._dependence.check()
        return found


def _batch(steps: Sequence[Tensor]) -> Tensor:
    return steps[0] if len(steps) == 1 else torch.cat(list(steps))


class Sum:
    """Sums of derivatives that may be None (zero), views of each other, or shared: written to only once owned."""

    def __init__(self, n: int) -> None:
        self.terms: list[Tensor | None] = [None] * n
        self._owned = [False] * n

    def add(self, derivatives: Sequence[Tensor | None]) -> None:
        for i, derivative in enumerate(derivatives):
            if derivative is None:
                continue
            if (term := self.terms[i]) is None:
                self.terms[i] = derivative
            elif self._owned[i]:
                term.add_(derivative)
            else:
                self.terms[i], self._owned[i] = term + derivative, True


def refuse_observed(layer: str, inputs: Inputs) -> None:
    """Hooks are looked for in the forward pass, where there is another way for them."""
    if any(map(is_observed, inputs.tensors)):
        raise RuntimeError(
            f"{layer}: a gradient hook was registered on a parameter of the potential or of a network (or retain_grad "
            f"called on a context) after the forward pass: it would run at every evaluation. Register hooks before the "
            f"forward pass"
        )

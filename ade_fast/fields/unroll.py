"""The gradient side of one unroll: evaluates ∇f at x⁰ … x^T forward, and answers for its derivatives backward."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .._record import Record
from ..programs import Program
from .agreement import Checksum, Dependence, OtherGradient
from .autograd import AutogradField, Evaluation, FirstValue, Keep, NotPiecewiseLinear, note_no_time_batch
from .memory import memory_budget
from .surroundings import Draws, Inputs, Surroundings, is_observed

GradientMode = Literal["full", "truncated", "stopped"]

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
    piecewise_linear: the adjoint runs without network calls, with one time-batched mixed derivative.
    captured: name of the autograd node of a non-leaf tensor that the potential captured, or None.
    chunk_rows: rows per evaluation of the time-batched mixed derivative.
    """

    memory: Literal["graph", "masks", "states", "reversible"]
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
    if first.facts.piecewise_linear and first.facts.kinks is not None:
        return sum(k.numel() * k.element_size() for k in first.facts.kinks)
    return first.graph_bytes * _GRAPH_OF_GRADIENT


def choose_plan(first: FirstValue, memory: str, n_kicks: int) -> Plan:
    """The plan for `memory` in {"graph", "masks", "states", "reversible", "auto"}, from the evaluation at x⁰."""
    # A piecewise-linear f, too, goes step by step where nothing is to be kept of the steps.
    linear = first.facts.piecewise_linear and memory != "reversible"
    if memory == "auto":
        budget = memory_budget(first.x.device)
        fitting = (m for m in ("graph", "masks") if kept_per_gradient(first, m) * n_kicks <= budget)
        memory = next(fitting, "states")
    if memory == "masks" and first.program is None:
        memory = "states"
    batch = max(first.x.shape[0], 1)
    bytes_per_row = max(first.graph_bytes // batch, 1)
    chunk_rows = max(_CHUNK_BYTES.get(first.x.device.type, 64 << 20) // bytes_per_row, 1)
    return Plan(memory, "autograd" if first.program is None else "program", linear, first.facts.captured, chunk_rows)


class GradientSide:
    """∇f along one unroll.

    Forward: ``grad(t, x)`` for t = 0 … T. Backward, for t = T … 0: ``recall(t, x)`` gives ∇f(x_t) again,
    ``pull(t, x, u)`` takes the cotangent u of ∇f(x_t) and returns H u (None for zero); ``finish`` returns the
    derivatives for `inputs`.

    Args:
        field: the field.
        first: the evaluation at x⁰ if it was made already.
        inputs: tensors whose derivatives `finish` returns.
        plan: see `Plan`.
        mode: "full"; "truncated" (no `inputs`: H u alone, eq. (38)); "stopped" (∇f is a constant).
        n_kicks: T + 1.
        surroundings: of the potential and of whatever else is evaluated along the unroll.
        draws: what evaluations draw; the first one's are there.
        record: where evaluations are written down, or None.
        program: that `first` was evaluated by, or None.
    """

    def __init__(
        self,
        field: AutogradField,
        first: Evaluation | None,
        inputs: Inputs,
        plan: Plan,
        mode: GradientMode,
        n_kicks: int,
        surroundings: Surroundings,
        draws: Draws,
        record: Record | None = None,
        program: Program | None = None,
    ) -> None:
        self.plan = plan
        self.record = record
        self.inputs = inputs
        self.guarded: tuple[Tensor, ...] = ()  # not inputs, but must not change before the backward pass either
        self._field = field
        self._first = first
        self._mode = mode
        self._n_kicks = n_kicks
        self._surroundings = surroundings
        self._draws = draws
        self._program = program
        self._programmed = 0 if program is None else n_kicks  # evaluations before this one are the program's
        self._found: Checksum | None = None if self._keeps_all else Checksum()
        self._tapes: list[Evaluation | None] = [None] * n_kicks
        self._grads: list[Tensor] = []
        self._bends = False  # a step was found at which f is not piecewise linear after all
        self._begin_backward()

    # What an evaluation has to keep.
    @property
    def keeps_grads(self) -> bool:
        """Whether ∇f(x_t) is saved with the states, because the adjoint does not evaluate it again."""
        return self.plan.piecewise_linear or (self._mode == "stopped" and self.plan.memory != "reversible")

    @property
    def _keeps_all(self) -> bool:
        """Whether the backward pass evaluates no gradient again that it does not compare with one that was kept."""
        return self.keeps_grads or self.plan.memory == "graph"

    @property
    def _keeps_graph(self) -> bool:
        return not self.keeps_grads and self.plan.memory == "graph"

    @property
    def _keeps_kinks(self) -> bool:
        return keeps_kinks(self.plan, self._mode, self.inputs.tensors)

    # Forward.
    def grad(self, t: int, x: Tensor) -> Tensor:
        """∇f(x_t), rows [B, D]."""
        if self._first is not None and t == 0:
            evaluation, self._first = self._first, None
        else:
            with self._draws.recorded(t):
                evaluation = self._evaluate(t, x)
            self._surroundings.refuse_changed_buffers()
        if self._found is not None:
            self._found.add(t, evaluation.grad)
        if self._keeps_graph or self._keeps_kinks or evaluation.kept is not None:
            self._tapes[t] = evaluation
        if self.keeps_grads:
            self._grads.append(evaluation.grad)
        whole = self._field.whole(evaluation.grad, x)
        if self.record is not None:
            self.record.evaluated(x, self._field.whole_value(evaluation.value, x), whole)
        return whole

    def _evaluate(self, t: int, x: Tensor) -> Evaluation:
        if t < self._programmed:
            with self._draws.undone() as undo:
                found = self._field.evaluate_by(
                    self._program, x, what_is_kept(self.plan, self._mode, self.inputs.tensors)
                )
                if found is not None:
                    return found
                undo()
            self._programmed = t
        # Where the backward pass evaluates nothing again, only here can it be seen that f bends at a later step.
        unseen = self.plan.piecewise_linear and not self.inputs.tensors and self._mode != "stopped"
        # To the last bit the same as in the backward pass only if it is made in the same way, graph and all.
        with_graph = self._keeps_graph or self.plan.memory == "reversible"
        try:
            return self._field.evaluate(
                x, keep_graph=with_graph, keep_kinks=self._keeps_kinks, check_linear=unseen,
                dependence=self._dependence if with_graph else None,
            )  # fmt: skip
        except NotPiecewiseLinear:  # the backward pass will go step by step
            self._bends = True
            return self._field.evaluate(x)

    def end_forward(self) -> list[Tensor]:
        """∇f(x_t) that the backward pass will need and that are not evaluated again, to be saved with the states."""
        grads, self._grads = self._grads, []
        return grads

    # Backward.
    def _begin_backward(self) -> None:
        self._total = Sum(len(self.inputs.tensors))
        self._cotangents: list[tuple[int, Tensor, Tensor]] = []
        self._found_again = Checksum()
        self._dependence: Dependence | None = None  # of gradients that nobody wants
        if self._mode == "full":
            self._dependence = Dependence(self._field.layer, "potential", self.inputs, self._surroundings.frozen)
        self._retain = True
        self._alone = False  # whether several steps cannot be taken at once
        self._current: Evaluation | None = None

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
        if self.keeps_grads:
            return self._grads[t]
        if self._tapes[t] is not None:
            return self._tapes[t].grad
        with self._draws.repeated(t):
            self._current = self._again_by_program(t, x)
            if self._current is None:
                self._current = self._field.evaluate(x, keep_graph=True, dependence=self._dependence)
        self._found_again.add(t, self._current.grad, want_size=False)
        return self._current.grad

    def _again_by_program(self, t: int, x: Tensor) -> Evaluation | None:
        """∇f(x_t) of a "reversible" plan as the program found it, with what the mixed derivative wants of a step."""
        if t >= self._programmed or self.plan.memory != "reversible":
            return None
        wanted = "deltas" if self._mode == "full" and self.inputs.tensors else "bits"
        return self._field.evaluate_by(self._program, x, wanted)

    def pull(self, t: int, x: Tensor, u: Tensor, want_x: bool) -> Tensor | None:
        """Takes u, the cotangent of ∇f(x_t), rows [B, D]; returns H u or None."""
        if self._mode == "stopped":
            return None
        hessian_u = self._pull(t, x, u, want_x)
        return self._field.whole_vjp(hessian_u, u) if want_x else None

    def _pull(self, t: int, x: Tensor, u: Tensor, want_x: bool) -> Tensor | None:
        """The same of the potential's own part."""
        if self.plan.piecewise_linear:
            if self._bends:
                raise NotPiecewiseLinear
            if self.inputs.tensors:
                self._cotangents.append((t, x, u))
                if len(self._cotangents) == self._steps_at_once(len(x)):
                    self._add_mixed()
            return None
        if not want_x and not self.inputs.tensors:
            return None
        tape = self._tapes[t]
        evaluation = tape or self._current
        if evaluation.kept is not None:  # the program's, of a "reversible" plan: piecewise linear, so that H u = 0
            self._current = None
            if self.inputs.tensors:
                self._total.add(self._mixed_by_program(t, x, u, evaluation))
            return None
        retain = tape is not None and self._retain
        hessian_u, derivatives = self._field.vjp(evaluation, u, self.inputs.tensors, want_x, retain)
        self._current = None
        if not retain:
            self._tapes[t] = None
        self._total.add(derivatives)
        return hessian_u

    def _mixed_by_program(self, t: int, x: Tensor, u: Tensor, evaluation: Evaluation) -> Sequence[Tensor | None]:
        kept, grads = [evaluation.kept], evaluation.grad
        found = self._field.mixed_by(self._program, x, u, self._dependence, kept, grads)
        if found is None:
            again = functools.partial(self._draws.repeated, t)
            found = self._field.mixed(x, u, self._dependence, None, grads, again)
        return found

    def _steps_at_once(self, rows: int) -> int:
        return 1 if self._draws or self._alone else max(self.plan.chunk_rows // max(rows, 1), 1)

    def _add_mixed(self) -> None:
        """Adds the mixed derivative of the steps since it was last taken."""
        try:
            derivatives = self._mixed(len(self._cotangents))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as why:
            if len(self._cotangents) == 1:
                raise
            derivatives = self._mixed(1)
            self._alone = True
            note_no_time_batch(self._field.potential, why)
        self._total.add(derivatives)
        if not self._retain:
            for t, _, _ in self._cotangents:
                self._tapes[t] = None
        self._cotangents = []

    def finish(self) -> list[Tensor | None]:
        """Derivatives for `inputs`."""
        if self._cotangents:
            self._add_mixed()
        if self.plan.piecewise_linear and self.inputs.tensors:
            self._dependence.check()
        found = self.inputs.derivatives(self._field.layer, self._total.terms)
        if self._found is not None:
            self._found.compare(self._found_again, OtherGradient(self._field.layer))
            if self._dependence is not None:
                self._dependence.check()
        return found

    def as_smooth(self) -> None:
        """From now on, Hessian-vector products step by step, on evaluations made in the backward pass."""
        self.plan = replace(self.plan, piecewise_linear=False, memory="states")
        self._found = Checksum()
        for t, grad in enumerate(self._grads):
            self._found.add(t, grad)
        self._tapes = [None] * self._n_kicks
        self._programmed = 0
        self._begin_backward()

    def _mixed(self, steps: int) -> list[Tensor | None]:
        """The mixed derivative of the steps at hand, `steps` of them at once."""
        totals = Sum(len(self.inputs.tensors))
        for start in range(0, len(self._cotangents), steps):
            totals.add(self._mixed_of(self._cotangents[start : start + steps]))
        return totals.terms

    def _mixed_of(self, part: Sequence[tuple[int, Tensor, Tensor]]) -> Sequence[Tensor | None]:
        tapes = [self._tapes[t] for t, _, _ in part]
        x, u = _batch([x for _, x, _ in part]), _batch([u for _, _, u in part])
        grads = _batch([self._grads[t] for t, _, _ in part])
        if all(t < self._programmed for t, _, _ in part):
            kept = [tape.kept for tape in tapes if tape is not None]
            found = self._field.mixed_by(self._program, x, u, self._dependence, kept, grads)
            if found is not None:
                return found
        kinks = None
        if all(tape is not None and tape.kinks is not None for tape in tapes):
            kinks = [_batch(kink) for kink in zip(*(tape.kinks for tape in tapes), strict=True)]
        again = functools.partial(self._draws.repeated, part[0][0])  # which are of one step where anything is drawn
        return self._field.mixed(x, u, self._dependence, kinks, grads, again)


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
            if self.terms[i] is None:
                self.terms[i] = derivative
            elif self._owned[i]:
                self.terms[i].add_(derivative)
            else:
                self.terms[i], self._owned[i] = self.terms[i] + derivative, True


def refuse_observed(layer: str, inputs: Inputs) -> None:
    """Hooks are looked for in the forward pass, where there is another way for them."""
    if any(map(is_observed, inputs.tensors)):
        raise RuntimeError(
            f"{layer}: a gradient hook was registered on a parameter of the potential or of a network (or retain_grad "
            f"called on a context) after the forward pass: it would run at every evaluation. Register hooks before the "
            f"forward pass"
        )


def what_is_kept(plan: Plan, mode: str, inputs: Sequence[Tensor]) -> Keep:
    """What a program's evaluations keep for the mixed derivative."""
    if mode != "full" or not inputs:
        return "nothing"
    return {"graph": "deltas", "masks": "bits"}.get(plan.memory, "nothing")


def keeps_kinks(plan: Plan, mode: str, inputs: Sequence[Tensor]) -> bool:
    """The values of kinks are kept when the mixed derivative will want them and memory allows it."""
    return plan.piecewise_linear and plan.memory == "graph" and mode == "full" and bool(inputs)

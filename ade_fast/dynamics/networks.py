"""The learned parts of the generalized dynamics (S_v, g_v, S_x, g_x of eq. (13)) along one unroll."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._engine import derivatives
from ..fields import (
    Checksum,
    Dependence,
    Draws,
    Inputs,
    Layout,
    OtherGradient,
    Sum,
    Surroundings,
    refuse_observed,
)
from ..fields.graph import inspect_graph, sequence_number

Pair = tuple[Tensor | None, Tensor | None]


class NetworkPair:
    """A scale S and a shift g of the same arguments, each a module, a callable, or None.

    Forward: ``pair(t, *rows) -> (S rows, g rows)``, None for what is absent. Backward: ``recall`` gives them again,
    ``pull`` takes their cotangents and returns those of the arguments; ``finish`` returns the parameters'.

    Args:
        layer: name of the dynamics. names: of (scale, shift), for error messages.
        arguments: layouts of the arguments. result: layout of S and g.
    """

    _draws: Draws  # since `prepare`

    def __init__(
        self,
        layer: str,
        names: tuple[str, str],
        scale: Callable[..., Tensor] | None,
        shift: Callable[..., Tensor] | None,
        arguments: tuple[Layout, ...],
        result: Layout,
    ) -> None:
        self._layer, self._names = layer, names
        self._parts = (scale, shift)
        self.functions = {name: f for name, f in zip(names, self._parts, strict=True) if f is not None}
        self.inputs = Inputs()
        self._arguments, self._result = arguments, result
        self._keep: bool | None = None  # None: there is no backward pass
        self._retain = False
        self._tapes: dict[int, tuple[list[Tensor], Pair]] = {}
        self._total = Sum(0)
        self._frozen: set[int] = set()
        self._met = Dependence(layer, "a network", self.inputs, self._frozen)
        self._found, self._found_again = Checksum(), Checksum()

    def prepare(self, around: Surroundings, rows: tuple[Tensor, ...], keep: bool) -> str | None:
        """Finds the tensors the networks depend on (`inputs`), by one evaluation; returns a captured node's name."""
        self._keep = keep
        self._draws = Draws(rows[0].device)
        if not self.functions:
            return None
        with torch.enable_grad():
            born_after = sequence_number()
            leaves, outputs = self._tape(rows)
            met: dict[int, Tensor] = {}
            captured = None
            for output in outputs:
                if output is not None and output.requires_grad:
                    facts = inspect_graph(output, leaves[0], [*leaves[1:], *around.known], born_after)
                    met |= {id(t): t for t in (*facts.known, *facts.leaves)}
                    captured = captured or facts.captured
        certain = [t for t in met.values() if all(t is not leaf for leaf in leaves)]
        self.inputs = around.inputs(certain, self.functions)
        self._frozen = around.frozen
        self._met = Dependence(self._layer, "a network", self.inputs, self._frozen)
        return captured

    def __call__(self, t: int, *rows: Tensor) -> Pair:
        if self._keep is None or torch.is_grad_enabled():  # not differentiable, or under autograd's own graph
            return self._evaluate([layout.events(r) for layout, r in zip(self._arguments, rows, strict=True)])
        if not self.functions:
            return None, None
        with torch.enable_grad(), self._draws.recorded(t):  # a network may call autograd itself
            tape = self._tape(rows)
        if self._keep:
            self._tapes[t] = tape
        else:
            self._found.add(t, *tape[1])
            self._met.note([o for o in tape[1] if o is not None], *tape[0])
        return _detached(tape[1])

    def begin_backward(self) -> None:
        """Another backward pass may have come before, and stopped midway."""
        refuse_observed(self._layer, self.inputs)
        self._total = Sum(len(self.inputs.tensors))
        self._found_again = Checksum()
        self._dependence = Dependence(self._layer, "a network", self.inputs, self._frozen)
        if not self._keep:
            self._tapes.clear()
        # Freed as the pass goes, unless autograd retains its graph. (A tape that is gone is recorded again.)
        self._retain = bool(self._keep) and torch._C._autograd._get_current_graph_task_keep_graph()

    def recall(self, t: int, *rows: Tensor) -> Pair:
        """S and g at step t in the backward pass: from the tape, or evaluated again."""
        if t not in self._tapes and self.functions:
            with torch.enable_grad(), self._draws.repeated(t):
                self._tapes[t] = self._tape(rows)
            leaves, outputs = self._tapes[t]
            self._found_again.add(t, *outputs, want_size=False)
            self._dependence.note([o for o in outputs if o is not None], *leaves)
        return _detached(self._tapes[t][1]) if t in self._tapes else (None, None)

    def pull(self, t: int, dscale: Tensor | None, dshift: Tensor | None) -> list[Tensor | None]:
        """Cotangents of the arguments, rows, from those of S and g at step t."""
        if not self.functions:
            return [None] * len(self._arguments)
        leaves, outputs = self._tapes[t] if self._retain else self._tapes.pop(t)
        pairs = [
            (output, cotangent)
            for output, cotangent in zip(outputs, (dscale, dshift), strict=True)
            if output is not None and cotangent is not None and output.requires_grad
        ]
        if not pairs:
            return [None] * len(leaves)
        targets, cotangents = [*leaves, *self.inputs.tensors], [d for _, d in pairs]
        found = derivatives([o for o, _ in pairs], targets, cotangents, retain_graph=self._retain)
        self._total.add(found[len(leaves) :])
        return [None if d is None else layout.rows(d) for layout, d in zip(self._arguments, found, strict=False)]

    def finish(self) -> list[Tensor | None]:
        if not self._keep:
            self._found.compare(self._found_again, OtherGradient(self._layer, "the output of a network"))
            self._dependence.check(self._met)
        return self.inputs.derivatives(self._layer, self._total.terms)

    def _tape(self, rows: Sequence[Tensor]) -> tuple[list[Tensor], Pair]:
        leaves = [layout.events(r.detach()).requires_grad_() for layout, r in zip(self._arguments, rows, strict=True)]
        return leaves, self._evaluate(leaves)

    def _evaluate(self, events: Sequence[Tensor]) -> Pair:
        outputs: list[Tensor | None] = []
        for name, part in zip(self._names, self._parts, strict=True):
            if part is None:
                outputs.append(None)
                continue
            output = part(*events)
            wanted = (events[0].shape[0], *self._result.event)
            if not isinstance(output, Tensor) or tuple(output.shape) != wanted:
                got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(f"{self._layer}: {name} must return shape {wanted}, got {got}")
            if not output.is_floating_point():
                raise TypeError(f"{self._layer}: {name} must return real numbers, got {output.dtype}")
            # Under autocast a network answers in another dtype. Scales are in the accumulation dtype.
            is_scale = len(outputs) == 0
            dtype = torch.float32 if is_scale and events[0].dtype == torch.bfloat16 else events[0].dtype
            outputs.append(self._result.rows(output).to(dtype))
        scale, shift = outputs
        return scale, shift


def _detached(pair: Pair) -> Pair:
    scale, shift = pair
    return None if scale is None else scale.detach(), None if shift is None else shift.detach()

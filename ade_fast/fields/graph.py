"""Reads the autograd graph of one evaluation of a potential: what it depends on.

Two questions are answered in one walk over ``y.grad_fn``:

* Which leaves (parameters, tensors captured by a lambda, conditioning inputs) receive gradients? They become inputs
  of the unroll's autograd function, so that gradients reach whatever the potential depends on, module or not.
* Does the graph run into nodes that existed before the evaluation? These belong to non-leaf tensors that the
  potential captured: gradients for them can only travel through autograd's own graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The node that hands a leaf its gradient. (A custom function may have a `variable` of its own.)
_view: Any = torch.zeros((), requires_grad=True).view(())
_Leaf: Any = type(_view.grad_fn.next_functions[0][0])

# A node, and the number of its output.
_Edge = tuple[Any, int]


class GraphFacts(NamedTuple):
    """What one evaluation ``y = f(x)`` depends on.

    leaves: leaf tensors other than x that require grad, in order of discovery; no duplicates.
    known: those of the known inputs that were met.
    captured: name of an autograd node that existed before the evaluation and is not one of the known inputs, or None.
    reaches_x: y depends on x.
    """

    leaves: list[Tensor]
    known: list[Tensor]
    captured: str | None
    reaches_x: bool


def inspect_graph(y: Tensor, x: Tensor, known: Sequence[Tensor] = (), born_after: int | None = None) -> GraphFacts:
    """Walks the graph of ``y``, which was evaluated from the leaf ``x``.

    Args:
        y: result of the evaluation, any shape.
        x: the leaf it was evaluated at.
        known: tensors (leaves or not) that are already inputs; the walk stops there and does not report them.
        born_after: autograd sequence number before the evaluation, which has just come to its end, in this thread.
            Older nodes are captured ones; so are those of other threads, as far as their numbers tell.
    """
    born_before = sequence_number()
    numbers: set[int] = set()
    captured: list[str] = []

    def is_captured(node: Any) -> bool:
        if born_after is None or isinstance(node, _Leaf) or _is_cached_cast(node):
            return False
        number = node._sequence_nr()
        # Numbers are unique in a thread. (On a GPU, derivatives inside of f are another thread's.)
        foreign = not x.is_cuda and (number >= born_before or number in numbers)
        numbers.add(number)
        if number < born_after or foreign:
            captured.append(node.name())
            return True
        return False

    met = dependence([y], known, is_captured)
    reaches_x = met.pop(id(x), None) is not None
    there = {id(t) for t in known}
    leaves, others = ([t for key, t in met.items() if (key in there) is of] for of in (False, True))
    return GraphFacts(leaves, others, captured[0] if captured else None, reaches_x)


def dependence(
    outputs: Sequence[Tensor], known: Sequence[Tensor], ends_at: Callable[[Any], bool] | None = None
) -> dict[int, Tensor]:
    """What the outputs depend on, by id: those of the known tensors that are met, and leaves that are none of them.

    ends_at: asked of each node that is met, whether nothing behind it matters.
    """
    known_edges = {(t.grad_fn, t.output_nr): t for t in known if t.grad_fn is not None}
    met = {id(t): t for t in outputs if t.is_leaf and t.requires_grad}
    for edge in _reached([(t.grad_fn, t.output_nr) for t in outputs], known_edges, ends_at):
        tensor = known_edges.get(edge)
        if tensor is None and isinstance(edge[0], _Leaf):
            tensor = edge[0].variable
        if tensor is not None:
            met[id(tensor)] = tensor
    return met


def _reached(
    edges: Iterable[_Edge], last: Collection[_Edge] = (), ends_at: Callable[[Any], bool] | None = None
) -> Iterator[_Edge]:
    """Every edge that autograd would go along from these, themselves included; not beyond those of `last`, nor beyond
    nodes where it `ends_at`."""
    stack, seen = list(edges), set()
    while stack:
        edge = stack.pop()
        node = edge[0]
        if node is None:
            continue
        yield edge
        if node not in seen and edge not in last:
            seen.add(node)
            if ends_at is None or not ends_at(node):
                stack += node.next_functions


def saved_bytes(y: Tensor, exempt: Sequence[Tensor]) -> int:
    """Bytes that autograd saved for `y`: storages once each, those of `exempt` tensors and of leaves not at all.

    (By the nodes themselves: hooks on saved tensors would keep autograd from seeing changes in place, and forbid
    `torch.func` inside of a potential.)
    """
    seen, total = {t.untyped_storage().data_ptr() for t in exempt}, 0
    for node in {edge[0] for edge in _reached([(y.grad_fn, y.output_nr)])}:
        for tensor in _saved_by(node):
            if tensor.is_leaf and tensor.requires_grad:  # a parameter: there anyway
                continue
            tensor = torch._C._functorch.unwrap_if_dead(tensor)  # of `torch.func` inside of a potential
            if tensor._is_zerotensor():  # has no memory
                continue
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
    return total


def _saved_by(node: Any) -> Iterator[Tensor]:
    kind: Any = type(node)
    for name in _names_of_saved(kind):
        raw = getattr(node, name)
        for saved in raw if isinstance(raw, (list, tuple)) else (raw,):
            tensor = getattr(saved, "data", None)  # whoever saves something else than tensors (checkpoints) has others
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                yield tensor


@functools.lru_cache(maxsize=1024)
def _names_of_saved(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def _is_cached_cast(node: Any) -> bool:
    """Autocast keeps the low-precision copies of leaf weights: older than the evaluation, yet part of it."""
    return node.name().startswith("ToCopyBackward") and all(isinstance(n, _Leaf) for n, _ in node.next_functions if n)


class Ancestry:
    """What tensors were computed from: everything in their graphs that is behind them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        behind = [edge for t in tensors if t.grad_fn is not None for edge in t.grad_fn.next_functions]
        self._edges = set(_reached(behind))  # holding nodes keeps them theirs
        self._leaves = {id(node.variable) for node, _ in self._edges if isinstance(node, _Leaf)}

    def __contains__(self, tensor: Tensor) -> bool:
        if tensor.grad_fn is None:
            return id(tensor) in self._leaves
        return (tensor.grad_fn, tensor.output_nr) in self._edges


def sequence_number() -> int:
    """Autograd nodes made from now on (in this thread) have at least this number."""
    return torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]

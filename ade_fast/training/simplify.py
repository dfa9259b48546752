"""A recorded graph with less in it: what is the same at each replay is computed once, what does nothing is left out.

Nothing here changes a result but for the sign of a zero.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

_aten = torch.ops.aten
_CONSTANT = {
    _aten.zeros.default, _aten.ones.default, _aten.full.default, _aten.arange.default, _aten.arange.start,
    _aten.arange.start_step, _aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default,
    _aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default, _aten.scalar_tensor.default,
}  # fmt: skip
"""Operators whose results depend on the shapes of their arguments alone."""
_NEUTRAL: dict[object, int] = {
    _aten.add.Tensor: 0, _aten.sub.Tensor: 0, _aten.mul.Tensor: 1, _aten.div.Tensor: 1, _aten.mul.Scalar: 1,
    _aten.div.Scalar: 1, _aten.pow.Tensor_Scalar: 1,
}  # fmt: skip
"""Numbers that change nothing as an operator's second argument."""


class Written:
    """The memory that operators wrote to while they were recorded."""

    def __init__(self) -> None:
        self._storages: set[int] = set()

    def by(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Notes what this call writes to."""
        if func._schema.is_mutable:
            self._storages |= {_storage(t) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}

    def __contains__(self, tensor: Tensor) -> bool:
        return _storage(tensor) in self._storages


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def simplify(
    graph: fx.Graph, values: Mapping[fx.Node, Any], written: Written, lasting: Iterable[fx.Node] = ()
) -> Iterator[tuple[fx.Node, Tensor]]:
    """Replaces nodes by others that are equal, and yields those that are constants, with what they are.

    values: what the nodes were when they were recorded, tensors and lists of them. lasting: those that are the same
    memory at each replay.
    """
    lasting = set(lasting)
    outputs = set(graph.output_node().all_input_nodes)
    constants: dict[fx.Node, Tensor] = {}
    known: dict[object, fx.Node] = {}
    for node in list(graph.nodes):
        value = values.get(node)
        if not isinstance(value, Tensor) or not isinstance(node.target, torch._ops.OpOverload):
            continue
        # What is written to is another value afterwards, under whatever name.
        taken = [values.get(argument) for argument in node.all_input_nodes]
        if any(isinstance(t, Tensor) and t in written for t in (value, *taken)):
            continue
        if (same := _passed_on(node, values)) is not None:
            node.replace_all_uses_with(same)
        elif torch.Tag.nondeterministic_seeded in node.target.tags:
            continue
        elif node.all_input_nodes and lasting >= set(node.all_input_nodes) and _shares_memory(node, values):
            lasting.add(node)  # it goes on showing what is there
        elif node.target in _CONSTANT or (node.all_input_nodes and constants.keys() >= set(node.all_input_nodes)):
            constants[node] = value
        elif (first := known.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)) is not node:
            node.replace_all_uses_with(first)
    views = {node: values[node] for node in lasting if node.op == "call_function"}
    # What is handed out may be written to by who gets it.
    yield from ((node, value) for node, value in {**constants, **views}.items() if node not in outputs)


def add_together(graph: fx.Graph, values: Mapping[fx.Node, Any], written: Written) -> None:
    """Sums of two tensors that no operator takes before the last of them is made: one call for all of one kind."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    kinds: dict[object, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.target is not _aten.add.Tensor or node.kwargs:
            continue
        taken = [values.get(n) for n in (node, *node.args) if isinstance(n, fx.Node)]
        tensors = [t for t in taken if isinstance(t, Tensor) and t not in written]
        alike = {(t.dtype, t.device, t.shape) for t in tensors}
        if len(tensors) == 3 and len(alike) == 1:
            kinds.setdefault((tensors[0].dtype, tensors[0].device), []).append(node)
    for nodes in kinds.values():
        last = place[nodes[-1]]
        nodes = [node for node in nodes if all(place[user] > last for user in node.users)]
        if len(nodes) == 1:
            continue
        with graph.inserting_after(nodes[-1]):
            sums = graph.call_function(_aten._foreach_add.List, tuple([n.args[i] for n in nodes] for i in range(2)))
        behind = sums
        for i, node in enumerate(nodes):
            with graph.inserting_after(behind):
                behind = graph.call_function(operator.getitem, (sums, i))
            node.replace_all_uses_with(behind)
            graph.erase_node(node)


def _shares_memory(node: fx.Node, values: Mapping[fx.Node, Any]) -> bool:
    """Whether a tensor is memory of the first argument, and no copy: some views, such as ``reshape``, may be either."""
    first = values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
    target = cast(torch._ops.OpOverload, node.target)
    return _is_view(target) and isinstance(first, Tensor) and _storage(first) == _storage(values[node])


def _is_view(target: torch._ops.OpOverload) -> bool:
    """Whether all that an operator returns is memory of its arguments."""
    if target is _aten._unsafe_view.default:  # its schema does not say so
        return True
    returned = [output.alias_info for output in target._schema.returns]
    return bool(returned) and all(info is not None and not info.is_write for info in returned)


def _passed_on(node: fx.Node, values: Mapping[fx.Node, Any]) -> fx.Node | None:
    """The node before it that this node's value is, or None."""
    if _is_view(cast(torch._ops.OpOverload, node.target)):
        return _seen_before(node, values)
    first, *others = node.args
    if not isinstance(first, fx.Node):
        return None
    before, after = values.get(first), values[node]
    if not isinstance(before, Tensor) or node.kwargs or before.dtype != after.dtype:
        return None
    if before.shape != after.shape or before.stride() != after.stride():
        return None
    neutral = _NEUTRAL.get(node.target)
    return first if neutral is not None and isinstance(others[0], (int, float)) and others[0] == neutral else None


def _seen_before(node: fx.Node, values: Mapping[fx.Node, Any]) -> fx.Node | None:
    """The tensor whose view this node is, or a view of it in between, that is just like it: a transpose's transpose."""
    found: fx.Node | None = None
    earlier: object = node
    while isinstance(earlier, fx.Node):
        if earlier is not node and _looks(values.get(earlier)) == _looks(values[node]):
            found = earlier
        target = earlier.target
        earlier = earlier.args[0] if isinstance(target, torch._ops.OpOverload) and _is_view(target) else None
    return found


def _looks(value: object) -> object:
    if not isinstance(value, Tensor):
        return None
    return value.data_ptr(), value.shape, value.stride(), value.dtype, value.is_conj(), value.is_neg()

"""Reads the autograd graph of one evaluation of a potential: what it depends on, and whether it is piecewise linear.

Three questions are answered in one walk over ``y.grad_fn``:

* Which leaves (parameters, tensors captured by a lambda, conditioning inputs) receive gradients? They become inputs
  of the unroll's autograd function, so that gradients reach whatever the potential depends on, module or not.
* Does the graph run into nodes that existed before the evaluation? These belong to non-leaf tensors that the
  potential captured: gradients for them can only travel through autograd's own graph.
* Is y a piecewise-linear function of x? Then its x-Hessian is zero almost everywhere, exactly as autograd computes
  it: where its functions are known one by one, it is run as a program, and back-propagation through time needs no
  Hessian-vector products. What autograd saved at its kinks tells the program their slopes.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The node that hands a leaf its gradient. (A custom function may have a `variable` of its own.)
_view: Any = torch.zeros((), requires_grad=True).view(())
_Leaf: Any = type(_view.grad_fn.next_functions[0][0])

# A node, and the number of its output.
_Edge = tuple[Any, int]

# Jointly linear in all their differentiable inputs.
_LINEAR = frozenset(
    """Add Sub Rsub Neg View UnsafeView ReshapeAlias T Transpose Permute Expand Sum Mean Squeeze Unsqueeze Clone Cat
    Stack Select Slice Index IndexSelect Gather Split SplitWithSizes Unbind ToCopy ConstantPadNd ReflectionPad1D
    ReflectionPad2D ReplicationPad1D ReplicationPad2D AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D
    UpsampleNearest2D UpsampleBilinear2D PixelShuffle PixelUnshuffle Flip Roll Alias MkldnnAdaptiveAvgPool2D
    Contiguous Unfold Im2Col Diagonal AsStrided""".split()  # noqa: SIM905
)
# Piecewise linear with one input that may depend on x (`Where`: its branches; the condition is not differentiable).
_KINKED = frozenset(
    """Relu LeakyRelu Threshold Hardtanh Clamp ClampMin ClampMax Abs MaxPool2DWithIndices MaxPool3DWithIndices
    AdaptiveMaxPool2D Maximum Minimum Max Min Amax Amin Where Sort Topk""".split()  # noqa: SIM905
)
# Products: at most one of the named inputs may depend on x.
_PRODUCTS = {
    "Addmm": (1, 2),
    "Mm": (0, 1),
    "Bmm": (0, 1),
    "Baddbmm": (1, 2),
    "Addmv": (1, 2),
    "Mv": (0, 1),
    "Dot": (0, 1),
    "Linear": (0, 1),
    "Convolution": (0, 1),
    "MkldnnConvolution": (0, 1),
    "CudnnConvolution": (0, 1),
    "Mul": (0, 1),
    "PreluKernel": (0, 1),
}


@dataclass(frozen=True)
class GraphFacts:
    """What one evaluation ``y = f(x)`` depends on.

    leaves: leaf tensors other than x that require grad, in order of discovery; no duplicates.
    known: those of the known inputs that were met.
    captured: name of an autograd node that existed before the evaluation and is not one of the known inputs, or None.
    reaches_x: y depends on x.
    smooth_because: name of the first autograd node that is not known to be piecewise linear in x; None when y is
        piecewise linear.
    kinks: where y is piecewise linear by ReLU, leaky ReLU and max pooling (in one or two dimensions) alone, in order of
        evaluation: a value with the sign of a ReLU's argument, the indices of max pooling's choice; else None.
    """

    leaves: tuple[Tensor, ...]
    known: tuple[Tensor, ...]
    captured: str | None
    reaches_x: bool
    smooth_because: str | None
    kinks: tuple[Tensor, ...] | None

    @property
    def piecewise_linear(self) -> bool:
        return self.reaches_x and self.smooth_because is None


def _kind(node_name: str) -> str:
    """``"AddmmBackward0"`` -> ``"Addmm"``; ``""`` for a custom function, which may be called anything."""
    kind, _, number = node_name.partition("Backward")
    return kind if number.isdigit() else ""


def _is_smooth(node: Any, kind: str, depends: Sequence[bool]) -> bool:
    """Whether a node that depends on x is *not* known to be piecewise linear in it."""
    if kind in _LINEAR or kind in _KINKED:
        return False
    if kind in _PRODUCTS:
        first, second = _PRODUCTS[kind]
        return depends[first] and depends[second]
    if kind == "Div":
        return (len(depends) > 1 and depends[1]) or getattr(node, "_saved_rounding_mode", None) is not None
    if kind in ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"):  # affine in evaluation mode
        return bool(getattr(node, "_saved_training", True)) or any(depends[1:])
    return True


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
    if y.grad_fn is None:
        own = (y,) if y.requires_grad and y is not x else ()
        return GraphFacts(own, (), None, y is x, None, ())
    known_edges: dict[_Edge, Tensor] = {(t.grad_fn, t.output_nr): t for t in known if t.grad_fn is not None}
    known_leaves = {id(t) for t in known if t.grad_fn is None}
    leaves: dict[int, Tensor] = {}
    met: dict[int, Tensor] = {}
    captured: str | None = None
    smooth_because: str | None = None
    kinked: list[Any] = []
    depends: dict[Any, bool] = {}  # node -> does it depend on x? Holding the nodes keeps their identity.
    stack: list[tuple[Any, bool]] = [(y.grad_fn, False)]
    while stack:
        node, visited = stack.pop()
        if node in depends and not visited:
            continue
        if isinstance(node, _Leaf):
            variable = node.variable
            depends[node] = variable is x
            if variable is not x:
                (met if id(variable) in known_leaves else leaves)[id(variable)] = variable
            continue
        edges = node.next_functions
        if not visited:
            if born_after is not None and not _is_cached_cast(node):
                number = node._sequence_nr()
                # Numbers are unique in a thread. (On a GPU, derivatives inside of f are another thread's.)
                foreign = not x.is_cuda and (number >= born_before or number in numbers)
                numbers.add(number)
                if number < born_after or foreign:
                    captured = captured or node.name()
                    depends[node] = False
                    continue
            depends[node] = False
            stack.append((node, True))
            for edge in edges:
                if edge in known_edges:
                    met[id(known_edges[edge])] = known_edges[edge]
                elif edge[0] is not None:
                    stack.append((edge[0], False))
            continue
        inputs_depend = [n is not None and (n, nr) not in known_edges and depends[n] for n, nr in edges]
        depends[node] = any(inputs_depend)
        if depends[node] and smooth_because is None:
            name = node.name()
            kind = _kind(name)
            if _is_smooth(node, kind, inputs_depend):
                smooth_because = name
            elif kind in _KINKED:
                kinked.append(node)
    kinks = None if smooth_because is not None else _kink_values(kinked)
    return GraphFacts(tuple(leaves.values()), tuple(met.values()), captured, depends[y.grad_fn], smooth_because, kinks)


def _kink_values(kinked: list[Any]) -> tuple[Tensor, ...] | None:
    values = []
    for node in sorted(kinked, key=lambda n: n._sequence_nr()):
        if _kind(node.name()) not in ("Relu", "LeakyRelu", "MaxPool2DWithIndices"):
            return None
        name = next(name for name in ("result1", "result", "self") if hasattr(node, f"_raw_saved_{name}"))
        # Whoever saves something else than tensors (checkpoints) computes them when they are asked for, once.
        if not isinstance(getattr(getattr(node, f"_raw_saved_{name}"), "data", None), Tensor):
            return None
        values.append(getattr(node, f"_saved_{name}").detach())  # without its history, which would keep the graph alive
    return tuple(values)


def dependence(outputs: Sequence[Tensor], known: Sequence[Tensor]) -> dict[int, Tensor]:
    """What the outputs depend on, by id: those of the known tensors that are met, and leaves that are none of them."""
    known_edges: dict[_Edge, Tensor] = {(t.grad_fn, t.output_nr): t for t in known if t.grad_fn is not None}
    reached = _reached([(t.grad_fn, t.output_nr) for t in outputs], known_edges)
    met = {}
    for edge in reached:
        tensor = known_edges.get(edge)
        if tensor is None and isinstance(edge[0], _Leaf):
            tensor = edge[0].variable
        if tensor is not None:
            met[id(tensor)] = tensor
    return met


def _reached(edges: Iterable[_Edge], last: Collection[_Edge] = ()) -> Iterator[_Edge]:
    """Every edge that autograd would go along from these, themselves included; not beyond those of `last`."""
    stack, seen = list(edges), set()
    while stack:
        edge = stack.pop()
        node = edge[0]
        if node is None:
            continue
        yield edge
        if node not in seen and edge not in last:
            seen.add(node)
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
    return _kind(node.name()) == "ToCopy" and all(isinstance(n, _Leaf) for n, _ in node.next_functions if n)


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

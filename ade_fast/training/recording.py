"""What a piece of code computes, written down as the operators that it calls, and called again without the code."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .._ops import below_autograd
from .simplify import Written, add_together, simplify

_aten = torch.ops.aten


class Replay:
    """Calls of operators, in order, from inputs to outputs; see `record`.

    given: what they take besides, which stays the same objects.
    """

    def __init__(self, graph: fx.Graph, given: Sequence[object]) -> None:
        self._run = fx.GraphModule(nn.Module(), graph).forward
        self.given = given

    def __call__(self, *inputs: object) -> Any:
        """The outputs, for other values of the inputs; without a graph."""
        with torch.no_grad(), below_autograd():
            return self._run(*inputs, *self.given)


class GraphReplay:
    """A replay as one CUDA graph: no call from the host but one.

    Its inputs are copied into memory of its own, and its outputs lie there too: they are those of the latest call. It
    draws from the very generators that it was made with.
    """

    def __init__(self, replay: Replay, inputs: Sequence[object]) -> None:
        self._inputs = [value.clone() if isinstance(value, Tensor) else value for value in inputs]
        self._graph = torch.cuda.CUDAGraph()
        for value in inputs:
            if isinstance(value, torch.Generator):
                self._graph.register_generator_state(value)
        with torch.cuda.graph(self._graph):
            self._outputs = replay(*self._inputs)

    def __call__(self, *inputs: Any) -> Any:
        for own, value in zip(self._inputs, inputs, strict=True):
            if isinstance(own, Tensor):
                own.copy_(value)
        self._graph.replay()
        return self._outputs


def as_graph(replay: Replay, inputs: Sequence[object]) -> Replay | GraphReplay:
    """The replay as a CUDA graph, where its inputs are on a GPU."""
    on_cuda = any(isinstance(value, Tensor) and value.is_cuda for value in inputs)
    return GraphReplay(replay, inputs) if on_cuda else replay


def record(compute: Callable[[], Any], inputs: Sequence[object], lasting: Sequence[Tensor]) -> tuple[Any, Replay | str]:
    """What `compute` returns, and how to get it again from other inputs, or the reason why that cannot be.

    Args:
        compute: returns tuples, lists and dictionaries of tensors and None.
        inputs: tensors, or generators, that `compute` takes from its surroundings.
        lasting: tensors that it takes too, and that stay the same objects; their values may change.
    """
    recorder = _Recorder(inputs, lasting)
    with recorder:
        outputs = compute()
    return outputs, recorder.finished(outputs)


class _Recorder(TorchDispatchMode):
    """Writes down every operator below autograd."""

    def __init__(self, inputs: Sequence[object], lasting: Sequence[Tensor]) -> None:
        super().__init__()
        self._graph = fx.Graph()
        self._given: list[object] = []
        self._refused: str | None = None
        self._nodes: dict[int, fx.Node] = {}
        self._values: dict[fx.Node, Any] = {}
        self._written = Written()
        self._alive: list[object] = []  # so that an id means one object
        self._lasting = {id(t): t for t in lasting}
        for i, value in enumerate(inputs):
            self._last_input = self._graph.placeholder(f"input_{i}")
            self._know(value, self._last_input)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if _reads(func, args):
            self._refuse(f"{func} reads a value, on which what comes next may depend")
        elif func is _aten.detach.default:  # there is no graph in a replay
            if _identity(args[0]) in self._nodes or id(args[0]) in self._lasting:
                self._know(found, self._node(args[0]))
        elif func is _aten.lift_fresh.default:  # a number of Python's
            self._lasting[id(args[0])] = args[0]
            self._know(found, self._node(args[0]))
        else:
            self._written.by(func, args, kwargs)
            self._knows_all(found, self._graph.call_function(func, *pytree.tree_map(self._node, (tuple(args), kwargs))))
        return found

    def finished(self, outputs: Any) -> Replay | str:
        nodes = pytree.tree_map(self._node, outputs)
        if self._refused is not None:
            return self._refused
        self._graph.output(nodes)
        lasting = [self._nodes[known] for known in self._lasting if known in self._nodes]
        for node, constant in simplify(self._graph, self._values, self._written, lasting):
            node.replace_all_uses_with(self._give(constant.detach()))  # without the graph of this once
        self._graph.eliminate_dead_code()
        add_together(self._graph, self._values, self._written)
        return Replay(self._graph, self._given)

    def _node(self, value: object) -> Any:
        """What stands for an argument."""
        if not isinstance(value, (Tensor, torch.Generator)):
            return value
        if (found := self._nodes.get(_identity(value))) is not None:
            return found
        if isinstance(value, torch.Generator):
            self._refuse("it draws from a generator that it was not given")
        elif id(value) not in self._lasting:
            self._refuse(f"it takes a tensor {(*value.shape,)} that no operator made")
        self._know(value, self._give(value))
        return self._nodes[_identity(value)]

    def _give(self, value: object) -> fx.Node:
        """One more input, of a constant."""
        with self._graph.inserting_after(self._last_input):
            self._last_input = self._graph.placeholder(f"given_{len(self._given)}")
        self._given.append(value)
        return self._last_input

    def _know(self, value: object, node: fx.Node) -> None:
        self._values.setdefault(node, value)
        self._nodes[_identity(value)] = node
        self._alive.append(value)

    def _knows_all(self, found: object, node: fx.Node) -> None:
        if isinstance(found, Tensor):
            self._know(found, node)
        elif isinstance(found, (list, tuple)):
            for i, part in enumerate(found):
                self._knows_all(part, self._graph.call_function(operator.getitem, (node, i)))

    def _refuse(self, why: str) -> None:
        self._refused = self._refused or why


def _reads(func: torch._ops.OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether a call tells Python what a tensor holds, or makes a shape of it."""
    if func is _aten.index.Tensor:  # its tag is for masks
        return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def _identity(value: object) -> int:
    """Of an object: generators come to operators in a new shell each time."""
    return value._cdata if isinstance(value, torch.Generator) else id(value)  # type: ignore[attr-defined]

"""An update's objective and gradients as the operators that they came to, which are then called again by themselves.

Of a small batch's update the kernels take half; the rest is Python, and autograd putting a graph together that is the
same every time. What was recorded is replayed as long as everything that it depends on but tensors' values is as it
was: the results are the same, bit for bit.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import _log
from .._mlp_ops import WeightGradients
from .._record import Record
from ..initial import Empirical
from .recording import GraphReplay, Replay, as_graph, record
from .sampler import DualSampler

RECORDED_AT = 4
"""Updates alike before one is recorded: recording takes as long as some hundred operators more."""
_MOST = 8  # recordings that are kept, of different batch sizes say; and how often they are begun again
_KNOWN = ("ade_fast", "torch", "zuko")


class Unchanged:
    """What modules consist of, attribute by attribute, at a moment: `holds` says whether they still do.

    Attributes are compared by identity, those of dictionaries (parameters, buffers, hooks) one by one; parameters and
    buffers by where their values lie and whether they want a gradient, too.

    A module's class names those that do not matter in ``passing``. tensors: parameters and buffers. learning: those of
    them that want a gradient.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._parts = [
            (part, passing, _values(part, passing)) for module in modules for part, passing in _dictionaries(module)
        ]
        found = {id(t): t for m in modules for own in (m._parameters, m._buffers) for t in own.values()}
        self.tensors = [t for t in found.values() if t is not None]
        self.learning = [t for t in self.tensors if t.requires_grad]
        self._wants = [t.requires_grad for t in self.tensors]
        self._places = [t.data_ptr() for t in self.tensors]

    def holds(self) -> bool:
        for part, passing, values in self._parts:
            now = _values(part, passing)
            # By identity: == of tensors is another thing, and equal numbers need not be the same parameter.
            if len(now) != len(values) or not all(map(operator.is_, now, values)):
                return False
        return (
            [t.data_ptr() for t in self.tensors] == self._places
            and [t.requires_grad for t in self.tensors] == self._wants
            and not any(t._backward_hooks for t in self.learning)
        )


def _dictionaries(module: nn.Module) -> Iterator[tuple[dict[str, object], frozenset[str]]]:
    own = vars(module)
    yield own, getattr(type(module), "passing", frozenset())
    yield from ((value, frozenset()) for value in own.values() if isinstance(value, dict))


def _values(part: dict[str, object], passing: frozenset[str]) -> list[object]:
    return [value for name, value in part.items() if name not in passing] if passing else list(part.values())


class Captured:
    """The recordings of an objective's gradients, kept apart by what they were computed with.

    why_not: why there are none, and will be none; or None.
    """

    def __init__(self) -> None:
        self.why_not: str | None = None
        self._calls: dict[object, int] = {}
        self._replays: dict[object, Replay | GraphReplay] = {}
        self._unchanged: Unchanged | None = None
        self._patience = _MOST

    def __deepcopy__(self, memo: object) -> Captured:
        return Captured()  # recordings are of one model's tensors

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Captured, ()

    @property
    def recorded(self) -> int:
        """How many recordings there are."""
        return len(self._replays)

    def __call__(
        self,
        key: object,
        module: nn.Module,
        refuses: Callable[[], str | None],
        compute: Callable[[Sequence[Tensor]], tuple[Any, Sequence[Tensor | None]]],
        inputs: Sequence[object],
    ) -> tuple[Any, Sequence[tuple[Tensor, Tensor]]] | None:
        """What `compute` has found, by itself or by a recording, and pairs of parameters and gradients; or None.

        Args:
            key: what it depends on besides the inputs' values and `module`.
            module: on whose attributes and tensors it depends, see `Unchanged`.
            refuses: why this module's is not to be recorded, or None; asked whenever it has changed.
            compute: given the parameters that want a gradient, returns what it has found and their gradients.
            inputs: see `record`.
        """
        if self.why_not is not None:
            return None
        key = (key, torch.get_default_dtype(), torch.get_float32_matmul_precision(), *map(_kind, inputs))
        unchanged = self._unchanged
        if unchanged is None or not unchanged.holds():
            unchanged = self._begin(module)
            self.why_not = self.why_not or refuses()
        replay = self._replays.get(key)
        if replay is None and self.why_not is None:
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] >= RECORDED_AT:
                return self._record(key, unchanged, lambda: compute(unchanged.learning), inputs)
        if replay is None:
            return None
        found, gradients = replay(*inputs)
        return found, _paired(unchanged.learning, gradients)

    def _record(
        self, key: object, unchanged: Unchanged, compute: Callable, inputs: Sequence[object]
    ) -> tuple[Any, Sequence[tuple[Tensor, Tensor]]]:
        (found, gradients), replay = record(compute, inputs, unchanged.tensors)
        if isinstance(replay, str):
            self.why_not = replay
        else:
            while len(self._replays) >= _MOST:
                del self._replays[next(iter(self._replays))]
            self._replays[key] = as_graph(replay, inputs)
        return found, _paired(unchanged.learning, gradients)

    def _begin(self, module: nn.Module) -> Unchanged:
        self._patience -= bool(self._replays)
        if not self._patience:
            self.why_not = "its modules were changed again and again between updates"
        self._unchanged = Unchanged(list(module.modules()))
        self._calls.clear()
        self._replays.clear()
        return self._unchanged


def _paired(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
    return [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]


class _Gradients(torch.autograd.Function):
    """A scalar of parameters that has given gradients."""

    @staticmethod
    def forward(ctx, gradients: Sequence[Tensor], like: Tensor, *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return like.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx, _: Tensor):
        return None, None, *ctx.gradients


def accumulate(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Adds gradients to parameters' as a backward pass does, so that what is hooked to it takes its part."""
    if pairs:
        parameters, gradients = zip(*pairs, strict=True)
        _Gradients.apply(gradients, gradients[0], *parameters).backward()


def _kind(value: object) -> object:
    """Of an input, all but its values."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, torch.Generator):  # a CUDA graph has its state built in
        return value.device, value._cdata if value.device.type == "cuda" else None
    return value


def watched_elsewhere() -> bool:
    """Whether somebody sees, or changes, what is called: modes, transforms, hooks, autocast, and records of ours."""
    return bool(
        torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
        or torch.is_inference_mode_enabled()
        or torch.is_anomaly_enabled()
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        or torch.compiler.is_compiling()
        or _log.LEVEL
        or WeightGradients.current() is not None
        or Record.current() is not None
    )


def refusal(sampler: DualSampler) -> str | None:
    """Why updates of this sampler are not recorded unasked: its parts are not known to call the same each time."""
    for module in sampler.modules():
        if not _is_known(type(module)) or isinstance(module, Empirical):
            return (
                f"{type(module).__name__} is not known to call the same operators each time (capture=True records it)"
            )
    return None


@functools.cache
def _is_known(kind: type[nn.Module]) -> bool:
    return kind.__module__.partition(".")[0] in _KNOWN

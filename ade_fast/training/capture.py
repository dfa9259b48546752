"""An update's objective and gradients as the operators that they came to, which are then called again by themselves.

Of a small batch's update the kernels take half; the rest is Python, and autograd putting a graph together that is the
same every time. What was recorded is replayed as long as everything that it depends on but tensors' values is as it
was: the results are the same, bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils import _pytree as pytree

from .. import _log
from .._mlp_ops import WeightGradients
from .._record import Record
from ..fields import is_tampered_with, matmul_precision, memory_setting, torch_settings
from ..initial import Empirical
from .accumulation import Accumulators, Gradients, are_apart
from .held import Held, Part
from .recording import GraphReplay, Replay, as_graph, record

RECORDED_AT = 4
"""Updates alike before one is recorded: recording takes as long as some hundred operators more."""
_MOST = 8  # recordings, of different batch sizes say
_PATIENCE = 9  # beginnings, the first one too, of which none led to so many replays:
_WORTH_IT = 100
_KNOWN = ("ade_fast.", "zuko.", "torch.nn.modules.", "torch.nn.utils.parametri")


class Unchanged:
    """What modules consist of at a moment, attribute by attribute: `holds` says whether they still do.

    Their attributes are compared by identity, and so are the entries of those that are dictionaries (parameters,
    buffers, hooks) or lists, the attributes of their classes, and torch's functions; parameters and buffers by where
    and how their values lie and whether they want a gradient, too. A module's class names those that do not matter in
    ``passing``.

    tensors: parameters and buffers. learning: those of them that want a gradient. accumulators: of these.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._held = Held(_parts(modules))
        self._kinds = [(module, type(module)) for module in modules]
        found = {id(t): t for m in modules for own in (m._parameters, m._buffers) for t in own.values()}
        self.tensors = [t for t in found.values() if t is not None]
        self.learning = [t for t in self.tensors if t.requires_grad]
        self.accumulators = Accumulators(self.learning)
        self._wants = [t.requires_grad for t in self.tensors]
        self._places = list(map(_place, self.tensors))

    def holds(self) -> bool:
        return (
            self._held.is_there()
            and list(map(_place, self.tensors)) == self._places
            and [t.requires_grad for t in self.tensors] == self._wants
            and not any(t._backward_hooks for t in self.learning)
            and all(type(module) is kind for module, kind in self._kinds)
        )


def _place(tensor: Tensor) -> object:
    """Where its values lie, and how."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _parts(modules: Sequence[nn.Module]) -> Iterator[tuple[Part, frozenset[str]]]:
    nothing: frozenset[str] = frozenset()
    for module in modules:
        own = vars(module)
        yield own, getattr(type(module), "passing", nothing)
        yield from ((value, nothing) for value in own.values() if isinstance(value, (dict, list)))
    for kind in dict.fromkeys(kind for module in modules for kind in type(module).__mro__[:-1]):
        yield vars(kind), nothing
    yield vars(F), nothing


class _Recording(NamedTuple):
    """apart: whether the gradients that are found `are_apart`, and can be handed on as they are."""

    replay: Replay | GraphReplay
    apart: bool


class Captured:
    """The recordings of an objective's gradients, kept apart by what they were computed with.

    why_not: why there are none, and will be none; or None.
    """

    def __init__(self) -> None:
        self.why_not: str | None = None
        self._calls: dict[object, int] = {}
        self._replays: dict[object, _Recording] = {}
        self._replayed = 0
        self._unchanged: Unchanged | None = None
        self._patience = _PATIENCE

    def __deepcopy__(self, memo: object) -> Captured:
        return Captured()  # recordings are of one model's tensors

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Captured, ()

    def let_go(self) -> None:
        """Forgets modules that have changed: autograd's nodes, which are held for them, know shapes of old."""
        if self._unchanged is not None and not self._unchanged.holds():
            self._unchanged = None
            self._replays.clear()

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
    ) -> tuple[Any, Gradients] | None:
        """What `compute` has found, by itself or by a recording, and the parameters' gradients; or None.

        Args:
            key: what it depends on besides the inputs' values and `module`.
            module: on whose attributes and tensors it depends, see `Unchanged`.
            refuses: why this module's is not to be recorded, or None; asked whenever it has changed.
            compute: given the parameters that want a gradient, returns what it has found and their gradients.
            inputs: see `record`.
        """
        if self.why_not is not None:
            return None
        unchanged = self._unchanged
        if unchanged is None or not unchanged.holds():
            unchanged = self._begin(module)
            self.why_not = self.why_not or refuses()
        key = (key, _settings(), *map(_kind, inputs))
        if (known := self._replays.get(key)) is not None:
            self._replayed += 1
            found, gradients = known.replay(*inputs)
            own = known.apart and _are_different(gradients) and not unchanged.accumulators.are_watched()
            return found, Gradients(unchanged.tensors, unchanged.learning, gradients, own)
        if self.why_not is not None or len(self._replays) == _MOST:
            return None
        self._calls[key] = self._calls.get(key, 0) + 1
        if self._calls[key] < RECORDED_AT:
            return None
        (found, gradients), recording = record(lambda: compute(unchanged.learning), inputs, unchanged.tensors)
        if isinstance(recording, str):
            self.why_not = recording
        else:
            replay = as_graph(recording, inputs)
            others = [*pytree.tree_leaves(found), *recording.given, *inputs, *unchanged.tensors]
            apart = replay is recording and are_apart(gradients, unchanged.learning, others)
            self._replays[key] = _Recording(replay, apart)
        return found, Gradients(unchanged.tensors, unchanged.learning, gradients)

    def _begin(self, module: nn.Module) -> Unchanged:
        self._patience = _PATIENCE if self._replayed >= _WORTH_IT else self._patience - 1
        if not self._patience:
            self.why_not = "its modules were changed again and again between updates"
        self._unchanged = None  # lets go of what it holds
        self._unchanged = Unchanged(list(module.modules()))
        self._calls.clear()
        self._replays.clear()
        self._replayed = 0
        return self._unchanged


def _are_different(gradients: Sequence[Tensor | None]) -> bool:
    """Whether none is handed out twice: equal nodes of a recording have become one."""
    given = [id(g) for g in gradients if g is not None]
    return len(given) == len(set(given))


def _kind(value: object) -> object:
    """Of an input, all but its values."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, torch.Generator):  # a CUDA graph has its state built in
        return value.device, value._cdata if value.device.type == "cuda" else None  # type: ignore[attr-defined]
    return value


def _settings() -> tuple[object, ...]:
    """Of torch's and of ours, on which what is called depends."""
    return (
        *torch_settings(), matmul_precision(), torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
        memory_setting(),
    )  # fmt: skip


def watched_elsewhere() -> bool:
    """Whether somebody sees, or changes, what is called: modes, transforms, hooks, autocast, and records of ours."""
    return bool(
        torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
        or torch.is_inference_mode_enabled()
        or torch.is_anomaly_enabled()
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or _has_any_global_hook()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        or torch.compiler.is_compiling()
        or _log.LEVEL
        or WeightGradients.current() is not None
        or Record.current() is not None
    )


def refusal(modules: Iterable[nn.Module], asked: bool) -> str | None:
    """Why updates of these are not recorded: what users attached to them is called once an update, and unless it was
    asked for, they have to be known to call the same operators each time."""
    for module in modules:
        kind = type(module)
        if is_tampered_with(module):
            return f"a {kind.__name__} has hooks or a forward of its own"
        if not asked and (not _is_known(kind.__module__) or isinstance(module, Empirical)):
            return f"{kind.__name__} is not known to call the same operators each time (capture=True records it)"
    return None


@functools.cache
def _is_known(python_module: str) -> bool:
    return f"{python_module}.".startswith(_KNOWN)

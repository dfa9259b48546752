"""Tensors that an unroll depends on but that autograd does not watch: whether they were written to since."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import Tensor
from torch.overrides import TorchFunctionMode


class Watch:
    """Leaf tensors (constants, frozen weights, detached parameters) and their versions, held weakly: most of those
    that an evaluation meets are temporary, and die with it."""

    def __init__(self) -> None:
        self._met: dict[int, weakref.ref[Tensor]] = {}
        self._versions: list[tuple[weakref.ref[Tensor], int]] = []

    def note(self, tensor: Tensor) -> None:
        ref = self._met.get(id(tensor))
        if tensor.is_leaf and not tensor.is_inference() and (ref is None or ref() is not tensor):
            self._met[id(tensor)] = weakref.ref(tensor)

    def with_those_of(self, other: Watch) -> Watch:
        self._met |= other._met
        return self

    def noting(self) -> TorchFunctionMode:
        """Within this block, the arguments of all functions of tensors are noted."""
        return _Noting(self.note)

    def begin(self) -> None:
        """From now on, those that are still there must not change."""
        alive = ((ref, ref()) for ref in self._met.values())
        self._versions = [(ref, tensor._version) for ref, tensor in alive if tensor is not None]
        self._met = {}

    def changed(self) -> bool:
        return any((tensor := ref()) is not None and tensor._version != version for ref, version in self._versions)


class _Noting(TorchFunctionMode):
    def __init__(self, note: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, Tensor):
                    self._note(tensor)
        return func(*args, **kwargs)

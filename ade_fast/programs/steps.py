"""Which step of a program a call is."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F

from . import following
from .bends import Kink, MaxPool, Rectifier
from .following import T
from .linear_steps import Call, Concatenation, Convolution, Linear, Map, MatMul, Pool, Reshape, Same, Scale, Step, Sum

_SAME = {T.contiguous, T.clone}
_LINEAR: list[tuple[Collection[object], type[Step]]] = [
    ({F.linear}, Linear),
    (following.MATMULS, MatMul),
    (following.ADDITIVE, Sum),
    (following.SCALING, Scale),
    (following.RESHAPES, Reshape),
    (_SAME, Same),
    ({F.avg_pool2d}, Pool),
    ({torch.cat}, Concatenation),
]
_IN_MEMORY: list[tuple[Collection[object], type[Convolution] | type[Kink]]] = [
    (following.AFFINE.keys() - {F.linear}, Convolution),
    (following.KINKS, Rectifier),
    (following.MAX_POOLS, MaxPool),
]


def step_of(call: Call, memory: torch.memory_format) -> Step:
    """The step that a call is.

    memory: the order in memory that images have in the program.

    Raises: Unsupported if there is none for it.
    """
    for functions, in_memory in _IN_MEMORY:
        if call.func in functions:
            return in_memory(call, memory)
    for functions, kind in _LINEAR:
        if call.func in functions:
            return kind(call)
    return Map(call)

"""ReLU and leaky ReLU with one bit per entry to have their slopes from (schemas: ``csrc/bind/kink.cpp``).

``kink_bend(z, out, slope) -> bits`` and ``kink_slopes(d, bits, out, slope)`` write over `out`, which may be their
input. They have no derivative: they are parts of one (program.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._ops import below_autograd, ops

_bend = ops.kink_bend.default
_slopes = ops.kink_slopes.default


def bend(z: Tensor, slope: float, over: bool) -> tuple[Tensor, Tensor]:
    """(z where z > 0, else slope · z; its bits, uint8 [⌈n/8⌉]): of a dense z, in whatever order it lies in memory.

    over: the result is written over z.
    """
    out = z if over else torch.empty_like(z)
    with below_autograd():
        return out, _bend(_in_memory(z), _in_memory(out), slope)


def bits_of(z: Tensor) -> Tensor:
    """The bits alone: not z ≤ 0."""
    return bend(z, 1.0, over=False)[1]


def bent_(d: Tensor, bits: Tensor, slope: float) -> Tensor:
    """d times the slopes, written over d, which lies in memory as the z of the bits did."""
    flat = _in_memory(d)
    with below_autograd():
        _slopes(flat, bits, flat, slope)
    return d


def _in_memory(t: Tensor) -> Tensor:
    """The entries of a dense tensor in the order of memory, [1, n]."""
    return t.as_strided((1, t.numel()), (t.numel(), 1))


def _register() -> None:
    @torch.library.register_fake("ade_fast::kink_bend")  # type: ignore[untyped-decorator]
    def fake_bend(z: Tensor, out: Tensor, slope: float) -> Tensor:
        return z.new_empty((z.numel() + 7) // 8, dtype=torch.uint8)

    @torch.library.register_fake("ade_fast::kink_slopes")  # type: ignore[untyped-decorator]
    def fake_slopes(d: Tensor, bits: Tensor, out: Tensor, slope: float) -> None:
        return None


_register()

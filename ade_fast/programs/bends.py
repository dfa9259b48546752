"""The steps of a program at which f bends: what is kept of a point is their masks, which tell f's slopes there.

A mask is a byte tensor, as small as it can be: of ReLU and leaky ReLU one bit per unit, of max pooling the place of the
largest entry within its window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .following import Unsupported, slope_of
from .kinks import bend, bent_, bits_of
from .linear_steps import Call, Step, each

_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
_IN_ONE_DIMENSION = {F.max_pool1d, torch.max_pool1d}


class Kink(Step):
    """A step with masks. memory: the order in memory that images have in the program."""

    is_own = True

    def __init__(self, call: Call, memory: torch.memory_format) -> None:
        super().__init__(call)
        self._memory = memory

    @property
    def mask_bytes(self) -> int:
        """Of one row."""
        raise NotImplementedError

    def mask_of(self, result: Tensor) -> Tensor | None:
        """The mask of a call by autograd, from its result and what it saved; None if it saved something else."""
        raise NotImplementedError

    def bend(self, z: Tensor, ours: bool) -> tuple[Tensor, Tensor]:
        """(the value at z, its mask). ours: z may be written to."""
        raise NotImplementedError

    def bent(self, u: Tensor, masks: Sequence[Tensor], ours: bool) -> Tensor:
        """The tangent, of the rows of as many evaluations as there are masks, one after another."""
        raise NotImplementedError

    def bent_back(self, d: Tensor, mask: Tensor, ours: bool) -> Tensor:
        """The tangent's transpose."""
        raise NotImplementedError

    def _dense(self, value: Tensor) -> Tensor:
        return value.contiguous(memory_format=self._memory if value.dim() == 4 else torch.contiguous_format)


class Rectifier(Kink):
    """ReLU and leaky ReLU."""

    def __init__(self, call: Call, memory: torch.memory_format) -> None:
        super().__init__(call, memory)
        self._slope = slope_of(call.func, call.args, call.kwargs)

    @property
    def mask_bytes(self) -> int:
        return -(-math.prod(self.event) // 8)

    def mask_of(self, result: Tensor) -> Tensor | None:
        return bits_of(self._dense(result.detach()))  # whose sign is that of the argument

    def bend(self, z: Tensor, ours: bool) -> tuple[Tensor, Tensor]:
        dense = self._dense(z)
        return bend(dense, self._slope, over=ours or dense is not z)

    def bent(self, u: Tensor, masks: Sequence[Tensor], ours: bool) -> Tensor:
        u = self._to_write(u, ours)
        for part, mask in zip(u.chunk(len(masks)), masks, strict=True):
            bent_(part, mask, self._slope)
        return u

    def bent_back(self, d: Tensor, mask: Tensor, ours: bool) -> Tensor:
        return bent_(self._to_write(d, ours), mask, self._slope)

    def _to_write(self, value: Tensor, ours: bool) -> Tensor:
        dense = self._dense(value)
        return dense if ours or dense is not value else dense.clone()


class MaxPool(Kink):
    """In one or two dimensions (one is taken for images of height 1): what it lets through is a gather, by the indices
    that autograd would save, and back a scatter."""

    def __init__(self, call: Call, memory: torch.memory_format) -> None:
        super().__init__(call, memory)
        _, func, args, kwargs, result = call
        n = 1 if func in _IN_ONE_DIMENSION else 2
        if args[0].dim() != n + 2:
            raise Unsupported("max pooling without a batch")
        given = dict(zip(_POOL, args, strict=False)) | kwargs
        kernel = each(given["kernel_size"], n)
        stride, padding, dilation = (each(given.get(name) or 0, n) for name in _POOL[2:5])

        def whole(numbers: list[int], other: int) -> list[int]:
            return [other] * (2 - n) + numbers

        kernel, padding = whole(kernel, 1), whole(padding, 0)
        stride = whole(stride, 1) if any(stride) else kernel
        dilation = whole(dilation if any(dilation) else [1] * n, 1)
        self._numbers = (kernel, stride, padding, dilation, bool(given.get("ceil_mode", False)))
        self._channels, *sizes = self.event
        self._in, self._out = whole(list(self.events[0][1:]), 1), whole(sizes, 1)
        self._last = n == 2 and memory == torch.channels_last
        # Of a place: a power of two, so that no place is in two bytes.
        self._bits = next(bits for bits in (1, 2, 4, 8, 32) if math.prod(kernel) <= 2**bits)
        # An index into [height · width] is that of its window's first place, which may lie in the padding, and its
        # place's steps from there. (Two places have the same steps where one of them is never within the image.)
        width = self._in[1]
        rows, columns = (
            torch.arange(n, device=result.device) * by - outside
            for n, by, outside in zip(self._out, stride, padding, strict=True)
        )
        first = rows[:, None] * width + columns
        self._first = first[..., None] if self._last else first
        down, along = (torch.arange(n, device=result.device) * by for n, by in zip(kernel, dilation, strict=True))
        self._steps = (down[:, None] * width + along).flatten()
        most = (kernel[0] - 1) * dilation[0] * width + (kernel[1] - 1) * dilation[1]
        self._place = self._steps.new_zeros(most + 1, dtype=torch.uint8 if self._bits <= 8 else torch.int32)
        self._place[self._steps] = torch.arange(len(self._steps), dtype=self._place.dtype, device=result.device)
        self._shifts = torch.arange(0, 8, self._bits, dtype=torch.uint8, device=result.device)

    @property
    def mask_bytes(self) -> int:
        return -(-math.prod(self.event) * self._bits // 8)

    def mask_of(self, result: Tensor) -> Tensor | None:
        node: Any = result.grad_fn
        if len(self.event) == 2:  # the pooling of images of height 1 is behind a view
            node = node.next_functions[0][0]
        indices = getattr(node, "_saved_result1", None)
        return None if indices is None else self._mask(indices)

    def bend(self, z: Tensor, ours: bool) -> tuple[Tensor, Tensor]:
        value, indices = torch.ops.aten.max_pool2d_with_indices(self._image(z), *self._numbers)
        return value.reshape(len(z), *self.event), self._mask(indices)

    def bent(self, u: Tensor, masks: Sequence[Tensor], ours: bool) -> Tensor:
        parts = self._image(u).chunk(len(masks))
        found = [self._picked(part, mask) for part, mask in zip(parts, masks, strict=True)]
        return (found[0] if len(found) == 1 else torch.cat(found)).reshape(len(u), *self.event)

    def bent_back(self, d: Tensor, mask: Tensor, ours: bool) -> Tensor:
        memory = torch.channels_last if self._last else torch.contiguous_format
        x = torch.empty((len(d), self._channels, *self._in), dtype=d.dtype, device=d.device, memory_format=memory)
        back = torch.ops.aten.max_pool2d_with_indices_backward(
            self._dense(d).reshape(len(d), self._channels, *self._out), x, *self._numbers, self._indices(mask, len(d))
        )
        return back.reshape(len(d), *self.events[0])

    def _image(self, value: Tensor) -> Tensor:
        """[N, channels, height, width], in the program's order."""
        return self._dense(value).reshape(len(value), self._channels, *self._in)

    def _picked(self, u: Tensor, mask: Tensor) -> Tensor:
        """u [N, channels, *in] at the mask's places, [N, channels, *out]."""
        indices = self._in_memory(self._indices(mask, len(u)))
        if self._last:
            chosen = self._in_memory(u).flatten(1, 2).gather(1, indices.flatten(1, 2))
            return chosen.view(indices.shape).permute(0, 3, 1, 2)
        return u.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)

    def _in_memory(self, images: Tensor) -> Tensor:
        """Dimensions in the order of memory."""
        return images.permute(0, 2, 3, 1) if self._last else images

    def _mask(self, indices: Tensor) -> Tensor:
        """From indices into [height · width], [N, channels, *out]."""
        places = self._place[self._in_memory(indices) - self._first].flatten()
        if self._bits > 8:
            return places.view(torch.uint8)
        per_byte = len(self._shifts)
        places = F.pad(places, (0, -len(places) % per_byte)).view(-1, per_byte)
        return (places << self._shifts).sum(1, dtype=torch.uint8)

    def _indices(self, mask: Tensor, rows: int) -> Tensor:
        """The indices again, int64 [N, channels, *out]."""
        if self._bits > 8:
            places = mask.view(torch.int32)
        else:
            places = (mask[:, None] >> self._shifts & (2**self._bits - 1)).flatten()
        places = places[: rows * math.prod(self.event)].int()  # bytes would be taken for truth values
        sizes = (*self._out, self._channels) if self._last else (self._channels, *self._out)
        indices = self._first + self._steps[places].view(rows, *sizes)
        return indices.permute(0, 3, 1, 2) if self._last else indices

"""Rows: the memory layout in which the step kernels see a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Maps a batch of events [B, *event] to contiguous rows [B, D] and back, without a copy where strides allow.

    A channels-last batch keeps its order in memory: its rows run over (H, W, C), so that potentials built of
    channels-last convolutions never pay for a transposition.
    """

    event: tuple[int, ...]
    channels_last: bool = False

    @classmethod
    def of(cls, x: Tensor) -> Layout:
        event = tuple(x.shape[1:])
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        channels_last = x.dim() in formats and not x.is_contiguous() and x.is_contiguous(memory_format=formats[x.dim()])
        return cls(event, channels_last)

    @property
    def size(self) -> int:
        return math.prod(self.event)

    def rows(self, x: Tensor) -> Tensor:
        """[B, *event] -> [B, D], contiguous."""
        if x.dim() == 2:  # as they are: a view costs small batches as much as a step
            return x.contiguous()
        if self.channels_last:
            x = x.movedim(1, -1)
        return x.reshape(x.shape[0], self.size).contiguous()

    def events(self, rows: Tensor) -> Tensor:
        """[B, D] -> [B, *event]: a view, or the rows themselves."""
        if len(self.event) == 1:
            return rows
        if self.channels_last:
            return rows.view(rows.shape[0], *self.event[1:], self.event[0]).movedim(-1, 1)
        return rows.view(rows.shape[0], *self.event)

"""Exponential moving averages of the players: the equilibrium is what they circle around."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

M = TypeVar("M", bound=nn.Module)
Tensors = tuple[Tensor, ...] | list[Tensor]


class EMA(AveragedModel, Generic[M]):
    """A running average of a module's parameters; ``ema.module`` is the averaged copy.

    After n updates the decay is min(decay, n / (n + 10)): early averages forget the random start quickly.
    Buffers (spectral norm's vectors, batch statistics) are copied, not averaged.

    Args:
        module: the module to follow; it is copied.
        decay: weight of the past per update, in [0, 1).

    Raises: ValueError: decay is not in [0, 1).
    """

    module: M

    def __init__(self, module: M, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay must be in [0, 1), got {decay!r}")

        @torch.no_grad()
        def average(averaged: Tensors, current: Tensors, n_averaged: Tensor | int) -> None:
            n = int(n_averaged)
            torch._foreach_lerp_(averaged, current, 1 - min(decay, n / (n + 10)))

        super().__init__(module, multi_avg_fn=average)
        self.requires_grad_(False)
        self.module.eval()  # never trained: spectral norm runs no power iteration of its own in it

    def update(self, module: nn.Module) -> None:
        """Takes one step towards ``module``'s parameters, and its buffers, a replay buffer among them, as they are."""
        if any(True for _ in module.parameters()):
            self.update_parameters(module)
            return
        for averaged, current in zip(self.module.buffers(), module.buffers(), strict=True):
            averaged.copy_(current)

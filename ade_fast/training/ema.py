"""Exponential moving averages of the players: the equilibrium is what they circle around."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .held import Held

M = TypeVar("M", bound=nn.Module)


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

        super().__init__(module)
        self.decay = decay
        self._averaged: _Tensors | None = None
        self._followed: _Tensors | None = None
        self.requires_grad_(False)
        self.module.eval()  # never trained: spectral norm runs no power iteration of its own in it

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Torch's own walks through all modules several times, which takes longer than a small update's kernels."""
        self._averaged = averaged = _Tensors.of(self.module, self._averaged)
        self._followed = followed = _Tensors.of(model, self._followed)
        if averaged.parameters:
            n = int(self.n_averaged)
            weight = 1 - min(self.decay, n / (n + 10)) if n else 1.0
            try:
                torch._foreach_lerp_(averaged.parameters, followed.parameters, weight)
            except RuntimeError:
                _check_alike(averaged, followed)
                raise
        for mine, current in zip(averaged.buffers, followed.buffers, strict=True):
            mine.copy_(current)
        self.n_averaged += 1

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_averaged": None, "_followed": None}  # a copy has tensors of its own

    def update(self, module: nn.Module) -> None:
        """Takes one step towards ``module``'s parameters, and its buffers, a replay buffer among them, as they are."""
        self.update_parameters(module)


def _check_alike(averaged: _Tensors, followed: _Tensors) -> None:
    for mine, current in zip(averaged.parameters, followed.parameters, strict=True):
        kinds = [(tuple(t.shape), t.dtype, t.device) for t in (mine, current)]
        if kinds[0] != kinds[1]:
            ours, theirs = (f"{kind} on {device}, shape {shape}" for shape, kind, device in kinds)
            raise ValueError(f"EMA: module must have the average's parameters ({ours}), got {theirs}")


class _Tensors:
    """A module's own parameters and buffers, found once, as long as it consists of the same."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        parts = [(part._modules, part._parameters, part._buffers) for part in module.modules()]
        self._held = Held((own, frozenset()) for part in parts for own in part)
        self.parameters: list[Tensor] = list(module.parameters())
        self.buffers: list[Tensor] = list(module.buffers())

    @classmethod
    def of(cls, module: nn.Module, known: _Tensors | None) -> _Tensors:
        """Those that are known, or found anew."""
        if known is not None and known._module is module and known._held.is_there():
            return known
        return cls(module)

"""What an unroll writes down for its diagnostics, step by step, while it runs and while it goes back."""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch
from torch import Tensor

from ._current import Current


class Unrolled(NamedTuple):
    """What one operator made of a whole unroll, by steps: x, momenta, gradient [n, B, D]; value [n, B]."""

    x: Tensor
    momenta: Tensor
    value: Tensor
    gradient: Tensor


class Record(Current):
    """One unroll: what every evaluation of ∇f and every kick was, and the adjoint's norms of the backward pass.

    x, gradient: [B, D] of each evaluation at t = 0 … n - 1; value: [B]. momenta: v after each kick, [B, L]. kicks: the
    (S_v, g_v) of each kick where there are networks. whole: in place of those lists, where one operator makes them all.
    gains: log-determinants of drifts by a network, [B]. with_momentum: whether the state that steps hand on has one.
    """

    _place = threading.local()

    def __init__(self) -> None:
        self.x: list[Tensor] = []
        self.value: list[Tensor] = []
        self.gradient: list[Tensor] = []
        self.momenta: list[Tensor] = []
        self.whole: Unrolled | None = None
        self.kicks: list[tuple[Tensor | None, Tensor]] = []
        self.gains: list[Tensor] = []
        self.with_momentum = True
        self._norms: dict[int, Tensor] = {}

    def stacked(self, name: str) -> Tensor:
        """x, value, gradient or momenta as one tensor, at least in float32."""
        values: Tensor
        values = torch.stack(getattr(self, name)) if self.whole is None else getattr(self.whole, name)
        return values.float() if values.dtype == torch.bfloat16 else values

    def evaluated(self, x: Tensor, value: Tensor, gradient: Tensor) -> None:
        self.x.append(x.detach())
        self.value.append(value.detach())
        self.gradient.append(gradient.detach())

    def went_back(self, t: int, dx: Tensor, dv: Tensor | None = None) -> None:
        """dx, dv: cotangents of x_t and of the momentum that kick t begins with, rows."""
        norm = torch.linalg.vector_norm(dx, dim=1)
        self._norms[t] = norm if dv is None else torch.hypot(norm, torch.linalg.vector_norm(dv, dim=1))

    def end_backward(self) -> None:
        """After `went_back` of all steps; nothing where a program has not called it."""
        norms, self._norms = self._norms, {}
        if norms:
            self.after_backward(torch.stack([norms[t] for t in sorted(norms)]))

    def unrolled(self, x: Tensor, momenta: Tensor, value: Tensor, gradient: Tensor) -> None:
        """All of it from one operator, by steps."""
        self.whole = Unrolled(x, momenta, value, gradient)

    def end_fused_backward(self, norms: Tensor) -> None:
        """norms: of dx and of dv before each kick, [n, 2, B]."""
        dx, dv = norms.unbind(1)
        self.after_backward(dx, dv if self.with_momentum else None)

    def after_backward(self, norm: Tensor, other: Tensor | None = None) -> None:
        """Norms of (dx, dv) before each kick, [n, B]; or of dx and, other, of dv."""
        raise NotImplementedError

    def forget(self) -> None:
        """What the forward pass has written down: the backward pass keeps the record alive, and needs none of it."""
        self.x, self.value, self.gradient, self.momenta, self.whole = [], [], [], [], None
        self.kicks, self.gains = [], []

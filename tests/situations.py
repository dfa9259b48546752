"""What the tests of situations around the layers share: a small f, an unroll by the layer and by autograd alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import DOUBLE as D
from torch import Tensor, nn

import ade_fast as ade

every_memory = pytest.mark.parametrize("memory", ["graph", "states"])
every_activation = pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU], ids=["silu", "relu"])
STEP = torch.tensor(0.3, dtype=D)


def net(activation: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 7), activation(), nn.Linear(7, 5), activation(), nn.Linear(5, 1)).double()


def start() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 2, dtype=D), torch.randn(5, 2, dtype=D)


def eager(potential: Callable, x0: Tensor, v0: Tensor, n_steps: int = 3) -> Tensor:
    """A loss of leapfrog on autograd's graph, f called once a step, as the layers do."""
    x, v = x0.detach().requires_grad_(), v0
    for t in range(n_steps + 1):
        (grad,) = torch.autograd.grad(potential(x).sum(), x, create_graph=True)
        v = v + (0.5 if t in (0, n_steps) else 1.0) * STEP * grad
        x = x + STEP * v if t < n_steps else x
    return x.sin().sum() + v.square().sum()


def ours(potential: Callable, x0: Tensor, v0: Tensor, n_steps: int = 3, **options) -> Tensor:
    out = ade.Leapfrog(n_steps, STEP, **options)(potential, x0, v0)
    return out.x.sin().sum() + out.v.square().sum()


def assert_same(found, wanted) -> None:
    """None and zeros are the same derivative."""
    assert any(w is not None and w.abs().max() > 1e-4 for w in wanted), "there is something to compare"
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if a is not None or b is not None:
            a, b = (torch.zeros_like(b) if a is None else a), (torch.zeros_like(a) if b is None else b)
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, i=i: f"gradient {i}: {m}")

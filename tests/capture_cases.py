"""Models, data and comparisons that the tests of recorded updates share."""

from __future__ import annotations

import warnings

import torch
from torch import nn

import ade_fast as ade
from ade_fast.training.capture import RECORDED_AT

DIM = 2
UPDATES = RECORDED_AT + 6


def model_of(capture: bool | None = None, dynamics=None, initial=None, potential=None, **options) -> ade.ADE:
    torch.manual_seed(0)
    potential = ade.MLPPotential(DIM, hidden=(32, 32)) if potential is None else potential()
    initial = ade.initial.PlanarFlow(DIM, 3) if initial is None else initial()
    dynamics = ade.Leapfrog(3, 0.1) if dynamics is None else dynamics()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ade.ADE(potential, ade.DualSampler(initial, dynamics), capture=capture, **options)


def data_of(n: int = 24, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


def with_base():
    return ade.WithBase(ade.MLPPotential(DIM, hidden=(32,), activation="silu"), 0.0, 2.0)


def spectral():
    f = ade.MLPPotential(DIM, hidden=(32, 32))
    for layer in f.layers:
        if isinstance(layer, nn.Linear):
            nn.utils.parametrizations.spectral_norm(layer)
    return f


def alike(one: ade.ADE, other: ade.ADE, updates: int = UPDATES, change=None, sizes=(24,)) -> None:
    """Both go the same way, bit for bit; ``change(model, update)`` is done to both before each update."""
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    for update in range(updates):
        metrics = []
        for model, generator in zip((one, other), generators, strict=True):
            if change is not None:
                change(model, update)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data = data_of(sizes[update % len(sizes)], update)
                metrics.append(model.step(data, generator=generator))
        assert metrics[0] == metrics[1], update
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or (torch.equal(p.grad, q.grad) and p.grad.stride() == q.grad.stride()), name
    for p, q in zip(one.buffers(), other.buffers(), strict=True):
        assert torch.equal(p, q)

"""Weights of the data in the objective."""

import pytest
import torch
from cases import DOUBLE as D

import ade_fast as ade


def player(**options) -> ade.ADE:
    torch.manual_seed(0)
    potential = ade.WithBase(ade.MLPPotential(2, (32,), "silu"), 0.0, 2.0).double()
    initial = ade.initial.SplineFlow(2) if "coverage" in options else ade.initial.Gaussian(2, learnable=True)
    return ade.ADE(potential, ade.DualSampler(initial, ade.Leapfrog(2, 0.1)).double(), **options)


@pytest.mark.parametrize("options", [{}, {"bound": "importance"}, {"coverage": 0.1}, {"value_penalty": 0.1}])
def test_whole_weights_are_repeated_data(options: dict) -> None:
    model, data = player(**options), torch.randn(8, 2, dtype=D)
    f = model.potential
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0, 3.0, 1.0, 1.0], dtype=D)
    plain, weighted = (model.loss(data, weights=w, generator=torch.Generator().manual_seed(1)) for w in (None, weights))
    change = (f(data) * (weights / weights.sum() - 1 / 8)).sum()
    torch.testing.assert_close(weighted - plain, change, rtol=1e-10, atol=1e-10)
    parameters = list(f.parameters())
    a, b, c = (
        torch.autograd.grad(t, parameters, retain_graph=True, allow_unused=True) for t in (weighted, plain, change)
    )
    for found, rest, more in zip(a, b, c, strict=True):
        torch.testing.assert_close(found, rest + more, rtol=1e-9, atol=1e-9)


def test_a_step_takes_weights_and_forgets_them() -> None:
    model, data = player(sampler_steps=2), torch.randn(8, 2, dtype=D)
    metrics = model.step(data, weights=torch.rand(8))
    assert metrics["f_data"] and model._data_weights is None


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        ([1.0] * 8, TypeError, "must be a floating-point tensor \\(8,\\), got list"),
        (torch.ones(8, dtype=torch.long), TypeError, "got torch.int64"),
        (torch.ones(8, 1), ValueError, "must have shape \\(8,\\), one for each of the data, got \\(8, 1\\)"),
        (torch.zeros(8), ValueError, "with a positive sum"),
        (-torch.ones(8), ValueError, "must be finite and >= 0"),
        (torch.full((8,), float("nan")), ValueError, "must be finite and >= 0"),
    ],
)
def test_mistakes_are_one_sentence(weights, error, words: str) -> None:
    with pytest.raises(error, match=f"ADE: weights {words}" if words.startswith("must") else words):
        player().loss(torch.randn(8, 2, dtype=D), weights=weights)

"""One optimizer of the user's for both players, around `ADE(optimizer=False)`; and what counts as points."""

import copy

import numpy as np
import pytest
import torch
from training_cases import generator

import ade_fast as ade


def players():
    torch.manual_seed(0)
    potential = ade.WithBase(ade.MLPPotential(2, (32, 32), "silu"), 0.0, 3.0)
    return potential, ade.DualSampler(ade.initial.SplineFlow(2), ade.Leapfrog(2, 0.1))


def test_one_optimizer_with_two_groups_moves_as_two_do():
    """By Adam, whose steps are each parameter's own; ascent on f alone."""
    x = torch.randn(64, 2, generator=generator())
    one = ade.ADE(*players(), optimizer=False)
    two = ade.ADE(
        copy.deepcopy(one.potential),
        copy.deepcopy(one.sampler),
        potential_optimizer=lambda p: torch.optim.Adam(p, 2e-3, maximize=True),
        sampler_optimizer=lambda p: torch.optim.Adam(p, 1e-3),
    )
    optimizer = torch.optim.Adam(one.parameter_groups(potential={"lr": 2e-3}), 1e-3)
    for seed in range(3):
        optimizer.zero_grad()
        one.loss(x, generator=generator(seed)).backward()
        optimizer.step()
        two.step(x, generator=generator(seed))
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
    grads = [p.grad.abs().sum() > 0 for p in one.potential_parameters()]
    assert all(grads[:-1]) and not grads[-1]  # the last: f's offset, which the objective does not see
    assert one.potential_optimizer is None and one.sampler_optimizer is None


def test_the_recipe_takes_it_and_step_says_that_there_is_no_optimizer():
    model = ade.recipe(*players(), optimizer=False)
    assert [group["maximize"] for group in model.parameter_groups()] == [True, False]
    with pytest.raises(ValueError, match=r"ADE.step: there are no optimizers \(optimizer=False\)"):
        model.step(torch.randn(8, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"optimizer": torch.optim.Adam}, TypeError, "optimizer must be True or False, got type: .* parameter_groups"),
        ({"optimizer": False, "sampler_optimizer": torch.optim.Adam}, ValueError, "optimizer=False excludes"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ade.ADE(*players(), **arguments)


# --- points: tensors of one dtype wherever gradients go; the same words everywhere

X = torch.randn(16, 2, generator=generator(3))
NOT_POINTS = {
    "an array": (X.numpy(), r"got ndarray: convert it with torch\.as_tensor\(\w+, dtype=torch\.float32\)"),
    "a list": (X.tolist(), r"got list: convert it with torch\.as_tensor"),
    "a batch": ([X, torch.zeros(16)], r"got list: of a DataLoader's batch give the part that holds the points"),
    "integers": (X.long(), r"got torch\.int64"),
    "another dtype": (X.double(), r"torch\.float64"),
}


def takers():
    potential, sampler = players()
    model = ade.ADE(potential, sampler)
    return {
        "ADE": model.loss,
        "ADE.step": model.step,
        "log_likelihood": lambda x: ade.metrics.log_likelihood(potential, sampler, x, n_samples=100),
        "layer": lambda x: sampler.dynamics(potential, x),
        "score_matching": lambda x: ade.estimators.score_matching(potential, x),
        "SplineFlow": sampler.initial.log_prob,
        "ksd_test": lambda x: ade.metrics.ksd_test(potential, x),
    }


@pytest.mark.parametrize("kind", NOT_POINTS)
def test_what_is_no_tensor_of_points_is_refused_in_one_way(kind):
    value, message = NOT_POINTS[kind]
    for name, take in takers().items():
        with pytest.raises(TypeError, match=message):
            take(value)
            pytest.fail(f"{name} took it")


@pytest.mark.parametrize("kind", [k for k in NOT_POINTS if k != "a batch"])
def test_a_trained_model_takes_rows_of_any_kind(kind, monkeypatch):
    model = ade.training.Trainer(ade.training.Config(hidden=(32,), validation_samples=50, likelihood_samples=50))
    model.validate()
    assert np.isfinite(model.model().log_prob(NOT_POINTS[kind][0]).numpy()).all()

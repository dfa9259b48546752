"""Annealed brackets of log Z: both ends against closed forms, what they are built of, and refusals."""

import itertools
import math

import pytest
import torch
from density_cases import DIM, Mixture, gaussian, sampler
from torch import nn

import ade_fast as ade
from ade_fast import metrics
from ade_fast.fields import MLPField
from ade_fast.metrics import bracket


def contains(found: metrics.LogZBracket, truth: float) -> bool:
    return found.lower - 3 * found.lower_se < truth < found.upper + 3 * found.upper_se


def test_bracket_from_exact_samples_holds_the_truth() -> None:
    """A mixture of far components, annealed from a Gaussian around both; tight, and a bound."""
    f, generator = Mixture(), torch.Generator().manual_seed(0)
    exact = f.sample(300, generator)
    options = {"mean": 0.0, "std": 3.0, "n_chains": 300, "generator": generator}
    found = metrics.log_z_bracket(f, exact_samples=exact, n_steps=80, **options)
    assert found.upper_is_bound and contains(found, f.log_z)
    assert found.upper - found.lower < 0.3 and max(found.lower_se, found.upper_se) < 0.1
    assert all(isinstance(value, float) for value in found[:4])


@pytest.mark.parametrize("learned", [False, True])
def test_an_f_that_does_not_depend_on_x_is_refused(learned: bool) -> None:
    level = nn.Parameter(torch.tensor(3.0)) if learned else torch.tensor(3.0)
    f = ade.WithBase(lambda x: level.expand(len(x)), torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match="log_z_bracket: potential's output does not depend on x through autograd"):
        metrics.log_z_bracket(f, samples=torch.randn(20, 2), n_steps=4, n_chains=20)


def test_each_end_is_unbiased_in_the_mean_weight() -> None:
    """With few steps and a poor step size: mean w = Z and mean 1/w = 1/Z whatever the chains do."""
    f, truth = gaussian()
    generator = torch.Generator().manual_seed(1)
    exact = f.mean + f.log_std.exp() * torch.randn(20_000, DIM, generator=generator, dtype=torch.float64)
    for step_size in (0.05, 1.9):
        found = metrics.log_z_bracket(
            f, exact_samples=exact, mean=torch.tensor([0.3, -0.8]), std=torch.tensor([1.6, 1.0]), n_steps=6,
            n_chains=20_000, n_leapfrog=2, step_size=step_size, generator=generator,
        )  # fmt: skip
        assert abs(found.lower - truth) < 3.5 * found.lower_se < 0.1
        assert abs(found.upper - truth) < 3.5 * found.upper_se < 0.1


def test_ends_are_bounds_on_average() -> None:
    """One chain's log w is below log Z, and one way back's above it, in the mean."""
    f, truth = gaussian()
    generator = torch.Generator().manual_seed(2)
    exact = f.mean + f.log_std.exp() * torch.randn(400, DIM, generator=generator, dtype=torch.float64)
    options = {"mean": 0.0, "std": 3.0, "n_steps": 4, "n_chains": 4, "step_size": 0.3, "generator": generator}
    ends = torch.tensor(
        [metrics.log_z_bracket(f, exact_samples=exact[i : i + 4], **options)[:4:2] for i in range(0, 400, 4)]
    )
    low, high = ends.mean(0).tolist()
    low_error, high_error = (ends.std(0) / 10).tolist()
    assert low + 3 * low_error < truth < high - 3 * high_error


def test_bracket_of_a_trained_kind_of_model() -> None:
    """WithBase over an MLP, annealed from the base on the fused kernels, upper end from the dual sampler."""
    f = ade.WithBase(ade.MLPPotential(DIM, (32, 32), "silu"), 0.2, torch.tensor([1.5, 1.2])).double()
    for p in f.parameters():
        p.requires_grad_(False).mul_(3)
    assert isinstance(MLPField.match(f.potential), MLPField)
    axis = torch.linspace(-12, 12, 481, dtype=torch.float64)
    truth = f(torch.cartesian_prod(axis, axis)).logsumexp(0).item() + 2 * math.log((axis[1] - axis[0]).item())
    found = metrics.log_z_bracket(f, sampler(), n_steps=40, n_chains=200, generator=torch.Generator().manual_seed(3))
    assert not found.upper_is_bound and contains(found, truth)
    assert abs(found.upper - found.lower) < 0.2
    plain = lambda x: f(x)  # noqa: E731  # neither a WithBase nor an MLP to be recognised
    samples = sampler().metropolis(f, 200, generator=torch.Generator().manual_seed(4)).x
    again = metrics.log_z_bracket(
        plain, samples=samples, n_steps=40, n_chains=200, generator=torch.Generator().manual_seed(5)
    )
    assert not again.upper_is_bound and contains(again, truth)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_trajectories_leave_their_density_invariant(beta: float) -> None:
    f, _ = gaussian()
    generator = torch.Generator().manual_seed(7)
    start = torch.zeros(4, DIM, dtype=torch.float64)
    path = bracket._Path.between("", f, start, 1.0, torch.tensor([2.0, 3.0]))
    # exp(β f) N^(1-β) is Gaussian: precisions and their means add up.
    base, own = torch.tensor([2.0, 3.0], dtype=torch.float64) ** -2, (-2 * f.log_std).exp()
    precision = (1 - beta) * base + beta * own
    mean = ((1 - beta) * base + beta * own * f.mean) / precision
    x = mean + precision**-0.5 * torch.randn(20_000, DIM, generator=generator, dtype=torch.float64)
    state = bracket._State.at(path, path.to_units(x))
    rates = []
    for _ in range(5):
        state, probability = bracket._trajectory(path, state, beta, 0.4, 2, generator)
        rates.append(probability.mean().item())
    x = path.mean + path.std * state.z
    assert min(rates) > 0.5 and max(rates) < 0.999
    assert ((x.mean(0) - mean).abs() < 4 * precision**-0.5 / math.sqrt(20_000)).all()
    assert ((x.std(0) * precision**0.5 - 1).abs() < 4 / math.sqrt(40_000)).all()
    tilt, gradient = path(state.z)
    torch.testing.assert_close(state.tilt, tilt, rtol=0, atol=1e-10)
    torch.testing.assert_close(state.gradient, gradient, rtol=0, atol=1e-10)


def test_step_sizes_are_adapted_to_the_acceptance() -> None:
    """Also where p_f is a hundred times narrower than the Gaussian in all directions."""
    f = ade.GaussianPotential(8).double().requires_grad_(False)
    f.log_std.fill_(math.log(0.01))
    generator = torch.Generator().manual_seed(8)
    start = torch.zeros(4, 8, dtype=torch.float64)
    path = bracket._Path.between("", f, start, 0.0, 1.0)
    betas = bracket._schedule(300)
    steps = bracket._adapted_step_sizes(path, betas, 4, start, generator)
    assert len(steps) == 299 and steps[0] > 20 * steps[-1]
    for at in (150, 298):
        beta = betas[at + 1]
        z = torch.randn(2000, 8, generator=generator, dtype=torch.float64) / math.sqrt(1 - beta + beta * 1e4)
        _, probability = bracket._trajectory(path, bracket._State.at(path, z), beta, steps[at], 4, generator)
        assert 0.6 < probability.mean().item() < 0.95


def test_schedule() -> None:
    betas = bracket._schedule(10)
    assert betas[0] == 0 and betas[-1] == 1 and len(betas) == 11
    assert all(a < b for a, b in itertools.pairwise(betas))
    assert betas[5] == pytest.approx(0.5) and betas[1] < 0.05
    assert bracket._schedule(1) == [0.0, 1.0]


def test_one_step_is_importance_sampling() -> None:
    """From the Gaussian to p_f at once: plain weights, of any event's shape, with f of [B, 1]."""
    f = lambda x: -0.5 * x.square().flatten(1).sum(1, keepdim=True)  # noqa: E731
    exact = torch.randn(4000, 2, 1, 2, generator=torch.Generator().manual_seed(9))
    found = metrics.log_z_bracket(
        f, exact_samples=exact, mean=0.0, std=1.3, n_steps=1, n_chains=4000, generator=torch.Generator().manual_seed(9)
    )
    truth = 2 * math.log(2 * math.pi)
    assert abs(found.lower - truth) < 3.5 * found.lower_se < 0.2
    assert abs(found.upper - truth) < 3.5 * found.upper_se < 0.2


def test_misuse() -> None:
    f, x = Mixture(), Mixture().sample(10)
    cases = [
        ({}, ValueError, "upper needs samples to start from: give sampler, exact_samples or samples"),
        ({"exact_samples": x, "samples": x}, ValueError, "give exact_samples or samples, not both"),
        ({"samples": x, "mean": 0.0}, ValueError, "mean and std must be given together"),
        ({"samples": x, "mean": 0.0, "std": 0.0}, ValueError, "std must be positive, got 0"),
        ({"samples": x, "mean": "0", "std": 1.0}, TypeError, "mean must be a number or a tensor, got str"),
        ({"samples": x, "mean": torch.ones(3), "std": 1.0}, ValueError, r"mean must broadcast to the event \(2,\)"),
        ({"samples": x, "mean": math.inf, "std": 1.0}, ValueError, "mean must be finite"),
        ({"exact_samples": x * math.nan}, ValueError, "exact_samples must be finite, got NaN or infinity"),
        ({"samples": [1.0]}, TypeError, "samples must be a tensor, got list"),
        ({"samples": x[:1]}, ValueError, r"samples must be \(n, \*event\) with n at least 2, got \(1, 2\)"),
        ({"samples": x, "n_steps": 0}, ValueError, "n_steps must be at least 1, got 0"),
        ({"samples": x, "n_chains": 1}, ValueError, "n_chains must be at least 2, got 1"),
        ({"samples": x, "step_size": -1.0}, ValueError, "step_size must be a positive number or None, got -1.0"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=f"^log_z_bracket: {message}"):
            metrics.log_z_bracket(f, **arguments)
    with pytest.raises(ValueError, match=r"^log_z_bracket: potential must return \(\d+,\) or \(\d+, 1\), got"):
        metrics.log_z_bracket(nn.Identity(), samples=x)
    with pytest.raises(ade.NonFiniteError, match=r"^log_z_bracket: f is NaN or infinite on the way of lower's chains"):
        metrics.log_z_bracket(lambda x: f(x) * math.nan, samples=x, n_steps=2)

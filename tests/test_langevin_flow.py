"""LangevinFlow: its maps are gradient steps, always invertible, and its density integrates to one."""

import math

import pytest
import torch
from cases import DOUBLE, assert_close, make_potential, normal
from density_cases import gaussian

import ade_fast as ade
from ade_fast import metrics, reference


def scrambled(dim: int, n_layers: int, scale: float = 2.0, **options) -> ade.initial.LangevinFlow:
    """Float64, with weights far from the identity that it starts close to."""
    q = ade.initial.LangevinFlow(dim, n_layers, 8, **options).double()
    with torch.no_grad():
        for seed, parameter in enumerate(q.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed, scale=scale))
    return q


@pytest.mark.parametrize("sign", [1.0, None], ids=["convex", "either"])
def test_layers_are_steps_of_deterministic_langevin(sign: float | None) -> None:
    """Of each layer's own potential, its negative heights as bounded as they are in the flow."""
    q, z = scrambled(3, 3, step_size=0.4), normal(6, 3, seed=9)
    if sign is not None:
        with torch.no_grad():
            q.a.abs_()
    expected, expected_log_det = z, torch.zeros(6, dtype=DOUBLE)
    for a, w, b in zip(q.a, q.w, q.b, strict=True):
        down = (-a).clamp(min=0)
        bounded = a.clamp(min=0) - down / (1 + 0.4 / 4 * (down * w.square().sum(1)).sum())
        softplus = lambda h: torch.logaddexp(h, torch.zeros_like(h))  # noqa: E731  (torch's turns linear above 20)
        f = lambda x, a=bounded, w=w, b=b: (a * softplus(x @ w.mT + b)).sum(1)  # noqa: E731, B023
        expected, log_det = reference.deterministic_langevin(f, expected, 0.4, 1)
        expected_log_det = expected_log_det + log_det
    x, log_det = q.transform(z)
    assert (x - z).detach().abs().max() > 0.5 and log_det.detach().abs().min() > 0.05
    assert_close(x.detach(), expected.detach(), "x", 1e-12)
    assert_close(log_det.detach(), expected_log_det.detach(), "log_det", 1e-12)
    parameters = list(q.parameters())
    actual = torch.autograd.grad(x.sin().sum() + log_det.square().sum(), parameters)
    wanted = torch.autograd.grad(expected.sin().sum() + expected_log_det.square().sum(), parameters)
    for name, a, e in zip("wab", actual, wanted, strict=True):
        assert_close(a, e, name, 1e-10)


@pytest.mark.parametrize("scale", [0.5, 3.0, 30.0])
def test_layers_are_invertible_whatever_their_parameters(scale: float) -> None:
    """Each Jacobian is symmetric with positive eigenvalues: of the gradient of a convex function."""
    for seed in range(5):
        torch.manual_seed(seed)
        q = scrambled(3, 1, scale, step_size=2.0)
        with torch.no_grad():
            q.a.abs_().neg_()
        for z in normal(20, 3, seed=seed):
            jacobian = torch.autograd.functional.jacobian(lambda row, q=q: q.transform(row[None])[0][0], z)
            assert_close(jacobian, jacobian.mT, "symmetry", 1e-12)
            assert torch.linalg.eigvalsh(jacobian).min() > 0


def test_density_of_one_dimension_integrates_to_one() -> None:
    """By the trapezoidal rule over the images of a grid, which are in order where the map is one-to-one."""
    q = scrambled(1, 4, std=0.8)
    z = torch.linspace(-8, 8, 40_001, dtype=DOUBLE)[:, None]
    x, log_det = (t.detach() for t in q.transform(z))
    log_q = torch.distributions.Normal(0.0, 0.8).log_prob(z).sum(1) - log_det
    assert (x.diff(dim=0) > 0).all() and log_det.max() - log_det.min() > 0.5
    assert torch.trapezoid(log_q.exp(), x[:, 0]).item() == pytest.approx(1.0, abs=1e-6)


def test_density_of_two_dimensions_integrates_to_one() -> None:
    """Over the areas of the images of a grid's cells."""
    q = scrambled(2, 3)
    axis = torch.linspace(-6, 6, 801, dtype=DOUBLE)
    corners = torch.cartesian_prod(axis, axis)
    x = q.transform(corners)[0].detach().view(801, 801, 2)
    across, along = x[1:, 1:] - x[:-1, :-1], x[:-1, 1:] - x[1:, :-1]
    areas = (across[..., 0] * along[..., 1] - across[..., 1] * along[..., 0]) / 2
    centres = torch.cartesian_prod(*[(axis[1:] + axis[:-1]) / 2] * 2)
    log_det = q.transform(centres)[1].detach()
    density = torch.distributions.Normal(0.0, 1.0).log_prob(centres).sum(1) - log_det
    assert (areas > 0).all() and log_det.max() - log_det.min() > 0.5
    assert (density.exp() * areas.flatten()).sum().item() == pytest.approx(1.0, abs=1e-4)


def test_an_annealed_dynamics_runs_in_its_base_variables() -> None:
    """Which differentiates the log-determinant twice; the weights find log Z."""
    potential, log_z = gaussian()
    sampler = ade.DualSampler(scrambled(2, 2, 0.7), ade.AnnealedLeapfrog(6, 0.4).double())
    with torch.no_grad():
        found = metrics.log_z(potential, sampler, 20_000, generator=torch.Generator().manual_seed(0))
    assert 1e-4 < found.standard_error < 0.05
    assert found.log_z == pytest.approx(log_z, abs=3 * found.standard_error)


def test_ade_takes_steps_with_it() -> None:
    sampler = ade.DualSampler(ade.initial.LangevinFlow(2, 3), ade.DeterministicLangevin(2, 0.1))
    players = ade.ADE(ade.MLPPotential(2, (32,), "tanh"), sampler, bound="importance", sampler_bound="renyi")
    before = [p.detach().clone() for p in sampler.parameters()]
    assert all(math.isfinite(value) for value in players.step(torch.randn(32, 2)).values())
    assert not any(torch.equal(a, b) for a, b in zip(before, sampler.parameters(), strict=True))


def test_gradients_reach_the_flow_through_the_dynamics_log_det() -> None:
    """log|det(I + ηH(x⁰))| depends on where q⁰ puts x⁰."""
    q, potential = scrambled(3, 2, 0.5), make_potential("silu")
    sampler = ade.DualSampler(q, ade.DeterministicLangevin(2, torch.tensor(0.3, dtype=DOUBLE)))
    sample = sampler.sample(potential, 5, torch.Generator().manual_seed(0))
    x0, _, log_q0 = q.sample(5, generator=torch.Generator().manual_seed(0))
    expected = log_q0 - reference.deterministic_langevin(potential, x0, sampler.dynamics.step_size, 2)[1]
    parameters = [*q.parameters(), *potential.parameters()][:-1]
    actual = torch.autograd.grad(sample.log_q.square().sum(), parameters)
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    for a, e in zip(actual, wanted, strict=True):
        assert_close(a, e, "gradient", 1e-10)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ade.initial.LangevinFlow(0), ValueError, r"LangevinFlow: dim must be at least 1, got 0"),
        (lambda: ade.initial.LangevinFlow(2, -1), ValueError, r"LangevinFlow: n_layers must be at least 0, got -1"),
        (lambda: ade.initial.LangevinFlow(2, 1, 0), ValueError, r"LangevinFlow: hidden must be at least 1, got 0"),
        (lambda: ade.initial.LangevinFlow(2, step_size=0.0), ValueError, r"step_size must be positive and finite"),
        (lambda: ade.initial.LangevinFlow(2, std="a"), TypeError, r"LangevinFlow: std must be a number, got str"),
        (lambda: ade.initial.LangevinFlow(2).transform(torch.ones(3)), ValueError, r"z must have the shape \(n, 2\)"),
    ],
)
def test_misuse(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()

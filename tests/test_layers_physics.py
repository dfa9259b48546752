"""What the dynamics must do as physics: go back in time, keep energy to O(η²), keep or report volume."""

import math
from typing import Any

import pytest
import torch
from cases import (
    DOUBLE,
    SMOOTH,
    DriftNetwork,
    KickNetwork,
    assert_close,
    dense_slogdet,
    energy,
    fitted_order,
    make_potential,
    normal,
)

import ade_fast as ade

MEMORIES = ("graph", "states", "auto")
every_memory = pytest.mark.parametrize("memory", MEMORIES)


@pytest.mark.parametrize("name", SMOOTH)
def test_leapfrog_is_time_reversible(name: str) -> None:
    potential = make_potential(name).eval()
    x0, v0 = normal(6, 3, seed=1), normal(6, 3, seed=2)
    step = torch.tensor([0.15, 0.1, 0.2], dtype=DOUBLE)
    layer = ade.Leapfrog(20, step)
    with torch.no_grad():
        x, v, _ = layer(potential, x0, v0)
        assert (x - x0).abs().max() > 0.1
        x_back, v_back, _ = layer(potential, x, -v)
    assert_close(x_back, x0, "x", 1e-11)
    assert_close(-v_back, v0, "v", 1e-11)


def test_leapfrog_with_a_schedule_reverses_with_the_schedule_reversed() -> None:
    potential = make_potential("silu")
    x0, v0 = normal(6, 3, seed=1), normal(6, 3, seed=2)
    steps = torch.linspace(0.05, 0.3, 8, dtype=DOUBLE).unsqueeze(1)
    with torch.no_grad():
        x, v, _ = ade.Leapfrog(8, steps)(potential, x0, v0)
        x_back, v_back, _ = ade.Leapfrog(8, steps.flip(0))(potential, x, -v)
        x_wrong, _, _ = ade.Leapfrog(8, steps)(potential, x, -v)
    assert_close(x_back, x0, "x", 1e-11)
    assert_close(-v_back, v0, "v", 1e-11)
    assert (x_wrong - x0).abs().max() > 1e-4


@pytest.mark.parametrize("name", SMOOTH)
def test_leapfrog_energy_error_falls_as_the_square_of_the_step(name: str) -> None:
    potential = make_potential(name).eval()
    x0, v0 = normal(32, 3, seed=1), normal(32, 3, seed=2)
    etas = [0.1, 0.05, 0.025]
    errors = []
    with torch.no_grad():
        start = energy(potential, x0, v0)
        for eta in etas:
            step = torch.tensor(eta, dtype=DOUBLE)
            x, v, _ = ade.Leapfrog(round(1.0 / eta), step)(potential, x0, v0)
            errors.append((energy(potential, x, v) - start).abs().mean().item())
    assert fitted_order(etas, errors) == pytest.approx(2, abs=0.1), errors


def test_leapfrog_on_the_harmonic_oscillator_is_the_closed_form() -> None:
    eta, n_steps = 0.3, 17
    x0, v0 = normal(5, 1, seed=1), normal(5, 1, seed=2)
    layer = ade.Leapfrog(n_steps, torch.tensor(eta, dtype=DOUBLE))
    with torch.no_grad():
        x, v, _ = layer(lambda x: -0.5 * x.square().sum(1), x0, v0)
    theta, axis = math.acos(1 - eta**2 / 2), math.sqrt(1 - eta**2 / 4)
    cos, sin = math.cos(n_steps * theta), math.sin(n_steps * theta)
    assert_close(x, cos * x0 + sin / axis * v0, "x", 1e-13)
    assert_close(v, cos * v0 - sin * axis * x0, "v", 1e-13)


@every_memory
@pytest.mark.parametrize("name", ["silu", "relu"])
def test_leapfrog_log_det_is_that_of_the_dense_jacobian(name: str, memory: str) -> None:
    potential = make_potential(name)
    x0, v0 = normal(3, 3, seed=1), normal(3, 3, seed=2)
    layer = ade.Leapfrog(4, torch.tensor([0.3, 0.2, 0.1], dtype=DOUBLE), memory=memory)
    log_det = layer(potential, x0, v0).log_det
    assert torch.equal(log_det, torch.zeros(3, dtype=DOUBLE))
    assert_close(log_det, dense_slogdet(lambda x, v: layer(potential, x, v)[:2], x0, v0), "slogdet", 1e-11)


@every_memory
def test_damped_leapfrog_log_det_is_that_of_the_dense_jacobian(memory: str) -> None:
    potential = make_potential("silu")
    x0, v0 = normal(3, 3, seed=1), normal(3, 3, seed=2)
    layer = ade.DampedLeapfrog(4, torch.tensor(0.2, dtype=DOUBLE), 0.6, memory=memory)
    log_det = layer(potential, x0, v0).log_det.detach()
    assert_close(log_det, torch.full((3,), 5 * 3 * math.log(0.6), dtype=DOUBLE), "log_det", 1e-13)
    assert_close(log_det, dense_slogdet(lambda x, v: layer(potential, x, v)[:2], x0, v0), "slogdet", 1e-10)


@every_memory
@pytest.mark.parametrize("momentum", [(3,), (2,), (4,)], ids=["l=d", "l<d", "l>d"])
@pytest.mark.parametrize("name", ["silu", "relu"])
def test_generalized_leapfrog_log_det_is_that_of_the_dense_jacobian(
    name: str, momentum: tuple[int, ...], memory: str
) -> None:
    potential = make_potential(name)
    x0, v0 = normal(3, 3, seed=1), normal(3, *momentum, seed=2)
    options: dict[str, Any] = {
        "scale_v": KickNetwork((3,), momentum, 0.4),
        "shift_v": KickNetwork((3,), momentum, 1.0),
        "scale_x": DriftNetwork(momentum, (3,), 0.4),
        "shift_x": DriftNetwork(momentum, (3,), 1.0),
    }
    if momentum != (3,):
        options |= {
            "momentum_shape": momentum,
            "momentum_step_size": torch.full(momentum, 0.2, dtype=DOUBLE),
        }
    layer = ade.GeneralizedLeapfrog(3, torch.tensor(0.3, dtype=DOUBLE), memory=memory, **options)
    log_det = layer(potential, x0, v0).log_det.detach()
    assert log_det.abs().min() > 1e-3
    assert_close(log_det, dense_slogdet(lambda x, v: layer(potential, x, v)[:2], x0, v0), "slogdet", 1e-10)


def test_damping_takes_energy_out() -> None:
    """With m < 1 a long unroll of a bounded f comes to rest near a maximum of f."""
    potential = make_potential("quadratic")
    x0, v0 = normal(6, 3, seed=1), normal(6, 3, seed=2, scale=0.1)
    with torch.no_grad():
        x, v, _ = ade.DampedLeapfrog(400, torch.tensor(0.05, dtype=DOUBLE), 0.5)(potential, x0, v0)
    assert_close(x, potential.mean.detach().expand(6, 3), "x", 1e-6)
    assert_close(v, torch.zeros_like(v), "v", 1e-6)


def test_hmc_with_the_layer_keeps_the_gaussian() -> None:
    """(x, v) ~ exp(f - ½‖v‖²) stays so under leapfrog with a small step: two moments of 20,000 samples."""
    potential = make_potential("quadratic")
    mean, std = potential.mean.detach(), potential.log_std.exp().detach()
    x0 = mean + std * normal(20000, 3, seed=1)
    with torch.no_grad():
        x, v, _ = ade.Leapfrog(10, torch.tensor(0.05, dtype=DOUBLE))(potential, x0, normal(20000, 3, seed=2))
    z = (x - mean) / std
    for what in (z, v):
        assert what.mean(0).abs().max() < 0.03
        assert (what.T @ what / len(what) - torch.eye(3, dtype=DOUBLE)).abs().max() < 0.04
    assert (x - x0).abs().mean() > 0.1


def test_sample_range_holds_every_state_and_stops_its_derivative() -> None:
    potential = make_potential("quadratic")
    x0, v0 = normal(64, 3, seed=1), normal(64, 3, seed=2, scale=3.0).requires_grad_()
    layer = ade.Leapfrog(1, torch.tensor(0.5, dtype=DOUBLE), sample_range=(-0.8, 0.9))
    x = layer(potential, x0, v0).x
    assert x.min() == -0.8 and x.max() == 0.9
    (dv,) = torch.autograd.grad(x.sum(), v0)
    inside = (x > -0.8) & (x < 0.9)
    assert inside.any() and (~inside).any()
    assert torch.equal(dv != 0, inside)

"""Temperature scaling at a run's end: the closed form, what it leaves alone, and that it happens once."""

import dataclasses

import pytest
import torch
from torch import nn
from training_cases import TINY, generator

import ade_fast as ade
from ade_fast.training import calibration, train

SAMPLES = 20_000


def flat_mlp(std: float = 1.0) -> ade.WithBase:
    """N(0, std² I) by its base measure alone."""
    inner = ade.MLPPotential(2, (32, 32), "silu")
    for parameter in inner.linears[-1].parameters():
        nn.init.zeros_(parameter)
    return ade.WithBase(inner, 0.0, std)


def gaussian_sampler(std: float) -> ade.DualSampler:
    return ade.DualSampler(ade.initial.Gaussian(2, std=std), ade.Leapfrog(1, 0.05))


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("base", [False, True])
def test_scaling_multiplies_f_up_to_a_constant(base, activation):
    potential = ade.MLPPotential(2, (32, 32), activation).double()
    if base:
        potential = ade.WithBase(potential, torch.tensor([0.5, -1.0], dtype=torch.float64), 2.0).double()
    x = torch.randn(50, 2, dtype=torch.float64, generator=generator())
    before = potential(x)
    calibration.scale(potential, 1.7)
    rest = potential(x) - 1.7 * before
    torch.testing.assert_close(rest, rest[:1].expand(50))
    assert base or rest.abs().max() < 1e-12


@pytest.mark.parametrize("width", [0.8, 1.2])
def test_the_scale_is_the_closed_form(width):
    points = width * torch.randn(SAMPLES, 2, generator=generator(3))
    f = flat_mlp()
    scaled, factor, log_z = calibration.calibrated(f, gaussian_sampler(width), points, SAMPLES, None, generator)
    assert factor == pytest.approx(width**-2, rel=0.05)
    assert scaled.std.item() == pytest.approx(factor**-0.5, rel=1e-6) and f.std.item() == 1.0
    # The base measure stays normalised.
    assert abs(log_z.log_z) < 4 * log_z.standard_error < 0.05


def test_a_scale_that_would_lose_the_weights_is_brought_back_towards_1():
    points = 0.1 * torch.randn(1000, 2, generator=generator(3))
    sampler = gaussian_sampler(1.0)  # for N(0, 1): every weight is the same
    _, factor, log_z = calibration.calibrated(flat_mlp(), sampler, points, SAMPLES, None, generator)
    assert 1 < factor < 2 and log_z.ess >= 0.9


def test_what_can_be_scaled():
    assert calibration.can_scale(flat_mlp()) and calibration.can_scale(ade.MLPPotential(2))
    assert not calibration.can_scale(ade.MLPPotential(2, spectral_norm=True))
    assert not calibration.can_scale(ade.GaussianPotential(2))
    for change in (nn.utils.parametrizations.orthogonal, lambda layer: layer.register_forward_hook(lambda *_: None)):
        potential = flat_mlp()
        change(potential.potential.linears[-1])
        assert not calibration.can_scale(potential)


def test_points_that_say_nothing_change_nothing():
    points = torch.randn(8, 2, generator=generator(1))
    for n in (1, 8):
        scaled, factor, _ = calibration.calibrated(
            flat_mlp(), gaussian_sampler(1.2), points[:n], SAMPLES, None, generator
        )
        assert factor == 1.0 and scaled.std.item() == 1.0


def test_a_run_ends_with_a_calibrated_f_and_is_calibrated_once(tmp_path):
    config = dataclasses.replace(TINY, likelihood_samples=2000)
    summary = train(config, tmp_path / "on", progress=False)
    assert summary.scale is not None and summary.scale != 1
    model = ade.load(tmp_path / "on")
    again = train(config, tmp_path / "on", progress=False, resume=True)
    assert (again.scale, again.nll) == (summary.scale, summary.nll)
    x = torch.randn(20, 2, generator=generator())
    assert torch.equal(model.log_prob(x), ade.load(tmp_path / "on").log_prob(x))
    off = train(dataclasses.replace(config, calibrate=False), tmp_path / "off", progress=False)
    assert off.scale is None
    plain = ade.load(tmp_path / "off")
    ratio = model.log_prob(x).diff() / plain.log_prob(x).diff()
    torch.testing.assert_close(ratio, torch.full_like(ratio, summary.scale), rtol=2e-3, atol=0)


def test_without_weights_or_a_known_f_nothing_is_scaled(tmp_path):
    elbo = {"bound": "elbo", "sampler_bound": "elbo", "momentum_weight": 0.0, "defensive": 0.0, "ess_pace": None}
    assert train(dataclasses.replace(TINY, **elbo), tmp_path / "elbo", progress=False).scale is None
    assert train(dataclasses.replace(TINY, spectral_norm=True), tmp_path / "norm", progress=False).scale is None

"""Scores against closed forms, ties between scores, and what the checks at the end of a run see."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from training_cases import TINY, generator

import ade_fast as ade
from ade_fast.data import Standardizer
from ade_fast.metrics import LogZ
from ade_fast.training import TrainedModel
from ade_fast.training.checks import findings, tail_mass
from ade_fast.training.evaluation import PURPOSES, evaluate
from ade_fast.training.score import Score
from ade_fast.training.source import Space
from ade_fast.training.streams import stream


class Mixture(nn.Module):
    """log of a mixture of two isotropic Gaussians of standard deviation 1, times a constant e^shift."""

    def __init__(self, dim: int, far: float, share: float, shift: float = 0.0):
        super().__init__()
        self.register_buffer("centre", torch.full((dim,), far / math.sqrt(dim)))
        self.share, self.shift = share, shift

    def forward(self, x):
        near = -0.5 * x.square().sum(1) + math.log1p(-self.share)
        far = -0.5 * (x - self.centre).square().sum(1) + math.log(max(self.share, 1e-300))
        return torch.logaddexp(near, far) - 0.5 * x.shape[1] * math.log(2 * math.pi) + self.shift


def model_of(potential, dim: int = 2, std: float = 1.5, log_z: float = 0.0, **settings) -> TrainedModel:
    """A model with a wide Gaussian as sampler, in coordinates of mean 3 and standard deviation 2."""
    sampler = ade.DualSampler(ade.initial.Gaussian(dim, std=std), ade.Leapfrog(1, 0.05))
    space = Space(Standardizer(torch.full((dim,), 3.0), torch.full((dim,), 2.0)), (-4.0, 4.0))
    config = dataclasses.replace(TINY, test_samples=300, test_likelihood_samples=50_000, **settings)
    return TrainedModel(potential, sampler, config, 7, space, LogZ(log_z, 0.001, 0.5))


def scores_of(model: TrainedModel, points: torch.Tensor):
    return evaluate(model, points, {purpose: stream(0, purpose) for purpose in PURPOSES})


def test_scores_of_a_gaussian_are_the_closed_forms():
    model = model_of(Mixture(2, 0.0, 0.0, shift=1.7))
    points = torch.randn(20_000, 2, generator=generator(3))
    found, samples, exact = scores_of(model, points)
    entropy = math.log(2 * math.pi * math.e) + 2 * math.log(2)  # of N(3, 2^2) in two dimensions
    assert found.points == 20_000
    assert abs(found.nll - entropy) < 3 * found.nll_standard_error < 0.05
    assert abs(found.log_z - 1.7) < 3 * found.log_z_standard_error < 0.03
    # A Gaussian of standard deviation s as proposal for the standard one has the ESS ((2 s^2 - 1) / s^4) per dimension.
    assert found.initial_ess == pytest.approx((2 * 1.5**2 - 1) / 1.5**4, abs=0.02)
    assert found.best_temperature == pytest.approx(1, abs=0.03)
    assert found.exact_p_value > 0.05 > found.p_value  # raw samples are 1.5 times too wide
    assert samples.shape == exact.shape == (300, 2) and exact.std() < 1.2 < samples.std()


def test_the_best_temperature_is_seen():
    points = torch.randn(20_000, 2, generator=generator(3)) * 0.8
    found, _, _ = scores_of(model_of(Mixture(2, 0.0, 0.0)), points)
    assert found.best_temperature == pytest.approx(1 / 0.64, abs=0.06)


def test_without_a_density_only_samples_are_compared():
    model = dataclasses.replace(model_of(Mixture(2, 0.0, 0.0)), density=None)
    found, _, exact = scores_of(model, torch.randn(300, 2, generator=generator(3)))
    assert found.nll is found.log_z is found.ess is found.exact_p_value is exact is None and found.p_value < 0.05
    text = "\n".join(found.lines("mine"))
    assert "no density to form weights with" in text and "ESS" not in text


def test_the_text_names_every_figure():
    found, _, _ = scores_of(model_of(Mixture(2, 0.0, 0.0)), torch.randn(500, 2, generator=generator(3)))
    text = "\n".join(found.lines("moons", ade.training.build.build_source(TINY)))
    for figure in (f"{-found.nll:.4f} ± ", f"{found.log_z:.4f} ± ", f"ESS             {100 * found.ess:.1f} %", "2.39"):
        assert figure in text, text


# --- checks at the end


@pytest.mark.parametrize(("dim", "tolerance"), [(1, 1e-3), (2, 1e-3), (3, 0.06)])
def test_mass_far_from_the_data_is_seen(dim, tolerance):
    points = torch.randn(500, dim, generator=generator(3))

    def seen(far: float, share: float) -> float:
        potential = Mixture(dim, far, share)
        if dim > 2:  # by the base measure's samples, which are few there
            potential = ade.WithBase(_Less(potential, 12.0), 0.0, 12.0)
        return tail_mass(model_of(potential, dim), points, generator())

    assert seen(16.0, 0.25) == pytest.approx(0.25, abs=tolerance)
    assert seen(0.0, 0.0) < 1e-3
    assert tail_mass(model_of(Mixture(3, 0.0, 0.0), 3), torch.randn(500, 3), generator()) is None  # no base measure


class _Less(nn.Module):
    """f without the base measure N(0, std^2) that is put back around it."""

    def __init__(self, potential, std):
        super().__init__()
        self.potential, self.std = potential, std

    def forward(self, x):
        return self.potential(x) - torch.distributions.Normal(0, self.std).log_prob(x).sum(1)


def test_findings_are_told_and_a_good_model_has_none():
    points = torch.randn(500, 2, generator=generator(3))
    good = model_of(Mixture(2, 0.0, 0.0))
    figures = scores_of(good, points)[0]
    assert findings(good, figures, points, generator()) == []
    bad = dataclasses.replace(good, potential=Mixture(2, 20.0, 0.25), density=LogZ(0.0, 0.1, 0.005))
    bad.sampler.dynamics.step_size.data.fill_(1e-7)
    told = "\n".join(
        findings(bad, dataclasses.replace(figures, warnings=("few effective samples",)), points, generator())
    )
    for words in (
        "few effective samples",
        "25 % of the model's mass lies more than 3",
        "size is 0.5 %",
        "shrunk to 1e-07",
    ):
        assert words in told


# --- scores


def likelihood(values, log_z=0.0, error=0.0) -> Score:
    return Score.of_likelihood(torch.as_tensor(values, dtype=torch.float64), LogZ(log_z, error, 0.5), log_det=0.5)


def test_a_likelihoods_value_and_error():
    values = [1.0, 2.0, 4.0, 5.0]
    score = likelihood(values, log_z=2.0, error=0.3)
    assert score.value == pytest.approx(2.0 - 3.0 - 0.5)
    assert score.standard_error == pytest.approx(math.hypot(math.sqrt(10 / 3 / 4), 0.3))
    assert score.entry() == {"nll": score.value, "ess": 0.5}
    assert Score.from_state_dict(score.state_dict()).density == score.density


def test_ties_are_within_the_error_of_the_difference_at_the_same_points():
    values = torch.linspace(-5, 5, 100, dtype=torch.float64)
    best = likelihood(values)
    assert likelihood(values - 0.01).is_worse_than(best)  # at every point: however much these scatter
    noise = torch.randn(100, dtype=torch.float64, generator=generator())
    assert not likelihood(values - 0.01 + 0.5 * (noise - noise.mean())).is_worse_than(best)
    assert not likelihood(values - 0.01, error=0.02).is_worse_than(best)  # nor beyond what is known of log Z
    assert not likelihood(values + 1).is_worse_than(best)


def test_scores_by_samples_tie_within_their_scatter():
    assert not Score(0.0104, 0.005).is_worse_than(Score(0.01, 0.005))
    assert Score(0.0151, 0.005).is_worse_than(Score(0.01, 0.005)) and Score(0.01, 0.005).entry() == {"mmd2": 0.01}

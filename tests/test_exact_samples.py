"""Samples of p_f from the dual sampler, by resampling and by Metropolis-Hastings, against a known mixture."""

import math

import pytest
import torch
from density_cases import DIM, Mixture, gaussian, sampler
from torch import Tensor, nn

import ade_fast as ade
from ade_fast import metrics, weighted
from ade_fast.training.sampler import _systematic

WAYS = {
    "resample": lambda q, f, n, **options: q.resample(f, n, **options),
    "metropolis": lambda q, f, n, **options: q.metropolis(f, n, n_steps=30, **options),
    "metropolis, few chains": lambda q, f, n, **options: q.metropolis(f, n, n_steps=40, n_chains=n // 4, **options),
}


def moments(x: Tensor) -> Tensor:
    """Functions of x whose means tell the components apart, [n, 5]."""
    return torch.cat((x, x.square(), (x[:, :1] > 0).to(x)), 1)


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize(
    ("kind", "momentum_weight"), [("leapfrog", None), ("leapfrog", 0.6), ("generalized", 1.0), ("damped", 1.6)]
)
def test_samples_are_those_of_the_mixture(kind: str, momentum_weight: float | None, way: str) -> None:
    f, generator = Mixture(), torch.Generator().manual_seed(1)
    found = WAYS[way](sampler(kind), f, 600, momentum_weight=momentum_weight, generator=generator)
    assert found.x.shape == (600, DIM) and found.x.dtype == torch.float64 and isinstance(found[1], float)
    assert 0.05 < found[1] <= 1
    exact = moments(f.sample(50_000, generator))
    # Dependence among samples of one chain, or of one set of proposals, is allowed for by a factor of 1.5.
    error = 1.5 * exact.std(0) / math.sqrt(600)
    assert ((moments(found.x).mean(0) - exact.mean(0)).abs() < 3.5 * error).all()
    assert metrics.mmd_test(found.x, f.sample(600, generator), 99, generator).p > 0.01


def test_raw_samples_are_not() -> None:
    """The tests above can fail."""
    f, generator = Mixture(), torch.Generator().manual_seed(1)
    raw = sampler().sample(f, 600, generator).x
    assert metrics.mmd_test(raw, f.sample(600, generator), 99, generator).p == 0.01


def test_systematic_resampling_rounds_down_or_up() -> None:
    p = torch.tensor([0.05, 0.3, 0.0, 0.45, 0.2], dtype=torch.float64)
    generator, counts = torch.Generator().manual_seed(2), []
    for _ in range(2000):
        chosen = _systematic(p, 7, generator)
        assert chosen.shape == (7,)
        counts.append(torch.bincount(chosen, minlength=5).double())
    counts = torch.stack(counts)
    assert ((counts - 7 * p).abs() < 1).all() and (counts[:, 2] == 0).all()
    assert ((counts.mean(0) - 7 * p).abs() < 4 * counts.std(0) / math.sqrt(2000) + 1e-12).all()
    firsts = torch.stack([_systematic(p, 7, generator)[0] for _ in range(2000)])
    shares = torch.bincount(firsts, minlength=5).double() / 2000  # in random order
    assert ((shares - p).abs() < 4 * (p * (1 - p) / 2000).sqrt() + 1e-12).all()


def test_resampled_points_do_not_repeat_where_weights_are_even() -> None:
    f, _ = gaussian()
    found = sampler().resample(f, 500, generator=torch.Generator().manual_seed(3))
    assert len(found.x.unique(dim=0)) == 500
    log_z = metrics.log_z(f, sampler(), 10_000, generator=torch.Generator().manual_seed(3))
    assert found.ess == pytest.approx(log_z.ess, abs=1e-12)  # 10,000 proposals are the least


def test_resampling_warns_when_samples_repeat() -> None:
    f, _ = gaussian()
    q = sampler()
    with pytest.warns(
        UserWarning, match=r"DualSampler\.resample: \d+ effective proposals of 300 for 300 samples: these"
    ):
        q.resample(f, 300, n_proposals=300)
    with pytest.warns(UserWarning, match=r"\d\d effective proposals of 200 for 5 samples"):
        q.resample(f, 5, n_proposals=200)


def test_acceptance_is_the_mean_of_the_rule() -> None:
    """E min(1, w'/w) with w of the model and w' of the sampler, from independent draws."""
    f, q, generator = Mixture(), sampler(), torch.Generator().manual_seed(4)
    found = q.metropolis(f, 100, n_steps=500, generator=generator)
    s = q.sample(f, 200_000, generator)
    log_w = f(s.x) - s.v.square().sum(1) / 2 - s.log_q
    state = log_w[torch.multinomial(log_w.softmax(0), 100_000, replacement=True, generator=generator)]
    wanted = (log_w[:100_000] - state).clamp(max=0).exp().mean().item()
    assert found.acceptance == pytest.approx(wanted, abs=0.012)  # the start accepts more


def test_blocks_of_steps_are_steps(monkeypatch) -> None:
    """Proposals of a few chains come many steps at a time, those of many chains one step at a time."""
    f, q = Mixture(), sampler()
    few = q.metropolis(f, 40, n_chains=2, n_steps=5, generator=torch.Generator().manual_seed(5))
    assert few.x.shape == (40, DIM) and 0 < few.acceptance < 1
    repeats = (few.x[2:] == few.x[:-2]).all(1).double().mean().item()  # each chain's next sample, 5 steps on
    assert repeats < 0.5
    monkeypatch.setattr(weighted, "_CHUNK_ROWS", 50)
    slow = q.metropolis(f, 800, n_chains=50, n_steps=10, generator=torch.Generator().manual_seed(5))
    exact = moments(f.sample(50_000))
    kept = moments(slow.x[100:])  # dependent within a chain
    assert ((kept.mean(0) - exact.mean(0)).abs() < 6 * exact.std(0) / math.sqrt(700)).all()


def test_a_start_without_weight_gives_way() -> None:
    f, _ = gaussian()
    half = lambda x: torch.where(x[:, 0] > 0.5, f(x), -math.inf)  # noqa: E731
    q = ade.DualSampler(ade.initial.Gaussian(DIM, 2.0), ade.Leapfrog(1, 1e-6)).double()
    generator = torch.Generator().manual_seed(6)
    for found in (q.resample(half, 300, generator=generator), q.metropolis(half, 300, generator=generator)):
        assert (found.x[:, 0] > 0.5).all()
    nowhere = lambda x: f(x) * 0 - math.inf  # noqa: E731
    with pytest.raises(ValueError, match=r"DualSampler\.resample: f is -inf at all 10000 proposals"):
        q.resample(nowhere, 3)
    with pytest.raises(ValueError, match=r"DualSampler\.metropolis: f is -inf at all proposals of a chain"):
        q.metropolis(nowhere, 3)


@pytest.mark.parametrize("way", list(WAYS))
def test_reproducible_and_without_gradients(way: str) -> None:
    f = ade.WithBase(ade.MLPPotential(DIM, (8,)), 0.0, 1.5)
    q = ade.DualSampler(ade.initial.Gaussian(DIM, 1.5, learnable=True), ade.Leapfrog(2, 0.1))
    first, again = (WAYS[way](q, f, 40, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first.x, again.x) and first[1] == again[1]
    assert not first.x.requires_grad and all(p.grad is None for p in (*q.parameters(), *f.parameters()))


def test_context_goes_to_the_dynamics() -> None:
    seen = []

    class Recorded(nn.Module):
        def momentum_shape(self, event):
            return event

        def forward(self, potential, x0, v0, *, generator=None, context=None):
            seen.append(context)
            return ade.DynamicsOutput(x0, v0, x0.new_zeros(len(x0)))

    f, _ = gaussian()
    q = ade.DualSampler(ade.initial.Gaussian(DIM, 2.0).double(), Recorded())
    mark = (torch.ones(1),)
    q.resample(f, 5, context=mark)
    q.metropolis(f, 5, n_steps=2, context=mark)
    assert len(seen) > 2 and all(c is mark for c in seen)


def test_misuse() -> None:
    f, q = Mixture(), sampler()
    with pytest.raises(ValueError, match=r"DualSampler\.resample: n must be an integer >= 1, got 0"):
        q.resample(f, 0)
    with pytest.raises(ValueError, match=r"DualSampler\.resample: n_proposals must be an integer >= 10, got 9"):
        q.resample(f, 10, n_proposals=9)
    with pytest.raises(ValueError, match=r"DualSampler\.metropolis: n_steps must be an integer >= 1, got 0"):
        q.metropolis(f, 10, n_steps=0)
    with pytest.raises(ValueError, match=r"DualSampler\.metropolis: n_chains must be an integer <= 10, got 11"):
        q.metropolis(f, 10, n_chains=11)
    with pytest.raises(TypeError, match=r"DualSampler\.metropolis: potential must be callable, .* got NoneType"):
        q.metropolis(None, 10)

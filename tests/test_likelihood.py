"""log Z and the log-likelihood by importance weights: against closed forms, with honest errors, and refusals."""

import math
import warnings

import pytest
import torch
from density_cases import DIM, Mixture, gaussian, sampler
from torch import nn

import ade_fast as ade
from ade_fast import metrics, weighted


@pytest.mark.parametrize(
    ("target", "kind", "momentum_weight"),
    [
        ("gaussian", "leapfrog", None),
        ("gaussian", "generalized", 1.0),
        ("gaussian", "damped", 1.6),
        ("mixture", "leapfrog", 0.6),
        ("mixture", "generalized", 1.4),
    ],
)
def test_log_z_against_closed_forms(target: str, kind: str, momentum_weight: float | None) -> None:
    """Over 100 runs: the mean within 3 of its standard errors, and the errors as large as they say."""
    f, truth = gaussian() if target == "gaussian" else (Mixture(), Mixture.log_z)
    q, generator = sampler(kind), torch.Generator().manual_seed(1)
    runs = [metrics.log_z(f, q, 2000, momentum_weight, generator) for _ in range(100)]
    found = torch.tensor([run.log_z for run in runs], dtype=torch.float64)
    errors = torch.tensor([run.standard_error for run in runs], dtype=torch.float64)
    assert abs(found.mean().item() - truth) < 3 * found.std().item() / 10
    assert 88 <= int(((found - truth).abs() < 2 * errors).sum()) <= 100
    assert 0.7 < errors.mean().item() / found.std().item() < 1.4


def test_log_z_by_a_grid() -> None:
    """A network's, whose normaliser nobody knows."""
    f = ade.WithBase(ade.MLPPotential(DIM, (16, 16), "silu"), 0.0, 1.5).double().requires_grad_(False)
    for p in f.parameters():
        p.mul_(3)
    axis = torch.linspace(-15, 15, 601, dtype=torch.float64)
    truth = f(torch.cartesian_prod(axis, axis)).logsumexp(0).item() + 2 * math.log((axis[1] - axis[0]).item())
    found = metrics.log_z(f, sampler(), 20_000, generator=torch.Generator().manual_seed(2))
    assert abs(found.log_z - truth) < 3 * found.standard_error < 0.1


def test_momenta_of_each_step_and_no_momentum() -> None:
    """λ per step for a dynamics that draws its own momenta; a sampler without any."""

    class Walk(nn.Module):
        """x' = x + v_t/2 with v_t ~ N(0, 0.8²), T = 3, where the weights are those of q⁰ alone for any f."""

        def momentum_shape(self, event):
            return None

        def forward(self, potential, x0, v0, *, generator=None, context=None):
            v = 0.8 * torch.randn(3, *x0.shape, generator=generator, dtype=x0.dtype)
            log_noise = -0.5 * (v / 0.8).square().sum((0, 2)) - 6 * math.log(0.8 * math.sqrt(2 * math.pi))
            out = ade.DynamicsOutput(x0 + v.sum(0) / 2, v, x0.new_zeros(len(x0)))
            return _WithNoise(*out, log_noise)

    class Still(nn.Module):
        def momentum_shape(self, event):
            return None

        def forward(self, potential, x0, v0, *, generator=None, context=None):
            return ade.DynamicsOutput(x0, None, x0.new_zeros(len(x0)))

    f, truth = gaussian()
    generator = torch.Generator().manual_seed(3)
    start = ade.initial.Gaussian(DIM, 3.0).double()
    for dynamics, weight in ((Walk(), torch.tensor([1.3, 1.6, 2.0])), (Walk(), 1.6), (Still(), None)):
        found = metrics.log_z(f, ade.DualSampler(start, dynamics), 60_000, weight, generator)
        assert abs(found.log_z - truth) < 3 * found.standard_error < 0.1
    with pytest.raises(ValueError, match=r"log_z: momentum_weight .* one entry per step, shape \(3,\), got \(2,\)"):
        metrics.log_z(f, ade.DualSampler(start, Walk()), 100, torch.ones(2))


class _WithNoise:
    def __init__(self, x, v, log_det, log_noise) -> None:
        self.x, self.v, self.log_det, self.log_noise = x, v, log_det, log_noise


def test_log_likelihood_is_the_mean_of_the_log_density() -> None:
    f, generator = Mixture(), torch.Generator().manual_seed(4)
    data = f.sample(500, generator)
    found = metrics.log_likelihood(f, sampler(), data, 20_000, generator=generator)
    log_z = metrics.log_z(f, sampler(), 20_000, generator=generator)
    log_p = f.log_prob(data)
    assert all(isinstance(value, float) for value in found)
    assert found.mean + found.log_z == pytest.approx(f(data).mean().item(), abs=1e-12)
    assert abs(found.mean - log_p.mean().item()) < 3 * found.log_z_standard_error
    both = math.sqrt(log_p.var().item() / 500 + found.log_z_standard_error**2)
    assert found.standard_error == pytest.approx(both, abs=1e-12)
    assert found.ess == pytest.approx(log_z.ess, abs=0.05) and 0 < found.ess <= 1


def test_figures_are_reproducible_and_chunked(monkeypatch) -> None:
    """Chunks are all that memory grows with, for the data as well; chunks are other draws, not another answer."""
    f, q, data = Mixture(), sampler(), Mixture().sample(301)
    run = lambda: metrics.log_likelihood(f, q, data, 10_000, generator=torch.Generator().manual_seed(5))  # noqa: E731
    whole = run()
    assert run() == whole
    seen = []
    f.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    monkeypatch.setattr(weighted, "_CHUNK_ROWS", 100)
    parts = run()
    assert max(seen) == 100
    assert parts.mean + parts.log_z == pytest.approx(whole.mean + whole.log_z, abs=1e-12)
    assert abs(parts.log_z - whole.log_z) < 4 * whole.log_z_standard_error


def test_the_potential_is_one_function_and_nothing_is_recorded() -> None:
    """Spectral norm in training mode would make every chunk another f."""
    torch.manual_seed(0)
    f = ade.MLPPotential(DIM, (8, 8), "tanh", spectral_norm=True)
    f.train()
    q = ade.DualSampler(ade.initial.Gaussian(DIM, 1.0), ade.Leapfrog(2, 0.1))
    base = ade.WithBase(f, 0.0, 1.0)
    data = torch.randn(9000, DIM)
    found = metrics.log_likelihood(base, q, data, 20_000, generator=torch.Generator().manual_seed(6))
    f.eval()  # the weights as the call's one power iteration left them
    again = metrics.log_likelihood(base, q, data, 20_000, generator=torch.Generator().manual_seed(6))
    assert found == pytest.approx(again, abs=1e-5)
    assert all(p.grad is None for p in (*f.parameters(), *q.parameters()))


def test_few_effective_samples_are_warned_about() -> None:
    f, _ = gaussian()
    far = ade.DualSampler(ade.initial.Gaussian(DIM, 0.3), ade.Leapfrog(1, 0.1)).double()
    with pytest.warns(UserWarning, match=r"log_z: \d+ effective samples of 300 \(below 100\): log Z is biased low"):
        metrics.log_z(f, far, 300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.log_z(f, sampler(), 3000)


def test_weights_of_zero_count_and_those_that_are_none_are_refused() -> None:
    """f = -inf is a density of 0 (a half-plane here); NaN, +inf and -inf everywhere are no densities."""
    f, truth = gaussian()
    half = lambda x: torch.where(x[:, 0] > 0.5, f(x), -math.inf)  # noqa: E731
    still = ade.DualSampler(ade.initial.Gaussian(DIM, 2.0), ade.Leapfrog(1, 1e-6)).double()
    found = metrics.log_z(half, still, 20_000, generator=torch.Generator().manual_seed(8))
    assert abs(found.log_z - (truth - math.log(2))) < 3 * found.standard_error
    for bad in (math.nan, math.inf):
        wrong = lambda x, bad=bad: torch.where(x[:, 0] > 0, f(x), bad)  # noqa: E731
        with pytest.raises(ade.NonFiniteError, match=r"log_z: log w is NaN or infinite for \d+ of 1000 samples"):
            metrics.log_z(wrong, still, 1000)
    with pytest.raises(ValueError, match=r"log_z: all 100 weights are 0: f is -inf wherever the sampler goes"):
        metrics.log_z(lambda x: f(x) * 0 - math.inf, still, 100)


@pytest.mark.filterwarnings("ignore:DualSampler. dynamics clips")
def test_samplers_without_weights_are_refused() -> None:
    f, data = Mixture(), Mixture().sample(10)
    start, move = ade.initial.Gaussian(DIM).double(), ade.Leapfrog(1, 0.1)
    empirical = ade.DualSampler(ade.initial.Empirical(data), move)
    clipped = ade.DualSampler(start, ade.Leapfrog(1, 0.1, sample_range=(-1, 1)))

    class Unknown(nn.Module):
        event = (DIM,)

        def sample(self, n, momentum_shape=None, generator=None):
            return start.sample(n, momentum_shape, generator)._replace(log_q=None)

    unknown = ade.DualSampler(Unknown(), move)
    for name, call in (
        ("log_z", lambda q, **kw: metrics.log_z(f, q, 100, **kw)),
        ("log_likelihood", lambda q, **kw: metrics.log_likelihood(f, q, data, 100, **kw)),
        (r"DualSampler\.resample", lambda q, **kw: q.resample(f, 10, **kw)),
        (r"DualSampler\.metropolis", lambda q, **kw: q.metropolis(f, 10, **kw)),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: .* have no weights: Empirical has no density"):
            call(empirical)
        with pytest.raises(ValueError, match=rf"^{name}: .* have no weights: initial has no density"):
            call(unknown)
        with pytest.raises(ValueError, match=rf"^{name}: .* have no weights: dynamics clips samples to sample_range"):
            call(clipped)
        with pytest.raises(ValueError, match=rf"^{name}: .* have no weights: momentum_weight is 0"):
            call(sampler(), momentum_weight=0.0)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([[1.0, 2.0]], TypeError, r"data must be a tensor, got list"),
        (torch.ones(3, 2).int(), TypeError, r"data must be floating point, got torch\.int32"),
        (torch.ones(3, 3).double(), ValueError, r"data must have shape \(n, 2\), got \(3, 3\)"),
        (torch.ones(1, 2).double(), ValueError, r"data must have at least 2 points, got 1"),
        (torch.full((3, 2), math.nan).double(), ValueError, r"data must be finite, got NaN or infinity"),
        (torch.ones(3, 2), TypeError, r"data must have the sampler's dtype torch\.float64, got torch\.float32"),
    ],
)
def test_misuse_of_data(data, error, message) -> None:
    with pytest.raises(error, match=rf"^log_likelihood: {message}"):
        metrics.log_likelihood(Mixture(), sampler(), data, 100)


def test_misuse() -> None:
    f = Mixture()
    with pytest.raises(TypeError, match=r"^log_z: n_samples must be an int, got float"):
        metrics.log_z(f, sampler(), 1e5)
    with pytest.raises(ValueError, match=r"^log_z: n_samples must be at least 2, got 1"):
        metrics.log_z(f, sampler(), 1)
    with pytest.raises(TypeError, match=r"^log_z: potential must be callable, .* got int"):
        metrics.log_z(3, sampler())
    with pytest.raises(TypeError, match=r"^log_z: sampler must be an ade\.DualSampler, got Gaussian"):
        metrics.log_z(f, ade.initial.Gaussian(2))
    with pytest.raises(ValueError, match=r"^log_z: potential must return \(100,\) or \(100, 1\), got \(100, 2\)"):
        metrics.log_z(lambda x: f(x.detach())[:, None] + x, sampler_without_force(), 100)


def sampler_without_force() -> ade.DualSampler:
    class Still(nn.Module):
        def momentum_shape(self, event):
            return None

        def forward(self, potential, x0, v0, *, generator=None, context=None):
            return ade.DynamicsOutput(x0, None, x0.new_zeros(len(x0)))

    return ade.DualSampler(ade.initial.Gaussian(DIM).double(), Still())

"""Importance weights: the formulas against direct arithmetic, and where they are to refuse."""

import math

import pytest
import torch

from ade_fast import weights


def test_log_weights_of_one_momentum_by_hand() -> None:
    f, log_q = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    v = torch.randn(5, 2, 3, dtype=torch.float64)
    found = weights.log_weights(f, v, log_q, 0.7)
    for b in range(5):
        wanted = f[b].item() - 0.35 * sum(e * e for e in v[b].flatten().tolist()) - log_q[b].item()
        assert found[b].item() == pytest.approx(wanted, abs=1e-12)
    assert torch.equal(weights.log_weights(f, None, log_q, 0.7), f - log_q)
    assert weights.log_weights(f.float(), v.float(), log_q.float()).dtype == torch.float64


def test_log_weights_of_a_momentum_per_step_by_hand() -> None:
    """Also where T = B, so that the two forms cannot be told apart by shape."""
    f, log_q, v = torch.randn(4).double(), torch.randn(4).double(), torch.randn(4, 4, 2).double()
    mass = torch.tensor([0.5, 1.0, 2.0, 3.0])
    found = weights.log_weights(f, v, log_q, mass, per_step=True)
    for b in range(4):
        energy = sum(mass[t].item() / 2 * v[t, b].square().sum().item() for t in range(4))
        assert found[b].item() == pytest.approx((f[b] - log_q[b]).item() - energy, abs=1e-12)
    same = weights.log_weights(f, v, log_q, 2.0, per_step=True)
    torch.testing.assert_close(same, f - log_q - v.square().sum((0, 2)), rtol=0, atol=1e-12)


def test_log_weights_gradient() -> None:
    f, v, log_q = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3,), (3, 2), (3,)))
    assert torch.autograd.gradcheck(lambda *a: weights.log_mean_exp(weights.log_weights(*a, 0.3)), (f, v, log_q))
    assert torch.autograd.gradcheck(weights.effective_sample_size, (f,))


def test_log_normaliser_is_the_integral_of_the_momenta() -> None:
    grid = torch.linspace(-40, 40, 100_001, dtype=torch.float64)
    one = {m: math.log(torch.trapezoid(torch.exp(-m / 2 * grid.square()), grid).item()) for m in (0.4, 1.0, 3.0)}
    assert weights.log_normaliser((2, 3), 1, 0.4).item() == pytest.approx(6 * one[0.4], abs=1e-10)
    assert weights.log_normaliser((2,), 5, 3.0).item() == pytest.approx(10 * one[3.0], abs=1e-10)
    several = weights.log_normaliser((2,), 3, torch.tensor([0.4, 1.0, 3.0], dtype=torch.float64))
    assert several.item() == pytest.approx(2 * sum(one.values()), abs=1e-10)
    assert weights.log_normaliser((2,), 0, 1.0).item() == 0


def test_sums_of_extreme_weights_are_exact() -> None:
    """Shifts that exp cannot represent change nothing; weights of 0 count as samples."""
    log_w = torch.tensor([0.0, math.log(2.0), -math.inf, math.log(5.0)], dtype=torch.float64)
    for shift in (-5e4, 0.0, 5e4):
        assert weights.log_mean_exp(log_w + shift).item() == pytest.approx(shift + math.log(2.0), abs=1e-10)
        assert weights.effective_sample_size(log_w + shift).item() == pytest.approx(64 / (4 * 30), abs=1e-10)
        w = log_w.exp()
        wanted = math.sqrt(w.var().item() / 4) / w.mean().item()
        assert weights.log_mean_exp_error(log_w + shift).item() == pytest.approx(wanted, abs=1e-10)
    equal = torch.full((1000,), 0.1)
    assert weights.effective_sample_size(equal).item() == pytest.approx(1.0, abs=1e-12)
    assert weights.effective_sample_size(equal).item() <= 1.0


def test_sums_over_one_axis() -> None:
    log_w = torch.randn(4, 3, dtype=torch.float64)
    for b in range(4):
        for function in (weights.log_mean_exp, weights.effective_sample_size, weights.log_mean_exp_error):
            assert function(log_w, 1)[b].item() == pytest.approx(function(log_w[b]).item(), abs=1e-13)


def test_no_weight_at_all() -> None:
    nothing = torch.full((3,), -math.inf)
    assert weights.log_mean_exp(nothing).item() == -math.inf
    assert weights.effective_sample_size(nothing).item() == 0
    assert weights.log_mean_exp_error(nothing).item() == math.inf
    assert weights.log_mean_exp_error(torch.zeros(1)).item() == math.inf


@pytest.mark.parametrize("function", [weights.log_mean_exp, weights.effective_sample_size, weights.log_mean_exp_error])
def test_misuse_of_sums(function) -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"log-weights must be below infinity, got {bad}"):
            function(torch.tensor([0.0, bad]))
    with pytest.raises(ValueError, match=r"at least one entry, got shape \(0,\)"):
        function(torch.zeros(0))


def test_misuse_of_the_momentum_weight() -> None:
    v = torch.randn(3, 4, 2)
    with pytest.raises(ValueError, match=r"must be a number for a dynamics with one momentum, got shape \(3,\)"):
        weights.kinetic(v, torch.ones(3))
    with pytest.raises(ValueError, match=r"one entry per step, shape \(3,\), got \(4,\)"):
        weights.kinetic(v, torch.ones(4), per_step=True)
    with pytest.raises(ValueError, match=r"must be positive: with λ = 0 the momenta have infinite mass"):
        weights.log_normaliser((2,), 1, 0.0)
    with pytest.raises(ValueError, match=r"must be a number or have shape \(2,\), got \(3,\)"):
        weights.log_normaliser((2,), 2, torch.ones(3))

"""Importance weights: the formulas against direct arithmetic, and where they are to refuse."""

import math

import pytest
import torch

from ade_fast import weights

ONE = torch.ones((), dtype=torch.float64)


def test_log_weights_of_one_momentum_by_hand() -> None:
    """Less the momenta's normaliser: 2π/λ to the power of half their number of elements."""
    f, log_q = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    v = torch.randn(5, 2, 3, dtype=torch.float64)
    found = weights.log_weights("", f, v, log_q, 0.7 * ONE)
    for b in range(5):
        wanted = f[b].item() - 0.35 * sum(e * e for e in v[b].flatten().tolist()) - log_q[b].item()
        assert found[b].item() == pytest.approx(wanted - 3 * math.log(2 * math.pi / 0.7), abs=1e-12)
    assert torch.equal(weights.log_weights("", f, None, log_q, 0.7 * ONE), f - log_q)
    assert weights.log_weights("", f.float(), v.float(), log_q.float(), ONE).dtype == torch.float64


def test_no_samples_have_no_weights() -> None:
    v = torch.zeros(0, 2)
    assert weights.log_weights("", torch.zeros(0), v, torch.zeros(0), ONE).shape == (0,)


def test_log_weights_of_a_momentum_per_step_by_hand() -> None:
    """Also where T = B, so that the two forms cannot be told apart by their shapes."""
    f, log_q, v = torch.randn(4).double(), torch.randn(4).double(), torch.randn(4, 4, 2).double()
    mass = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    found = weights.log_weights("", f, v, log_q, mass, per_step=True)
    normaliser = sum(math.log(2 * math.pi / m) for m in mass.tolist())
    for b in range(4):
        energy = sum(mass[t].item() / 2 * v[t, b].square().sum().item() for t in range(4))
        assert found[b].item() == pytest.approx((f[b] - log_q[b]).item() - energy - normaliser, abs=1e-12)
    same = weights.log_weights("", f, v, log_q, 2 * ONE, per_step=True)
    wanted = f - log_q - v.square().sum((0, 2)) - 4 * math.log(math.pi)
    torch.testing.assert_close(same, wanted, rtol=0, atol=1e-12)


def test_log_weights_gradient() -> None:
    f, v, log_q = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3,), (3, 2), (3,)))
    bound = lambda *a: weights.log_mean_exp(weights.log_weights("", *a, 0.3 * ONE))  # noqa: E731
    assert torch.autograd.gradcheck(bound, (f, v, log_q))


def test_log_normaliser_is_the_integral_of_the_momenta() -> None:
    grid = torch.linspace(-40, 40, 100_001, dtype=torch.float64)
    one = {m: math.log(torch.trapezoid(torch.exp(-m / 2 * grid.square()), grid).item()) for m in (0.4, 1.0, 3.0)}
    assert weights.log_normaliser((2, 3), 1, 0.4 * ONE).item() == pytest.approx(6 * one[0.4], abs=1e-10)
    several = weights.log_normaliser((2,), 3, torch.tensor([0.4, 1.0, 3.0], dtype=torch.float64))
    assert several.item() == pytest.approx(2 * sum(one.values()), abs=1e-10)


def test_figures_of_extreme_weights() -> None:
    """Shifts that exp cannot represent change nothing; weights of 0 count as samples."""
    log_w = torch.tensor([0.0, math.log(2.0), -math.inf, math.log(5.0)], dtype=torch.float64)
    w = log_w.exp()
    for shift in (-5e4, 0.0, 5e4):
        assert weights.log_mean_exp(log_w + shift).item() == pytest.approx(shift + math.log(2.0), abs=1e-10)
        assert weights.effective_sample_size(log_w + shift).item() == pytest.approx(64 / (4 * 30), abs=1e-10)
        wanted = math.sqrt(w.var().item() / 4) / w.mean().item()
        assert weights.log_mean_exp_error(log_w + shift).item() == pytest.approx(wanted, abs=1e-10)
    equal = torch.full((1000,), 0.1)
    assert weights.effective_sample_size(equal).item() == pytest.approx(1.0, abs=1e-12)
    assert weights.log_mean_exp_error(equal).item() == pytest.approx(0.0, abs=1e-8)
    assert weights.log_mean_exp_error(torch.zeros(1)).item() == math.inf


def test_figures_are_over_the_last_axis() -> None:
    log_w = torch.randn(4, 3, dtype=torch.float64)
    for function in (weights.log_mean_exp, weights.effective_sample_size, weights.log_mean_exp_error):
        assert function(log_w).tolist() == pytest.approx([function(row).item() for row in log_w], abs=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 7, 1000])
def test_one_operator_has_the_figures_of_torchs_own_operations(k: int, dtype: torch.dtype) -> None:
    log_w = 20 * torch.randn(k, dtype=dtype) - 300
    log_mean, ess = weights.log_weight_figures(log_w)
    assert log_mean.dtype == ess.dtype == dtype and log_mean.shape == ess.shape == ()
    rtol = 1e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(log_mean, weights.log_mean_exp(log_w), rtol=rtol, atol=0)
    torch.testing.assert_close(ess, weights.effective_sample_size(log_w).to(dtype), rtol=10 * rtol, atol=0)
    torch.library.opcheck(torch.ops.ade_fast.log_weight_figures.default, (log_w,))


@pytest.mark.parametrize("log_w", [[], [-math.inf] * 3, [0.0, math.inf], [0.0, math.nan], [-math.inf, 0.0]], ids=str)
def test_figures_of_weights_that_are_none_are_those_of_torchs_own_operations(log_w: list[float]) -> None:
    log_w = torch.tensor(log_w)
    log_mean, ess = weights.log_weight_figures(log_w)
    if len(log_w):
        torch.testing.assert_close(log_mean, weights.log_mean_exp(log_w), equal_nan=True)
        torch.testing.assert_close(ess, weights.effective_sample_size(log_w).float(), equal_nan=True)
    else:
        assert log_mean.isnan() and ess.isnan()


def test_figures_that_somebody_differentiates_or_maps_come_from_torchs_own_operations() -> None:
    log_w = torch.randn(3, 5, dtype=torch.float64)
    found = torch.func.vmap(weights.log_weight_figures)(log_w)
    torch.testing.assert_close(found, (weights.log_mean_exp(log_w), weights.effective_sample_size(log_w)))
    op = torch.ops.ade_fast.log_weight_figures
    with pytest.raises(RuntimeError, match="log_weight_figures has no derivative"):
        op(log_w[0].requires_grad_())[0].backward()
    with pytest.raises(RuntimeError, match=r"log_weight_figures: log_w must be \[B\], got shape \(3, 5\)"):
        op(torch.zeros(3, 5))
    with pytest.raises(RuntimeError, match="log_w must be float32 or float64"):
        op(torch.zeros(3, dtype=torch.bfloat16))


def test_momentum_weight() -> None:
    assert weights.as_momentum_weight("Layer", None).tolist() == 1.0
    given = torch.tensor([1.0, 2.0], requires_grad=True)
    kept = weights.as_momentum_weight("Layer", given)
    assert kept.tolist() == [1.0, 2.0] and kept.dtype == torch.float64 and not kept.requires_grad
    with pytest.raises(TypeError, match=r"Layer: momentum_weight must be a number or a tensor of shape .*, got 'a'"):
        weights.as_momentum_weight("Layer", "a")
    with pytest.raises(ValueError, match=r"Layer: .* must be a number or have shape \(T,\), got \(2, 2\)"):
        weights.as_momentum_weight("Layer", torch.ones(2, 2))
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"Layer: momentum_weight must be finite and >= 0, got"):
            weights.as_momentum_weight("Layer", bad)
    v = torch.randn(3, 4, 2)
    with pytest.raises(ValueError, match=r"Layer: .* a number where there is one momentum, got shape \(3,\)"):
        weights.kinetic("Layer", v, torch.ones(3))
    with pytest.raises(ValueError, match=r"Layer: .* one entry per step, shape \(3,\), got \(4,\)"):
        weights.kinetic("Layer", v, torch.ones(4), per_step=True)

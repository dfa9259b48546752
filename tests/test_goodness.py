"""The Stein test, histograms of f, diagnostics of chains."""

import math
import sys

import matplotlib as mpl
import pytest
import torch

import ade_fast as ade
from ade_fast import metrics


def gaussian(mean: float = 0.0) -> ade.GaussianPotential:
    f = ade.GaussianPotential(2).double()
    torch.nn.init.constant_(f.mean, mean)
    return f


def draws(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_stein_statistic_is_the_estimators() -> None:
    x = draws(40, 0)
    found = metrics.ksd_test(gaussian(0.3), x, 10)
    assert found.ksd2 == pytest.approx(ade.estimators.kernel_stein_discrepancy(gaussian(0.3), x).item(), abs=1e-12)
    assert found.null.shape == (10,)
    assert 1 / 11 <= found.p <= 1


def test_the_bootstrap_is_a_sum_over_signs() -> None:
    x, seeded = draws(12, 0), torch.Generator().manual_seed(4)
    found = metrics.ksd_test(gaussian(), x, 3, seeded, 1.1)
    signs = torch.where(torch.rand(3, 12, generator=seeded.manual_seed(4), dtype=torch.float64) < 0.5, -1, 1).cumprod(1)
    for row, value in zip(signs, found.null, strict=True):
        total = 0.0
        for i in range(12):
            for j in range(12):
                if i != j:
                    pair = ade.estimators.kernel_stein_discrepancy(gaussian(), x[[i, j]], 1.1).item()
                    total += (row[i] * row[j]).item() * pair
        assert value.item() == pytest.approx(total / 132, abs=1e-10)


def test_the_stein_test_has_its_level_and_power() -> None:
    """Of 200 sets of true draws about 5 % are rejected at 5 %, of shifted ones nearly all."""
    seeded = torch.Generator().manual_seed(0)
    true = [metrics.ksd_test(gaussian(), draws(60, i), 200, seeded).p for i in range(200)]
    rejected = sum(p <= 0.05 for p in true) / 200
    assert 0.01 <= rejected <= 0.10  # 2.6 standard errors
    assert sum(p <= 0.5 for p in true) / 200 == pytest.approx(0.5, abs=0.1)
    shifted = [metrics.ksd_test(gaussian(0.6), draws(60, i), 200, seeded).p for i in range(20)]
    assert sum(p <= 0.05 for p in shifted) >= 18


def test_correlated_draws_need_signs_that_persist() -> None:
    """An autoregressive chain whose stationary law is p_f: plain signs reject it far too often."""
    rejected = {0.5: 0, 0.05: 0}
    for seed in range(40):
        noise, x = draws(150, seed), torch.zeros(150, 2, dtype=torch.float64)
        x[0] = noise[0]
        for t in range(1, 150):
            x[t] = 0.8 * x[t - 1] + 0.6 * noise[t]
        for flip in rejected:
            seeded = torch.Generator().manual_seed(seed)
            rejected[flip] += metrics.ksd_test(gaussian(), x, 100, seeded, flip=flip).p <= 0.05
    assert rejected[0.5] >= 12
    assert rejected[0.05] <= rejected[0.5] / 2


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: metrics.ksd_test(gaussian(), draws(1, 0)), ValueError, "ksd_test: data must be .* at least 2"),
        (lambda: metrics.ksd_test(gaussian(), draws(5, 0), 0), ValueError, "n_bootstrap must be at least 1"),
        (lambda: metrics.ksd_test(gaussian(), draws(5, 0), flip=0.7), ValueError, "flip must be above 0"),
        (lambda: metrics.ksd_test(3, draws(5, 0)), TypeError, "potential must be callable"),
        (lambda: metrics.energy_histogram(gaussian(), {}), TypeError, "at least one"),
        (lambda: metrics.energy_histogram(gaussian(), {"a": draws(0, 0)}), ValueError, "a must be"),
        (lambda: metrics.chain_diagnostics(draws(1, 0)), ValueError, "at least 2 chains of 4 draws"),
        (lambda: metrics.chain_diagnostics(torch.full((2, 5), math.nan)), ValueError, "must be finite"),
    ],
)
def test_wrong_arguments(call, error, match) -> None:
    with pytest.raises(error, match=match):
        call()


def test_energy_histogram() -> None:
    x = draws(500, 0)
    found = metrics.energy_histogram(gaussian(), {"data": x, "same": x, "far": x + 20}, bins=30)
    f = gaussian()(x).detach()
    assert torch.allclose(found.values["data"], f)
    assert found.edges[0] == found.values["far"].min()
    assert found.edges[-1] == f.max()
    width = (found.edges[1] - found.edges[0]).item()
    for density in found.densities.values():
        assert density.sum().item() * width == pytest.approx(1.0)
    last = ((f >= found.edges[-2]).sum() / 500).item()
    assert found.densities["data"][-1].item() * width == pytest.approx(last)
    assert found.overlap("data", "same") == pytest.approx(1.0)
    assert found.overlap("data", "far") == 0.0
    constant = metrics.energy_histogram(lambda x: x.new_zeros(len(x)), {"data": x})
    assert constant.densities["data"].sum() > 0


def test_energies_are_drawn() -> None:
    from ade_fast import plots

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = metrics.energy_histogram(gaussian(), {"data": draws(50, 0), "samples": draws(50, 1)}, bins=10)
    ax = plots.energies(found)
    assert ax is plt.gca()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["data", "samples"]
    plt.close("all")
    _, ax = plt.subplots()
    assert plots.energies(found, ax, legend=False) is ax
    assert ax.get_legend() is None
    plt.close("all")


def test_chain_diagnostics() -> None:
    pytest.importorskip("arviz")
    independent = draws(4 * 500, 0).view(4, 500, 2)
    sticky = draws(4 * 1500, 1).view(4, 1500, 2)
    for t in range(1, 1500):
        sticky[:, t] = 0.6 * sticky[:, t - 1] + 0.8 * sticky[:, t]
    good, slow = metrics.chain_diagnostics(independent), metrics.chain_diagnostics(sticky)
    assert good.r_hat.shape == (2,)
    assert bool((good.r_hat < 1.01).all())
    assert bool(((good.ess_bulk > 1500) & (good.ess_tail > 1200)).all())
    assert torch.allclose(slow.ess_bulk, torch.full((2,), 6000 * 0.4 / 1.6).double(), rtol=0.3)
    apart = independent.clone()
    apart[0, :, 1] += 5
    r_hat = metrics.chain_diagnostics(apart).r_hat
    assert r_hat[0] < 1.01 < 1.5 < r_hat[1]
    assert metrics.chain_diagnostics(independent[..., 0]).r_hat.shape == ()


def test_chain_diagnostics_without_arviz(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match="pip install arviz"):
        metrics.chain_diagnostics(draws(20, 0).view(2, 10, 2))

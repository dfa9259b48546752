"""Appendix D: each estimator's parameter gradient is that of the saddle problem under the dual sampler it names."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import ade_fast as ade
from ade_fast import estimators as E
from ade_fast.initial.base import InitialDistribution


class Rows(InitialDistribution):
    """q⁰ that returns given points, each once: the empirical distribution without its sampling."""

    def __init__(self, data: torch.Tensor) -> None:
        super().__init__(tuple(data.shape[1:]))
        self.data = data
        self._anchor = data.new_empty(0)

    def sample_x(self, n, generator):
        return self.data[:n], None


def model(dim: int = 2) -> nn.Module:
    return ade.WithBase(ade.MLPPotential(dim, (32, 32), "silu").double(), 0.0, 1.5)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def gradient(loss: torch.Tensor, f: nn.Module) -> torch.Tensor:
    grads = torch.autograd.grad(loss, [*f.parameters()], allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                      for g, p in zip(grads, f.parameters(), strict=True)])  # fmt: skip


def test_contrastive_divergence_is_ade_without_the_gradient_through_its_sampler() -> None:
    """D.1: q⁰ the data, T HMC steps, the third term of (21) left out."""
    f, x = model(), draw(6, 2)
    layer = ade.Leapfrog(3, torch.tensor(0.2).double(), gradient="none")
    objective = ade.ADE(f, ade.DualSampler(Rows(x), layer))
    ell = objective.loss(x, generator=torch.Generator().manual_seed(1))
    chain = E.Chain(ade.Leapfrog(3, torch.tensor(0.2).double()))
    loss = E.contrastive_divergence(f, x, chain=chain, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(gradient(loss, f), -gradient(ell, f), atol=1e-10)


def test_improved_contrastive_divergence_is_ade_with_it() -> None:
    """(20) through all steps, momenta apart; the entropy of x in place of (x, v)'s constant one."""
    f, x = model(), draw(6, 2)
    layer = ade.Leapfrog(3, torch.tensor(0.2).double(), learn_step_size=False)
    objective = ade.ADE(f, ade.DualSampler(Rows(x), layer), momentum_weight=0.0)
    ell = objective.loss(x, generator=torch.Generator().manual_seed(1))
    seed = torch.Generator().manual_seed(1)
    loss = E.improved_contrastive_divergence(f, x, dynamics=layer, kl_weight=-1.0, generator=seed)
    v = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    entropy = _nearest_neighbour_entropy(layer(f, x, v).x)
    assert torch.allclose(gradient(loss, f), gradient(entropy, f) - gradient(ell, f), atol=1e-9)


def _nearest_neighbour_entropy(end: torch.Tensor) -> torch.Tensor:
    distances = (end[:, None] - end[None]).square().sum(2) + torch.diag(end.new_full((len(end),), math.inf))
    return end.shape[1] * 0.5 * distances.min(1).values.log().mean()


def test_score_matching_is_one_langevin_step() -> None:
    """D.2: η/2 times its gradient, up to O(η²), with the sampler held fixed. E over ξ by Gauss-Hermite quadrature."""
    f, x = model(1), draw(5, 1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    nodes, weights = (torch.from_numpy(a) / c for a, c in ((nodes, 1), (weights, math.sqrt(2 * math.pi))))
    exact = gradient(E.score_matching(f, x), f)
    errors = []
    for eta in (1e-2, 5e-3):
        layer = ade.Langevin(1, torch.tensor(eta).double(), gradient="none")
        loss = sum(
            w * (f(layer(f, x, noise=z.expand(1, 5, 1)).x).mean() - f(x).mean())
            for z, w in zip(nodes, weights, strict=True)
        )
        errors.append((gradient(loss, f) / (eta / 2) - exact).norm() / exact.norm())
    assert errors[0] < 0.1
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.02)


def test_stein_discrepancy_is_one_step_of_stein_variational_gradient_descent() -> None:
    """D.3: the derivative by η, at 0, of E[f(x') - f(x) + log det] with the others' kernels is the U-statistic."""
    f, x, h2 = model(), draw(5, 2), 1.3

    def direction(i: int, at: torch.Tensor) -> torch.Tensor:
        """h*(at), from all points but i."""
        total = torch.zeros_like(at)
        for j in range(5):
            if j != i:
                point = x[j].clone().requires_grad_()
                k = (-(point - at).square().sum() / (2 * h2)).exp()
                (dk,) = torch.autograd.grad(k, point, create_graph=True)
                (s,) = torch.autograd.grad(f(point[None]).sum(), point, create_graph=True)
                total = total + (s * k + dk) / 4
        return total

    total = 0.0
    for i in range(5):
        at = x[i].clone().requires_grad_()
        h = direction(i, at)
        divergence = sum(torch.autograd.grad(h[d], at, retain_graph=True)[0][d] for d in range(2))
        (s,) = torch.autograd.grad(f(at[None]).sum(), at)
        total += (s @ h + divergence).item() / 5
    assert E.kernel_stein_discrepancy(f, x, math.sqrt(h2)).item() == pytest.approx(total, abs=1e-10)


@pytest.mark.parametrize("blocks", [[(0,), (1,), (2,)], [(0, 2), (1,)]])
def test_composite_likelihood_resamples_a_block(blocks) -> None:
    """D.4: E_D ∇f minus ∇f where a block of the data is drawn anew from its conditional, over all blocks."""
    f, x = model(3), (torch.randint(0, 2, (6, 3)) * 2 - 1).double()
    dual = torch.zeros(())
    for point, block in itertools.product(x, blocks):
        others = point.repeat(2 ** len(block), 1)
        others[:, list(block)] = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(block)))).double()
        values = f(others)
        dual = dual + (values.detach().softmax(0) * values).sum() - f(point[None]).sum()
    states = torch.tensor([-1.0, 1.0]).double()
    loss = E.composite_likelihood(f, x, blocks, states)
    expected = gradient(dual / 6, f)
    assert torch.allclose(gradient(loss, f), expected, atol=1e-10)
    if len(blocks) == 3:
        assert torch.allclose(gradient(E.pseudo_likelihood(f, x, states), f), expected, atol=1e-10)


def test_nonlocal_contrast_draws_within_a_set() -> None:
    """D.5, (48)."""
    f, x, others = model(), draw(4, 2), draw(40, 2)[4:28].view(4, 3, 2, 2)
    weights = draw(4, 3).softmax(1)
    dual = torch.zeros(())
    for b, s in itertools.product(range(4), range(3)):
        values = f(torch.cat([x[b : b + 1], others[b, s]]))
        dual = dual + weights[b, s] * ((values.detach().softmax(0) * values).sum() - values[0]) / 4
    loss = E.nonlocal_contrastive(f, x, others, weights=weights)
    assert torch.allclose(gradient(loss, f), gradient(dual, f), atol=1e-10)


def test_probability_flow_weighs_its_transitions() -> None:
    """D.6, (49): ½ E[ Γ (∇f(x') + ∇_x f(x') ∇x' - ∇f(x)) ], the third term where the transitions follow f.

    Along a trajectory from (x, v) the weights and the derivatives are those of f - ½ |v|².
    """
    f, x = model(), draw(4, 2)
    near = x[:, None] + 0.3 * draw(12, 2).view(4, 3, 2)
    there, here = f(near.view(12, 2)).view(4, 3), f(x)[:, None]
    dual = 0.5 * ((0.5 * (there - here)).exp().detach() * (there - here)).mean()
    assert torch.allclose(gradient(E.minimum_probability_flow(f, x, near), f), gradient(dual, f), atol=1e-10)
    v = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for mode in ("full", "none"):
        layer = ade.Leapfrog(2, torch.tensor(0.4).double(), gradient=mode)
        loss = E.minimum_probability_flow(f, x, dynamics=layer, generator=torch.Generator().manual_seed(1))
        end, v_end, _ = ade.reference.leapfrog(f, x, v, torch.tensor(0.4).double(), 2)
        if mode == "none":
            end, v_end = end.detach(), v_end.detach()
        gain = f(end) - f(x) - 0.5 * (v_end.square() - v.square()).sum(1)
        dual = 0.5 * ((0.5 * gain).exp().detach() * gain).mean()
        assert torch.allclose(gradient(loss, f), gradient(dual, f), atol=1e-9)


def test_noise_contrast_reweighs_a_mixture() -> None:
    """D.7, (51) with its factor of 2: E_D ∇f - 2 E_{½ p_D + ½ p_n}[h ∇f]."""
    f, x = model(), draw(6, 2)
    noise = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2).double(), 2.0), 1)
    torch.manual_seed(5)
    loss = E.noise_contrastive(f, x, noise)
    torch.manual_seed(5)
    both = torch.cat([x, noise.sample((6,))])
    values = f(both)
    h = (values - noise.log_prob(both)).sigmoid().detach()
    dual = f(x).mean() - 2 * (h * values).mean()
    assert torch.allclose(gradient(loss, f), -gradient(dual, f), atol=1e-10)


def test_persistent_chains_are_ade_from_a_replay_buffer() -> None:
    """D.1: q⁰ the samples of earlier calls."""
    f, x = model(), draw(6, 2)
    replays = [ade.initial.Empirical(x[:1], 6, reinit=0.0) for _ in range(2)]
    for replay in replays:
        replay.update(draw(12, 2)[6:])
    layer = ade.Leapfrog(3, torch.tensor(0.2).double(), gradient="none")

    class Split(InitialDistribution):
        """x⁰ from the buffer; v⁰ afterwards, as a chain draws it."""

        def sample_x(self, n, generator):
            return replays[0].sample(n, generator=generator).x, None

    start = Split((2,))
    start._anchor = x.new_empty(0)
    ell = ade.ADE(f, ade.DualSampler(start, layer)).loss(x, generator=torch.Generator().manual_seed(1))
    loss = E.persistent_contrastive_divergence(
        f, x, replays[1], chain=E.Chain(layer), generator=torch.Generator().manual_seed(1)
    )
    assert torch.allclose(gradient(loss, f), -gradient(ell, f), atol=1e-10)

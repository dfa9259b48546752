"""Estimators against their formulas, written out again as loops over points in float64; and their arguments."""

import itertools
import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

import ade_fast as ade
from ade_fast import estimators as E

EXACT = {"abs": 1e-9, "rel": 1e-9}


def smooth(dim: int = 2) -> ade.MLPPotential:
    """Wide enough for the fused kernels, which then are what is tested; other modules come further down."""
    return ade.MLPPotential(dim, (32, 32), "silu").double()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def derivatives(f, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(∇f, ∇∇f) at one point, by functorch."""

    def g(point: torch.Tensor) -> torch.Tensor:
        return nn.Module.__call__(f, point[None]).reshape(())

    return torch.autograd.functional.jacobian(g, x), torch.autograd.functional.hessian(g, x)


@pytest.mark.parametrize("base", [False, True])
def test_score_matching(base: bool) -> None:
    f, x = smooth(), draw(7, 2)
    f = ade.WithBase(f, 0.3, torch.tensor([1.5, 0.7], dtype=torch.float64)) if base else f
    expected = 0.0
    for point in x:
        g, h = derivatives(f, point)
        expected += (0.5 * g.square().sum() + h.trace()).item() / len(x)
    assert E.score_matching(f, x).item() == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("variance_reduced", [False, True])
@pytest.mark.parametrize("base", [False, True])
def test_sliced_score_matching(variance_reduced: bool, base: bool) -> None:
    f, x, u = smooth(), draw(5, 2), draw(3, 5, 2)
    f = ade.WithBase(f, 0.3, 1.5) if base else f
    expected = 0.0
    for p, i in itertools.product(range(3), range(5)):
        g, h = derivatives(f, x[i])
        along = g.square().sum() if variance_reduced else (u[p, i] @ g).square()
        expected += (u[p, i] @ h @ u[p, i] + 0.5 * along).item() / 15
    found = E.sliced_score_matching(f, x, variance_reduced=variance_reduced, projections=u)
    assert found.item() == pytest.approx(expected, **EXACT)


def test_hutchinson_is_sliced_and_unbiased() -> None:
    f, x = smooth(), draw(4, 2)
    one = E.score_matching(f, x, laplacian="hutchinson", n_probes=3, generator=torch.Generator().manual_seed(1))
    same = E.sliced_score_matching(f, x, 3, generator=torch.Generator().manual_seed(1))
    assert one.item() == pytest.approx(same.item(), **EXACT)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2)), dtype=torch.float64)
    all_of_them = signs[:, None, :].expand(4, 4, 2)
    whole = E.sliced_score_matching(f, x, projections=all_of_them)
    assert whole.item() == pytest.approx(E.score_matching(f, x).item(), **EXACT)


def test_denoising_score_matching() -> None:
    f, x, noise = smooth(), draw(6, 2), draw(12, 2)[6:]
    expected = 0.0
    for point, e in zip(x, noise, strict=True):
        g, _ = derivatives(f, point + 0.3 * e)
        expected += 0.5 * (g + e / 0.3).square().sum().item() / 6
    assert E.denoising_score_matching(f, x, 0.3, noise=noise).item() == pytest.approx(expected, **EXACT)


def stein_by_autograd(f, x: torch.Tensor, h2: float) -> float:
    """Σ_{i≠j} of the Stein operator applied to k in both arguments, derivatives of k by autograd."""

    def k(a, b):
        return (-(a - b).square().sum() / (2 * h2)).exp()

    total, n = 0.0, len(x)
    scores = [derivatives(f, point)[0] for point in x]
    for i, j in itertools.permutations(range(n), 2):
        da, db = torch.autograd.functional.jacobian(k, (x[i], x[j]))
        mixed = torch.autograd.functional.hessian(k, (x[i], x[j]))[0][1].trace()
        total += (scores[i] @ scores[j] * k(x[i], x[j]) + scores[i] @ db + scores[j] @ da + mixed).item()
    return total / (n * (n - 1))


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_kernel_stein_discrepancy(offset: float) -> None:
    x = draw(6, 2) + offset
    f = ade.GaussianPotential(2).double()
    nn.init.constant_(f.mean, offset + 0.2)
    squares = sorted((x[i] - x[j]).square().sum().item() for i in range(6) for j in range(i))
    median = squares[7]  # of 15
    assert E.kernel_stein_discrepancy(f, x).item() == pytest.approx(stein_by_autograd(f, x, median), **EXACT)
    assert E.kernel_stein_discrepancy(f, x, 0.8).item() == pytest.approx(stein_by_autograd(f, x, 0.64), **EXACT)


class Chain2(nn.Module):
    """An Ising chain with fields: x in {-1, 1}^n."""

    def __init__(self, n: int = 4) -> None:
        super().__init__()
        self.coupling = nn.Parameter(0.5 * torch.randn(n, n, dtype=torch.float64).triu(1))
        self.field = nn.Parameter(torch.randn(n, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.double()
        return torch.einsum("bi,ij,bj->b", x, self.coupling, x) + x @ self.field


SPINS = torch.tensor([-1.0, 1.0], dtype=torch.float64)


def spins(n: int, sites: int, dtype=torch.float64) -> torch.Tensor:
    return (torch.randint(0, 2, (n, sites), generator=torch.Generator().manual_seed(1)) * 2 - 1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_pseudo_and_composite_likelihood(dtype: torch.dtype) -> None:
    f, x = Chain2(), spins(5, 4, dtype)
    for blocks in ([(0,), (1,), (2,), (3,)], [(0, 2), (3, 1)], [(0, 1, 2, 3)]):
        expected = 0.0
        for point, block in itertools.product(x, blocks):
            weights = []
            for states in itertools.product((-1, 1), repeat=len(block)):
                other = point.clone()
                for site, state in zip(block, states, strict=True):
                    other[site] = state
                weights.append(f(other[None]).exp().item())
            expected -= math.log(f(point[None]).exp().item() / sum(weights)) / len(x)
        assert E.composite_likelihood(f, x, blocks, SPINS).item() == pytest.approx(expected, **EXACT)
        if len(blocks) == 4:
            assert E.pseudo_likelihood(f, x, SPINS).item() == pytest.approx(expected, **EXACT)


def test_pseudo_likelihood_of_one_hot_sites() -> None:
    """A Potts model: the same in one-hot vectors as in numbers."""
    table = draw(3, 3)

    def numbers(x: torch.Tensor) -> torch.Tensor:
        return table[x[:, 0].long(), x[:, 1].long()]

    def one_hot(x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,ij,bj->b", x[:, 0], table, x[:, 1])

    x = torch.tensor([[0, 2], [1, 1], [2, 0]])
    eye = torch.eye(3, dtype=torch.float64)
    expected = E.pseudo_likelihood(numbers, x, torch.arange(3)).item()
    assert E.pseudo_likelihood(one_hot, eye[x], eye).item() == pytest.approx(expected, **EXACT)
    columns = table - table.logsumexp(0)
    rows = table - table.logsumexp(1, keepdim=True)
    by_hand = -sum((columns[i, j] + rows[i, j]).item() for i, j in x.tolist()) / 3
    assert expected == pytest.approx(by_hand, **EXACT)


def test_pseudo_likelihood_by_quadrature() -> None:
    """Of a Gaussian with correlation: conditionals are N(ρ x_other, 1 - ρ²)."""
    rho = 0.6
    precision = torch.linalg.inv(torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64))

    def f(x: torch.Tensor) -> torch.Tensor:
        return -0.5 * torch.einsum("bi,ij,bj->b", x, precision, x)

    x = draw(5, 2)
    nodes = torch.linspace(-10, 10, 401, dtype=torch.float64)
    found = E.pseudo_likelihood(f, x, nodes, weights=torch.full_like(nodes, 0.05))
    expected = -sum(Normal(rho * x[:, 1 - i], math.sqrt(1 - rho**2)).log_prob(x[:, i]).mean().item() for i in (0, 1))
    assert found.item() == pytest.approx(expected, **EXACT)


def test_nonlocal_contrastive() -> None:
    f, x, others = smooth(), draw(3, 2), draw(24, 2).view(3, 2, 4, 2)
    weights = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    expected = 0.0
    for b, s in itertools.product(range(3), range(2)):
        members = torch.cat([x[b : b + 1], others[b, s]])
        expected -= (weights[b, s] * f(members).log_softmax(0)[0]).item() / 3
    assert E.nonlocal_contrastive(f, x, others, weights=weights).item() == pytest.approx(expected, **EXACT)
    one = E.nonlocal_contrastive(f, x, others[:, 0]).item()
    first = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)
    assert one == pytest.approx(E.nonlocal_contrastive(f, x, others, weights=first).item(), **EXACT)


def test_minimum_probability_flow() -> None:
    f, x = Chain2(), spins(5, 4)
    flips = torch.stack([torch.stack([torch.cat([p[:i], -p[i : i + 1], p[i + 1 :]]) for i in range(4)]) for p in x])
    expected = 0.0
    for point, neighbour in ((x[b], flips[b, i]) for b in range(5) for i in range(4)):
        expected += math.exp(0.5 * (f(neighbour[None]) - f(point[None])).item()) / 20
    assert E.minimum_probability_flow(f, x, flips).item() == pytest.approx(expected, **EXACT)


def test_minimum_probability_flow_along_a_trajectory() -> None:
    f, x = smooth(), draw(4, 2)
    generator = partial(torch.Generator().manual_seed, 7)
    found = E.minimum_probability_flow(f, x, dynamics=ade.Leapfrog(3, 0.2).double(), generator=generator())
    v = torch.randn(4, 2, generator=generator(), dtype=torch.float64)
    x1, v1, _ = ade.reference.leapfrog(f, x, v, torch.tensor(0.2).double(), 3)
    gain = f(x1) - f(x) - 0.5 * (v1.square().sum(1) - v.square().sum(1))
    assert found.item() == pytest.approx((gain / 2).exp().mean().item(), **EXACT)


def test_noise_contrastive() -> None:
    f, x = smooth(), draw(6, 2)
    noise = Independent(Normal(torch.zeros(2).double(), 2 * torch.ones(2).double()), 1)
    torch.manual_seed(5)
    found = E.noise_contrastive(f, x, noise, log_normaliser=0.4, ratio=2)
    torch.manual_seed(5)
    y = noise.sample((12,))
    expected = 0.0
    for point in x:
        h = 1 / (1 + 2 * noise.log_prob(point).exp() / (f(point[None]) - 0.4).exp())
        expected -= h.log().item() / 6
    for point in y:
        h = 1 / (1 + 2 * noise.log_prob(point).exp() / (f(point[None]) - 0.4).exp())
        expected -= 2 * (1 - h).log().item() / 12
    assert found.item() == pytest.approx(expected, **EXACT)


def test_noise_contrastive_by_default_draws_the_datas_gaussian() -> None:
    f, x = smooth(), draw(50, 2) @ draw(2, 2) + 3
    generator = partial(torch.Generator().manual_seed, 7)
    found = E.noise_contrastive(f, x, generator=generator())
    noise = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T))
    y = x.mean(0) + torch.randn(50, 2, generator=generator(), dtype=torch.float64) @ noise.scale_tril.T
    odds = f(torch.cat([x, y])) - noise.log_prob(torch.cat([x, y]))
    expected = -odds[:50].sigmoid().log().mean() - (1 - odds[50:].sigmoid()).log().mean()
    assert found.item() == pytest.approx(expected.item(), **EXACT)


# --- Chains -------------------------------------------------------------------------------------------------


def test_contrastive_divergence_is_langevin_from_the_data() -> None:
    f, x = smooth(), draw(4, 2)
    layer = ade.Langevin(3, torch.tensor(0.2).double())
    replay = partial(torch.Generator().manual_seed, 7)
    found = E.contrastive_divergence(f, x, 3, 0.2, generator=replay())
    end = layer(f, x, generator=replay()).x.detach()
    assert found.item() == pytest.approx((f(end).mean() - f(x).mean()).item(), **EXACT)


def test_metropolis_of_langevin_is_mala_and_of_leapfrog_hmc() -> None:
    """Against the textbook's steps, written out with the same randomness."""
    f, x = ade.WithBase(smooth(), 0.0, 0.8), draw(12, 2)
    eta = torch.tensor(0.9).double()
    for mala in (True, False):
        replay = torch.Generator().manual_seed(7)
        layer = ade.Langevin(3, eta) if mala else ade.Leapfrog(4, eta)
        chain = E.Chain(layer, 1 if mala else 3, accept_reject=True)
        # An f that the kernels do not know: they draw their own randomness (test_mlp_chain.py).
        found = chain.run(lambda y: f(y), x, generator=torch.Generator().manual_seed(7))
        at, taken = x.clone(), 0
        for _ in range(3):
            v = torch.randn(12, 2, generator=replay, dtype=torch.float64)
            unit = torch.rand(12, generator=replay, dtype=torch.float64)
            for i in range(12):
                g = derivatives(f, at[i])[0]
                if mala:
                    y = at[i] + eta / 2 * g + eta.sqrt() * v[i]
                    back = at[i] - y - eta / 2 * derivatives(f, y)[0]
                    log_a = (f(y[None]) - f(at[i][None])).item() - (back.square().sum() / (2 * eta)).item()
                    log_a += 0.5 * v[i].square().sum().item()
                else:
                    y, w, _ = ade.reference.leapfrog(f, at[i : i + 1], v[i : i + 1], eta, 4)
                    log_a = (f(y) - f(at[i : i + 1])).item() - 0.5 * (w.square().sum() - v[i].square().sum()).item()
                    y = y[0]
                if unit[i].log() < log_a:
                    at[i], taken = y.detach(), taken + 1
        assert 0 < taken < 36
        assert torch.allclose(found.x, at, atol=1e-9)
        assert found.acceptance.item() == pytest.approx(taken / 36)


def test_metropolis_leaves_the_model_invariant_where_plain_langevin_does_not() -> None:
    f = ade.GaussianPotential(2).double()
    x = draw(20_000, 2)
    for accept, variance in ((True, 1.0), (False, 1 / (1 - 1.0 / 4))):  # ULA's: 1 / (1 - η/4)
        chain = E.Chain.langevin(15, 1.0, accept, like=x)
        end = chain.run(f, x, generator=torch.Generator().manual_seed(0)).x
        assert end.var().item() == pytest.approx(variance, abs=0.03)


def test_persistent_chains_go_on_where_they_ended() -> None:
    f, x = smooth(), draw(6, 2)
    replay = ade.initial.Empirical(x[:1], 6, reinit=0.0)
    E.persistent_contrastive_divergence(f, x, replay, 2, 0.1, generator=torch.Generator().manual_seed(1))
    first = replay.buffer.clone()
    assert int(replay.filled) == 6
    generator = torch.Generator().manual_seed(2)
    loss = E.persistent_contrastive_divergence(f, x, replay, 2, 0.1, generator=generator)
    generator.manual_seed(2)
    replay.buffer.copy_(first)
    replay.position.zero_()
    start = replay.sample(6, generator=generator).x
    end = ade.Langevin(2, torch.tensor(0.1).double())(f, start, generator=generator).x.detach()
    assert loss.item() == pytest.approx((f(end).mean() - f(x).mean()).item(), **EXACT)


@pytest.mark.parametrize("reference", [False, True])
def test_improved_contrastive_divergence(reference: bool) -> None:
    """Value and gradient of the three terms, eager, with copies of f where its authors stop the gradient."""
    import copy

    f, x, r = smooth(), draw(5, 2), draw(9, 2)[5:] if reference else None
    layer = ade.Leapfrog(3, torch.tensor(0.3).double(), learn_step_size=False)
    seeded = partial(torch.Generator().manual_seed, 7)
    found = E.improved_contrastive_divergence(f, x, dynamics=layer, kl_weight=0.7, reference=r, generator=seeded())
    got = torch.autograd.grad(found, [*f.parameters()][:-1])
    v = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    end, _, _ = ade.reference.leapfrog(f, x, v, torch.tensor(0.3).double(), 3)
    fixed = copy.deepcopy(f).requires_grad_(False)
    entropy = 0.0
    for i in range(5):
        others = [end[j] for j in range(5) if j != i] if r is None else list(r)
        distances = [(end[i] - other).square().sum().sqrt() for other in others]
        entropy = entropy + 2 * min(distances, key=torch.Tensor.item).log() / 5
    expected = f(end.detach()).mean() - f(x).mean() + 0.7 * (-fixed(end).mean() - entropy)
    assert found.item() == pytest.approx(expected.item(), **EXACT)
    for a, b in zip(got, torch.autograd.grad(expected, [*f.parameters()][:-1]), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


# --- All of them --------------------------------------------------------------------------------------------

NODES = torch.linspace(-4, 4, 9, dtype=torch.float64)
LOSSES = {
    "contrastive_divergence": lambda f, x: E.contrastive_divergence(f, x, 3, generator=seed()),
    "persistent_contrastive_divergence": lambda f, x: E.persistent_contrastive_divergence(
        f, x, ade.initial.Empirical(x, 10), 3, generator=seed()
    ),
    "improved_contrastive_divergence": lambda f, x: E.improved_contrastive_divergence(
        f, x, 3, kl_weight=0.0, generator=seed()
    ),
    "score_matching": E.score_matching,
    "sliced_score_matching": lambda f, x: E.sliced_score_matching(f, x, generator=seed()),
    "denoising_score_matching": lambda f, x: E.denoising_score_matching(f, x, generator=seed()),
    "kernel_stein_discrepancy": E.kernel_stein_discrepancy,
    "pseudo_likelihood": lambda f, x: E.pseudo_likelihood(f, x, NODES, weights=torch.ones_like(NODES)),
    "composite_likelihood": lambda f, x: E.composite_likelihood(f, x, [(0, 1)], NODES, weights=torch.ones_like(NODES)),
    "nonlocal_contrastive": lambda f, x: E.nonlocal_contrastive(f, x, generator=seed()),
    "minimum_probability_flow": lambda f, x: E.minimum_probability_flow(f, x, generator=seed()),
    "noise_contrastive": lambda f, x: E.noise_contrastive(f, x, generator=seed()),
}


def seed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_every_estimator_is_in_the_table() -> None:
    assert {*LOSSES} | {"Chain", "ChainEnd"} == {*E.__all__}


# The samples of these depend on f, and no gradient goes through them: finite differences would see it.
THROUGH_SAMPLES = {"contrastive_divergence", "persistent_contrastive_divergence", "improved_contrastive_divergence"}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    f, x = smooth(), draw(6, 2)
    weight = f.linears[1].weight
    loss = LOSSES[name](f, x)
    assert loss.dim() == 0
    assert loss.dtype == torch.float64
    (grad,) = torch.autograd.grad(loss, weight)
    if name in THROUGH_SAMPLES:
        assert bool(grad.isfinite().all())
        assert float(grad.abs().max()) > 0
        return
    direction = draw(*weight.shape)
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            weight.add_(step * direction)
            values.append(LOSSES[name](f, x).item())
            weight.add_(-step * direction)
    assert (values[0] - values[1]) / 2e-5 == pytest.approx((grad * direction).sum().item(), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_without_gradients_the_value_is_the_same(name: str) -> None:
    f, x = smooth(), draw(6, 2)
    with torch.no_grad():
        value = LOSSES[name](f, x)
    assert not value.requires_grad
    assert value.item() == pytest.approx(LOSSES[name](f, x).item(), **EXACT)


@pytest.mark.parametrize("name", LOSSES)
def test_images_and_trailing_ones_and_other_modules(name: str) -> None:
    """Events of any shape, a potential of (B, 1) that no fused kernel knows, weights behind a parametrisation."""
    inner = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 4)).double()
    f = nn.Sequential(nn.Flatten(), inner, nn.Softplus(), nn.Linear(4, 1).double())
    x = draw(6, 1, 2, 1)
    loss = LOSSES[name](f, x)
    loss.backward()
    original = inner.parametrizations.weight.original
    assert original.grad is not None
    assert float(original.grad.abs().max()) > 0


@pytest.mark.parametrize("name", LOSSES)
def test_wrong_data_and_potentials(name: str) -> None:
    f = smooth()
    for wrong, error in ((draw(6, 2).numpy(), TypeError), (draw(6), ValueError), (draw(0, 2), ValueError)):
        with pytest.raises(error, match=rf"{name}|Empirical"):
            LOSSES[name](f, wrong)
    with pytest.raises(TypeError, match=f"{name}: potential must be callable"):
        LOSSES[name](3, draw(6, 2))
    with pytest.raises(ValueError, match=r"must return \(\d+,\) or \(\d+, 1\)|must map"):
        LOSSES[name](lambda x: x, draw(6, 2))


def test_score_matching_warns_of_a_piecewise_linear_potential() -> None:
    x = draw(6, 2)
    relu = ade.MLPPotential(2, (8, 8), "relu").double()
    for f in (relu, ade.WithBase(relu, 0.0, 2.0)):
        for estimator in (E.score_matching, E.sliced_score_matching):
            with pytest.warns(UserWarning, match="piecewise linear"):
                estimator(f, x)

    def saddle(x: torch.Tensor) -> torch.Tensor:  # its Laplacian is 0 as well
        return x[:, 0].square() - x[:, 1].square()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        E.score_matching(saddle, x)
        E.score_matching(smooth(), x)
        E.denoising_score_matching(relu, x)


SPIN_DATA = spins(3, 4)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda f, x: E.score_matching(f, x, laplacian="some"), ValueError, "laplacian must be 'exact' or"),
        (lambda f, x: E.denoising_score_matching(f, x, 0.0), ValueError, "noise_std must be positive"),
        (lambda f, x: E.sliced_score_matching(f, x, projections=x), ValueError, r"projections must have shape \(P, 6"),
        (lambda f, x: E.kernel_stein_discrepancy(f, x[:1]), ValueError, "B at least 2"),
        (lambda f, x: E.pseudo_likelihood(f, x, SPINS), ValueError, "data must consist of the states"),
        (lambda f, x: E.composite_likelihood(f, SPIN_DATA, [(0, 0)], SPINS), ValueError, "distinct sites from 0 to 3"),
        (lambda f, x: E.composite_likelihood(f, SPIN_DATA, [(4,)], SPINS), ValueError, "distinct sites from 0 to 3"),
        (lambda f, x: E.composite_likelihood(f, SPIN_DATA, 3, SPINS), TypeError, "blocks must be a sequence"),
        (
            lambda f, x: E.composite_likelihood(Chain2(13), spins(3, 13), [range(13)], SPINS),
            ValueError,
            "at most 4096 states",
        ),
        (lambda f, x: E.nonlocal_contrastive(f, x, x), ValueError, r"others must have shape \(6, S, M, 2\)"),
        (lambda f, x: E.minimum_probability_flow(f, x, x), ValueError, r"neighbours must have shape \(6, M, 2\)"),
        (
            lambda f, x: E.minimum_probability_flow(f, x, x[:, None], dynamics=ade.Leapfrog(1)),
            ValueError,
            "neighbours or dynamics",
        ),
        (lambda f, x: E.noise_contrastive(f, x, ade.initial.Gaussian(2)), TypeError, "Gaussian has none"),
        (lambda f, x: E.noise_contrastive(f, x, Normal(torch.zeros(2), 1.0)), TypeError, "data's dtype"),
        (lambda f, x: E.noise_contrastive(f, x[:2]), ValueError, "no more points than dimensions"),
        (lambda f, x: E.persistent_contrastive_divergence(f, x, x), TypeError, "Empirical with a buffer_size"),
        (lambda f, x: E.contrastive_divergence(f, x, chain=3), TypeError, "ade.estimators.Chain or None"),
        (lambda f, x: E.contrastive_divergence(f, x, 3, -0.1), ValueError, "step_size must be positive"),
        (lambda f, x: E.Chain(ade.DampedLeapfrog(1, 0.1), 1, True), TypeError, "Leapfrog or Langevin"),
        (lambda f, x: E.Chain(ade.Langevin(1, noise_std=1.0), 1, True), ValueError, "noise_std=None"),
        (lambda f, x: E.Chain(ade.Leapfrog(1, sample_range=(0, 1)), 1, True), ValueError, "sample_range"),
        (
            lambda f, x: E.improved_contrastive_divergence(f, x, dynamics=ade.Langevin(1, gradient="stopped")),
            ValueError,
            "gradient='full'",
        ),
        (lambda f, x: E.improved_contrastive_divergence(f, x[:1]), ValueError, "2 points at least"),
        (lambda f, x: E.contrastive_divergence(f, x, generator=3), TypeError, "generator must be"),
    ],
)
def test_wrong_arguments(call, error, match) -> None:
    with pytest.raises(error, match=match):
        call(smooth(), draw(6, 2))

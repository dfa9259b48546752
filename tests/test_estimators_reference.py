"""The estimators against `ade_fast.reference_estimators`, values and gradients, in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ade_fast as ade
from ade_fast import estimators as E
from ade_fast import reference_estimators as reference
from ade_fast.fields import fused_sum

DOUBLE = torch.float64


class Spins(nn.Module):
    """A potential of sites that is smooth in them."""

    def __init__(self) -> None:
        super().__init__()
        self.coupling = nn.Parameter(torch.randn(3, 3, dtype=DOUBLE))
        self.field = nn.Parameter(torch.randn(3, dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,ij,bj->b", x, self.coupling, x) + x @ self.field


def agree(f: nn.Module, found: Tensor, wanted: Tensor) -> None:
    assert found.item() == pytest.approx(wanted.item(), abs=1e-9, rel=1e-9)
    of = [*f.parameters()]
    got, want = (torch.autograd.grad(loss, of, allow_unused=True) for loss in (found, wanted))
    for p, *both in zip(of, got, want, strict=True):  # a constant's gradient is 0, or is not there
        a, b = (torch.zeros_like(p) if g is None else g for g in both)
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def smooth(base: bool) -> nn.Module:
    """Wide enough for the fused kernels."""
    f = ade.MLPPotential(2, (32, 32), "silu")
    return (ade.WithBase(f, 0.3, 1.5) if base else f).to(DOUBLE)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE)


@pytest.mark.parametrize("accept", [False, True])
@pytest.mark.parametrize("base", [False, True])
def test_contrastive_divergence(base: bool, accept: bool) -> None:
    """Ends of the same chains; persistent ones, from the buffer."""
    f, x = smooth(base), draw(6, 2)
    chain = E.Chain.langevin(3, 0.3, accept, like=x)

    def ends(start: Tensor, seed: int) -> Tensor:
        return chain.run(f, start, generator=torch.Generator().manual_seed(seed)).x

    options = {"chain": chain, "generator": torch.Generator().manual_seed(1)}
    agree(f, E.contrastive_divergence(f, x, **options), reference.contrastive(f, x, ends(x, 1)))
    replay = ade.initial.Empirical(x + 1, 6, reinit=0.0)
    found = E.persistent_contrastive_divergence(f, x, replay, **options | {"generator": torch.Generator()})
    agree(f, found, reference.contrastive(f, x, replay.buffer))


@pytest.mark.parametrize("base", [False, True])
def test_score_matching(base: bool) -> None:
    f, x = smooth(base), draw(5, 2)
    agree(f, E.score_matching(f, x), reference.score_matching(f, x))


@pytest.mark.parametrize("activation", ["silu", "softplus", "tanh", "elu"])
def test_score_matching_by_one_sweep_is_that_by_double_backward(activation: str) -> None:
    f, x = ade.MLPPotential(3, (32, 64), activation).double(), draw(5, 3)
    whole = ade.WithBase(f, 0.2, 1.5)
    assert fused_sum(f, x) is not None, "the sweep would not be taken"
    agree(f, E.score_matching(whole, x), E.score_matching(lambda points: whole(points), x))
    with torch.inference_mode():
        inferred = x.clone()
    agree(f, E.score_matching(whole, inferred), E.score_matching(whole, x))
    with torch.no_grad():
        assert E.score_matching(whole, x).item() == pytest.approx(E.score_matching(whole, x).item(), abs=0)
        nn.init.zeros_(f.layers[-1].weight)
        with pytest.warns(UserWarning, match="piecewise linear at the data"):
            E.score_matching(f, x)


def test_stein() -> None:
    f, x = smooth(True), draw(5, 2)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-(a - b).square().sum() / (2 * 0.8**2)).exp()

    agree(f, E.kernel_stein_discrepancy(f, x, 0.8), reference.stein(f, x, kernel))


def test_conditionals() -> None:
    f, states = Spins(), torch.tensor([-1.0, 0.5, 2.0], dtype=DOUBLE)
    x = states[torch.randint(0, 3, (5, 3))]
    agree(f, E.pseudo_likelihood(f, x, states), reference.pseudo_likelihood(f, x, states))
    for blocks in ([(0, 2), (1,)], [(0, 1, 2)]):
        agree(f, E.composite_likelihood(f, x, blocks, states), reference.composite_likelihood(f, x, blocks, states))


def test_nonlocal_contrastive() -> None:
    f, x, others = smooth(True), draw(5, 2), draw(5, 3, 4, 2)
    weights = torch.rand(5, 3, dtype=DOUBLE)
    weights = weights / weights.sum(1, keepdim=True)
    found = E.nonlocal_contrastive(f, x, others, weights=weights)
    agree(f, found, reference.nonlocal_contrastive(f, x, others, weights))


def test_probability_flow() -> None:
    f, x, near = smooth(True), draw(5, 2), draw(5, 3, 2)
    agree(f, E.minimum_probability_flow(f, x, near), reference.probability_flow(f, x, near))


def test_noise_contrastive() -> None:
    f, x = smooth(True), draw(6, 2)
    noise = torch.distributions.MultivariateNormal(draw(2), torch.eye(2, dtype=DOUBLE) * 1.7)

    def loss(draws: Callable[[], Tensor]) -> Tensor:
        torch.manual_seed(5)
        return draws()

    found = loss(lambda: E.noise_contrastive(f, x, noise, log_normaliser=0.4, ratio=2))
    y = loss(lambda: noise.sample((12,)))
    agree(f, found, reference.noise_contrastive(f, x, y, noise.log_prob, 0.4))

"""Dynamics one after another: against the layers by hand, the dense Jacobian, closed forms, and inside ADE."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from cases import DOUBLE, DriftNetwork, KickNetwork, assert_close, dense_slogdet, make_potential, normal, spectral_mlp
from density_cases import DIM, gaussian
from torch import Tensor, nn

import ade_fast as ade
from ade_fast import initial, metrics, weights
from ade_fast.initial.base import standard_normal_log_density

EVENT = (3,)


def layers() -> list[nn.Module]:
    """One of each kind that hands its momentum on, all different, float64."""
    torch.manual_seed(5)
    scale_v, scale_x = KickNetwork(EVENT, EVENT, 0.3), DriftNetwork(EVENT, EVENT, 0.3)
    return [
        ade.Leapfrog(2, 0.2).double(),
        ade.GeneralizedLeapfrog(2, 0.1, scale_v=scale_v, scale_x=scale_x).double(),
        ade.DampedLeapfrog(1, 0.3, 0.8, drift_step=0.4).double(),
    ]


class DrawnOutput(NamedTuple):
    x: Tensor
    v: Tensor
    log_det: Tensor
    log_noise: Tensor


class RandomWalk(nn.Module):
    """x ← x + s ξ, T times, as a dynamics that draws a momentum s ξ per step (its drift left out)."""

    def __init__(self, n_steps: int, std: float) -> None:
        super().__init__()
        self.n_steps, self.std = n_steps, std

    def momentum_shape(self, event: tuple[int, ...]) -> None:
        return None

    def forward(self, potential: Callable, x0: Tensor, v0: None = None, *, generator=None, context=None) -> DrawnOutput:
        assert v0 is None
        xi = torch.randn(self.n_steps, *x0.shape, generator=generator, dtype=x0.dtype)
        density = standard_normal_log_density(xi.transpose(0, 1).flatten(1)) - xi[0, 0].numel() * self.n_steps * (
            math.log(self.std)
        )
        return DrawnOutput(x0 + self.std * xi.sum(0), self.std * xi, x0.new_zeros(len(x0)), density)


class Shift(nn.Module):
    """x ← c x, a dynamics without any momentum."""

    has_momentum = False

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=DOUBLE))

    def momentum_shape(self, event: tuple[int, ...]) -> None:
        return None

    def forward(self, potential: Callable, x0: Tensor, v0: None = None, *, generator=None, context=None):
        assert v0 is None
        return ade.DynamicsOutput(self.factor * x0, None, x0[0].numel() * self.factor.log().expand(len(x0)))


def test_it_is_its_layers_one_after_another() -> None:
    """Values, and gradients of everything."""
    potential, stack = make_potential("silu"), layers()
    together = ade.Sequential(*stack)
    parameters = [*potential.parameters(), *together.parameters()]
    found = []
    for by_hand in (False, True):
        x, v = normal(4, *EVENT, seed=1).requires_grad_(), normal(4, *EVENT, seed=2).requires_grad_()
        if by_hand:
            end, log_det = ade.DynamicsOutput(x, v, 0.0), 0.0
            for layer in stack:
                end = layer(potential, end.x, end.v)
                log_det = log_det + end.log_det
        else:
            end = together(potential, x, v)
            log_det = end.log_det
            assert torch.equal(end.log_noise, torch.zeros(4, dtype=DOUBLE))
        loss = (end.x.square().sum(1) + end.v.sin().sum(1) + log_det).mean()
        gradients = torch.autograd.grad(loss, [x, v, *parameters], allow_unused=True)
        found.append((end.x, end.v, log_det, *gradients))
    for i, (one, other) in enumerate(zip(*found, strict=True)):
        assert_close(one, other, f"output {i}", 1e-14)
    assert [plan is not None for plan in together.last_plans] == [True, True, True]


def test_leapfrog_in_two_parts_is_leapfrog() -> None:
    """The half kicks at the seam make a whole one."""
    potential, x, v = make_potential("silu"), normal(4, *EVENT, seed=1), normal(4, *EVENT, seed=2)
    parts = ade.Sequential(ade.Leapfrog(2, 0.2).double(), ade.Sequential(ade.Leapfrog(3, 0.2).double()))
    whole = ade.Leapfrog(5, 0.2).double()(potential, x, v)
    end = parts(potential, x, v)
    assert_close(end.x, whole.x, "x", 1e-12)
    assert_close(end.v, whole.v, "v", 1e-12)
    assert len(parts.last_plans) == 2 and len(parts) == 2 and isinstance(parts[0], ade.Leapfrog)


def test_log_det_is_that_of_the_dense_jacobian() -> None:
    potential, together = make_potential("silu"), ade.Sequential(*layers(), Shift(0.7))
    x, v = normal(3, *EVENT, seed=1), normal(3, *EVENT, seed=2)
    found = together(potential, x, v).log_det
    assert found.abs().min() > 0.1
    wanted = dense_slogdet(lambda x, v: together(potential, x, v)[:2], x, v)
    assert_close(found, wanted, "log_det", 1e-10)


def test_gradcheck() -> None:
    torch.manual_seed(3)
    potential = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 1)).double()
    together = ade.Sequential(ade.Leapfrog(1, 0.2).double(), Shift(0.9), ade.Leapfrog(2, 0.3).double())
    parameters = (*together.parameters(), *potential.parameters())
    inputs = (normal(2, 3, seed=1).requires_grad_(), normal(2, 3, seed=2).requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(lambda x, v, *_: together(potential, x, v)[:3], inputs, atol=1e-6, rtol=1e-5)


def test_momentum_passes_by_a_layer_without_one() -> None:
    potential, x, v = make_potential("silu"), normal(4, *EVENT, seed=1), normal(4, *EVENT, seed=2)
    end = ade.Sequential(Shift(0.5), Shift(0.5))(potential, x)
    assert end.v is None
    assert_close(end.x, x / 4, "x")
    assert_close(end.log_det, torch.full((4,), -6 * math.log(2), dtype=DOUBLE), "log_det")
    leapfrog = ade.Leapfrog(2, 0.2).double()
    mixed, alone = ade.Sequential(Shift(0.5), leapfrog)(potential, x, v), leapfrog(potential, x / 2, v)
    assert torch.equal(mixed.x, alone.x) and torch.equal(mixed.v, alone.v)


def test_layers_that_draw_their_own_momenta() -> None:
    """One v of all of them, and the sum of their densities."""
    together, x = ade.Sequential(RandomWalk(2, 0.3), Shift(0.5), RandomWalk(3, 0.7)), normal(4, *EVENT, seed=1)
    assert together.momentum_shape(EVENT) is None
    end = together(make_potential("silu"), x, generator=torch.Generator().manual_seed(4))
    assert end.v.shape == (5, 4, *EVENT)
    assert_close(end.x, (x + end.v[:2].sum(0)) / 2 + end.v[2:].sum(0), "x", 1e-14)
    wanted = sum(
        torch.distributions.Normal(torch.zeros((), dtype=DOUBLE), std).log_prob(part).sum((0, 2))
        for std, part in ((0.3, end.v[:2]), (0.7, end.v[2:]))
    )
    assert_close(end.log_noise, wanted, "log_noise", 1e-12)


def test_whether_there_is_a_momentum() -> None:
    stacks = (Shift(0.5),), (RandomWalk(1, 0.3), Shift(0.5)), (Shift(0.5), ade.Leapfrog(1))
    assert [ade.Sequential(ade.Sequential(*stack)).has_momentum for stack in stacks] == [False, True, True]
    assert not ade.ContinuousLangevin().has_momentum


def test_momenta_drawn_inside_are_those_of_the_generator() -> None:
    potential, together, x = make_potential("silu"), ade.Sequential(*layers()), normal(4, *EVENT, seed=1)
    v = torch.randn(4, *EVENT, dtype=DOUBLE, generator=torch.Generator().manual_seed(7))
    found = together(potential, x, generator=torch.Generator().manual_seed(7))
    assert torch.equal(found.x, together(potential, x, v).x)


def test_a_parametrised_potential_is_one_function_along_the_sequence() -> None:
    """In training mode each evaluation of spectral norm is a power iteration: here there is one a call."""
    torch.manual_seed(1)
    potential = spectral_mlp(nn.SiLU).double()
    together, x, v = ade.Sequential(*layers()), normal(4, *EVENT, seed=1), normal(4, *EVENT, seed=2)
    end = together(potential, x, v)  # moves the vectors, and evaluates with what comes of it
    potential.eval()
    assert_close(together(potential, x, v).x, end.x, "x", 1e-14)


# --- In the dual sampler ------------------------------------------------------------------------------------------


def annealed() -> ade.Sequential:
    return ade.Sequential(ade.Leapfrog(1, 0.2), ade.AnnealedLeapfrog(4, 0.4), ade.GeneralizedLeapfrog(1, scale_x=-0.1))


STACKS: dict[str, Callable[[], ade.Sequential]] = {
    "handed on": lambda: ade.Sequential(ade.Leapfrog(2, 0.3), ade.GeneralizedLeapfrog(2, 0.2, scale_x=-0.1)),
    "none": lambda: ade.Sequential(Shift(0.7), Shift(0.9)),
    "some": lambda: ade.Sequential(Shift(0.7), ade.Leapfrog(2, 0.3)),
    "annealed": annealed,
    "drawn": lambda: ade.Sequential(RandomWalk(2, 0.4), Shift(0.7), RandomWalk(1, 0.3)),
}
every_stack = pytest.mark.parametrize("kind", list(STACKS))


def sampler(kind: str, flow: bool = False) -> ade.DualSampler:
    start = initial.PlanarFlow(DIM, 2, std=2.0) if flow else initial.Gaussian(DIM, 2.0)
    return ade.DualSampler(start, STACKS[kind]()).double()


@every_stack
@pytest.mark.parametrize("flow", [False, True], ids=["gaussian", "flow"])
def test_mean_weight_is_the_normaliser(kind: str, flow: bool) -> None:
    potential, log_z = gaussian()
    mass = 1.0 if kind != "drawn" else torch.tensor([6.0, 6.0, 10.0])
    found = metrics.log_z(
        potential, sampler(kind, flow).requires_grad_(False), 20_000, momentum_weight=mass,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert abs(found.log_z - log_z) < 3.5 * found.standard_error
    assert found.standard_error < 0.05


@every_stack
@pytest.mark.parametrize("bounds", ["elbo", "importance"])
def test_ade_trains_through_it(kind: str, bounds: str) -> None:
    dual = sampler(kind)
    potential = ade.MLPPotential(DIM, (8,), "silu").double()
    model = ade.ADE(potential, dual, bound=bounds, sampler_bound="renyi" if bounds == "importance" else "elbo")
    data = normal(16, DIM, seed=1)
    before = [p.detach().clone() for p in (*potential.parameters(), *dual.parameters())]
    metrics_ = [model.step(data, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    assert all(math.isfinite(m["loss"]) and 0 < m["ess"] <= 1 for m in metrics_)
    moved = [not torch.equal(p, b) for p, b in zip((*potential.parameters(), *dual.parameters()), before, strict=True)]
    assert sum(moved) >= len(moved) - 1  # f's last bias cancels


def test_gradients_of_both_players_with_two_bounds() -> None:
    """The graph is not cut in a sequence: both players' gradients against those of two losses of their own."""
    dual, potential, data = sampler("annealed"), ade.MLPPotential(DIM, (8,), "silu").double(), normal(16, DIM, seed=1)
    players = [*potential.parameters()], [*dual.parameters()]

    def gradients(bound: str, sampler_bound: str, of: list[Tensor]) -> tuple[Tensor, ...]:
        model = ade.ADE(potential, dual, bound=bound, sampler_bound=sampler_bound)
        model.loss(data, generator=torch.Generator().manual_seed(1)).backward()
        found = tuple(p.grad.clone() for p in of)
        for p in (*players[0], *players[1]):
            p.grad = None
        return found

    for both, alone in (
        (gradients("importance", "renyi", players[0]), gradients("importance", "importance", players[0])),
        (gradients("importance", "renyi", players[1]), gradients("elbo", "renyi", players[1])),
    ):
        for one, other in zip(both, alone, strict=True):
            assert_close(one, other, "gradient", 1e-10)


def test_a_clip_anywhere_takes_the_weights_away() -> None:
    clipping = ade.Sequential(ade.Leapfrog(1), ade.Sequential(ade.Leapfrog(1, sample_range=(-1, 1))))
    with pytest.warns(UserWarning, match="clips samples to sample_range"):
        dual = ade.DualSampler(initial.Gaussian(DIM), clipping)
    assert "sample_range" in weights.why_no_weights(dual, torch.ones(()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dual = ade.DualSampler(initial.Gaussian(DIM), ade.Sequential(ade.Leapfrog(1)))
    assert weights.why_no_weights(dual, torch.ones(())) is None


def test_damping_anywhere_is_warned_about() -> None:
    dual = ade.DualSampler(initial.Gaussian(DIM), ade.Sequential(ade.Leapfrog(1), ade.DampedLeapfrog(1, 0.1)))
    with pytest.warns(UserWarning, match="DampedLeapfrog shrinks momenta"):
        ade.ADE(ade.MLPPotential(DIM), dual, bound="importance")


# --- Misuses ------------------------------------------------------------------------------------------------------


def run(*stack: nn.Module, v0: Tensor | None = None) -> Any:
    return ade.Sequential(*stack)(make_potential("silu"), normal(4, *EVENT, seed=1), v0)


latent = {"momentum_shape": 2, "shift_v": KickNetwork(EVENT, (2,), 1.0), "shift_x": DriftNetwork((2,), EVENT, 1.0)}
MISUSES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "empty": (lambda: ade.Sequential(), ValueError, "Sequential: dynamics must be given, at least one, got none"),
    "not a layer": (lambda: ade.Sequential(ade.Leapfrog(1), nn.Linear(2, 2)), TypeError, "layer 1 .* got Linear"),
    "a list": (lambda: ade.Sequential([ade.Leapfrog(1)]), TypeError, "layer 0 must be a dynamics layer.*got list"),
    "two shapes": (
        lambda: run(Shift(0.5), ade.Leapfrog(1), ade.GeneralizedLeapfrog(1, **latent).double()),
        ValueError,
        r"must have one shape, got \(3,\) for layer 1 \(Leapfrog\) and \(2,\) for layer 2 \(GeneralizedLeapfrog\)",
    ),
    "two kinds": (
        lambda: run(ade.Leapfrog(1), RandomWalk(2, 0.1)),
        ValueError,
        r"layer 1 \(RandomWalk\) draws a momentum per step, and layer 0 \(Leapfrog\) has one that is handed on",
    ),
    "a momentum for nobody": (
        lambda: run(Shift(0.5), v0=normal(4, *EVENT, seed=2)),
        ValueError,
        "v0 must be None: no layer takes a momentum",
    ),
    "a momentum of another shape": (
        lambda: run(ade.Leapfrog(1), v0=normal(4, 2, seed=2)),
        ValueError,
        r"Sequential: v0 must have x0's shape \(4, 3\), got \(4, 2\)",
    ),
    "annealed on its own": (lambda: run(ade.AnnealedLeapfrog(2)), TypeError, "initial must be given"),
    "annealed from data": (
        lambda: ade.DualSampler(initial.Empirical(torch.zeros(4, 3)), ade.Sequential(ade.AnnealedLeapfrog(2))),
        TypeError,
        "Sequential anneals from a Gaussian",
    ),
}


@pytest.mark.parametrize("misuse", list(MISUSES))
def test_misuse(misuse: str) -> None:
    act, error, message = MISUSES[misuse]
    with pytest.raises(error, match=message):
        act()

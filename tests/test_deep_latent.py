"""DeepLatent: its joint density against torch.distributions, as the momentum of generalized leapfrog, and refusals."""

import math
import warnings

import pytest
import torch
from cases import DOUBLE, DriftNetwork, KickNetwork, assert_close, make_potential
from torch import nn
from torch.distributions import Normal

import ade_fast as ade
from ade_fast import initial, metrics, reference


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


MAKERS = {
    "vectors": lambda: initial.DeepLatent(2, 3, (8, 8)),
    "vectors, linear": lambda: initial.DeepLatent(1, 4, (), max_std=0.5),
    "matrices": lambda: initial.DeepLatent(3, (2, 5), 8),
    "images": lambda: initial.DeepLatent(4, (3, 32, 32)),
    "images, cut": lambda: initial.DeepLatent(4, (1, 12, 20), max_std=0.1),
    "learned momentum": lambda: initial.DeepLatent(3, 2, 8, momentum=initial.PlanarFlow(3, 2)),
}


@pytest.mark.parametrize("name", list(MAKERS))
def test_joint_density_is_that_of_the_distributions(name: str) -> None:
    """log q(x, v) = log N(x; φ(v), σ(v)²) + log q(v), at the samples themselves."""
    q = MAKERS[name]().double()
    x, v, log_q = q.sample(5, (q.latent_dim,), generator())
    assert x.shape == (5, *q.event) and v.shape == (5, q.latent_dim) and log_q.dtype == DOUBLE
    mean, log_std = q.decode(v)
    wanted = Normal(mean, log_std.exp()).log_prob(x).flatten(1).sum(1)
    if q.momentum is None:
        wanted = wanted + Normal(0.0, 1.0).log_prob(v).sum(1)
    else:
        wanted = wanted + q.momentum.sample(5, generator=generator()).log_q
    # The noise comes back from x - φ(v), where σ is small with a few digits less.
    torch.testing.assert_close(log_q, wanted, rtol=1e-9, atol=1e-9)
    std = log_std.exp()
    assert (std > 0).all() and (std < q.max_std).all()
    assert q.max_std == {"images": 1e-3, "images, cut": 0.1, "vectors, linear": 0.5}.get(name, 1.0)


@pytest.mark.parametrize("name", ["vectors", "matrices", "images, cut"])
def test_samples_and_density_are_the_references(name: str) -> None:
    q = MAKERS[name]().double()
    x, v, log_q = q.sample(5, (q.latent_dim,), generator())
    mean, log_std = q.decode(v)
    rng = generator()
    assert torch.equal(torch.randn(5, q.latent_dim, generator=rng, dtype=DOUBLE), v)
    noise = torch.randn(5, *q.event, generator=rng, dtype=DOUBLE)
    expected = reference.deep_latent(v, mean, log_std.exp(), noise)
    assert_close(x.detach(), expected[0].detach(), "x", 1e-12)
    assert_close(log_q.detach(), expected[1].detach(), "log_q", 1e-12)


def test_table_4b() -> None:
    """Sizes of the maps, from the dense layer to both towers."""
    q = initial.DeepLatent(128, (3, 32, 32))
    assert q.network.dense.weight.shape == (4 * 4 * 512, 128) and q.network.dense.bias is None
    for tower in (q.network.mean, q.network.scale):
        kinds = [type(layer) for layer in tower]
        assert kinds == [nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU] * 3 + [nn.ConvTranspose2d]
        shapes, h = [], torch.zeros(2, 512, 4, 4)
        for layer in tower:
            h = layer(h)
            shapes.append(tuple(h.shape[1:]))
        assert shapes[::3] == [(256, 8, 8), (128, 16, 16), (64, 32, 32), (3, 32, 32)]
    assert not {id(p) for p in q.network.mean.parameters()} & {id(p) for p in q.network.scale.parameters()}


def test_an_empty_batch_leaves_the_statistics_alone() -> None:
    q = initial.DeepLatent(4, (1, 16, 16))
    before = {name: buffer.clone() for name, buffer in q.named_buffers()}
    x, v, log_q = q.sample(0, (4,))
    assert x.shape == (0, 1, 16, 16) and v.shape == (0, 4) and log_q.shape == (0,)
    assert all(torch.equal(before[name], buffer) for name, buffer in q.named_buffers())


@pytest.mark.parametrize("name", ["vectors", "images, cut", "learned momentum"])
def test_sampling_is_reproducible_and_precise_under_autocast(name: str) -> None:
    q = MAKERS[name]()
    shape = (q.latent_dim,)
    before = torch.random.get_rng_state()
    first, again, other = (q.sample(4, shape, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.x, again.x) and torch.equal(first.v, again.v) and torch.equal(first.log_q, again.log_q)
    assert not torch.equal(first.x, other.x) and not torch.equal(first.v, other.v)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(q.sample(4, shape, generator()).x, first.x)


class _Sampling(nn.Module):
    """``sample`` as a forward, which is what functional_call can call."""

    def __init__(self, q: initial.DeepLatent) -> None:
        super().__init__()
        self.q = q

    def forward(self) -> tuple[torch.Tensor, ...]:
        return tuple(self.q.sample(3, (self.q.latent_dim,), generator()))


@pytest.mark.parametrize("name", ["vectors, linear", "learned momentum"])
def test_samples_and_densities_are_reparametrised(name: str) -> None:
    q = MAKERS[name]().double()
    names, values = zip(*q.named_parameters(), strict=True)

    def outputs(*parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.func.functional_call(
            _Sampling(q), {f"q.{n}": p for n, p in zip(names, parameters, strict=True)}, ()
        )

    assert torch.autograd.gradcheck(outputs, values)


# --- v as the momentum of generalized leapfrog --------------------------------------------------------------


def players(max_std: float = 1.0) -> ade.DualSampler:
    """x of 3 dimensions, v of 2."""
    dynamics = ade.GeneralizedLeapfrog(
        2, torch.tensor(0.2, dtype=DOUBLE), momentum_shape=2, momentum_step_size=torch.tensor(0.2, dtype=DOUBLE),
        shift_v=KickNetwork((3,), (2,), 0.3), scale_v=KickNetwork((3,), (2,), 0.1), shift_x=DriftNetwork((2,), (3,), 1),
    )  # fmt: skip
    return ade.DualSampler(initial.DeepLatent(2, 3, 16, max_std=max_std), dynamics).double()


def test_the_latent_is_the_momentum() -> None:
    potential, sampler = make_potential("quadratic"), players()
    sample = sampler.sample(potential, 5, generator())
    x0, v0, log_q0 = sampler.initial.sample(5, (2,), generator())
    assert torch.equal(sample.x0, x0) and torch.equal(sample.v0, v0) and sample.v.shape == (5, 2)
    out = sampler.dynamics(potential, x0, v0)
    assert_close(sample.log_q.detach(), (log_q0 - out.log_det).detach(), "log_q", 1e-12)
    assert out.log_det.detach().abs().min() > 1e-3


def test_weights_of_the_pair_find_log_z() -> None:
    """E[w] = Z, to three standard errors, over x and v together."""
    torch.manual_seed(2)
    potential, sampler = make_potential("quadratic").requires_grad_(False), players(max_std=4.0)
    log_z = 1.5 * math.log(2 * math.pi) + potential.log_std.sum().item()
    found = metrics.log_z(potential, sampler, 50_000, generator=generator())
    assert 1e-4 < found.standard_error < 0.05
    assert found.log_z == pytest.approx(log_z, abs=3 * found.standard_error)
    data = potential.mean + potential.log_std.exp() * torch.randn(20, 3, dtype=DOUBLE)
    score = metrics.log_likelihood(potential, sampler, data, 20_000, generator=generator())
    assert score.mean == pytest.approx(potential(data).mean().item() - log_z, abs=5 * found.standard_error + 0.05)


def test_ade_takes_steps() -> None:
    sampler = players().float()
    ade_ = ade.ADE(ade.MLPPotential(3, (32,), "tanh"), sampler, bound="importance", sampler_bound="renyi")
    before = [p.detach().clone() for p in sampler.parameters()]
    found = ade_.step(torch.randn(32, 3))
    assert all(math.isfinite(value) for value in found.values()) and 0 < found["initial_ess"] <= 1
    assert not any(torch.equal(a, b) for a, b in zip(before, sampler.parameters(), strict=True))


def test_images_take_a_step_with_leapfrog_in_latent_space() -> None:
    image = (1, 8, 8)
    dynamics = ade.GeneralizedLeapfrog(
        2, 0.1, momentum_shape=4, momentum_step_size=0.1,
        shift_v=KickNetwork(image, (4,), 0.1).float(), shift_x=DriftNetwork((4,), image, 0.1).float(),
    )  # fmt: skip
    potential = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(144, 1))
    players = ade.ADE(potential, ade.DualSampler(initial.DeepLatent(4, image), dynamics), entropy_weight=1e-5)
    assert all(math.isfinite(value) for value in players.step(torch.rand(6, *image)).values())


def test_weights_on_a_thin_sheet_are_warned_of() -> None:
    """Where they are asked for; not by the paper's own objective."""
    potential, thin = make_potential("quadratic"), players(max_std=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ade.ADE(potential, thin)
        ade.ADE(potential, players(), bound="importance")
    message = r"DeepLatent's samples lie within 0\.001 of a sheet of 2 dimensions: .* mean nothing"
    with pytest.warns(UserWarning, match="ADE: " + message):
        ade.ADE(potential, thin, bound="importance")
    with pytest.warns(UserWarning, match="log_z: " + message):
        metrics.log_z(potential, thin, 1000)


# --- Misuse -------------------------------------------------------------------------------------------------


def _without_latent(dynamics: nn.Module) -> None:
    q = initial.DeepLatent(2, 3)
    ade.DualSampler(q, dynamics).sample(lambda x: x.sum(1), 4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: initial.DeepLatent(0, 2), ValueError, r"DeepLatent: latent_dim must be at least 1, got 0"),
        (lambda: initial.DeepLatent(2, (3, 0, 4)), ValueError, r"DeepLatent: image_shape must have sizes of at least"),
        (lambda: initial.DeepLatent(2, 2, "8"), TypeError, r"DeepLatent: hidden must be an int or a tuple of ints"),
        (lambda: initial.DeepLatent(2, 2, max_std=0.0), ValueError, r"max_std must be positive and finite, got 0\.0"),
        (
            lambda: initial.DeepLatent(2, 4, momentum=initial.Gaussian(3)),
            ValueError,
            r"DeepLatent: momentum must have the event \(2,\) of v, got \(3,\)",
        ),
        (lambda: initial.DeepLatent(2, 4).decode(torch.ones(3, 3)), ValueError, r"v must have the shape \(n, 2\), got"),
        (
            lambda: initial.DeepLatent(2, 4).sample(3),
            ValueError,
            r"DeepLatent: momentum_shape must be \(2,\), got None: the density that is known is that of x and v",
        ),
        (
            lambda: initial.DeepLatent(2, 4).sample(3, (4,)),
            ValueError,
            r"DeepLatent: momentum_shape must be \(2,\), v's, got \(4,\): use a dynamics with momentum_shape=2",
        ),
        (lambda: initial.DeepLatent(2, 4).sample(-1, (2,)), ValueError, r"DeepLatent: n must be at least 0, got -1"),
        (lambda: _without_latent(ade.Leapfrog(2)), ValueError, r"DeepLatent: momentum_shape must be \(2,\), v's, got"),
        (lambda: _without_latent(ade.DeterministicLangevin(2)), ValueError, r"momentum_shape must be \(2,\), got None"),
        (
            lambda: initial.Gaussian(3, momentum=initial.DeepLatent(2, 4)).sample(3, (4,)),
            ValueError,
            r"DeepLatent: momentum_shape must be \(2,\), got None",
        ),
    ],
)
def test_misuse(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()

"""Log-densities against dense Jacobians and closed forms, momenta, buffers, state."""

import math

import pytest
import torch
from torch.distributions import Normal

from ade_fast import initial

DTYPE = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scrambled(module: initial.InitialDistribution, scale: float = 0.7) -> initial.InitialDistribution:
    """Float64, with parameters far from their gentle starting values."""
    module = module.to(DTYPE)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(5), dtype=DTYPE) * scale)
    return module


MAKERS = {
    "gaussian": lambda: initial.Gaussian((2, 3), std=0.5),
    "gaussian, learnable": lambda: initial.Gaussian(4, learnable=True),
    "planar": lambda: initial.PlanarFlow(2),
    "planar, wide": lambda: initial.PlanarFlow(5, 3, std=0.5),
    "planar, no layers": lambda: initial.PlanarFlow(3, 0, std=2.0),
    "mlp": lambda: initial.MLPGaussian(4, 16),
    "mlp, one-dimensional": lambda: initial.MLPGaussian(1, 8),
    "mlp, deep": lambda: initial.MLPGaussian(3, (8, 12)),
    "langevin": lambda: initial.LangevinFlow(2, 4, 16),
    "langevin, wide": lambda: initial.LangevinFlow(5, 3, 8, step_size=0.7, std=0.5),
    "langevin, no layers": lambda: initial.LangevinFlow(3, 0, std=2.0),
    "empirical": lambda: initial.Empirical(torch.randn(50, 3)),
    "buffer": lambda: initial.Empirical(torch.randn(50, 3), buffer_size=20),
    "learned momentum": lambda: initial.PlanarFlow(2, 4, momentum=initial.PlanarFlow(3, 2)),
}
FLOWS = ["planar", "planar, wide", "mlp", "mlp, one-dimensional", "mlp, deep", "langevin", "langevin, wide"]


@pytest.fixture(params=list(MAKERS))
def any_initial(request: pytest.FixtureRequest) -> initial.InitialDistribution:
    return MAKERS[request.param]()


# --- what every initial distribution promises ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_shapes_and_dtypes(any_initial, n: int, dtype: torch.dtype) -> None:
    q = any_initial.to(dtype)
    x, v, log_q = q.sample(n)
    assert x.shape == (n, *q.event) and x.dtype == dtype and v is None
    momentum_shape = (3,) if q.momentum is not None else (2, 2)
    x, v, joint = q.sample(n, momentum_shape)
    assert x.shape == (n, *q.event) and v.shape == (n, *momentum_shape) and v.dtype == dtype
    if isinstance(q, initial.Empirical):
        assert log_q is None and joint is None
    else:
        assert log_q.shape == joint.shape == (n,) and log_q.dtype == joint.dtype == dtype


def test_sampling_is_reproducible_and_leaves_the_global_generator_alone(any_initial) -> None:
    shape = (3,)
    before = torch.random.get_rng_state()
    first, again, other = (any_initial.sample(6, shape, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.x, again.x) and torch.equal(first.v, again.v)
    assert not torch.equal(first.x, other.x) and not torch.equal(first.v, other.v)


def test_momentum_adds_its_log_density_and_leaves_x_alone(any_initial) -> None:
    q = any_initial.to(DTYPE)
    alone, joint = q.sample(6, generator=generator()), q.sample(6, (3,), generator())
    assert torch.equal(alone.x, joint.x)
    if q.momentum is None:
        log_q_v = Normal(0.0, 1.0).log_prob(joint.v).sum(dim=1)
    else:
        _, log_q_v = q.momentum.sample_x(6, _after(q, generator()))
    if alone.log_q is not None:
        torch.testing.assert_close(joint.log_q, alone.log_q + log_q_v, rtol=0, atol=1e-12)


def _after(q: initial.InitialDistribution, rng: torch.Generator) -> torch.Generator:
    q.sample(6, generator=rng)
    return rng


def test_default_momentum_is_standard_normal() -> None:
    v = initial.Gaussian(1).sample(20_000, (2,), generator()).v
    assert v.mean(dim=0).abs().max() < 5 / math.sqrt(20_000)
    assert (v.square().mean(dim=0) - 1).abs().max() < 5 * math.sqrt(2 / 20_000)


def test_momentum_distribution() -> None:
    """A narrow momentum, as the released image code draws it."""
    narrow = initial.Gaussian((3,), std=torch.tensor(1e-4, dtype=DTYPE))
    q = initial.Gaussian(2, momentum=narrow).to(DTYPE)
    x, v, log_q = q.sample(1000, (3,), generator())
    assert v.std().item() == pytest.approx(1e-4, rel=0.1)
    zero, std = torch.tensor((0.0, 1e-4), dtype=DTYPE)
    wanted = Normal(zero, 1.0).log_prob(x).sum(1) + Normal(zero, std).log_prob(v).sum(1)
    torch.testing.assert_close(log_q, wanted, rtol=0, atol=1e-9)
    without_density = initial.Gaussian(2, momentum=initial.Empirical(torch.randn(5, 3, dtype=DTYPE)))
    assert without_density.to(DTYPE).sample(4, (3,)).log_q is None


def test_autocast_does_not_round_the_density(any_initial) -> None:
    plain = any_initial.sample(6, (3,), generator())
    with torch.autocast("cpu", torch.bfloat16):
        cast = any_initial.sample(6, (3,), generator())
    for a, b in zip(plain, cast, strict=True):
        assert a is b is None or torch.equal(a, b)


def test_state_dict_restores_the_samples(any_initial, request) -> None:
    q = any_initial
    if isinstance(q, initial.Empirical) and q.buffer_size is not None:
        q.update(torch.randn(7, 3))
    torch.manual_seed(99)
    name = request.node.callspec.params["any_initial"]
    fresh = MAKERS[name]()
    if isinstance(q, initial.Empirical):
        fresh = initial.Empirical(q.data, q.buffer_size)
    fresh.load_state_dict(q.state_dict())
    a, b = (m.sample(9, (3,), generator()) for m in (q, fresh))
    assert torch.equal(a.x, b.x) and torch.equal(a.v, b.v)


# --- exact log-densities ---


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_log_density_is_that_of_the_dense_jacobian(name: str, scale: float) -> None:
    q = scrambled(MAKERS[name](), scale)
    z = torch.randn(12, q.dim, generator=generator(1), dtype=DTYPE)
    _, log_det = q.transform(z)
    for i in range(len(z)):
        jacobian = torch.autograd.functional.jacobian(lambda row: q.transform(row[None])[0][0], z[i])
        sign, wanted = torch.linalg.slogdet(jacobian)
        # At scale 4 a long flow is ill-conditioned, and the dense determinant is the one that loses digits.
        assert sign == 1
        torch.testing.assert_close(log_det[i], wanted, rtol=1e-10, atol=1e-10 if scale < 4 else 1e-6)


@pytest.mark.parametrize("name", [*FLOWS, "planar, no layers", "langevin, no layers"])
def test_samples_are_the_transformed_noise_with_its_density(name: str) -> None:
    q = scrambled(MAKERS[name]())
    std = getattr(q, "std", 1.0)
    noise = torch.randn(8, q.dim, generator=generator(), dtype=DTYPE)
    x, _, log_q = q.sample(8, generator=generator())
    wanted, log_det = q.transform(noise * std)
    torch.testing.assert_close(x, wanted, rtol=0, atol=1e-12)  # the planar flow's samples come from its operator
    base = Normal(0.0, torch.tensor(std, dtype=DTYPE)).log_prob(noise * std).sum(1)
    torch.testing.assert_close(log_q, base - log_det, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["planar", "mlp"])
def test_density_integrates_to_one(name: str) -> None:
    """E_q[ w(x) / q(x) ] = ∫ w = 1 for a density w on the samples' support: log_q is normalised."""
    q = scrambled(initial.PlanarFlow(2, 4) if name == "planar" else initial.MLPGaussian(2, 16), 0.4)
    with torch.no_grad():
        x, _, log_q = q.sample(200_000, generator=generator())
        ratio = (Normal(x.mean(0), 0.4 * x.std(0)).log_prob(x).sum(1) - log_q).exp()
    error = ratio.std().item() / math.sqrt(len(ratio))
    assert error < 0.02
    assert ratio.mean().item() == pytest.approx(1.0, abs=5 * error)


def test_planar_flow_is_invertible_whatever_its_parameters() -> None:
    """ûᵀw > -1 even where uᵀw is far below: along w each layer is increasing, and log_q stays finite."""
    q = initial.PlanarFlow(2, 4)
    with torch.no_grad():
        q.w.copy_(torch.tensor([[3.0, 4.0], [0.01, 0.0], [20.0, 0.0], [1.0, 1.0]]))
        q.u.copy_(torch.tensor([[-3.0, -4.0], [-5.0, 2.0], [-20.0, 1.0], [0.0, 0.0]]))
    _, one_plus_uw = q._constrained()
    assert (one_plus_uw >= 0).all() and one_plus_uw[3].item() == pytest.approx(1.0, abs=1e-6)
    x, _, log_q = q.sample(1000, generator=generator())
    assert x.isfinite().all() and log_q.isfinite().all()
    for parameter in torch.autograd.grad(log_q.sum() + x.sum(), list(q.parameters())):
        assert parameter.isfinite().all()
    u_hat, one_plus_uw = q.double()._constrained()
    torch.testing.assert_close((u_hat * q.w).sum(1), one_plus_uw - 1, rtol=1e-12, atol=1e-12)


def test_planar_flow_constraint_is_gentle() -> None:
    """u = 0 is the identity, w = 0 is harmless, and a vanishing w does not blow û up."""
    q = initial.PlanarFlow(3, 5).to(DTYPE)
    z = torch.randn(6, 3, dtype=DTYPE)
    with torch.no_grad():
        q.u.zero_()
    x, log_det = q.transform(z)
    torch.testing.assert_close(x, z, rtol=0, atol=1e-15)
    torch.testing.assert_close(log_det, torch.zeros(6, dtype=DTYPE), rtol=0, atol=1e-15)
    for size in (0.0, 1e-12, 1e-3):
        with torch.no_grad():
            q.u.fill_(1.0)
            q.w.fill_(size)
        u_hat, _ = q._constrained()
        assert (u_hat - 1).abs().max() < 1.0
        x, log_det = q.transform(z)
        assert x.isfinite().all() and log_det.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(log_det.sum(), [q.u, q.w, q.b]))


def test_gaussian_closed_form() -> None:
    mean, std = torch.tensor((1.0, -2.0), dtype=DTYPE), torch.tensor((0.1, 3.0), dtype=DTYPE)
    q = initial.Gaussian(2, std, mean)
    x, _, log_q = q.sample(20_000, generator=generator())
    torch.testing.assert_close(log_q, Normal(mean, std).log_prob(x).sum(1), rtol=0, atol=1e-11)
    assert ((x.mean(0) - mean) / std).abs().max() < 5 / math.sqrt(20_000)
    assert (x.std(0) / std - 1).abs().max() < 5 / math.sqrt(40_000)


def test_mlp_gaussian_is_autoregressive_and_not_merely_diagonal() -> None:
    q = scrambled(initial.MLPGaussian(4, 64))
    row = torch.randn(4, generator=generator(), dtype=DTYPE)
    jacobian = torch.autograd.functional.jacobian(lambda e: q.transform(e[None])[0][0], row)
    assert torch.equal(jacobian.triu(1), torch.zeros(4, 4, dtype=DTYPE))
    below = torch.ones(4, 4, dtype=torch.bool).tril(-1)
    assert (jacobian[below].abs() > 1e-6).all()


# --- gradients ---


@pytest.mark.parametrize("name", ["gaussian, learnable", "planar", "mlp", "langevin", "learned momentum"])
def test_samples_and_densities_are_reparametrised(name: str) -> None:
    """Gradients of samples and log_q with respect to every parameter, against finite differences."""
    q = scrambled(MAKERS[name](), 0.5)
    names, values = zip(*q.named_parameters(), strict=True)

    def outputs(*parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.func.functional_call(
            _Sampling(q), {f"q.{n}": p for n, p in zip(names, parameters, strict=True)}, ()
        )

    assert torch.autograd.gradcheck(outputs, values)
    assert any(n.startswith("momentum.") for n in names) == (name == "learned momentum")


class _Sampling(torch.nn.Module):
    """``sample`` as a forward, which is what functional_call can call."""

    def __init__(self, q: initial.InitialDistribution) -> None:
        super().__init__()
        self.q = q

    def forward(self) -> tuple[torch.Tensor, ...]:
        return tuple(self.q.sample(3, (3,), generator()))


def test_maximum_entropy_within_a_quadratic_finds_the_gaussian() -> None:
    """Minimising E_q[ log q - f ] over q recovers f's mean and scale: the reparametrised gradient in use."""
    q = initial.MLPGaussian(2, 16)
    optimizer = torch.optim.Adam(q.parameters(), 0.03)
    rng = generator()
    for _ in range(300):
        x, _, log_q = q.sample(256, generator=rng)
        loss = (log_q + 0.5 * ((x + 1) / 0.5).square().sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, _, log_q = q.sample(4000, generator=rng)
    torch.testing.assert_close(x.mean(0), torch.tensor((-1.0, -1.0)), rtol=0, atol=0.1)
    torch.testing.assert_close(x.std(0), torch.tensor((0.5, 0.5)), rtol=0, atol=0.08)
    log_z = 2 * math.log(0.5 * math.sqrt(2 * math.pi))
    assert loss.item() == pytest.approx(-log_z, abs=0.05)


# --- empirical ---


def test_empirical_draws_rows_uniformly() -> None:
    data = torch.arange(10.0)[:, None] * torch.ones(10, 2)
    x = initial.Empirical(data).sample(50_000, generator=generator()).x
    assert torch.equal(x[:, 0], x[:, 1])
    counts = torch.bincount(x[:, 0].long(), minlength=10) / 50_000
    assert len(counts) == 10
    assert (counts - 0.1).abs().max() < 5 * math.sqrt(0.09 / 50_000)


def test_empirical_buffer_mixes_old_samples_and_fresh_data() -> None:
    q = initial.Empirical(torch.zeros(4, 2), buffer_size=100, reinit=0.25)
    assert (q.sample(50).x == 0).all()  # empty: all from the data
    q.update(torch.ones(3, 2))
    x = q.sample(20_000, generator=generator()).x
    assert torch.equal(x[:, 0], x[:, 1])  # whole rows
    assert x.mean().item() == pytest.approx(0.75, abs=5 * math.sqrt(0.1875 / 20_000))
    always = initial.Empirical(torch.zeros(4, 2), buffer_size=2, reinit=1.0)
    always.update(torch.ones(2, 2))
    assert (always.sample(100).x == 0).all()


def test_empirical_buffer_overwrites_the_oldest() -> None:
    q = initial.Empirical(torch.full((1, 1), -1.0), buffer_size=4, reinit=0.0)

    def held() -> list[int]:
        return sorted(q.sample(400, generator=generator()).x.unique().int().tolist())

    def put(*values: int) -> None:
        q.update(torch.tensor(values, dtype=torch.float32)[:, None])

    put(1, 2)
    assert held() == [1, 2]
    put()
    put(3, 4, 5)
    assert held() == [2, 3, 4, 5]
    put(*range(10, 17))  # more than it holds: the last four
    assert held() == [13, 14, 15, 16]
    put(20)
    assert held() == [14, 15, 16, 20]


def test_empirical_chains_in_turn_each_go_on_by_themselves() -> None:
    """x[0] is whose chain it is, x[1] how often it went on; at random, most chains are lost in as many rounds."""
    ancestors = {}
    for in_turn in (True, False):
        q = initial.Empirical(torch.full((1, 2), -1.0), buffer_size=50, reinit=0.0, in_turn=in_turn)
        g = generator()
        for i in range(0, 56, 8):  # eight of them over the first ones
            fresh = q.sample(8, generator=g).x
            assert (fresh == -1).all() or not in_turn
            q.update(torch.stack([torch.arange(i, i + 8.0), torch.zeros(8)], 1))
        for _ in range(50 * 20 // 8):
            x = q.sample(8, generator=g).x
            q.update(x + torch.tensor([0.0, 1.0]))
        ancestors[in_turn] = len(q.buffer[:, 0].unique())
        if in_turn:
            assert set(q.buffer[:, 1].tolist()) == {20.0}
    assert ancestors[True] == 50 and ancestors[False] < 15


def test_empirical_chains_in_turn_begin_again_as_often_as_asked() -> None:
    q = initial.Empirical(torch.full((1, 1), -1.0), buffer_size=1000, reinit=0.2, in_turn=True)
    q.update(torch.ones(1000, 1))
    assert (q.sample(1000, generator=generator()).x == -1).float().mean().item() == pytest.approx(0.2, abs=0.06)
    assert (q.eval().sample(1000, generator=generator()).x == 1).all()


def test_empirical_update_copies_and_detaches() -> None:
    q = initial.Empirical(torch.zeros(1, 2), buffer_size=2, reinit=0.0)
    x = torch.ones(2, 2, requires_grad=True)
    q.update(x * 1)
    source = torch.full((2, 2), 5.0)
    q.update(source)
    source.zero_()
    sample = q.sample(10).x
    assert (sample == 5).all() and not sample.requires_grad


def test_empirical_state_is_the_buffer_not_the_data() -> None:
    q = initial.Empirical(torch.zeros(1000, 2), buffer_size=3)
    assert set(q.state_dict()) == {"buffer", "filled", "position"}
    assert set(initial.Empirical(torch.zeros(1000, 2)).state_dict()) == set()
    assert initial.Empirical(torch.zeros(5)).sample(3).x.shape == (3,)


# --- misuse ---


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: initial.Empirical(torch.zeros(2, 2), in_turn=True), ValueError, "in_turn is about a replay buffer"),
        (lambda: initial.Empirical(torch.zeros(2, 2), 3, in_turn=1), TypeError, "in_turn must be True or False, got 1"),
        (lambda: initial.Gaussian((2, 0)), ValueError, r"Gaussian: event must have sizes of at least 1"),
        (lambda: initial.Gaussian("2"), TypeError, r"Gaussian: event must be an int or a tuple of ints"),
        (lambda: initial.Gaussian(2, 0.0), ValueError, r"Gaussian: std must be positive, got 0\.0"),
        (lambda: initial.Gaussian(2, math.nan), ValueError, r"Gaussian: std must be finite"),
        (lambda: initial.Gaussian(2, torch.ones(3)), ValueError, r"std must broadcast to \(2,\), got \(3,\)"),
        (lambda: initial.Gaussian(2, "1"), TypeError, r"Gaussian: std must be a number or a tensor, got str"),
        (lambda: initial.Gaussian(2, mean=torch.ones(2).int()), TypeError, r"mean must be floating point"),
        (
            lambda: initial.Gaussian(2, momentum=3),
            TypeError,
            r"momentum must be an InitialDistribution.*got int",
        ),
        (lambda: initial.PlanarFlow(0), ValueError, r"PlanarFlow: dim must be at least 1, got 0"),
        (lambda: initial.PlanarFlow((2,)), TypeError, r"PlanarFlow: dim must be an int, got tuple"),
        (lambda: initial.PlanarFlow(2, -1), ValueError, r"PlanarFlow: n_layers must be at least 0, got -1"),
        (lambda: initial.PlanarFlow(2, std=-1.0), ValueError, r"PlanarFlow: std must be positive and finite"),
        (lambda: initial.PlanarFlow(2, std="a"), TypeError, r"PlanarFlow: std must be a number, got str"),
        (
            lambda: initial.PlanarFlow(2).transform(torch.ones(3)),
            ValueError,
            r"z must have the shape \(n, 2\)",
        ),
        (lambda: initial.MLPGaussian(2, 0), ValueError, r"MLPGaussian: hidden must have sizes of at least 1"),
        (lambda: initial.MLPGaussian(2).transform(torch.ones(3, 3)), ValueError, r"got \(3, 3\)"),
        (lambda: initial.Empirical([1.0]), TypeError, r"Empirical: data must be a tensor, got list"),
        (
            lambda: initial.Empirical(torch.ones(2).long()),
            TypeError,
            r"data must be floating point, got .*int64",
        ),
        (lambda: initial.Empirical(torch.ones(0, 2)), ValueError, r"N at least 1, got \(0, 2\)"),
        (
            lambda: initial.Empirical(torch.ones(2, 2), 0),
            ValueError,
            r"buffer_size must be at least 1, got 0",
        ),
        (lambda: initial.Empirical(torch.ones(2, 2), 5, reinit=1.5), ValueError, r"in \[0, 1\], got 1\.5"),
        (
            lambda: initial.Empirical(torch.ones(2, 2)).update(torch.ones(1, 2)),
            RuntimeError,
            r"no replay buffer",
        ),
        (
            lambda: _buffer().update(torch.ones(1, 3)),
            ValueError,
            r"x must have the shape \(k, 2\), got \(1, 3\)",
        ),
        (
            lambda: _buffer().update(torch.ones(1, 2).double()),
            TypeError,
            r"buffer's dtype torch\.float32, got",
        ),
        (lambda: _buffer().update(torch.ones(1, 2, device="meta")), ValueError, r"device cpu, got meta"),
        (lambda: _buffer().update([1.0]), TypeError, r"Empirical\.update: x must be a tensor, got list"),
        (lambda: initial.Gaussian(2).sample(-1), ValueError, r"Gaussian: n must be at least 0, got -1"),
        (lambda: initial.Gaussian(2).sample(2.0), TypeError, r"Gaussian: n must be an int, got float"),
        (
            lambda: initial.Gaussian(2).sample(2, (0,)),
            ValueError,
            r"momentum_shape must have sizes of at least 1",
        ),
        (
            lambda: initial.Gaussian(2, momentum=initial.Gaussian(3)).sample(2, (2,)),
            ValueError,
            r"Gaussian: momentum must have the event \(2,\) asked for, got \(3,\)",
        ),
    ],
)
def test_misuse(make, error, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def _buffer() -> initial.Empirical:
    return initial.Empirical(torch.zeros(4, 2), buffer_size=3)

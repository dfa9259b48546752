"""Bounds of log Z from the sampler's weights: values and both players' gradients against formulas of their own."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from training_cases import generator

import ade_fast as ade
from ade_fast import _log_weights_op, _mlp_ops, reference
from ade_fast.training import DivergenceError, bounds, terms
from ade_fast.training.build import ScaleShiftNet

N, T, DIM = 12, 3, 2
STEPS = torch.tensor([[0.3, 0.2], [0.25, 0.1], [0.2, 0.4]], dtype=torch.float64)


def network(n_inputs: int, residual: bool = False) -> nn.Module:
    net = ScaleShiftNet(DIM, n_inputs, 8, residual=residual).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator(3))
    return net


class PlainMLP(nn.Module):
    """An MLP that the fused kernels do not know."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.inner = ade.MLPPotential(DIM, (24, 16), activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


POTENTIALS: dict[str, Callable[[], nn.Module]] = {
    "fused relu": lambda: ade.MLPPotential(DIM, (32, 32, 32), "relu"),
    "fused silu": lambda: ade.MLPPotential(DIM, (32, 32), "silu"),
    "general relu": lambda: PlainMLP("relu"),
    "general tanh": lambda: PlainMLP("tanh"),
    "base, relu": lambda: ade.WithBase(ade.MLPPotential(DIM, (32, 32, 32), "relu"), 0.3, torch.tensor([2.0, 3.0])),
}


def dynamics_of(kind: str, **options) -> tuple[nn.Module, Callable]:
    """A layer, and the same unroll by the reference."""
    if kind == "generalized":
        nets = {"scale_v": network(2), "scale_x": network(1), "shift_v": network(2, residual=True)}
        layer = ade.GeneralizedLeapfrog(T, STEPS, **nets, **options)
        return layer, lambda f, x, v: reference.generalized_leapfrog(f, x, v, layer.step_size, T, **nets)
    if kind == "damped":
        layer = ade.DampedLeapfrog(T, STEPS, 0.7, **options)
        return layer, lambda f, x, v: reference.damped_leapfrog(f, x, v, layer.step_size, T, 0.7)
    layer = ade.Leapfrog(T, STEPS, **options)
    return layer, lambda f, x, v: reference.leapfrog(f, x, v, layer.step_size, T)


def players(potential: str, kind: str = "leapfrog", **options) -> tuple[nn.Module, ade.DualSampler, Callable]:
    torch.manual_seed(0)
    layer, unroll = dynamics_of(kind, **options)
    momentum = ade.initial.Gaussian(DIM, 0.8, learnable=True) if kind == "generalized" else None
    start = ade.initial.PlanarFlow(DIM, 3, std=1.5, momentum=momentum)
    return POTENTIALS[potential]().double(), ade.DualSampler(start, layer).double(), unroll


def log_mean(w: Tensor) -> Tensor:
    """As it stands in the formula; the tests' weights are of ordinary size."""
    return w.mean().log()


BOUNDS = {
    "elbo": lambda log_w: log_w.mean(),
    "renyi": lambda log_w: 2 * log_mean((0.5 * log_w).exp()),
    "importance": lambda log_w: log_mean(log_w.exp()),
}


def independent_log_weights(potential, sampler, unroll, n: int, weight: float, gen) -> Tensor:
    """log w of Z_x, by the reference's unroll."""
    x0, v0, log_q0 = sampler.initial.sample(n, (DIM,), gen)
    x, v, log_det = unroll(potential, x0, v0)
    kinetic = 0.5 * weight * v.square().sum(1)
    return potential(x) - kinetic - (log_q0 - log_det) - 0.5 * DIM * math.log(2 * math.pi / weight)


def gradients(value: Tensor, *modules: nn.Module) -> list[Tensor]:
    parameters = [p for module in modules for p in module.parameters()]
    return list(torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True))


def assert_both_players(loss: Tensor, for_potential: Tensor, for_sampler: Tensor, potential, sampler) -> None:
    loss.backward()
    for wanted, player in ((for_potential, potential), (for_sampler, sampler)):
        for got, want in zip(player.parameters(), gradients(wanted, player), strict=True):
            got = torch.zeros_like(got) if got.grad is None else got.grad
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("kind", ["leapfrog", "damped", "generalized"])
@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize(
    ("bound", "sampler_bound"),
    [("elbo", "renyi"), ("importance", "renyi"), ("importance", "importance"), ("importance", "elbo")],
)
@pytest.mark.filterwarnings("ignore:ADE. DampedLeapfrog shrinks")
def test_bounds_and_their_gradients_agree_with_the_formula(potential, kind, memory, bound, sampler_bound):
    f, sampler, unroll = players(potential, kind, memory=memory)
    data = torch.randn(N // 2, DIM, dtype=torch.float64, generator=generator(1))
    weight = 0.7
    model = ade.ADE(f, sampler, momentum_weight=weight, bound=bound, sampler_bound=sampler_bound, samples_per_point=2)
    loss = model.loss(data, generator=generator())

    log_w = independent_log_weights(f, sampler, unroll, N, weight, generator())
    f_data = f(data).mean()
    normaliser = 0.5 * DIM * math.log(2 * math.pi / weight) if bound == "elbo" else 0.0  # (20) is without it
    wanted = f_data - BOUNDS[bound](log_w) - normaliser
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=1e-10)
    assert_both_players(loss, wanted, f_data - BOUNDS[sampler_bound](log_w), f, sampler)


@pytest.mark.parametrize("sampler_bound", ["elbo", "renyi", "importance"])
def test_defensive_samples_are_in_the_potentials_bound_alone(sampler_bound):
    f, sampler, unroll = players("base, relu")
    data = torch.randn(N, DIM, dtype=torch.float64, generator=generator(1))
    model = ade.ADE(f, sampler, bound="importance", sampler_bound=sampler_bound, defensive=0.25)
    gen, again = generator(), generator()
    loss = model.loss(data, generator=gen)

    log_w = independent_log_weights(f, sampler, unroll, N, 1.0, again)
    mean, std = torch.tensor([0.3, 0.3], dtype=torch.float64), torch.tensor([2.0, 3.0], dtype=torch.float64)
    base = mean + std * torch.randn(N // 3, DIM, dtype=torch.float64, generator=again)  # 4 beside 12 are a quarter
    ratio = f(base).exp() / torch.distributions.Normal(mean, std).log_prob(base).sum(1).exp()
    wanted = f(data).mean() - (0.75 * log_w.exp().mean() + 0.25 * ratio.mean()).log()
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=1e-10)
    assert_both_players(loss, wanted, f(data).mean() - BOUNDS[sampler_bound](log_w), f, sampler)


@pytest.mark.parametrize("sampler_bound", ["elbo", "renyi", "importance"])
@pytest.mark.parametrize("min_ess", [0.5, 0.95])
def test_tempering_takes_the_largest_power_that_keeps_the_effective_sample_size(min_ess, sampler_bound):
    f, sampler, unroll = players("fused silu")
    data = torch.randn(64, DIM, dtype=torch.float64, generator=generator(1))
    model = ade.ADE(f, sampler, bound="importance", sampler_bound=sampler_bound, min_ess=min_ess, momentum_weight=0.3)
    loss = model.loss(data, generator=generator())
    log_w = independent_log_weights(f, sampler, unroll, 64, 0.3, generator())

    def ess(power: float) -> float:
        w = (power * log_w.detach()).exp()
        return float(w.mean() ** 2 / w.square().mean())

    beta = float(bounds.tempered_power(log_w.detach(), min_ess))
    assert beta < 1 and ess(beta) >= min_ess > ess(beta + 2**-11)

    def tempered(power: float) -> Tensor:
        return log_mean((power * log_w).exp()) / power

    wanted = f(data).mean() - tempered(beta)
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=1e-10)
    power = {"elbo": 0.0, "renyi": min(0.5, beta), "importance": beta}[sampler_bound]
    for_sampler = tempered(power) if power else log_w.mean()
    assert_both_players(loss, wanted, f(data).mean() - for_sampler, f, sampler)


@pytest.mark.parametrize("bound", ["elbo", "importance"])
def test_the_samplers_own_tempering(bound):
    f, sampler, unroll = players("fused silu")
    data = torch.randn(64, DIM, dtype=torch.float64, generator=generator(1))
    model = ade.ADE(f, sampler, bound=bound, sampler_bound="renyi", sampler_min_ess=0.9, momentum_weight=0.3)
    loss = model.loss(data, generator=generator())
    log_w = independent_log_weights(f, sampler, unroll, 64, 0.3, generator())
    power = float(bounds.tempered_power(log_w.detach(), 0.9, 0.5))
    w = (power * log_w.detach()).exp()
    assert power < 0.5 and float(w.mean() ** 2 / w.square().mean()) >= 0.9
    normaliser = 0.5 * DIM * math.log(2 * math.pi / 0.3) if bound == "elbo" else 0.0
    wanted = f(data).mean() - BOUNDS[bound](log_w) - normaliser
    for_sampler = f(data).mean() - log_mean((power * log_w).exp()) / power
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=1e-10)
    assert_both_players(loss, wanted, for_sampler, f, sampler)


def test_f_waits_for_a_sampler_that_it_loses():
    moved = {}
    for pace in (None, 0.9):
        f, sampler, _ = players("fused silu")
        before = [p.detach().clone() for p in f.parameters()]
        optimizer = torch.optim.Adam(f.parameters(), lr=1e-2, maximize=True)
        model = ade.ADE(
            f, sampler, bound="importance", ess_pace=pace, momentum_weight=0.3, potential_optimizer=optimizer
        )
        metrics = model.step(torch.randn(64, DIM, dtype=torch.float64, generator=generator(1)), generator=generator())
        moved[pace] = torch.cat([(p.detach() - b).flatten() for p, b in zip(f.parameters(), before, strict=True)])
        assert optimizer.param_groups[0]["lr"] == 1e-2
    assert metrics["ess"] < 0.9
    torch.testing.assert_close(moved[0.9], metrics["ess"] / 0.9 * moved[None], rtol=1e-6, atol=1e-12)


def test_coverage_adds_the_datas_likelihood_to_the_sampler_alone():
    torch.manual_seed(0)
    f = POTENTIALS["fused silu"]().double()
    sampler = ade.DualSampler(ade.initial.SplineFlow(DIM, 1, 16), ade.Leapfrog(T, STEPS)).double()
    data = torch.randn(16, DIM, dtype=torch.float64, generator=generator(1))
    losses, found = [], []
    for coverage in (0.0, 0.5):
        model = ade.ADE(f, sampler, bound="importance", sampler_bound="renyi", coverage=coverage)
        losses.append(model.loss(data, generator=generator()))
        found.append(gradients(losses[-1], f, sampler))
    assert torch.equal(*losses)
    added = gradients(-0.5 / 4 * sampler.initial.log_prob(data[::4]).mean(), f, sampler)
    for plain, with_it, a in zip(*found, added, strict=True):
        torch.testing.assert_close(with_it, plain + a, rtol=1e-9, atol=1e-11)


def test_good_weights_are_not_tempered():
    assert float(bounds.tempered_power(torch.zeros(50), 0.9)) == 1.0
    assert float(bounds.tempered_power(torch.linspace(0, 1e6, 50), 0.5)) == pytest.approx(64**-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("most", [1.0, 0.5])
def test_the_power_is_found_alike_with_and_without_the_operator(most, dtype, monkeypatch):
    weights = [
        scale * torch.randn(100, dtype=dtype, generator=generator(k)) - 1e3 for k, scale in enumerate((0.1, 1, 10, 1e3))
    ]
    weights += [torch.full((5,), -math.inf, dtype=dtype), torch.tensor([0.0, math.nan], dtype=dtype), weights[0][:1]]
    found = [bounds.tempered_power(w, min_ess, most) for w in weights for min_ess in (0.05, 0.5, 0.95)]
    monkeypatch.setattr(bounds, "is_plain_on_cpu", lambda log_w: False)
    expected = [bounds.tempered_power(w, min_ess, most) for w in weights for min_ess in (0.05, 0.5, 0.95)]
    assert len({p.item() for p in found}) >= 8
    for power, other in zip(found, expected, strict=True):
        assert power.dtype == other.dtype == dtype
        torch.testing.assert_close(power, other, rtol=1e-6, atol=0)
    torch.library.opcheck(torch.ops.ade_fast.tempered_power.default, (weights[0], 64, 0.5, 1.0))
    with pytest.raises(RuntimeError, match="tempered_power: levels must be at least 1, got 0"):
        torch.ops.ade_fast.tempered_power(weights[0], 0, 0.5, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [1.0, 0.5, torch.tensor(0.3), 2**-12])
@pytest.mark.parametrize("others", [None, 1, 300])
def test_bounds_by_one_operator_are_those_of_the_plain_formula(others, power, dtype, monkeypatch):
    log_w = (5 * torch.randn(200, dtype=dtype, generator=generator(1)) - 900).requires_grad_()
    theirs = None if others is None else torch.linspace(-920, -880, others, dtype=dtype).requires_grad_()
    given = [log_w] if theirs is None else [log_w, theirs]

    def found(first=log_w):
        bound = bounds.renyi_bound(first, power, None if theirs is None else bounds.Defence(theirs, 0.25))
        return bound, torch.autograd.grad(3 * bound, given, retain_graph=True, allow_unused=first is not log_w)

    (bound, slopes), alone = found(), bounds.renyi_bound(log_w.detach(), power)
    assert torch.autograd.gradcheck(lambda *a: bounds.renyi_bound(*a, power), (log_w.double() / 900,))
    (slope,) = torch.autograd.grad(bound, log_w, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable only once"):
        slope.sum().backward()
    last = torch.cat([log_w[:-1], log_w.new_full((1,), -math.inf)])
    without = found(last)[0]
    monkeypatch.setattr(_log_weights_op, "takes", lambda *a: False)
    tolerance = {"rtol": 2e-6, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    expected, wanted = found()
    torch.testing.assert_close([bound, *slopes], [expected, *wanted], **tolerance)
    torch.testing.assert_close(alone, bounds.renyi_bound(log_w.detach(), power), **tolerance)
    torch.testing.assert_close(without, found(last)[0], **tolerance)
    number = torch.as_tensor(power, dtype=dtype)
    share = 0.0 if theirs is None else 0.25
    torch.library.opcheck(
        torch.ops.ade_fast.renyi_bound.default, (log_w.detach(), given[-1].detach() if share else None, number, share)
    )


@pytest.mark.parametrize("values", [[-math.inf] * 3, [0.0, math.inf], [0.0, math.nan]], ids=str)
def test_bounds_of_weights_that_are_none_are_those_of_the_plain_formula(values, monkeypatch):
    log_w = torch.tensor(values, requires_grad=True)
    found = [bounds.renyi_bound(log_w, 0.5), bounds.renyi_bound(log_w, 1.0, bounds.Defence(torch.zeros(2), 0.5))]
    (slope,) = torch.autograd.grad(found[0], log_w)
    monkeypatch.setattr(_log_weights_op, "takes", lambda *a: False)
    expected = [bounds.renyi_bound(log_w, 0.5), bounds.renyi_bound(log_w, 1.0, bounds.Defence(torch.zeros(2), 0.5))]
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert slope.isfinite().all() == torch.autograd.grad(expected[0], log_w)[0].isfinite().all()


def test_wrong_bounds_are_refused_by_the_operator():
    with pytest.raises(
        RuntimeError, match=r"renyi_bound: share must be between 0 and 1 with log_b, and 0 without, got 0\.5"
    ):
        torch.ops.ade_fast.renyi_bound(torch.zeros(3), None, torch.tensor(1.0), 0.5)
    with pytest.raises(RuntimeError, match="renyi_bound: log_b must be float32"):
        torch.ops.ade_fast.renyi_bound(torch.zeros(3), torch.zeros(2).double(), torch.tensor(1.0), 0.5)


def test_the_default_bound_is_20_bit_for_bit():
    f, sampler, _ = players("fused relu")
    data = torch.randn(N, DIM, dtype=torch.float64, generator=generator(1))
    loss = ade.ADE(f, sampler, momentum_weight=0.4, entropy_weight=0.3).loss(data, generator=generator())
    sample = sampler.sample(f, N, generator())
    model = f(sample.x).mean() - (0.4 / 2 * sample.v.square().sum(1)).mean() + 0.3 * -sample.log_q.mean()
    assert torch.equal(loss, f(data).mean() - model)


@pytest.mark.parametrize("options", [{}, {"bound": "importance", "sampler_bound": "renyi"}])
def test_gradients_accumulate_and_pass_through_wrappers(options):
    f, sampler, _ = players("general tanh")
    data = torch.randn(N, DIM, dtype=torch.float64, generator=generator(1))
    model = ade.ADE(f, sampler, **options)
    model.loss(data, generator=generator()).backward()
    once = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    (3 * model.loss(data, generator=generator())).backward()
    model.loss(data, generator=generator()).backward()
    for p, g in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 4 * g, rtol=1e-9, atol=1e-12)


def test_a_context_gets_the_potentials_gradient():
    torch.manual_seed(0)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    bent = scale * 1.5  # not a leaf
    f = lambda x: -bent * x.square().sum(1)  # noqa: E731
    sampler = ade.DualSampler(ade.initial.Gaussian(DIM, 1.5, learnable=True), ade.Leapfrog(T, STEPS)).double()
    model = ade.ADE(f, sampler, bound="importance", sampler_bound="renyi")
    data = torch.randn(N, DIM, dtype=torch.float64, generator=generator(1))
    model.loss(data, generator=generator(), context=(bent,)).backward(retain_graph=True)
    log_w = independent_log_weights(
        f, sampler, lambda f, x, v: reference.leapfrog(f, x, v, STEPS, T), N, 1.0, generator()
    )
    (wanted,) = torch.autograd.grad(f(data).mean() - BOUNDS["importance"](log_w), scale)
    torch.testing.assert_close(scale.grad, wanted, rtol=1e-10, atol=1e-10)


def test_step_reports_the_weights_and_stays_with_one_unroll():
    f, sampler, unroll = players("base, relu")
    model = ade.ADE(f, sampler, bound="importance", sampler_bound="renyi", min_ess=0.2)
    data = torch.randn(N, DIM, dtype=torch.float64, generator=generator(1))
    log_w = independent_log_weights(f, sampler, unroll, N, 1.0, generator()).detach()
    x0, v0, log_q0 = sampler.initial.sample(N, (DIM,), generator())
    log_w0 = (f(x0) - 0.5 * v0.square().sum(1) - log_q0).detach()  # the momenta cancel
    metrics = model.step(data, generator=generator())
    assert metrics["log_z"] == pytest.approx(float(log_mean(log_w.exp())), rel=1e-10)
    for name, logs in (("ess", log_w), ("initial_ess", log_w0)):
        w = logs.exp()
        assert metrics[name] == pytest.approx(float(w.mean() ** 2 / w.square().mean()), rel=1e-9)
    assert metrics["beta"] <= 1 and metrics["step_size"] == pytest.approx(float(STEPS.max()))


def test_a_sampler_without_density_has_no_weights_in_its_metrics():
    f = POTENTIALS["fused relu"]()
    model = ade.ADE(f, ade.DualSampler(ade.initial.Empirical(torch.randn(40, DIM)), ade.Leapfrog(2, 0.1)))
    assert not {"log_z", "ess", "initial_ess", "beta"} & model.step(torch.randn(8, DIM)).keys()


def test_sampler_steps_climb_the_samplers_bound():
    f, sampler, unroll = players("fused silu")
    sgd = lambda p: torch.optim.SGD(p, lr=1e-2)  # noqa: E731
    model = ade.ADE(
        f, sampler, bound="importance", sampler_bound="renyi", sampler_steps=2, sampler_optimizer=sgd,
        potential_optimizer=lambda p: torch.optim.SGD(p, lr=0.0, maximize=True),
    )  # fmt: skip
    data = torch.randn(N, DIM, dtype=torch.float64, generator=generator(1))
    wanted = [p.detach().clone() for p in sampler.parameters()]
    gen = generator()
    for _ in range(2):
        copy = [p.detach().clone() for p in sampler.parameters()]
        log_w = independent_log_weights(f, sampler, unroll, N, 1.0, gen)
        found = gradients(BOUNDS["renyi"](log_w), sampler)
        with torch.no_grad():
            for p, c, g in zip(sampler.parameters(), copy, found, strict=True):
                p.copy_(c + 1e-2 * g)
    after = [p.detach().clone() for p in sampler.parameters()]
    with torch.no_grad():
        for p, w in zip(sampler.parameters(), wanted, strict=True):
            p.copy_(w)
    model.step(data, generator=generator())
    for p, w in zip(sampler.parameters(), after, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-9, atol=1e-11)


# --- what is refused, and what is said


def misuse(**options):
    f = options.pop("potential", POTENTIALS["fused relu"])()
    start = options.pop("initial", ade.initial.Gaussian(DIM))
    layer = options.pop("dynamics", ade.Leapfrog(2, 0.1))
    return lambda: ade.ADE(f, ade.DualSampler(start, layer), **options)


IW = {"bound": "importance"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (misuse(bound="renyi"), r"ADE: bound must be one of 'elbo', 'importance', got 'renyi'"),
        (misuse(sampler_bound="iwae"), r"ADE: sampler_bound must be one of 'elbo', 'renyi', 'importance', got 'iwae'"),
        (misuse(samples_per_point=0), r"ADE: samples_per_point must be an integer >= 1, got 0"),
        (misuse(min_ess=0.5), r"ADE: min_ess tempers bound='importance', got bound='elbo'"),
        (misuse(**IW, min_ess=1.5), r"ADE: min_ess must be between 0 and 1, got 1.5"),
        (
            misuse(sampler_min_ess=0.5),
            r"ADE: sampler_min_ess tempers other bounds than \(20\), got sampler_bound='elbo'",
        ),
        (misuse(coverage=1.0), r"ADE: coverage needs q0's density at the data, .* Gaussian has none"),
        (misuse(ess_pace=2), r"ADE: ess_pace must be between 0 and 1, got 2"),
        (
            misuse(ess_pace=0.3, initial=ade.initial.Empirical(torch.randn(5, DIM))),
            r"ADE: ess_pace needs weights: Empirical has no density",
        ),
        (misuse(**IW, defensive=-0.1), r"ADE: defensive must be between 0 and 1, got -0.1"),
        (misuse(**IW, defensive=0.5), r"ADE: defensive samples come from .* must be an ade.WithBase, got MLPPotential"),
        (misuse(defensive=0.5), r"ADE: defensive samples are part of bound='importance', got bound='elbo'"),
        (misuse(**IW, entropy_weight=0.5), r"ADE: entropy_weight must be 1 unless both bounds are 'elbo'"),
        (misuse(**IW, momentum_weight=0.0), r"ADE: bound='importance' .* need weights: momentum_weight is 0"),
        (
            misuse(**IW, initial=ade.initial.Empirical(torch.randn(5, DIM))),
            r"ADE: bound='importance' .* need weights: Empirical has no density",
        ),
        (misuse(max_gap=-1.0), r"ADE: max_gap must be > 0 or None, got -1.0"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_clipped_samples_have_no_weights():
    with pytest.warns(UserWarning, match="atoms"):
        make = misuse(**IW, dynamics=ade.Leapfrog(2, 0.1, sample_range=(-1.0, 1.0)))
        with pytest.raises(ValueError, match="sample_range"):
            make()


def test_damped_leapfrogs_infinite_variance_is_told():
    with pytest.warns(UserWarning, match="no finite variance; raise momentum_weight"):
        misuse(**IW, dynamics=ade.DampedLeapfrog(2, 0.1))()


def test_a_potential_that_runs_away_is_stopped_in_step():
    f = ade.MLPPotential(DIM)
    sampler = ade.DualSampler(ade.initial.Gaussian(DIM), ade.Leapfrog(2, 1e-6, learn_step_size=False))
    model = ade.ADE(f, sampler, potential_optimizer=lambda p: torch.optim.Adam(p, lr=0.1, maximize=True))
    data = 5 + torch.randn(64, DIM)
    with pytest.raises((DivergenceError, ade.NonFiniteError), match=r"f runs away|not finite"):
        for _ in range(500):
            model.step(data)


def test_vanished_steps_and_vanished_weights_are_told_once():
    f, sampler, _ = players("fused relu")
    model = ade.ADE(f, sampler)
    model.watch.metrics(1, {"f_data": 0.0, "f_samples": 0.0, "ess": 0.5, "step_size": 0.1})
    few = {"f_data": 0.0, "f_samples": 0.0, "ess": 0.01, "step_size": 1e-5}
    with pytest.warns(UserWarning) as told:
        for k in range(2000):
            model.watch.metrics(k, few)
    messages = [str(w.message) for w in told]
    assert len(messages) == 2
    assert any("step sizes have shrunk to 1e-05, from 0.1" in m for m in messages)
    assert any("effective sample size is 1." in m for m in messages)


def test_two_bounds_go_through_the_flow_once():
    passes = []

    class Flow(ade.initial.PlanarFlow):
        def transform(self, z):
            x, log_det = super().transform(z)
            log_det.register_hook(lambda _: passes.append("flow"))
            return x, log_det

    potential, _, _ = players("fused silu")
    sampler = ade.DualSampler(Flow(DIM, 3), ade.Leapfrog(T, STEPS)).double()
    data = torch.randn(N, DIM, dtype=torch.float64, generator=generator(1))
    ade.ADE(potential, sampler, bound="importance", sampler_bound="renyi").loss(data, generator=generator(2)).backward()
    assert passes == ["flow"]


class Unrolled(ade.initial.Gaussian):
    """A sampler with an unroll, and an MLP, of its own."""

    def __init__(self) -> None:
        super().__init__(DIM, 1.5)
        self.own = ade.MLPPotential(DIM, (32, 32), "silu")
        self.steps = ade.Leapfrog(2, 0.2)

    def sample_x(self, n, generator):
        x, log_q = super().sample_x(n, generator)
        v = self._normal((n, DIM), generator)
        return self.steps(self.own, x, v).x, log_q


@pytest.mark.parametrize("kind", ["leapfrog", "generalized", "sequential"])
def test_the_samplers_own_networks_get_the_gradient_of_its_bound(kind):
    torch.manual_seed(0)
    layer = ade.Sequential(ade.Leapfrog(2, 0.2), ade.Leapfrog(1, 0.1)) if kind == "sequential" else dynamics_of(kind)[0]
    sampler = ade.DualSampler(Unrolled(), layer).double()
    potential = ade.MLPPotential(DIM, (32, 32), "silu").double()
    data = torch.randn(N, DIM, dtype=torch.float64, generator=generator(1))
    grads = []
    for bound in ("elbo", "importance"):  # of which the sampler's gradient does not depend
        model = ade.ADE(potential, sampler, bound=bound, sampler_bound="importance")
        model.zero_grad()
        model.loss(data, generator=generator(2)).backward()
        grads.append([p.grad.clone() for p in sampler.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 6
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_dynamics_that_is_no_module_has_two_bounds_too():
    class Plain:
        inner = ade.Leapfrog(T, 0.1, learn_step_size=False)

        def momentum_shape(self, event):
            return self.inner.momentum_shape(event)

        def __call__(self, *args, **options):
            return self.inner(*args, **options)

    grads = []
    for dynamics in (Plain(), Plain.inner):
        torch.manual_seed(0)
        sampler = ade.DualSampler(ade.initial.PlanarFlow(DIM, 3), dynamics)
        model = ade.ADE(ade.MLPPotential(DIM, (32, 32)), sampler, bound="importance", sampler_bound="renyi")
        model.loss(torch.randn(N, DIM, generator=generator(1)), generator=generator(2)).backward()
        grads.append([p.grad for p in (*model.potential_parameters(), *sampler.initial.parameters())])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_sampler_that_is_cut_off_gets_no_gradient():
    f = lambda x: -x.square().sum(1)  # noqa: E731
    sampler = ade.DualSampler(ade.initial.Gaussian(DIM, 1.5), ade.Leapfrog(T, 0.1, gradient="none"))
    model = ade.ADE(f, sampler, bound="importance", sampler_bound="renyi")
    assert not model.loss(torch.randn(4, DIM), generator=generator()).requires_grad


# --------------------------------------------------------------------------------- both players' gradients in one pass


def both(model, x, **options):
    """The loss, and all gradients."""
    for p in model.parameters():
        p.grad = None
    loss = model.loss(x, generator=generator(), **options)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.filterwarnings("ignore:ADE. DampedLeapfrog shrinks")
@pytest.mark.parametrize("dynamics", [ade.Leapfrog, lambda *a: ade.DampedLeapfrog(*a, 0.7)], ids=["leapfrog", "damped"])
@pytest.mark.parametrize(
    ("potential", "of_sampler"),
    [*(("importance", other) for other in BOUNDS), ("elbo", "renyi"), ("elbo", "importance")],
)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_one_pass_back_has_both_players_gradients(activation, of_sampler, potential, dynamics, monkeypatch):
    f = ade.WithBase(ade.MLPPotential(2, hidden=(32, 32), activation=activation, input_gain=2.0), 0.0, 2.0)
    sampler = ade.DualSampler(ade.initial.PlanarFlow(2, 3), dynamics(3, 0.2))
    share = {"defensive": 0.5} if potential == "importance" else {}  # with which one gradient never serves both
    model = ade.ADE(f, sampler, bound=potential, sampler_bound=of_sampler, **share).double()
    x, passes = torch.randn(50, 2, dtype=torch.float64), []
    whole = _mlp_ops._unroll_backward
    monkeypatch.setattr(_mlp_ops, "_unroll_backward", lambda *a: (passes.append(1), whole(*a))[1])
    found = both(model, x)
    assert len(passes) == 1
    monkeypatch.setattr(model, "_may_go_back_once", lambda *a: False)
    for actual, expected in zip(found, both(model, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10 * (1 + expected.abs().max().item()))
    assert len(passes) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_that_vanish_beside_others_do_no_harm_to_the_pass_of_both(dtype, monkeypatch):
    """Those that are 0 in either precision beside the largest: (20) has their samples all the same."""
    f = ade.MLPPotential(2, hidden=(32,), activation="silu", input_gain=30.0)
    sampler = ade.DualSampler(ade.initial.Gaussian(2), ade.Leapfrog(1, 0.01))
    model = ade.ADE(f, sampler, bound="importance", sampler_bound="elbo").to(dtype)
    with torch.no_grad():
        model.potential.layers[-1].weight.mul_(300.0)
    x = torch.randn(200, 2, dtype=dtype)
    values = model.potential(sampler.sample(model.potential, 200, generator()).x)
    assert values.max() - values.min() > 1000
    found = both(model, x)
    monkeypatch.setattr(model, "_may_go_back_once", lambda *a: False)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-10
    for actual, expected in zip(found, both(model, x), strict=True):
        assert (actual - expected).abs().max() <= tolerance * (1 + expected.abs().max())


class _Shifted(ade.DualSampler):
    """One whose density knows f."""

    def sample(self, potential, *args, **options):
        sample = super().sample(potential, *args, **options)
        return sample._replace(log_q=sample.log_q + 0.1 * potential(sample.x0))


def test_a_sampler_of_ones_own_is_gone_through_as_it_samples():
    f = ade.MLPPotential(2, hidden=(32,), activation="silu")
    found = {}
    for of_sampler in ("elbo", "importance"):
        sampler = _Shifted(ade.initial.Gaussian(2), ade.Leapfrog(2, 0.1))
        model = ade.ADE(f, sampler, bound="importance", sampler_bound=of_sampler).double()
        found[of_sampler] = both(model, torch.ones(5, 2, dtype=torch.float64))
        gradients = torch.cat([p.grad.flatten() for p in f.parameters()])
        found[of_sampler] = gradients
    torch.testing.assert_close(found["elbo"], found["importance"], rtol=1e-10, atol=1e-12)


def test_a_weight_that_is_0_leaves_the_loss_as_it_is():
    log_w = torch.tensor([0.0, -math.inf, 1.0], requires_grad=True)
    weighed, factors = log_w.detach().requires_grad_(), _mlp_ops.WeightGradients()
    both_bounds = bounds.renyi_bound(weighed, 1.0), bounds.renyi_bound(weighed, 0.5)
    loss = bounds.with_both_gradients(1 - both_bounds[0], both_bounds, weighed, log_w, factors)
    assert loss.item() == pytest.approx(1 - both_bounds[0].item())
    (gradient,) = torch.autograd.grad(loss, log_w)
    torch.testing.assert_close(gradient, -torch.softmax(0.5 * log_w.detach(), 0))
    torch.testing.assert_close(-gradient * factors.factors[0] * factors.factors[1], torch.softmax(log_w.detach(), 0))


def test_an_exploding_sample_without_weight_adds_nothing(monkeypatch):
    """In float32 its cotangents are 0; anything beside would be multiplied by its adjoint."""
    torch.manual_seed(5)
    f = ade.MLPPotential(2, hidden=(32,), activation="silu", input_gain=10.0)
    with torch.no_grad():
        f.layers[-1].weight.mul_(30.0)
    sampler = ade.DualSampler(ade.initial.Gaussian(2, learnable=True), ade.Leapfrog(60, 0.3))
    model = ade.ADE(f, sampler, bound="importance", sampler_bound="renyi", check_finite=False)
    x = torch.randn(50, 2)
    found = both(model, x)
    monkeypatch.setattr(model, "_may_go_back_once", lambda *a: False)
    for actual, expected in zip(found, both(model, x), strict=True):
        assert (actual - expected).abs().max() <= 1e-4 * (1 + expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 60.0, 80.0, 95.0, 120.0, 2000.0])
def test_defensive_samples_may_have_all_the_weight(gap, dtype, monkeypatch):
    """Then f's cotangents of the dual sampler's are small beyond any number, and the sampler's are not."""
    f = ade.WithBase(ade.MLPPotential(2, hidden=(32,), activation="silu"), 0.0, 2.0)
    sampler = ade.DualSampler(ade.initial.PlanarFlow(2, 3), ade.Leapfrog(2, 0.1))
    model = ade.ADE(f, sampler, bound="importance", sampler_bound="renyi", defensive=0.1).to(dtype)
    whole = f.log_base
    monkeypatch.setattr(f, "log_base", lambda x: whole(x) - gap)  # of the defensive samples' weights alone
    x = torch.randn(50, 2, dtype=dtype)
    found = both(model, x)
    monkeypatch.setattr(model, "_may_go_back_once", lambda *a: False)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-10
    for actual, expected in zip(found, both(model, x), strict=True):
        assert actual.isfinite().all()
        assert (actual - expected).abs().max() <= tolerance * (1 + expected.abs().max())


def test_the_pass_of_both_goes_on_behind_parametrised_weights(monkeypatch):
    f = ade.MLPPotential(2, hidden=(32, 32), activation="silu")
    for layer in f.layers:
        if isinstance(layer, nn.Linear):
            nn.utils.parametrizations.spectral_norm(layer)
    sampler = ade.DualSampler(ade.initial.Gaussian(2, learnable=True), ade.Leapfrog(2, 0.1))
    model = ade.ADE(f, sampler, bound="importance", sampler_bound="elbo").double().eval()
    x, calls = torch.randn(50, 2, dtype=torch.float64), []
    monkeypatch.setattr(terms, "with_both_gradients", lambda *a: (calls.append(1), bounds.with_both_gradients(*a))[1])
    found = both(model, x)
    monkeypatch.setattr(model, "_may_go_back_once", lambda *a: False)
    for actual, expected in zip(found, both(model, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    assert len(calls) == 1


@pytest.mark.parametrize("options", [{"gradient_penalty": 0.1}, {"value_penalty": 0.1}], ids=str)
def test_where_f_acts_in_other_ways_there_are_two_passes(options, monkeypatch):
    f, sampler = ade.MLPPotential(2, hidden=(32,)), ade.DualSampler(ade.initial.Gaussian(2), ade.Leapfrog(2, 0.1))
    model = ade.ADE(f, sampler, bound="importance", sampler_bound="elbo", **options)
    monkeypatch.setattr(terms, "with_both_gradients", None)
    both(model, torch.randn(20, 2))
    two = ade.Sequential(ade.Leapfrog(1, 0.1), ade.Leapfrog(1, 0.1))
    both(
        ade.ADE(f, ade.DualSampler(ade.initial.Gaussian(2), two), bound="importance", sampler_bound="elbo"),
        torch.randn(20, 2),
    )

"""The objective against the reference, its updates, its errors; the players' average."""

import copy
import math
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_cases import generator

import ade_fast as ade
from ade_fast import reference
from ade_fast._ends import End
from ade_fast.fields import fused_value_and_grad
from ade_fast.training.build import ScaleShiftNet
from ade_fast.training.values import evaluate, values_of


def make_players(activation: str = "tanh", n_steps: int = 3) -> tuple[nn.Module, ade.DualSampler]:
    potential = ade.MLPPotential(2, (8, 8), activation).double()
    dynamics = ade.Leapfrog(n_steps, torch.tensor([0.3, 0.2], dtype=torch.float64))
    return potential, ade.DualSampler(ade.initial.PlanarFlow(2, 3), dynamics).double()


def gradients(value: Tensor, *modules: nn.Module) -> list[Tensor]:
    parameters = [p for module in modules for p in module.parameters()]
    return list(torch.autograd.grad(value, parameters))


def assert_all_close(got: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-10) -> None:
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-2)


def ascending_sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-2, maximize=True)


# --- the objective


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("momentum_weight", [None, 0.3])
def test_loss_and_every_gradient_agree_with_the_reference(activation, momentum_weight):
    potential, sampler = make_players(activation)
    data = torch.randn(6, 2, dtype=torch.float64)
    loss = ade.ADE(potential, sampler, momentum_weight=momentum_weight).loss(data, generator=generator())

    x0, v0, log_q0 = sampler.initial.sample(6, (2,), generator())
    x, v, log_det = reference.leapfrog(potential, x0, v0, sampler.dynamics.step_size, 3)
    wanted = reference.objective(potential, data, x, v, log_q0, log_det, momentum_weight or 1.0)

    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12)
    loss.backward()
    got = [p.grad for p in (*potential.parameters(), *sampler.parameters())]
    assert_all_close(got, gradients(wanted, potential, sampler))


INITIALS = {
    "planar": lambda: ade.initial.PlanarFlow(2, 3),
    "mlp": lambda: ade.initial.MLPGaussian(2, 16),
    "learned gaussian": lambda: ade.initial.Gaussian(
        2, 1.3, learnable=True, momentum=ade.initial.Gaussian(2, 0.7, learnable=True)
    ),
    "empirical": lambda: ade.initial.Empirical(torch.randn(40, 2, dtype=torch.float64)),
}


def network(n_inputs: int, residual: bool = False) -> nn.Module:
    net = ScaleShiftNet(2, n_inputs, 8, residual=residual).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


@pytest.mark.parametrize("gradient", ["full", "truncated", "stopped"])
@pytest.mark.parametrize("kind", ["leapfrog", "damped", "generalized"])
@pytest.mark.parametrize("start", INITIALS)
def test_loss_and_gradients_agree_with_the_reference_on_every_sampler(start, kind, gradient):
    """With penalties and weights on; fused kernels (hidden widths of 32); clips where the reference takes them."""
    potential = ade.MLPPotential(2, (32, 32), "tanh").double()
    step = torch.tensor([[0.3, 0.2], [0.25, 0.1], [0.2, 0.4]], dtype=torch.float64)
    if kind == "generalized":
        nets = {"scale_v": network(2), "scale_x": network(1), "shift_v": network(2, residual=True)}
        dynamics = ade.GeneralizedLeapfrog(3, step, gradient=gradient, **nets)
        unroll = partial(reference.generalized_leapfrog, gradient=gradient, **nets)
    else:
        options = {"gradient": gradient, "grad_clip": ade.Clip.norm(0.5), "momentum_clip": ade.Clip.value(0.8)}
        damping = (0.7,) if kind == "damped" else ()
        dynamics = {"leapfrog": ade.Leapfrog, "damped": ade.DampedLeapfrog}[kind](3, step, *damping, **options)
        plain = {"leapfrog": reference.leapfrog, "damped": reference.damped_leapfrog}[kind]
        unroll = lambda f, x, v, step, n, **_: plain(f, x, v, step, n, *damping, **options)  # noqa: E731
    sampler = ade.DualSampler(INITIALS[start]().double(), dynamics)
    data = torch.randn(6, 2, dtype=torch.float64)
    weights = {"momentum_weight": 0.3, "entropy_weight": 0.2, "gradient_penalty": 0.01, "value_penalty": 0.02}
    loss = ade.ADE(potential, sampler, **weights).loss(data, generator=generator())

    x0, v0, log_q0 = sampler.initial.sample(6, (2,), generator())
    x, v, log_det = unroll(potential, x0, v0, dynamics.step_size, 3)
    log_q = -log_det if log_q0 is None else log_q0 - log_det
    points = torch.cat([data, x.detach()]).requires_grad_()
    values = potential(points)
    (grad,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    wanted = potential(data).mean() - (potential(x) - 0.15 * v.square().sum(1)).mean() + 0.2 * log_q.mean()
    wanted = wanted - 0.01 * grad.square().sum(1).mean() - 0.02 * values.square().mean()

    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12)
    parameters = [*potential.parameters(), *sampler.parameters()]
    options = {"allow_unused": True, "materialize_grads": True}
    got = torch.autograd.grad(loss, parameters, **options)
    assert_all_close(list(got), list(torch.autograd.grad(wanted, parameters, **options)))


def test_the_entropy_weight_scales_the_entropy_alone():
    potential, sampler = make_players()
    data = torch.randn(6, 2, dtype=torch.float64)
    values = [
        ade.ADE(potential, sampler, entropy_weight=w).loss(data, generator=generator()).item() for w in (0.0, 1.0, 3.0)
    ]
    entropy = -sampler.sample(potential, 6, generator()).log_q.mean().item()
    assert values[1] - values[0] == pytest.approx(-entropy, abs=1e-12)
    assert values[2] - values[0] == pytest.approx(-3 * entropy, abs=1e-12)


def test_sampler_descends_and_potential_ascends():
    potential, sampler = make_players()
    data = torch.randn(64, 2, dtype=torch.float64)
    trainer = ade.ADE(potential, sampler, potential_optimizer=ascending_sgd, sampler_optimizer=sgd)
    loss = trainer.loss(data, generator=generator())
    d_potential, d_sampler = (
        gradients(loss, potential),
        gradients(trainer.loss(data, generator=generator()), sampler),
    )
    before = [p.detach().clone() for p in (*trainer.potential_parameters(), *trainer.sampler_parameters())]
    trainer.step(data, generator=generator())
    after = [p.detach() for p in (*trainer.potential_parameters(), *trainer.sampler_parameters())]
    moved = [b - a for a, b in zip(before, after, strict=True)]
    assert_all_close(moved, [1e-2 * g for g in d_potential] + [-1e-2 * g for g in d_sampler])


def test_each_players_update_moves_the_objective_its_way():
    for player, sign in (("potential", 1), ("sampler", -1)):
        potential, sampler = make_players()
        data = torch.randn(64, 2, dtype=torch.float64)
        (sampler if player == "potential" else potential).requires_grad_(False)
        trainer = ade.ADE(potential, sampler, potential_optimizer=ascending_sgd, sampler_optimizer=sgd)
        assert (trainer.sampler_optimizer is None) == (player == "potential")
        before = trainer.loss(data, generator=generator()).item()
        trainer.step(data, generator=generator())
        assert sign * (trainer.loss(data, generator=generator()).item() - before) > 1e-6


@pytest.mark.parametrize("name", ["value_penalty", "gradient_penalty"])
def test_a_penalty_is_subtracted_and_acts_on_the_potential_alone(name):
    potential, sampler = make_players()
    data = torch.randn(5, 2, dtype=torch.float64)
    plain = ade.ADE(potential, sampler).loss(data, generator=generator())
    penalised = ade.ADE(potential, sampler, **{name: 0.7}).loss(data, generator=generator())

    samples = sampler.sample(potential, 5, generator()).x.detach()
    points = torch.cat([data, samples]).requires_grad_()
    values = potential(points)
    if name == "value_penalty":
        penalty = values.square().mean()
    else:
        penalty = torch.autograd.grad(values.sum(), points, create_graph=True)[0].square().sum(1).mean()

    torch.testing.assert_close(penalised, plain - 0.7 * penalty, rtol=1e-12, atol=1e-12)
    expected = [
        a - 0.7 * b
        for a, b in zip(
            gradients(ade.ADE(potential, sampler).loss(data, generator=generator()), potential),
            torch.autograd.grad(penalty, list(potential.parameters()), allow_unused=True, materialize_grads=True),
            strict=True,
        )
    ]
    penalised.backward()
    assert_all_close([p.grad for p in potential.parameters()], expected)
    assert_all_close([p.grad for p in sampler.parameters()], gradients(plain, sampler))


def test_a_strong_value_penalty_keeps_f_small():
    data = torch.randn(64, 2)
    sizes = {}
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        potential = ade.MLPPotential(2, (16,), "tanh")
        sampler = ade.DualSampler(ade.initial.Gaussian(2), ade.Leapfrog(1, 0.1))
        trainer = ade.ADE(
            potential,
            sampler,
            value_penalty=weight,
            potential_optimizer=lambda p: torch.optim.Adam(p, lr=1e-2, maximize=True),
        )
        for _ in range(60):
            trainer.step(data, generator=generator())
        sizes[weight] = potential(data).square().mean().item()
    assert sizes[10.0] < 0.2 * sizes[0.0]


def test_a_potential_with_a_trailing_axis_gives_the_same_loss():
    potential, sampler = make_players()
    column = nn.Sequential(potential, nn.Unflatten(0, (-1, 1)))
    data = torch.randn(6, 2, dtype=torch.float64)
    a = ade.ADE(potential, sampler).loss(data, generator=generator())
    b = ade.ADE(column, sampler).loss(data, generator=generator())
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_plain_function_receives_gradients_on_the_tensors_it_uses():
    _, sampler = make_players()
    centre = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def potential(x):
        return -0.5 * (x - centre).square().sum(1)

    trainer = ade.ADE(potential, sampler, potential_optimizer=torch.optim.SGD([centre], lr=0.5, maximize=True))
    assert list(trainer.potential_parameters()) == []
    trainer.step(torch.full((200, 2), 3.0, dtype=torch.float64), generator=generator())
    assert (centre > 0.5).all()  # towards the data


class Stretch(nn.Module):
    """x^T = exp(s) x^0, v^T = v^0: a dynamics whose log-determinant is learned."""

    def __init__(self):
        super().__init__()
        self.s = nn.Parameter(torch.tensor([0.1, 0.2], dtype=torch.float64))

    def momentum_shape(self, event):
        return event

    def forward(self, potential, x0, v0=None, *, generator=None, context=None):
        return ade.DynamicsOutput(x0 * self.s.exp(), v0, self.s.sum().expand(len(x0)))


class NoisyOutput(NamedTuple):
    x: Tensor
    v: Tensor
    log_det: Tensor
    log_noise: Tensor


class Noisy(nn.Module):
    """Two steps that add Gaussian noise of scale exp(log_std): momenta [T, B, d], none of them from q^0."""

    def __init__(self):
        super().__init__()
        self.log_std = nn.Parameter(torch.tensor([-0.5, -0.2], dtype=torch.float64))

    def momentum_shape(self, event):
        return None

    def forward(self, potential, x0, v0=None, *, generator=None, context=None):
        assert v0 is None
        noise = torch.randn((2, *x0.shape), generator=generator, dtype=x0.dtype)
        v = self.log_std.exp()[:, None, None] * noise
        log_noise = torch.distributions.Normal(0.0, self.log_std.exp()[:, None, None]).log_prob(v).sum((0, 2))
        return NoisyOutput(x0 + v.sum(0), v, x0.new_zeros(len(x0)), log_noise)


def test_without_a_density_the_log_determinant_still_enters_the_objective():
    data = torch.randn(50, 2, dtype=torch.float64)
    sampler = ade.DualSampler(ade.initial.Empirical(data), Stretch())
    potential = ade.MLPPotential(2, (8,), "tanh").double()
    sample = sampler.sample(potential, 4, generator())
    torch.testing.assert_close(sample.log_q, -sampler.dynamics.s.sum().expand(4))
    loss = ade.ADE(potential, sampler).loss(data[:4], generator=generator())
    only_values = ade.ADE(potential, sampler, entropy_weight=0.0).loss(data[:4], generator=generator())
    (with_entropy,), (without,) = gradients(loss, sampler), gradients(only_values, sampler)
    torch.testing.assert_close(with_entropy - without, -torch.ones(2, dtype=torch.float64))


def test_log_noise_and_a_weight_per_momentum_enter_the_objective():
    sampler = ade.DualSampler(ade.initial.Gaussian(2), Noisy()).double()
    potential = ade.MLPPotential(2, (8,), "tanh").double()
    data = torch.randn(5, 2, dtype=torch.float64)
    x0, v0, log_q0 = sampler.initial.sample(5, None, g := generator())
    assert v0 is None
    out = sampler.dynamics(potential, x0, generator=g)
    sample = sampler.sample(potential, 5, generator())
    torch.testing.assert_close(sample.log_q, log_q0 + out.log_noise)

    weight = torch.tensor([0.5, 2.0], dtype=torch.float64)
    loss = ade.ADE(potential, sampler, momentum_weight=weight).loss(data, generator=generator())
    kinetic = 0.25 * out.v[0].square().sum(1) + out.v[1].square().sum(1)
    wanted = potential(data).mean() - (potential(out.x) - kinetic - log_q0 - out.log_noise).mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12)
    with pytest.raises(
        ValueError, match=r"ADE: momentum_weight must be a number or have one entry per step, shape \(2,\)"
    ):
        ade.ADE(potential, sampler, momentum_weight=torch.ones(3)).loss(data)


def test_one_unroll_serves_both_players_and_extra_sampler_steps_take_one_each(monkeypatch):
    potential, sampler = make_players()
    calls = []
    sample = type(sampler).sample
    monkeypatch.setattr(type(sampler), "sample", lambda self, *a, **k: calls.append(1) or sample(self, *a, **k))
    for steps in (1, 3):
        calls.clear()
        ade.ADE(potential, sampler, sampler_steps=steps).step(torch.randn(4, 2, dtype=torch.float64))
        assert len(calls) == steps


class Watched(nn.Module):
    """A potential that notes whether its weights want gradients at each evaluation, and fails on demand."""

    def __init__(self):
        super().__init__()
        self.inner = ade.MLPPotential(2, (8,), "tanh").double()
        self.wanted: list[bool] = []
        self.fail = False

    def forward(self, x):
        self.wanted.append(all(p.requires_grad for p in self.inner.parameters()))
        if self.fail:
            raise RuntimeError("on demand")
        return self.inner(x)


def test_the_potential_is_frozen_in_sampler_steps_and_restored_even_after_an_error():
    potential = Watched()
    _, sampler = make_players()
    bias = potential.inner.linears[0].bias.requires_grad_(False)  # the user's own choice survives
    trainer = ade.ADE(potential, sampler, sampler_steps=2)
    trained = [p for p in potential.parameters() if p is not bias]
    potential.inner.parameters = lambda recurse=True: iter(trained)
    data = torch.randn(4, 2, dtype=torch.float64)
    trainer.step(data)
    frozen = potential.wanted.index(True)
    assert frozen > 0 and not any(potential.wanted[:frozen]) and all(potential.wanted[frozen:])
    assert all(p.requires_grad for p in trained) and not bias.requires_grad

    potential.fail = True
    with pytest.raises(RuntimeError, match="on demand"):
        trainer.step(data)
    assert all(p.requires_grad for p in trained) and not bias.requires_grad


def test_sampler_steps_leave_the_potential_untouched():
    potential, sampler = make_players()
    trainer = ade.ADE(potential, sampler, sampler_steps=3, potential_optimizer=ascending_sgd, sampler_optimizer=sgd)
    other_potential, other_sampler = make_players()
    other_potential.load_state_dict(potential.state_dict())
    other_sampler.load_state_dict(sampler.state_dict())
    data, g, h = torch.randn(8, 2, dtype=torch.float64), generator(), generator()
    trainer.step(data, generator=g)
    # By hand: two descents of the sampler, then one step of both, all from the same stream of noise.
    single = ade.ADE(other_potential, other_sampler, potential_optimizer=ascending_sgd, sampler_optimizer=sgd)
    for _ in range(2):
        for p, d in zip(
            other_sampler.parameters(), gradients(single.loss(data, generator=h), other_sampler), strict=True
        ):
            p.data -= 1e-2 * d
    single.step(data, generator=h)
    assert_all_close(list(potential.parameters()), list(other_potential.parameters()))
    assert_all_close(list(sampler.parameters()), list(other_sampler.parameters()))


def test_gradient_norms_are_clipped_per_player():
    potential, sampler = make_players()
    trainer = ade.ADE(potential, sampler, potential_optimizer=ascending_sgd, sampler_optimizer=sgd, grad_norm_clip=1e-3)
    before = {name: p.detach().clone() for name, p in trainer.named_parameters()}
    metrics = trainer.step(torch.randn(8, 2, dtype=torch.float64))
    assert metrics["potential_grad_norm"] > 1e-2 and metrics["sampler_grad_norm"] > 1e-2
    for player in ("potential", "sampler"):
        moved = [p.detach() - before[n] for n, p in trainer.named_parameters() if n.startswith(player)]
        assert nn.utils.get_total_norm(moved).item() == pytest.approx(1e-2 * 1e-3, rel=1e-3)


def test_metrics_are_the_parts_of_the_loss():
    potential, sampler = make_players()
    metrics = ade.ADE(potential, sampler, value_penalty=0.1).step(torch.randn(8, 2, dtype=torch.float64))
    assert all(isinstance(value, float) for value in metrics.values())
    parts = metrics["f_data"] - metrics["f_samples"] + metrics["kinetic"] - metrics["entropy"] - metrics["penalty"]
    assert metrics["loss"] == pytest.approx(parts, abs=1e-12)


def test_a_replay_buffer_is_fed_with_the_end_points():
    data = torch.randn(10, 2)
    sampler = ade.DualSampler(ade.initial.Empirical(data, buffer_size=32), ade.Leapfrog(1, 0.1))
    trainer = ade.ADE(ade.MLPPotential(2, (8,)), sampler, sampler_steps=2)
    trainer.step(data)
    assert sampler.initial.filled == 20
    assert sampler.initial.buffer[:20].abs().sum() > 0


def test_spectral_norm_sees_one_set_of_weights_and_one_power_iteration_per_loss():
    potential = ade.MLPPotential(2, (8, 8), spectral_norm=True).double().train()
    sampler = ade.DualSampler(ade.initial.Gaussian(2), ade.Leapfrog(3, 0.1)).double()
    vector = potential.linears[0].parametrizations.weight[0]._u
    iterations = []
    power = nn.utils.parametrizations._SpectralNorm._power_method
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            nn.utils.parametrizations._SpectralNorm,
            "_power_method",
            lambda self, *a: iterations.append(self) or power(self, *a),
        )
        ade.ADE(potential, sampler, value_penalty=0.1).loss(torch.randn(4, 2, dtype=torch.float64)).backward()
    assert len(iterations) == len(set(iterations)) == 3  # one for each layer
    assert torch.isfinite(vector).all()
    assert all(p.grad is not None for p in potential.parameters())


# --- errors of the objective


def test_a_non_finite_objective_is_refused_before_anything_moves():
    class Exploding(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x):
            return (x * self.scale).sum(1) * (math.inf if torch.is_grad_enabled() else 1.0)

    _, sampler = make_players()
    for steps in (1, 2):
        trainer = ade.ADE(Exploding(), sampler, sampler_steps=steps)
        before = [p.detach().clone() for p in trainer.parameters()]
        with pytest.raises(ade.NonFiniteError, match="lower the learning rates"):
            trainer.step(torch.randn(4, 2, dtype=torch.float64))
        assert all(map(torch.equal, before, [p.detach() for p in trainer.parameters()]))


def test_non_finite_data_is_named():
    potential, sampler = make_players()
    data = torch.randn(4, 2, dtype=torch.float64)
    data[1, 0] = math.nan
    with pytest.raises(ade.NonFiniteError, match=r"ADE: data holds 1 non-finite value"):
        ade.ADE(potential, sampler).loss(data)


BAD_ARGUMENTS = {
    "potential": ({"potential": 3}, TypeError, "ADE: potential must be callable"),
    "sampler": (
        {"sampler": nn.Linear(2, 2)},
        TypeError,
        "ADE: sampler must be an ade.DualSampler, got Linear",
    ),
    "sampler_steps": ({"sampler_steps": 0}, ValueError, "ADE: sampler_steps must be an integer >= 1, got 0"),
    "entropy_weight": (
        {"entropy_weight": -1.0},
        ValueError,
        "ADE: entropy_weight must be finite and >= 0, got -1.0",
    ),
    "value_penalty": ({"value_penalty": math.nan}, ValueError, "ADE: value_penalty must be finite and >= 0"),
    "grad_norm_clip": (
        {"grad_norm_clip": 0.0},
        ValueError,
        "ADE: grad_norm_clip must be > 0 or None, got 0.0",
    ),
    "momentum_weight": (
        {"momentum_weight": -0.1},
        ValueError,
        "ADE: momentum_weight must be finite and >= 0",
    ),
    "entropy text": ({"entropy_weight": "a"}, TypeError, "ADE: entropy_weight must be a number, .* got 'a'"),
    "momentum text": ({"momentum_weight": "a"}, TypeError, "ADE: momentum_weight must be a number or a tensor"),
    "clip text": ({"grad_norm_clip": "a"}, TypeError, "ADE: grad_norm_clip must be a number, > 0 or None, got 'a'"),
    "penalty list": ({"gradient_penalty": [1, 2]}, TypeError, "ADE: gradient_penalty must be a number"),
    "momentum_shape": (
        {"momentum_weight": torch.ones(2, 2)},
        ValueError,
        r"must be a number or have shape \(T,\)",
    ),
    "descending f": (
        {"potential_optimizer": sgd},
        ValueError,
        "ADE: potential_optimizer must have maximize=True",
    ),
    "ascending q": (
        {"sampler_optimizer": ascending_sgd},
        ValueError,
        "ADE: sampler_optimizer must have maximize=False",
    ),
    "no optimizer": (
        {"sampler_optimizer": lambda p: 3},
        TypeError,
        "must be an optimizer or return one, got int",
    ),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_wrong_arguments_are_refused(case):
    arguments, error, message = BAD_ARGUMENTS[case]
    potential, sampler = make_players()
    with pytest.raises(error, match=message):
        ade.ADE(**{"potential": potential, "sampler": sampler, **arguments})


def test_wrong_data_and_potentials_are_refused():
    potential, sampler = make_players()
    trainer = ade.ADE(potential, sampler)
    with pytest.raises(ValueError, match=r"ADE: data must have the sampler's shape \(4, 2\), got \(4, 3\)"):
        trainer.loss(torch.randn(4, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"ADE: data must have the sampler's dtype torch.float64, got torch.float32"):
        trainer.loss(torch.randn(4, 2))
    with pytest.raises(ValueError, match="ADE: data must have at least one sample"):
        trainer.loss(torch.zeros(0, 2, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"ADE: data must be a floating-point tensor .*, got torch.int64"):
        trainer.loss(torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="must be a number for Leapfrog, which has one momentum"):
        ade.ADE(potential, sampler, momentum_weight=torch.ones(3)).loss(torch.randn(4, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"ADE: potential must map \(4, 2\) to \(4,\) or \(4, 1\), got \(4, 3\)"):
        values_of(nn.Linear(2, 3).double(), torch.randn(4, 2, dtype=torch.float64))


class Wrapped(nn.Module):
    """A potential that the kernels do not know for one of theirs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("penalties", [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1), (0.2, 0.1)])
@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_fused_values_and_penalties_are_those_of_the_modules(activation, base, penalties):
    torch.manual_seed(0)
    potential = ade.MLPPotential(2, (32, 64, 32), activation).double()
    if base:
        potential = ade.WithBase(potential, torch.tensor([0.3, -0.2]), 2.0).double()
    sampler = ade.DualSampler(ade.initial.PlanarFlow(2, 3), ade.Leapfrog(2, torch.full((2,), 0.2))).double()
    data = torch.randn(6, 2, dtype=torch.float64, generator=generator(1))
    bounds = {"bound": "importance", "sampler_bound": "importance", "defensive": 0.25} if base else {}
    gradient, value = penalties
    wrapped = ade.WithBase(Wrapped(potential.potential), potential.mean, potential.std) if base else Wrapped(potential)
    found = [_loss_and_gradients(f, sampler, data, gradient, value, bounds) for f in (potential, wrapped)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k", [4, 6, 9])
@pytest.mark.parametrize("way", ["fused", "modules", "separately", "ends"])
def test_every_way_penalises_the_same_rows(way: str, k: int) -> None:
    """The data, and as many samples as there are of them, or all: never rows of the base."""
    torch.manual_seed(0)
    potential = ade.MLPPotential(2, (32, 32), "relu").double()
    data, x, base = (torch.randn(n, 2, dtype=torch.float64) for n in (6, k, 5))
    at = torch.cat([data, x[:6]]).requires_grad_()
    (grad,) = torch.autograd.grad(potential(at).sum(), at)
    slope, square = grad.square().sum(1).mean(), potential(at).square().mean().detach()
    end = None
    if way == "ends":
        found = fused_value_and_grad(potential, x)
        end = End(found[0], found[1])
    f = Wrapped(potential) if way == "modules" else potential
    got = evaluate(f, data, base, x, True, way != "ends", False, separately=way == "separately", end=end)
    torch.testing.assert_close(got.slope, slope, rtol=1e-12, atol=1e-12)
    assert (got.square is None) == (way == "ends")
    if way != "ends":
        torch.testing.assert_close(got.square, square, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.base, potential(base), rtol=1e-12, atol=1e-12)


def _loss_and_gradients(potential, sampler, data, gradient_penalty, value_penalty, bounds):
    trainer = ade.ADE(
        potential,
        sampler,
        gradient_penalty=gradient_penalty,
        value_penalty=value_penalty,
        samples_per_point=2,
        **bounds,
    )
    trainer.zero_grad()
    loss = trainer.loss(data, generator=generator(2))
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in (*potential.parameters(), *sampler.parameters()))]


def test_shared_parameters_are_refused():
    potential = ade.GaussianPotential(2)
    start = ade.initial.Gaussian(2)
    start.mean_of_f = potential.mean
    with pytest.raises(ValueError, match="potential and sampler share 1 parameter"):
        ade.ADE(potential, ade.DualSampler(start, ade.Leapfrog(1)))


def test_a_step_without_anything_to_train_is_refused():
    sampler = ade.DualSampler(ade.initial.Gaussian(2), ade.Leapfrog(1, learn_step_size=False))
    trainer = ade.ADE(lambda x: -x.square().sum(1), sampler)
    with pytest.raises(ValueError, match="pass potential_optimizer="):
        trainer.step(torch.randn(4, 2))


def test_the_dual_sampler_names_what_it_was_given():
    with pytest.raises(TypeError, match=r"DualSampler: initial must be .* got Leapfrog"):
        ade.DualSampler(ade.Leapfrog(1), ade.initial.Gaussian(2))
    with pytest.raises(TypeError, match=r"DualSampler: dynamics must be .* got Gaussian"):
        ade.DualSampler(ade.initial.Gaussian(2), ade.initial.Gaussian(2))
    _, sampler = make_players()
    with pytest.raises(ValueError, match="DualSampler: n must be an integer >= 0, got -1"):
        sampler.sample(lambda x: x.sum(1), -1)


def test_an_empty_draw_has_the_right_shapes():
    potential, sampler = make_players()
    sample = sampler.sample(potential, 0)
    assert sample.x.shape == sample.v.shape == sample.x0.shape == (0, 2) and sample.log_q.shape == (0,)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("penalties", [{}, {"gradient_penalty": 0.1}, {"value_penalty": 0.1, "gradient_penalty": 0.1}])
def test_the_loss_is_the_same_number_where_gradients_are_off(off, penalties):
    potential, sampler = make_players()
    trainer = ade.ADE(potential, sampler, **penalties)
    data = torch.randn(6, 2, dtype=torch.float64)
    wanted = trainer.loss(data, generator=generator())
    with off():
        loss = trainer.loss(data, generator=generator())
        torch.testing.assert_close(loss, wanted.detach(), rtol=1e-12, atol=1e-12)
        with pytest.raises(RuntimeError, match=r"ADE.step: gradients are off"):
            trainer.step(data)
    assert not loss.requires_grad and wanted.requires_grad


def test_gradients_of_parameters_that_no_optimizer_has_do_not_pile_up():
    potential, sampler = make_players()
    first = next(iter(potential.parameters()))
    trainer = ade.ADE(
        potential, sampler, sampler_steps=2, potential_optimizer=torch.optim.SGD([first], lr=0.0, maximize=True),
        sampler_optimizer=torch.optim.SGD([sampler.dynamics.step_size], lr=0.0),
    )  # fmt: skip
    seen = []
    for _ in range(2):
        trainer.step(torch.ones(4, 2, dtype=torch.float64), generator=generator())
        seen.append([p.grad.clone() for p in (*potential.parameters(), *sampler.parameters())])
    assert_all_close(seen[1], seen[0], 0.0)


def test_counts_of_numpy_are_counts():
    potential, sampler = make_players()
    assert sampler.sample(potential, np.int64(3)).x.shape == (3, 2)
    assert ade.initial.Gaussian(2).sample(np.int32(4)).x.shape == (4, 2)
    with pytest.raises(TypeError, match=r"Gaussian: n must be an int, got float"):
        ade.initial.Gaussian(2).sample(4.0)
    with pytest.raises(ValueError, match=r"DualSampler: n must be an integer >= 0, got 4\.0"):
        sampler.sample(potential, 4.0)


# --- the average


def test_the_average_follows_its_formula():
    module = nn.Linear(1, 1, bias=False)
    average = ade.training.EMA(module, 0.5)
    wanted = None
    for n, value in enumerate([1.0, 3.0, -2.0, 8.0] * 5):
        module.weight.data.fill_(value)
        average.update(module)
        decay = min(0.5, n / (n + 10))
        wanted = value if wanted is None else decay * wanted + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(wanted, rel=1e-6)
    assert not average.module.weight.requires_grad
    with pytest.raises(ValueError, match="EMA: decay must be in"):
        ade.training.EMA(module, 1.0)


def test_the_average_copies_buffers():
    module = nn.BatchNorm1d(2)
    average = ade.training.EMA(module, 0.9)
    module(torch.randn(16, 2) + 5)
    average.update(module)
    assert torch.equal(average.module.running_mean, module.running_mean)


def test_the_average_follows_what_is_replaced():
    """A parameter, and a part of the module: the ones that are there now."""
    module = nn.Sequential(nn.Linear(1, 1, bias=False))
    average = ade.training.EMA(module, 0.0)
    for value in (1.0, 2.0):
        module[0].weight.data.fill_(value)
        average.update(module)
    module[0].weight = nn.Parameter(torch.full((1, 1), 3.0))
    average.update(module)
    assert average.module[0].weight.item() == 3.0
    module[0] = nn.Linear(1, 1, bias=False)
    average.update(module)
    assert torch.equal(average.module[0].weight, module[0].weight)
    other = copy.deepcopy(average)
    module[0].weight.data.fill_(5.0)
    other.update(module)
    assert other.module[0].weight.item() == 5.0
    assert average.module[0].weight.item() != 5.0


def test_the_average_says_what_it_cannot_follow():
    module = nn.Linear(1, 1)
    average = ade.training.EMA(module, 0.9)
    average.update(module)
    with pytest.raises(
        ValueError, match=r"EMA: module must have the average's parameters .*float32.*, got torch.float64"
    ):
        average.update(module.double())


def test_the_average_of_a_module_without_parameters_is_the_module():
    average = ade.training.EMA(nn.Tanh(), 0.9)
    average.update(nn.Tanh())
    assert average.module(torch.ones(1)) == torch.tanh(torch.ones(1))

"""The objective against the reference, the loop's exact resume, checkpoints, averages and settings."""

import argparse
import csv
import dataclasses
import io
import json
import math
import pickle
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import ade_fast as ade
from ade_fast import reference
from ade_fast.training import (
    CheckpointError,
    Config,
    ConfigError,
    Trainer,
    checkpoint,
    config,
    loop,
    objective,
    plots,
)

TINY = Config(
    hidden=(32, 32),
    flow_layers=2,
    n_steps=2,
    batch_size=32,
    updates=8,
    sampler_steps=2,
    validate_every=2,
    validation_samples=64,
    test_samples=64,
    test_permutations=50,
    checkpoint_every=2,
    log_every=1,
)


def make_players(activation: str = "tanh", n_steps: int = 3) -> tuple[nn.Module, ade.DualSampler]:
    potential = ade.MLPPotential(2, (8, 8), activation).double()
    dynamics = ade.Leapfrog(n_steps, torch.tensor([0.3, 0.2], dtype=torch.float64))
    return potential, ade.DualSampler(ade.initial.PlanarFlow(2, 3), dynamics).double()


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    with pytest.raises(ValueError, match="ADE: data must have at least one sample"):
        trainer.loss(torch.zeros(0, 2, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"ADE: data must be a floating-point tensor .*, got torch.int64"):
        trainer.loss(torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="must be a number for Leapfrog, which has one momentum"):
        ade.ADE(potential, sampler, momentum_weight=torch.ones(3)).loss(torch.randn(4, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"ADE: potential must map \(4, 2\) to \(4,\) or \(4, 1\), got \(4, 3\)"):
        objective._evaluate(nn.Linear(2, 3).double(), torch.randn(4, 2, dtype=torch.float64))


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


# --- checkpoints


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    state = {"weights": torch.randn(3), "n": 3, "best": None, "list": [(1, 0.5)], "name": "x"}
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_checkpoint(path, state)
    loaded = checkpoint.load_checkpoint(path)
    assert torch.equal(loaded.pop("weights"), state.pop("weights")) and loaded == state
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]  # no temporary file is left


class Bomb:
    def __reduce__(self):
        return (exec, ("raise AssertionError('a checkpoint ran code')",))


def damaged_files() -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "version": 1, "state": {"weights": torch.randn(1000)}}, buffer)
    whole = buffer.getvalue()
    foreign, future, bomb = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"weights": torch.zeros(2)}, foreign)
    torch.save({"format": checkpoint.FORMAT, "version": 99, "state": {}}, future)
    torch.save(Bomb(), bomb)
    return {
        "empty": b"",
        "text": b"not a checkpoint\n",
        "truncated": whole[: len(whole) // 2],
        "truncated late": whole[:-10],
        "zeroed": whole[:200] + bytes(200) + whole[400:],
        "one bit": whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:],
        "plain pickle": pickle.dumps({"state": 1}),
        "code": bomb.getvalue(),
        "foreign": foreign.getvalue(),
        "future": future.getvalue(),
    }


@pytest.mark.parametrize("kind", damaged_files())
def test_a_damaged_or_foreign_checkpoint_gets_one_clear_line(tmp_path, kind):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(damaged_files()[kind])
    wanted = {"foreign": "was not written by ade_fast", "future": "has version 99"}.get(
        kind, "damaged or not a checkpoint"
    )
    with pytest.raises(CheckpointError, match=wanted) as caught:
        checkpoint.load_checkpoint(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.pt does not exist"):
        checkpoint.load_checkpoint(tmp_path / "nothing.pt")


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_checkpoint(path, {"n": 1})

    def full_disk(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save_checkpoint(path, {"n": 2})
    assert checkpoint.load_checkpoint(path) == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


# --- the loop


def assert_same_state(a, b, where: str = "state") -> None:
    """Bit for bit, but for the clock."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key != "seconds":
                assert_same_state(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.mark.parametrize("dynamics", ["leapfrog", "generalized", "damped"])
def test_resume_is_bit_identical(tmp_path, dynamics):
    settings = dataclasses.replace(TINY, dynamics=dynamics, spectral_norm=dynamics == "generalized")
    whole, first = Trainer(settings), Trainer(settings)
    for trainer, updates in ((whole, 6), (first, 3)):
        for _ in range(updates):
            trainer.step()
            trainer.validate()
    checkpoint.save_checkpoint(tmp_path / "c.pt", first.state_dict())
    second = Trainer(settings)
    second.load_state_dict(checkpoint.load_checkpoint(tmp_path / "c.pt"))
    torch.randn(17)  # the global generator is nobody's business
    for _ in range(3):
        second.step()
        second.validate()
    assert_same_state(second.state_dict(), whole.state_dict())


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes most of a tiny run's time."""
    monkeypatch.setattr(plots, "save_learned", lambda *a, **k: None)
    monkeypatch.setattr(plots, "save_convergence", lambda *a, **k: None)


def rows_of(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop("seconds")
    return rows


def test_a_run_killed_again_and_again_ends_as_the_uninterrupted_one(tmp_path, no_pictures):
    """SIGKILL, at whatever it was doing: start, update, validation, or half-way through writing a checkpoint."""
    out, settings = tmp_path / "killed", dataclasses.replace(TINY, updates=60, checkpoint_every=4)
    whole = ade.training.train(settings, tmp_path / "whole", progress=False)
    (tmp_path / "settings.json").write_text(json.dumps(settings.to_dict()))
    code = "import sys; from ade_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    flags = ["--config", str(tmp_path / "settings.json"), "--out", str(out), "--resume", "--no-progress"]
    kills, reached = 0, -1
    while kills < 3:
        process = subprocess.Popen([sys.executable, "-c", code, "train", *flags])
        while process.poll() is None:  # until it has come a little further than the last time
            rows = (out / loop.METRICS).read_bytes().count(b"\n") if (out / loop.METRICS).exists() else 0
            if rows > reached + 10:
                reached = rows
                process.kill()
            time.sleep(0.01)
        kills += 1
        assert process.returncode == -signal.SIGKILL
    parts = ade.training.train(settings, out, resume=True, progress=False)
    unclocked = {"seconds": 0.0, "milliseconds_per_update": 0.0}
    assert dataclasses.replace(parts, **unclocked) == dataclasses.replace(whole, **unclocked)
    assert rows_of(out / loop.METRICS) == rows_of(tmp_path / "whole" / loop.METRICS)
    assert not list(out.glob(".*.tmp"))


@pytest.mark.parametrize("stop_at", [1, 5])
def test_an_interrupted_run_resumes_to_the_same_files(tmp_path, monkeypatch, stop_at, no_pictures):
    whole = ade.training.train(TINY, tmp_path / "whole", progress=False)
    step = Trainer.step

    def interrupted(self):
        if self.update == stop_at:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ade.training.train(TINY, tmp_path / "parts", progress=False)
    with open(tmp_path / "parts" / loop.METRICS, "a") as file:
        file.write("6,0.1,half a row")
    parts = ade.training.train(TINY, tmp_path / "parts", resume=True, progress=False)
    assert rows_of(tmp_path / "parts" / loop.METRICS) == rows_of(tmp_path / "whole" / loop.METRICS)
    assert [row["update"] for row in rows_of(tmp_path / "whole" / loop.METRICS)] == [str(n) for n in range(1, 9)]
    unclocked = {"seconds": 0.0, "milliseconds_per_update": 0.0}
    assert dataclasses.replace(parts, **unclocked) == dataclasses.replace(whole, **unclocked)
    assert_same_state(
        checkpoint.load_checkpoint(tmp_path / "parts" / loop.CHECKPOINT),
        checkpoint.load_checkpoint(tmp_path / "whole" / loop.CHECKPOINT),
    )


def test_a_run_leaves_its_files_and_loads(tmp_path):
    out = tmp_path / "a" / "b"
    summary = ade.training.train(TINY, out, progress=False)
    names = {loop.CHECKPOINT, loop.CONFIG, loop.METRICS, loop.SUMMARY, loop.FIGURE, loop.CONVERGENCE}
    assert {p.name for p in out.iterdir()} == names
    assert (out / loop.FIGURE).read_bytes()[:4] == (out / loop.CONVERGENCE).read_bytes()[:4] == b"\x89PNG"
    assert Config.from_dict(json.loads((out / loop.CONFIG).read_text())) == TINY
    assert json.loads((out / loop.SUMMARY).read_text())["mmd2"] == summary.mmd2
    model = ade.training.load(out)
    assert model.update == summary.chosen_update and model.config == TINY
    assert model.sample(7, seed=1).shape == (7, 2) and model.sample(7).dtype == torch.float32
    assert torch.equal(model.sample(7, seed=1), model.sample(7, seed=1))
    assert not torch.equal(model.sample(7, seed=1), model.sample(7, seed=2))
    with pytest.raises(ValueError, match="sample: n must be"):
        model.sample(-1)


def test_large_draws_go_through_in_pieces(tmp_path, monkeypatch, no_pictures):
    ade.training.train(TINY, tmp_path, progress=False)
    model = ade.training.load(tmp_path)
    monkeypatch.setattr(ade.training.trained, "_CHUNK", 4)
    samples = model.sample(10)
    assert samples.shape == (10, 2) and torch.isfinite(samples).all() and len(samples.unique(dim=0)) == 10


def test_a_directory_with_a_run_is_not_overwritten_unasked(tmp_path, no_pictures):
    ade.training.train(TINY, tmp_path, progress=False)
    before = (tmp_path / loop.CHECKPOINT).read_bytes()
    with pytest.raises(ConfigError, match="holds a run already"):
        ade.training.train(TINY, tmp_path, progress=False)
    other = dataclasses.replace(TINY, seed=1)
    with pytest.raises(ConfigError, match="other settings: seed differ"):
        ade.training.train(other, tmp_path, resume=True, progress=False)
    assert (tmp_path / loop.CHECKPOINT).read_bytes() == before
    ade.training.train(other, tmp_path, overwrite=True, progress=False)
    assert ade.training.load(tmp_path).config.seed == 1


def test_divergence_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    step = Trainer.step

    def diverging(self):
        if self.update == 5:
            raise ade.NonFiniteError("ADE: the objective is not finite; lower the learning rates")
        return step(self)

    monkeypatch.setattr(Trainer, "step", diverging)
    with pytest.raises(ade.NonFiniteError):
        ade.training.train(TINY, tmp_path, progress=False)
    assert checkpoint.load_checkpoint(tmp_path / loop.CHECKPOINT)["update"] == 4


def test_a_short_training_brings_the_samples_closer():
    settings = dataclasses.replace(
        TINY,
        data="moons",
        hidden=(32, 32),
        flow_layers=6,
        batch_size=128,
        updates=400,
        validation_samples=500,
    )
    trainer = Trainer(settings)
    before = trainer.validate()
    for _ in range(settings.updates):
        trainer.step()
    after = trainer.validate()
    assert after < 0.5 * before
    assert trainer.best.update == settings.updates


def test_the_score_uses_data_that_neither_training_nor_validation_saw():
    trainer = Trainer(TINY)
    trainer.validate()
    _, _, test_data, test_samples = trainer.test()
    assert not torch.isin(test_data, trainer._validation_data).any()
    assert not torch.isin(
        test_samples, trainer.sampler.sample(trainer.potential, 64, trainer._generator("samples")).x
    ).any()
    assert torch.equal(trainer.test()[2], test_data)  # the same draw whenever it is asked for


def test_learning_rates_follow_the_schedule():
    settings = dataclasses.replace(TINY, updates=10, lr_decay_from=0.5, lr_decay_to=0.1)
    trainer = Trainer(settings)
    seen = []
    for trainer.update in (0, 5, 10):
        trainer._set_learning_rates()
        seen.append([o.param_groups[0]["lr"] for o in (trainer.ade.potential_optimizer, trainer.ade.sampler_optimizer)])
    wanted = [[settings.potential_lr * k, settings.sampler_lr * k] for k in (1.0, 1.0, 0.1)]
    assert seen == [pytest.approx(w) for w in wanted]


# --- settings


def test_every_setting_is_a_flag_and_a_key_with_help():
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    flags = {option for action in parser._actions for option in action.option_strings}
    for field in dataclasses.fields(Config):
        assert "--" + field.name.replace("_", "-") in flags
        assert field.metadata["help"] and field.metadata["group"] in config.SETTINGS_GROUPS
    assert Config.from_dict(TINY.to_dict()) == TINY
    assert Config.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY


def test_flags_are_read_as_the_settings_they_name():
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    text = "--hidden 8,4 --grad-clip none --momentum-clip 2 --no-clip-samples --spectral-norm --updates 3"
    given = config.given_settings(parser.parse_args(text.split()))
    assert given == {
        "hidden": (8, 4),
        "grad_clip": None,
        "momentum_clip": 2.0,
        "clip_samples": False,
        "spectral_norm": True,
        "updates": 3,
    }


BAD_SETTINGS = {
    "unknown": ({"potentiallr": 1.0}, "unknown key 'potentiallr'; did you mean 'potential_lr'"),
    "type": ({"updates": 1.5}, "updates must be an integer, got 1.5"),
    "bool": ({"updates": True}, "updates must be an integer, got True"),
    "string": ({"data": 3}, "data must be a string, got 3"),
    "choice": ({"data": "moon"}, "data must be one of .* got 'moon'; did you mean 'moons'"),
    "low": ({"n_steps": 0}, "n_steps must be finite and >= 1, got 0"),
    "above": ({"step_size": 0.0}, "step_size must be finite and > 0, got 0.0"),
    "nan": ({"value_penalty": math.nan}, "value_penalty must be finite and >= 0, got nan"),
    "high": ({"beta1": 1.0}, "beta1 must be finite and >= 0 and <= 1, got 1.0"),
    "list": ({"hidden": []}, r"hidden must be a list of integers, got \[\]"),
    "items": ({"hidden": [8, 0]}, "hidden must be finite and >= 1, got 0"),
    "optional": ({"grad_clip": "tight"}, "grad_clip must be a number or none, got 'tight'"),
    "flag": ({"clip_samples": 1}, "clip_samples must be true or false, got 1"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_impossible_settings_are_refused(case):
    values, message = BAD_SETTINGS[case]
    with pytest.raises(ConfigError, match=message):
        Config.from_dict(values)


# --- pictures


@pytest.mark.parametrize("per", ["all", "dimension", "step"])
def test_stages_begin_at_x0_and_end_at_the_samples(per):
    from ade_fast.training.build import build_players

    potential, sampler = build_players(dataclasses.replace(TINY, n_steps=3, step_size_per=per))
    seen = plots.stages(potential, sampler, 5, generator())
    sample = sampler.sample(potential, 5, generator())
    assert len(seen) == 4 and torch.equal(seen[0], sample.x0.detach())
    torch.testing.assert_close(seen[-1], sample.x.detach())
    assert not torch.equal(seen[1], seen[2])


def test_the_scale_of_the_potential_is_found():
    axis = torch.linspace(-6, 6, 200, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    data = torch.randn(20_000, 2, dtype=torch.float64)
    for factor in (0.5, 1.0, 4.0):  # f = factor * log N(0, I), so c = 1 / factor
        c = plots.best_scale(-0.5 * factor * grid.square().sum(1), -0.5 * factor * data.square().sum(1))
        assert c == pytest.approx(1 / factor, rel=0.08)


def test_clipped_samples_are_warned_about_where_the_entropy_is_used() -> None:
    with pytest.warns(UserWarning, match="DualSampler: dynamics clips samples to sample_range"):
        ade.DualSampler(ade.initial.Gaussian((2,)), ade.Leapfrog(2, sample_range=(-1.0, 1.0)))

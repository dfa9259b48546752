"""Conditional models: f(x, condition), through the layers, the sampler, the objective and the likelihood."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import DOUBLE as D
from torch import Tensor, nn

import ade_fast as ade
from ade_fast import reference

every_memory = pytest.mark.parametrize("memory", ["graph", "states"])
STEP = torch.tensor(0.3, dtype=D)


class Labelled(nn.Module):
    """f(x, y) with labels y."""

    def __init__(self, activation=F.silu) -> None:
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(3, 4), nn.Linear(6, 9), nn.Linear(9, 1)
        self.activation = activation
        self.double()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.b(self.activation(self.a(torch.cat([x, self.embed(y)], 1))))


def layer_of(kind: str, memory: str) -> nn.Module:
    return {
        "leapfrog": lambda: ade.Leapfrog(3, STEP, memory=memory),
        "damped": lambda: ade.DampedLeapfrog(3, STEP, 0.9, memory=memory),
        "generalized": lambda: ade.GeneralizedLeapfrog(3, STEP, scale_x=torch.zeros(2, dtype=D), memory=memory),
        "deterministic": lambda: ade.DeterministicLangevin(3, STEP, memory=memory),
        "continuous": lambda: ade.ContinuousLangevin(0.2),
        "langevin": lambda: ade.Langevin(3, STEP, memory=memory),
        "sequential": lambda: ade.Sequential(ade.Leapfrog(2, STEP, memory=memory), ade.Leapfrog(1, STEP)),
    }[kind]().double()


@every_memory
@pytest.mark.parametrize("activation", [F.silu, F.relu], ids=["silu", "relu"])
@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize(
    "kind", ["leapfrog", "damped", "generalized", "deterministic", "continuous", "langevin", "sequential"]
)
@pytest.mark.filterwarnings("ignore:DeterministicLangevin")
def test_a_condition_is_the_closure_over_it(kind: str, rows: int, activation, memory: str) -> None:
    if kind == "continuous" and (activation is F.relu or memory == "graph"):
        return
    f, layer = Labelled(activation), layer_of(kind, memory)
    x0, labels = torch.randn(6, 2, dtype=D), torch.randint(0, 3, (rows,))
    drawn = layer.momentum_shape((2,)) is not None
    v0 = torch.randn(6, 2, dtype=D) if drawn else None
    spread = labels[torch.arange(6) % rows]

    def closed(x: Tensor) -> Tensor:  # also of the rows of several steps
        return f(x, spread.repeat(len(x) // 6))

    found = []
    for potential, condition in ((f, labels), (closed, None)):
        out = layer(potential, x0, v0, condition=condition, generator=torch.Generator().manual_seed(0))
        loss = out.x.square().sum() + out.log_det.sum()
        found.append((loss, *torch.autograd.grad(loss, list(f.parameters()), allow_unused=True)))
    for i, (a, b) in enumerate(zip(*found, strict=True)):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda m, i=i: f"{i}: {m}")


@every_memory
@pytest.mark.parametrize("based", [False, True])
def test_features_of_a_network_get_their_gradients(based: bool, memory: str) -> None:
    """Without `context=`: what a condition was computed from is seen."""
    enc, net, raw = nn.Linear(3, 4).double(), nn.Linear(7, 1).double(), torch.randn(5, 3, dtype=D)
    scale = torch.randn(5, 1, dtype=D, requires_grad=True)
    f = lambda x, c: net(F.silu(torch.cat([x, c[0], c[1]], 1)))  # noqa: E731
    f = ade.WithBase(f, 0.0, 2.0) if based else f
    x0, v0 = torch.randn(5, 2, dtype=D), torch.randn(5, 2, dtype=D)
    wanted = [*enc.parameters(), *net.parameters(), scale]
    code = enc(raw)
    layer = ade.Leapfrog(3, STEP, memory=memory)
    x = layer(f, x0, v0, condition=(code, scale)).x
    assert layer.last_plan.captured is None
    found = torch.autograd.grad(x.sin().sum(), wanted, allow_unused=True, retain_graph=True)
    x = reference.leapfrog(lambda x: f(x, (code, scale)).reshape(-1), x0, v0, STEP, 3)[0]
    for a, b in zip(found, torch.autograd.grad(x.sin().sum(), wanted, allow_unused=True), strict=True):
        assert (b is None and (a is None or not a.any())) or torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def player(**options) -> tuple[Labelled, ade.ADE]:
    torch.manual_seed(0)
    f = Labelled()
    sampler = ade.DualSampler(ade.initial.Gaussian(2, learnable=True), ade.Leapfrog(3, 0.1)).double()
    return f, ade.ADE(f, sampler, **options)


@pytest.mark.parametrize("per_point", [1, 2])
@pytest.mark.parametrize("penalties", [{}, {"value_penalty": 0.1}, {"gradient_penalty": 0.1, "value_penalty": 0.2}])
def test_the_objective_at_the_datas_conditions(penalties: dict, per_point: int) -> None:
    f, model = player(samples_per_point=per_point, **penalties)
    data, labels = torch.randn(16, 2, dtype=D), torch.randint(0, 3, (16,))
    found = model.loss(data, condition=labels, generator=torch.Generator().manual_seed(1))
    sample = model.sampler.sample(f, 16 * per_point, torch.Generator().manual_seed(1), condition=labels)
    at_data, at_samples = f(data, labels)[:, 0], f(sample.x, labels.repeat(per_point))[:, 0]
    kinetic = 0.5 * sample.v.square().sum(1)
    wanted = at_data.mean() - (at_samples - kinetic - sample.log_q).mean()
    points = [data.clone().requires_grad_(), sample.x.detach()[:16].requires_grad_()]
    values = [f(p, labels)[:, 0] for p in points]
    grads = [torch.autograd.grad(v.sum(), p, create_graph=True)[0] for v, p in zip(values, points, strict=True)]
    wanted = wanted - penalties.get("value_penalty", 0) * torch.cat(values).square().mean()
    wanted = wanted - penalties.get("gradient_penalty", 0) * torch.cat(grads).square().sum(1).mean()
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    parameters = list(f.parameters())
    for a, b in zip(*(torch.autograd.grad(loss, parameters) for loss in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert model.potential is f


def test_steps_learn_what_the_labels_say() -> None:
    torch.manual_seed(0)
    f = Labelled()
    model = ade.ADE(
        ade.WithBase(f, 0.0, 3.0), ade.DualSampler(ade.initial.Gaussian(2), ade.Leapfrog(3, 0.3)).double(),
        potential_optimizer=lambda p: torch.optim.Adam(p, lr=3e-2, maximize=True), sampler_steps=2,
    )  # fmt: skip
    for _ in range(60):
        labels = torch.randint(0, 2, (64,))
        metrics = model.step(torch.randn(64, 2, dtype=D) + 4.0 * (labels - 0.5)[:, None], condition=labels)
    assert math.isfinite(metrics["loss"]) and "ess" not in metrics
    means = [model.sampler.sample(model.potential, 200, condition=torch.tensor([y])).x.mean().item() for y in (0, 1)]
    assert means[0] < -0.3 and means[1] > 0.3


def test_every_condition_has_a_likelihood_of_its_own() -> None:
    """Of a Gaussian with a mean of the condition's: log Z is known."""
    f = lambda x, c: -0.5 * (x - c).square().sum(1)  # noqa: E731
    sampler = ade.DualSampler(ade.initial.Gaussian(2, 1.5), ade.Leapfrog(2, 0.2)).double()
    condition, data = torch.tensor([[0.5, -0.5]], dtype=D), torch.randn(500, 2, dtype=D)
    generator = torch.Generator().manual_seed(0)
    found = ade.metrics.log_likelihood(f, sampler, data, 20_000, generator=generator, condition=condition)
    assert abs(found.log_z - math.log(2 * math.pi)) < 0.03
    assert abs(found[0] - (f(data, condition).mean().item() - math.log(2 * math.pi))) < 0.03
    x = sampler.resample(f, 2000, condition=condition, generator=generator).x
    torch.testing.assert_close(x.mean(0), condition[0], rtol=0, atol=0.15)
    assert sampler.metropolis(f, 50, n_steps=5, condition=condition).x.shape == (50, 2)
    with pytest.raises(ValueError, match=r"log_likelihood: condition must be one row, \[1, ...\], .* got 2 rows"):
        ade.metrics.log_likelihood(f, sampler, data, 1000, condition=condition.repeat(2, 1))


def test_the_probe_knows_conditions() -> None:
    f, x0, labels = Labelled(), torch.randn(6, 2, dtype=D), torch.arange(6) % 3
    for potential in (f, ade.WithBase(f, 0.0, 1.0), ade.NegativeEnergy(f)):
        ade.Leapfrog(2, STEP, check_potential=True)(potential, x0, condition=labels)
    mixing = lambda x, y: f(x - x.mean(0), y)  # noqa: E731
    with pytest.raises(ValueError, match="potential mixes the samples of a batch"):
        ade.Leapfrog(2, STEP, check_potential=True)(mixing, x0, condition=labels)


def test_mistakes_are_one_sentence() -> None:
    f, x0, labels = Labelled(), torch.randn(6, 2, dtype=D), torch.zeros(6, dtype=torch.long)
    layer = ade.Leapfrog(2, STEP)
    with pytest.raises(TypeError, match="Leapfrog: condition must be a tensor, a tuple of tensors or None, got list"):
        layer(f, x0, condition=[1, 2])
    with pytest.raises(ValueError, match=r"Leapfrog: condition must have as many rows as x, .* x has 6, condition 4"):
        layer(f, x0, condition=labels[:4])
    with pytest.raises(ValueError, match="Leapfrog: condition must have B >= 1 rows, the same number in all parts"):
        layer(f, x0, condition=(labels, labels[:3]))
    _, model = player()
    with pytest.raises(ValueError, match="ADE: condition must have a row for each of the 6 data, got 3"):
        model.loss(x0, condition=labels[:3])
    for options in ({"bound": "importance"}, {"sampler_bound": "renyi"}, {"ess_pace": 0.5}):
        _, model = player(**options)
        with pytest.raises(ValueError, match="ADE: condition needs bound='elbo' and sampler_bound='elbo'"):
            model.loss(x0, condition=labels)

"""Piecewise-linear modules as programs: every memory plan against eager back-propagation in float64."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import ade_fast as ade
from ade_fast.fields import AutogradField

D = torch.float64


class Residual(nn.Module):
    """A residual sum, a concatenation, strides, groups, pools, one weight used twice, factors that are trained; with
    spectral norm."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), spectral_norm(nn.Conv2d(4, 4, 3, padding=1, bias=False))
        self.c = nn.Conv2d(8, 4, 3, stride=2, padding=1, groups=2)
        self.d, self.e = nn.Linear(4, 5), nn.Linear(5, 1)
        self.gain, self.by = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.rand(4, 1, 1) + 1)
        self.relu, self.leaky = nn.ReLU(inplace), nn.LeakyReLU(0.2, inplace)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.a(x))
        k = self.leaky(self.b(self.b(h))) + h * self.gain - 1.0
        k = F.avg_pool2d(self.c(torch.cat([k, h], 1)), 2) / self.by
        return self.e(self.relu(self.d(k.flatten(1)))).squeeze(-1)


def eager(potential: nn.Module, x: Tensor, v: Tensor, eta: Tensor, n_steps: int, damping: float) -> tuple:
    """Damped leapfrog with both clips at ±0.01 and the sample's at ±1, by autograd throughout."""

    def force(x: Tensor) -> Tensor:
        return torch.autograd.grad(potential(x).sum(), x, create_graph=True)[0].clamp(-0.01, 0.01)

    for t in range(n_steps):
        v = damping * v + (eta / 2 if t == 0 else eta) * force(x)
        x = (x + v.clamp(-0.01, 0.01)).clamp(-1, 1)
    return x, damping * v + eta / 2 * force(x)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("memory", ["graph", "masks", "states", "reversible", "auto"])
def test_gradients_are_eagers(memory: str, inplace: bool) -> None:
    torch.manual_seed(0)
    potential = Residual(inplace).to(D).eval()
    x0, v0 = (torch.randn(3, 2, 4, 4, dtype=D, requires_grad=True) for _ in range(2))
    clip = ade.Clip.value(0.01)
    layer = ade.DampedLeapfrog(
        4, 0.3, 0.5, grad_clip=clip, momentum_clip=clip, sample_range=(-1, 1), memory=memory
    ).to(D)  # fmt: skip
    inputs = [x0, v0, layer.step_size, *potential.parameters()]
    x, v, _ = layer(potential, x0, v0)
    assert layer.last_plan.field == "program"
    assert layer.last_plan.memory == ("graph" if memory == "auto" else memory)
    wanted = eager(potential, x0, v0, layer.step_size, 4, 0.5)
    weights = [torch.randn_like(x), torch.randn_like(v)]
    got = torch.autograd.grad((x, v), inputs, weights, allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(wanted, inputs, weights, allow_unused=True)
    for g, e in zip(got, expected, strict=True):
        e = torch.zeros_like(g) if e is None else e  # biases that ∇f does not depend on
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-12)


class ByHand(nn.Module):
    """Products with matrices and a vector, as one writes them without modules."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(5))
        self.c, self.w = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(4))
        self.register_buffer("e", torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(x @ self.a + self.b)
        k = F.leaky_relu(torch.matmul(h.unflatten(1, (1, 5)), self.c), 0.1).flatten(1)
        return k.mm(self.e) @ self.w


@pytest.mark.parametrize("memory", ["graph", "masks", "states"])
def test_products_with_matrices_are_steps_too(memory: str) -> None:
    torch.manual_seed(0)
    potential = ByHand().to(D)
    x0, v0 = (torch.randn(6, 3, dtype=D, requires_grad=True) for _ in range(2))
    layer = ade.Leapfrog(3, 0.2, memory=memory).to(D)
    eta, inputs = layer.step_size, [x0, v0, *potential.parameters()]
    found = layer(potential, x0, v0)
    assert layer.last_plan.piecewise_linear and layer.last_plan.memory == memory
    force = lambda x: torch.autograd.grad(potential(x).sum(), x, create_graph=True)[0]  # noqa: E731
    x, v = x0, v0
    for _ in range(3):
        v = v + eta / 2 * force(x)
        x = x + eta * v
        v = v + eta / 2 * force(x)
    wanted = torch.autograd.grad((x.sin() + v.cos()).sum(), inputs)
    for got, expected in zip(torch.autograd.grad((found.x.sin() + found.v.cos()).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


def test_auto_goes_down_with_the_budget() -> None:
    torch.manual_seed(0)
    potential, layer = Residual(False), ade.Leapfrog(3, 0.1)
    x0 = torch.randn(2, 2, 4, 4)
    forecast = ade.memory_forecast(potential, layer, tuple(x0.shape))
    assert forecast["graph"] > forecast["masks"] > forecast["states"]
    try:
        for memory in ("graph", "masks", "states"):
            ade.set_memory_budget(forecast[memory] - forecast["states"])
            layer(potential, x0)
            assert layer.last_plan.memory == memory
    finally:
        ade.set_memory_budget(None)


def papers_setting(n_steps: int, memory: str) -> nn.Module:
    """Damping 1/2, both clips at ±0.01, samples kept within [-1, 1]."""
    clip = ade.Clip.value(0.01)
    return ade.DampedLeapfrog(
        n_steps, 0.3, 0.5, grad_clip=clip, momentum_clip=clip, sample_range=(-1, 1), memory=memory
    )


def saturated_images() -> Tensor:
    """Nearly all pixels on a bound; ∇f takes some of them off it."""
    return (20 * torch.randn(4, 1, 8, 8)).clamp(-1, 1)


def test_reversible_comes_back_by_the_program_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32, 100 steps: the rebuilt states are compared with x0 and v0 bit for bit. No step is autograd's."""
    torch.manual_seed(0)
    potential, layer = ade.ConvPotential(1, 8, widths=(4, 4, 4, 4, 4)).eval(), papers_setting(100, "reversible")
    states = papers_setting(100, "states")
    x0, v0 = saturated_images(), torch.randn(4, 1, 8, 8)
    monkeypatch.setattr(AutogradField, "evaluate", None)
    x, v, _ = layer(potential, x0, v0)
    assert (layer.last_plan.field, layer.last_plan.memory) == ("program", "reversible")
    got = torch.autograd.grad(x.sum() + v.sum(), layer.step_size)[0]
    x, v, _ = states(potential, x0, v0)
    torch.testing.assert_close(got, torch.autograd.grad(x.sum() + v.sum(), states.step_size)[0], rtol=0.02, atol=0.02)


def test_reversible_keeps_a_fraction_of_a_state_a_step_where_pixels_are_saturated() -> None:
    """At most 0.1 states (one x and one v) per additional step, from nine tenths of the pixels on a bound to a half."""
    torch.manual_seed(0)
    potential, x0 = ade.ConvPotential(1, 8, widths=(4, 4, 4, 4, 4)).eval(), saturated_images()

    def kept(n_steps: int) -> int:
        saved: list[weakref.ref] = []

        def pack(tensor: Tensor) -> Tensor:
            alone = tensor.detach()
            saved.append(weakref.ref(alone))
            return alone

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = papers_setting(n_steps, "reversible")(potential, x0, torch.zeros_like(x0))
        gc.collect()
        assert (out.x.abs() == 1).float().mean() > 0.5
        held = [t.untyped_storage() for ref in saved if (t := ref()) is not None]
        return sum({s.data_ptr(): s.nbytes() for s in held}.values())

    state = 2 * x0.numel() * x0.element_size()
    assert 0 < (kept(120) - kept(20)) / 100 / state <= 0.1


@pytest.mark.parametrize("memory", ["graph", "masks", "states", "reversible"])
def test_nothing_is_left_for_the_garbage_collector(memory: str) -> None:
    """A cycle would keep the values of an evaluation until Python looks for such, which may be thousands later."""
    torch.manual_seed(0)
    potential, layer = ade.ConvPotential(1, 8, widths=(4, 4, 4, 4, 4)).eval(), papers_setting(5, memory)
    x0 = saturated_images()

    def run() -> None:
        out = layer(potential, x0, torch.zeros_like(x0))
        torch.autograd.grad(out.x.sum() + out.v.sum(), [layer.step_size, *potential.parameters()])

    run()  # what is made once
    assert layer.last_plan.field == "program"
    gc.collect()
    gc.disable()
    try:
        run()
        assert gc.collect() == 0
    finally:
        gc.enable()


class Bent(nn.Module):
    """Another network from a time on that the program was not written at: ReLU units where x has moved far."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = F.relu(h) if x.detach().abs().amax() > 3 else F.leaky_relu(h, 0.3)
        return self.b(h).squeeze(-1)


@pytest.mark.parametrize("gradient", ["full", "truncated", "stopped"])
def test_where_only_the_first_steps_are_the_programs(gradient: str) -> None:
    torch.manual_seed(0)
    potential, x0, v0 = Bent().to(D), torch.randn(4, 3, dtype=D), 2 * torch.randn(4, 3, dtype=D)
    assert x0.abs().amax() < 3
    found = []
    for memory in ("graph", "masks", "states", "reversible"):
        layer = ade.Leapfrog(8, 0.3, memory=memory, gradient=gradient).to(D)
        x, v, _ = layer(potential, x0, v0)
        assert x.abs().amax() > 3
        inputs = [layer.step_size, *potential.parameters()]
        found.append(torch.autograd.grad((x * v).sum(), inputs, allow_unused=True, materialize_grads=True))
    if gradient == "full":
        x, v, _ = ade.reference.leapfrog(potential, x0, v0, layer.step_size, 8)
        found.append(torch.autograd.grad((x * v).sum(), inputs, allow_unused=True, materialize_grads=True))
    for wanted, *others in zip(*found, strict=True):
        for got in others:
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)

"""Continuous-time dynamics against scipy's solver, the dense Jacobian and closed forms, and inside the dual sampler."""

import copy
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import DOUBLE, LeakyCNN, assert_close, fitted_order, make_potential, mlp, normal, spectral_mlp
from density_cases import DIM, gaussian
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import ade_fast as ade
from ade_fast import functional, initial, metrics, weights
from ade_fast.dynamics.ode import SOLVERS

TIGHT = {"solver": "dopri8", "rtol": 1e-9, "atol": 1e-10}
TIME = 0.75  # a float32 too


class Gate(nn.Module):
    """An h that needs all of ∇f, f and x: a gate of f on a net of the other two."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * dim, dim, dtype=DOUBLE)

    def forward(self, grad: Tensor, value: Tensor, x: Tensor) -> Tensor:
        joint = torch.cat([grad.flatten(1), x.flatten(1)], 1)
        return (torch.tanh(self.linear(joint)) * value.sigmoid().unsqueeze(1)).view_as(x)


def gate(dim: int = 3) -> Gate:
    torch.manual_seed(11)
    return Gate(dim)


def langevin(time: float = TIME, **options: Any) -> nn.Module:
    return ade.ContinuousLangevin(time, **{**TIGHT, **options}).double()


def generalized(time: float = TIME, **options: Any) -> nn.Module:
    return ade.GeneralizedContinuousLangevin(gate(), time, **{**TIGHT, **options}).double()


LAYERS = {"langevin": langevin, "generalized": generalized}
every_layer = pytest.mark.parametrize("kind", list(LAYERS))
every_way = pytest.mark.parametrize("adjoint", [True, False], ids=["adjoint", "direct"])
smooth = pytest.mark.parametrize("name", ["silu", "quadratic"])


def field(kind: str, potential: nn.Module, x: Tensor) -> Tensor:
    """dx/dt at one point [d], by plain autograd."""
    x = x.unsqueeze(0)
    value = potential(x).reshape(1)
    (grad,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    return (grad if kind == "langevin" else gate()(grad, value, x))[0]


def independent(kind: str, potential: nn.Module, x0: Tensor, time: float) -> tuple[Tensor, Tensor]:
    """(x, log_det) by scipy, sample by sample, traces from dense Jacobians."""

    def rate(_: float, state: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(state[:-1].copy()).requires_grad_()
        velocity = field(kind, potential, x)
        rows = [torch.autograd.grad(part, x, retain_graph=True)[0] for part in velocity]
        return np.append(velocity.detach().numpy(), torch.stack(rows).trace().item())

    ends = [
        solve_ivp(rate, (0, time), np.append(row.numpy(), 0.0), method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
        for row in x0
    ]
    ends = torch.from_numpy(np.stack(ends))
    return ends[:, :-1], ends[:, -1]


# --- Values -------------------------------------------------------------------------------------------------------


@every_layer
@smooth
def test_it_is_the_solution_of_another_solver(kind: str, name: str) -> None:
    potential, x0 = make_potential(name), normal(3, 3, seed=1)
    found = LAYERS[kind]()(potential, x0)
    x, log_det = independent(kind, potential, x0, TIME)
    assert found.v is None and (found.x - x0).abs().max() > 0.1 and log_det.abs().max() > 0.05
    assert_close(found.x, x, "x", 1e-8)
    assert_close(found.log_det, log_det, "log_det", 1e-8)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_keeps_its_tolerance(solver: str) -> None:
    """Errors of steps are held; over the whole way they may add up to some times as much."""
    potential, x0 = make_potential("silu"), normal(3, 3, seed=1)
    x, log_det = independent("langevin", potential, x0, TIME)
    steps = []
    for rtol in (1e-3, 1e-6):
        layer = langevin(solver=solver, rtol=rtol, atol=rtol)
        found = layer(potential, x0)
        assert_close(found.x, x, "x", 30 * rtol)
        assert_close(found.log_det, log_det, "log_det", 30 * rtol)
        steps.append(layer.last_steps)
    assert 1 <= steps[0] <= steps[1]


def test_euler_tends_to_it_at_rate_one() -> None:
    """(30) with η = time / T, log|det (I + η H)| from dense Hessians."""
    potential, x0 = make_potential("silu"), normal(3, 3, seed=1)
    wanted, log_det = independent("langevin", potential, x0, TIME)
    counts, errors, log_det_errors = (8, 16, 32, 64), [], []
    identity = torch.eye(3, dtype=DOUBLE)

    def hessian(x: Tensor) -> Tensor:
        return torch.autograd.functional.hessian(lambda row: potential(row.unsqueeze(0)).squeeze(), x)

    for count in counts:
        x, total, eta = x0, torch.zeros(3, dtype=DOUBLE), TIME / count
        for _ in range(count):
            x = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(potential(x).sum(), x)
            maps = torch.stack([identity + eta * hessian(row) for row in x.detach()])
            total = total + torch.linalg.slogdet(maps).logabsdet
            x = x + eta * grad
        errors.append((x - wanted).abs().max().item())
        log_det_errors.append((total - log_det).abs().max().item())
    steps = [1 / count for count in counts]
    assert fitted_order(steps, errors) == pytest.approx(1, abs=0.1)
    assert fitted_order(steps, log_det_errors) == pytest.approx(1, abs=0.1)


def test_the_discrete_layer_tends_to_the_continuous_one() -> None:
    """`DeterministicLangevin` with η = time / T, by the layers themselves; on an MLP, by the kernels of both."""
    potential, x0 = ade.MLPPotential(3, (32, 32), "softplus").double(), normal(4, 3, seed=1)
    with torch.no_grad():
        limit = ade.ContinuousLangevin(TIME, rtol=1e-9, atol=1e-10).double()(potential, x0)
        ends = [ade.DeterministicLangevin(n, TIME / n).double()(potential, x0) for n in (8, 16, 32)]
    for name in ("x", "log_det"):
        errors = [(getattr(end, name) - getattr(limit, name)).abs().max().item() for end in ends]
        assert fitted_order([1 / n for n in (8, 16, 32)], errors) == pytest.approx(1, abs=0.1), name


@every_layer
def test_log_det_is_that_of_the_dense_jacobian(kind: str) -> None:
    potential, layer = make_potential("silu"), LAYERS[kind]()
    for row in normal(3, 1, 3, seed=1):
        jacobian = torch.autograd.functional.jacobian(lambda x: layer(potential, x).x[0], row)[:, 0]
        wanted = torch.linalg.slogdet(jacobian).logabsdet
        assert_close(layer(potential, row).log_det[0], wanted, "log_det", 1e-8)


def test_h_that_is_the_gradient_is_langevin() -> None:
    potential, x0 = make_potential("silu"), normal(4, 3, seed=1)
    plain, general = langevin(), ade.GeneralizedContinuousLangevin(lambda grad, value, x: grad, TIME, **TIGHT).double()
    for one, other in zip(plain(potential, x0)[::2], general(potential, x0)[::2], strict=True):
        assert torch.equal(one, other)


def test_images_in_any_strides() -> None:
    torch.manual_seed(2)
    potential = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 1)).double()
    x0 = normal(3, 2, 4, 4, seed=1)
    found, strided = (langevin(0.5)(potential, x) for x in (x0, x0.to(memory_format=torch.channels_last)))
    assert strided.x.is_contiguous(memory_format=torch.channels_last) and found.x.shape == x0.shape
    assert_close(strided.x, found.x, "x", 1e-9)
    flat = lambda x: potential(x.view(-1, 2, 4, 4))  # noqa: E731
    rows = langevin(0.5)(flat, x0.flatten(1))
    assert_close(rows.x.view_as(x0), found.x, "x", 1e-9)
    assert_close(rows.log_det, found.log_det, "log_det", 1e-9)


@every_way
def test_float32_is_as_good_as_its_tolerance(adjoint: bool) -> None:
    x0, found = normal(16, 3, seed=1), []
    for dtype, options in ((torch.float32, {}), (DOUBLE, TIGHT)):
        layer = ade.ContinuousLangevin(TIME, adjoint=adjoint, **options).to(dtype)
        f, x = make_potential("silu").to(dtype), x0.to(dtype).requires_grad_()
        end = layer(f, x)
        assert end.x.dtype == end.log_det.dtype == dtype
        loss = (end.x.square().sum(1) + end.log_det).mean()
        inputs = [x, layer.time, *f.parameters()]
        found.append(
            [t.double() for t in (end.x, end.log_det, *torch.autograd.grad(loss, inputs, allow_unused=True)[:-1])]
        )
    for i, (one, other) in enumerate(zip(*found, strict=True)):
        assert_close(one, other, f"output {i}", 1e-4)


def test_autocast_changes_nothing() -> None:
    potential, x0 = make_potential("silu").float(), normal(4, 3, seed=1).float()
    layer = ade.ContinuousLangevin()
    plain = layer(potential, x0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(potential, x0)
    assert torch.equal(found.x, plain.x) and torch.equal(found.log_det, plain.log_det)
    (-found.log_det.sum()).backward()


def test_samples_do_not_depend_on_their_batch_beyond_the_tolerance() -> None:
    """A calm sample in a batch of wild ones, and a wild one in a batch of calm ones."""
    potential, rtol = make_potential("silu"), 1e-6
    calm, wild = normal(1, 3, seed=1), normal(1, 3, seed=2, scale=4.0)
    layer = langevin(rtol=rtol, atol=rtol)
    for one, others in ((calm, wild), (wild, calm)):
        alone = layer(potential, one)
        among = layer(potential, torch.cat([one, others.expand(200, 3)]))
        assert_close(among.x[:1], alone.x, "x", 30 * rtol)
        assert_close(among.log_det[:1], alone.log_det, "log_det", 30 * rtol)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Callable) -> None:
    potential, layer, x0 = make_potential("silu"), langevin(), normal(4, 3, seed=1)
    wanted = layer(potential, x0)
    with mode():
        found = layer(potential, x0.clone())
    assert not found.x.requires_grad and not found.log_det.requires_grad and wanted.x.requires_grad
    assert torch.equal(found.x, wanted.x) and torch.equal(found.log_det, wanted.log_det)


@every_layer
def test_no_samples(kind: str) -> None:
    x0 = torch.zeros(0, 3, dtype=DOUBLE, requires_grad=True)
    found = LAYERS[kind]()(make_potential("silu"), x0)
    assert found.x.shape == (0, 3) and found.log_det.shape == (0,)
    (found.x.sum() + found.log_det.sum()).backward()
    assert x0.grad.shape == (0, 3)


# --- Hutchinson ---------------------------------------------------------------------------------------------------


@every_layer
@every_way
def test_hutchinson_is_exact_in_the_mean(kind: str, adjoint: bool) -> None:
    """Over all 2^d probes the mean is the trace: values, and gradients too."""
    potential, x0 = make_potential("silu"), normal(2, 3, seed=1).requires_grad_()
    exact, estimated = LAYERS[kind](), LAYERS[kind](divergence="hutchinson", adjoint=adjoint)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=DOUBLE)] * 3)
    ends = [estimated(potential, x0, probes=z.expand(1, 2, 3)) for z in signs]
    wanted, found = exact(potential, x0), torch.stack([end.log_det for end in ends])
    assert found.std(0).min() > 1e-2
    assert_close(found.mean(0), wanted.log_det, "log_det", 1e-8)
    # (The error of log_det is among those that steps are chosen by.)
    assert_close(ends[0].x, wanted.x, "x", 1e-8)
    inputs = [x0, *potential.parameters()]
    for one, other in zip(
        torch.autograd.grad(found.mean(0).sum(), inputs, allow_unused=True),
        torch.autograd.grad(wanted.log_det.sum(), inputs, allow_unused=True),
        strict=True,
    ):
        assert_close(one, other, "gradient", 1e-7)


def test_probes_are_averaged() -> None:
    potential, x0, probes = make_potential("silu"), normal(2, 3, seed=1), normal(2, 2, 3, seed=5).sign()
    both = langevin(divergence="hutchinson", n_probes=2)(potential, x0, probes=probes)
    each = [langevin(divergence="hutchinson")(potential, x0, probes=z.unsqueeze(0)) for z in probes]
    assert_close(both.log_det, (each[0].log_det + each[1].log_det) / 2, "log_det", 1e-8)


def test_drawn_probes_are_signs_of_the_generator() -> None:
    """Of a quadratic f the estimate is time z·H z, and with it the probes' products are seen."""
    dim, batch = 2, 4000
    hessian = torch.tensor([[0.0, 0.5], [0.5, 0.0]], dtype=DOUBLE)
    potential = lambda x: (x @ hessian * x).sum(1) / 2  # noqa: E731
    layer, x0 = ade.ContinuousLangevin(0.5, divergence="hutchinson").double(), normal(batch, dim, seed=1)
    first, again = (layer(potential, x0, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    other = layer(potential, x0, generator=torch.Generator().manual_seed(4))
    assert torch.equal(first.log_det, again.log_det) and not torch.equal(first.log_det, other.log_det)
    products = 2 * first.log_det  # z1 z2, ±1
    assert_close(products.abs(), torch.ones(batch, dtype=DOUBLE), "products", 1e-6)
    assert abs(products.mean().item()) < 4 / math.sqrt(batch)


# --- Gradients ----------------------------------------------------------------------------------------------------


@every_layer
@every_way
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_gradcheck(kind: str, adjoint: bool, divergence: str) -> None:
    """Of x and log_det, for x0, time, f's parameters and h's."""
    torch.manual_seed(3)
    potential = mlp((3, 4, 1), nn.SiLU).double()
    layer = LAYERS[kind](divergence=divergence, adjoint=adjoint)
    probes = None if divergence == "exact" else normal(1, 2, 3, seed=4).sign()
    parameters = (*layer.parameters(), *potential.parameters())
    inputs = (normal(2, 3, seed=1).requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(
        lambda x, *_: layer(potential, x, probes=probes)[::2], inputs, fast_mode=True, atol=1e-6, rtol=1e-5
    )


@every_layer
@smooth
def test_adjoint_and_direct_gradients_agree(kind: str, name: str) -> None:
    found = []
    for adjoint in (True, False):
        potential, layer = make_potential(name), LAYERS[kind](adjoint=adjoint)
        x0 = normal(5, 3, seed=1).requires_grad_()
        end = layer(potential, x0)
        loss = (end.x.sin().sum(1) + end.log_det * torch.arange(5)).mean()
        inputs = [x0, *layer.parameters(), *potential.parameters()]
        found.append(torch.autograd.grad(loss, inputs, allow_unused=True))
    for i, (one, other) in enumerate(zip(*found, strict=True)):
        assert_close(one, other, f"gradient {i}", 1e-8)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_tolerances_are_relative_to_the_cotangents(scale: float) -> None:
    """A mean over a large batch has small ones: they are solved for no less exactly."""
    potential, x0 = make_potential("silu"), normal(5, 3, seed=1).requires_grad_()
    inputs = [x0, *potential.parameters()]
    loss = langevin(rtol=1e-4, atol=1e-4)(potential, x0).x.sin().sum()
    wanted = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    found = torch.autograd.grad(scale * loss, inputs, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert_close(one / scale, other, "gradient", 1e-9)


def test_adjoint_where_the_flow_contracts() -> None:
    """By e^50: what rebuilds the states backwards in time has lost them."""
    potential = ade.GaussianPotential(2).double()
    with torch.no_grad():
        potential.log_std.copy_(torch.tensor([-math.log(10.0), 0.0]))
    x0, layer = normal(20, 2, seed=1).requires_grad_(), ade.ContinuousLangevin(0.5).double()
    found = layer(potential, x0)
    precision = (-2 * potential.log_std).exp()
    wanted = potential.mean + (x0 - potential.mean) * torch.exp(-precision * layer.time)
    inputs = [x0, layer.time, *potential.parameters()]
    ends = (found.x, found.log_det), (wanted, (-precision.sum() * layer.time).expand(20))
    gradients = [torch.autograd.grad((x.sin().sum(1) + log_det).mean(), inputs) for x, log_det in ends]
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, "gradient", 1e-5)


def test_adjoint_saves_states_alone() -> None:
    """One for each step, and one more: no graph of any evaluation."""
    potential, layer = mlp((3, 7, 1), nn.SiLU).double(), langevin()
    node = layer(potential, normal(5, 3, seed=1)).x.grad_fn
    shapes = [tuple(t.shape) for t in node.saved_tensors if t is not None]
    assert shapes.count((5, 4)) == layer.last_steps + 1 > 2
    assert set(shapes) == {(5, 4), (5, 3), ()} | {tuple(p.shape) for p in potential.parameters()}


def test_gradients_reach_whatever_f_and_h_depend_on() -> None:
    """A closure's leaf, a conditioning network's output as context, spectral norm's original, and h's own leaf."""
    torch.manual_seed(4)
    condition, leaf, factor = nn.Linear(2, 3).double(), normal(3, seed=5).requires_grad_(), normal(3, seed=6)
    factor.requires_grad_()
    net = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3).double()).eval()
    sources = [normal(4, 3, seed=1).requires_grad_(), leaf, factor, *condition.parameters(), *net.parameters()]
    y = normal(4, 2, seed=2)
    found = []
    for adjoint in (True, False):
        code = condition(y)
        potential = lambda x: -((net(x) - leaf).tanh() + code * x).square().sum(1)  # noqa: E731, B023
        layer = ade.GeneralizedContinuousLangevin(lambda grad, _, x: factor * grad - x, 0.5, adjoint=adjoint, **TIGHT)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            end = layer.double()(potential, sources[0], context=code)
        found.append(torch.autograd.grad(end.x.sin().sum() + end.log_det.sum(), sources))
    for one, other in zip(*found, strict=True):
        assert other.abs().max() > 1e-4
        assert_close(one, other, "gradient", 1e-8)


def test_a_parametrised_potential_is_one_function_along_the_flow() -> None:
    """Spectral norm in training mode: one power iteration a call, forward and backward, whichever way gradients go."""
    torch.manual_seed(1)
    original, x0, found = spectral_mlp(nn.SiLU).double(), normal(4, 3, seed=1), []
    for adjoint in (True, False):
        potential = copy.deepcopy(original)
        end = langevin(adjoint=adjoint)(potential, x0)
        loss = (end.x.sin().sum(1) + end.log_det).sum()
        gradients = torch.autograd.grad(loss, list(potential.parameters()), allow_unused=True)
        vectors = [b.clone() for b in potential.buffers()]
        found.append((end.x, end.log_det, *gradients, *vectors))
        again = langevin()(potential.eval(), x0)
        assert_close(again.x, end.x, "x", 1e-8)
    for one, other in zip(*found, strict=True):
        assert_close(one, other, "adjoint and direct", 1e-8)


def test_a_captured_tensor_is_reached_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ade_fast._slow_paths._TAKEN", {})
    source, x0 = normal(3, seed=5).requires_grad_(), normal(4, 3, seed=1)
    code = source.exp()
    potential = lambda x: -(code * x).square().sum(1)  # noqa: E731
    with pytest.warns(ade.SlowPathWarning, match=r"captured a non-leaf tensor.*adjoint=False"):
        end = langevin()(potential, x0)
    (found,) = torch.autograd.grad(end.log_det.sum(), source)
    assert_close(found, -16 * TIME * source.exp().square(), "gradient", 1e-7)


def test_with_base_and_frozen_parameters() -> None:
    """f + a Gaussian; no gradient for what does not ask for one."""
    inner, x0 = make_potential("silu"), normal(4, 3, seed=1)
    potential = ade.WithBase(inner, torch.zeros(3, dtype=DOUBLE), torch.full((3,), 1.5, dtype=DOUBLE))
    inner[0].weight.requires_grad_(False)
    end = langevin()(potential, x0)
    whole = langevin()(lambda x: potential(x), x0)
    assert_close(end.x, whole.x, "x", 1e-12)
    (end.x.sum() + end.log_det.sum()).backward()
    assert inner[0].weight.grad is None and inner[0].bias.grad.abs().max() > 0


def test_a_branch_met_later_gets_its_gradient() -> None:
    """Control flow: the first evaluation does not meet the second parameter, and a third is never met."""
    a, b, c = (nn.Parameter(torch.tensor(v, dtype=DOUBLE)) for v in (1.0, 1.3, 5.0))

    class Switching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = a, b, c

        def forward(self, x: Tensor) -> Tensor:
            scale = self.a if bool((x[:, 0] > 1.5).all()) else self.b
            return -scale * x.square().sum(1) / 2

    x0 = torch.tensor([[2.0, 1.0]], dtype=DOUBLE)
    end = langevin(rtol=1e-6, atol=1e-7)(Switching(), x0)
    end.x.sum().backward()
    assert a.grad < -0.1 and b.grad < -0.1 and c.grad is None


@every_layer
def test_twice_through_one_graph(kind: str) -> None:
    potential, layer, x0 = make_potential("silu"), LAYERS[kind](), normal(4, 3, seed=1).requires_grad_()
    loss = layer(potential, x0).x.square().sum()
    (first,) = torch.autograd.grad(loss, x0, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x0)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, x0)


def test_second_derivatives_through_the_solver_alone() -> None:
    potential, x0 = make_potential("quadratic"), normal(1, 3, seed=1).requires_grad_()
    factor = torch.exp(-TIME * (-2 * potential.log_std).exp())
    for adjoint in (True, False):
        (grad,) = torch.autograd.grad(langevin(adjoint=adjoint)(potential, x0).x.pow(3).sum(), x0, create_graph=True)
        if adjoint:
            with pytest.raises(RuntimeError, match="differentiable only once"):
                torch.autograd.grad(grad.sum(), x0)
        else:
            (second,) = torch.autograd.grad(grad.sum(), x0)
            mean = potential.mean
            wanted = 6 * (mean + factor * (x0 - mean)) * factor.square()
            assert_close(second, wanted, "second derivative", 1e-7)


def test_changes_between_the_passes_are_refused() -> None:
    def changed(change: Callable[[nn.Module], Any]) -> None:
        potential = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.BatchNorm1d(4), nn.Linear(4, 1)).double().eval()
        loss = langevin()(potential, normal(4, 3, seed=1)).x.sum()
        with torch.no_grad():
            change(potential)
        loss.backward()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        changed(lambda f: f[0].weight.mul_(2))
    with pytest.raises(RuntimeError, match=r"ContinuousLangevin: the rate of change .* was modified between"):
        changed(lambda f: f[2].running_var.mul_(4))
    with pytest.raises(RuntimeError, match="hook was registered"):
        changed(lambda f: f[0].weight.register_hook(lambda g: g))
    changed(lambda f: f.train())  # the backward pass has it as the forward pass saw it


# --- In the dual sampler ------------------------------------------------------------------------------------------


def dual(divergence: str = "exact", kind: str = "langevin") -> ade.DualSampler:
    layer = (
        ade.ContinuousLangevin(0.3, divergence=divergence)
        if kind == "langevin"
        else ade.GeneralizedContinuousLangevin(gate(DIM), 0.3, divergence=divergence)
    )
    return ade.DualSampler(initial.Gaussian(DIM, 2.0, learnable=True), layer).double()


@pytest.mark.parametrize("kind", ["langevin", "generalized", "sequence"])
def test_mean_weight_is_the_normaliser(kind: str) -> None:
    potential, log_z = gaussian()
    if kind == "sequence":
        stack = ade.Sequential(ade.ContinuousLangevin(0.2), ade.Leapfrog(2, 0.3), ade.ContinuousLangevin(0.1))
        sampler = ade.DualSampler(initial.Gaussian(DIM, 2.0), stack).double()
    else:
        sampler = dual(kind=kind)
    sampler.requires_grad_(False)
    found = metrics.log_z(potential, sampler, 20_000, generator=torch.Generator().manual_seed(3))
    assert abs(found.log_z - log_z) < 3.5 * found.standard_error
    assert 0 < found.standard_error < 0.05


def test_density_of_the_dual_samples_is_the_pushforward() -> None:
    """Of a Gaussian by a linear flow: again a Gaussian."""
    potential, _ = gaussian()
    sample = dual().sample(potential, 50, torch.Generator().manual_seed(1))
    contraction = torch.exp(-0.3 * (-2 * potential.log_std).exp())
    end = torch.distributions.Normal(potential.mean * (1 - contraction), 2.0 * contraction)
    assert sample.v is None
    assert_close(sample.log_q.detach(), end.log_prob(sample.x.detach()).sum(1), "log_q", 1e-4)


@pytest.mark.parametrize("kind", ["langevin", "generalized"])
@pytest.mark.parametrize("bounds", [("elbo", "elbo"), ("importance", "renyi")], ids=["elbo", "two bounds"])
def test_ade_trains_through_it(kind: str, bounds: tuple[str, str]) -> None:
    sampler, potential = dual(kind=kind), ade.MLPPotential(DIM, (8,), "silu").double()
    model = ade.ADE(potential, sampler, bound=bounds[0], sampler_bound=bounds[1])
    players = (*potential.parameters(), *sampler.parameters())
    before = [p.detach().clone() for p in players]
    for i in range(2):
        found = model.step(normal(16, DIM, seed=i), generator=torch.Generator().manual_seed(i))
        assert math.isfinite(found["loss"]) and 0 < found["ess"] <= 1 and found["kinetic"] == 0
    moved = [not torch.equal(p, b) for p, b in zip(players, before, strict=True)]
    assert sum(moved) >= len(moved) - 1  # f's last bias cancels


@pytest.mark.parametrize("kind", ["langevin", "generalized"])
def test_two_bounds_give_each_player_its_own_gradient(kind: str) -> None:
    """Where the graph is cut from the sampler's parameters (no h) and where it is not."""
    sampler, potential = dual(kind=kind), ade.MLPPotential(DIM, (8,), "silu").double()

    def gradients(bound: str, sampler_bound: str) -> dict[nn.Module, list[Tensor]]:
        for module in (sampler, potential):
            module.zero_grad()
        model = ade.ADE(potential, sampler, bound=bound, sampler_bound=sampler_bound)
        model.loss(normal(16, DIM, seed=1), generator=torch.Generator().manual_seed(1)).backward()
        return {module: [p.grad.clone() for p in module.parameters()] for module in (sampler, potential)}

    both = gradients("importance", "renyi")
    wanted = {potential: gradients("importance", "importance"), sampler: gradients("elbo", "renyi")}
    for player, alone in wanted.items():
        for one, other in zip(both[player], alone[player], strict=True):
            assert_close(one, other, "gradient", 1e-5)  # of the adjoint's tolerance


def test_estimated_log_dets_have_no_weights() -> None:
    sampler, potential = dual("hutchinson"), ade.MLPPotential(DIM, (8,), "silu").double()
    for dynamics in (sampler.dynamics, ade.Sequential(ade.Leapfrog(1), ade.Sequential(sampler.dynamics))):
        found = ade.DualSampler(sampler.initial, dynamics)
        assert "only estimates its log_det" in weights.why_no_weights(found, torch.ones(()))
        with pytest.raises(ValueError, match="only estimates its log_det"):
            metrics.log_z(potential, found, 100)
        with pytest.raises(ValueError, match="need weights: dynamics only estimates"):
            ade.ADE(potential, found, bound="importance")
    assert weights.why_no_weights(dual(), torch.ones(())) is None
    found = ade.ADE(potential, sampler).step(normal(16, DIM, seed=1))  # (20) needs none
    assert math.isfinite(found["loss"]) and "ess" not in found


def test_functional_forms_are_the_layers() -> None:
    potential, x0, time = (
        make_potential("silu"),
        normal(4, 3, seed=1),
        torch.tensor(TIME, dtype=DOUBLE).requires_grad_(),
    )
    signs = normal(2, 4, 3, seed=2).sign()
    estimated = {"divergence": "hutchinson", "n_probes": 2}
    pairs = [
        (langevin()(potential, x0), functional.continuous_langevin(potential, x0, time, **TIGHT)),
        (
            langevin(**estimated, solver="bosh3", rtol=1e-5)(potential, x0, probes=signs),
            functional.continuous_langevin(
                potential, x0, time, probes=signs, **estimated, **{**TIGHT, "solver": "bosh3", "rtol": 1e-5}
            ),
        ),
        (
            generalized()(potential, x0),
            functional.generalized_continuous_langevin(potential, x0, gate(), time, **TIGHT),
        ),
    ]
    for layer, function in pairs:
        assert_close(function.x, layer.x, "x", 1e-7)
        assert_close(function.log_det, layer.log_det, "log_det", 1e-7)
        assert torch.autograd.grad(function.log_det.sum(), time)[0].abs() > 1e-3


# --- Misuses ------------------------------------------------------------------------------------------------------


def call(layer: nn.Module, x0: Tensor | None = None, potential: Callable | None = None, **options: Any) -> Any:
    return layer(potential or make_potential("silu"), normal(4, 3, seed=1) if x0 is None else x0, **options)


def infinite(x: Tensor) -> Tensor:
    """x⁴: its flow is at infinity after finite time."""
    return x.pow(4).sum(1)


def steep(x: Tensor) -> Tensor:
    """A Gaussian that contracts by e^10000."""
    return -5000 * x.square().sum(1)


signs = torch.ones(1, 4, 3, dtype=DOUBLE)
MISUSES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no time": (lambda: ade.ContinuousLangevin(0.0), ValueError, "ContinuousLangevin: time must be positive, got 0.0"),
    "infinite time": (lambda: ade.ContinuousLangevin(math.inf), ValueError, "time must be finite, got inf"),
    "a time per dimension": (
        lambda: ade.GeneralizedContinuousLangevin(gate(), torch.ones(3)),
        ValueError,
        r"GeneralizedContinuousLangevin: time must be a single number, got shape \(3,\)",
    ),
    "no divergence": (lambda: langevin(divergence="none"), ValueError, "divergence must be one of .*got 'none'"),
    "no probes": (lambda: langevin(n_probes=0), ValueError, "n_probes must be at least 1, got 0"),
    "fractional probes": (lambda: langevin(n_probes=1.5), TypeError, "n_probes must be an integer, got float"),
    "a fixed-step solver": (lambda: langevin(solver="euler"), ValueError, "solver must be one of .*got 'euler'"),
    "no tolerance": (lambda: langevin(rtol=0.0), ValueError, "rtol must be positive and finite, got 0.0"),
    "a tolerance in words": (lambda: langevin(atol="tight"), TypeError, "atol must be a number, got str"),
    "no steps": (lambda: langevin(max_steps=0), ValueError, "max_steps must be at least 1, got 0"),
    "adjoint in words": (lambda: langevin(adjoint="yes"), TypeError, "adjoint must be True or False, got 'yes'"),
    "an h that is none": (
        lambda: ade.GeneralizedContinuousLangevin(1.0),
        TypeError,
        r"h must be callable, h\(grad, value, x\), got float",
    ),
    "an h of another shape": (
        lambda: call(ade.GeneralizedContinuousLangevin(lambda g, y, x: y).double()),
        ValueError,
        r"h must return x's shape \(4, 3\), got \(4,\)",
    ),
    "an h of another dtype": (
        lambda: call(ade.GeneralizedContinuousLangevin(lambda g, y, x: g.float()).double()),
        TypeError,
        "h must return x's dtype torch.float64, got torch.float32",
    ),
    "a momentum": (
        lambda: call(langevin(), v0=normal(4, 3, seed=2)),
        ValueError,
        "ContinuousLangevin: v0 must be None: there is no momentum",
    ),
    "bfloat16": (
        lambda: call(langevin(), normal(4, 3, seed=1).bfloat16()),
        TypeError,
        "x0 must be float32 or float64, got torch.bfloat16",
    ),
    "float32 too exactly": (
        lambda: call(langevin(), normal(4, 3, seed=1).float()),
        ValueError,
        "rtol=1e-09 is below what torch.float32 resolves",
    ),
    "piecewise linear": (
        lambda: call(langevin(), potential=make_potential("relu")),
        ValueError,
        "potential is piecewise linear.*use a smooth activation",
    ),
    "piecewise linear by other functions": (
        lambda: call(langevin(), potential=nn.Sequential(nn.Linear(3, 8), nn.Hardtanh(), nn.Linear(8, 1)).double()),
        ValueError,
        "potential is piecewise linear.*use a smooth activation",
    ),
    "piecewise linear images": (
        lambda: call(langevin(), normal(2, 2, 4, 4, seed=1), LeakyCNN().double()),
        ValueError,
        "potential is piecewise linear",
    ),
    "piecewise linear on a base": (
        lambda: call(langevin(), potential=ade.WithBase(make_potential("relu"), 0.0, 1.0).double()),
        ValueError,
        "potential is piecewise linear",
    ),
    "probes for an exact trace": (
        lambda: call(langevin(), probes=signs),
        ValueError,
        "probes belong to divergence='hutchinson'",
    ),
    "probes of another shape": (
        lambda: call(langevin(divergence="hutchinson", n_probes=2), probes=signs),
        ValueError,
        r"probes must have shape \(2, 4, 3\), .*got \(1, 4, 3\)",
    ),
    "probes of another dtype": (
        lambda: call(langevin(divergence="hutchinson"), probes=signs.float()),
        TypeError,
        "probes must be torch.float64 on cpu as x0 is, got torch.float32",
    ),
    "dropout": (
        lambda: call(
            langevin(), potential=nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Dropout(), nn.Linear(3, 1)).double()
        ),
        ValueError,
        "potential is random",
    ),
    "to infinity": (
        lambda: call(langevin(5.0, rtol=1e-5, atol=1e-5), potential=infinite),
        (ade.NonFiniteError, RuntimeError),
        "ContinuousLangevin: (a state or its rate of change is NaN|the solver's steps have become too small)",
    ),
    "not a number": (
        lambda: call(langevin(), potential=lambda x: x.sqrt().sum(1)),
        ade.NonFiniteError,
        "a state or its rate of change is NaN or infinite",
    ),
    "too steep": (
        lambda: call(langevin(max_steps=30), potential=steep),
        RuntimeError,
        r"steps have become too small \(after 30 of max_steps=30\)",
    ),
    "transforms": (
        lambda: torch.func.grad(lambda x: functional.continuous_langevin(infinite, x).x.sum())(normal(4, 3, seed=1)),
        RuntimeError,
        "torch.func transforms .* do not go through",
    ),
    "an unknown option": (
        lambda: functional.continuous_langevin(make_potential("silu"), normal(4, 3, seed=1), 1.0, step=0.1),
        TypeError,
        "continuous_langevin: unknown option 'step'",
    ),
}


@pytest.mark.parametrize("misuse", list(MISUSES))
def test_misuse(misuse: str) -> None:
    act, error, message = MISUSES[misuse]
    with pytest.raises(error, match=message):
        act()


def test_without_torchdiffeq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match="ContinuousLangevin needs torchdiffeq: pip install torchdiffeq"):
        ade.ContinuousLangevin()


def test_many_dimensions_are_said_to_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ade_fast._slow_paths._TAKEN", {})
    with pytest.warns(ade.SlowPathWarning, match="takes 65 vector-Jacobian products"):
        langevin(0.01)(lambda x: -x.square().sum(1), normal(1, 65, seed=1))

"""Potentials and users that do odd things: the gradient is eager code's, or there is an error; never another number."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ade_fast as ade

D = torch.float64


def net(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 9), activation(), nn.Linear(9, 9), activation(), nn.Linear(9, 1)).double()


class Wrap(nn.Module):
    """Keeps a network away from the fused kernels."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def start() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 2, dtype=D), torch.randn(6, 2, dtype=D)


def eager(potential, x0, v0, inputs, n_steps=3, eta=0.3) -> list[torch.Tensor]:
    x, v, _ = ade.reference.leapfrog(potential, x0, v0, torch.tensor(eta, dtype=D), n_steps)
    return torch.autograd.grad(x.sum() + v.square().sum(), inputs, allow_unused=True)


def ours(potential, x0, v0, inputs, n_steps=3, eta=0.3, **options) -> list[torch.Tensor]:
    out = ade.Leapfrog(n_steps, torch.tensor(eta, dtype=D), **options)(potential, x0, v0)
    return torch.autograd.grad(out.x.sum() + out.v.square().sum(), inputs, allow_unused=True)


def assert_same(found, wanted) -> None:
    """None and zeros are the same derivative."""
    for a, b in zip(found, wanted, strict=True):
        if a is not None or b is not None:
            a, b = (torch.zeros_like(b) if a is None else a), (torch.zeros_like(a) if b is None else b)
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(9).double()], ids=["dropout", "batch norm"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_modes_that_change_before_the_backward_pass_do_not_matter(activation, layer, memory):
    inner = nn.Sequential(nn.Linear(2, 9), activation(), layer, nn.Linear(9, 1)).double()
    potential, (x0, v0) = Wrap(inner).eval(), start()
    parameters = [p for p in potential.parameters() if p.requires_grad]
    wanted = ours(potential, x0, v0, parameters, memory=memory)
    out = ade.Leapfrog(3, torch.tensor(0.3, dtype=D), memory=memory)(potential, x0, v0)
    potential.train()
    found = torch.autograd.grad(out.x.sum() + out.v.square().sum(), parameters, allow_unused=True)
    assert_same(found, wanted)
    assert all(m.training for m in potential.modules())
    if isinstance(layer, nn.BatchNorm1d):
        assert int(layer.num_batches_tracked) == 0


@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_a_frozen_parameter_changed_in_place_is_noticed(activation, memory):
    potential, (x0, v0) = Wrap(net(activation)), start()
    potential.inner[2].weight.requires_grad_(False)
    out = ade.Leapfrog(3, torch.tensor(0.3, dtype=D), memory=memory)(potential, x0, v0)
    with torch.no_grad():
        potential.inner[2].weight.mul_(1.5)
    with pytest.raises(RuntimeError, match="modified"):
        out.x.sum().backward()


def test_an_all_frozen_potential_changed_in_place_is_noticed():
    potential, (x0, v0) = Wrap(net(nn.SiLU)).requires_grad_(False), start()
    x0.requires_grad_()
    out = ade.Leapfrog(3, 0.3, memory="states").double()(potential, x0, v0)
    with torch.no_grad():
        potential.inner[0].weight.mul_(1.5)
    with pytest.raises(RuntimeError, match="something that it depends on was modified between"):
        out.x.sum().backward()


@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("rows", [1, 6], ids=["a program's", "autograd's"])
def test_a_captured_constant_changed_in_place_is_noticed_where_it_is_read_again(rows: int, memory: str):
    """A program reads it for the tangent, in any case."""
    scale, inner, (x0, v0) = torch.full((rows, 1), 2.0, dtype=D), net(), start()

    def potential(x: torch.Tensor) -> torch.Tensor:
        return (scale * inner(x)).squeeze(1)

    wanted = ours(potential, x0, v0, [inner[0].weight], memory=memory)
    out = ade.Leapfrog(3, torch.tensor(0.3, dtype=D), memory=memory)(potential, x0, v0)
    loss = out.x.sum() + out.v.square().sum()
    scale.mul_(3.0)
    if rows == 6 and memory == "graph":
        assert_same(torch.autograd.grad(loss, [inner[0].weight]), wanted)
        return
    with pytest.raises(RuntimeError, match="modified"):
        loss.backward()


ODD = {
    "no_grad inside": lambda a, b, x: b(F.relu(a(x)) + _without_grad(a, x)),
    "add by keyword": lambda a, b, x: b(torch.add(F.relu(a(x)), other=a.bias)),
    "cat by keyword": lambda a, b, x: b(torch.cat(tensors=[F.relu(a(x))[:, :4], a(x)[:, 4:]], dim=1)),
    "floor division": lambda a, b, x: b(F.relu(a(x)) + torch.div(a(x), 0.5, rounding_mode="floor")),
    "mul by keyword": lambda a, b, x: b(torch.mul(F.relu(a(x)), other=2.0)),
    "sub with alpha": lambda a, b, x: b(torch.sub(F.relu(a(x)), a(x), alpha=0.5)),
}


def _without_grad(a: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return a(x)


@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("name", ODD)
def test_functions_called_in_odd_ways_have_eager_gradients(name, memory):
    a, b, (x0, v0) = nn.Linear(2, 9).double(), nn.Linear(9, 1).double(), start()
    potential = functools.partial(ODD[name], a, b)
    parameters = [*a.parameters(), *b.parameters()]
    assert_same(ours(potential, x0, v0, parameters, memory=memory), eager(potential, x0, v0, parameters))


def test_a_custom_function_is_not_what_its_name_says():
    class Abs(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return (x * x + 1).sqrt()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * x / (x * x + 1).sqrt()

    a, (x0, v0) = nn.Linear(2, 5).double(), start()
    x0.requires_grad_()
    potential = lambda x: Abs.apply(a(x)).sum(1)  # noqa: E731
    inputs = [x0, a.weight, a.bias]
    assert_same(ours(potential, x0, v0, inputs), eager(potential, x0, v0, inputs))


def test_a_custom_function_with_a_variable_is_no_leaf():
    a, other, (x0, v0) = nn.Linear(2, 5).double(), torch.randn(5, dtype=D, requires_grad=True), start()

    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.variable = other
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * x.cos()

    potential = lambda x: Odd.apply(a(x)).sum(1)  # noqa: E731
    inputs = [a.weight, a.bias]
    assert_same(ours(potential, x0, v0, inputs), eager(potential, x0, v0, inputs))


class Bent(nn.Module):
    """Piecewise linear near the origin, smooth away from it."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = net(nn.ReLU), net(nn.SiLU)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.near(x) if float(x.detach().abs().max()) < 1.0 else 3.0 * self.far(x)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("gradient", ["full", "truncated"])
def test_a_potential_that_bends_at_a_later_step_is_noticed(gradient, frozen):
    potential = Bent()
    x0, v0 = 0.1 * torch.randn(6, 2, dtype=D), 4 * torch.randn(6, 2, dtype=D)
    x0.requires_grad_()
    wanted = eager(potential, x0, v0, [x0])  # x0's derivative has the Hessian in it in either mode
    potential.requires_grad_(not frozen)
    assert_same(ours(potential, x0, v0, [x0], gradient=gradient), wanted)


@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("gradient", ["full", "truncated"])
def test_networks_count_once_where_the_adjoint_starts_anew(gradient, memory):
    """The potential turns out to bend midway through the backward pass, when networks have summed up some already."""
    potential, scale, shift = Bent(), nn.Linear(2, 2).double(), nn.Linear(2, 2).double()
    x0, v0 = 0.1 * torch.randn(6, 2, dtype=D), 4 * torch.randn(6, 2, dtype=D)
    step, wanted = torch.tensor(0.3, dtype=D), [*scale.parameters(), *shift.parameters()]
    nets = {"scale_x": lambda v: 0.1 * torch.tanh(scale(v)), "shift_v": lambda grad, x: shift(grad + x)}
    found = ade.functional.generalized_leapfrog(potential, x0, v0, step, 3, gradient=gradient, memory=memory, **nets)
    exact = ade.reference.generalized_leapfrog(potential, x0, v0, step, 3, gradient=gradient, **nets)
    sums = [out[0].sum() + out[1].square().sum() + out[2].sum() for out in (found, exact)]
    assert_same(*(torch.autograd.grad(total, wanted) for total in sums))


@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("retain", [True, False])
def test_networks_count_once_after_a_backward_pass_that_raised(memory, retain):
    potential, scale, (x0, v0) = Wrap(net(nn.SiLU)), nn.Linear(2, 2).double(), start()
    fails = []

    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            return t.clone()

        @staticmethod
        def backward(ctx, g):
            if fails and (fails.append(1) or len(fails) == 3):
                raise ArithmeticError
            return g

    out = ade.functional.generalized_leapfrog(
        potential, x0, v0, torch.tensor(0.3, dtype=D), 3, memory=memory,
        scale_x=lambda v: 0.1 * torch.tanh(Failing.apply(scale(v))),
    )  # fmt: skip
    (wanted,) = torch.autograd.grad(out.x.sum(), scale.weight, retain_graph=True)
    fails.append(1)
    with pytest.raises(ArithmeticError):
        torch.autograd.grad(out.x.sum(), scale.weight, retain_graph=True)
    assert_same(torch.autograd.grad(out.x.sum(), scale.weight, retain_graph=retain), [wanted])


@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_hook_on_a_network_runs_once_or_is_refused(when, memory):
    potential, scale, (x0, v0) = Wrap(net(nn.SiLU)), nn.Linear(2, 2).double(), start()
    layer = ade.GeneralizedLeapfrog(3, 0.2, scale_x=scale, memory=memory).double()
    calls = []
    if when == "before":
        scale.weight.register_hook(calls.append)
    out = layer(potential, x0, v0)
    if when == "before":
        out.x.sum().backward()
        assert len(calls) == 1
        return
    scale.weight.register_hook(calls.append)
    with pytest.raises(RuntimeError, match=r"hook was registered .* of a network .* after the forward pass"):
        out.x.sum().backward()


@pytest.mark.parametrize("memory", ["graph", "states"])
def test_a_network_may_call_autograd_itself(memory):
    a, (x0, v0), step = nn.Linear(2, 2).double(), start(), torch.tensor(0.3, dtype=D)

    def scale(v):
        return 0.1 * torch.autograd.grad(torch.tanh(a(v)).sum(), v, create_graph=True)[0]

    potential = net(nn.SiLU)
    found = ade.functional.generalized_leapfrog(potential, x0, v0, step, 3, scale_x=scale, memory=memory)
    exact = ade.reference.generalized_leapfrog(potential, x0, v0, step, 3, scale_x=scale)
    assert_same(*(torch.autograd.grad(out[0].sum() + out[2].sum(), a.weight) for out in (found, exact)))


def test_a_tensor_cached_from_one_evaluation_to_the_next_is_explained():
    a, (x0, v0), cache = nn.Linear(2, 9).double(), start(), {}

    def potential(x):
        if "w" not in cache:
            cache["w"] = a.weight.square().exp()
        return F.silu(x @ cache["w"].t()).sum(1)

    with pytest.raises(RuntimeError, match=r"leapfrog: potential keeps a tensor of one evaluation for the next"):
        out = ade.functional.leapfrog(potential, x0, v0, 0.3, 3)
        out.x.sum().backward()


@pytest.mark.parametrize("width", [9, 32])
def test_a_second_derivative_for_x0_alone_is_refused_not_dropped(width):
    potential, (x0, v0) = ade.MLPPotential(2, (width,), "silu").double().requires_grad_(False), start()
    x0.requires_grad_()
    out = ade.Leapfrog(3, 0.3, learn_step_size=False).double()(potential, x0, v0)
    (g,) = torch.autograd.grad(out.x.sum(), x0, create_graph=True)
    assert g.requires_grad
    with pytest.raises(RuntimeError, match="differentiable only once"):
        g.square().sum().backward()


@pytest.mark.parametrize("width", [9, 32])
def test_forward_mode_is_refused_not_dropped(width):
    potential, (x0, v0) = ade.MLPPotential(2, (width,), "silu").double().requires_grad_(False), start()
    layer = ade.Leapfrog(3, 0.3, learn_step_size=False).double()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x0, torch.ones_like(x0))
        with pytest.raises(RuntimeError, match="Leapfrog: forward-mode derivatives do not go through"):
            layer(potential, dual, v0)


def test_swapped_originals_of_a_parametrised_weight_are_refused():
    inner = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 9)), nn.SiLU(), nn.Linear(9, 1)).double()
    other, (x0, v0) = {k: v.detach().clone() for k, v in inner.named_parameters()}, start()
    with pytest.raises(RuntimeError, match="originals of a parametrised weight were swapped"):
        ade.Leapfrog(2, 0.1).double()(lambda x: torch.func.functional_call(inner, other, (x,)), x0, v0)


class Energy:
    """A plain object around modules."""

    def __init__(self, module: nn.Module) -> None:
        self.parts = {"all": [module]}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts["all"][0](x)


@pytest.mark.parametrize("call", [lambda e: e, lambda e: e.__call__, lambda e: lambda x: e(x)])
def test_modules_behind_plain_objects_are_seen(call):
    inner = nn.Sequential(nn.Linear(2, 9), nn.Dropout(0.5), nn.ReLU(), nn.Linear(9, 1)).double()
    x0, v0 = start()
    with pytest.raises(ValueError, match="potential is random"):
        ade.Leapfrog(2, 0.1).double()(call(Energy(inner)), x0, v0)


def test_events_that_are_not_the_potentials_are_refused_or_left_to_the_module():
    x0 = torch.randn(4, 3, 2, 2)
    with pytest.raises(ValueError, match=r"Leapfrog: x0 must have shape \(B, 12\) for this potential"):
        ade.Leapfrog(2, 0.1)(ade.MLPPotential(12, (32,)), x0)
    with pytest.raises(ValueError, match=r"Leapfrog: x0 must have shape \(B, 2\) for this potential, got \(B, 3\)"):
        ade.Leapfrog(2, 0.1)(ade.MLPPotential(2, (32,)), torch.randn(4, 3))
    plain = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))  # maps (B, 1, 2) to (B, 1, 1)
    with pytest.raises(ValueError, match="one value per sample"):
        ade.Leapfrog(2, 0.1)(plain, torch.randn(4, 1, 2))


def test_a_hook_registered_after_the_forward_pass_is_refused():
    potential, (x0, v0) = Wrap(net()), start()
    out = ade.Leapfrog(3, 0.3).double()(potential, x0, v0)
    potential.inner[0].weight.register_hook(lambda g: 2 * g)
    with pytest.raises(RuntimeError, match=r"hook was registered .* after the forward pass"):
        out.x.sum().backward()


@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_freezing_before_the_backward_pass_leaves_the_others_their_gradients(activation, memory):
    potential, (x0, v0) = Wrap(net(activation)), start()
    parameters = list(potential.parameters())
    wanted = ours(potential, x0, v0, parameters, memory=memory)
    out = ade.Leapfrog(3, torch.tensor(0.3, dtype=D), memory=memory)(potential, x0, v0)
    parameters[0].requires_grad_(False)
    (out.x.sum() + out.v.square().sum()).backward()
    assert parameters[0].grad is None
    for parameter, derivative in zip(parameters[1:], wanted[1:], strict=True):
        if derivative is not None and parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, derivative, rtol=1e-9, atol=1e-9)
    assert parameters[2].grad is not None


@pytest.mark.parametrize("layer", [ade.Leapfrog, ade.GeneralizedLeapfrog])
def test_check_finite_sees_the_last_kick(layer):
    x0 = torch.zeros(2, 2)
    with pytest.raises(ade.NonFiniteError, match="after step 1 of 1"):
        layer(1, 1.0, check_finite=True)(lambda x: torch.sqrt(3 - x).sum(1), x0, torch.full((2, 2), 50.0))


@pytest.mark.parametrize("kind", ["conv", "mlp"])
def test_f_may_be_called_with_spectral_norm_between_the_passes(kind):
    potential = ade.ConvPotential(1, 28) if kind == "conv" else Wrap(ade.MLPPotential(2, (32,), spectral_norm=True))
    x0 = torch.randn(2, 1, 28, 28) if kind == "conv" else torch.randn(3, 2)
    out = ade.Leapfrog(2, 0.1)(potential, x0, torch.randn_like(x0))
    (potential(out.x).mean() - 0.5 * out.v.flatten(1).square().sum(1).mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in potential.parameters() if p.dim() > 1)


@pytest.mark.parametrize("name", ["scale_x", "shift_x", "scale_v", "shift_v"])
def test_networks_of_generalized_leapfrog_under_autocast_and_in_bfloat16(name):
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return 0.1 * self.linear(inputs[0])

    network = Network()
    layer, potential = ade.GeneralizedLeapfrog(2, 0.1, **{name: network}), net().float()
    x0, v0 = (t.float() for t in start())
    wanted = layer(potential, x0, v0).x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(potential, x0, v0).x
    found.sum().backward()
    assert found.dtype == torch.float32 and network.linear.weight.grad is not None
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)
    half = layer.bfloat16()(potential.bfloat16(), x0.bfloat16(), v0.bfloat16()).x
    torch.testing.assert_close(half.float(), wanted, rtol=0.1, atol=0.1)

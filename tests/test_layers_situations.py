"""What people do around the layers: the gradient is that of autograd's own unroll, or one sentence says what to do."""

import concurrent.futures
import contextlib
import copy
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import DOUBLE as D
from situations import STEP, assert_same, eager, every_activation, every_memory, net, ours, start
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import ade_fast as ade
from ade_fast import reference
from ade_fast.fields import OtherGradient

# --- Weights that are swapped ---------------------------------------------------------------------------------------


class Model(nn.Module):
    """A layer and its potential in one module, for `functional_call`."""

    def __init__(self, inner: nn.Module, memory: str) -> None:
        super().__init__()
        self.net, self.dynamics = inner, ade.Leapfrog(3, STEP, memory=memory, learn_step_size=False)

    def forward(self, x0: Tensor, v0: Tensor) -> Tensor:
        out = self.dynamics(self.net, x0, v0)
        return out.x.sin().sum() + out.v.square().sum()


def swapped(inner: nn.Module, how: str) -> dict[str, Tensor]:
    """Other weights: leaves, clones of equal value, or functions of the module's own (as after a step of MAML)."""
    change = {
        "other leaves": lambda p: (1.3 * p.detach() + 0.1).requires_grad_(),
        "equal clones": lambda p: p.detach().clone().requires_grad_(),
        "functions of the own": lambda p: p - 0.1 * p.cos(),
        "equal functions": lambda p: 1.0 * p,
        "frozen": lambda p: 1.2 * p.detach(),
    }[how]
    return {name: change(p) for name, p in inner.named_parameters()}


@every_memory
@every_activation
@pytest.mark.parametrize("how", ["other leaves", "equal clones", "functions of the own", "equal functions", "frozen"])
def test_weights_swapped_by_functional_call_get_their_gradients(how: str, activation, memory: str) -> None:
    inner, (x0, v0) = net(activation), start()
    x0.requires_grad_()
    weights = swapped(inner, how)
    model = Model(inner, memory)
    loss = torch.func.functional_call(model, {f"net.{k}": w for k, w in weights.items()}, (x0, v0))
    targets = [x0, *inner.parameters(), *(w for w in weights.values() if w.requires_grad)]
    of = {"allow_unused": True, "retain_graph": True}
    found = torch.autograd.grad(loss, targets, **of)
    xs = x0
    exact = lambda x: torch.func.functional_call(inner, weights, (x,))  # noqa: E731
    x, v = reference.leapfrog(exact, xs, v0, STEP, 3)[:2]
    assert_same(found, torch.autograd.grad(x.sin().sum() + v.square().sum(), targets, **of))
    for p, name in zip(inner.parameters(), weights, strict=True):  # and everything is put back
        assert dict(inner.named_parameters())[name] is p


@contextlib.contextmanager
def by_hand(inner: nn.Module, weight: Tensor) -> Iterator[None]:
    before = inner[2]._parameters["weight"]
    inner[2]._parameters["weight"] = weight
    yield
    inner[2]._parameters["weight"] = before


@contextlib.contextmanager
def by_a_new_parameter(inner: nn.Module, weight: Tensor) -> Iterator[None]:
    before = inner[2].weight
    inner[2].weight = nn.Parameter(weight.detach())
    yield
    inner[2].weight = before


@contextlib.contextmanager
def by_another_layer(inner: nn.Module, weight: Tensor) -> Iterator[None]:
    before = inner[2]
    inner[2] = copy.deepcopy(before)
    with torch.no_grad():
        inner[2].weight.copy_(weight)
    yield
    inner[2] = before


@every_memory
@every_activation
@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("how", [by_hand, by_a_new_parameter, by_another_layer])
def test_weights_swapped_by_other_means_get_their_gradients(how, equal: bool, activation, memory: str) -> None:
    inner, (x0, v0) = net(activation), start()
    other = (inner[2].weight.detach() * (1.0 if equal else 1.4)).requires_grad_()
    with how(inner, other):
        swapped_in = inner[2].weight
        targets = [swapped_in, inner[0].weight]
        wanted = torch.autograd.grad(eager(inner, x0, v0), targets)
        loss = ours(lambda x: inner(x), x0, v0, memory=memory)
    assert_same(torch.autograd.grad(loss, targets), wanted)


@every_activation
def test_a_swapped_tensor_that_no_module_holds_is_seen(activation) -> None:
    """Values cannot tell: where f is evaluated again, an equal clone would take the gradient away. A program is not: it
    has the tensors of the forward pass."""
    first, last, (x0, v0) = nn.Linear(2, 7).double(), {"w": torch.randn(7, dtype=D, requires_grad=True)}, start()
    f = lambda x: activation()(first(x)) @ last["w"]  # noqa: E731
    old = last["w"]
    (wanted,) = torch.autograd.grad(eager(f, x0, v0), old)
    loss = ours(f, x0, v0, memory="states")
    last["w"] = last["w"].detach().clone().requires_grad_()
    if activation is nn.ReLU:
        assert_same(torch.autograd.grad(loss, old), (wanted,))
        return
    with pytest.raises(OtherGradient, match=r"a tensor of shape \(7,\) that requires grad was not there"):
        loss.backward()


@every_memory
@every_activation
@pytest.mark.parametrize("part", ["factor", "term"])
def test_a_constant_in_the_place_of_a_tensor_is_refused(part: str, activation, memory: str) -> None:
    """Of equal value, it would leave a zero where a gradient was."""
    first, held, (x0, v0) = nn.Linear(2, 7).double(), {"w": torch.randn(7, dtype=D, requires_grad=True)}, start()
    if part == "factor":
        f = lambda x: (activation()(first(x)) * held["w"]).sum(1)  # noqa: E731
    else:
        f = lambda x: activation()(first(x) + held["w"]).sum(1)  # noqa: E731
    old = held["w"]
    targets = [old, first.weight]
    wanted = torch.autograd.grad(ours(f, x0, v0, memory=memory), targets, allow_unused=True)
    loss = ours(f, x0, v0, memory=memory)
    held["w"] = held["w"].detach().clone()
    # Nothing is evaluated again: there are graphs, or what the forward pass did is replayed, with the same objects.
    if (memory == "graph" and activation is nn.SiLU) or activation is nn.ReLU:
        assert_same(torch.autograd.grad(loss, targets), wanted)
        return
    with pytest.raises(OtherGradient, match=r"a tensor of shape \(7,\) was there at the first step, and is not met"):
        loss.backward()


def test_a_leaf_that_only_a_later_step_makes_is_refused() -> None:
    first, made, (x0, v0) = nn.Linear(2, 7).double(), [], start()

    def f(x: Tensor) -> Tensor:
        made.append(torch.ones(7, dtype=D, requires_grad=True))
        return F.silu(first(x)) @ made[-1]

    with pytest.raises(OtherGradient, match="that requires grad was not there at the first step"):
        ours(f, x0, v0, memory="graph")
    loss = ours(lambda x: f(x), x0, v0, memory="states")
    with pytest.raises(OtherGradient, match="that requires grad was not there at the first step"):
        loss.backward()


@every_memory
def test_swapped_weights_of_networks_and_buffers(memory: str) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.register_buffer("centre", torch.zeros(2, dtype=D))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x - self.centre)

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = nn.Linear(4, 2).double()

        def forward(self, g: Tensor, x: Tensor) -> Tensor:
            return 0.1 * self.n(torch.cat([g, x], 1)).tanh()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.d = Shifted(), ade.GeneralizedLeapfrog(3, STEP, scale_v=Scale(), memory=memory)

        def forward(self, x0: Tensor, v0: Tensor) -> Tensor:
            out = self.d(self.f, x0, v0)
            return out.x.sin().sum() + out.log_det.sum()

    whole, (x0, v0) = Whole(), start()
    names = [k for k, _ in whole.named_parameters() if k != "d.step_size"]
    weights = {k: (1.3 * dict(whole.named_parameters())[k].detach()).requires_grad_() for k in names}
    weights["f.centre"] = torch.full((2,), 0.5, dtype=D, requires_grad=True)
    loss = torch.func.functional_call(whole, weights, (x0, v0))
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    own = {k.removeprefix("f."): w for k, w in weights.items() if k.startswith("f.")}
    scale = {k.removeprefix("d.scale_v."): w for k, w in weights.items() if k.startswith("d.scale_v.")}
    x, _, log_det = reference.generalized_leapfrog(
        lambda x: torch.func.functional_call(whole.f, own, (x,)), x0, v0, STEP, 3,
        scale_v=lambda *a: torch.func.functional_call(whole.d.scale_v, scale, a),
    )  # fmt: skip
    wanted = torch.autograd.grad(x.sin().sum() + log_det.sum(), list(weights.values()), allow_unused=True)
    assert_same(found, wanted)


def test_freezing_and_thawing_between_the_passes_changes_nothing() -> None:
    inner, (x0, v0) = net(), start()
    x0.requires_grad_()
    inner[2].requires_grad_(False)
    wanted = torch.autograd.grad(ours(lambda x: inner(x), x0, v0, memory="graph"), [x0, inner[0].weight])
    loss = ours(lambda x: inner(x), x0, v0, memory="states")
    inner[2].requires_grad_(True)
    assert_same(torch.autograd.grad(loss, [x0, inner[0].weight]), wanted)


# --- Randomness -----------------------------------------------------------------------------------------------------

RANDOM = {
    "smoothing": lambda f, x: f(x + 0.3 * torch.randn_like(x)),
    "dropout": lambda f, x: f(F.dropout(x, 0.4)),
    "a factor": lambda f, x: f(x) * (1 + torch.rand((), dtype=x.dtype)),
    "a mask": lambda f, x: f(x * torch.bernoulli(torch.full_like(x, 0.7))),
    "a permutation": lambda f, x: f(x[:, torch.randperm(2)]),
    "noise in place": lambda f, x: f(x + torch.empty_like(x).normal_()),
    "a choice of code": lambda f, x: f(x) if torch.rand(()) < 0.5 else 2 * f(x),
    "multinomial": lambda f, x: f(x[:, torch.multinomial(torch.ones(2), 2)]),
    "at later steps": lambda f, x: f(x + 0.1 * torch.randn_like(x)) if x.detach().abs().max() > 2 else f(x),
}


@every_memory
@every_activation
@pytest.mark.parametrize("kind", RANDOM)
def test_random_potentials_are_those_of_the_forward_pass(kind: str, activation, memory: str) -> None:
    inner, (x0, v0) = net(activation), start()
    potential = lambda x: RANDOM[kind](inner, x)  # noqa: E731
    parameters = list(inner.parameters())
    losses = []
    for run in (eager, ours):
        torch.manual_seed(5)
        losses.append(run(potential, x0, v0, **({"memory": memory} if run is ours else {})))
        state = torch.get_rng_state()
        losses[-1] = (losses[-1], torch.autograd.grad(losses[-1], parameters, allow_unused=True))
        assert torch.equal(torch.get_rng_state(), state), "the backward pass draws nothing of the caller's"
    torch.testing.assert_close(losses[0][0], losses[1][0], rtol=1e-10, atol=1e-10)
    assert_same(losses[1][1], losses[0][1])


@every_memory
def test_random_networks_are_those_of_the_forward_pass(memory: str) -> None:
    inner, scale, (x0, v0) = net(), nn.Linear(2, 2).double(), start()
    found = []
    for plan in ("graph", memory):
        torch.manual_seed(5)
        out = ade.functional.generalized_leapfrog(
            inner, x0, v0, STEP, 3, memory=plan, scale_x=lambda v: 0.1 * F.dropout(torch.tanh(scale(v)), 0.5)
        )
        found.append(torch.autograd.grad(out.x.sum() + out.log_det.sum(), list(scale.parameters())))
    assert_same(*found)


# --- Settings -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(D)
    yield
    torch.set_default_dtype(torch.float32)


class Doubling(TorchFunctionMode):
    """A caller's mode that changes what a function does."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return 1.5 * result if func is F.silu or func is F.relu else result


def attention(x: Tensor) -> Tensor:
    h = F.scaled_dot_product_attention(*(x.view(len(x), 1, 2, 1).float(),) * 3)
    return h.flatten(1).sum(1).to(x.dtype)


SETTINGS = {
    "default dtype": (default_dtype, lambda f, x: f(x) * torch.ones(1).dtype.itemsize),
    "function mode": (Doubling, lambda f, x: f(x)),
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16), lambda f, x: f(x) * (2 if _in_autocast() else 1)),
    "attention": (
        lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        lambda f, x: f(x) * (1 if torch.backends.cuda.flash_sdp_enabled() else 2),
    ),
}  # fmt: skip


def _in_autocast() -> bool:
    return torch.is_autocast_enabled("cpu")


@every_memory
@every_activation
@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_of_the_forward_pass_hold_in_the_backward_pass(kind: str, activation, memory: str) -> None:
    setting, f = SETTINGS[kind]
    inner, (x0, v0) = net(activation), start()
    potential, parameters = (lambda x: f(inner, x)), list(inner.parameters())
    with setting():
        inside = ours(potential, x0, v0, memory=memory)
        wanted = torch.autograd.grad(ours(potential, x0, v0, memory="graph"), parameters, allow_unused=True)
    assert_same(torch.autograd.grad(inside, parameters, allow_unused=True), wanted)
    plain = ours(potential, x0, v0, memory=memory)  # and the other way round
    expected = torch.autograd.grad(ours(potential, x0, v0, memory="graph"), parameters, allow_unused=True)
    with setting():
        assert_same(torch.autograd.grad(plain, parameters, allow_unused=True), expected)


def test_a_backward_pass_in_another_thread() -> None:
    inner, (x0, v0) = net(), start()
    wanted = torch.autograd.grad(eager(inner, x0, v0), inner[0].weight)
    loss = ours(lambda x: inner(x), x0, v0, memory="states")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert_same(pool.submit(lambda: torch.autograd.grad(loss, inner[0].weight)).result(), wanted)


# --- Fused kernels go past nothing ----------------------------------------------------------------------------------


class Scaled(torch.Tensor):
    """A weight with a `linear` of its own, as quantised and adapted ones have."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs)
        return 1.5 * result if func is F.linear else result


def patched_linear(patch: pytest.MonkeyPatch, f: nn.Module) -> None:
    patch.setattr(nn.Linear, "forward", lambda self, x: 1.5 * F.linear(x, self.weight, self.bias))


def patched_activation(patch: pytest.MonkeyPatch, f: nn.Module) -> None:
    patch.setattr(nn.SiLU, "forward", lambda self, x: 1.5 * F.silu(x))


def patched_sequential(patch: pytest.MonkeyPatch, f: nn.Module) -> None:
    forward = nn.Sequential.forward
    patch.setattr(nn.Sequential, "forward", lambda self, x: 1.5 * forward(self, x))


def patched_function(patch: pytest.MonkeyPatch, f: nn.Module) -> None:
    linear = F.linear
    patch.setattr(F, "linear", lambda *args: 1.5 * linear(*args))


def patched_call(patch: pytest.MonkeyPatch, f: nn.Module) -> None:
    call = nn.Module.__call__

    def scaled(self: nn.Module, *args, **kwargs):
        result = call(self, *args, **kwargs)
        return 1.1 * result if isinstance(result, Tensor) else result

    patch.setattr(nn.Module, "__call__", scaled)


def patched_instance(patch: pytest.MonkeyPatch, f: nn.Module) -> None:
    f[2].forward = lambda x: 1.5 * F.linear(x, f[2].weight, f[2].bias)


def hooked(patch: pytest.MonkeyPatch, f: nn.Module) -> None:
    f[2].register_forward_hook(lambda module, args, output: 1.5 * output)


def subclassed(patch: pytest.MonkeyPatch, f: nn.Module) -> None:
    f[0]._parameters["weight"] = f[0].weight.detach().as_subclass(Scaled).requires_grad_()


@pytest.mark.parametrize(
    "how",
    [
        patched_linear, patched_activation, patched_sequential, patched_function, patched_call, patched_instance,
        hooked, subclassed,
    ],
)  # fmt: skip
def test_the_fused_kernels_go_past_no_replaced_code(how, monkeypatch: pytest.MonkeyPatch) -> None:
    f = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 1)).double()
    x0, v0 = start()
    assert ade.Leapfrog(2, STEP)(f, x0, v0) and (plain := float(ours(f, x0, v0)))
    how(monkeypatch, f)
    found, wanted = ours(f, x0, v0), eager(lambda x: f(x), x0, v0)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert abs(float(found) - plain) > 1e-3


def test_a_function_mode_is_not_passed_over_by_the_fused_kernels() -> None:
    f, (x0, v0) = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 1)).double(), start()
    with Doubling():
        found, wanted = ours(f, x0, v0), eager(f, x0, v0)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    layer = ade.Leapfrog(3, STEP)
    with torch.device("cpu"):  # sets where new tensors are, no more
        layer(f, x0, v0)
    assert layer.last_plan.field == "mlp"


# --- Derivatives inside of f ----------------------------------------------------------------------------------------

INSIDE = {
    "vmap of grad": lambda net, x: torch.func.vmap(torch.func.grad(lambda r: net(r).squeeze(-1)))(x).square().sum(1),
    "jvp": lambda net, x: torch.func.jvp(net, (x,), (torch.ones_like(x),))[1].squeeze(1),
    "jacrev": lambda net, x: torch.func.vmap(torch.func.jacrev(lambda r: net(r).squeeze(-1)))(x).sum(1),
    "hessian": lambda net, x: torch.func.vmap(torch.func.hessian(lambda r: net(r).squeeze(-1)))(x).flatten(1).sum(1),
    "autograd.grad": lambda net, x: torch.autograd.grad(net(x).sum(), x, create_graph=True)[0].square().sum(1),
}


@every_memory
@pytest.mark.parametrize("kind", INSIDE)
def test_derivatives_inside_of_the_potential(kind: str, memory: str) -> None:
    inner, (x0, v0) = net(nn.Tanh), start()
    potential = lambda x: -0.5 * x.square().sum(1) - 0.1 * INSIDE[kind](inner, x)  # noqa: E731
    wanted = torch.autograd.grad(eager(potential, x0, v0), list(inner.parameters()), allow_unused=True)
    found = ours(potential, x0, v0, memory=memory, check_potential=True)
    assert_same(torch.autograd.grad(found, list(inner.parameters()), allow_unused=True), wanted)


def test_a_caller_may_forbid_hooks_on_saved_tensors() -> None:
    inner, (x0, v0) = net(), start()
    with torch.autograd.graph.disable_saved_tensors_hooks("forbidden by the caller"):
        ours(inner, x0, v0, memory="auto").backward()
    assert inner[0].weight.grad.any()


# --- Sentences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [7, 32])
@pytest.mark.parametrize("how", ["vectorize", "is_grads_batched", "vmap"])
def test_batched_gradients_are_refused_in_one_sentence(how: str, width: int) -> None:
    f, (x0, v0) = ade.MLPPotential(2, (width,), "silu").double(), start()
    run = lambda x: ade.functional.leapfrog(f, x, v0, STEP, 3).x.sum(0)  # noqa: E731
    x0.requires_grad_()
    end, many = run(x0), torch.eye(2, dtype=D)
    calls = {
        "vectorize": lambda: torch.autograd.functional.jacobian(run, x0, vectorize=True),
        "is_grads_batched": lambda: torch.autograd.grad(end, x0, many, is_grads_batched=True),
        "vmap": lambda: torch.func.vmap(lambda c: torch.autograd.grad(end, x0, c)[0])(many),
    }
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match=r"^batched gradients .* take them one by one"):
        warnings.simplefilter("ignore")
        calls[how]()
    assert torch.autograd.functional.jacobian(run, x0).shape == (2, 5, 2)


@pytest.mark.filterwarnings("ignore::ade_fast.SlowPathWarning")
@pytest.mark.parametrize("depth", ["itself", "inside"])
def test_compiled_potentials_are_called_uncompiled(depth: str) -> None:
    inner, (x0, v0) = net(nn.ReLU), start()
    wanted = torch.autograd.grad(eager(inner, x0, v0), list(inner.parameters()), allow_unused=True)
    compiled = torch.compile(inner, backend="aot_eager")
    potential = compiled if depth == "itself" else lambda x: compiled(x).squeeze(1)
    torch._dynamo.reset()
    assert_same(torch.autograd.grad(ours(potential, x0, v0), list(inner.parameters()), allow_unused=True), wanted)


@every_memory
def test_lazy_modules_are_initialised(memory: str) -> None:
    lazy = nn.Sequential(nn.LazyLinear(7, dtype=D), nn.SiLU(), nn.LazyLinear(1, dtype=D))
    x0, v0 = start()
    loss = ours(lazy, x0, v0, memory=memory)
    wanted = torch.autograd.grad(eager(lazy, x0, v0), list(lazy.parameters()), allow_unused=True)
    assert_same(torch.autograd.grad(loss, list(lazy.parameters()), allow_unused=True), wanted)
    net_of_v = nn.LazyLinear(2, dtype=D)
    layer = ade.GeneralizedLeapfrog(2, STEP, scale_x=lambda v: 0.1 * net_of_v(v).tanh(), memory=memory)
    layer(lazy, x0, v0).log_det.sum().backward()
    assert net_of_v.weight.grad.any()


@pytest.mark.parametrize("worker", ["counts as little", "counts further"])
def test_a_graph_from_another_thread_is_seen(worker: str) -> None:
    enc, inner, code = nn.Linear(3, 4).double(), nn.Linear(6, 7).double(), torch.randn(5, 3, dtype=D)
    x0, v0 = start()
    for _ in range(60 if worker == "counts further" else 0):
        enc(code).sum()
    found = []
    for threaded in (False, True):
        h = torch.tanh(enc(code))
        f = lambda x, h=h: F.silu(inner(torch.cat([x, h], 1))).sum(1)  # noqa: E731
        with concurrent.futures.ThreadPoolExecutor(1) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore", ade.SlowPathWarning)
            loss = pool.submit(ours, f, x0, v0).result() if threaded else ours(f, x0, v0)
        found.append(torch.autograd.grad(loss, [enc.weight, inner.weight]))
    assert_same(*found)


def test_constants_of_a_layer_are_its_own() -> None:
    with pytest.raises(ValueError, match="GeneralizedLeapfrog: scale_v must not require grad as a tensor"):
        ade.GeneralizedLeapfrog(3, scale_v=torch.tanh(nn.Parameter(torch.zeros(2))))
    with pytest.raises(ValueError, match="GeneralizedLeapfrog: scale_x must not require grad as a tensor"):
        ade.GeneralizedLeapfrog(3, scale_x=torch.zeros(2, requires_grad=True))
    given = torch.zeros(2)
    layer = ade.GeneralizedLeapfrog(3, scale_x=given)
    given += 1
    assert not layer.scale_x.any() and copy.deepcopy(layer)
    learned = nn.Parameter(torch.zeros(2))
    assert ade.GeneralizedLeapfrog(3, scale_x=learned).scale_x is learned


def test_context_with_penalties() -> None:
    """Data and samples each with the rows that the potential captured."""
    enc, inner = nn.Linear(3, 4), nn.Sequential(nn.Linear(6, 32), nn.SiLU(), nn.Linear(32, 1))
    code, data = torch.randn(16, 3), torch.randn(16, 2)
    optimizer = torch.optim.Adam([*enc.parameters(), *inner.parameters()], maximize=True)
    sampler = ade.DualSampler(ade.initial.Gaussian(2, learnable=True), ade.Leapfrog(3, memory="states"))
    for penalties in (
        {"value_penalty": 0.1},
        {"gradient_penalty": 0.1},
        {"value_penalty": 0.1, "gradient_penalty": 1.0},
    ):
        h = enc(code)
        f = lambda x, h=h: inner(torch.cat([x, h], 1)).squeeze(1)  # noqa: E731
        model = ade.ADE(f, sampler, potential_optimizer=optimizer, **penalties)
        plain = ade.ADE(f, sampler, potential_optimizer=optimizer)
        losses, found = [], []
        for m in (model, plain):
            losses.append(m.loss(data, generator=torch.Generator().manual_seed(0), context=(h,)))
        sample = sampler.sample(f, 16, torch.Generator().manual_seed(0), (h,))
        points = [data.clone().requires_grad_(), sample.x.detach().requires_grad_()]
        values = [f(p) for p in points]
        penalty = penalties.get("value_penalty", 0.0) * torch.cat(values).square().mean()
        grads = [torch.autograd.grad(v.sum(), p, create_graph=True)[0] for v, p in zip(values, points, strict=True)]
        penalty = penalty + penalties.get("gradient_penalty", 0.0) * torch.cat(grads).square().sum(1).mean()
        parameters = list(enc.parameters())
        for loss in (losses[0], losses[1] - penalty):
            found.append((loss, torch.autograd.grad(loss, parameters, retain_graph=True)))
        torch.testing.assert_close(found[0][0], found[1][0])
        torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)


# --- Numbers --------------------------------------------------------------------------------------------------------


def test_numpy_numbers_are_numbers() -> None:
    i, r = np.int64, np.float32
    assert ade.data.toy("moons").sample(i(5)).shape == (5, 2)
    assert ade.MLPPotential(i(2), (i(32),)).layers[0].in_features == 2
    assert ade.initial.Gaussian(i(2), r(2.0)).event == (2,) and ade.initial.Gaussian((i(2), i(3))).event == (2, 3)
    assert ade.ConvPotential(i(1), i(28)).image_size == (28, 28)
    x, y = torch.randn(20, 2), torch.randn(20, 2)
    ade.metrics.mmd_test(x, y, n_permutations=i(10))
    assert ade.metrics.mmd2(x, y, r(1)) == ade.metrics.mmd2(x, y, 1.0)
    ade.metrics.inception_score(torch.randn(10, 3), nn.Linear(3, 4), splits=i(2), batch_size=i(4))
    ade.set_memory_budget(i(1 << 20))
    ade.set_memory_budget(None)
    ade.initial.Empirical(x, reinit=r(0.1))
    ade.Leapfrog(i(2), r(0.1), sample_range=(r(-1), r(1)), grad_clip=ade.Clip.norm(r(2)))
    for wrong in (True, 1.5, "2"):
        with pytest.raises(TypeError):
            ade.MLPPotential(wrong)
        with pytest.raises((TypeError, ValueError)):
            ade.set_memory_budget(wrong)

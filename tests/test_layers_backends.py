"""Backends, hooks and patches around the layers: one gradient, that of autograd's own unroll, whatever changes between
the passes."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import DOUBLE as D
from situations import STEP, assert_same, eager, every_activation, every_memory, net, ours, start
from torch import Tensor, nn

import ade_fast as ade

# --- Backends, which may be others in one of the passes --------------------------------------------------------------


@contextlib.contextmanager
def set_to(get: Callable, put: Callable, value):
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def put_opt_einsum(value: bool) -> None:
    torch.backends.opt_einsum.enabled = value


def deterministic():
    return set_to(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True)


BACKENDS = {
    "no mkldnn": lambda: torch.backends.mkldnn.flags(enabled=False),
    "no nnpack": lambda: torch.backends.nnpack.flags(enabled=False),
    "no opt_einsum": lambda: set_to(lambda: torch.backends.opt_einsum.enabled, put_opt_einsum, False),
    "reduced precision": lambda: set_to(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "deterministic": deterministic,
    "two threads": lambda: set_to(torch.get_num_threads, torch.set_num_threads, 2),
    "denormals are zero": lambda: set_to(lambda: False, torch.set_flush_denormal, True),
    "a default device": lambda: torch.device("cpu"),
    "anomalies": torch.autograd.detect_anomaly,
    "one backward thread": lambda: torch.autograd.set_multithreading_enabled(False),
    "saved elsewhere": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t),
    "another random state": lambda: torch.random.fork_rng(),
}  # fmt: skip


def through_many_functions(inner: nn.Module, kernel: Tensor, x: Tensor) -> Tensor:
    """f with a convolution, a sum of products and a softmax in it."""
    h = F.conv1d(x[:, None], kernel, padding=1)
    w = inner[0].weight
    a = (h.transpose(1, 2) @ h).softmax(2)
    return inner(x).squeeze(1) + torch.einsum("bcd,ed,ec->b", h.tanh(), w, w) + a.square().flatten(1).sum(1)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@every_memory
@pytest.mark.parametrize("name", BACKENDS)
def test_another_backend_in_one_of_the_passes(name: str, memory: str) -> None:
    inner, (x0, v0) = net(), start()
    kernel = torch.randn(2, 1, 3, dtype=D, requires_grad=True)
    f = functools.partial(through_many_functions, inner, kernel)
    parameters = [kernel, *inner.parameters()]
    wanted = torch.autograd.grad(eager(f, x0, v0), parameters, allow_unused=True)
    with BACKENDS[name]():
        there = ours(f, x0, v0, memory=memory)
    assert_same(torch.autograd.grad(there, parameters, allow_unused=True), wanted)
    plain = ours(f, x0, v0, memory=memory)
    with BACKENDS[name]():
        assert_same(torch.autograd.grad(plain, parameters, allow_unused=True), wanted)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_products_in_one_of_the_passes_are_not_another_function(precision: str) -> None:
    """In float32, where they may be less precise: within their rounding, and never an error."""
    inner = net().float()
    x0, v0 = (t.float() for t in start())
    wanted = torch.autograd.grad(ours(inner, x0, v0, memory="states"), inner[0].weight)[0]
    loss = ours(inner, x0, v0, memory="states")
    with set_to(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, precision):
        (found,) = torch.autograd.grad(loss, inner[0].weight)
    torch.testing.assert_close(found, wanted, rtol=5e-2, atol=5e-2)


# --- Hooks ----------------------------------------------------------------------------------------------------------

HOOKS = {
    "forward": lambda f: f[1].register_forward_hook(lambda m, args, out: 1.5 * out),
    "forward, always called": lambda f: f[1].register_forward_hook(lambda m, a, out: 1.5 * out, always_call=True),
    "forward, with keywords": lambda f: f[1].register_forward_hook(lambda m, a, k, out: out + 0.1, with_kwargs=True),
    "forward, of the whole": lambda f: f.register_forward_hook(lambda m, args, out: out.sin()),
    "before": lambda f: f[2].register_forward_pre_hook(lambda m, args: (1.5 * args[0],)),
    "before, with keywords": lambda f: f[2].register_forward_pre_hook(
        lambda m, args, kwargs: ((args[0].tanh(),), kwargs), with_kwargs=True
    ),
    "before, of the whole": lambda f: f.register_forward_pre_hook(lambda m, args: (args[0] * args[0],)),
    "all modules": lambda f: nn.modules.module.register_module_forward_hook(
        lambda m, args, out: 1.25 * out if isinstance(m, nn.Linear) else None
    ),
    "before all modules": lambda f: nn.modules.module.register_module_forward_pre_hook(
        lambda m, args: (args[0] + 0.125,) if isinstance(m, nn.Linear) else None
    ),
    "full backward, which looks": lambda f: f[2].register_full_backward_hook(lambda m, into, out: None),
    "before full backward, which looks": lambda f: f[2].register_full_backward_pre_hook(lambda m, out: None),
    "of the state": lambda f: f.register_state_dict_pre_hook(lambda *args: None),
    "on values inside": lambda f: f[1].register_forward_hook(
        lambda m, args, out: out.register_hook(lambda g: 0.5 * g) and None
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::ade_fast.SlowPathWarning")
@every_memory
@every_activation
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_modules_count_as_in_eager_code(name: str, activation, memory: str) -> None:
    inner, (x0, v0) = net(activation), start()
    handle = HOOKS[name](inner)
    try:
        wanted = torch.autograd.grad(eager(inner, x0, v0), list(inner.parameters()), allow_unused=True)
        loss = ours(inner, x0, v0, memory=memory)
        assert_same(torch.autograd.grad(loss, list(inner.parameters()), allow_unused=True), wanted)
    finally:
        handle.remove()


@every_memory
@every_activation
@pytest.mark.parametrize("when", ["added", "removed"])
def test_a_hook_that_one_of_the_passes_has_is_no_silently_other_gradient(when: str, activation, memory: str) -> None:
    inner, (x0, v0) = net(activation), start()
    add = functools.partial(inner[1].register_forward_hook, lambda m, args, out: 1.5 * out)
    handle = add() if when == "removed" else None
    parameters = list(inner.parameters())
    wanted = torch.autograd.grad(eager(inner, x0, v0), parameters, allow_unused=True)
    loss = ours(inner, x0, v0, memory=memory)
    add() if handle is None else handle.remove()
    try:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    except RuntimeError as error:
        assert "is another in the backward pass than in the forward pass" in str(error)
    else:
        assert_same(found, wanted)


# --- Code that is replaced, of one instance --------------------------------------------------------------------------


class Halved(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


class Computed(nn.Linear):
    """Whose weight is a property."""

    @property
    def weight(self) -> Tensor:
        return 1.5 * self.own

    @weight.setter
    def weight(self, value: Tensor) -> None:
        self.own = value


def method(self: nn.Module, x: Tensor) -> Tensor:
    return 1.5 * F.linear(x, self.weight, self.bias)


def computed(f: nn.Module) -> None:
    whole, f[2] = f[2], Computed.__new__(Computed)
    f[2].__dict__.update({k: dict(v) if isinstance(v, dict) else v for k, v in whole.__dict__.items()})
    f[2]._parameters["own"] = f[2]._parameters.pop("weight")


PATCHES = {
    "a partial": lambda f: setattr(f[2], "forward", functools.partial(method, f[2])),
    "a method": lambda f: setattr(f[2], "forward", types.MethodType(method, f[2])),
    "a class": lambda f: setattr(f[2], "__class__", Halved),
    "an activation": lambda f: setattr(f[1], "forward", lambda x: F.silu(1.5 * x)),
    "another activation": lambda f: f._modules.__setitem__("1", nn.Tanh()),
    "the whole": lambda f: setattr(f, "forward", lambda x: 1.5 * nn.Sequential.forward(f, x)),
    "its call": lambda f: setattr(f[2], "_call_impl", functools.partial(method, f[2])),
    "no bias": lambda f: setattr(f[0], "bias", None),
    "a property": computed,
    "one layer more": lambda f: f.append(nn.Softplus()),
    "the order": lambda f: f._modules.__setitem__("1", nn.Sequential(nn.SiLU(), nn.SiLU())),
    "one layer twice": lambda f: f.insert(2, f[1]),
    "a scaled layer": lambda f: setattr(f[1], "forward", lambda x: F.silu(x) * 1.25),
}


@pytest.mark.filterwarnings("ignore::ade_fast.SlowPathWarning")
@pytest.mark.parametrize("width", [7, 32], ids=["general", "fused"])
@pytest.mark.parametrize("name", PATCHES)
def test_what_one_instance_does_otherwise_is_done(name: str, width: int) -> None:
    f = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, 1)).double()
    x0, v0 = start()
    plain = ours(f, x0, v0).item()
    PATCHES[name](f)
    f.double()
    parameters = list(f.parameters())
    found, wanted = (
        torch.autograd.grad(loss(f, x0, v0), parameters, allow_unused=True) for loss in (ours, lambda *a: eager(*a))
    )
    assert_same(found, wanted)
    assert abs(ours(f, x0, v0).item() - plain) > 1e-4


@every_memory
def test_an_instance_patched_between_the_passes(memory: str) -> None:
    inner, (x0, v0) = net(), start()
    wanted = torch.autograd.grad(eager(inner, x0, v0), inner[0].weight)
    loss = ade.Leapfrog(3, STEP, memory=memory)(inner, x0, v0)
    loss = loss.x.sin().sum() + loss.v.square().sum()
    inner[2].forward = functools.partial(method, inner[2])
    if memory == "graph":
        assert_same(torch.autograd.grad(loss, inner[0].weight), wanted)
    else:
        with pytest.raises(RuntimeError, match="is another in the backward pass than in the forward pass"):
            torch.autograd.grad(loss, inner[0].weight)

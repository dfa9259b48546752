"""How the layers get their numbers: what they call how often, what they keep, when they refuse."""

import copy
import functools
import gc
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import (
    DOUBLE,
    KickNetwork,
    LeakyCNN,
    assert_close,
    make_potential,
    merged_leapfrog,
    mlp,
    normal,
)
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ade_fast as ade
from ade_fast import _slow_paths, fields, reference

MEMORIES = ("graph", "states", "auto")
every_memory = pytest.mark.parametrize("memory", MEMORIES)

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "leapfrog": lambda n, **options: ade.Leapfrog(n, 0.1, **options).double(),
    "generalized": lambda n, **options: ade.GeneralizedLeapfrog(
        n, 0.1, scale_v=-0.05, scale_x=0.05, **options
    ).double(),
    "damped": lambda n, **options: ade.DampedLeapfrog(n, 0.1, **options).double(),
}
every_dynamics = pytest.mark.parametrize("dynamics", list(LAYERS))


@pytest.fixture
def fresh_warnings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slow paths are announced once per process: forget those that other tests took."""
    monkeypatch.setattr(_slow_paths, "_TAKEN", {})
    yield


def inputs(batch: int = 4, dim: int = 3) -> tuple[Tensor, Tensor]:
    return normal(batch, dim, seed=1).requires_grad_(), normal(batch, dim, seed=2).requires_grad_()


def total(out: ade.DynamicsOutput) -> Tensor:
    return out.x.square().sum() + out.v.sin().sum() + out.log_det.sum()


# --- Counting evaluations -----------------------------------------------------------------------------------


class Counted(nn.Module):
    """Counts the calls of a potential."""

    def __init__(self, potential: nn.Module) -> None:
        super().__init__()
        self.potential = potential
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.potential(x)


@every_dynamics
@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_no_grad_calls_the_potential_once_per_gradient(dynamics: str, n_steps: int) -> None:
    """T + 1 gradients, not 2T."""
    potential = Counted(make_potential("silu"))
    with torch.no_grad():
        LAYERS[dynamics](n_steps)(potential, *inputs())
    assert potential.calls == n_steps + 1


@every_dynamics
@every_memory
@pytest.mark.parametrize("gradient", ["full", "truncated", "stopped", "none"])
@pytest.mark.parametrize("name", ["silu", "relu"])
def test_forward_calls_the_potential_once_per_gradient(dynamics: str, memory: str, gradient: str, name: str) -> None:
    potential = Counted(make_potential(name))
    LAYERS[dynamics](7, memory=memory, gradient=gradient)(potential, *inputs())
    assert potential.calls == 8


@every_dynamics
@pytest.mark.parametrize("memory, calls", [("graph", 0), ("states", 8)])
def test_backward_calls_of_a_smooth_potential(dynamics: str, memory: str, calls: int) -> None:
    """memory="graph" finds all of it on its tapes; "states" evaluates each x_t once more."""
    potential = Counted(make_potential("silu"))
    out = LAYERS[dynamics](7, memory=memory)(potential, *inputs())
    potential.calls = 0
    total(out).backward()
    assert potential.calls == calls


@pytest.mark.parametrize("dynamics", ["leapfrog", "damped"])
@every_memory
@pytest.mark.parametrize("name", ["relu", "leaky_cnn"])
def test_backward_calls_of_a_piecewise_linear_potential(dynamics: str, memory: str, name: str) -> None:
    """One time-batched mixed derivative (with at most one recording of slopes), however many the steps."""
    counts = []
    for n_steps in (3, 12):
        potential = Counted(make_potential(name))
        shape = (2, 2, 4, 4) if name == "leaky_cnn" else (4, 3)
        out = LAYERS[dynamics](n_steps, memory=memory)(potential, normal(*shape, seed=1), normal(*shape, seed=2))
        potential.calls = 0
        total(out).backward()
        counts.append(potential.calls)
    assert counts[0] == counts[1] <= 2


class CountProducts(TorchDispatchMode):
    """Counts matrix products and convolutions, whatever calls them."""

    PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.convolution", "aten.convolution_backward")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func).rpartition(".")[0] in self.PRODUCTS
        return func(*args, **(kwargs or {}))


def products_in_backward(
    dynamics: str, potential: nn.Module, shape: tuple[int, ...], n_steps: int, **options: Any
) -> int:
    x0, v0 = normal(*shape, seed=1).requires_grad_(), normal(*shape, seed=2).requires_grad_()
    out = LAYERS[dynamics](n_steps, **options)(potential, x0, v0)
    with CountProducts() as products:
        total(out).backward()
    return products.count


@pytest.mark.parametrize("dynamics", ["leapfrog", "damped"])
@every_memory
@pytest.mark.parametrize("clips", ["unclipped", "value", "norm"])
@pytest.mark.parametrize("name", ["relu", "leaky_cnn"])
def test_piecewise_linear_potentials_make_no_hessian_vector_product(
    dynamics: str, memory: str, clips: str, name: str
) -> None:
    """The adjoint makes no network call: the number of matrix products does not grow with T."""
    clip = {"unclipped": None, "value": ade.Clip.value(0.3), "norm": ade.Clip.norm(0.5)}[clips]
    shape = (2, 2, 4, 4) if name == "leaky_cnn" else (4, 3)
    options = {"memory": memory, "grad_clip": clip, "momentum_clip": clip}
    few, many = (products_in_backward(dynamics, make_potential(name), shape, n_steps, **options) for n_steps in (3, 24))
    assert 0 < few == many


@pytest.mark.parametrize("memory", ["graph", "states"])
def test_the_count_of_products_sees_hessian_vector_products(memory: str) -> None:
    """The measure of the test above is not blind: for a smooth potential it grows with T."""
    few, many = (products_in_backward("leapfrog", make_potential("silu"), (4, 3), n, memory=memory) for n in (3, 24))
    assert many > 5 * few


@pytest.mark.parametrize(
    "build, linear",
    [
        (lambda: mlp((3, 8, 1), nn.ReLU), True),
        (lambda: mlp((3, 8, 1), lambda: nn.LeakyReLU(0.2)), True),
        (lambda: mlp((3, 8, 1), nn.Hardtanh), False),
        (lambda: nn.Linear(3, 1), True),
        (lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)).eval(), False),
        (lambda: mlp((3, 8, 1), nn.SiLU), False),
        (lambda: mlp((3, 8, 1), nn.ELU), False),
        (lambda: nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1)), False),
    ],
    ids=["relu", "leaky_relu", "hardtanh", "linear", "batch_norm_eval", "silu", "elu", "layer_norm"],
)
@every_memory
def test_potentials_of_known_piecewise_linear_functions_are_recognised_and_all_are_right(
    build: Callable[[], nn.Module], linear: bool, memory: str
) -> None:
    """Of other functions (hardtanh, batch norm) they go the way of smooth ones."""
    potential = build().double()
    layer = ade.Leapfrog(4, torch.tensor(0.2, dtype=DOUBLE), memory=memory)
    x0, v0 = inputs()
    out = layer(potential, x0, v0)
    assert layer.last_plan.piecewise_linear is linear
    assert_same_gradients(out, layer, potential, x0, v0)


def assert_same_gradients(
    out: ade.DynamicsOutput, layer: nn.Module, potential: Any, x0: Tensor, v0: Tensor, extra: tuple = ()
) -> None:
    """The layer's gradients against the reference's, on the same leaves."""
    parameters = list(potential.parameters()) if isinstance(potential, nn.Module) else []
    x, v, log_det = reference.leapfrog(potential, x0, v0, layer.step_size, layer.n_steps)
    wanted = [t for t in (x0, v0, layer.step_size, *parameters, *extra) if t.requires_grad]
    actual = torch.autograd.grad(total(out), wanted, allow_unused=True)
    expected = torch.autograd.grad(total(ade.DynamicsOutput(x, v, log_det)), wanted, allow_unused=True)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(a, e, f"gradient {i}")


# --- Memory -------------------------------------------------------------------------------------------------


class LiveStorages(TorchDispatchMode):
    """Watches every storage that comes to life, and counts the bytes of those that something still holds."""

    def __init__(self) -> None:
        super().__init__()
        self._born: dict[int, tuple[StorageWeakRef, int]] = {}
        self._foreign: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for weak, _ in self._storages((args, kwargs)):
            if weak.cdata not in self._born:  # was there before: neither it nor its views count
                self._foreign[weak.cdata] = weak
        result = func(*args, **(kwargs or {}))
        for weak, size in self._storages(result):
            if weak.cdata not in self._foreign:
                self._born[weak.cdata] = (weak, size)
        return result

    @staticmethod
    def _storages(tree: Any) -> Iterator[tuple[StorageWeakRef, int]]:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                yield StorageWeakRef(storage), storage.nbytes()

    def bytes(self) -> int:
        return sum(size for weak, size in self._born.values() if not weak.expired())


def kept_bytes(run: Callable[[], Any]) -> int:
    """Bytes that the result of `run` keeps alive for its backward pass, without what existed before."""
    with LiveStorages() as storages:
        result = run()
    kept = storages.bytes()
    del result
    return kept


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU], ids=["relu", "silu"])
def test_states_keep_a_fiftieth_of_what_eager_keeps(activation: Callable[[], nn.Module]) -> None:
    """Table 2's MLP, T = 60, against eager autograd with T + 1 gradients (the printed 2T keep more)."""
    potential = mlp((2, 128, 128, 128, 1), activation)
    x0, v0 = torch.randn(100, 2, requires_grad=True), torch.randn(100, 2, requires_grad=True)
    layer = ade.Leapfrog(60, 0.1, memory="states")
    steps = torch.full((60, 1), 0.1, requires_grad=True)
    eager = kept_bytes(lambda: merged_leapfrog(potential, x0, v0, steps))
    states = kept_bytes(lambda: layer(potential, x0, v0))
    assert states >= 60 * 2 * x0.nbytes, "the measure sees the states"
    assert states * 50 <= eager, f"{states} bytes kept, eager keeps {eager}"


@every_memory
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU], ids=["relu", "silu"])
def test_backward_leaves_nothing_but_gradients(activation: Callable[[], nn.Module], memory: str) -> None:
    """At once, without waiting for Python's cycle collector: no reference cycle holds an unroll's tensors."""
    potential = mlp((2, 32, 32, 1), activation)
    x0, v0 = torch.randn(10, 2), torch.randn(10, 2)
    layer = ade.Leapfrog(10, 0.1, memory=memory)
    parameters = (*potential.parameters(), *layer.parameters())

    def run() -> None:
        layer(potential, x0, v0).x.square().sum().backward()

    run()
    for parameter in parameters:
        parameter.grad = None
    gc.collect()
    gc.disable()
    try:
        kept = kept_bytes(run)
    finally:
        gc.enable()
    assert kept <= sum(parameter.nbytes for parameter in parameters)


def test_auto_follows_the_budget() -> None:
    potential = make_potential("silu")
    layer = ade.Leapfrog(5, torch.tensor(0.1, dtype=DOUBLE))
    try:
        ade.set_memory_budget(0)
        layer(potential, *inputs())
        assert layer.last_plan.memory == "states"
        ade.set_memory_budget(1 << 40)
        layer(potential, *inputs())
        assert layer.last_plan.memory == "graph"
    finally:
        ade.set_memory_budget(None)


@every_dynamics
@pytest.mark.parametrize("name", ["silu", "relu"])
def test_memory_plans_give_the_same_numbers(dynamics: str, name: str) -> None:
    potential = make_potential(name)
    x0, v0 = inputs()
    results = []
    for memory in MEMORIES:
        layer = LAYERS[dynamics](6, memory=memory)
        out = layer(potential, x0, v0)
        grads = torch.autograd.grad(total(out), [x0, v0, layer.step_size, *list(potential.parameters())[:-1]])
        results.append([out.x.detach(), out.v.detach(), *grads])
    for other in results[1:]:
        for i, (a, e) in enumerate(zip(other, results[0], strict=True)):
            assert_close(a, e, f"result {i}", 1e-13)


@every_dynamics
@every_memory
def test_repeated_runs_are_bitwise_equal(dynamics: str, memory: str) -> None:
    potential = make_potential("silu")
    x0, v0 = inputs()
    layer = LAYERS[dynamics](6, memory=memory, grad_clip=ade.Clip.norm(0.5))
    wanted = [x0, v0, layer.step_size, *list(potential.parameters())[:-1]]
    one, two = (torch.autograd.grad(total(layer(potential, x0, v0)), wanted) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# --- When a gradient would be wrong, it is refused ----------------------------------------------------------


@every_dynamics
@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("name", ["silu", "relu"])
def test_change_of_a_parameter_before_backward_is_refused(dynamics: str, memory: str, name: str) -> None:
    """An optimizer step between forward and backward: an error, never the gradient of another function."""
    potential = make_potential(name)
    out = LAYERS[dynamics](3, memory=memory)(potential, *inputs())
    with torch.no_grad():
        potential[0].weight.mul_(1.5)
    with pytest.raises(RuntimeError, match="modified"):
        total(out).backward()


@every_dynamics
@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("name", ["silu", "relu"])
@pytest.mark.parametrize("gradient", ["full", "truncated", "stopped"])
@pytest.mark.parametrize("what", ["parameters", "step_size", "x0", "v0"])
def test_no_change_in_place_makes_a_silently_wrong_gradient(
    dynamics: str, memory: str, name: str, gradient: str, what: str
) -> None:
    """Where nothing is evaluated again a change may do no harm; then the gradient is the old one, exactly."""
    potential = make_potential(name)
    layer = LAYERS[dynamics](3, memory=memory, gradient=gradient)
    x0, v0 = inputs()
    wanted = [x0, v0, layer.step_size]
    expected = torch.autograd.grad(total(layer(potential, x0, v0)), wanted)
    out = layer(potential, x0, v0)
    changed = {"parameters": list(potential.parameters()), "step_size": [layer.step_size]}.get(what)
    with torch.no_grad():
        for tensor in changed or [{"x0": x0, "v0": v0}[what]]:
            tensor.mul_(1.5)
    try:
        actual = torch.autograd.grad(total(out), wanted)
    except RuntimeError as refusal:
        assert "modified" in str(refusal)
    else:
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_close(a, e, f"gradient {i}")


@every_dynamics
@pytest.mark.parametrize("name", ["silu", "relu", "relu with a base"])
def test_of_a_piecewise_linear_potential_the_stopped_gradient_is_the_truncated_one(dynamics: str, name: str) -> None:
    """∇f does not change with x there, except where it jumps; with that of a smooth f or a Gaussian base it does."""
    potential, found = make_potential(name.split()[0]), []
    if "base" in name:
        potential = ade.WithBase(potential, 0.0, 1.5).double()
    for gradient in ("truncated", "stopped"):
        layer = LAYERS[dynamics](3, gradient=gradient)
        x0, v0 = inputs()
        found.append(torch.autograd.grad(total(layer(potential, x0, v0)), [x0, v0, layer.step_size]))
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(*found, strict=True)) is (name == "relu")


@pytest.mark.parametrize("shape", [(), (2,), (1, 2)], ids=str)
@pytest.mark.parametrize("kind", ["leapfrog", "damped"])
def test_the_mlp_kernels_steps_are_those_of_the_forward_pass(kind: str, shape: tuple[int, ...]) -> None:
    """One step: what the kernels read could be the step size's own memory."""
    step = torch.full(shape, 0.1, dtype=DOUBLE)
    layer = {
        "leapfrog": lambda: ade.Leapfrog(1, step),
        "damped": lambda: ade.DampedLeapfrog(1, step, drift_step=2 * step),
    }[kind]().double()
    potential = ade.MLPPotential(2, (32, 32)).double()
    x0, v0 = (torch.randn(5, 2, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    wanted = [x0, v0, layer.step_size, *potential.parameters()]

    def gradients(change: bool) -> list[Tensor]:
        out = layer(potential, x0, v0)
        with torch.no_grad():
            for tensor in (layer.step_size, *layer.buffers()) if change else ():
                tensor.mul_(1.5)
        found = torch.autograd.grad(out.x.square().sum() + out.v.sin().sum(), wanted, allow_unused=True)
        return [g for g in found if g is not None]

    for a, b in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("hidden", [(32, 32), (32, 32, 32)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("gradient", ["full", "truncated", "stopped"])
@pytest.mark.parametrize("of", ["x0", "step_size", "weight"])
@pytest.mark.parametrize("by", ["x0", "step_size"])
@every_dynamics
def test_no_second_derivative_of_an_mlps_unroll_is_a_silent_zero(
    dynamics: str, by: str, of: str, gradient: str, activation: str, hidden: tuple[int, ...]
) -> None:
    potential = ade.MLPPotential(2, hidden, activation).double()
    layer = LAYERS[dynamics](2, gradient=gradient)
    x0, v0 = (torch.randn(5, 2, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    tensors = {"x0": x0, "step_size": layer.step_size, "weight": potential.linears[0].weight}
    if of == "weight" and gradient != "full":
        return  # it has no derivative at all
    out = layer(potential, x0, v0)
    (grad,) = torch.autograd.grad(out.x.square().sum(), tensors[of], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable only once"):
        torch.autograd.grad((grad * tensors[of]).sum(), tensors[by])


@pytest.mark.parametrize("memory", ["graph", "states"])
def test_change_of_a_buffer_before_backward_makes_no_other_gradient(memory: str) -> None:
    """A power iteration in between, or a running mean: f is no longer the function of the forward pass."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_potential("silu")
            self.register_buffer("centre", torch.zeros(3, dtype=DOUBLE))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x - self.centre)

    potential = Shifted()
    out = ade.Leapfrog(3, torch.tensor(0.1, dtype=DOUBLE), memory=memory)(potential, *inputs())
    wanted = torch.autograd.grad(total(out), potential.net[0].weight, retain_graph=True)
    potential.centre.add_(1.0)
    if memory == "states":
        with pytest.raises(RuntimeError, match="something that it depends on was modified between"):
            total(out).backward()
    else:  # nothing is evaluated again
        assert torch.equal(torch.autograd.grad(total(out), potential.net[0].weight)[0], wanted[0])


@every_dynamics
@every_memory
@pytest.mark.parametrize("name", ["silu", "relu"])
@pytest.mark.parametrize("how", ["backward", "grad", "grad_unused"])
def test_double_backward_is_refused(dynamics: str, memory: str, name: str, how: str) -> None:
    """By every way of asking: a None from allow_unused=True would pass for a zero."""
    potential = make_potential(name)
    x0, v0 = inputs()
    out = LAYERS[dynamics](3, memory=memory)(potential, x0, v0)
    (dx,) = torch.autograd.grad(total(out), x0, create_graph=True)
    penalty = dx.square().sum()
    with pytest.raises(RuntimeError, match=r"once|twice"):
        if how == "backward":
            penalty.backward()
        else:
            torch.autograd.grad(penalty, x0, allow_unused=how == "grad_unused")


@every_dynamics
@every_memory
@pytest.mark.parametrize("name", ["silu", "relu"])
def test_backward_may_run_twice_on_a_retained_graph(dynamics: str, memory: str, name: str) -> None:
    potential = make_potential(name)
    x0, v0 = inputs()
    layer = LAYERS[dynamics](3, memory=memory)
    loss = total(layer(potential, x0, v0))
    wanted = [x0, v0, layer.step_size, *list(potential.parameters())[:-1]]
    one = torch.autograd.grad(loss, wanted, retain_graph=True)
    two = torch.autograd.grad(loss, wanted)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, wanted)


# --- Modes of PyTorch ---------------------------------------------------------------------------------------


@every_dynamics
@every_memory
def test_no_grad(dynamics: str, memory: str) -> None:
    potential = make_potential("silu")
    x0, v0 = inputs()
    layer = LAYERS[dynamics](3, memory=memory)
    expected = layer(potential, x0, v0)
    with torch.no_grad():
        actual = layer(potential, x0, v0)
    for a, e in zip(actual, expected, strict=True):
        assert not a.requires_grad and torch.equal(a, e)


@every_dynamics
@every_memory
def test_nothing_requires_grad(dynamics: str, memory: str) -> None:
    potential = make_potential("silu").requires_grad_(False)
    layer = LAYERS[dynamics](3, memory=memory, learn_step_size=False)
    assert not list(layer.parameters())
    out = layer(potential, normal(4, 3, seed=1), normal(4, 3, seed=2))
    assert not any(o.requires_grad for o in out)


@every_dynamics
@every_memory
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU], ids=["relu", "silu"])
def test_autocast(dynamics: str, memory: str, activation: Callable[[], nn.Module], device: torch.device) -> None:
    """The potential runs in bfloat16, forward and recomputed; states, outputs and gradients stay float32."""
    seen: set[torch.dtype] = set()

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp((3, 16, 16, 1), activation)

        def forward(self, x: Tensor) -> Tensor:
            y = self.net(x)
            seen.add(y.dtype)
            return y

    potential = Watched().to(device)
    x0, v0 = (t.detach().float().to(device).requires_grad_() for t in inputs(32))
    layer = LAYERS[dynamics](4, memory=memory).float().to(device)
    wanted = [x0, v0, layer.step_size, potential.net[0].weight]
    expected = layer(potential, x0, v0)
    exact = torch.autograd.grad(total(expected), wanted)
    assert seen == {torch.float32}
    seen.clear()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = layer(potential, x0, v0)
    assert {o.dtype for o in out} == {torch.float32}
    rounded = torch.autograd.grad(total(out), wanted)  # outside autocast, as the documentation of autocast has it
    assert seen == {torch.bfloat16}
    for what, a, e in zip(("x", "v"), out, expected, strict=False):
        assert_close(a.detach(), e.detach(), what, 2e-2)
    for i, (a, e) in enumerate(zip(rounded, exact, strict=True)):
        assert_close(a, e, f"gradient {i}", 5e-2)


@every_dynamics
def test_backward_fills_grad(dynamics: str) -> None:
    potential = make_potential("silu")
    x0, v0 = inputs()
    layer = LAYERS[dynamics](3)
    total(layer(potential, x0, v0)).backward()
    for tensor in (x0, v0, layer.step_size, *list(potential.parameters())[:-1]):
        assert tensor.grad is not None and tensor.grad.abs().max() > 0


@every_memory
def test_two_unrolls_chain(memory: str) -> None:
    """3 steps and then 4 are 7 steps, gradients included."""
    potential = make_potential("silu")
    step = torch.tensor([0.1, 0.2, 0.3], dtype=DOUBLE)
    first, second, whole = (ade.Leapfrog(n, step, memory=memory) for n in (3, 4, 7))
    x0, v0 = inputs()
    middle = first(potential, x0, v0)
    chained, direct = second(potential, middle.x, middle.v), whole(potential, x0, v0)
    wanted = [x0, v0, *list(potential.parameters())[:-1]]
    a = torch.autograd.grad(total(chained), [*wanted, first.step_size, second.step_size])
    b = torch.autograd.grad(total(direct), [*wanted, whole.step_size])
    for i, (one, other) in enumerate(zip(a[:-2], b[:-1], strict=True)):
        assert_close(one, other, f"gradient {i}", 1e-12)
    assert_close(a[-2] + a[-1], b[-1], "step size", 1e-12)


# --- Parametrised potentials --------------------------------------------------------------------------------


def spectral_buffers(potential: nn.Module) -> list[Tensor]:
    return [b.clone() for b in potential.buffers()]


@every_dynamics
@every_memory
@pytest.mark.parametrize("name", ["spectral_silu", "spectral_relu"])
def test_one_power_iteration_per_call(dynamics: str, memory: str, name: str) -> None:
    """T + 1 evaluations and the backward pass share one set of weights: one power iteration."""
    potential = make_potential(name)
    mirror = copy.deepcopy(potential)
    mirror(normal(4, 3, seed=1))
    out = LAYERS[dynamics](5, memory=memory)(potential, *inputs())
    total(out).backward()
    for actual, expected in zip(spectral_buffers(potential), spectral_buffers(mirror), strict=True):
        assert torch.equal(actual, expected)


def test_pinned_shares_one_power_iteration() -> None:
    """Within fields.pinned, f(data), the unroll and f(x^T) are one function: one power iteration for all."""
    potential = make_potential("spectral_silu")
    mirror = copy.deepcopy(potential)
    mirror(normal(4, 3, seed=1))
    layer = ade.Leapfrog(3, torch.tensor(0.1, dtype=DOUBLE))
    x0, v0 = inputs()
    with fields.pinned(potential):
        at_start = potential(x0)
        out = layer(potential, x0, v0)
        again = potential(x0)
        end = potential(out.x)
    assert torch.equal(at_start, again)
    (end.sum() + total(out)).backward()
    for actual, expected in zip(spectral_buffers(potential), spectral_buffers(mirror), strict=True):
        assert torch.equal(actual, expected)
    assert not torch.equal(potential(x0), at_start), "outside, the power iteration goes on"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: lambda x: net(x),
        lambda net: functools.partial(_call, net),
        lambda net: net.forward,
        lambda net: nn.Sequential(net, nn.Flatten(0)),
    ],
    ids=["lambda", "partial", "method", "module"],
)
def test_spectral_norm_is_found_behind_wrappers(wrap: Callable[[nn.Module], Callable]) -> None:
    potential = make_potential("spectral_silu")
    mirror = copy.deepcopy(potential)
    mirror(normal(4, 3, seed=1))
    ade.Leapfrog(5, torch.tensor(0.1, dtype=DOUBLE))(wrap(potential), *inputs())
    for actual, expected in zip(spectral_buffers(potential), spectral_buffers(mirror), strict=True):
        assert torch.equal(actual, expected)


def _call(net: nn.Module, x: Tensor) -> Tensor:
    return net(x)


# --- Whatever the potential depends on ----------------------------------------------------------------------


@every_memory
@pytest.mark.parametrize("smooth", [True, False], ids=["smooth", "piecewise_linear"])
def test_leaves_captured_by_a_lambda_get_gradients(memory: str, smooth: bool) -> None:
    weight = normal(8, 3, seed=5).requires_grad_()
    bias = normal(8, seed=6).requires_grad_()
    activation = torch.tanh if smooth else torch.relu

    def potential(x: Tensor) -> Tensor:
        return activation(nn.functional.linear(x, weight) + bias).sum(1)

    layer = ade.Leapfrog(4, torch.tensor(0.2, dtype=DOUBLE), memory=memory)
    x0, v0 = inputs()
    out = layer(potential, x0, v0)
    assert layer.last_plan.piecewise_linear is not smooth
    assert_same_gradients(out, layer, potential, x0, v0, extra=(weight, bias))


@every_memory
@pytest.mark.parametrize("given", ["tuple", "tensor"])
@pytest.mark.parametrize("activation", [torch.tanh, torch.relu], ids=["smooth", "piecewise_linear"])
def test_context_carries_gradients_to_a_conditioning_network(
    memory: str, given: str, activation: Callable[[Tensor], Tensor]
) -> None:
    condition = nn.Linear(2, 8, dtype=DOUBLE)
    readout = nn.Linear(3, 8, dtype=DOUBLE)
    label = normal(1, 2, seed=5)

    def run(unroll: Callable[[Callable, Tensor], Any]) -> Any:
        code = condition(label)
        return unroll(lambda x: activation(readout(x) + code).sum(1), code)

    layer = ade.Leapfrog(4, torch.tensor(0.2, dtype=DOUBLE), memory=memory)
    x0, v0 = inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no fallback
        out = run(lambda f, code: layer(f, x0, v0, context=(code,) if given == "tuple" else code))
    expected = run(lambda f, code: reference.leapfrog(f, x0, v0, layer.step_size, 4))
    wanted = [x0, v0, layer.step_size, *condition.parameters(), *readout.parameters()]
    actual = torch.autograd.grad(total(out), wanted)
    wanted_grads = torch.autograd.grad(total(ade.DynamicsOutput(*expected)), wanted)
    for i, (a, e) in enumerate(zip(actual, wanted_grads, strict=True)):
        assert_close(a, e, f"gradient {i}")


@every_memory
@pytest.mark.parametrize("gradient", ["full", "truncated", "stopped"])
def test_context_carries_gradients_of_a_network(memory: str, gradient: str) -> None:
    """S_v conditioned by a hypernetwork: `context=` counts for S and g too, in every gradient mode."""
    hyper = nn.Linear(2, 3, dtype=DOUBLE)
    code = hyper(normal(1, 2, seed=5))

    def scale_v(grad: Tensor, x: Tensor) -> Tensor:
        return 0.1 * torch.tanh(grad + code)

    step = torch.tensor(0.2, dtype=DOUBLE)
    layer = ade.GeneralizedLeapfrog(3, step, scale_v=scale_v, memory=memory, gradient=gradient)
    potential = make_potential("silu")
    x0, v0 = inputs()
    out = layer(potential, x0, v0, context=(code,))
    expected = reference.generalized_leapfrog(potential, x0, v0, layer.step_size, 3, scale_v=scale_v, gradient=gradient)
    wanted = [x0, v0, *hyper.parameters()]
    actual = torch.autograd.grad(total(out), wanted, retain_graph=True)
    exact = torch.autograd.grad(total(ade.DynamicsOutput(*expected)), wanted)
    for i, (a, e) in enumerate(zip(actual, exact, strict=True)):
        assert_close(a, e, f"gradient {i}")


@every_memory
def test_captured_non_leaf_tensors_fall_back_aloud(memory: str, fresh_warnings: None) -> None:
    condition, readout = nn.Linear(2, 8, dtype=DOUBLE), nn.Linear(3, 8, dtype=DOUBLE)
    code = condition(normal(1, 2, seed=5))

    def potential(x: Tensor) -> Tensor:
        return torch.tanh(readout(x) + code).sum(1)

    layer = ade.Leapfrog(4, torch.tensor(0.2, dtype=DOUBLE), memory=memory)
    x0, v0 = inputs()
    with pytest.warns(UserWarning, match=r"Leapfrog: .*non-leaf.*context="):
        out = layer(potential, x0, v0)
    x, v, log_det = reference.leapfrog(potential, x0, v0, layer.step_size, 4)
    wanted = [x0, v0, layer.step_size, *condition.parameters(), *readout.parameters()]
    actual = torch.autograd.grad(total(out), wanted, retain_graph=True)
    expected = torch.autograd.grad(total(ade.DynamicsOutput(x, v, log_det)), wanted)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(a, e, f"gradient {i}")


@every_memory
@pytest.mark.parametrize("gradient", ["full", "truncated", "stopped"])
def test_a_network_that_captures_a_non_leaf_falls_back_too(memory: str, gradient: str, fresh_warnings: None) -> None:
    """S_v from a hypernetwork: the gradient reaches it, aloud; f gets what `gradient` says and no more."""
    hyper = nn.Linear(2, 3, dtype=DOUBLE)
    code = hyper(normal(1, 2, seed=5))

    def scale_v(grad: Tensor, x: Tensor) -> Tensor:
        return 0.1 * torch.tanh(grad + code)

    step = torch.tensor(0.2, dtype=DOUBLE)
    layer = ade.GeneralizedLeapfrog(3, step, scale_v=scale_v, memory=memory, gradient=gradient)
    potential = make_potential("silu")
    x0, v0 = inputs()
    with pytest.warns(UserWarning, match=r"GeneralizedLeapfrog: .*non-leaf"):
        out = layer(potential, x0, v0)
    expected = reference.generalized_leapfrog(potential, x0, v0, layer.step_size, 3, scale_v=scale_v, gradient=gradient)
    wanted = [x0, v0, layer.step_size, *hyper.parameters(), *potential.parameters()]
    actual = torch.autograd.grad(total(out), wanted, retain_graph=True, allow_unused=True)
    exact = torch.autograd.grad(total(ade.DynamicsOutput(*expected)), wanted, allow_unused=True)
    for i, (a, e) in enumerate(zip(actual, exact, strict=True)):
        assert_close(a, e, f"gradient {i}")


@every_memory
def test_one_leaf_per_sample(memory: str) -> None:
    """Captured tensors of the batch's length: f cannot be batched over time, and is right all the same."""
    net = make_potential("relu")
    tilt = normal(4, 3, seed=5).requires_grad_()

    def potential(x: Tensor) -> Tensor:
        return net(x).squeeze(1) + (x * tilt).sum(1)

    layer = ade.Leapfrog(4, torch.tensor(0.2, dtype=DOUBLE), memory=memory)
    x0, v0 = inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _slow_paths.SlowPathWarning)
        out = layer(potential, x0, v0)
        assert_same_gradients(out, layer, potential, x0, v0, extra=(tilt, *net.parameters()))


class Switch(nn.Module):
    """Control flow that depends on x: one function near the start, another further out."""

    def __init__(self, near: Callable[[Tensor], Tensor], far: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.near, self.far = near, far

    def forward(self, x: Tensor) -> Tensor:
        return (self.near if x.detach()[0, 0].item() < 0.5 else self.far)(x)


def assert_right_across_the_switch(potential: Switch, memory: str) -> None:
    x0 = torch.zeros(1, 3, dtype=DOUBLE, requires_grad=True)
    v0 = torch.tensor([[3.0, 0.5, -0.5]], dtype=DOUBLE, requires_grad=True)
    layer = ade.Leapfrog(6, torch.tensor(0.1, dtype=DOUBLE), memory=memory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _slow_paths.SlowPathWarning)
        out = layer(potential, x0, v0)
        assert out.x[0, 0] > 0.6, "the switch is passed"
        assert_same_gradients(out, layer, potential, x0, v0)


@every_memory
@pytest.mark.parametrize("near", ["silu", "relu"])
def test_control_flow_that_changes_the_kind_of_function(memory: str, near: str) -> None:
    """Piecewise linear at the first step and smooth later, or the other way round, with the same weights."""
    first, last = nn.Linear(3, 8, dtype=DOUBLE), nn.Linear(8, 1, dtype=DOUBLE)
    kinds = {"silu": nn.Sequential(first, nn.SiLU(), last), "relu": nn.Sequential(first, nn.ReLU(), last)}
    far = "relu" if near == "silu" else "silu"
    assert_right_across_the_switch(Switch(kinds[near], kinds[far]), memory)


@every_memory
@pytest.mark.parametrize("near, far", [("silu", "relu"), ("relu", "silu"), ("silu", "quadratic")])
def test_control_flow_that_reaches_other_parameters(memory: str, near: str, far: str) -> None:
    """Parameters that the first step does not touch get their gradients as well."""
    assert_right_across_the_switch(Switch(make_potential(near), make_potential(far)), memory)


@every_memory
def test_a_potential_without_parameters(memory: str) -> None:
    layer = ade.Leapfrog(4, torch.tensor(0.2, dtype=DOUBLE), memory=memory)
    x0, v0 = inputs()

    def potential(x: Tensor) -> Tensor:
        return x.cos().sum(1)

    assert_same_gradients(layer(potential, x0, v0), layer, potential, x0, v0)


@every_memory
def test_frozen_layers_of_the_potential_get_no_gradient(memory: str) -> None:
    potential = make_potential("relu")
    potential[0].requires_grad_(False)
    layer = ade.Leapfrog(4, torch.tensor(0.2, dtype=DOUBLE), memory=memory)
    total(layer(potential, *inputs())).backward()
    assert potential[0].weight.grad is None and potential[2].weight.grad.abs().max() > 0


def test_evaluation_mode_makes_dropout_and_batch_norm_fit() -> None:
    potential = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(0.5), nn.Linear(8, 1))
    potential.double().eval()
    layer = ade.Leapfrog(3, torch.tensor(0.2, dtype=DOUBLE))
    x0, v0 = inputs()
    assert_same_gradients(layer(potential, x0, v0), layer, potential, x0, v0)


# --- The layer as a module ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [0.3, torch.tensor([0.1, 0.2, 0.7], dtype=DOUBLE), torch.tensor([[0.1], [0.2]])],
    ids=["number", "per_dim", "per_step"],
)
def test_step_size_is_a_raw_parameter_as_given(given: float | Tensor) -> None:
    layer = ade.Leapfrog(2, given)
    name, first = next(layer.named_parameters())
    assert name == "step_size" and first is layer.step_size and type(first) is nn.Parameter
    wanted = torch.as_tensor(given)
    assert first.shape == wanted.shape and first.dtype == wanted.dtype and torch.equal(first.data, wanted)
    if isinstance(given, Tensor):
        given.mul_(2)
        assert not torch.equal(first.data, given), "the layer has its own copy"
        given.div_(2)
    constant = ade.Leapfrog(2, given, learn_step_size=False)
    assert not list(constant.parameters()) and dict(constant.named_buffers())["step_size"].shape == wanted.shape


def test_step_size_is_the_first_parameter_of_every_layer() -> None:
    network = KickNetwork((3,), (3,), 0.1)
    layer = ade.GeneralizedLeapfrog(2, 0.1, scale_v=network, scale_x=nn.Parameter(torch.zeros(())))
    names = [name for name, _ in layer.named_parameters()]
    assert names[0] == "step_size" and "scale_x" in names and "scale_v.linear.weight" in names
    assert next(ade.DampedLeapfrog(2, 0.1).named_parameters())[0] == "step_size"


@every_dynamics
def test_layers_copy_pickle_and_reload(dynamics: str) -> None:
    layer = LAYERS[dynamics](3, grad_clip=ade.Clip.norm(0.5), sample_range=(-1.0, 1.0))
    potential, (x0, v0) = make_potential("silu"), inputs()
    expected = layer(potential, x0, v0)
    fresh = LAYERS[dynamics](3, grad_clip=ade.Clip.norm(0.5), sample_range=(-1.0, 1.0))
    with torch.no_grad():
        fresh.step_size.fill_(0.9)
    fresh.load_state_dict(layer.state_dict())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        for a, e in zip(twin(potential, x0, v0), expected, strict=True):
            assert torch.equal(a, e)
    assert "n_steps=3" in repr(layer) and "Clip" in repr(layer)


@every_dynamics
def test_momentum_shape_is_the_events(dynamics: str) -> None:
    assert LAYERS[dynamics](3).momentum_shape((3, 8, 8)) == (3, 8, 8)


def test_momentum_shape_of_a_latent_momentum() -> None:
    layer = ade.GeneralizedLeapfrog(
        2, 0.1, shift_v=nn.Identity(), shift_x=nn.Identity(), momentum_shape=(5,), momentum_step_size=0.1
    )
    assert layer.momentum_shape((3, 8, 8)) == (5,)


def test_channels_last_stays_channels_last() -> None:
    """A channels-last batch is never transposed: what the potential sees is channels-last, so is the end."""
    seen: list[bool] = []

    class Watched(LeakyCNN):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return super().forward(x)

    x0, v0 = (torch.randn(2, 2, 4, 4).to(memory_format=torch.channels_last).requires_grad_() for _ in range(2))
    out = ade.Leapfrog(3, 0.1)(Watched(), x0, v0)
    assert all(seen) and len(seen) == 4
    assert out.x.is_contiguous(memory_format=torch.channels_last)


@every_dynamics
def test_check_finite_says_nothing_about_finite_runs(dynamics: str) -> None:
    potential, (x0, v0) = make_potential("silu"), inputs()
    checked = LAYERS[dynamics](3, check_finite=True, check_potential=True)(potential, x0, v0)
    plain = LAYERS[dynamics](3)(potential, x0, v0)
    for a, e in zip(checked, plain, strict=True):
        assert torch.equal(a, e)

"""A potential on a Gaussian base measure: its value, its samples, and its unrolls, whose Gaussian part is by hand.

The function it must be is written out with torch.distributions and unrolled by reference.py, on autograd's own graph.
"""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import DOUBLE, POTENTIALS, KickNetwork, assert_close, covering, make_potential, mlp, normal, row_id
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached

import ade_fast as ade
from ade_fast import _slow_paths, reference

N_STEPS = 3
EVENT = (3,)
MEMORIES = ("graph", "states")
every_memory = pytest.mark.parametrize("memory", MEMORIES)


class WrittenOut(nn.Module):
    """f(x) + Σ log N(x_i; mean_i, std_i), by torch.distributions."""

    def __init__(self, potential: Callable, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.potential = potential
        self.base = torch.distributions.Normal(mean, std)

    def forward(self, x: Tensor) -> Tensor:
        return self.potential(x).reshape(len(x)) + self.base.log_prob(x).flatten(1).sum(1)


def base_of(kind: str, event: tuple[int, ...]) -> tuple[Any, Any]:
    """(mean, std), narrow enough for the Gaussian's force to be of the potential's size."""
    if kind == "numbers":
        return 0.3, 0.9
    if kind == "tensors":
        return normal(*event, seed=21), 0.7 + normal(*event, seed=22).abs()
    return normal(*event[:1], *(1,) * (len(event) - 1), seed=23), 1.1  # one mean per channel, say


def as_tensors(mean: Any, std: Any) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(mean, dtype=DOUBLE), torch.as_tensor(std, dtype=DOUBLE)


def no_slope(x: Tensor) -> Tensor:
    return 0 * x.flatten(1).sum(1)


@pytest.fixture
def fresh_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow paths are announced once per process: forget those that other tests took."""
    monkeypatch.setattr(_slow_paths, "_TAKEN", {})


# --- The function -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["numbers", "tensors", "mixed"])
@pytest.mark.parametrize("name", list(POTENTIALS))
def test_value(name: str, kind: str) -> None:
    event, inner = POTENTIALS[name].event, make_potential(name).eval()
    mean, std = base_of(kind, event)
    f = ade.WithBase(inner, mean, std)
    written_out = WrittenOut(inner, *as_tensors(mean, std))
    for n in (0, 1, 5):
        x = normal(n, *event, seed=1)
        assert_close(f(x), written_out(x), "f", 1e-12)
        assert_close(f.log_base(x), written_out(x) - inner(x).reshape(n), "log_base", 1e-12)


def test_its_density_integrates_to_one_without_a_potential() -> None:
    f = ade.WithBase(no_slope, torch.tensor([0.5, -1.0], dtype=DOUBLE), torch.tensor([0.8, 1.7], dtype=DOUBLE))
    side = torch.linspace(-20, 20, 801, dtype=DOUBLE)
    density = f(torch.cartesian_prod(side, side)).exp()
    assert density.sum().item() * (side[1] - side[0]).item() ** 2 == pytest.approx(1.0, abs=1e-12)


def test_gradients_of_the_value() -> None:
    inner = mlp((3, 4, 1), nn.SiLU).double()
    f = ade.WithBase(inner, *base_of("tensors", EVENT))
    x = normal(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: f(x), (x, *f.parameters()))
    assert torch.autograd.gradgradcheck(lambda x: f(x), (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, DOUBLE])
def test_dtype_is_that_of_x_and_at_least_float32(dtype: torch.dtype) -> None:
    x = torch.randn(4, 3).to(dtype)
    f = ade.WithBase(no_slope, 0.1, 3.0)
    assert f.log_base(x).dtype == (DOUBLE if dtype == DOUBLE else torch.float32)
    exact = WrittenOut(no_slope, *as_tensors(0.1, 3.0))(x.double())
    assert_close(f.log_base(x).double(), exact, "log_base", 1e-14 if dtype == DOUBLE else 1e-6)


def test_state_and_copies() -> None:
    inner = make_potential("silu")
    f = ade.WithBase(inner, *base_of("mixed", EVENT))
    assert f.potential is inner and not f.mean.requires_grad and f.mean.shape == (3,) and f.std.shape == ()
    assert set(f.state_dict()) == {"mean", "std"} | {f"potential.{name}" for name in inner.state_dict()}
    x, other = normal(4, 3, seed=1), ade.WithBase(make_potential("silu", seed=9), torch.zeros(3, dtype=DOUBLE), 5.0)
    other.load_state_dict(f.state_dict())
    for again in (other, copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        assert torch.equal(again(x), f(x))
    assert "mean=tensor of shape (3,), std=1.1" in repr(f)
    mean = torch.zeros(3)
    f = ade.WithBase(inner, mean, 1.0)
    mean.add_(1.0)
    assert torch.equal(f.mean, torch.zeros(3)), "a tensor is copied"


# --- Samples of the base ------------------------------------------------------------------------------------


def test_moments_of_the_samples() -> None:
    mean, std = normal(2, 3, seed=21), 0.5 + normal(2, 3, seed=22).abs()
    x = ade.WithBase(no_slope, mean, std).sample_base(100_000, generator=torch.Generator().manual_seed(0))
    assert x.shape == (100_000, 2, 3) and x.dtype == DOUBLE
    error = std / 100_000**0.5
    assert ((x.mean(0) - mean) / error).abs().max() < 5
    assert ((x.std(0) - std) / error).abs().max() < 5
    correlation = torch.corrcoef(x.flatten(1).T) - torch.eye(6, dtype=DOUBLE)
    assert correlation.abs().max() < 5 / 100_000**0.5


@pytest.mark.parametrize("event", [4, (4,), (3, 4), (2, 3, 4)])
def test_event_of_the_samples(event: Any) -> None:
    shape = (event,) if isinstance(event, int) else event
    for f in (ade.WithBase(no_slope, 0.0, 2.0), ade.WithBase(no_slope, torch.zeros(4), 2.0)):
        assert f.sample_base(5, event).shape == (5, *shape)
        assert f.sample_base(0, event).shape == (0, *shape)
    assert ade.WithBase(no_slope, torch.zeros(3, 1), torch.ones(4)).sample_base(5).shape == (5, 3, 4)


def test_generator_and_dtype_of_the_samples() -> None:
    f = ade.WithBase(no_slope, 1.0, 2.0)
    draws = [f.sample_base(5, 3, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws) and draws[0].dtype == torch.get_default_dtype()
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(draws[0], 1.0 + 2.0 * noise)
    assert f.double().sample_base(5, 3).dtype == DOUBLE
    assert ade.WithBase(no_slope, 0.0, torch.ones(3, dtype=DOUBLE)).sample_base(2).dtype == DOUBLE


# --- In the dynamics ----------------------------------------------------------------------------------------

STEP = torch.tensor(0.2, dtype=DOUBLE)
DYNAMICS = {
    "leapfrog": (ade.Leapfrog, reference.leapfrog, {}),
    "damped": (ade.DampedLeapfrog, reference.damped_leapfrog, {}),
    "generalized": (ade.GeneralizedLeapfrog, reference.generalized_leapfrog, {"scale_v": 0.1, "scale_x": -0.2}),
}
CLIPS = {
    "open": {},
    "value": {"grad_clip": ade.Clip.value(0.5), "momentum_clip": ade.Clip.value(0.8), "sample_range": (-1.0, 0.9)},
    "norm": {"grad_clip": ade.Clip.norm(0.9), "momentum_clip": ade.Clip.norm(1.2)},
}


def assert_eager_agrees(
    f: nn.Module,
    written_out: nn.Module,
    dynamics: str = "leapfrog",
    event: tuple[int, ...] = EVENT,
    *,
    memory: str = "auto",
    n_steps: int = N_STEPS,
    tolerance: float = 1e-10,
    **options: Any,
) -> Any:
    """Outputs and all gradients of the layer on `f` and of the reference on `written_out`; returns the layer's plan."""
    kind, unroll, more = DYNAMICS[dynamics]
    layer = kind(n_steps, STEP, memory=memory, **more, **options)
    x0, v0 = normal(5, *event, seed=1), normal(5, *event, seed=2)
    if len(event) == 3:
        x0, v0 = (t.to(memory_format=torch.channels_last) for t in (x0, v0))
    given = [x0.requires_grad_(), v0.requires_grad_(), layer.step_size]
    mirrors = [t.detach().clone().requires_grad_() for t in given]
    out = layer(f, *given[:2])
    with cached():  # one set of effective weights per unroll
        expected = unroll(written_out, *mirrors, n_steps, **more, **options)
    for name, a, e in zip(("x", "v", "log_det"), out, expected, strict=True):
        assert_close(a.detach(), e.detach(), name, tolerance)
        assert a.requires_grad == e.requires_grad or name == "log_det"
    if options.get("gradient") != "none":
        wanted, wanted_mirrors = [*given, *f.parameters()], [*mirrors, *written_out.parameters()]
        cotangents = [normal(*e.shape, seed=70 + i) for i, e in enumerate(expected[:2])]
        actual = torch.autograd.grad(out[:2], wanted, cotangents, allow_unused=True)
        exact = torch.autograd.grad(expected[:2], wanted_mirrors, cotangents, allow_unused=True)
        for i, (a, e) in enumerate(zip(actual, exact, strict=True)):
            assert_close(a, e, f"gradient {i}", tolerance)
    return layer.last_plan


def pair(inner: nn.Module, mean: Any, std: Any) -> tuple[ade.WithBase, WrittenOut]:
    return ade.WithBase(inner, mean, std), WrittenOut(copy.deepcopy(inner), *as_tensors(mean, std))


GRID = covering(
    {
        "potential": list(POTENTIALS),
        "dynamics": list(DYNAMICS),
        "base": ("numbers", "tensors", "mixed"),
        "clips": list(CLIPS),
        "gradient": ("full", "truncated", "stopped", "none"),
        "memory": MEMORIES,
    }
)


@pytest.mark.parametrize("row", GRID, ids=row_id)
def test_unrolls_are_those_of_the_function_written_out(row: dict[str, str]) -> None:
    case = POTENTIALS[row["potential"]]
    f, written_out = pair(make_potential(row["potential"]), *base_of(row["base"], case.event))
    plan = assert_eager_agrees(
        f, written_out, row["dynamics"], case.event, memory=row["memory"], gradient=row["gradient"],
        **CLIPS[row["clips"]],
    )  # fmt: skip
    if row["gradient"] != "none":
        assert plan.piecewise_linear is not case.smooth, "the base does not hide what the potential is"


@every_memory
@pytest.mark.parametrize("name", ["relu", "silu"])
def test_unrolls_pass_gradcheck(name: str, memory: str) -> None:
    inner = mlp((3, 4, 1), {"silu": nn.SiLU, "relu": nn.ReLU}[name]).double()
    f = ade.WithBase(inner, *base_of("tensors", EVENT))
    layer = ade.Leapfrog(2, STEP, memory=memory, grad_clip=ade.Clip.norm(0.8))
    x0, v0 = (normal(2, 3, seed=seed).requires_grad_() for seed in (1, 2))
    inputs = (x0, v0, *layer.parameters(), *f.parameters())
    assert torch.autograd.gradcheck(lambda x0, v0, *_: layer(f, x0, v0)[:2], inputs, atol=1e-6, rtol=1e-5)


@every_memory
@pytest.mark.parametrize("name", ["relu", "leaky_cnn"])
def test_the_adjoint_of_a_piecewise_linear_potential_makes_no_call_per_step(name: str, memory: str) -> None:
    calls = []

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_potential(name)

        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return self.net(x)

    event = POTENTIALS[name].event
    for n_steps in (3, 9):
        f = ade.WithBase(Counted(), 0.3, 1.5)
        out = ade.Leapfrog(n_steps, STEP, memory=memory)(f, normal(4, *event, seed=1), normal(4, *event, seed=2))
        assert len(calls) == n_steps + 1
        calls.clear()
        out.x.square().sum().backward()
        assert len(calls) <= 2, "one time-batched mixed derivative, at most one recording of slopes"
        calls.clear()


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_without_gradients_the_force_is_the_same(name: str) -> None:
    f = ade.WithBase(make_potential(name), *base_of("tensors", EVENT))
    x0, v0 = normal(4, 3, seed=1), normal(4, 3, seed=2)
    layer = ade.Leapfrog(N_STEPS, STEP)
    with_graph = layer(f, x0, v0)
    with torch.no_grad():
        without = layer(f, x0, v0)
    assert_close(with_graph.x.detach(), without.x, "x", 1e-14)
    assert_close(with_graph.v.detach(), without.v, "v", 1e-14)


@every_memory
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.bfloat16, 0.1)])
def test_lower_precision(dtype: torch.dtype, tolerance: float, memory: str) -> None:
    """The same in float64, to the dtype's rounding; states and gradients keep the dtype."""
    f = ade.WithBase(make_potential("relu"), *base_of("numbers", EVENT))
    layer, exact = ade.Leapfrog(N_STEPS, 0.2, memory=memory), ade.Leapfrog(N_STEPS, STEP, memory=memory)
    results = []
    for run, network, kind in ((layer, copy.deepcopy(f).to(dtype), dtype), (exact, f, DOUBLE)):
        x0, v0 = (normal(4, 3, seed=seed).to(kind).requires_grad_() for seed in (1, 2))
        out = run(network, x0, v0)
        gradients = torch.autograd.grad(out.x.sum() + out.v.square().sum(), [x0, v0, *network.parameters()])
        results.append([out.x, out.v, *gradients])
    for i, (a, e) in enumerate(zip(*results, strict=True)):
        assert a.dtype == dtype
        assert_close(a.detach().double(), e.detach(), f"result {i}", tolerance)


@every_memory
def test_networks_see_the_whole_force(memory: str) -> None:
    f, written_out = pair(make_potential("relu"), 0.3, 0.8)
    scale, shift = KickNetwork(EVENT, EVENT, 0.3), KickNetwork(EVENT, EVENT, 1.0)
    layer = ade.GeneralizedLeapfrog(N_STEPS, STEP, scale_v=scale, shift_v=shift, memory=memory)
    x0, v0 = (normal(4, 3, seed=seed).requires_grad_() for seed in (1, 2))
    out = layer(f, x0, v0)
    expected = reference.generalized_leapfrog(written_out, x0, v0, STEP, N_STEPS, scale_v=scale, shift_v=shift)
    gradients = []
    for outputs, g in ((out, f), (expected, written_out)):
        wanted = [x0, v0, *g.parameters(), *scale.parameters(), *shift.parameters()]
        gradients.append(torch.autograd.grad(sum(o.square().sum() for o in outputs), wanted, allow_unused=True))
    for i, (a, e) in enumerate(zip(*gradients, strict=True)):
        assert_close(a, e, f"gradient {i}")


class Switch(nn.Module):
    """Piecewise linear near the start and smooth further out, with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8, dtype=DOUBLE), nn.Linear(8, 1, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h.relu() if x.detach()[0, 0].item() < 0.3 else nn.functional.silu(h))


@every_memory
def test_a_potential_that_bends_later(memory: str) -> None:
    f, written_out = pair(Switch(), 0.2, 1.5)
    x0 = torch.zeros(1, 3, dtype=DOUBLE, requires_grad=True)
    v0 = torch.tensor([[3.0, 0.5, -0.5]], dtype=DOUBLE, requires_grad=True)
    layer = ade.Leapfrog(6, 0.5 * STEP, memory=memory)
    gradients = []
    for out, g in (
        (layer(f, x0, v0), f),
        (reference.leapfrog(written_out, x0, v0, 0.5 * STEP, 6), written_out),
    ):
        assert out[0][0, 0] > 0.4
        total = out[0].square().sum() + out[1].sum()
        gradients.append(torch.autograd.grad(total, [x0, v0, *g.parameters()], allow_unused=True))
    for i, (a, e) in enumerate(zip(*gradients, strict=True)):
        assert_close(a, e, f"gradient {i}")


@pytest.mark.parametrize("gradient", ["full", "truncated", "stopped"])
@pytest.mark.parametrize("name", ["relu", "silu"])
def test_under_autograds_own_graph(name: str, gradient: str, fresh_warnings: None) -> None:
    """A gradient hook on a parameter of S_v: the slow path, which is right too."""
    f, written_out = pair(make_potential(name), *base_of("tensors", EVENT))
    scale = KickNetwork(EVENT, EVENT, 0.3)
    scale.linear.weight.register_hook(lambda grad: None)
    x0, v0 = (normal(4, 3, seed=seed).requires_grad_() for seed in (1, 2))
    options = {"scale_v": scale, "gradient": gradient, **CLIPS["norm"]}
    with pytest.warns(ade.SlowPathWarning, match="gradient hooks"):
        out = ade.GeneralizedLeapfrog(N_STEPS, STEP, **options)(f, x0, v0)
    expected = reference.generalized_leapfrog(written_out, x0, v0, STEP, N_STEPS, **options)
    gradients = []
    for outputs, g in ((out, f), (expected, written_out)):
        wanted = [x0, v0, *g.parameters(), *scale.parameters()]
        gradients.append(torch.autograd.grad(sum(o.square().sum() for o in outputs), wanted, allow_unused=True))
    for i, (a, e) in enumerate(zip(*gradients, strict=True)):
        assert_close(a, e, f"gradient {i}")


# --- In the fused kernels -----------------------------------------------------------------------------------

FUSED_GRID = covering(
    {
        "activation": ("relu", "silu"),
        "dim": (2, 5),
        "dynamics": list(DYNAMICS),
        "base": ("numbers", "tensors"),
        "clips": list(CLIPS),
        "gradient": ("full", "truncated", "stopped", "none"),
        "memory": MEMORIES,
    }
)


@pytest.mark.parametrize("row", FUSED_GRID, ids=row_id)
def test_fused_unrolls_are_those_of_the_function_written_out(row: dict[str, Any]) -> None:
    event = (row["dim"],)
    inner = ade.MLPPotential(row["dim"], (32, 64, 32), row["activation"]).double()
    f, written_out = pair(inner, *base_of(row["base"], event))
    plan = assert_eager_agrees(
        f, written_out, row["dynamics"], event, memory=row["memory"], gradient=row["gradient"], **CLIPS[row["clips"]]
    )
    assert row["gradient"] == "none" or plan.field == "mlp"


@pytest.mark.parametrize("dynamics", list(DYNAMICS))
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("dtype, tolerance", [(DOUBLE, 1e-10), (torch.float32, 2e-4)])
def test_fused_and_general_path_agree(
    dtype: torch.dtype, tolerance: float, activation: str, dynamics: str, fresh_warnings: None
) -> None:
    """Of a Sequential too, and where steps are many."""
    kind, _, more = DYNAMICS[dynamics]
    layer = kind(20, 0.1, grad_clip=ade.Clip.norm(1.0), **more).to(dtype)
    fused = ade.WithBase(ade.MLPPotential(3, (32, 32), activation).layers, *base_of("tensors", EVENT)).to(dtype)
    general = copy.deepcopy(fused)
    general.potential.register_forward_hook(lambda module, args, output: None)  # which the kernels do not run
    results = []
    for f, by_kernels in ((fused, True), (general, False)):
        x0, v0 = (normal(7, 3, seed=seed).to(dtype).requires_grad_() for seed in (1, 2))
        out = layer(f, x0, v0)
        assert (layer.last_plan.field == "mlp") is by_kernels
        wanted = [x0, v0, layer.step_size, *f.parameters()]
        total = out.x.square().sum() + out.v.sin().sum()
        results.append([*out, *torch.autograd.grad(total, wanted, allow_unused=True)])
    for i, (a, e) in enumerate(zip(*results, strict=True)):
        assert_close(a if a is None else a.detach(), e if e is None else e.detach(), f"result {i}", tolerance)


@pytest.mark.parametrize("dynamics", list(DYNAMICS))
def test_a_fused_unroll_has_the_base_of_its_forward_pass(dynamics: str) -> None:
    """The kernels keep numbers of their own: nothing that is written to the buffers reaches the backward pass."""
    kind, _, more = DYNAMICS[dynamics]
    layer, x0 = kind(N_STEPS, STEP, **more), normal(5, 3, seed=1).requires_grad_()
    gradients = []
    for change in (1.0, 2.0):
        f = ade.WithBase(ade.MLPPotential(3, (32, 32)).double(), *base_of("tensors", EVENT))
        f.potential.load_state_dict(gradients[0][1] if gradients else f.potential.state_dict())
        out = layer(f, x0, normal(5, 3, seed=2))
        f.mean.mul_(change), f.std.mul_(change)
        gradients.append((torch.autograd.grad(out.x.square().sum(), x0)[0], f.potential.state_dict()))
    assert torch.equal(gradients[0][0], gradients[1][0])


def test_an_event_that_does_not_fit_the_mlp_is_refused() -> None:
    f = ade.WithBase(ade.MLPPotential(3, (32, 32)), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"Leapfrog: x0 must have shape \(B, 3\) for this potential, got \(B, 2\)"):
        ade.Leapfrog(2)(f, torch.zeros(4, 2))


# --- A base that cannot be taken apart ----------------------------------------------------------------------


@every_memory
def test_a_base_that_requires_grad_gets_its_gradient(memory: str, fresh_warnings: None) -> None:
    mean, std = base_of("tensors", EVENT)
    f, written_out = pair(make_potential("relu"), mean, std)
    f.mean.requires_grad_()
    mirror = mean.clone().requires_grad_()
    written_out.base = torch.distributions.Normal(mirror, std)
    x0, v0 = normal(4, 3, seed=1), normal(4, 3, seed=2)
    with pytest.warns(ade.SlowPathWarning, match=r"Leapfrog: WithBase's mean or std requires grad: the Gaussian is"):
        out = ade.Leapfrog(N_STEPS, STEP, memory=memory)(f, x0, v0)
    expected = reference.leapfrog(written_out, x0, v0, STEP, N_STEPS)
    (actual,) = torch.autograd.grad(out.x.square().sum(), f.mean)
    (exact,) = torch.autograd.grad(expected[0].square().sum(), mirror)
    assert_close(actual, exact, "gradient of the mean")


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_the_objective_has_the_gradient_of_a_base_that_requires_grad(penalty: float, fresh_warnings: None) -> None:
    """What an unroll knows of f at its ends has no derivative by the base: it may not be taken for f there."""
    found = []
    for whole in (lambda f: f, lambda f: ade.NegativeEnergy(ade.NegativeEnergy(f))):
        torch.manual_seed(0)
        f = ade.WithBase(ade.MLPPotential(2, (32, 32)), torch.zeros(2), torch.full((2,), 3.0)).double()
        f.mean.requires_grad_()
        f.std.requires_grad_()
        sampler = ade.DualSampler(ade.initial.Gaussian(2), ade.Leapfrog(3, 0.1)).double()
        model = ade.ADE(whole(f), sampler, gradient_penalty=penalty, optimizer=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ade.SlowPathWarning)
            model.loss(normal(8, 2, seed=1), generator=torch.Generator().manual_seed(0)).backward()
        found.append((f.mean.grad, f.std.grad))
    for actual, exact in zip(*found, strict=True):
        assert exact.abs().max() > 1e-4
        assert_close(actual, exact, "gradient of the base")


def test_hooks_and_forwards_of_its_own_are_kept(fresh_warnings: None) -> None:
    f = ade.WithBase(make_potential("relu"), 0.3, 0.9)
    f.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.warns(ade.SlowPathWarning, match="hooks or a forward of its own"):
        assert_eager_agrees(f, copy.deepcopy(f))


def test_inside_of_another_module_it_is_a_function_like_any_other() -> None:
    f = ade.NegativeEnergy(ade.WithBase(make_potential("relu"), 0.3, 0.9))
    plan = assert_eager_agrees(f, copy.deepcopy(f))
    assert not plan.piecewise_linear


# --- What looks into potentials sees the potential inside ---------------------------------------------------


@pytest.mark.parametrize("which", ["mean", "std"])
@every_memory
@pytest.mark.parametrize("name", ["relu", "silu"])
def test_a_change_in_place_between_the_passes_does_not_matter(name: str, memory: str, which: str) -> None:
    """The backward pass has the base of the forward pass."""
    f = ade.WithBase(make_potential(name), *base_of("tensors", EVENT))
    x0 = normal(4, 3, seed=1).requires_grad_()
    out = ade.Leapfrog(N_STEPS, STEP, memory=memory)(f, x0, normal(4, 3, seed=2))
    wanted = [x0, *f.potential[0].parameters()]
    before = torch.autograd.grad(out.x.square().sum(), wanted, retain_graph=True)
    getattr(f, which).mul_(2.0)
    for i, (a, b) in enumerate(zip(torch.autograd.grad(out.x.square().sum(), wanted), before, strict=True)):
        assert torch.equal(a, b), i


def test_a_stopped_force_is_that_of_the_forward_pass() -> None:
    f = ade.WithBase(make_potential("silu"), *base_of("tensors", EVENT))
    layer = ade.Leapfrog(N_STEPS, STEP, gradient="stopped", grad_clip=ade.Clip.norm(0.8))
    gradients = []
    for change in (0.0, 5.0):
        out = layer(f, normal(4, 3, seed=1), normal(4, 3, seed=2))
        f.mean.add_(change)
        gradients.append(torch.autograd.grad(out.v.square().sum(), layer.step_size)[0])
    assert torch.equal(*gradients)


def test_unfit_potentials_are_refused() -> None:
    x0 = normal(4, 3, seed=1)
    f = ade.WithBase(nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1, dtype=DOUBLE)), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"Leapfrog: potential is random \(Dropout in training mode\)"):
        ade.Leapfrog(2)(f, x0)
    f = ade.WithBase(lambda x: (x - x.mean(0)).square().sum(1), 0.0, 1.0)
    with pytest.raises(ValueError, match="Leapfrog: potential mixes the samples of a batch"):
        ade.Leapfrog(2, check_potential=True)(f, x0)


def test_one_power_iteration_per_call() -> None:
    inner = make_potential("spectral_relu")
    before = copy.deepcopy(inner.state_dict())
    ade.Leapfrog(4, STEP)(ade.WithBase(inner, 0.0, 1.0), normal(4, 3, seed=1), normal(4, 3, seed=2))
    once = make_potential("spectral_relu")
    once.load_state_dict(before)
    once(normal(4, 3, seed=1))
    for (name, a), e in zip(inner.state_dict().items(), once.state_dict().values(), strict=True):
        assert_close(a, e, name, 1e-14)


# --- Misuse -------------------------------------------------------------------------------------------------

MISUSES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "potential": (lambda: ade.WithBase(3, 0.0, 1.0), TypeError, r"WithBase: potential must be .*, got int"),
    "word": (lambda: ade.WithBase(no_slope, "0", 1.0), TypeError, r"WithBase: mean must be a number or .*, got str"),
    "truth": (lambda: ade.WithBase(no_slope, 0.0, True), TypeError, r"WithBase: std must be a number or .*, got bool"),
    "integers": (
        lambda: ade.WithBase(no_slope, torch.zeros(3, dtype=torch.int64), 1.0),
        TypeError,
        r"WithBase: mean must be floating point, got torch\.int64",
    ),
    "zero": (lambda: ade.WithBase(no_slope, 0.0, 0.0), ValueError, r"WithBase: std must be positive, got 0\.0"),
    "negative": (
        lambda: ade.WithBase(no_slope, 0.0, torch.tensor([1.0, -2.0])),
        ValueError,
        r"WithBase: std must be positive, got -2\.0",
    ),
    "infinite": (lambda: ade.WithBase(no_slope, 0.0, float("inf")), ValueError, r"WithBase: std must be finite"),
    "nan": (lambda: ade.WithBase(no_slope, torch.tensor(float("nan")), 1.0), ValueError, r"WithBase: mean must be f"),
    "shapes": (
        lambda: ade.WithBase(no_slope, torch.zeros(3), torch.ones(2)),
        ValueError,
        r"WithBase: mean and std must broadcast to one event, got \(3,\) and \(2,\)",
    ),
    "event": (
        lambda: ade.WithBase(no_slope, torch.zeros(3), 1.0)(torch.zeros(4, 2)),
        ValueError,
        r"WithBase: mean and std must broadcast to the event \(2,\), got \(3,\) and \(\)",
    ),
    "event of an unroll": (
        lambda: ade.Leapfrog(2)(ade.WithBase(no_slope, torch.zeros(3), 1.0), torch.zeros(4, 2)),
        ValueError,
        r"WithBase: mean and std must broadcast to the event \(2,\), got \(3,\) and \(\)",
    ),
    "event is broadcast": (
        lambda: ade.WithBase(no_slope, torch.zeros(5, 3), 1.0)(torch.zeros(5, 3)),
        ValueError,
        r"WithBase: mean and std must broadcast to the event \(3,\), got \(5, 3\) and \(\)",
    ),
    "output": (
        lambda: ade.WithBase(nn.Linear(3, 2), 0.0, 1.0)(torch.zeros(4, 3)),
        ValueError,
        r"WithBase: potential must return \(4,\) or \(4, 1\), got \(4, 2\)",
    ),
    "no slope": (
        lambda: ade.Leapfrog(2)(ade.WithBase(lambda x: x.detach().sum(1), 0.0, 1.0), torch.zeros(4, 3)),
        ValueError,
        r"Leapfrog: potential's output does not depend on x",
    ),
    "no event": (
        lambda: ade.WithBase(no_slope, 0.0, 1.0).sample_base(3),
        ValueError,
        r"WithBase: event must be given where mean and std are both numbers, got None",
    ),
    "another event": (
        lambda: ade.WithBase(no_slope, torch.zeros(3), 1.0).sample_base(3, 2),
        ValueError,
        r"WithBase: mean and std must broadcast to the event \(2,\), got \(3,\) and \(\)",
    ),
    "fewer than none": (
        lambda: ade.WithBase(no_slope, 0.0, 1.0).sample_base(-1, 2),
        ValueError,
        r"WithBase: n must be at least 0, got -1",
    ),
    "half a sample": (
        lambda: ade.WithBase(no_slope, 0.0, 1.0).sample_base(1.5, 2),
        TypeError,
        r"WithBase: n must be an int, got float",
    ),
}


@pytest.mark.parametrize("name", list(MISUSES))
def test_misuse(name: str) -> None:
    call, error, message = MISUSES[name]
    with pytest.raises(error, match=message):
        call()

"""Langevin against reference.py in float64, its noise, and its weights against closed forms in the dual sampler."""

import contextlib
import copy
import gc
import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import (
    DOUBLE,
    POTENTIALS,
    DriftNetwork,
    KickNetwork,
    assert_close,
    covering,
    make_potential,
    normal,
    row_id,
)
from torch import Tensor, nn

import ade_fast as ade
from ade_fast import functional, initial, reference
from ade_fast._philox_op import draw_seed, philox_normal
from ade_fast.dynamics.langevin import LangevinProgram
from ade_fast.weights import default_momentum_weight

BATCH = 5
CLIPS = {"unclipped": None, "value": ade.Clip.value(0.4), "norm": ade.Clip.norm(0.6)}
STEPS = ("scalar", "per_dim", "per_step", "per_step_per_dim")
FIELDS = ("x", "v", "log_det", "log_noise")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positive(form: str, event: tuple[int, ...], n_steps: int, seed: int) -> Tensor:
    """A step size or σ in one of its forms."""
    shape = {
        "scalar": (),
        "per_dim": event,
        "per_step": (n_steps, *(1 for _ in event)),
        "per_step_per_dim": (n_steps, *event),
    }[form]
    return 0.1 + 0.3 * torch.rand(shape, dtype=DOUBLE, generator=generator(seed))


def arguments(
    event: tuple[int, ...],
    n_steps: int,
    step: str = "per_step_per_dim",
    std: str | None = "per_step_per_dim",
    momentum: tuple[int, ...] | None = None,
) -> dict[str, Tensor]:
    """Everything that receives a gradient, float64."""
    momentum = event if momentum is None else momentum
    given = {
        "x0": normal(BATCH, *event, seed=1),
        "step_size": positive(step, momentum, n_steps, 3),
        "noise": normal(n_steps, BATCH, *momentum, seed=6),
    }
    return given if std is None else given | {"noise_std": positive(std, momentum, n_steps, 4)}


def fast(potential: Callable, given: dict[str, Tensor], n_steps: int, **options: Any) -> ade.LangevinOutput:
    rest = {name: given[name] for name in ("noise", "noise_std") if name in given}
    return functional.langevin(potential, given["x0"], given["step_size"], n_steps, **rest, **options)


def specified(potential: Callable, given: dict[str, Tensor], n_steps: int, **options: Any) -> tuple[Tensor, ...]:
    return reference.langevin(
        potential, given["x0"], given["step_size"], n_steps, given["noise"], noise_std=given.get("noise_std"), **options
    )


def pulled(outputs: tuple[Tensor, ...], wanted: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """Gradients of one fixed random functional of all outputs; None where an input is not reached."""
    total = sum((out * normal(*out.shape, seed=70 + i)).sum() for i, out in enumerate(outputs) if out.requires_grad)
    return dict(zip(wanted, torch.autograd.grad(total, list(wanted.values()), allow_unused=True), strict=True))


class Networks(nn.Module):
    """g_v and g_x of a momentum of any shape."""

    def __init__(self, event: tuple[int, ...], momentum: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.v, self.x = KickNetwork(event, momentum, 1.0), DriftNetwork(momentum, event, 0.8)

    def options(self, which: str) -> dict[str, nn.Module]:
        return {f"shift_{name}": getattr(self, name) for name in which}


def assert_same(
    potential: nn.Module,
    given: dict[str, Tensor],
    n_steps: int,
    memory: str = "auto",
    networks: tuple[Networks, str] | None = None,
    momentum_shape: tuple[int, ...] | None = None,
    constant: tuple[str, ...] = (),
    **options: Any,
) -> ade.LangevinOutput:
    """Outputs and all gradients of the functional form and of the reference, to 1e-10."""
    nets, which = (nn.Module(), "") if networks is None else networks
    results = []
    for form in (fast, specified):
        f, g = copy.deepcopy(potential), copy.deepcopy(nets)
        leaves = {k: t.clone().requires_grad_(k not in constant) for k, t in given.items()}
        shifts = g.options(which) if which else {}
        extra = {"memory": memory, "momentum_shape": momentum_shape} if form is fast else {}
        with torch.nn.utils.parametrize.cached():  # one set of effective weights per unroll
            out = form(f, leaves, n_steps, **shifts, **options, **extra)
            wanted = {k: t for k, t in leaves.items() if k not in constant}
            wanted |= {f"f.{n}": p for n, p in f.named_parameters()} | {f"g.{n}": p for n, p in g.named_parameters()}
            gradients = {} if options.get("gradient") == "none" else pulled(out, wanted)
        results.append((out, gradients))
    (actual, ours), (expected, theirs) = results
    for name, a, e in zip(FIELDS, actual, expected, strict=True):
        assert_close(a.detach(), e.detach(), name)
        assert options.get("gradient") != "none" or not a.requires_grad
    for name in ours:
        assert_close(ours[name], theirs[name], f"gradient of {name}")
    assert not ours or ours["x0"].abs().max() > 0
    return actual


# --- The unroll is the reference's ---------------------------------------------------------------------------

GRID = covering(
    {
        "name": tuple(POTENTIALS),
        "grad_clip": tuple(CLIPS),
        "momentum_clip": tuple(CLIPS),
        "sample_range": (None, (-0.8, 0.9)),
        "step": STEPS,
        "std": (None, *STEPS),
        "memory": ("graph", "states", "auto"),
        "gradient": ("full", "truncated", "stopped", "none"),
        "n_steps": (1, 2, 4),
    },
    strength=2,
)


@pytest.mark.parametrize("row", GRID, ids=row_id)
def test_agreement(row: dict[str, Any]) -> None:
    given = arguments(POTENTIALS[row["name"]].event, row["n_steps"], row["step"], row["std"])
    assert_same(
        make_potential(row["name"]), given, row["n_steps"], row["memory"], sample_range=row["sample_range"],
        grad_clip=CLIPS[row["grad_clip"]], momentum_clip=CLIPS[row["momentum_clip"]], gradient=row["gradient"],
    )  # fmt: skip


LATENT = covering(
    {
        "name": ("silu", "relu", "leaky_cnn"),
        "which": ("v", "x", "vx", "latent"),
        "grad_clip": ("unclipped", "norm"),
        "momentum_clip": ("unclipped", "value"),
        "sample_range": (None, (-0.8, 0.9)),
        "step": STEPS,
        "std": (None, *STEPS),
        "memory": ("graph", "states"),
        "gradient": ("full", "truncated", "stopped", "none"),
    },
    strength=2,
)


@pytest.mark.parametrize("row", LATENT, ids=row_id)
def test_agreement_with_networks(row: dict[str, Any]) -> None:
    """g_v and g_x, also of a momentum of another shape than the event."""
    event = POTENTIALS[row["name"]].event
    momentum = (4,) if row["which"] == "latent" else event
    which = "vx" if row["which"] == "latent" else row["which"]
    given = arguments(event, 3, row["step"], row["std"], momentum)
    out = assert_same(
        make_potential(row["name"]), given, 3, row["memory"], (Networks(event, momentum), which), momentum,
        sample_range=row["sample_range"], grad_clip=CLIPS[row["grad_clip"]],
        momentum_clip=CLIPS[row["momentum_clip"]], gradient=row["gradient"],
    )  # fmt: skip
    assert out.v.shape == (3, BATCH, *momentum)


FUSED = covering(
    {
        "activation": ("relu", "silu", "softplus"),
        "grad_clip": tuple(CLIPS),
        "momentum_clip": tuple(CLIPS),
        "sample_range": (None, (-0.8, 0.9)),
        "step": STEPS,
        "std": (None, *STEPS),
        "memory": ("graph", "states", "auto"),
        "gradient": ("full", "truncated", "stopped", "none"),
        "n_steps": (2, 5),
        "based": (False, True),
    },
    strength=2,
)


def mlp_potential(activation: str, based: bool = False) -> nn.Module:
    torch.manual_seed(3)
    potential = ade.MLPPotential(3, hidden=(32, 64), activation=activation).double()
    if not based:
        return potential
    return ade.WithBase(potential, torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.8, 1.0, 1.2])).double()


@pytest.mark.parametrize("row", FUSED, ids=row_id)
def test_agreement_of_the_whole_unroll_in_one_operator(row: dict[str, Any]) -> None:
    given = arguments((3,), row["n_steps"], row["step"], row["std"])
    potential = mlp_potential(row["activation"], row["based"])
    assert_same(
        potential, given, row["n_steps"], row["memory"], sample_range=row["sample_range"], constant=("noise",),
        grad_clip=CLIPS[row["grad_clip"]], momentum_clip=CLIPS[row["momentum_clip"]], gradient=row["gradient"],
    )  # fmt: skip
    layer = ade.Langevin(row["n_steps"], 0.1, noise_std=0.2).double()
    layer(potential, given["x0"])
    assert layer.last_plan.field == "mlp"


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("name", ["silu", "relu", "mlp"])
def test_seeded_noise_is_given_noise(name: str, memory: str, learned: bool) -> None:
    """The backward pass draws what the forward pass drew."""
    potential = mlp_potential("silu") if name == "mlp" else make_potential(name)
    layer = ade.Langevin(4, 0.2, noise_std=0.3, learn_noise_std=learned, memory=memory).double()
    seed = draw_seed(torch.device("cpu"), generator(5))
    noise = torch.stack([philox_normal(torch.empty(BATCH, 3, dtype=DOUBLE), seed, t) for t in range(4)])
    found = []
    for given in ({"generator": generator(5)}, {"noise": noise}):
        x0 = normal(BATCH, 3, seed=1).requires_grad_()
        out = layer(potential, x0, **given)
        wanted = {"x0": x0} | dict(layer.named_parameters()) | dict(potential.named_parameters())
        assert ("log_noise_std" in wanted) == learned
        found.append((out, pulled(out, wanted)))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        assert_close(a.detach(), b.detach(), "output", 1e-14)
    for key, gradient in found[0][1].items():
        assert_close(gradient, found[1][1][key], f"gradient of {key}", 1e-13)


@pytest.mark.parametrize("case", ["plain", "mlp", "latent", "clipped"])
def test_gradcheck(case: str) -> None:
    potential = mlp_potential("silu") if case == "mlp" else make_potential("silu")
    options: dict[str, Any] = {}
    given = arguments((3,), 3)
    if case == "latent":
        nets, given = Networks((3,), (2,)), arguments((3,), 3, momentum=(2,))
        options = nets.options("vx") | {"momentum_shape": (2,)}
    if case == "clipped":
        options = {"grad_clip": ade.Clip.norm(0.6), "momentum_clip": ade.Clip.norm(0.5), "sample_range": (-2.0, 2.0)}
    names = [name for name in given if case != "mlp" or name != "noise"]

    def unroll(*tensors: Tensor) -> tuple[Tensor, ...]:
        out = fast(potential, given | dict(zip(names, tensors, strict=True)), 3, **options)
        return out.x, out.v, out.log_noise

    assert torch.autograd.gradcheck(unroll, [given[name].requires_grad_() for name in names])


def test_no_second_derivative() -> None:
    x0 = normal(BATCH, 3, seed=1).requires_grad_()
    out = functional.langevin(make_potential("silu"), x0, 0.1, 2, generator=generator())
    (gradient,) = torch.autograd.grad(out.x.square().sum(), x0, create_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        gradient.sum().backward()


def test_context_and_captured_tensors() -> None:
    """A tensor that f captured gets its gradient, passed as context= or found on autograd's own graph."""
    given = arguments((3,), 3)
    results = []
    for form, passed in ((fast, True), (fast, False), (specified, False)):
        leaf = normal(3, seed=9).requires_grad_()
        shift = leaf.sin()
        options = {"context": shift} if passed else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ade.SlowPathWarning)
            out = form(lambda x, shift=shift: -(x - shift).square().sum(1), given, 3, **options)
        results.append((out, pulled(tuple(out), {"leaf": leaf})["leaf"]))
    for out, gradient in results[:2]:
        assert_close(out.x.detach(), results[2][0][0].detach(), "x")
        assert_close(gradient, results[2][1], "gradient of the captured tensor")
    assert results[2][1].abs().max() > 0


@pytest.mark.parametrize("name", ["silu", "mlp"])
def test_no_grad_and_inference_mode(name: str) -> None:
    potential = mlp_potential("silu") if name == "mlp" else make_potential(name)
    layer, x0 = ade.Langevin(3, 0.1).double(), normal(BATCH, 3, seed=1)
    wanted = layer(potential, x0, generator=generator())
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            out = layer(potential, x0, generator=generator())
        assert not any(t.requires_grad for t in out)
        for a, b in zip(out, wanted, strict=True):
            assert_close(a, b.detach(), "output", 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    potential = make_potential("silu").to(torch.float32)
    given = {k: t.to(dtype) for k, t in arguments((3,), 4).items()}

    def f(x: Tensor) -> Tensor:
        return potential(x.float())

    out = fast(f, given, 4)
    wanted = specified(make_potential("silu"), {k: t.to(dtype).double() for k, t in given.items()}, 4)
    assert out.x.dtype == out.v.dtype == dtype and out.log_det.dtype == out.log_noise.dtype == torch.float32
    for a, w in zip(out, wanted, strict=True):
        assert_close(a.double(), w.detach(), "output", 1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("name", ["silu", "mlp"])
def test_empty_batch(name: str) -> None:
    potential = mlp_potential("silu") if name == "mlp" else make_potential(name)
    layer = ade.Langevin(3, 0.1, noise_std=0.2, learn_noise_std=True).double()
    out = layer(potential, torch.empty(0, 3, dtype=DOUBLE))
    assert out.x.shape == (0, 3) and out.v.shape == (3, 0, 3) and out.log_noise.shape == (0,)
    (out.x.sum() + out.log_noise.sum()).backward()
    assert layer.step_size.grad == 0 and layer.log_noise_std.grad == 0


def test_channels_last_is_kept() -> None:
    x0 = normal(BATCH, 2, 4, 4, seed=1).to(memory_format=torch.channels_last)
    given = arguments((2, 4, 4), 3) | {"x0": x0}
    out = fast(make_potential("leaky_cnn"), given, 3)
    assert out.x.is_contiguous(memory_format=torch.channels_last) and out.v.shape == (3, *x0.shape)
    for a, e in zip(out, specified(make_potential("leaky_cnn"), given, 3), strict=True):
        assert_close(a.detach(), e.detach(), "output")


# --- How often, how much -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [1, 3])
def test_one_gradient_for_each_step(n_steps: int) -> None:
    potential, calls = make_potential("silu"), []

    def counted(x: Tensor) -> Tensor:
        calls.append(len(x))
        return potential(x)

    with torch.no_grad():
        functional.langevin(counted, normal(BATCH, 3, seed=1), 0.1, n_steps)
    assert calls == [BATCH] * n_steps


def test_the_noise_is_not_kept() -> None:
    """What waits for the backward pass: the states and the momenta, and no tensor that is the noise."""
    n_steps, kept = 6, []
    x0 = normal(BATCH, 3, seed=1).requires_grad_()
    layer = ade.Langevin(n_steps, 0.1, noise_std=0.3, learn_noise_std=True, memory="states").double()
    noise_of = draw_seed(torch.device("cpu"), generator(2))
    gc.collect()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(make_potential("silu"), x0, generator=generator(2))
    noise = [philox_normal(x0.detach(), noise_of, t) for t in range(n_steps)]
    assert any(t.shape == (n_steps, BATCH, 3) for t in kept), "the momenta"
    for t in kept:
        for row in t.reshape(-1, BATCH, 3).unbind() if t.numel() % (BATCH * 3) == 0 else ():
            assert not any(torch.allclose(row, scale * eps) for eps in noise for scale in (1.0, 0.3))


def test_the_fused_kernels_noise_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[weakref.ref] = []
    draw = LangevinProgram._all_noise

    def all_noise(program: LangevinProgram, args: tuple) -> Tensor:
        noise = draw(program, args)
        drawn.append(weakref.ref(noise))
        return noise

    monkeypatch.setattr(LangevinProgram, "_all_noise", all_noise)
    layer = ade.Langevin(6, 0.1, noise_std=0.3, learn_noise_std=True).double()
    gc.disable()
    try:
        out = layer(mlp_potential("silu"), normal(BATCH, 3, seed=1).requires_grad_(), generator=generator(2))
        assert layer.last_plan.field == "mlp" and len(drawn) == 1 and drawn[0]() is None
        out.x.sum().backward()
        assert len(drawn) == 2 and drawn[1]() is None, "drawn again"
        node = weakref.ref(out.x.grad_fn)
        del out
        assert node() is None, "no cycle through what is kept"
    finally:
        gc.enable()


def test_noise_is_kept_where_hooks_are_forbidden() -> None:
    gradients = []
    for forbidden in (contextlib.nullcontext(), torch.autograd.graph.disable_saved_tensors_hooks("none here")):
        layer = ade.Langevin(4, 0.1, noise_std=0.3, learn_noise_std=True).double()
        with forbidden:
            out = layer(mlp_potential("silu"), normal(BATCH, 3, seed=1), generator=generator(2))
        assert layer.last_plan.field == "mlp"
        out.x.sum().backward()
        gradients.append(layer.log_noise_std.grad)
    assert torch.equal(*gradients)


# --- The noise -----------------------------------------------------------------------------------------------


def test_log_noise_is_the_density_of_the_noise() -> None:
    given = arguments((3,), 4)
    out = fast(make_potential("silu"), given, 4)
    xi = given["noise_std"].unsqueeze(1) * given["noise"]
    wanted = torch.distributions.Normal(0.0, given["noise_std"].unsqueeze(1)).log_prob(xi).sum((0, 2))
    assert_close(out.log_noise, wanted, "log_noise", 1e-13)


@pytest.mark.parametrize("networks", [False, True])
def test_log_noise_is_that_of_the_dense_jacobian(networks: bool) -> None:
    """(x⁰, all ξ/σ) to (x^T, all v) multiplies volume by Π σ: so log_noise is the density of v at given x^T, (9)."""
    n_steps = 3
    options = Networks((2,), (2,)).double().options("vx") if networks else {}
    layer = ade.Langevin(n_steps, 0.3, noise_std=torch.tensor([[0.4, 0.7]] * n_steps), **options).double()
    potential = ade.MLPPotential(2, (32,), "silu").double()
    x0, noise = normal(2, seed=1), normal(n_steps, 2, seed=2)

    def unroll(start: Tensor) -> Tensor:
        out = layer(potential, start[:2].unsqueeze(0), noise=start[2:].view(n_steps, 1, 2))
        return torch.cat([out.x.flatten(), out.v.flatten()])

    jacobian = torch.autograd.functional.jacobian(unroll, torch.cat([x0, noise.flatten()]))
    gain = torch.linalg.slogdet(jacobian).logabsdet
    assert_close(gain, layer.noise_std.log().sum().detach(), "log|det|", 1e-10)
    density = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum() - gain
    out = layer(potential, x0.unsqueeze(0), noise=noise.view(n_steps, 1, 2))
    assert_close(out.log_noise.squeeze().detach(), density.detach(), "log_noise", 1e-10)


def test_momenta_are_noise_and_half_a_kick() -> None:
    """With f = 0 they are σ ξ themselves: moments, and independence over steps, rows and elements."""
    layer = ade.Langevin(3, 0.25, noise_std=0.5).double()
    v = layer(lambda x: 0 * x.sum(1), torch.zeros(50_000, 4, dtype=DOUBLE), generator=generator(1)).v.detach()
    z, n = v / 0.5, v.shape[1]
    assert (z.mean(1).abs() * math.sqrt(n) < 5).all()
    assert ((z.square().mean(1) - 1).abs() * math.sqrt(n / 2) < 5).all()
    columns = z.movedim(1, 0).flatten(1)
    correlation = columns.T @ columns / n - torch.eye(12, dtype=DOUBLE) * columns.square().mean(0)
    assert (correlation.abs() * math.sqrt(n) < 5).all()
    assert (columns[:-1] * columns[1:]).mean(0).abs().max() * math.sqrt(n) < 5


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_noise_does_not_depend_on_the_threads(threads: None) -> None:
    layer, found = ade.Langevin(2, 0.1), []
    for count in (1, 2):
        torch.set_num_threads(count)
        out = layer(lambda x: -x.square().sum(1), torch.zeros(20_000, 3), generator=generator(1))
        found.append((*out, *torch.autograd.grad(out.x.sum() + out.log_noise.sum(), layer.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    layer, x0 = ade.Langevin(3, 0.1).double(), normal(20, 3, seed=1)
    whole, part = (layer(lambda x: -x.square().sum(1), x, generator=generator(1)) for x in (x0, x0[:7]))
    assert torch.equal(whole.x[:7], part.x) and torch.equal(whole.v[:, :7], part.v)


def test_noise_comes_from_the_generator_in_one_draw() -> None:
    layer, potential, x0 = ade.Langevin(3, 0.2).double(), make_potential("silu"), normal(4, 3, seed=1)
    before = torch.random.get_rng_state()
    first, again, other = (layer(potential, x0, generator=generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.v, other.v)
    source = generator(0)
    layer(potential, x0, generator=source)
    after = generator(0)
    draw_seed(torch.device("cpu"), after)
    assert torch.equal(source.get_state(), after.get_state())
    assert not torch.equal(layer(potential, x0, generator=source).v, first.v)
    torch.manual_seed(4)
    a = layer(potential, x0)
    torch.manual_seed(4)
    assert torch.equal(layer(potential, x0).x, a.x)


def test_given_noise_draws_nothing() -> None:
    layer, x0, source = ade.Langevin(3, 0.2).double(), normal(4, 3, seed=1), generator(0)
    layer(make_potential("silu"), x0, noise=normal(3, 4, 3, seed=2), generator=source)
    assert torch.equal(source.get_state(), generator(0).get_state())


# --- Parameters and state ------------------------------------------------------------------------------------


def test_parameters_and_state() -> None:
    tied = ade.Langevin(4, 0.25)
    assert [name for name, _ in tied.named_parameters()] == ["step_size"] and tied.noise_std == 0.5
    with torch.no_grad():
        tied.step_size.fill_(0.09)
    assert torch.allclose(tied.noise_std, torch.tensor(0.3)), "the step size's square root as it is now"
    own = ade.Langevin(4, 0.25, learn_noise_std=True)
    assert [name for name, _ in own.named_parameters()] == ["step_size", "log_noise_std"]
    assert torch.allclose(own.noise_std, torch.tensor(0.5))
    fixed = ade.Langevin(4, 0.25, noise_std=torch.full((4, 1), 0.7), learn_step_size=False)
    assert not list(fixed.parameters()) and list(fixed.state_dict()) == ["step_size", "log_noise_std"]
    assert fixed.noise_std.shape == (4, 1) and torch.allclose(fixed.noise_std, torch.tensor(0.7))
    with torch.no_grad():
        own.log_noise_std.fill_(-50.0)
    assert own.noise_std > 0
    twin = ade.Langevin(4, 0.1, learn_noise_std=True)
    twin.load_state_dict(own.state_dict())
    assert torch.equal(twin.noise_std, own.noise_std)
    assert own.momentum_shape((3,)) is None and own.has_momentum
    assert "n_steps=4" in repr(tied) and "noise_std=0.3" in repr(ade.Langevin(4, 0.1, noise_std=0.3))


def test_networks_parameters_are_the_layers() -> None:
    nets = Networks((3,), (2,))
    layer = ade.Langevin(2, 0.1, momentum_shape=2, **nets.options("vx")).double()
    out = layer(make_potential("silu"), normal(4, 3, seed=1))
    assert out.v.shape == (2, 4, 2)
    out.x.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())


def test_check_finite_names_the_step() -> None:
    layer = ade.Langevin(4, 0.5, check_finite=True).double()
    with pytest.raises(ade.NonFiniteError, match="Langevin: a state is not finite after step 1 of 4"):
        layer(lambda x: (x.square().sum(1) * 1e200).square(), normal(2, 3, seed=1))


def test_check_potential_probes() -> None:
    layer = ade.Langevin(2, 0.1, check_potential=True).double()
    with pytest.raises(ValueError, match="Langevin: potential"):
        layer(lambda x: (x - x.mean(0)).square().sum(1), normal(3, 2, seed=1))


# --- The algorithm, the dual sampler, its weights ------------------------------------------------------------


def test_is_the_unadjusted_langevin_algorithm() -> None:
    """On a Gaussian of variance s² its stationary variance is s² / (1 - η / (4 s²))."""
    eta, n = 0.5, 20_000
    layer = ade.Langevin(60, eta, gradient="none").double()
    x = layer(lambda x: -x.square().sum(1) / 2, torch.zeros(n, 1, dtype=DOUBLE), generator=generator()).x
    wanted = 1 / (1 - eta / 4)
    assert abs(x.var().item() - wanted) < 5 * wanted * math.sqrt(2 / n)


def gaussian(x: Tensor) -> Tensor:
    return -(x - 0.5).square().sum(1) / 1.28  # variance 0.64


LOG_Z = math.log(2 * math.pi * 0.64)

SAMPLERS = {
    "plain": lambda: ade.Langevin(3, 0.1),
    "own std": lambda: ade.Langevin(3, 0.2, noise_std=0.25, learn_noise_std=True),
    "per step": lambda: ade.Langevin(3, 0.1, noise_std=torch.tensor([[0.2], [0.3], [0.4]])),
    "per dimension": lambda: ade.Langevin(3, 0.1, noise_std=torch.tensor([0.3, 0.35])),
    "clipped": lambda: ade.Langevin(3, 0.2, grad_clip=ade.Clip.norm(0.5), momentum_clip=ade.Clip.value(0.3)),
    "latent": lambda: ade.Langevin(2, 0.1, momentum_shape=3, **Networks((2,), (3,)).options("vx")),
    "sequence": lambda: ade.Sequential(ade.Langevin(2, 0.1), ade.Langevin(1, 0.2)),
}


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_weights_are_unbiased(name: str) -> None:
    """E[w] = Z: log Z within three standard errors of the closed form."""
    sampler = ade.DualSampler(initial.Gaussian(2, std=1.2), SAMPLERS[name]()).double()
    found = ade.metrics.log_z(gaussian, sampler, 50_000, generator=generator(1))
    assert found.standard_error < 0.05
    assert abs(found.log_z - LOG_Z) < 3 * found.standard_error


def test_weights_do_not_ask_for_the_default_momentum_weight() -> None:
    sampler = ade.DualSampler(initial.Gaussian(2, std=1.2), ade.Langevin(3, 0.1)).double()
    for weight in (7.0, torch.tensor([12.0, 9.0, 11.0])):
        found = ade.metrics.log_z(gaussian, sampler, 50_000, weight, generator=generator(1))
        assert abs(found.log_z - LOG_Z) < 3 * found.standard_error < 0.15


def test_log_q_of_the_dual_sampler() -> None:
    sampler = ade.DualSampler(initial.Gaussian(2, std=1.2), ade.Langevin(3, 0.1)).double()
    assert sampler.draws_own_momenta() and sampler.has_momentum()
    s = sampler.sample(gaussian, 6, generator())
    assert s.v.shape == (3, 6, 2) and s.v0 is None
    # Backwards along the path: x^t, and from it the noise.
    x, log_q = s.x, torch.zeros(6, dtype=DOUBLE)
    for v in s.v.flip(0):
        x = x - v
        xi = v - 0.05 * reference.gradient_field(gaussian, x)
        log_q = log_q + torch.distributions.Normal(0.0, math.sqrt(0.1)).log_prob(xi).sum(1)
    log_q = log_q + torch.distributions.Normal(0.0, 1.2).log_prob(x).sum(1)
    assert_close(x.detach(), s.x0.detach(), "x0", 1e-7)
    assert_close(s.log_q.detach(), log_q.detach(), "log_q", 1e-6)


@pytest.mark.parametrize(
    ("dynamics", "wanted"),
    [
        (lambda: ade.Langevin(3, 0.25), 4.0),
        (lambda: ade.Langevin(3, 0.25, noise_std=0.1), 100.0),
        (lambda: ade.Langevin(2, 0.25, noise_std=torch.tensor([[0.1], [0.5]])), [100.0, 4.0]),
        (lambda: ade.Langevin(2, torch.tensor([0.2, 0.3])), 4.0),
        (lambda: ade.Sequential(ade.Langevin(1, 0.25), ade.Langevin(2, 0.5)), [4.0, 2.0, 2.0]),
        (lambda: ade.Leapfrog(3, 0.25), 1.0),
    ],
)
def test_default_momentum_weight(dynamics: Callable, wanted: float | list[float]) -> None:
    """1/σ² at initialisation, also after σ was learned."""
    layer = dynamics()
    sampler = ade.DualSampler(initial.Gaussian(2), layer)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(0.5)
    players = ade.ADE(ade.MLPPotential(2, hidden=(8,)), sampler)
    wanted = torch.tensor(wanted, dtype=DOUBLE)
    torch.testing.assert_close(players.momentum_weight, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(default_momentum_weight(sampler), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bound", ["elbo", "importance"])
def test_ade_trains_every_parameter(bound: str) -> None:
    potential = ade.MLPPotential(2, hidden=(32,), activation="silu")
    dynamics = ade.Langevin(3, 0.1, noise_std=0.3, learn_noise_std=True)
    players = ade.ADE(potential, ade.DualSampler(initial.PlanarFlow(2, 2, std=2.0), dynamics), bound=bound)
    before = {name: p.detach().clone() for name, p in players.named_parameters()}
    data = torch.randn(64, 2, generator=generator())
    for seed in range(2):
        metrics = players.step(data, generator=generator(seed))
    assert all(math.isfinite(value) for value in metrics.values())
    assert {"sampler.dynamics.step_size", "sampler.dynamics.log_noise_std"} <= set(before)
    for name, parameter in players.named_parameters():
        if name != f"potential.layers.{len(potential.layers) - 1}.bias":  # a constant of f
            assert not torch.equal(parameter, before[name]), name


def test_one_kind_of_momentum_in_a_sequence() -> None:
    with pytest.raises(ValueError, match="draws a momentum per step"):
        ade.Sequential(ade.Leapfrog(2), ade.Langevin(2)).momentum_shape((2,))


# --- Misuse --------------------------------------------------------------------------------------------------


def call(**changes: Any) -> ade.LangevinOutput:
    layer = ade.Langevin(3, 0.1).double()
    return layer(make_potential("silu"), changes.pop("x0", normal(4, 3, seed=1)), changes.pop("v0", None), **changes)


MISUSE = {
    "noise_std zero": (lambda: ade.Langevin(3, noise_std=0.0), ValueError, "noise_std must be positive, got 0.0"),
    "noise_std nan": (lambda: ade.Langevin(3, noise_std=math.nan), ValueError, "noise_std must be finite, got nan"),
    "noise_std text": (
        lambda: ade.Langevin(3, noise_std="1"),
        TypeError,
        "noise_std must be a number or a tensor, got str",
    ),
    "learn_noise_std number": (
        lambda: ade.Langevin(3, learn_noise_std=1),
        TypeError,
        "learn_noise_std must be True or False, got 1",
    ),
    "step_size negative": (lambda: ade.Langevin(3, -0.1), ValueError, "step_size must be positive, got -0.1"),
    "n_steps zero": (lambda: ade.Langevin(0), ValueError, "n_steps must be at least 1, got 0"),
    "shift_v number": (
        lambda: ade.Langevin(3, shift_v=1.0),
        TypeError,
        "shift_v must be None (identity) or a module, got float",
    ),
    "momentum_shape zero": (
        lambda: ade.Langevin(3, momentum_shape=0),
        ValueError,
        "momentum_shape must be a positive integer or a tuple of them, got 0",
    ),
    "noise_std of another event": (
        lambda: ade.Langevin(3, noise_std=torch.ones(4))(make_potential("silu"), normal(4, 3, seed=1)),
        ValueError,
        "noise_std must be a number or broadcast to the event (3,), with or without a leading axis of 3 steps, got "
        "shape (4,)",
    ),
    "noise_std of too few steps": (
        lambda: ade.Langevin(3, noise_std=torch.ones(2, 3))(make_potential("silu"), normal(4, 3, seed=1)),
        ValueError,
        "noise_std with one row per step must have 3 rows, got shape (2, 3)",
    ),
    "another momentum without g": (
        lambda: ade.Langevin(3, momentum_shape=2)(make_potential("silu"), normal(4, 3, seed=1)),
        ValueError,
        "shift_v must map between the event (3,) and the momentum (2,): the identity (None) does not",
    ),
    "g of another shape": (
        lambda: ade.Langevin(3, shift_v=lambda g, x: g[:, :2])(make_potential("silu"), normal(4, 3, seed=1)),
        ValueError,
        "shift_v must return shape (4, 3), got (4, 2)",
    ),
    "v0": (
        lambda: call(v0=torch.zeros(4, 3, dtype=DOUBLE)),
        ValueError,
        "v0 must be None: momenta are drawn at every step (noise= gives them)",
    ),
    "noise of another shape": (
        lambda: call(noise=torch.zeros(2, 4, 3, dtype=DOUBLE)),
        ValueError,
        "noise must have shape (3, 4, 3), (T, B, *momentum), got (2, 4, 3)",
    ),
    "noise of another dtype": (
        lambda: call(noise=torch.zeros(3, 4, 3)),
        TypeError,
        "noise must have x0's dtype torch.float64, got torch.float32",
    ),
    "noise no tensor": (lambda: call(noise=0.5), TypeError, "noise must be a tensor or None, got float"),
    "generator number": (
        lambda: call(generator=0),
        TypeError,
        "generator must be a torch.Generator or None, got int",
    ),
    "x0 of integers": (lambda: call(x0=torch.zeros(4, 3, dtype=torch.int64)), TypeError, "x0 must be float32"),
}


@pytest.mark.parametrize(("run", "error", "message"), MISUSE.values(), ids=MISUSE.keys())
def test_misuse_of_the_layer(run: Callable, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        run()
    assert str(caught.value).startswith("Langevin: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"noise_std": -1.0}, ValueError, "langevin: noise_std must be positive, got -1.0"),
        ({"noise_std": torch.ones(2, dtype=torch.bool)}, TypeError, "langevin: noise_std must be real"),
        ({"shift_x": 0}, TypeError, "langevin: shift_x must be None (identity) or a module, got int"),
        ({"damping": 0.5}, TypeError, "langevin: unknown option 'damping'"),
    ],
)
def test_misuse_of_the_functional_form(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        functional.langevin(lambda x: x.sum(1), torch.zeros(2, 3), 0.1, 2, **changes)
    assert message in str(caught.value)


def test_a_step_size_below_zero_has_no_noise():
    layer = ade.Langevin(2, 0.1)
    with torch.no_grad():
        layer.step_size.fill_(-0.1)
    with pytest.raises(ValueError, match="Langevin: noise_std must be positive, got nan: without noise_std="):
        layer(ade.MLPPotential(2, (32,)), torch.randn(3, 2))


def test_a_trained_model_weighs_the_momenta_as_its_run_did(tmp_path):
    settings = {"hidden": (32, 32), "updates": 2, "test_likelihood_samples": 500, "test_permutations": 10}
    config = ade.training.Config(dynamics="langevin", noise_std=0.2, learn_noise_std=True, sampler_lr=0.1, **settings)
    ade.training.train(config, tmp_path, progress=False)
    torch.testing.assert_close(ade.load(tmp_path).momentum_weight.item(), 25.0, rtol=1e-6, atol=0)

"""Annealed leapfrog against reference.py in float64, its weights against closed forms, and inside the dual sampler."""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import DOUBLE, POTENTIALS, assert_close, covering, make_potential, normal, row_id
from torch import Tensor, nn
from torch.distributions import Normal

import ade_fast as ade
from ade_fast import functional, initial, reference
from ade_fast.weights import effective_sample_size

BATCH = 5
CLIPS = {"unclipped": None, "value": ade.Clip.value(0.4), "norm": ade.Clip.norm(0.6)}
STEPS = ("scalar", "per_dim", "per_step", "per_step_per_dim")


@pytest.fixture(autouse=True)
def _own_randomness():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arguments(event: tuple[int, ...], n_steps: int, step: str = "per_step_per_dim") -> dict[str, Tensor]:
    """Everything that receives a gradient, float64, all different."""
    shape = {
        "scalar": (),
        "per_dim": event,
        "per_step": (n_steps, *(1 for _ in event)),
        "per_step_per_dim": (n_steps, *event),
    }[step]
    return {
        "x0": normal(BATCH, *event, seed=1),
        "v0": normal(BATCH, *event, seed=2),
        "step_size": 0.1 + 0.2 * torch.rand(shape, dtype=DOUBLE, generator=generator(3)),
        "mean": normal(*event, seed=4),
        "std": 0.7 + torch.rand(event, dtype=DOUBLE, generator=generator(5)),
        "noise": normal(n_steps - 1, BATCH, *event, seed=6),
        "refresh": torch.tensor(0.35, dtype=DOUBLE),
        "bridges": torch.linspace(0.3, 1.0, n_steps, dtype=DOUBLE) if n_steps > 1 else torch.ones(1, dtype=DOUBLE),
    }


def fast(potential: Callable, given: dict[str, Tensor], n_steps: int, **options: Any) -> tuple[Tensor, ...]:
    rest = {name: given[name] for name in ("refresh", "bridges", "noise")}
    return functional.annealed_leapfrog(
        potential, given["x0"], given["v0"], given["step_size"], n_steps, initial=(given["mean"], given["std"]),
        **rest, **options,
    )  # fmt: skip


def specified(potential: Callable, given: dict[str, Tensor], n_steps: int, **options: Any) -> tuple[Tensor, ...]:
    rest = {name: given[name] for name in ("refresh", "bridges")}
    return reference.annealed_leapfrog(
        potential, given["x0"], given["v0"], given["step_size"], n_steps, given["mean"], given["std"], given["noise"],
        **rest, **options,
    )  # fmt: skip


def pulled(outputs: tuple[Tensor, ...], wanted: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """Gradients of one fixed random functional of all outputs; None where an input is not reached."""
    total = sum((out * normal(*out.shape, seed=70 + i)).sum() for i, out in enumerate(outputs) if out.requires_grad)
    return dict(zip(wanted, torch.autograd.grad(total, list(wanted.values()), allow_unused=True), strict=True))


def assert_same(
    potential: nn.Module, given: dict[str, Tensor], n_steps: int, memory: str = "auto", **options: Any
) -> None:
    """Outputs and all gradients of the functional form and of the reference, to 1e-10."""
    mirror = copy.deepcopy(potential)
    ours, theirs = ({k: t.clone().requires_grad_() for k, t in given.items()} for _ in range(2))
    actual = fast(potential, ours, n_steps, memory=memory, **options)
    with torch.nn.utils.parametrize.cached():  # one set of effective weights per unroll
        expected = specified(mirror, theirs, n_steps, **options)
        if options.get("gradient") != "none":
            theirs |= {f"f.{n}": p for n, p in mirror.named_parameters()}
            expected_gradients = pulled(expected, theirs)
    for name, a, e in zip(("x", "v", "log_det", "log_noise"), actual, expected, strict=True):
        assert_close(a.detach(), e.detach(), name)
    if options.get("gradient") == "none":
        assert not any(out.requires_grad for out in actual)
        return
    ours |= {f"f.{n}": p for n, p in potential.named_parameters()}
    actual_gradients = pulled(actual, ours)
    for name in ours:
        assert_close(actual_gradients[name], expected_gradients[name], f"gradient of {name}")
    assert actual_gradients["x0"].abs().max() > 0


# --- The unroll is the reference's ---------------------------------------------------------------------------

GRID = covering(
    {
        "name": tuple(POTENTIALS),
        "clip": tuple(CLIPS),
        "step": STEPS,
        "memory": ("graph", "states", "auto"),
        "gradient": ("full", "truncated", "stopped", "none"),
        "n_steps": (1, 2, 4),
    },
    strength=2,
)


@pytest.mark.parametrize("row", GRID, ids=row_id)
def test_agreement(row: dict[str, Any]) -> None:
    given = arguments(POTENTIALS[row["name"]].event, row["n_steps"], row["step"])
    assert_same(
        make_potential(row["name"]), given, row["n_steps"], row["memory"], grad_clip=CLIPS[row["clip"]],
        gradient=row["gradient"],
    )  # fmt: skip


FUSED = covering(
    {
        "activation": ("relu", "silu", "softplus"),
        "clip": tuple(CLIPS),
        "step": STEPS,
        "memory": ("graph", "states", "auto"),
        "gradient": ("full", "truncated", "stopped", "none"),
        "n_steps": (1, 2, 5),
        "base": (False, True),
    },
    strength=2,
)


@pytest.mark.parametrize("row", FUSED, ids=row_id)
def test_the_fused_kernels_agree(row: dict[str, Any]) -> None:
    """With the general path, which a lambda takes, and with the reference."""
    potential = ade.MLPPotential(3, hidden=(32, 32), activation=row["activation"]).double()
    if row["base"]:
        potential = ade.WithBase(potential, normal(3, seed=12), torch.tensor(1.7, dtype=DOUBLE))
    n_steps = row["n_steps"]
    given = arguments((3,), n_steps, row["step"])
    noise = given.pop("noise")
    leaves = [{k: t.clone().requires_grad_() for k, t in given.items()} for _ in range(3)]
    options = {"grad_clip": CLIPS[row["clip"]], "gradient": row["gradient"]}
    results = [
        run(f, own | {"noise": noise}, n_steps, **options)
        for own, run, f, options in zip(
            leaves,
            (fast, fast, specified),
            (potential, lambda x: potential(x), potential),
            (options | {"memory": row["memory"]}, options, options),
            strict=True,
        )
    ]
    parameters = {f"f.{n}": p for n, p in potential.named_parameters()}
    differentiable = row["gradient"] != "none"
    gradients = [pulled(r, own | parameters) for r, own in zip(results, leaves, strict=True)] if differentiable else []
    for result in results[1:]:
        for name, a, e in zip(("x", "v", "log_det", "log_noise"), results[0], result, strict=True):
            assert_close(a.detach(), e.detach(), name)
    for expected in gradients[1:]:
        for name in expected:
            assert_close(gradients[0][name], expected[name], f"gradient of {name}")


def test_an_mlp_takes_the_fused_kernels() -> None:
    layer, x0 = ade.AnnealedLeapfrog(3, 0.2), torch.zeros(4, 3)
    potential = ade.MLPPotential(3, hidden=(32, 32))
    layer(potential, x0, initial=(0.0, 1.0))
    assert layer.last_plan.field == "mlp"
    noise = torch.zeros(2, 4, 3, requires_grad=True)
    with pytest.warns(ade.SlowPathWarning, match="AnnealedLeapfrog: the fused MLP kernels do not anneal by noise that"):
        layer(potential, x0, initial=(0.0, 1.0), noise=noise).x.sum().backward()
    assert layer.last_plan.field != "mlp" and noise.grad.abs().max() > 0


def test_full_refreshment_in_the_fused_kernels() -> None:
    potential, given = ade.MLPPotential(3, hidden=(32,), activation="silu").double(), arguments((3,), 4)
    given["refresh"] = torch.ones((), dtype=DOUBLE)
    wanted = {name: given[name].requires_grad_() for name in ("x0", "v0", "step_size", "mean", "std", "bridges")}
    actual, expected = (run(potential, given, 4) for run in (fast, specified))
    for name, a, e in zip(("x", "v", "log_det", "log_noise"), actual, expected, strict=True):
        assert_close(a.detach(), e.detach(), name)
    ours, theirs = pulled(actual, wanted), pulled(expected, wanted)
    for name in wanted:
        assert_close(ours[name], theirs[name], name)


@pytest.mark.parametrize("gradient", ["full", "truncated", "stopped"])
@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("name", ["silu", "relu"])
def test_potentials_on_a_base(name: str, memory: str, gradient: str) -> None:
    potential = ade.WithBase(make_potential(name), normal(3, seed=12), torch.tensor(1.7, dtype=DOUBLE))
    given = arguments((3,), 4)
    assert_same(potential, given, 4, memory, gradient=gradient, grad_clip=CLIPS["norm"])
    layer = ade.AnnealedLeapfrog(3, 0.2).double()
    layer(potential, given["x0"], initial=(0.0, 1.0))
    assert layer.last_plan.piecewise_linear == (name == "relu")


def test_full_refreshment_agrees() -> None:
    given = arguments((3,), 4)
    potential = make_potential("silu")
    refresh = given.pop("refresh")
    outputs = fast(potential, given | {"refresh": torch.ones_like(refresh)}, 4)
    expected = specified(potential, given | {"refresh": 1.0}, 4)
    for name, a, e in zip(("x", "v", "log_det", "log_noise"), outputs, expected, strict=True):
        assert_close(a, e, name)


def test_the_layer_is_the_reference_with_its_own_parameters() -> None:
    layer = ade.AnnealedLeapfrog(4, normal(4, 3, seed=8).abs() * 0.1 + 0.1, refresh=0.3, bridges=[0.1, 0.4, 0.6, 1.0])
    start = initial.Gaussian(3, normal(3, seed=9).exp(), normal(3, seed=10), learnable=True)
    potential, given = make_potential("silu"), arguments((3,), 4)
    outputs = layer(potential, given["x0"], given["v0"], initial=start, noise=given["noise"])
    r, logits = layer.refresh_logit.sigmoid(), layer.bridge_logits
    beta = torch.cat([(logits.exp() / logits.exp().sum()).cumsum(0)[:-1], logits.new_ones(1)])
    assert_close(layer.bridges.detach(), torch.tensor([0.1, 0.4, 0.6, 1.0], dtype=DOUBLE), "bridges")
    expected = specified(
        potential,
        given | {"step_size": layer.step_size, "mean": start.mean, "std": start.log_std.exp()}
        | {"refresh": r, "bridges": beta},
        4,
    )  # fmt: skip
    wanted = dict(layer.named_parameters()) | dict(start.named_parameters()) | dict(potential.named_parameters())
    assert list(wanted)[:3] == ["step_size", "refresh_logit", "bridge_logits"]
    actual_gradients, expected_gradients = pulled(outputs, wanted), pulled(expected, wanted)
    for name in wanted:
        assert_close(actual_gradients[name], expected_gradients[name], name)
        assert name == "4.bias" or actual_gradients[name].abs().max() > 0  # f's constant has no force


def test_gradcheck() -> None:
    given = arguments((2,), 3)
    potential = nn.Sequential(nn.Linear(2, 4, dtype=DOUBLE), nn.Tanh(), nn.Linear(4, 1, dtype=DOUBLE))
    tensors = [t.requires_grad_() for t in given.values()]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        return fast(potential, dict(zip(given, values, strict=True)), 3, grad_clip=ade.Clip.norm(1.0))

    assert torch.autograd.gradcheck(run, tensors)


@pytest.mark.parametrize("passed", [True, False], ids=["context", "captured"])
@pytest.mark.parametrize("gradient", ["full", "truncated", "stopped"])
def test_gradients_reach_what_the_potential_captured(passed: bool, gradient: str) -> None:
    given, weight = arguments((3,), 3), normal(3, seed=11)

    def total(run: Callable, **options: Any) -> tuple[Tensor, ...]:
        leaf = weight.clone().requires_grad_()
        shift = leaf.sin()
        x0 = given["x0"].clone().requires_grad_()
        if passed and run is fast:
            options["context"] = shift
        cut = shift.detach() if gradient != "full" else shift

        def potential(x: Tensor) -> Tensor:
            return -((x - (cut if run is specified else shift)).square() + (x * 2).cos()).sum(1)

        mode = "full" if gradient == "truncated" and run is specified else gradient
        out = run(potential, given | {"x0": x0}, 3, gradient=mode, **options)
        gradients = pulled(out, {"x0": x0, "leaf": leaf})
        return *out, gradients["x0"], gradients["leaf"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ade.SlowPathWarning)
        actual = total(fast)
    for i, (a, e) in enumerate(zip(actual, total(specified), strict=True)):
        assert_close(None if a is None else a.detach(), None if e is None else e.detach(), str(i))


def test_both_memory_plans_give_the_same_bits() -> None:
    potential, given = make_potential("silu"), arguments((3,), 4)
    results = []
    for memory in ("graph", "states"):
        leaves = {k: t.clone().requires_grad_() for k, t in given.items()}
        out = fast(potential, leaves, 4, memory=memory)
        results.append([*out, *pulled(out, leaves).values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_other_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    potential, given = make_potential("silu"), arguments((3,), 4)
    exact = fast(potential, given, 4)
    leaves = {k: t.to(dtype if k in ("x0", "v0", "noise") else torch.float32) for k, t in given.items()}
    leaves = {k: t.requires_grad_() for k, t in leaves.items()}
    out = fast(copy.deepcopy(potential).to(dtype), leaves, 4)
    assert [t.dtype for t in out] == [dtype, dtype, torch.float32, torch.float32]
    for a, e in zip(out, exact, strict=True):
        assert (a.double() - e).abs().max() <= tolerance * max(1.0, e.abs().max().item())
    gradients = pulled(out, leaves)
    assert all(gradients[name].dtype == leaf.dtype for name, leaf in leaves.items())


def test_channels_last_stays_so() -> None:
    given = arguments((2, 4, 4), 3)
    last = {k: t.to(memory_format=torch.channels_last) if k in ("x0", "v0") else t for k, t in given.items()}
    potential = make_potential("leaky_cnn")
    out, expected = fast(potential, last, 3), fast(potential, given, 3)
    assert out[0].is_contiguous(memory_format=torch.channels_last)
    for a, e in zip(out, expected, strict=True):
        assert_close(a.detach(), e.detach(), "channels last")


def test_without_autograd() -> None:
    potential, given = make_potential("relu"), arguments((3,), 3)
    expected = fast(potential, given, 3)
    with torch.no_grad():
        assert all(torch.equal(a, e) for a, e in zip(fast(potential, given, 3), expected, strict=True))
    with torch.inference_mode():
        assert all(torch.equal(a, e) for a, e in zip(fast(potential, given, 3), expected, strict=True))


# --- Weights -------------------------------------------------------------------------------------------------


class Bumps(nn.Module):
    """log of two Gaussians' unnormalised sum in two dimensions; Z = 2 π (s₁² + s₂²)."""

    means, stds = torch.tensor([[2.0, 0.0], [-1.5, 1.0]], dtype=DOUBLE), torch.tensor([0.5, 0.8], dtype=DOUBLE)
    log_z = math.log(2 * math.pi * stds.square().sum())

    def forward(self, x: Tensor) -> Tensor:
        square = (x.unsqueeze(1) - self.means).square().sum(2)
        return (-square / (2 * self.stds**2)).logsumexp(1)


def weights_of(sampler: ade.DualSampler, potential: Callable, n: int, seed: int = 0) -> Tensor:
    with torch.no_grad():
        s = sampler.sample(potential, n, generator(seed))
        return potential(s.x).reshape(n) - s.v.square().sum(1) / 2 - s.log_q


def assert_unbiased(log_w: Tensor, log_z: float) -> None:
    """mean w is Z (2π)^{d/2} within four standard errors."""
    w = (log_w - log_z - math.log(2 * math.pi)).exp()
    error = w.std() / len(w) ** 0.5
    assert error < 0.05, "too rough to tell"
    assert abs(w.mean() - 1) < 4 * error


@pytest.mark.parametrize("refresh", [0.2, 1.0])
@pytest.mark.parametrize("n_steps", [1, 2, 6])
@pytest.mark.parametrize("clip", [None, ade.Clip.norm(0.7)])
def test_weights_are_unbiased(refresh: float, n_steps: int, clip: Any) -> None:
    layer = ade.AnnealedLeapfrog(n_steps, torch.tensor([0.4, 0.2], dtype=DOUBLE), refresh=refresh, grad_clip=clip)
    sampler = ade.DualSampler(initial.Gaussian(2, torch.tensor(2.5, dtype=DOUBLE)), layer)
    assert_unbiased(weights_of(sampler, Bumps(), 20_000), Bumps.log_z)


def test_the_density_is_that_of_the_path() -> None:
    """log q^T by the densities of each refresh and of its reversal, on states that plain leapfrog code visits."""
    n_steps, eta, r, mean, std = 5, 0.3, 0.35, normal(2, seed=1), normal(2, seed=2).exp()
    potential, noise = Bumps(), normal(n_steps - 1, 7, 2, seed=3)
    x, v = mean + std * normal(7, 2, seed=4), normal(7, 2, seed=5)
    out = functional.annealed_leapfrog(
        potential, x, v, eta, n_steps, initial=(mean, std), refresh=r, noise=noise
    )  # fmt: skip
    log_q = torch.zeros(7, dtype=DOUBLE)
    for t in range(n_steps):
        beta = (t + 1) / n_steps
        x = x + eta / 2 * v
        point = x.clone().requires_grad_()
        bridge = beta * potential(point).sum() + (1 - beta) * Normal(mean, std).log_prob(point).sum()
        v = v + eta * torch.autograd.grad(bridge, point)[0]
        x = x + eta / 2 * v
        if t < n_steps - 1:
            after = math.sqrt(1 - r) * v + math.sqrt(r) * noise[t]
            forward, backward = Normal(math.sqrt(1 - r) * v, math.sqrt(r)), Normal(math.sqrt(1 - r) * after, r**0.5)
            log_q = log_q + (forward.log_prob(after) - backward.log_prob(v)).sum(1)
            v = after
    assert_close(out.x, x, "x")
    assert_close(out.v, v, "v")
    assert_close(out.log_noise, log_q, "log_noise")


@pytest.mark.parametrize("refresh", [0.2, 1.0])
def test_weights_even_out_as_steps_grow(refresh: float) -> None:
    """Towards a Gaussian from a wider one: the effective sample size rises to 1 with T, at fixed step sizes."""

    def target(x: Tensor) -> Tensor:
        return -x.square().sum(1) / 2

    sizes = []
    for n_steps in (1, 10, 100, 800):
        layer = ade.AnnealedLeapfrog(n_steps, 0.4, refresh=refresh)
        sampler = ade.DualSampler(initial.Gaussian(2, torch.tensor(2.0, dtype=DOUBLE)), layer)
        sizes.append(effective_sample_size(weights_of(sampler, target, 1_000)).item())
    assert sizes == sorted(sizes) and sizes[0] < 0.5 and sizes[-1] > 0.9, sizes


# --- In the dual sampler -------------------------------------------------------------------------------------


def flow(name: str) -> initial.Flow:
    """A flow in float64 that is far from the identity and wider than the target."""
    if name == "spline":
        pytest.importorskip("zuko")
    made = {
        "planar": lambda: initial.PlanarFlow(2, 4, std=2.0),
        "mlp": lambda: initial.MLPGaussian(2, 16),
        "spline": lambda: initial.SplineFlow(2, 2, (16,)),
    }[name]().double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_((0.1 if name == "spline" else 0.3) * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("name", ["planar", "mlp", "spline"])
def test_flows_are_annealed_in_their_base(name: str) -> None:
    """Sample, densities and all gradients are those of the reference on f(g(u)) + log|det ∂g/∂u|, mapped by g."""
    q, potential, n_steps = flow(name), make_potential("quadratic"), 4
    potential = nn.Sequential(nn.Linear(2, 3, dtype=DOUBLE), potential)
    layer = ade.AnnealedLeapfrog(n_steps, torch.tensor([0.2, 0.3], dtype=DOUBLE), refresh=0.4)
    s = ade.DualSampler(q, layer).sample(potential, 6, generator(1))
    noises = generator(1)
    u0, v0 = (torch.randn((6, 2), dtype=DOUBLE, generator=noises) for _ in range(2))
    noise = torch.randn((n_steps - 1, 6, 2), dtype=DOUBLE, generator=noises)
    u0 = u0 * q.std

    def seen(u: Tensor) -> Tensor:
        x, log_det = q.transform(u)
        return potential(x).reshape(len(x)) + log_det

    std = torch.full((2,), q.std, dtype=DOUBLE)
    u, v, _, log_noise = reference.annealed_leapfrog(
        seen, u0, v0, layer.step_size, n_steps, torch.zeros(2, dtype=DOUBLE), std, noise, refresh=layer.refresh,
        bridges=layer.bridges,
    )  # fmt: skip
    (x, log_det), (x0, log_det0) = q.transform(u), q.transform(u0)
    log_q0 = Normal(0.0, std).log_prob(u0).sum(1) + Normal(0.0, 1.0).log_prob(v0).sum(1) - log_det0
    expected = (x, v, log_q0 + log_det0 + log_noise - log_det, x0, v0, log_q0)
    for what, a, e in zip(s._fields, s, expected, strict=True):
        assert_close(a.detach(), e.detach(), what)
    wanted = {f"{i}.{n}": p for i, m in enumerate((q, potential, layer)) for n, p in m.named_parameters()}
    actual_gradients, expected_gradients = pulled(tuple(s), wanted), pulled(expected, wanted)
    for what in wanted:
        assert_close(actual_gradients[what], expected_gradients[what], what)


@pytest.mark.parametrize("name", ["planar", "mlp", "spline"])
def test_flows_start_where_they_start_without_a_dynamics(name: str) -> None:
    q = flow(name)
    s = ade.DualSampler(q, ade.AnnealedLeapfrog(3, 0.1)).sample(Bumps(), 6, generator())
    x, v, log_q = q.sample(6, (2,), generator())
    for what, a, e in (("x0", s.x0, x), ("v0", s.v0, v), ("log_q0", s.log_q0, log_q)):
        assert_close(a.detach(), e.detach(), what)


@pytest.mark.parametrize("name", ["planar", "mlp", "spline"])
def test_weights_of_flows_are_unbiased(name: str) -> None:
    width = 0.6

    def potential(x: Tensor) -> Tensor:
        return -((x - 0.3) / width).square().sum(1) / 2

    sampler = ade.DualSampler(flow(name), ade.AnnealedLeapfrog(4, torch.tensor(0.25, dtype=DOUBLE), refresh=0.5))
    assert_unbiased(weights_of(sampler, potential, 20_000), math.log(2 * math.pi * width**2))


def test_momenta_of_their_own_distribution() -> None:
    """q⁰'s momentum need not be N(0, I): weights stay unbiased."""
    momentum = initial.Gaussian(2, torch.tensor(1.4, dtype=DOUBLE), mean=0.3)
    for q in (initial.Gaussian(2, torch.tensor(2.5, dtype=DOUBLE), momentum=momentum), flow("planar")):
        q.momentum = momentum
        sampler = ade.DualSampler(q, ade.AnnealedLeapfrog(4, torch.tensor(0.3, dtype=DOUBLE)))
        assert_unbiased(weights_of(sampler, Bumps(), 20_000), Bumps.log_z)


def test_context_goes_through_a_flow() -> None:
    q, leaf = flow("planar"), normal(2, seed=1).requires_grad_()
    sampler = ade.DualSampler(q, ade.AnnealedLeapfrog(3, torch.tensor(0.2, dtype=DOUBLE)))
    results = []
    for passed in (True, False):
        shift = leaf.sin()
        with warnings.catch_warnings():
            warnings.simplefilter("error" if passed else "ignore", ade.SlowPathWarning)
            s = sampler.sample(
                lambda x, shift=shift: -(x - shift).square().sum(1), 4, generator(), (shift,) if passed else None
            )
        wanted = {"leaf": leaf} | dict(q.named_parameters())
        results.append(pulled(tuple(s), wanted))
    for name in results[0]:
        assert_close(results[0][name], results[1][name], name)
    assert results[0]["leaf"].abs().max() > 0


@pytest.mark.parametrize("start", ["gaussian", "planar"])
def test_ade_trains_every_parameter(start: str) -> None:
    q = initial.Gaussian(2, 2.0, learnable=True) if start == "gaussian" else initial.PlanarFlow(2, 4, std=2.0)
    potential = ade.MLPPotential(2, hidden=(32,), activation="silu")
    sampler = ade.DualSampler(q, ade.AnnealedLeapfrog(4, 0.2))
    players = ade.ADE(potential, sampler, bound="importance", sampler_bound="renyi")
    data = torch.randn(64, 2, generator=generator())
    before = {name: p.detach().clone() for name, p in players.named_parameters()}
    for seed in range(2):
        metrics = players.step(data, generator=generator(seed))
    assert all(math.isfinite(value) for value in metrics.values())
    assert {"sampler.dynamics.step_size", "sampler.dynamics.refresh_logit", "sampler.dynamics.bridge_logits"} <= set(
        before
    )
    for name, parameter in players.named_parameters():
        if name != f"potential.layers.{len(potential.layers) - 1}.bias":  # a constant of f
            assert not torch.equal(parameter, before[name]), name


# --- Noise, state, options -----------------------------------------------------------------------------------


def test_noise_comes_from_the_generator_or_as_given() -> None:
    layer, potential, x0 = ade.AnnealedLeapfrog(3, 0.2).double(), make_potential("silu"), normal(4, 3, seed=1)
    before = torch.random.get_rng_state()
    first, again, other = (layer(potential, x0, initial=(0.0, 1.0), generator=generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.x, other.x)
    source = generator(0)
    v0 = torch.randn(4, 3, dtype=DOUBLE, generator=source)
    noise = torch.randn(2, 4, 3, dtype=DOUBLE, generator=source)
    given = layer(potential, x0, v0, initial=(0.0, 1.0), noise=noise)
    assert all(torch.equal(a, b) for a, b in zip(first, given, strict=True))


def test_parameters_and_state() -> None:
    layer = ade.AnnealedLeapfrog(4, 0.2, refresh=0.3)
    assert [name for name, _ in layer.named_parameters()] == ["step_size", "refresh_logit", "bridge_logits"]
    assert layer.bridges[-1] == 1 and torch.allclose(layer.bridges, torch.tensor([0.25, 0.5, 0.75, 1.0]))
    assert torch.allclose(layer.refresh, torch.tensor(0.3))
    fixed = ade.AnnealedLeapfrog(4, 0.1, refresh=0.7, learn_step_size=False, learn_refresh=False, learn_bridges=False)
    assert not list(fixed.parameters()) and set(fixed.state_dict()) == set(layer.state_dict())
    fixed.load_state_dict(layer.state_dict())
    assert torch.equal(fixed.refresh, layer.refresh) and torch.equal(fixed.bridges, layer.bridges)
    full = ade.AnnealedLeapfrog(4, 0.1, refresh=1)
    assert [name for name, _ in full.named_parameters()] == ["step_size", "bridge_logits"] and full.refresh == 1
    assert "n_steps=4" in repr(layer) and "refresh=0.3" in repr(layer)
    assert ade.DualSampler(initial.Gaussian(3), layer).dynamics.momentum_shape((3,)) == (3,)


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_a_saturated_refresh_has_no_nan(logit: float) -> None:
    layer = ade.AnnealedLeapfrog(3, 0.2)
    with torch.no_grad():
        layer.refresh_logit.fill_(logit)
    out = layer(make_potential("silu").float(), torch.ones(2, 3), initial=(0.0, 1.0))
    (out.x.sum() + out.log_noise.sum()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())


def test_plan_is_told() -> None:
    layer = ade.AnnealedLeapfrog(3, 0.2, memory="states").double()
    layer(make_potential("leaky_cnn"), normal(2, 2, 4, 4, seed=1), initial=(0.0, 1.0))
    assert layer.last_plan.memory == "states" and layer.last_plan.piecewise_linear


def test_check_finite_names_the_step() -> None:
    layer = ade.AnnealedLeapfrog(4, 0.5, check_finite=True).double()

    def potential(x: Tensor) -> Tensor:
        return (x.square().sum(1) * 1e200).square()

    with pytest.raises(ade.NonFiniteError, match="AnnealedLeapfrog: a state is not finite after step 1 of 4"):
        layer(potential, normal(2, 3, seed=1), initial=(0.0, 1.0))


def test_check_potential_probes() -> None:
    layer = ade.AnnealedLeapfrog(2, 0.1, check_potential=True).double()
    with pytest.raises(ValueError, match="AnnealedLeapfrog: potential"):
        layer(lambda x: (x - x.mean(0)).square().sum(1), normal(3, 2, seed=1), initial=(0.0, 1.0))


# --- Misuse --------------------------------------------------------------------------------------------------


def call(**changes: Any) -> ade.AnnealedOutput:
    given = {"initial": (0.0, 1.0)} | changes
    layer = ade.AnnealedLeapfrog(3, 0.1).double()
    return layer(make_potential("silu"), given.pop("x0", normal(4, 3, seed=1)), given.pop("v0", None), **given)


MISUSE = {
    "refresh zero": (lambda: ade.AnnealedLeapfrog(3, refresh=0.0), ValueError, "refresh must be in (0, 1], got 0.0"),
    "refresh above one": (lambda: ade.AnnealedLeapfrog(3, refresh=2), ValueError, "refresh must be in (0, 1], got 2"),
    "refresh text": (lambda: ade.AnnealedLeapfrog(3, refresh="1"), TypeError, "refresh must be a number, got str"),
    "bridges too many": (
        lambda: ade.AnnealedLeapfrog(2, bridges=[0.2, 0.5, 1.0]),
        ValueError,
        "bridges must have one entry per step, shape (2,), got (3,)",
    ),
    "bridges falling": (
        lambda: ade.AnnealedLeapfrog(3, bridges=[0.5, 0.4, 1.0]),
        ValueError,
        "bridges must increase from above 0 to 1, got [0.5, 0.4, 1.0]",
    ),
    "bridges short of one": (
        lambda: ade.AnnealedLeapfrog(2, bridges=torch.tensor([0.2, 0.9])),
        ValueError,
        "bridges must increase from above 0 to 1",
    ),
    "bridges text": (lambda: ade.AnnealedLeapfrog(2, bridges="even"), TypeError, "bridges must be 2 numbers or None"),
    "no initial": (
        lambda: call(initial=None),
        TypeError,
        "initial must be given: the Gaussian that the bridges start at",
    ),
    "initial without std": (
        lambda: call(initial=initial.PlanarFlow(3)),
        TypeError,
        "initial must be a Gaussian with .mean and .log_std (or .std), or a pair (mean, std), got PlanarFlow",
    ),
    "std zero": (lambda: call(initial=(0.0, 0.0)), ValueError, "initial's std must be positive, got 0.0"),
    "mean text": (lambda: call(initial=("0", 1.0)), TypeError, "initial's mean must be a number or a tensor, got str"),
    "mean of another event": (
        lambda: call(initial=(torch.zeros(4), 1.0)),
        ValueError,
        "initial's mean must broadcast to the event (3,), got shape (4,)",
    ),
    "noise of another shape": (
        lambda: call(noise=torch.zeros(3, 4, 3, dtype=DOUBLE)),
        ValueError,
        "noise must have shape (2, 4, 3), (T - 1, *x0.shape), got (3, 4, 3)",
    ),
    "noise of another dtype": (
        lambda: call(noise=torch.zeros(2, 4, 3)),
        TypeError,
        "noise must have x0's dtype torch.float64, got torch.float32",
    ),
    "noise no tensor": (lambda: call(noise=0.5), TypeError, "noise must be a tensor or None, got float"),
    "generator number": (
        lambda: call(v0=torch.zeros(4, 3, dtype=DOUBLE), generator=0),
        TypeError,
        "generator must be a torch.Generator or None, got int",
    ),
    "v0 of another shape": (
        lambda: call(v0=torch.zeros(4, 2, dtype=DOUBLE)),
        ValueError,
        "v0 must have x0's shape (4, 3), got (4, 2)",
    ),
}


@pytest.mark.parametrize(("run", "error", "message"), MISUSE.values(), ids=MISUSE.keys())
def test_misuse_of_the_layer(run: Callable, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        run()
    assert str(caught.value).startswith("AnnealedLeapfrog: ") and message in str(caught.value)


@pytest.mark.parametrize("option", ["momentum_clip", "sample_range"])
def test_options_that_would_spoil_the_weights_are_not_there(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        ade.AnnealedLeapfrog(3, **{option: None})
    x0 = torch.zeros(2, 3)
    with pytest.raises(TypeError, match=f"annealed_leapfrog: unknown option '{option}'"):
        functional.annealed_leapfrog(lambda x: x.sum(1), x0, None, 0.1, 3, initial=(0.0, 1.0), **{option: None})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"refresh": 0}, ValueError, "annealed_leapfrog: refresh must be in (0, 1], got 0"),
        ({"refresh": torch.ones(2)}, ValueError, "refresh must be a single number, got shape (2,)"),
        ({"bridges": [0.5, 1.0]}, TypeError, "bridges must be a tensor or None, got list"),
        ({"bridges": torch.ones(3)}, ValueError, "bridges must have shape (2,), one per step, got (3,)"),
    ],
)
def test_misuse_of_the_functional_form(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        functional.annealed_leapfrog(
            lambda x: x.sum(1), torch.zeros(2, 3), None, 0.1, 2, **{"initial": (0.0, 1.0)} | changes
        )
    assert message in str(caught.value)


def test_a_start_without_a_gaussian_is_refused() -> None:
    with pytest.raises(TypeError, match=r"DualSampler: AnnealedLeapfrog anneals from a Gaussian: .* got Empirical"):
        ade.DualSampler(initial.Empirical(torch.zeros(3, 2)), ade.AnnealedLeapfrog(2))

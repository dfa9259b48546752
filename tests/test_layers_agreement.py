"""Every layer and option against reference.py in float64, to 1e-10: outputs, log-dets, all gradients.

The grids are covering arrays (`cases.covering`): every combination of values of any three options occurs.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
from torch.nn.utils.parametrize import cached

import ade_fast as ade
from ade_fast import reference

N_STEPS = 3
MEMORIES = ("graph", "states", "auto")
GRADIENTS = ("full", "truncated", "stopped", "none")
STEPS = ("scalar", "per_dim", "per_step", "per_step_per_dim")
RANGES = ("open", "closed")
# (on the gradient, on the momentum)
CLIPS = {
    "unclipped": (None, None),
    "value": ("value", "value"),
    "norm": ("norm", "norm"),
    "value_norm": ("value", "norm"),
    "norm_none": ("norm", None),
}

Unroll = Callable[..., tuple[Tensor, Tensor, Tensor]]


def make_step(kind: str, event: Sequence[int], seed: int = 5) -> Tensor:
    """Step sizes in [0.1, 0.3], all different."""
    ones = (1,) * len(event)
    shape = {
        "scalar": (),
        "per_dim": tuple(event),
        "per_step": (N_STEPS, *ones),
        "per_step_per_dim": (N_STEPS, *event),
    }[kind]
    return 0.1 + 0.2 * torch.rand(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def clip_that_acts(mode: str | None, on: Tensor) -> Any:
    """A clip with its bound amid `on`'s values or norms, so that it acts on some and not on others."""
    if mode is None:
        return None
    sizes = on.abs().flatten() if mode == "value" else on.flatten(1).norm(dim=1)
    return getattr(ade.Clip, mode)(1.03 * sizes.median().item())


def force_at(potential: nn.Module, x: Tensor) -> Tensor:
    """∇f(x) without touching the potential (spectral norm's buffers included)."""
    return reference.gradient_field(copy.deepcopy(potential).eval(), x).detach()


@dataclass
class Problem:
    """One potential with its inputs, and the options common to all dynamics."""

    potential: nn.Module
    x0: Tensor
    v0: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        clips: str = "unclipped",
        sample_range: str = "open",
        batch: int = 5,
        momentum: tuple[int, ...] | None = None,
    ) -> "Problem":
        potential, event = make_potential(name), POTENTIALS[name].event
        x0, v0 = normal(batch, *event, seed=1), normal(batch, *(momentum or event), seed=2)
        on_grad, on_momentum = CLIPS[clips]
        options = {
            "grad_clip": clip_that_acts(on_grad, force_at(potential, x0)),
            "momentum_clip": clip_that_acts(on_momentum, v0),
            "sample_range": (-0.9, 0.8) if sample_range == "closed" else None,
        }
        return cls(potential, x0, v0, options)


def gradients_of(outputs: Sequence[Tensor], wanted: list[Tensor]) -> list[Tensor | None]:
    """Gradients of one fixed random functional of all outputs; None where an input is not reached."""
    total = sum(
        (out * normal(*out.shape, seed=70 + i).to(out)).sum() for i, out in enumerate(outputs) if out.requires_grad
    )
    return list(torch.autograd.grad(total, wanted, allow_unused=True))


def parameters_of(potential: Any, modules: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """All tensors that want a gradient, by name, of a potential and of the S and g given to a layer."""
    for name, part in {"potential": potential, **modules}.items():
        if isinstance(part, nn.Module):
            yield from ((f"{name}.{n}", p) for n, p in part.named_parameters())
        elif isinstance(part, nn.Parameter):
            yield name, part


def assert_agreement(
    layer: nn.Module,
    unroll: Unroll,
    problem: Problem,
    modules: dict[str, Any] | None = None,
    tolerance: float = 1e-10,
) -> None:
    """`layer` and `unroll(potential, x0, v0, step_size, **modules)` on the same numbers.

    The reference sees copies of the potential and of `modules` and the layer's own step sizes.
    """
    modules = modules or {}
    potential, x0, v0 = problem.potential, problem.x0, problem.v0
    mirror, mirror_modules = copy.deepcopy((potential, modules))
    steps = {n: p for n, p in layer.named_parameters() if n in ("step_size", "momentum_step_size")}
    mirror_steps = {n: p.detach().clone().requires_grad_() for n, p in steps.items()}

    x, v = x0.detach().clone().requires_grad_(), v0.detach().clone().requires_grad_()
    x_mirror, v_mirror = x0.detach().clone().requires_grad_(), v0.detach().clone().requires_grad_()
    actual = layer(potential, x, v)
    with cached():  # one set of effective weights per unroll
        expected = unroll(mirror, x_mirror, v_mirror, **mirror_steps, **mirror_modules)

    assert actual._fields[:3] == ("x", "v", "log_det")
    for name, a, e in zip(("x", "v", "log_det"), actual, expected, strict=True):
        assert_close(a.detach(), e.detach(), name, tolerance)

    wanted = {"x0": x, "v0": v, **steps, **dict(parameters_of(potential, modules))}
    mirrors = {
        "x0": x_mirror,
        "v0": v_mirror,
        **mirror_steps,
        **dict(parameters_of(mirror, mirror_modules)),
    }
    assert list(wanted) == list(mirrors)
    if not any(out.requires_grad for out in expected):  # gradient="none"
        assert not any(out.requires_grad for out in actual)
    else:
        assert_gradients_agree(actual, wanted, expected, mirrors, tolerance)
    for (name, buffer), mirrored in zip(potential.named_buffers(), mirror.buffers(), strict=True):
        assert_close(buffer, mirrored, f"buffer {name}", tolerance)


def assert_gradients_agree(
    actual: Sequence[Tensor],
    wanted: dict[str, Tensor],
    expected: Sequence[Tensor],
    mirrors: dict[str, Tensor],
    tolerance: float = 1e-10,
) -> None:
    a = gradients_of(actual, list(wanted.values()))
    e = gradients_of(expected, list(mirrors.values()))
    for name, one, other in zip(wanted, a, e, strict=True):
        assert_close(one, other, f"gradient of {name}", tolerance)


# --- Leapfrog -----------------------------------------------------------------------------------------------

LEAPFROG_GRID = covering(
    {
        "potential": list(POTENTIALS),
        "memory": MEMORIES,
        "gradient": GRADIENTS,
        "clips": list(CLIPS),
        "sample_range": RANGES,
        "step": STEPS,
    }
)


@pytest.mark.parametrize("row", LEAPFROG_GRID, ids=row_id)
def test_leapfrog(row: dict[str, str]) -> None:
    problem = Problem.of(row["potential"], row["clips"], row["sample_range"])
    step = make_step(row["step"], problem.x0.shape[1:])
    layer = ade.Leapfrog(N_STEPS, step, gradient=row["gradient"], memory=row["memory"], **problem.options).double()

    def unroll(potential: nn.Module, x0: Tensor, v0: Tensor, step_size: Tensor) -> tuple[Tensor, ...]:
        return reference.leapfrog(potential, x0, v0, step_size, N_STEPS, gradient=row["gradient"], **problem.options)

    assert_agreement(layer, unroll, problem)


# --- Damped leapfrog ----------------------------------------------------------------------------------------

DAMPED_GRID = covering(
    {
        "potential": list(POTENTIALS),
        "memory": MEMORIES,
        "gradient": GRADIENTS,
        "clips": list(CLIPS),
        "sample_range": RANGES,
        "step": STEPS,
        "damping_drift": ((0.5, 1.0), (0.9, 0.75)),
    }
)


@pytest.mark.parametrize("row", DAMPED_GRID, ids=row_id)
def test_damped_leapfrog(row: dict[str, Any]) -> None:
    problem = Problem.of(row["potential"], row["clips"], row["sample_range"])
    damping, drift_step = row["damping_drift"]
    step = make_step(row["step"], problem.x0.shape[1:])
    layer = ade.DampedLeapfrog(
        N_STEPS,
        step,
        damping,
        drift_step=drift_step,
        gradient=row["gradient"],
        memory=row["memory"],
        **problem.options,
    ).double()

    def unroll(potential: nn.Module, x0: Tensor, v0: Tensor, step_size: Tensor) -> tuple[Tensor, ...]:
        return reference.damped_leapfrog(
            potential,
            x0,
            v0,
            step_size,
            N_STEPS,
            damping,
            drift_step=drift_step,
            gradient=row["gradient"],
            **problem.options,
        )

    assert_agreement(layer, unroll, problem)


# --- Generalized leapfrog -----------------------------------------------------------------------------------

GENERALIZED_GRID = covering(
    {
        "potential": list(POTENTIALS),
        "memory": MEMORIES,
        "gradient": GRADIENTS,
        "clips": list(CLIPS),
        "sample_range": RANGES,
        "step": STEPS,
        "scale_v": ("none", "number", "tensor", "parameter", "per_step", "module"),
        "scale_x": ("none", "number", "tensor", "parameter", "per_step", "module"),
        "shift": ("none", "module"),
        "momentum": ("same", "latent"),
    }
)


def make_scale(kind: str, network: nn.Module, state: Sequence[int], seed: int) -> Any:
    """One S of each kind that the layer accepts."""
    return {
        "none": None,
        "number": 0.125,
        "tensor": normal(*state, seed=seed, scale=0.3),
        "parameter": nn.Parameter(normal(*state, seed=seed, scale=0.3)),
        "per_step": nn.Parameter(normal(N_STEPS, *state, seed=seed, scale=0.3)),
        "module": network,
    }[kind]


@pytest.mark.parametrize("row", GENERALIZED_GRID, ids=row_id)
def test_generalized_leapfrog(row: dict[str, str]) -> None:
    event = POTENTIALS[row["potential"]].event
    latent = row["momentum"] == "latent"
    momentum = (2,) if latent else event
    problem = Problem.of(row["potential"], row["clips"], row["sample_range"], momentum=momentum)
    shifted = latent or row["shift"] == "module"
    modules = {
        "scale_v": make_scale(row["scale_v"], KickNetwork(event, momentum, 0.3), momentum, 11),
        "scale_x": make_scale(row["scale_x"], DriftNetwork(momentum, event, 0.3), event, 12),
        "shift_v": KickNetwork(event, momentum, 1.0) if shifted else None,
        "shift_x": DriftNetwork(momentum, event, 1.0) if shifted else None,
    }
    step = {"step_size": make_step(row["step"], event)}
    if latent:
        step["momentum_step_size"] = make_step(row["step"], momentum, seed=6)
    layer = ade.GeneralizedLeapfrog(
        N_STEPS,
        **step,
        **modules,
        momentum_shape=momentum if latent else None,
        gradient=row["gradient"],
        memory=row["memory"],
        **problem.options,
    ).double()
    assert layer.momentum_shape(event) == momentum

    def unroll(potential: nn.Module, x0: Tensor, v0: Tensor, step_size: Tensor, **rest: Any) -> Any:
        return reference.generalized_leapfrog(
            potential, x0, v0, step_size, N_STEPS, gradient=row["gradient"], **rest, **problem.options
        )

    assert_agreement(layer, unroll, problem, modules)


def generalized(potential: nn.Module, x0: Tensor, v0: Tensor, step_size: Tensor, **modules: Any) -> Any:
    return reference.generalized_leapfrog(potential, x0, v0, step_size, N_STEPS, **modules)


def test_generalized_leapfrog_shared_scale_parameter_broadcasts() -> None:
    """A single nn.Parameter for S counts l (d) times in the log-det and collects l (d) gradients."""
    problem = Problem.of("silu")
    modules = {
        "scale_v": nn.Parameter(torch.tensor(0.1, dtype=DOUBLE)),
        "scale_x": nn.Parameter(torch.tensor([-0.3], dtype=DOUBLE)),
    }
    layer = ade.GeneralizedLeapfrog(N_STEPS, 0.2, **modules).double()

    assert_agreement(layer, generalized, problem, modules)
    out = layer(problem.potential, problem.x0, problem.v0)
    total = N_STEPS * 3 * (2 * 0.1 - 0.3)
    assert_close(out.log_det.detach(), torch.full((5,), total, dtype=DOUBLE), "log_det")


def test_constant_numbers_are_exact_in_float64() -> None:
    """S and the drift step are Python numbers: not rounded to float32 on their way to float64 states."""
    problem = Problem.of("silu")
    general = ade.GeneralizedLeapfrog(N_STEPS, 0.2, scale_v=0.1, scale_x=-0.3).double()
    out = general(problem.potential, problem.x0, problem.v0)
    total = N_STEPS * 3 * (2 * 0.1 - 0.3)
    assert_close(out.log_det.detach(), torch.full((5,), total, dtype=DOUBLE), "log_det", 1e-14)
    damped = ade.DampedLeapfrog(N_STEPS, 0.2, drift_step=0.7).double()

    def unroll(potential: nn.Module, x0: Tensor, v0: Tensor, step_size: Tensor) -> Any:
        return reference.damped_leapfrog(potential, x0, v0, step_size, N_STEPS, drift_step=0.7)

    assert_agreement(damped, unroll, problem)


def test_one_network_may_serve_twice() -> None:
    """The same module as S_v and g_v: its gradient is the sum of both roles."""
    problem = Problem.of("silu")
    network = KickNetwork((3,), (3,), 0.3)
    modules = {"scale_v": network, "shift_v": network}
    layer = ade.GeneralizedLeapfrog(N_STEPS, 0.2, **modules).double()

    assert_agreement(layer, generalized, problem, modules)


# --- Shapes, strides, dtypes --------------------------------------------------------------------------------

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "leapfrog": lambda **options: ade.Leapfrog(N_STEPS, 0.2, **options).double(),
    "generalized": lambda **options: ade.GeneralizedLeapfrog(
        N_STEPS, 0.2, scale_v=0.125, scale_x=-0.125, **options
    ).double(),
    "damped": lambda **options: ade.DampedLeapfrog(N_STEPS, 0.2, **options).double(),
}
UNROLLS: dict[str, Unroll] = {
    "leapfrog": lambda f, x, v, step_size, **options: reference.leapfrog(f, x, v, step_size, N_STEPS, **options),
    "generalized": lambda f, x, v, step_size, **options: reference.generalized_leapfrog(
        f, x, v, step_size, N_STEPS, scale_v=0.125, scale_x=-0.125, **options
    ),
    "damped": lambda f, x, v, step_size, **options: reference.damped_leapfrog(f, x, v, step_size, N_STEPS, **options),
}
every_dynamics = pytest.mark.parametrize("dynamics", list(LAYERS))
every_memory = pytest.mark.parametrize("memory", MEMORIES)


@every_dynamics
@every_memory
@pytest.mark.parametrize("layout", ["strided", "transposed", "expanded"])
@pytest.mark.parametrize("name", ["silu", "relu"])
def test_strides(dynamics: str, memory: str, layout: str, name: str) -> None:
    problem = Problem.of(name, "norm", "closed")
    if layout == "strided":
        x0, v0 = normal(10, 6, seed=1)[::2, ::2], normal(5, 6, seed=2)[:, 1::2]
    elif layout == "transposed":
        x0, v0 = normal(3, 5, seed=1).T, normal(3, 5, seed=2).T
    else:
        x0, v0 = normal(1, 3, seed=1).expand(5, 3), normal(5, 1, seed=2).expand(5, 3)
    assert not (x0.is_contiguous() or v0.is_contiguous())
    layer = LAYERS[dynamics](memory=memory, **problem.options)
    mirror = copy.deepcopy(problem.potential)
    x0.requires_grad_(), v0.requires_grad_()
    x_mirror, v_mirror = (t.detach().contiguous().requires_grad_() for t in (x0, v0))
    step_mirror = layer.step_size.detach().clone().requires_grad_()
    actual = layer(problem.potential, x0, v0)
    expected = UNROLLS[dynamics](mirror, x_mirror, v_mirror, step_mirror, **problem.options)
    for what, a, e in zip(("x", "v", "log_det"), actual, expected, strict=True):
        assert_close(a.detach(), e.detach(), what)
    wanted = {
        "x0": x0,
        "v0": v0,
        "step_size": layer.step_size,
        **dict(problem.potential.named_parameters()),
    }
    mirrors = {"x0": x_mirror, "v0": v_mirror, "step_size": step_mirror, **dict(mirror.named_parameters())}
    assert_gradients_agree(actual, wanted, expected, mirrors)


@every_dynamics
@every_memory
def test_channels_last(dynamics: str, memory: str) -> None:
    problem = Problem.of("leaky_cnn", "value_norm", "closed")
    layer = LAYERS[dynamics](memory=memory, **problem.options)
    x_plain, v_plain = problem.x0.clone().requires_grad_(), problem.v0.clone().requires_grad_()
    x_last, v_last = (t.detach().to(memory_format=torch.channels_last).requires_grad_() for t in (x_plain, v_plain))
    assert not x_last.is_contiguous()
    parameters = dict(problem.potential.named_parameters())
    plain = layer(problem.potential, x_plain, v_plain)
    last = layer(problem.potential, x_last, v_last)
    for what, a, e in zip(("x", "v", "log_det"), last, plain, strict=True):
        assert_close(a.detach(), e.detach(), what)
    assert_gradients_agree(
        last,
        {"x0": x_last, "v0": v_last, "step_size": layer.step_size, **parameters},
        plain,
        {"x0": x_plain, "v0": v_plain, "step_size": layer.step_size, **parameters},
    )


@every_dynamics
@every_memory
@pytest.mark.parametrize("name", list(POTENTIALS))
def test_empty_batch(dynamics: str, memory: str, name: str) -> None:
    potential, event = make_potential(name), POTENTIALS[name].event
    layer = LAYERS[dynamics](memory=memory, grad_clip=ade.Clip.norm(1.0), momentum_clip=ade.Clip.value(1.0))
    x0 = torch.empty(0, *event, dtype=DOUBLE, requires_grad=True)
    v0 = torch.empty(0, *event, dtype=DOUBLE, requires_grad=True)
    out = layer(potential, x0, v0)
    assert out.x.shape == out.v.shape == (0, *event) and out.log_det.shape == (0,)
    wanted = [x0, v0, layer.step_size, *potential.parameters()]
    for tensor, grad in zip(wanted, gradients_of(out, wanted), strict=True):
        assert_close(grad, torch.zeros_like(tensor), "gradient")


@every_dynamics
@every_memory
def test_potential_output_of_one_column(dynamics: str, memory: str) -> None:
    """(B, 1) and (B,) are the same potential."""
    potential = make_potential("silu")
    flat = nn.Sequential(potential, nn.Flatten(0))
    x0, v0 = normal(5, 3, seed=1), normal(5, 3, seed=2)
    assert potential(x0).shape == (5, 1) and flat(x0).shape == (5,)
    layer = LAYERS[dynamics](memory=memory)
    parameters = dict(potential.named_parameters())
    column_out, flat_out = layer(potential, x0, v0), layer(flat, x0, v0)
    for what, a, e in zip(("x", "v", "log_det"), column_out, flat_out, strict=True):
        assert_close(a.detach(), e.detach(), what, 1e-14)
    assert_gradients_agree(column_out, parameters, flat_out, parameters, 1e-13)


@every_dynamics
@every_memory
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "softplus", "silu", "tanh", "elu"])
def test_the_ready_made_mlp(dynamics: str, memory: str, activation: str) -> None:
    """Whatever fast path the package's own MLP takes, it is the same function."""
    potential = ade.MLPPotential(3, hidden=(8, 8), activation=activation).double()
    problem = Problem.of("silu", "norm", "closed")
    problem.potential = potential
    assert_agreement(LAYERS[dynamics](memory=memory, **problem.options), _with(problem, dynamics), problem)


@every_dynamics
@every_memory
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_ready_made_mlp_with_spectral_norm(dynamics: str, memory: str, activation: str) -> None:
    potential = ade.MLPPotential(3, hidden=(8, 8), activation=activation, spectral_norm=True).double()
    problem = Problem.of("silu", "value", "open")
    problem.potential = potential.train()
    assert_agreement(LAYERS[dynamics](memory=memory, **problem.options), _with(problem, dynamics), problem)


def _with(problem: Problem, dynamics: str) -> Unroll:
    return lambda *args, **kwargs: UNROLLS[dynamics](*args, **kwargs, **problem.options)


@every_dynamics
@every_memory
@pytest.mark.parametrize("name", ["silu", "leaky_cnn"])
def test_float32(dynamics: str, memory: str, name: str, device: torch.device) -> None:
    """Single precision against the double-precision reference: outputs and gradients to 1e-4."""
    problem = Problem.of(name)
    layer = LAYERS[dynamics](memory=memory).float().to(device)
    potential = copy.deepcopy(problem.potential).float().to(device)
    x0, v0 = (t.float().to(device).requires_grad_() for t in (problem.x0, problem.v0))
    out = layer(potential, x0, v0)
    assert {t.dtype for t in out} == {torch.float32} and {t.device.type for t in out} == {device.type}
    step = layer.step_size.detach().double().cpu().requires_grad_()
    x_mirror, v_mirror = (t.detach().double().cpu().requires_grad_() for t in (x0, v0))
    mirror = copy.deepcopy(potential).double().cpu()
    expected = UNROLLS[dynamics](mirror, x_mirror, v_mirror, step)
    for what, a, e in zip(("x", "v", "log_det"), out, expected, strict=True):
        assert_close(a.detach().double().cpu(), e.detach(), what, 1e-5)
    actual = gradients_of(out, [x0, v0, layer.step_size, *potential.parameters()])
    wanted = gradients_of(expected, [x_mirror, v_mirror, step, *mirror.parameters()])
    for i, (a, e) in enumerate(zip(actual, wanted, strict=True)):
        assert_close(None if a is None else a.double().cpu(), e, f"gradient {i}", 1e-4)


@every_dynamics
@every_memory
def test_float64_on_every_device(dynamics: str, memory: str, device: torch.device) -> None:
    problem = Problem.of("silu", "norm", "closed")
    on_device = Problem(problem.potential.to(device), problem.x0.to(device), problem.v0.to(device), problem.options)
    layer = LAYERS[dynamics](memory=memory, **problem.options).to(device)
    assert_agreement(layer, _with(problem, dynamics), on_device)


@every_dynamics
@every_memory
def test_bfloat16_states(dynamics: str, memory: str) -> None:
    """States in bfloat16; arithmetic, step sizes and log-det in float32: the reference to a few 2^-8."""
    problem = Problem.of("silu")
    layer = LAYERS[dynamics](memory=memory).float()
    potential = copy.deepcopy(problem.potential).bfloat16()
    x0, v0 = (t.bfloat16().requires_grad_() for t in (problem.x0, problem.v0))
    out = layer(potential, x0, v0)
    assert (out.x.dtype, out.v.dtype, out.log_det.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    mirror = copy.deepcopy(potential).double()
    step = layer.step_size.detach().double().requires_grad_()
    x_mirror, v_mirror = (t.detach().double().requires_grad_() for t in (x0, v0))
    expected = UNROLLS[dynamics](mirror, x_mirror, v_mirror, step)
    for what, a, e in zip(("x", "v", "log_det"), out, expected, strict=True):
        assert_close(a.detach().double(), e.detach(), what, 3e-2)
    actual = gradients_of(out, [x0, v0, layer.step_size, *potential.parameters()])
    wanted = gradients_of(expected, [x_mirror, v_mirror, step, *mirror.parameters()])
    assert actual[2].dtype == torch.float32 and actual[3].dtype == torch.bfloat16
    for i, (a, e) in enumerate(zip(actual, wanted, strict=True)):
        assert_close(None if a is None else a.double(), e, f"gradient {i}", 6e-2)


@every_dynamics
@every_memory
def test_float32_step_sizes_drive_float64_states(dynamics: str, memory: str) -> None:
    """A layer as constructed (float32 parameters) takes float64 states; its gradients are float32."""
    problem = Problem.of("silu")
    layer = LAYERS[dynamics](memory=memory).float()
    x0, v0 = problem.x0.requires_grad_(), problem.v0.requires_grad_()
    out = layer(problem.potential, x0, v0)
    step = layer.step_size.detach().double().requires_grad_()
    expected = UNROLLS[dynamics](problem.potential, x0, v0, step)
    for what, a, e in zip(("x", "v", "log_det"), out, expected, strict=True):
        assert_close(a.detach(), e.detach(), what)
    (actual,), (wanted,) = gradients_of(out, [layer.step_size]), gradients_of(expected, [step])
    assert actual.dtype == torch.float32
    assert_close(actual.double(), wanted, "step size", 1e-6)


# --- Partial wishes -----------------------------------------------------------------------------------------


@every_dynamics
@every_memory
@pytest.mark.parametrize("name", ["silu", "relu"])
@pytest.mark.parametrize("wish", ["x0", "v0", "step_size", "potential", "one_weight"])
def test_gradient_of_one_input_alone(dynamics: str, memory: str, name: str, wish: str) -> None:
    """Only one thing requires grad: everything else is skipped, the answer is the same."""
    problem = Problem.of(name, "norm")
    layer = LAYERS[dynamics](memory=memory, learn_step_size=wish == "step_size", **problem.options)
    potential = problem.potential
    if wish not in ("potential", "one_weight"):
        potential.requires_grad_(False)
    if wish == "one_weight":
        potential.requires_grad_(False)
        potential[2].weight.requires_grad_(True)
    x0 = problem.x0.clone().requires_grad_(wish == "x0")
    v0 = problem.v0.clone().requires_grad_(wish == "v0")
    mirror = copy.deepcopy(potential)
    step = layer.step_size.detach().clone().requires_grad_(wish == "step_size")
    wanted = {
        "x0": [x0],
        "v0": [v0],
        "step_size": [layer.step_size],
        "potential": list(potential.parameters()),
        "one_weight": [potential[2].weight],
    }[wish]
    x_mirror, v_mirror = x0.detach().clone(), v0.detach().clone()
    x_mirror.requires_grad_(wish == "x0"), v_mirror.requires_grad_(wish == "v0")
    mirrors = {
        "x0": [x_mirror],
        "v0": [v_mirror],
        "step_size": [step],
        "potential": list(mirror.parameters()),
        "one_weight": [mirror[2].weight],
    }[wish]
    actual = gradients_of(layer(potential, x0, v0), wanted)
    expected = gradients_of(UNROLLS[dynamics](mirror, x_mirror, v_mirror, step, **problem.options), mirrors)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(a, e, f"{wish} {i}")


@every_dynamics
@every_memory
@pytest.mark.parametrize("name", ["silu", "relu"])
@pytest.mark.parametrize("output", ["x", "v"])
def test_gradient_through_one_output_alone(dynamics: str, memory: str, name: str, output: str) -> None:
    """Cotangents that do not exist are zeros."""
    problem = Problem.of(name, "value")
    layer = LAYERS[dynamics](memory=memory, **problem.options)
    mirror = copy.deepcopy(problem.potential)
    step = layer.step_size.detach().clone().requires_grad_()
    index = {"x": 0, "v": 1}[output]
    x0, v0 = problem.x0.requires_grad_(), problem.v0.requires_grad_()
    actual = layer(problem.potential, x0, v0)[index]
    expected = UNROLLS[dynamics](mirror, x0, v0, step, **problem.options)[index]
    a = gradients_of([actual], [x0, v0, layer.step_size, *problem.potential.parameters()])
    e = gradients_of([expected], [x0, v0, step, *mirror.parameters()])
    for i, (one, other) in enumerate(zip(a, e, strict=True)):
        assert_close(one, other, f"gradient {i}")


@every_memory
def test_gradient_through_the_log_det_alone(memory: str) -> None:
    """S_v sees ∇f: the log-det's gradient reaches the potential, the networks and x0."""
    problem = Problem.of("silu")
    modules = {"scale_v": KickNetwork((3,), (3,), 0.4), "scale_x": DriftNetwork((3,), (3,), 0.4)}
    layer = ade.GeneralizedLeapfrog(N_STEPS, 0.2, memory=memory, **modules).double()
    mirror, mirror_modules = copy.deepcopy((problem.potential, modules))
    step = layer.step_size.detach().clone().requires_grad_()
    x0, v0 = problem.x0.requires_grad_(), problem.v0.requires_grad_()
    actual = layer(problem.potential, x0, v0).log_det
    expected = reference.generalized_leapfrog(mirror, x0, v0, step, N_STEPS, **mirror_modules)[2]
    parts = dict(parameters_of(problem.potential, modules))
    a = gradients_of([actual], [x0, v0, layer.step_size, *parts.values()])
    e = gradients_of([expected], [x0, v0, step, *dict(parameters_of(mirror, mirror_modules)).values()])
    for name, one, other in zip(["x0", "v0", "step_size", *parts], a, e, strict=True):
        assert_close(one, other, name)
    assert e[3].abs().max() > 1e-4, "the potential is reached"


@every_dynamics
@every_memory
@pytest.mark.parametrize("name", ["silu", "relu"])
def test_broadcast_cotangents(dynamics: str, memory: str, name: str) -> None:
    """Of a plain sum: a cotangent of stride 0."""
    problem = Problem.of(name, "norm")
    layer = LAYERS[dynamics](memory=memory, **problem.options)
    mirror = copy.deepcopy(problem.potential)
    step = layer.step_size.detach().clone().requires_grad_()
    x0, v0 = problem.x0.requires_grad_(), problem.v0.requires_grad_()
    out = layer(problem.potential, x0, v0)
    expected = UNROLLS[dynamics](mirror, x0, v0, step, **problem.options)
    a = torch.autograd.grad(
        out.x.sum() + out.v.sum(),
        [x0, v0, layer.step_size, *problem.potential.parameters()],
        allow_unused=True,
    )
    e = torch.autograd.grad(
        expected[0].sum() + expected[1].sum(), [x0, v0, step, *mirror.parameters()], allow_unused=True
    )
    for i, (one, other) in enumerate(zip(a, e, strict=True)):
        assert_close(one, other, f"gradient {i}")


# --- Networks that share and parametrise their weights ------------------------------------------------------


@every_memory
def test_scale_that_shares_weights_with_the_potential(memory: str) -> None:
    """S_v reads the potential's first layer: its weights collect gradients from both roles."""

    class Features(nn.Module):
        def __init__(self, first: nn.Module) -> None:
            super().__init__()
            self.first = first
            self.last = nn.Linear(8, 3, dtype=DOUBLE)

        def forward(self, grad: Tensor, x: Tensor) -> Tensor:
            return 0.3 * torch.tanh(self.last(self.first(x)) + grad)

    problem = Problem.of("silu")
    modules = {"scale_v": Features(problem.potential[0])}
    layer = ade.GeneralizedLeapfrog(N_STEPS, 0.2, memory=memory, **modules).double()
    assert_agreement(layer, generalized, problem, modules)


@every_memory
@pytest.mark.parametrize("gradient", ["full", "truncated", "stopped"])
def test_networks_with_spectral_norm(memory: str, gradient: str) -> None:
    """One set of effective weights per unroll holds for S and g too."""
    problem = Problem.of("silu")
    modules = {"scale_v": KickNetwork((3,), (3,), 0.3), "shift_x": DriftNetwork((3,), (3,), 1.0)}
    for network in modules.values():
        nn.utils.parametrizations.spectral_norm(network.linear)
    mirrored = copy.deepcopy(modules)
    layer = ade.GeneralizedLeapfrog(N_STEPS, 0.2, memory=memory, gradient=gradient, **modules).double()

    def unroll(*inputs: Any, **rest: Any) -> Any:
        return generalized(*inputs, gradient=gradient, **rest)

    assert_agreement(layer, unroll, problem, modules)
    for name, network in mirrored.items():
        network.linear(normal(1, network.linear.in_features, seed=1))  # one power iteration
        for (what, actual), expected in zip(modules[name].named_buffers(), network.buffers(), strict=True):
            assert torch.equal(actual, expected), f"{name}.{what}"


@every_dynamics
@every_memory
@pytest.mark.parametrize("name", ["silu", "relu"])
def test_potential_with_weight_norm(dynamics: str, memory: str, name: str) -> None:
    """A learned parametrisation: gradients reach its originals, magnitude and direction."""
    problem = Problem.of(name, "value")
    nn.utils.parametrizations.weight_norm(problem.potential[0])
    nn.utils.parametrizations.weight_norm(problem.potential[2])
    assert len(list(problem.potential.parameters())) == 8
    assert_agreement(LAYERS[dynamics](memory=memory, **problem.options), _with(problem, dynamics), problem)


# --- Functional forms and defaults --------------------------------------------------------------------------


@every_memory
def test_functional_leapfrog(memory: str) -> None:
    problem = Problem.of("silu", "norm", "closed")
    step = make_step("per_dim", (3,)).requires_grad_()
    mirror, mirror_step = copy.deepcopy(problem.potential), step.detach().clone().requires_grad_()
    actual = ade.functional.leapfrog(
        problem.potential, problem.x0, problem.v0, step, N_STEPS, memory=memory, **problem.options
    )
    expected = reference.leapfrog(mirror, problem.x0, problem.v0, mirror_step, N_STEPS, **problem.options)
    for what, a, e in zip(("x", "v", "log_det"), actual, expected, strict=True):
        assert_close(a.detach(), e.detach(), what)
    assert_gradients_agree(
        actual,
        {"step_size": step, **dict(problem.potential.named_parameters())},
        expected,
        {"step_size": mirror_step, **dict(mirror.named_parameters())},
    )


def test_functional_generalized_and_damped_leapfrog() -> None:
    problem = Problem.of("silu")
    x0, v0 = problem.x0, problem.v0
    network = KickNetwork((3,), (3,), 0.3)
    step = torch.tensor(0.2, dtype=DOUBLE)
    pairs = [
        (
            ade.functional.generalized_leapfrog(problem.potential, x0, v0, step, N_STEPS, scale_v=network),
            reference.generalized_leapfrog(problem.potential, x0, v0, step, N_STEPS, scale_v=network),
        ),
        (
            ade.functional.damped_leapfrog(problem.potential, x0, v0, step, N_STEPS, damping=0.8),
            reference.damped_leapfrog(problem.potential, x0, v0, step, N_STEPS, damping=0.8),
        ),
    ]
    parameters = {"network": network.linear.weight, "potential": problem.potential[0].weight}
    for actual, expected in pairs:
        for what, a, e in zip(("x", "v", "log_det"), actual, expected, strict=True):
            assert_close(a.detach(), e.detach(), what)
        assert_gradients_agree(actual, parameters, expected, parameters)


@every_dynamics
def test_momentum_is_drawn_from_the_standard_normal(dynamics: str) -> None:
    """v0=None: N(0, I) from the generator given; the same seed gives the same draw."""
    potential = make_potential("quadratic")
    layer = LAYERS[dynamics](learn_step_size=False)
    x0 = normal(20000, 3, seed=1)
    with torch.no_grad():
        layer.step_size.fill_(1e-9)  # v^T is v0 (times m^(T+1)) to 1e-8
        one = layer(potential, x0, generator=torch.Generator().manual_seed(3))
        same = layer(potential, x0, generator=torch.Generator().manual_seed(3))
        other = layer(potential, x0, generator=torch.Generator().manual_seed(4))
    assert torch.equal(one.v, same.v) and not torch.equal(one.v, other.v)
    unit = {"leapfrog": 1.0, "generalized": torch.tensor(0.75).exp().item(), "damped": 0.5**4}[dynamics]
    v = one.v / unit
    assert v.mean().abs() < 0.02 and abs(v.std().item() - 1) < 0.02


def test_one_step() -> None:
    """T = 1: only the two half kicks."""
    for dynamics in LAYERS:
        problem = Problem.of("silu", "norm")
        layer = {
            "leapfrog": ade.Leapfrog(1, 0.2, **problem.options),
            "generalized": ade.GeneralizedLeapfrog(1, 0.2, scale_v=0.125, **problem.options),
            "damped": ade.DampedLeapfrog(1, 0.2, **problem.options),
        }[dynamics].double()
        unroll = {
            "leapfrog": lambda f, x, v, step_size, p=problem: reference.leapfrog(f, x, v, step_size, 1, **p.options),
            "generalized": lambda f, x, v, step_size, p=problem: reference.generalized_leapfrog(
                f, x, v, step_size, 1, scale_v=0.125, **p.options
            ),
            "damped": lambda f, x, v, step_size, p=problem: reference.damped_leapfrog(
                f, x, v, step_size, 1, **p.options
            ),
        }[dynamics]
        assert_agreement(layer, unroll, problem)


@every_dynamics
@every_memory
def test_long_unroll(dynamics: str, memory: str) -> None:
    """T = 25 with clips: nothing is lost over many steps (the tolerance leaves room for rounding to grow)."""
    problem = Problem.of("silu", "norm", "closed")
    layer = {
        "leapfrog": ade.Leapfrog(25, 0.1, memory=memory, **problem.options),
        "generalized": ade.GeneralizedLeapfrog(25, 0.1, scale_v=-1 / 64, memory=memory, **problem.options),
        "damped": ade.DampedLeapfrog(25, 0.1, memory=memory, **problem.options),
    }[dynamics].double()
    unroll = {
        "leapfrog": lambda f, x, v, step_size: reference.leapfrog(f, x, v, step_size, 25, **problem.options),
        "generalized": lambda f, x, v, step_size: reference.generalized_leapfrog(
            f, x, v, step_size, 25, scale_v=-1 / 64, **problem.options
        ),
        "damped": lambda f, x, v, step_size: reference.damped_leapfrog(f, x, v, step_size, 25, **problem.options),
    }[dynamics]
    assert_agreement(layer, unroll, problem)

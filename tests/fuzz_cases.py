"""Random cases of the dynamics for the fuzzer: which there are, and what each of them computes. No test lives here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from cases import DriftNetwork, KickNetwork, LeakyCNN, Quadratic, mlp
from hypothesis import strategies as st
from torch import Tensor, nn

import ade_fast as ade
from ade_fast import reference

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}
DYNAMICS = ("leapfrog", "damped", "generalized", "langevin", "annealed", "deterministic")
LAYERS = {
    "leapfrog": ade.Leapfrog,
    "damped": ade.DampedLeapfrog,
    "generalized": ade.GeneralizedLeapfrog,
    "langevin": ade.Langevin,
    "annealed": ade.AnnealedLeapfrog,
    "deterministic": ade.DeterministicLangevin,
}
NAMES = {  # of the functional form, and of the reference's
    "leapfrog": "leapfrog",
    "damped": "damped_leapfrog",
    "generalized": "generalized_leapfrog",
    "langevin": "langevin",
    "annealed": "annealed_leapfrog",
    "deterministic": "deterministic_langevin",
}
REVERSIBLE = ("leapfrog", "damped")
CLIPS = {"none": None, "value": ade.Clip.value(0.4), "norm": ade.Clip.norm(0.9), "wide": ade.Clip.norm(50.0)}
BOUNDS = {"exact": {}, "laplacian": {}, "taylor": {"order": 6}, "chebyshev": {"order": 6}}


@dataclass(frozen=True)
class Case:
    """One unroll and one backward pass. Its repr makes it again; what a dynamics does not have is ignored."""

    dynamics: str = "leapfrog"
    as_layer: bool = False
    family: str = "ready"  # ready (MLPPotential), plain (nn.Sequential), conv, quadratic
    activation: str = "silu"
    hidden: tuple[int, ...] = (32,)
    dim: int = 2
    norm: str = "none"  # of the weights: spectral, weight
    wrapper: str = "none"  # base (WithBase), energy (NegativeEnergy), closure (no module)
    condition: bool = False
    memory: str = "auto"
    gradient: str = "full"
    grad_clip: str = "none"
    momentum_clip: str = "none"
    sample_range: str = "open"  # closed, per_dim
    step: str = "number"  # per_dim, per_step, both
    second_step: str = "none"  # drift step, momentum's step size, standard deviation of the noise
    scales: tuple[str, str] = ("none", "none")  # number, tensor, per_step, network
    shifts: bool = False
    momentum: str = "same"  # latent
    log_det: str = "exact"
    n_steps: int = 2
    batch: int = 3
    layout: str = "plain"  # transposed, strided, expanded
    content: str = "normal"  # wide, zeros
    wishes: tuple[str, ...] = ("x0", "v0", "step_size", "f")
    cotangents: str = "random"  # ones (of stride 0), x, v (alone)
    isa: str = "avx512"
    dtype: str = "float64"
    seed: int = 0

    def resolved(self) -> Case:
        """The same case without what cannot go together."""
        change: dict[str, Any] = {}
        if self.memory == "reversible" and self.dynamics not in REVERSIBLE:
            change["memory"] = "states"
        if self.dynamics == "deterministic" and self.family == "conv":  # its reference takes whole Hessians
            change["family"] = "plain"
        if self.family == "conv" or self.activation in ("relu", "leaky_relu"):
            change["log_det"] = "exact"  # in closed form whatever is asked for, which the expansions are not
        if self.condition and self.family in ("conv", "quadratic"):
            change["condition"] = False
        if self.norm != "none" and self.family == "quadratic":
            change["norm"] = "none"
        if self.wrapper == "closure" and (self.gradient == "truncated" or self.condition):
            change["wrapper"] = "none"
        if self.dynamics not in ("generalized", "langevin"):
            change |= {"shifts": False, "momentum": "same"}
        elif self.momentum == "latent":
            change["shifts"] = True
        return replace(self, **change)


def cases(dtype: str = "float64") -> st.SearchStrategy[Case]:
    """All cases of one precision."""
    clips = st.sampled_from(tuple(CLIPS))
    scale = st.sampled_from(("none", "number", "tensor", "per_step", "network"))
    forms = ("number", "per_dim", "per_step", "both")
    wishes = st.lists(st.sampled_from(("x0", "v0", "step_size", "f")), min_size=1, unique=True)
    return st.builds(
        Case,
        dynamics=st.sampled_from(DYNAMICS),
        as_layer=st.booleans(),
        family=st.sampled_from(("ready", "plain", "conv", "quadratic", "ready", "plain")),
        activation=st.sampled_from(tuple(ACTIVATIONS)),
        hidden=st.sampled_from(((32,), (32, 32), (32, 64), (64, 32, 32), (8, 8), (7, 5, 9))),
        dim=st.integers(1, 5),
        norm=st.sampled_from(("none", "none", "spectral", "weight")),
        wrapper=st.sampled_from(("none", "none", "base", "energy", "closure")),
        condition=st.sampled_from((False, False, False, True)),
        memory=st.sampled_from(("graph", "states", "auto", "reversible")),
        gradient=st.sampled_from(("full", "full", "full", "truncated", "stopped", "none")),
        grad_clip=clips,
        momentum_clip=clips,
        sample_range=st.sampled_from(("open", "closed", "per_dim")),
        step=st.sampled_from(forms),
        second_step=st.sampled_from(("none", *forms)),
        scales=st.tuples(scale, scale),
        shifts=st.booleans(),
        momentum=st.sampled_from(("same", "same", "latent")),
        log_det=st.sampled_from(tuple(BOUNDS)),
        n_steps=st.integers(1, 4),
        batch=st.sampled_from((0, 1, 2, 3, 5, 8, 17, 40)),
        layout=st.sampled_from(("plain", "transposed", "strided", "expanded")),
        content=st.sampled_from(("normal", "normal", "wide", "zeros")),
        wishes=st.one_of(st.just(("x0", "v0", "step_size", "f")), wishes.map(lambda w: tuple(sorted(w)))),
        cotangents=st.sampled_from(("random", "random", "ones", "x", "v")),
        isa=st.sampled_from(("avx512", "avx2", "base")),
        dtype=st.just(dtype),
        seed=st.integers(0, 2**31 - 1),
    ).map(Case.resolved)


class Conditional(nn.Module):
    """f(x, condition) by a network of both."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.network(torch.cat([x, condition], 1))


def potential_of(case: Case) -> tuple[nn.Module, tuple[int, ...]]:
    """f in float64, and the shape of one sample."""
    event = (2, 4, 4) if case.family == "conv" else (case.dim,)
    inputs = case.dim + (2 if case.condition else 0)
    if case.family == "ready":
        f = ade.MLPPotential(inputs, case.hidden, case.activation, spectral_norm=case.norm == "spectral")
    elif case.family == "plain":
        f = mlp((inputs, *case.hidden, 1), ACTIVATIONS[case.activation])
    else:
        f = LeakyCNN() if case.family == "conv" else Quadratic(case.dim)
    linear = [module for module in f.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    with torch.no_grad():
        for module in linear:
            if case.norm != "spectral":
                module.weight.mul_(1.3)
    if case.norm == "weight":
        for module in linear:
            nn.utils.parametrizations.weight_norm(module)
    elif case.norm == "spectral" and case.family != "ready":
        for module in linear:
            nn.utils.parametrizations.spectral_norm(module)
    f = Conditional(f) if case.condition else f
    if case.wrapper == "base":
        f = ade.WithBase(f, 0.3, 1.7)
    return (ade.NegativeEnergy(f) if case.wrapper == "energy" else f).double(), event


class Draws:
    """Numbers of a case, from its seed."""

    def __init__(self, case: Case) -> None:
        self._case, self._generator = case, torch.Generator().manual_seed(case.seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self._generator)

    def state(self, *shape: int) -> Tensor:
        """Rows [B, *event] in the case's content; its layout comes by `laid_out`."""
        scale = {"normal": 1.0, "wide": 3.0, "zeros": 0.0}[self._case.content]
        rows = scale * self.normal(*shape)
        return rows[:1].expand(shape).clone() if self._case.layout == "expanded" else rows

    def step(self, form: str, event: tuple[int, ...], low: float = 0.05, high: float = 0.25) -> Tensor:
        """Positive sizes, all different."""
        n, ones = self._case.n_steps, (1,) * len(event)
        shape = {"number": (), "per_dim": event, "per_step": (n, *ones), "both": (n, *event)}[form]
        return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=self._generator)

    def signs(self, *shape: int) -> Tensor:
        return torch.randint(2, shape, generator=self._generator).double() * 2 - 1


def laid_out(rows: Tensor, layout: str) -> Tensor:
    """The same numbers in other strides."""
    if layout == "transposed":
        return rows.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        return torch.stack([rows, rows + 1], -1).flatten(-2)[..., ::2]
    if layout == "expanded" and len(rows) > 0:
        return rows[:1].expand(rows.shape)
    return rows


@dataclass
class Problem:
    """What both sides are given. tensors: those that may receive gradients; constants, networks: as arguments."""

    event: tuple[int, ...]
    potential: nn.Module
    condition: Tensor | None
    tensors: dict[str, Tensor]
    constants: dict[str, Any]
    networks: dict[str, nn.Module]
    options: dict[str, Any]


def problem_of(case: Case) -> Problem:
    """The case's numbers, modules and options."""
    torch.manual_seed(case.seed)
    potential, event = potential_of(case)
    draw = Draws(case)
    momentum = (3,) if case.momentum == "latent" else event
    n, batch = case.n_steps, case.batch
    tensors = {"x0": draw.state(batch, *event)}
    constants: dict[str, Any] = {}
    networks: dict[str, nn.Module] = {}
    options: dict[str, Any] = {"gradient": case.gradient}
    if case.dynamics in ("leapfrog", "damped", "generalized", "annealed"):
        tensors["v0"] = draw.state(batch, *momentum)
    if case.dynamics == "deterministic":  # so small that I + ηH is far from singular
        tensors["step_size"] = draw.step(case.step, event, 0.01, 0.03)
        constants["log_det"] = case.log_det
        if BOUNDS[case.log_det]:
            constants |= BOUNDS[case.log_det] | {"spectral_bound": 8.0, "probes": draw.signs(2, n, batch, *event)}
        return Problem(event, potential, _condition(case, draw), tensors, constants, networks, options)
    tensors["step_size"] = draw.step(case.step, momentum if case.dynamics == "langevin" else event)
    options["grad_clip"] = CLIPS[case.grad_clip]
    if case.dynamics == "annealed":
        tensors |= {"mean": draw.normal(*event), "std": draw.step("per_dim", event, 0.7, 1.6)}
        constants |= {"noise": draw.normal(n - 1, batch, *event), "refresh": 0.35}
        return Problem(event, potential, _condition(case, draw), tensors, constants, networks, options)
    options["momentum_clip"] = CLIPS[case.momentum_clip]
    options["sample_range"] = _range(case, draw, event)
    if case.dynamics == "damped":
        constants["damping"] = 0.75
        if case.second_step != "none":
            tensors["drift_step"] = draw.step(case.second_step, event, 0.3, 1.0)
    if case.dynamics == "langevin":
        constants["noise"] = draw.normal(n, batch, *momentum)
        if case.second_step != "none":
            tensors["noise_std"] = draw.step(case.second_step, momentum, 0.2, 0.6)
    if case.dynamics == "generalized":
        if case.momentum == "latent":
            form = "number" if case.second_step == "none" else case.second_step
            tensors["momentum_step_size"] = draw.step(form, momentum)
        for name, kind, network, state in (
            ("scale_v", case.scales[0], KickNetwork(event, momentum, 0.2), momentum),
            ("scale_x", case.scales[1], DriftNetwork(momentum, event, 0.2), event),
        ):
            if kind == "network":
                networks[name] = network
            elif kind == "number":
                constants[name] = 0.125
            elif kind != "none":
                constants[name] = 0.2 * draw.normal(*((n,) if kind == "per_step" else ()), *state)
    if case.shifts:
        networks |= {"shift_v": KickNetwork(event, momentum, 1.0), "shift_x": DriftNetwork(momentum, event, 0.8)}
    return Problem(event, potential, _condition(case, draw), tensors, constants, networks, options)


def _range(case: Case, draw: Draws, event: tuple[int, ...]) -> tuple[float | Tensor, float | Tensor] | None:
    if case.sample_range == "per_dim":
        return -draw.step("per_dim", event, 0.4, 1.2), draw.step("per_dim", event, 0.4, 1.2)
    return (-0.9, 0.8) if case.sample_range == "closed" else None


def _condition(case: Case, draw: Draws) -> Tensor | None:
    return draw.normal(max(case.batch, 1), 2) if case.condition else None


Outputs = tuple[Tensor, ...]


def specified(case: Case, problem: Problem) -> Outputs:
    """What the reference says."""
    f: Callable = problem.potential
    if problem.condition is not None:
        f = Applied(f, problem.condition[: case.batch])
    given = problem.tensors | problem.constants | problem.networks | problem.options
    return getattr(reference, NAMES[case.dynamics])(f, n_steps=case.n_steps, **given)


class Applied(nn.Module):
    """f at a condition, as a module of x alone."""

    def __init__(self, potential: nn.Module, condition: Tensor) -> None:
        super().__init__()
        self.potential, self.condition = potential, condition

    def forward(self, x: Tensor) -> Tensor:
        return self.potential(x, self.condition)


def fast(case: Case, problem: Problem) -> tuple[Outputs, dict[str, Tensor]]:
    """The layer or its functional form: its outputs, and the tensors that play the part of `problem.tensors`."""
    module = problem.potential
    f = (lambda x: module(x)) if case.wrapper == "closure" else module
    tensors, rest = dict(problem.tensors), problem.constants | problem.networks
    options = problem.options | {"memory": case.memory}
    if case.dynamics == "annealed":
        tensors["initial"] = (tensors.pop("mean"), tensors.pop("std"))
    if case.momentum == "latent":
        options["momentum_shape"] = (3,)
    if "probes" in rest:
        options["n_probes"] = 2
    states = {name: tensors.pop(name) for name in ("x0", "v0") if name in tensors}
    states |= {"condition": problem.condition} if problem.condition is not None else {}
    if not case.as_layer:
        out = getattr(ade.functional, NAMES[case.dynamics])(
            f, **states, n_steps=case.n_steps, **tensors, **rest, **options
        )
        return out, problem.tensors
    at_call = {}
    for part, name in ((tensors, "initial"), (rest, "noise"), (rest, "probes")):
        if name in part:
            at_call[name] = part.pop(name)
    learn = problem.tensors["step_size"].requires_grad
    layer = LAYERS[case.dynamics](case.n_steps, learn_step_size=learn, **tensors, **rest, **options)
    layer = layer.to(problem.tensors["x0"].dtype)
    held = {"step_size": layer.step_size}
    if hasattr(layer, "momentum_step_size") and "momentum_step_size" in tensors:
        held["momentum_step_size"] = layer.momentum_step_size
    constant = {name: t.detach() for name, t in problem.tensors.items() if name in ("drift_step", "noise_std")}
    return layer(f, **states, **at_call), problem.tensors | constant | held

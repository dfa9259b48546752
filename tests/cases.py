"""Potentials, networks and option grids that several test files share. No test lives here."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ade_fast import reference

DOUBLE = torch.float64


# --- Potentials, all float64 --------------------------------------------------------------------------------


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """A plain nn.Sequential MLP; it ends in one unit, so that its output is (B, 1)."""
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(sizes):
        layers += [nn.Linear(width_in, width_out), activation()]
    return nn.Sequential(*layers[:-1])


class LeakyCNN(nn.Module):
    """Table 4a in miniature: leaky-ReLU convolutions with average pooling, (B, 2, 4, 4) -> (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.avg_pool2d(F.leaky_relu(self.first(x), 0.1), 2)
        h = F.avg_pool2d(F.leaky_relu(self.second(h), 0.1), 2)
        return self.last(h.flatten(1)).squeeze(1)


class Quadratic(nn.Module):
    """f(x) = -½ Σ ((x - μ) / σ)², the Gaussian of Table 5: (B, d) -> (B,)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.linspace(-0.5, 0.5, dim))
        self.log_std = nn.Parameter(torch.linspace(-0.3, 0.3, dim))

    def forward(self, x: Tensor) -> Tensor:
        return -0.5 * ((x - self.mean) * (-self.log_std).exp()).square().sum(1)


def spectral_mlp(activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Spectral norm on every layer, training mode: each evaluation is one power iteration unless cached."""
    module = mlp((3, 6, 6, 1), activation)
    for layer in module:
        if isinstance(layer, nn.Linear):
            nn.utils.parametrizations.spectral_norm(layer)
    return module.train()


@dataclass(frozen=True)
class PotentialCase:
    """A potential under test: how it is built, and the shape of one sample."""

    build: Callable[[], nn.Module]
    event: tuple[int, ...]
    smooth: bool


POTENTIALS = {
    "silu": PotentialCase(lambda: mlp((3, 8, 8, 1), nn.SiLU), (3,), smooth=True),
    "relu": PotentialCase(lambda: mlp((3, 8, 8, 1), nn.ReLU), (3,), smooth=False),
    "leaky_cnn": PotentialCase(LeakyCNN, (2, 4, 4), smooth=False),
    "spectral_silu": PotentialCase(lambda: spectral_mlp(nn.SiLU), (3,), smooth=True),
    "spectral_relu": PotentialCase(lambda: spectral_mlp(nn.ReLU), (3,), smooth=False),
    "quadratic": PotentialCase(lambda: Quadratic(3), (3,), smooth=True),
}
SMOOTH = tuple(name for name, case in POTENTIALS.items() if case.smooth)


def make_potential(name: str, seed: int = 0, gain: float = 1.5) -> nn.Module:
    """The named potential in float64, from its own seed; weights enlarged so that ∇f is of order one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = POTENTIALS[name].build().to(DOUBLE)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(gain)
    return module


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """N(0, scale²) draws in float64 from their own generator."""
    return scale * torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


# --- S and g networks of the generalized leapfrog -----------------------------------------------------------


class KickNetwork(nn.Module):
    """A small net of (F(x), x) of one momentum's shape; tanh keeps S bounded and all smooth."""

    def __init__(self, event: Sequence[int], momentum: Sequence[int], scale: float) -> None:
        super().__init__()
        self.momentum = tuple(momentum)
        self.linear = nn.Linear(2 * torch.Size(event).numel(), torch.Size(momentum).numel(), dtype=DOUBLE)
        self.scale = scale

    def forward(self, grad: Tensor, x: Tensor) -> Tensor:
        h = self.linear(torch.cat([grad.flatten(1), x.flatten(1)], 1))
        return self.scale * torch.tanh(h).reshape(len(x), *self.momentum)


class DriftNetwork(nn.Module):
    """A small net of v with output of one sample's shape."""

    def __init__(self, momentum: Sequence[int], event: Sequence[int], scale: float) -> None:
        super().__init__()
        self.event = tuple(event)
        self.linear = nn.Linear(torch.Size(momentum).numel(), torch.Size(event).numel(), dtype=DOUBLE)
        self.scale = scale

    def forward(self, v: Tensor) -> Tensor:
        return self.scale * torch.tanh(self.linear(v.flatten(1))).reshape(len(v), *self.event)


# --- Clips --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlainClip:
    """What reference.py asks of a clip; stands in for ade.Clip where only the reference is under test."""

    mode: str
    bound: float


# --- Option grids -------------------------------------------------------------------------------------------


def covering(factors: dict[str, Sequence[Any]], strength: int = 3) -> list[dict[str, Any]]:
    """Rows of options in which every combination of values of any `strength` factors appears at least once.

    A greedy covering array: the full product would be hundreds of times larger and find little more.
    """
    rng = random.Random(0)
    names = list(factors)
    groups = list(itertools.combinations(names, strength))
    wanted = [(group, values) for group in groups for values in itertools.product(*(factors[n] for n in group))]
    missing = set(wanted)
    rows: list[dict[str, Any]] = []
    for group, values in wanted:
        if (group, values) not in missing:
            continue
        fixed = dict(zip(group, values, strict=True))
        best: dict[str, Any] = {}
        best_covered: set[Any] = set()
        for _ in range(20):
            row = {name: rng.choice(list(factors[name])) for name in names} | fixed
            covered = {(g, tuple(row[n] for n in g)) for g in groups} & missing
            if len(covered) > len(best_covered):
                best, best_covered = row, covered
        missing -= best_covered
        rows.append(best)
    return rows


def row_id(row: dict[str, Any]) -> str:
    """A readable test id."""
    return "-".join(str(value) for value in row.values())


# --- Measures -----------------------------------------------------------------------------------------------


def assert_close(actual: Tensor | None, expected: Tensor | None, what: str, tolerance: float = 1e-10) -> None:
    """Equal to `tolerance`, relative to max(1, the expected tensor's largest element); None counts as 0."""
    if actual is None and expected is None:
        return
    if actual is None:
        actual = torch.zeros_like(expected)
    if expected is None:
        expected = torch.zeros_like(actual)
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, wanted {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{what}: dtype {actual.dtype}, wanted {expected.dtype}"
    if expected.numel() == 0:
        return
    error = (actual - expected).abs().max().item()
    limit = tolerance * max(1.0, expected.abs().max().item())
    assert error <= limit, f"{what}: off by {error:.2e}, allowed {limit:.2e}"


def dense_slogdet(unroll: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x0: Tensor, v0: Tensor) -> Tensor:
    """log|det ∂(x, v)/∂(x0, v0)| of each sample by autograd's dense Jacobian, shape (B,)."""
    event, momentum = x0.shape[1:], v0.shape[1:]
    d = event.numel()

    def joint(z: Tensor) -> Tensor:
        x, v = unroll(z[:d].reshape(1, *event), z[d:].reshape(1, *momentum))
        return torch.cat([x.reshape(-1), v.reshape(-1)])

    rows = torch.cat([x0.flatten(1), v0.flatten(1)], 1)
    return torch.stack([torch.linalg.slogdet(torch.autograd.functional.jacobian(joint, row)).logabsdet for row in rows])


def merged_leapfrog(
    potential: nn.Module, x: Tensor, v: Tensor, steps: Tensor, clip: Any = None, sample_range: Any = None
) -> tuple[Tensor, Tensor]:
    """Eager leapfrog with T + 1 gradients instead of 2T; `steps` is (T, *event) or broadcasts to it."""
    n_steps = len(steps)
    for t in range(n_steps + 1):
        before = steps[t - 1] if t > 0 else 0
        after = steps[t] if t < n_steps else 0
        v = v + (before + after) / 2 * reference.clip(reference.gradient_field(potential, x), clip)
        if t < n_steps:
            x = reference.leapfrog_drift(x, v, steps[t], momentum_clip=clip, sample_range=sample_range)
    return x, v


def energy(potential: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    """The Hamiltonian H(x, v) = -f(x) + ½ ‖v‖², shape (B,)."""
    return -potential(x).reshape(len(x)) + v.flatten(1).square().sum(1) / 2


def fitted_order(steps: Sequence[float], errors: Sequence[float]) -> float:
    """Slope of log(error) over log(step), by least squares."""
    design = torch.stack([torch.tensor(steps, dtype=DOUBLE).log(), torch.ones(len(steps), dtype=DOUBLE)], 1)
    target = torch.tensor(errors, dtype=DOUBLE).log().unsqueeze(1)
    return torch.linalg.lstsq(design, target).solution[0].item()

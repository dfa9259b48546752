"""From a configuration to its potential, dual sampler, objective and data."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import initial
from ..data import TOY_NAMES, as_table, load_table, split
from ..dynamics import (
    AnnealedLeapfrog,
    Clip,
    ContinuousLangevin,
    DampedLeapfrog,
    DeterministicLangevin,
    GeneralizedContinuousLangevin,
    GeneralizedLeapfrog,
    Langevin,
    Leapfrog,
)
from ..potentials import ConvPotential, MLPPotential, ResidualPotential, WithBase
from .config import GIVEN, Config, ConfigError
from .dynamics_config import CONTINUOUS, LANGEVIN
from .image_source import ImageSource, ImageSpace
from .sampler import DualSampler
from .source import AnySpace, Source, TableSource, ToySource
from .streams import stream


class ScaleShiftNet(nn.Module):
    """A small S or g network of generalized leapfrog: inputs side by side, a tanh layer, a linear output.

    The output layer starts at zero, so that S starts at 0 and, with ``residual``, g starts as its first
    input: training begins at plain leapfrog.

    Shapes: ``n_inputs`` tensors [B, dim] -> [B, dim].
    """

    def __init__(self, dim: int, n_inputs: int, hidden: int, *, residual: bool = False):
        super().__init__()
        self.hidden = nn.Linear(dim * n_inputs, hidden)
        self.output = nn.Linear(hidden, dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.residual = residual

    def forward(self, *inputs: Tensor) -> Tensor:
        output = self.output(torch.tanh(self.hidden(torch.cat(inputs, dim=1))))
        return inputs[0] + output if self.residual else output


class VelocityNet(ScaleShiftNet):
    """h(∇f, f, x) of the generalized continuous dynamics: ∇f and a network that starts at zero.

    Shapes: ∇f and x [B, dim], f [B] -> [B, dim].
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__(dim, 3, hidden, residual=True)

    def forward(self, *inputs: Tensor) -> Tensor:
        grad, value, x = inputs
        return super().forward(grad, value.unsqueeze(1).expand_as(x), x)


class Given(NamedTuple):
    """Players that came from Python instead of from settings; None: by the settings."""

    potential: nn.Module | None = None
    sampler: DualSampler | None = None

    def which(self) -> tuple[bool, bool]:
        """Which of the two were given."""
        return self.potential is not None, self.sampler is not None


def check_given(name: str, given: Given, wanted: Sequence[bool], directory: str | Path) -> None:
    """Refuses other kinds of players than a run had: its weights fit no others.

    Raises: TypeError, ValueError, in the name of the function that was called.
    """
    for player, module, needed in zip(Given._fields, given, wanted, strict=True):
        if needed and module is None:
            raise ValueError(f"{name}: {directory} was given its {player}; pass {player}=, a module of the same making")
        if module is not None and not needed:
            raise ValueError(f"{name}: {directory} has the settings' own {player}; leave out {player}=")


# A mean that is large beside the spread costs float32 its digits: rows are read, and standardised, in float64.
_EXACT = torch.float64

# Beginnings of chains to choose from.
_NOISE_IMAGES = 1000

OWN: Given = Given()
"""Both players as the settings say."""


def build_source(config: Config, rows: Any = None, validation: Any = None) -> Source:
    """What to learn from: a toy set, a table in a file, or ``rows`` from Python.

    Args:
        config: the settings, with ``data`` `GIVEN` for rows.
        rows: [n, *event], whatever `data.as_table` takes.
        validation: the same, to choose the players by; None: a part of the table.

    Raises: ConfigError, TypeError, ValueError, OSError: there is no such table, or it cannot be learned from.
    """
    if config.data in TOY_NAMES or config.of_images:
        if validation is not None:
            raise ValueError(f"fit: validation is for rows and files; {config.data} is a set of fresh points")
        if config.of_images:
            fractions = {name: getattr(config, name) for name in ("validation_fraction", "test_fraction")}
            return ImageSource(config.data, **fractions, seed=config.seed)
        return ToySource(config.data, standardise=config.standardise)
    if config.data == GIVEN and rows is None:
        raise ConfigError(
            f"configuration: data is {GIVEN!r}: the run learned from rows given to ade.fit; go on with "
            "ade.fit(X, out=..., resume=True)"
        )
    table = load_table(config.data, dtype=_EXACT) if rows is None else as_table(rows, dtype=_EXACT)
    held_out = config.validation_fraction if validation is None else 0.0
    parts = split(table, held_out, config.test_fraction, generator=stream(config.seed, "split"))
    if validation is not None:
        parts = parts._replace(validation=as_table(validation, columns=table.shape[1], varied=False, dtype=_EXACT))
    return TableSource(*parts, standardise=config.standardise)


def resolve_device(name: str | torch.device) -> torch.device:
    """The device of that name, once something could be computed there."""
    wanted = f"device must be a torch device of this machine, cpu or cuda, got {str(name)!r}"
    try:
        device = torch.device(name)
        torch.ones(1, device=device).sum().item()
    except Exception as error:  # torch raises nearly anything for a device it lacks
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"configuration: {wanted}: {reason}") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"configuration: {wanted}")
    return device


def build_players(config: Config, space: AnySpace | None = None, given: Given = OWN) -> tuple[nn.Module, DualSampler]:
    """Potential and dual sampler, initialised from ``config.seed``; torch's own generator is left alone.

    Players that were given are copied: they are where training starts, and stay as they are.

    Args:
        config: the settings.
        space: the coordinates the players live in; None: those of the settings' data.
        given: players that take the place of the settings'.
    """
    device = resolve_device(config.device)
    space = build_source(config).space if space is None else space
    if given.sampler is not None and tuple(given.sampler.initial.event) != space.event:
        raise ValueError(
            f"fit: sampler must have the data's event {space.event}, got {tuple(given.sampler.initial.event)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would seed every GPU too
        potential = copy.deepcopy(given.potential) if given.potential is not None else _build_potential(config, space)
        sampler = copy.deepcopy(given.sampler) if given.sampler is not None else _build_sampler(config, space)
    return potential.to(device), sampler.to(device)


def _build_potential(config: Config, space: AnySpace) -> nn.Module:
    potential: nn.Module
    if isinstance(space, ImageSpace):
        make = ConvPotential if config.network == "conv" else ResidualPotential
        channels, *size = space.event
        potential = make(channels, size, widths=config.hidden, spectral_norm=config.spectral_norm)
        return potential if config.base_std is None else WithBase(potential, 0.0, config.base_std)
    (dim,) = space.event
    gain = min(max(6 / dim, 1.0), 3.0) if config.input_gain is None else config.input_gain
    gain = 1.0 if config.spectral_norm else gain  # which spectral norm would take away again
    potential = MLPPotential(dim, config.hidden, config.activation, config.spectral_norm, input_gain=gain)
    return potential if config.base_std is None else WithBase(potential, 0.0, config.base_std)


def _build_sampler(config: Config, space: AnySpace) -> DualSampler:
    if isinstance(space, ImageSpace):
        return DualSampler(_image_start(config, space), _build_dynamics(config, space))
    (dim,) = space.event
    start: initial.InitialDistribution
    if config.initial == "spline":
        try:
            start = initial.SplineFlow(dim, config.spline_layers, config.spline_hidden, config.spline_bins)
        except ImportError as error:
            raise ConfigError(f"configuration: initial is spline: {error}, or choose planar") from error
    elif config.initial == "planar":
        start = initial.PlanarFlow(dim, config.flow_layers, std=config.initial_std)
    elif config.initial == "langevin-flow":
        start = initial.LangevinFlow(dim, config.flow_layers, std=config.initial_std)
    else:
        start = initial.Gaussian(dim, std=config.initial_std)
    return DualSampler(start, _build_dynamics(config, space))


def _image_start(config: Config, space: ImageSpace) -> initial.InitialDistribution:
    """Chains begin from noise between black and white; what it holds depends on the seed alone."""
    if config.initial == "gaussian":
        return initial.Gaussian(space.event, std=config.initial_std)
    # The momenta of other dynamics are as small as Langevin's own: at N(0, I) the first drift would leave the image.
    std = None if config.dynamics == "langevin" else config.noise_std
    momentum = None if std is None else initial.Gaussian(space.event, std=std)
    low, high = space.range
    noise = torch.rand(_NOISE_IMAGES, *space.event, generator=stream(config.seed, "chains"))
    data = low + (high - low) * noise
    return initial.Empirical(data, config.buffer_size, reinit=config.reinit, in_turn=True, momentum=momentum)


def _build_dynamics(config: Config, space: AnySpace) -> nn.Module:
    event, hidden = space.event, config.network_hidden
    if config.dynamics in CONTINUOUS:
        # By the solver's own graph: f is small, and the adjoint would take twice as long.
        solved: dict[str, Any] = {
            "solver": config.solver,
            "rtol": config.rtol,
            "atol": 0.1 * config.rtol,
            "adjoint": False,
        }
        try:
            if config.dynamics == "continuous":
                return ContinuousLangevin(config.time, **solved)
            (dim,) = event
            return GeneralizedContinuousLangevin(VelocityNet(dim, hidden), config.time, **solved)
        except ImportError as error:
            raise ConfigError(f"configuration: dynamics is {config.dynamics}: {error}") from error
    shape = {"all": (), "dimension": event, "step": (config.n_steps, *event)}[config.step_size_per]
    step_size = torch.full(shape, config.step_size)
    make_clip = Clip.norm if config.clip == "norm" else Clip.value
    options: dict[str, Any] = {
        "learn_step_size": config.learn_step_size,
        "grad_clip": None if config.grad_clip is None else make_clip(config.grad_clip),
        "momentum_clip": None if config.momentum_clip is None else make_clip(config.momentum_clip),
        "sample_range": space.range if config.clip_samples else None,
        "gradient": config.gradient,
        "memory": config.memory,
    }
    own: dict[str, Any]
    if config.dynamics == "deterministic":
        own = {name: options[name] for name in ("learn_step_size", "gradient", "memory")} | {"log_det": config.log_det}
        return DeterministicLangevin(config.n_steps, step_size, **own)
    if config.dynamics in LANGEVIN:
        noise_std = None if config.noise_std is None else torch.full(shape, config.noise_std)
        own = {"noise_std": noise_std, "learn_noise_std": config.learn_noise_std}
        if config.dynamics != "langevin":
            (dim,) = event
            own["shift_v"] = ScaleShiftNet(dim, 2, hidden, residual=True)
            own["shift_x"] = ScaleShiftNet(dim, 1, hidden, residual=True)
        return Langevin(config.n_steps, step_size, **own, **options)
    if config.dynamics == "annealed":
        del options["momentum_clip"], options["sample_range"]  # it has neither: its weights need v and x as they are
        return AnnealedLeapfrog(config.n_steps, step_size, refresh=config.refresh, **options)
    if config.dynamics == "damped":
        return DampedLeapfrog(config.n_steps, step_size, config.damping, **options)
    if config.dynamics == "generalized":
        (dim,) = event
        return GeneralizedLeapfrog(
            config.n_steps,
            step_size,
            scale_v=ScaleShiftNet(dim, 2, hidden),
            scale_x=ScaleShiftNet(dim, 1, hidden),
            shift_v=ScaleShiftNet(dim, 2, hidden, residual=True),
            **options,
        )
    return Leapfrog(config.n_steps, step_size, **options)

"""From a configuration to its potential, dual sampler, objective and data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import data, initial
from ..dynamics import Clip, DampedLeapfrog, GeneralizedLeapfrog, Leapfrog
from ..potentials import MLPPotential
from .config import Config, ConfigError
from .objective import ADE
from .sampler import DualSampler


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


def build_data(config: Config) -> data.Toy:
    """The set to learn."""
    return data.toy(config.data)


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


def build_players(config: Config) -> tuple[MLPPotential, DualSampler]:
    """Potential and dual sampler, initialised from ``config.seed``; torch's own generator is left alone."""
    device = resolve_device(config.device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would seed every GPU too
        toy = build_data(config)
        (dim,) = toy.event
        potential = MLPPotential(dim, config.hidden, config.activation, spectral_norm=config.spectral_norm)
        if config.initial == "planar":
            start = initial.PlanarFlow(dim, config.flow_layers, std=config.initial_std)
        else:
            start = initial.Gaussian(dim, std=config.initial_std)
        sampler = DualSampler(start, _build_dynamics(config, toy))
    return potential.to(device), sampler.to(device)


def build_objective(config: Config, potential: nn.Module, sampler: DualSampler) -> ADE:
    """The objective with both players' optimizers."""
    betas = (config.beta1, config.beta2)
    return ADE(
        potential,
        sampler,
        momentum_weight=config.momentum_weight,
        entropy_weight=config.entropy_weight,
        gradient_penalty=config.gradient_penalty,
        value_penalty=config.value_penalty,
        potential_optimizer=lambda p: torch.optim.Adam(p, lr=config.potential_lr, betas=betas, maximize=True),
        sampler_optimizer=lambda p: torch.optim.Adam(p, lr=config.sampler_lr, betas=betas),
        sampler_steps=config.sampler_steps,
        grad_norm_clip=config.grad_norm_clip,
    )


def _build_dynamics(config: Config, toy: data.Toy) -> nn.Module:
    (dim,) = toy.event
    shape = {"all": (), "dimension": (dim,), "step": (config.n_steps, dim)}[config.step_size_per]
    step_size = torch.full(shape, config.step_size)
    make_clip = Clip.norm if config.clip == "norm" else Clip.value
    options = {
        "learn_step_size": config.learn_step_size,
        "grad_clip": None if config.grad_clip is None else make_clip(config.grad_clip),
        "momentum_clip": None if config.momentum_clip is None else make_clip(config.momentum_clip),
        "sample_range": toy.range if config.clip_samples else None,
        "gradient": config.gradient,
        "memory": config.memory,
    }
    if config.dynamics == "damped":
        return DampedLeapfrog(config.n_steps, step_size, config.damping, **options)
    if config.dynamics == "generalized":
        hidden = config.network_hidden
        return GeneralizedLeapfrog(
            config.n_steps,
            step_size,
            scale_v=ScaleShiftNet(dim, 2, hidden),
            scale_x=ScaleShiftNet(dim, 1, hidden),
            shift_v=ScaleShiftNet(dim, 2, hidden, residual=True),
            **options,
        )
    return Leapfrog(config.n_steps, step_size, **options)

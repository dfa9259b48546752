"""The settings that train: from a configuration, or from its defaults, to the objective of two players."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..potentials import WithBase
from .config import Config
from .estimating import estimation
from .objective import ADE
from .sampler import DualSampler
from .updates import adam


def recipe(potential: nn.Module, sampler: DualSampler, **changes: Any) -> ADE:
    """An `ADE` with the settings that ``ade-fast train`` and `ade.fit` use: maximum likelihood that holds.

    f by the importance-weighted bound of log Z, the sampler by Rényi's of order 1/2, both by Adam, gradient norms
    clipped; where ``potential`` is a `WithBase`, half of the samples are defensive ones. Meant for data of mean 0 and
    standard deviation 1. The numbers are the defaults of `ade.training.Config`.

    Args:
        potential, sampler: the players, as for `ADE`.
        changes: arguments of `ADE` that differ. With ``bound="elbo"`` what is part of the other bound goes with it.

    Raises:
        ValueError, TypeError: as `ADE`; for instance where the sampler has no density, which needs
            ``bound="elbo", sampler_bound="elbo"``.
    """
    return objective(Config(), potential, sampler, **changes)


def objective(config: Config, potential: nn.Module, sampler: DualSampler, **changes: Any) -> ADE:
    """The objective of a configuration, with both players' optimizers; ``changes`` are arguments of `ADE`."""
    betas = (config.beta1, config.beta2)
    if config.objective != "ade":  # f has no bound
        changes.setdefault("bound", "elbo")
    if changes.get("optimizer") is False:
        changes = {"potential_optimizer": None, "sampler_optimizer": None, **changes}
    arguments = {
        "momentum_weight": config.momentum_weight,
        "entropy_weight": config.entropy_weight,
        "bound": config.bound,
        "sampler_bound": config.sampler_bound,
        "samples_per_point": config.samples_per_point,
        "gradient_penalty": config.gradient_penalty,
        "value_penalty": config.value_penalty,
        "potential_optimizer": adam(config.potential_lr, betas, maximize=True),
        "sampler_optimizer": adam(config.sampler_lr, betas, maximize=False),
        "sampler_steps": config.sampler_steps,
        "grad_norm_clip": config.grad_norm_clip,
        **changes,
    }
    if arguments["bound"] == "importance":
        arguments.setdefault("min_ess", config.min_ess)
        arguments.setdefault("ess_pace", config.ess_pace)
        arguments.setdefault("defensive", config.defensive if isinstance(potential, WithBase) else 0.0)
    if hasattr(sampler.initial, "log_prob"):
        arguments.setdefault("coverage", config.coverage)
    if arguments["sampler_bound"] != "elbo":
        arguments.setdefault("sampler_min_ess", config.sampler_min_ess)
    if config.objective != "ade":
        return estimation(config, potential, sampler, arguments)
    return ADE(potential, sampler, **arguments)

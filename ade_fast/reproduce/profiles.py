"""Settings of the two-dimensional experiments as the paper has them, and as its released code has them."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..training.updates import adam

_LEARNING_RATE, _BETAS = 1e-3, (0.9, 0.999)

_PAPER: dict[str, Any] = {
    # f: F.1; no base measure, no gain.
    "hidden": (128, 128, 128), "activation": "relu", "input_gain": 1.0, "base_std": None,
    # q⁰: ten planar maps of N(0, I), then five Langevin steps. The paper has no numbers for step size and clips: the
    # released code's.
    "initial": "planar", "flow_layers": 10, "initial_std": 1.0, "dynamics": "langevin", "n_steps": 5,
    "step_size": 0.01, "step_size_per": "step", "learn_noise_std": True, "clip": "norm", "grad_clip": 1.0,
    "momentum_clip": 1.0, "clip_samples": True, "gradient": "full",
    # Objective (20), with one bound for both players and nothing around it.
    "bound": "elbo", "sampler_bound": "elbo", "sampler_min_ess": None, "defensive": 0.0, "coverage": 0.0,
    "ess_pace": None, "gradient_penalty": 0.01, "penalty_decay_to": 1.0,
    # Adam as it is: the released code's rate and batch; no clip, no decay, no averages.
    "batch_size": 100, "potential_lr": _LEARNING_RATE, "sampler_lr": _LEARNING_RATE, "beta1": _BETAS[0],
    "beta2": _BETAS[1], "sampler_steps": 1, "grad_norm_clip": None, "lr_decay_to": 1.0, "ema_decay": 0.0,
    # Data as they come, in their own units.
    "standardise": False, "data_noise": 0.0, "validate_by": "mmd2", "calibrate": False,
    # Our watch would stop runs that only begin wildly.
    "max_gap": 1e4,
}  # fmt: skip

# Five leapfrogs of one step η = 0.01, each with a momentum drawn anew: in x a Langevin step of η², whose noise is η
# (here with a scale of its own to learn).
REDRAWN: dict[str, Any] = {"step_size": 1e-4, "noise_std": 0.01, "momentum_clip": 0.01}
_RELEASED = {**_PAPER, **REDRAWN, "gradient": "truncated", "sampler_steps": 5}


class Profile(NamedTuple):
    """settings: keys and values of `ade.training.Config` that are not its defaults. ade: arguments of `ade.ADE`."""

    settings: dict[str, Any]
    ade: dict[str, Any]


PROFILES = {"paper": _PAPER, "released": _RELEASED}


def profile(name: str) -> Profile:
    """The settings of the two-dimensional experiments.

    "paper" is F.1 with the exact gradient of (20); "released" is the toy code: f's gradient stops at the samples (38),
    five updates of the sampler for one of f, a momentum drawn anew for each of five leapfrogs of one step. Left out of
    it on purpose, as they make the density or the gradient another: the Metropolis test of these steps, and the sign of
    the kinetic term.

    Args:
        name: "paper" or "released".

    Raises:
        ValueError: another name.
    """
    if name not in PROFILES:
        raise ValueError(f"profile: name must be one of {', '.join(PROFILES)}, got {name!r}")
    settings = dict(PROFILES[name])
    arguments = {key: settings[key] for key in ("bound", "sampler_bound", "gradient_penalty", "sampler_steps")}
    for player, maximize in (("potential", True), ("sampler", False)):
        arguments[f"{player}_optimizer"] = adam(_LEARNING_RATE, _BETAS, maximize=maximize)
    return Profile(settings, arguments)

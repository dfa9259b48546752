"""Markov chains in one operator: Metropolis-adjusted leapfrogs, and Langevin steps without a test, of MLP potentials.

`fused_metropolis` and `fused_langevin` give their chains to `run`: `run_chain_op`, or `run_contrast_op` for what
contrastive divergence makes of them. They return what it returns, and None where the operators do not know the
potential, the states or the dynamics: the caller then goes step by step. Random numbers are counter-based, from a seed
that is one draw of the generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._mlp_chain_op import mlp_chain, mlp_contrast
from .._philox_op import draw_seed
from .._slow_paths import note_slow_path
from ..fields import Layout
from ..fields.values import FusedSum, fused_sum_or_why
from ..potentials import MLPPotential, WithBase
from . import base
from .base import Clip, Dynamics, Options
from .langevin import Langevin, check_noise_std


def run_chain_op(found: FusedSum, x: Tensor, *chain: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """(x, acceptance [K]), acceptance absent without a test: the operator with a potential's weights, all of its
    arguments in words (`_arguments`)."""
    return mlp_chain(*_arguments(found, x, *chain, **options))


def run_contrast_op(
    found: FusedSum, x: Tensor, *chain: Any, **options: Any
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """(mean of f where the chains end less that where they begin, its derivatives by f's weights, the weights), as
    `with_derivatives` takes them; with the arguments of `run_chain_op`."""
    value, dweights, dbiases = mlp_contrast(*_arguments(found, x, *chain, **options))[2:]
    begin, end = value.mean(1)
    weights, biases = found.field.weights()
    return end - begin, [*dweights, *dbiases], [*weights, *biases]


def _arguments(
    found: FusedSum,
    x: Tensor,
    seed: Tensor,
    kick: Tensor,
    drift: Tensor,
    n_transitions: int,
    test: bool,
    *,
    grad_clip: Clip | None = None,
    momentum_clip: Clip | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    noise_std: Tensor | None = None,
    normals: Tensor | None = None,
    uniforms: Tensor | None = None,
) -> tuple[Any, ...]:
    """Of the operators' schema."""
    pull, centre = (None, None) if found.base is None else found.base
    return (
        x, seed, kick, drift, *found.field.weights(), *found.field.spec.numbers, n_transitions, test,
        *base.clip_code(grad_clip), *base.clip_code(momentum_clip), *bounds, noise_std, pull, centre, normals, uniforms,
    )  # fmt: skip


def fused_metropolis(
    layer: str,
    potential: Callable[..., Tensor],
    x: Tensor,
    n_transitions: int,
    step_size: Tensor,
    n_steps: int,
    options: Options,
    generator: torch.Generator | None,
    run: Callable[..., Any] = run_chain_op,
) -> Any:
    """K transitions of `n_steps` leapfrog steps from a new momentum, each with a test."""
    known = _known(layer, potential, x, options)
    if known is None:
        return None
    found, clips = known
    kick, drift = base.MergedSteps(layer, n_steps, Layout.of(x), step_size).rows(x)
    return run(found, x, _seed(x, generator), kick, drift, n_transitions, True, **clips)


def fused_langevin(
    layer: str,
    potential: Callable[..., Tensor],
    x: Tensor,
    dynamics: Dynamics,
    n_runs: int,
    generator: torch.Generator | None,
    run: Callable[..., Any] = run_chain_op,
) -> Any:
    """`n_runs` runs of a Langevin layer with the same step at all times; of one run, the layer's own x."""
    if type(dynamics) is not Langevin:
        return None
    why = None
    if dynamics.shift_v is not None or dynamics.shift_x is not None:
        why = "shift_v or shift_x"
    elif any(step.dim() == x.dim() for step in (dynamics.step_size, dynamics.noise_std)):
        why = "a step_size or noise_std per step"
    known = _known(layer, potential, x, dynamics.options, why)
    if known is None:
        return None
    found, clips = known
    layout = Layout.of(x)
    eta = base.step_rows(layer, dynamics.step_size, 1, layout, x)
    std = base.step_rows(layer, dynamics.noise_std, 1, layout, x, "noise_std").contiguous()
    check_noise_std(layer, std)
    kick = torch.cat([0.5 * eta, torch.zeros_like(eta)])  # each momentum is forgotten after its drift
    n = n_runs * dynamics.n_steps
    drift = torch.ones_like(eta)
    return run(found, x, _seed(x, generator), kick, drift, n, False, **clips, noise_std=std[0])


def _known(
    layer: str, potential: Callable[..., Tensor], x: Tensor, options: Options, why: str | None = None
) -> tuple[FusedSum, dict[str, Any]] | None:
    """The potential and the clips as `run_chain_op` takes them, or None, said aloud where the operators might have
    taken the chain: they would have, but for what was asked for (`why`), or the potential is the package's own MLP."""
    found = fused_sum_or_why(potential, x)
    if isinstance(found, str):
        inner = potential.potential if type(potential) is WithBase else potential
        if type(inner) is MLPPotential:
            _note(layer, found)
        return None
    within = options.range_of(layer, Layout.of(x))
    why = why or _asked_for(options, within.per_dimension)
    if x.device.type != "cpu":
        why = f"they are of the CPU alone as yet, the states on {x.device.type}"
    if why is not None:
        _note(layer, why)
        return None
    return found, {
        "grad_clip": options.grad_clip, "momentum_clip": options.momentum_clip, "bounds": within.numbers,
    }  # fmt: skip


def _asked_for(options: Options, per_dimension: bool) -> str | None:
    """What the operators do not do: checks at every step, fixed-point states, ranges per dimension."""
    asked = {
        "check_finite=True": options.check_finite,
        "check_potential=True": options.check_potential,
        "memory='reversible'": options.memory == "reversible",
        "a sample_range per dimension": per_dimension,
    }
    return next((what for what, is_asked in asked.items() if is_asked), None)


def _note(layer: str, why: str) -> None:
    message = f"{layer}: the operators that run whole chains do not take this one ({why})"
    note_slow_path(f"chains: {why}", f"{message}: each transition is an unroll and an evaluation of its own")


def _seed(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return draw_seed(x.device if generator is None else generator.device, generator).to(x.device)

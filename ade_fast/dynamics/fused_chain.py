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
from ..fields.values import FusedSum, fused_sum
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
    if type(dynamics) is not Langevin or dynamics.shift_v is not None or dynamics.shift_x is not None:
        return None
    if any(step.dim() == x.dim() for step in (dynamics.step_size, dynamics.noise_std)):
        return None  # one per step
    known = _known(layer, potential, x, dynamics.options)
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
    layer: str, potential: Callable[..., Tensor], x: Tensor, options: Options
) -> tuple[FusedSum, dict[str, Any]] | None:
    """The potential and the clips as `run_chain_op` takes them, which has no checks at every step, fixed-point states
    or ranges per dimension."""
    if options.check_finite or options.check_potential or options.memory == "reversible":
        return None
    within = options.range_of(layer, Layout.of(x))
    found = None if within.per_dimension else fused_sum(potential, x)
    if found is None:
        return None
    if x.device.type != "cpu":
        why = f"{layer}: chains in one operator are of the CPU alone as yet: on {x.device.type} each transition is"
        note_slow_path(f"chains on {x.device.type}", f"{why} an unroll and an evaluation of its own")
        return None
    return found, {
        "grad_clip": options.grad_clip, "momentum_clip": options.momentum_clip, "bounds": within.numbers,
    }  # fmt: skip


def _seed(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return draw_seed(x.device if generator is None else generator.device, generator).to(x.device)

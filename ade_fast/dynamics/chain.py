"""Hamiltonian Monte Carlo with the leapfrog layer's steps: samples of p_f, and no density."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..fields import fused_value
from ..fields.autograd import check_value
from . import base
from .base import Options
from .fused_chain import fused_metropolis
from .leapfrog import run_leapfrog


class Chain(NamedTuple):
    """The ends of Markov chains.

    x: [B, *event]. acceptance: the fraction of the chains that moved at each transition, [n_transitions].
    """

    x: Tensor
    acceptance: Tensor

    @property
    def log_q(self) -> Tensor:
        """There is none."""
        raise RuntimeError(
            "Leapfrog.chain: there is no log_q: where a proposal may be rejected, x is a mixture over all patterns of "
            "acceptance, whose density has no closed form. Call the layer itself (or DualSampler.sample) for a density"
        )

    @property
    def log_det(self) -> Tensor:
        """There is none."""
        return self.log_q


@base.outside_of_graphs
def run_chain(
    potential: Callable[..., Tensor],
    x0: Tensor,
    n_transitions: int,
    step_size: Tensor,
    n_steps: int,
    options: Options,
    generator: torch.Generator | None,
) -> Chain:
    """Transitions of T leapfrog steps each, with a new momentum, accepted or rejected."""
    layer = "Leapfrog.chain"
    n_transitions = check_n_transitions(layer, n_transitions)
    base.check_x0(layer, x0)
    base.check_generator(layer, generator, x0)
    if x0.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{layer}: x0 must not require grad: whether a proposal is accepted has no derivative")
    if options.sample_range is not None:
        raise ValueError(
            f"{layer}: sample_range must be None: a clamped step cannot be taken back, got {options.sample_range}"
        )
    if step_size.dim() == x0.dim() and not torch.equal(step_size, step_size.flip(0)):
        raise ValueError(
            f"{layer}: step_size must read the same backwards where there is one per step: a proposal has to lead back "
            f"by the same steps"
        )
    return Chain(*metropolis(layer, potential, x0.detach(), n_transitions, step_size, n_steps, options, generator))


@torch.no_grad()
def metropolis(
    layer: str,
    potential: Callable[..., Tensor],
    x: Tensor,
    n_transitions: int,
    step_size: Tensor,
    n_steps: int,
    options: Options,
    generator: torch.Generator | None,
    context: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, Tensor]:
    """(x, acceptance [K]) after K transitions: in one operator for the potentials that it knows, else step by step."""
    found = fused_metropolis(layer, potential, x, n_transitions, step_size, n_steps, options, generator)
    if found is not None:
        return found

    def draw(_: int) -> tuple[Tensor, Tensor]:
        device = x.device if generator is None else generator.device
        v = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device)
        u = torch.rand(len(x), generator=generator, dtype=base.accumulation_dtype(x.dtype), device=device)
        return v.to(x.device), u.to(x.device)

    return metropolis_by_steps(layer, potential, x, n_transitions, step_size, n_steps, options, draw, context)


def metropolis_by_steps(
    layer: str,
    potential: Callable[..., Tensor],
    x: Tensor,
    n_transitions: int,
    step_size: Tensor,
    n_steps: int,
    options: Options,
    draw: Callable[[int], tuple[Tensor, Tensor]],
    context: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, Tensor]:
    """`metropolis` for any potential. draw: k -> (v⁰, like x; u, [B]) of transition k."""
    value, accepted = _value(layer, potential, x), []
    for k in range(n_transitions):
        v, u = draw(k)
        out, _ = run_leapfrog(layer, potential, x, v, step_size, n_steps, options, context=context)
        proposed = _value(layer, potential, out.x)
        assert out.v is not None
        log_ratio = proposed - _kinetic(out.v) - value + _kinetic(v)
        moves = u.log() < log_ratio  # no move where the ratio is NaN
        x = torch.where(moves.view(-1, *[1] * (x.dim() - 1)), out.x, x)
        value = torch.where(moves, proposed, value)
        accepted.append(moves.to(value.dtype).mean())
    return x, torch.stack(accepted)


def check_n_transitions(layer: str, n: object) -> int:
    if isinstance(n, bool) or not isinstance(n, numbers.Integral):
        raise TypeError(f"{layer}: n_transitions must be an integer, got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"{layer}: n_transitions must be at least 1, got {n}")
    return int(n)


def _value(layer: str, potential: Callable[..., Tensor], x: Tensor) -> Tensor:
    """f(x), [B], at least in float32."""
    value = fused_value(potential, x) if callable(potential) else None
    if value is None:
        base.check_potential(layer, potential, x, probe=False)
        value = check_value(layer, potential(x), x)
    return value.to(base.accumulation_dtype(value.dtype))


def _kinetic(v: Tensor) -> Tensor:
    return v.flatten(1).to(base.accumulation_dtype(v.dtype)).square().sum(1) / 2

"""Markov transitions that the contrastive estimators take their negative samples from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .._known import with_derivatives
from ..dynamics import Langevin, Leapfrog
from ..dynamics.base import Dynamics, Options
from ..dynamics.chain import metropolis
from ..dynamics.fused_chain import fused_langevin, fused_metropolis, run_contrast_op
from ..initial.base import as_count
from ._values import Potential, check_generator, check_positive


class ChainEnd(NamedTuple):
    """x: where the chains are, [B, *event], without a graph. acceptance: mean acceptance, a scalar; None: no test."""

    x: Tensor
    acceptance: Tensor | None


@dataclass(frozen=True)
class Chain:
    """``n_transitions`` runs of a dynamics, each from where the last one ended, on the fused unrolls; no gradients.

    With ``accept_reject`` each run is a Metropolis-Hastings step, under which p_f is invariant: of `Leapfrog`
    Hamiltonian Monte Carlo (the momentum is drawn anew, the end point accepted with probability min(1, exp(H)), H the
    change of f - ½‖v‖²); of `Langevin` each of its steps by itself (MALA): it is one leapfrog step of √step_size.

    Args:
        dynamics: `Leapfrog`, `Langevin`, or without ``accept_reject`` any other dynamics layer.
        n_transitions: how many runs, >= 1.
        accept_reject: whether to test each run.

    Raises:
        TypeError: ``dynamics`` is no dynamics layer, or none that ``accept_reject`` knows.
        ValueError: ``accept_reject`` with ``sample_range`` (which does not keep volume) or with `Langevin` noise other
            than √step_size, or networks of its own.
    """

    dynamics: Dynamics
    n_transitions: int = 1
    accept_reject: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.dynamics, Dynamics):
            raise TypeError(f"Chain: dynamics must be a dynamics layer, got {type(self.dynamics).__name__}")
        as_count("Chain", "n_transitions", self.n_transitions, least=1)
        if not isinstance(self.accept_reject, bool):
            raise TypeError(f"Chain: accept_reject must be True or False, got {self.accept_reject!r}")
        if not self.accept_reject:
            return
        kind = type(self.dynamics)
        if kind not in (Leapfrog, Langevin):
            raise TypeError(f"Chain: accept_reject needs Leapfrog or Langevin, got {kind.__name__}")
        if self.dynamics.options.sample_range is not None:
            raise ValueError("Chain: accept_reject needs dynamics without sample_range, which does not keep volume")
        if kind is Langevin:
            layer = self.dynamics
            if layer.log_noise_std is not None or layer.shift_v is not None or layer.shift_x is not None:
                raise ValueError(
                    "Chain: accept_reject needs Langevin with noise_std=None (√step_size) and without shift_v, shift_x"
                )
            if layer.options.momentum_clip is not None:
                raise ValueError("Chain: accept_reject needs Langevin without momentum_clip")

    @classmethod
    def langevin(cls, n_steps: int, step_size: float, accept_reject: bool = False, *, like: Tensor) -> Chain:
        """``n_steps`` Langevin steps with a fixed step size, for states like ``like``."""
        step = torch.tensor(check_positive("Chain", "step_size", step_size), dtype=like.dtype, device=like.device)
        return cls(Langevin(n_steps, step, learn_step_size=False, gradient="none"), 1, accept_reject)

    @torch.no_grad()
    def run(
        self,
        potential: Potential,
        x0: Tensor,
        *,
        generator: torch.Generator | None = None,
        context: tuple[Tensor, ...] | None = None,
    ) -> ChainEnd:
        """From x0 [B, *event]; inside `pinned` where f's weights are parametrised."""
        check_generator("Chain", generator)
        x = x0.detach()
        if not self.accept_reject:
            found = fused_langevin("Chain", potential, x, self.dynamics, self.n_transitions, generator)
            if found is not None:
                return ChainEnd(found[0], None)
            for _ in range(self.n_transitions):
                x = self.dynamics(potential, x, generator=generator, context=context).x
            return ChainEnd(x, None)
        x, accepted = metropolis("Chain", potential, x, *self._leapfrogs(), generator, context)
        return ChainEnd(x, accepted.mean())

    def contrast(
        self, potential: Potential, data: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """``E[f(end)] - E_D[f(x)]`` of `run` from the data, with derivatives by f's weights from one operator; None
        where there is none, or no need of one."""
        check_generator("Chain", generator)
        if data.requires_grad or not torch.is_grad_enabled():
            return None
        with torch.no_grad():
            found = (
                fused_metropolis("Chain", potential, data, *self._leapfrogs(), generator, run_contrast_op)
                if self.accept_reject
                else fused_langevin(
                    "Chain", potential, data, self.dynamics, self.n_transitions, generator, run_contrast_op
                )
            )
        return None if found is None else with_derivatives(*found)

    def _leapfrogs(self) -> tuple[int, Tensor, int, Options]:
        """(transitions, step size, steps of each, options) of leapfrog, where each is tested."""
        layer, n = self.dynamics, self.n_transitions
        step_size, n_steps = layer.step_size, layer.n_steps
        if isinstance(layer, Langevin):  # one leapfrog step each
            step_size, n_steps, n = step_size.sqrt(), 1, n * n_steps
        return n, step_size, n_steps, layer.options

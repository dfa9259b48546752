"""The dual sampler: an initial distribution followed by a dynamics that the potential drives."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ._arguments import integer


class DualSample(NamedTuple):
    """One batch of the dual sampler.

    x: [B, *event], the end points x^T.
    v: the end momenta; [B, *momentum_shape], or [T, B, *event] where the dynamics draws a momentum
        per step (Langevin), or None where there is none.
    log_q: [B], log q^T(x, v) = log q^0 - log_det (+ log_noise). Where the initial distribution has no
        density (``Empirical``) the unknown constant log q^0 is left out, and log_q holds the rest.
    x0: [B, *event], where the dynamics started.
    v0: [B, *momentum_shape], the momenta there, or None.
    log_q0: [B], log q^0(x^0, v^0), or None where it has no density.
    """

    x: Tensor
    v: Tensor | None
    log_q: Tensor
    x0: Tensor
    v0: Tensor | None = None
    log_q0: Tensor | None = None


class DualSampler(nn.Module):
    """Draws (x^0, v^0) from ``initial`` and moves them by ``dynamics``.

    Source: paper section 3.2; the change of variables divides, log q^T = log q^0 - log|det J|, where (17)
    prints a product.

    Args:
        initial: an object with ``event`` and
            ``sample(n, momentum_shape=None, generator=None) -> (x, v, log_q)``.
        dynamics: a layer called as ``dynamics(potential, x0, v0, generator=, context=)`` that returns at
            least ``x, v, log_det``, with ``momentum_shape(event)``.
    """

    def __init__(self, initial: nn.Module, dynamics: nn.Module):
        super().__init__()
        if not callable(getattr(initial, "sample", None)) or not hasattr(initial, "event"):
            raise TypeError(
                "DualSampler: initial must be an initial distribution with .event and .sample(n, "
                f"momentum_shape, generator), such as ade.initial.Gaussian, got {type(initial).__name__}"
            )
        if not callable(dynamics) or not callable(getattr(dynamics, "momentum_shape", None)):
            raise TypeError(
                "DualSampler: dynamics must be a dynamics layer with .momentum_shape(event), such as "
                f"ade.Leapfrog, got {type(dynamics).__name__}"
            )
        self.initial = initial
        self.dynamics = dynamics
        if getattr(getattr(dynamics, "options", None), "sample_range", None) is not None:
            warnings.warn(
                "DualSampler: dynamics clips samples to sample_range, which log_q ignores: q^T has atoms on the "
                "boundary, and the entropy is that of the samples before clipping",
                UserWarning,
                stacklevel=2,
            )

    def sample(
        self,
        potential,
        n: int,
        generator: torch.Generator | None = None,
        context: tuple[Tensor, ...] | None = None,
    ) -> DualSample:
        """Draw n samples; differentiable with respect to everything they depend on.

        Args:
            potential: f, [B, *event] -> [B].
            n: number of samples, >= 0.
            generator: the source of all randomness (torch's global one if None).
            context: non-leaf tensors that f depends on; passed on to the dynamics.
        """
        n = integer("DualSampler", "n", n, low=0)
        momentum_shape = self.dynamics.momentum_shape(tuple(self.initial.event))
        x0, v0, log_q0 = self.initial.sample(n, momentum_shape=momentum_shape, generator=generator)
        out = self.dynamics(potential, x0, v0, generator=generator, context=context)
        log_q = -out.log_det if log_q0 is None else log_q0 - out.log_det
        log_noise = getattr(out, "log_noise", None)
        if log_noise is not None:
            log_q = log_q + log_noise
        return DualSample(out.x, out.v, log_q, x0, v0, log_q0)

    def draws_own_momenta(self) -> bool:
        """Whether the momenta are the dynamics' own, one per step [T, B, ...] (Langevin), not q^0's."""
        return self.dynamics.momentum_shape(tuple(self.initial.event)) is None

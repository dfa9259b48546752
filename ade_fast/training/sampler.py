"""The dual sampler: an initial distribution followed by a dynamics that the potential drives."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..initial import Flow, Gaussian
from ..potentials._checks import per_sample
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


class _InBaseVariables(nn.Module):
    """f seen from a flow's base: f(g(z)) + log|det ∂g/∂z|, whose exp has the integral of exp f. (B, dim) -> (B,)."""

    def __init__(self, potential: Callable[[Tensor], Tensor], flow: Flow) -> None:
        super().__init__()
        self.potential = potential
        self.flow = flow

    def forward(self, z: Tensor) -> Tensor:
        x, log_det = _transform(self.flow, z)
        return per_sample("DualSampler", "potential", self.potential(x), len(x)) + log_det


def _transform(flow: Flow, z: Tensor) -> tuple[Tensor, Tensor]:
    """(x, log|det ∂x/∂z|) in full precision: a density is not to be rounded to bfloat16."""
    with torch.autocast(z.device.type, enabled=False):
        return flow.transform(z)


def _out_of_base(flow: Flow, sample: DualSample) -> DualSample:
    """A sample of (z, v) as one of (x, v), both ends in one pass of the flow."""
    x, log_det = _transform(flow, torch.cat([sample.x, sample.x0]))
    (x, x0), (log_det, log_det0) = x.chunk(2), log_det.chunk(2)
    return DualSample(x, sample.v, sample.log_q - log_det, x0, sample.v0, sample.log_q0 - log_det0)


class DualSampler(nn.Module):
    """Draws (x^0, v^0) from ``initial`` and moves them by ``dynamics``.

    Source: paper section 3.2; the change of variables divides, log q^T = log q^0 - log|det J|, where (17)
    prints a product.

    An annealed dynamics (``AnnealedLeapfrog``) is given the Gaussian that ``initial`` is. Where ``initial`` is a flow
    x = g(z) of a Gaussian, it runs in z, on f(g(z)) + log|det ∂g/∂z|, and x, x0, log_q and log_q0 are those of the
    images.

    Args:
        initial: an object with ``event`` and
            ``sample(n, momentum_shape=None, generator=None) -> (x, v, log_q)``.
        dynamics: a layer called as ``dynamics(potential, x0, v0, generator=, context=)`` that returns at
            least ``x, v, log_det``, with ``momentum_shape(event)``. One with a true attribute ``anneals`` is called
            with ``initial=`` too.
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
        if _anneals(dynamics) and not isinstance(initial, (Gaussian, Flow)):
            raise TypeError(
                f"DualSampler: {type(dynamics).__name__} anneals from a Gaussian: initial must be an "
                f"ade.initial.Gaussian or a flow (ade.initial.Flow), got {type(initial).__name__}"
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
        annealed = _anneals(self.dynamics)
        flow = self.initial if annealed and isinstance(self.initial, Flow) else None
        start, target = (self.initial, potential) if flow is None else (flow.base, _InBaseVariables(potential, flow))
        x0, v0, log_q0 = start.sample(n, momentum_shape=momentum_shape, generator=generator)
        options = {"initial": start} if annealed else {}
        out = self.dynamics(target, x0, v0, generator=generator, context=context, **options)
        log_q = -out.log_det if log_q0 is None else log_q0 - out.log_det
        log_noise = getattr(out, "log_noise", None)
        if log_noise is not None:
            log_q = log_q + log_noise
        sample = DualSample(out.x, out.v, log_q, x0, v0, log_q0)
        return sample if flow is None else _out_of_base(flow, sample)

    def draws_own_momenta(self) -> bool:
        """Whether the momenta are the dynamics' own, one per step [T, B, ...] (Langevin), not q^0's."""
        return self.dynamics.momentum_shape(tuple(self.initial.event)) is None


def _anneals(dynamics: nn.Module) -> bool:
    return bool(getattr(dynamics, "anneals", False))

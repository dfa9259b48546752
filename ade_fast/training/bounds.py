"""Bounds of log Z_x from one batch of the dual sampler's weights, and what tempers and defends them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _log_weights_op
from .._known import with_derivatives
from .._mlp_ops import WeightGradients
from .._ops import is_plain_on_cpu
from ..dynamics import DampedLeapfrog
from ..dynamics.sequential import layers_of
from ..potentials import WithBase
from ..weights import effective_sample_size, log_mean_exp, warn_of_thin_sheet, why_no_weights
from ._arguments import number
from .sampler import Cut, DualSampler

ORDERS = {"elbo": 1.0, "renyi": 0.5, "importance": 0.0}
"""Rényi's order of each bound by its name: eq. (20), the one between, and the importance-weighted one."""

# Two grids of this many powers, the second between two neighbours of the first: beta to within 2^-12, no loop.
_GRID = 64


@dataclass(frozen=True)
class Defence:
    """Samples of a base measure beside the dual sampler's: their log-weights [M], and their share of all samples."""

    log_w: Tensor
    share: float


def renyi_bound(log_w: Tensor, power: float | Tensor, defence: Defence | None = None) -> Tensor:
    """(1/p) log mean w^p <= log E[w], Rényi's bound of order 1 - p; p = 0 is E[log w], p = 1 the tightest.

    Source: Li and Turner 2016; Burda et al. 2016 for p = 1. With a defence, mean w^p is that of both kinds of samples,
    each an unbiased estimate for p = 1, weighted by their shares.

    Shapes: log_w [K], any floating dtype; power in [0, 1], a number or a scalar tensor (without a gradient; positive).
    """
    given = (log_w,) if defence is None else (log_w, defence.log_w)
    if not _is_zero(power) and _log_weights_op.takes(number := torch.as_tensor(power, dtype=log_w.dtype), *given):
        log_b, share = (None, 0.0) if defence is None else (defence.log_w, defence.share)
        return _log_weights_op.renyi_bound(log_w, log_b, number, share)
    if defence is None:
        return log_w.mean() if _is_zero(power) else log_mean_exp(power * log_w) / power
    if _is_zero(power):
        return (1 - defence.share) * log_w.mean() + defence.share * defence.log_w.mean()
    ours = log_mean_exp(power * log_w) + math.log(1 - defence.share)
    theirs = log_mean_exp(power * defence.log_w) + math.log(defence.share)
    return torch.logaddexp(ours, theirs) / power


def tempered_power(log_w: Tensor, min_ess: float, most: float = 1.0) -> Tensor:
    """The largest beta <= ``most`` whose w^beta have an effective sample size of ``min_ess``, or a little less.

    Shapes: log_w [K], detached -> a scalar of its dtype, at least 2^-12 of ``most``; no synchronisation.
    """
    if is_plain_on_cpu(log_w := log_w.detach()):
        return _log_weights_op.tempered_power(log_w, _GRID**2, min_ess, most)
    dtype, log_w = log_w.dtype, most * log_w.double()
    step = torch.arange(1, _GRID + 1, dtype=torch.float64, device=log_w.device) / _GRID
    coarse = _largest(log_w, step, min_ess, otherwise=0.0)
    fine = _largest(log_w, (coarse + step / _GRID).clamp(max=1.0), min_ess, otherwise=coarse)
    return (most * fine.clamp(min=_GRID**-2)).to(dtype)


def _largest(log_w: Tensor, powers: Tensor, min_ess: float, otherwise: float | Tensor) -> Tensor:
    """The largest of the ascending powers that keeps the effective sample size; it falls as they rise."""
    enough = effective_sample_size(powers[:, None] * log_w) >= min_ess
    return torch.where(enough, powers, otherwise).max()


def _is_zero(power: float | Tensor) -> bool:
    return not isinstance(power, Tensor) and power == 0


def with_other_gradient(
    loss: Tensor,
    other: Tensor,
    parameters: Sequence[Tensor],
    cut: Cut | None = None,
    weights: WeightGradients | None = None,
) -> Tensor:
    """``loss``, whose backward pass leaves the gradient of ``other`` on ``parameters`` and its own on everything else.

    Both share one graph, of which one more vector-Jacobian product is taken here: of the difference, or, where the
    graph was cut from the parameters, of ``other``, and what lies behind the cut is gone through once. It is added
    where ``loss.backward()`` ends, so that accumulation, hooks and wrappers see one gradient for each parameter.

    weights: of the unrolls in that graph; up to the cut they are of f alone, and their weights' gradients are left out.
    """
    added, inputs, receivers = (other - loss, parameters, parameters) if cut is None else (other, *cut)
    if not (added.requires_grad and inputs):  # a sampler that is cut off, and an f without parameters
        return loss
    with nullcontext() if cut is None or weights is None else weights.unwanted():
        found = torch.autograd.grad(added, inputs, retain_graph=True, allow_unused=True)
    pairs = [(g, p) for g, p in zip(found, receivers, strict=True) if g is not None]
    if not pairs:
        return loss
    gradients, given = zip(*pairs, strict=True)
    return loss + with_derivatives(loss.new_zeros(()), gradients, given)


def with_both_gradients(
    loss: Tensor, bounds: tuple[Tensor, Tensor], weighed: Tensor, log_w: Tensor, weights: WeightGradients
) -> Tensor:
    """``loss``, whose backward pass leaves also what its bounds come to: f's on f, the sampler's on all else.

    Both bounds depend on one sample through one number, its log-weight, so that the cotangents of the whole unroll are
    those of log w times each bound's own derivative by it. One pass goes back with the sampler's, and f's weights take
    what f's is of it.

    bounds: f's and the sampler's, of `weighed`, log-weights [K] that lead nowhere. log_w: the same, with their graph,
    in which f acts through one fused unroll alone, that `weights` is of.
    """
    (own,) = torch.autograd.grad(bounds[0], weighed, retain_graph=True)  # of the defensive samples
    (other,) = torch.autograd.grad(bounds[1], weighed)
    kind = torch.finfo(log_w.dtype)
    sizes = [d.max().clamp(min=kind.tiny) for d in (own, other)]  # where defensive samples have all weight, f's is 0
    # As fractions of the largest, and not 0, as one is divided by the other: but adjoints of what weighs 0 may be huge.
    own, other = ((d / size).clamp(min=kind.tiny**0.8) for d, size in zip((own, other), sizes, strict=True))
    weights.differ(own / other, sizes[0] / sizes[1])
    return loss + with_derivatives(loss.new_zeros(()), [-(sizes[1] * other)], [log_w])


@dataclass(frozen=True)
class Bounds:
    """Which bound of log Z each player has; see `ADE`."""

    potential: str
    sampler: str
    min_ess: float | None
    sampler_min_ess: float | None
    defensive: float

    @classmethod
    def of(
        cls, bound: object, sampler_bound: object, min_ess: object, sampler_min_ess: object, defensive: object
    ) -> Bounds:
        """From ADE's arguments.

        Raises: ValueError, TypeError, each by itself; `check` looks at them together.
        """
        return cls(
            _one_of("bound", bound, ("elbo", "importance")),
            _one_of("sampler_bound", sampler_bound, tuple(ORDERS)),
            fraction("min_ess", min_ess),
            fraction("sampler_min_ess", sampler_min_ess),
            fraction("defensive", defensive or None) or 0.0,
        )

    def check(
        self, potential: Callable[..., Tensor], sampler: DualSampler, momentum_weight: Tensor, entropy_weight: float
    ) -> None:
        """Raises ValueError where these bounds are not defined for these players; warns where they are useless."""
        if self.min_ess is not None and self.potential != "importance":
            raise ValueError(f"ADE: min_ess tempers bound='importance', got bound={self.potential!r}")
        if self.sampler_min_ess is not None and self.sampler == "elbo":
            raise ValueError("ADE: sampler_min_ess tempers other bounds than (20), got sampler_bound='elbo'")
        if self.defensive:
            if self.potential != "importance":
                raise ValueError(f"ADE: defensive samples are part of bound='importance', got bound={self.potential!r}")
            if not isinstance(potential, WithBase):
                raise ValueError(
                    "ADE: defensive samples come from the potential's base measure: potential must be an ade.WithBase, "
                    f"got {type(potential).__name__}"
                )
        if self.potential == self.sampler == "elbo":
            return
        if entropy_weight != 1.0:
            raise ValueError(
                f"ADE: entropy_weight must be 1 unless both bounds are 'elbo': weights are those of the density "
                f"itself, got {entropy_weight:g}"
            )
        if (why := why_no_weights(sampler, momentum_weight)) is not None:
            raise ValueError(f"ADE: bound={self.potential!r} and sampler_bound={self.sampler!r} need weights: {why}")
        warn_of_thin_sheet("ADE", sampler)
        damped = any(isinstance(layer, DampedLeapfrog) and layer.damping < 1 for layer in layers_of(sampler.dynamics))
        if damped and bool((momentum_weight <= 1).all()):
            warnings.warn(
                f"ADE: DampedLeapfrog shrinks momenta below the model's: at momentum_weight "
                f"{momentum_weight.max().item():g} its weights have no finite variance; raise momentum_weight",
                UserWarning,
                stacklevel=4,
            )

    @property
    def differ(self) -> bool:
        """Whether one gradient cannot serve both players."""
        return bool(self.defensive) or self.potential != self.sampler or self.sampler_min_ess is not None

    def beta(self, log_w: Tensor | None) -> float | Tensor:
        """The power of the weights [K] in f's bound: 0 is (20), 1 the importance-weighted bound."""
        if self.min_ess is None:
            return 1.0 - ORDERS[self.potential]
        assert log_w is not None
        return tempered_power(log_w, self.min_ess)

    def of_potential(self, elbo: Tensor, log_w: Tensor | None, beta: float | Tensor, defence: Defence | None) -> Tensor:
        """f's bound, from what (20) has in its place and the weights [K]."""
        if self.potential == "elbo":
            return elbo
        assert log_w is not None
        return renyi_bound(log_w, beta, defence)

    def of_sampler(self, elbo: Tensor, log_w: Tensor | None, beta: float | Tensor = 1.0) -> Tensor:
        """The sampler's bound: tempered by itself, and never tighter than f's where that is tempered."""
        if self.sampler == "elbo":
            return elbo
        assert log_w is not None
        power: float | Tensor = 1.0 - ORDERS[self.sampler]
        if self.sampler_min_ess is not None:
            power = tempered_power(log_w, self.sampler_min_ess, 1.0 - ORDERS[self.sampler])
        return renyi_bound(log_w, beta.clamp(max=power) if isinstance(beta, Tensor) else power)


def _one_of(name: str, value: object, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"ADE: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def fraction(name: str, value: object) -> float | None:
    """A number strictly between 0 and 1, or None."""
    if value is None:
        return None
    fraction = number("ADE", name, value, "between 0 and 1", zero=False)
    if fraction >= 1:
        raise ValueError(f"ADE: {name} must be between 0 and 1, got {value!r}")
    return fraction

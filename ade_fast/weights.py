"""The dual sampler's importance weights: how they are formed, and what is read off them.

log w = f(x^T) - sum_i lambda_i/2 |v_i^T|^2 - log q^T(x^T, v^T), with the density of Theorem 4 (divided by the
determinants), so that E_q[w] = Z_x prod_i (2 pi / lambda_i)^(l/2).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from . import _log_weights_op
from ._ops import is_plain_on_cpu
from ._sums import kinetic as _kinetic
from .dynamics.sequential import clips_samples, layers_of

if TYPE_CHECKING:
    from .training.sampler import DualSampler


def log_mean_exp(log_w: Tensor) -> Tensor:
    """log mean w over the last axis: [..., K] -> [...]."""
    return torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])


def effective_sample_size(log_w: Tensor) -> Tensor:
    """(mean w)^2 / mean w^2, a fraction in (0, 1], over the last axis: [..., K] -> [...], float64."""
    w = log_w.double().softmax(-1)
    return 1 / (w.square().sum(-1) * log_w.shape[-1])


def log_weight_figures(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """(`log_mean_exp`, `effective_sample_size`) of [K], without a graph, in its dtype."""
    log_w = log_w.detach()
    if is_plain_on_cpu(log_w):
        return _log_weights_op.log_weight_figures(log_w)
    return log_mean_exp(log_w), effective_sample_size(log_w).to(log_w.dtype)


def log_mean_exp_error(log_w: Tensor) -> Tensor:
    """Standard error of log mean w over the last axis: [..., K] -> [...], float64; infinite for K = 1.

    The delta method's sqrt(Var(w) / K) / mean w, which is sqrt((1/ess - 1) / (K - 1)).
    """
    excess = (1 / effective_sample_size(log_w) - 1).clamp(min=0.0)
    n = log_w.shape[-1]
    return (excess / (n - 1)).sqrt() if n > 1 else torch.full_like(excess, math.inf)


def kinetic(layer: str, v: Tensor, momentum_weight: Tensor, *, per_step: bool = False) -> Tensor:
    """sum_i lambda_i/2 |v_i|^2 of each sample, [B], in v's dtype.

    Args:
        layer: who asks, for error messages.
        v: [B, *momentum], or with ``per_step`` [T, B, *event], a momentum for each step (9).
        momentum_weight: lambda, a scalar, or with ``per_step`` also [T].
    """
    if not per_step:
        if momentum_weight.dim() != 0:
            raise ValueError(
                f"{layer}: momentum_weight must be a number where there is one momentum, "
                f"got shape {tuple(momentum_weight.shape)}"
            )
        return _kinetic(v.flatten(1), momentum_weight)
    weight = momentum_weight.to(v)
    squares = v.flatten(2).square().sum(-1)  # [T, B]
    if weight.dim() == 1 and weight.shape[0] != squares.shape[0]:
        raise ValueError(
            f"{layer}: momentum_weight must be a number or have one entry per step, shape ({squares.shape[0]},), "
            f"got {tuple(weight.shape)}"
        )
    return (weight.reshape(-1, 1) / 2 * squares).sum(0)


def log_weights(
    layer: str,
    values: Tensor,
    v: Tensor | None,
    log_q: Tensor,
    momentum_weight: Tensor,
    *,
    per_step: bool = False,
) -> Tensor:
    """log w of each sample less the momenta's normaliser, so that E_q[w] = Z_x: [B], float64.

    Args:
        layer: who asks, for error messages.
        values: [B], f(x^T).
        v: v^T as in `kinetic`, or None where there is none.
        log_q: [B], log q^T of this very (x^T, v^T).
        momentum_weight: lambda > 0, a scalar, or with ``per_step`` also [T].
        per_step: ``sampler.draws_own_momenta()``.
    """
    if v is None:
        return values.double() - log_q.double()
    energy = kinetic(layer, v, momentum_weight, per_step=per_step).double()
    return joint_log_weights(values.double(), energy, log_q.double(), v, momentum_weight.double(), per_step)


def joint_log_weights(
    values: Tensor, energy: Tensor, log_q: Tensor, v: Tensor, momentum_weight: Tensor, per_step: bool
) -> Tensor:
    """log w as in `log_weights`, from the `kinetic` energy too, in the dtype of what is given."""
    if not per_step and _log_weights_op.takes(momentum_weight, values, energy, log_q):
        return _log_weights_op.log_weights(values, energy, log_q, momentum_weight, math.prod(v.shape[1:]))
    shape, count = (v.shape[2:], v.shape[0]) if per_step else (v.shape[1:], 1)
    return values - energy - log_q - log_normaliser(shape, count, momentum_weight)


def as_momentum_weight(layer: str, weight: float | Tensor | None) -> Tensor:
    """lambda as a float64 tensor, a scalar or [T]; None is 1.

    Raises: TypeError, ValueError for anything that is not finite and >= 0.
    """
    try:
        tensor = torch.as_tensor(1.0 if weight is None else weight, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{layer}: momentum_weight must be a number or a tensor of shape (T,), got {weight!r}"
        ) from error
    if tensor.dim() > 1:
        raise ValueError(f"{layer}: momentum_weight must be a number or have shape (T,), got {tuple(tensor.shape)}")
    if not bool((torch.isfinite(tensor) & (tensor >= 0)).all()):
        raise ValueError(f"{layer}: momentum_weight must be finite and >= 0, got {weight!r}")
    return tensor


def default_momentum_weight(sampler: DualSampler) -> Tensor:
    """lambda where none is given: 1/sigma^2 at initialisation of momenta that the dynamics draws, [T] where it differs
    between steps; else 1. Float64."""
    event = tuple(sampler.initial.event)
    own = [
        cast(Any, layer).default_momentum_weight(event)
        for layer in layers_of(sampler.dynamics)
        if hasattr(layer, "default_momentum_weight")
    ]
    weight = torch.cat(own) if own else torch.ones(1, dtype=torch.float64)
    return weight[0] if bool((weight == weight[0]).all()) else weight


def log_normaliser(shape: Sequence[int], count: int, momentum_weight: Tensor) -> Tensor:
    """Sum over ``count`` momenta of ``shape`` of l/2 log(2 pi / lambda_i)."""
    size = math.prod(shape)
    each = 0.5 * size * (math.log(2 * math.pi) - momentum_weight.log())
    return each.expand(count).sum() if each.dim() else count * each


# Scales of a deep latent model below which its samples are a sheet that no other sample comes near.
_THIN = 0.01


def warn_of_thin_sheet(layer: str, sampler: DualSampler) -> None:
    """Warns where weights are defined and useless: q^0 lies on a thin sheet, and w says nothing of the rest of x."""
    from .initial import DeepLatent

    start = sampler.initial
    if isinstance(start, DeepLatent) and start.max_std <= _THIN:
        warnings.warn(
            f"{layer}: DeepLatent's samples lie within {start.max_std:g} of a sheet of {start.latent_dim} dimensions: "
            f"their weights, and a log Z or likelihood found with them, mean nothing; raise max_std",
            UserWarning,
            stacklevel=4,
        )


def why_no_weights(sampler: DualSampler, momentum_weight: Tensor) -> str | None:
    """Why q^T has no density to form weights with, or None."""
    from .initial import Empirical

    if isinstance(sampler.initial, Empirical):
        return "Empirical has no density"
    if clips_samples(sampler.dynamics):
        return "dynamics clips samples to sample_range, where q^T has atoms"
    if getattr(sampler.dynamics, "estimates_log_det", False):
        return "dynamics only estimates its log_det, and the mean of w e^noise is not that of w"
    if sampler.has_momentum() and not bool((momentum_weight > 0).all()):
        return "momentum_weight is 0, under which momenta have no distribution"
    return None

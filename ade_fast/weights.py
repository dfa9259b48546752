"""Importance weights of the dual sampler: they make the normaliser of p_f, and with it the density, known.

``w = exp(f(x^T) - Σ_i λ_i/2 ‖v_i^T‖²) / q^T(x^T, v^T)`` has the mean ``Z_x · Π_i (2π/λ_i)^{l/2}`` under q^T, with l the
number of a momentum's elements: (6) and (9) integrated over the momenta. Everything here is in float64 (sums of
exponentials, differences of large numbers) and differentiable, unless it says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def kinetic(momenta: Tensor, momentum_weight: float | Tensor, *, per_step: bool = False) -> Tensor:
    """``Σ_i λ_i/2 ‖v_i‖²`` of each sample, [B], in the momenta's dtype.

    Args:
        momenta: [B, *momentum], or with ``per_step`` [T, B, *event], one momentum per step (9).
        momentum_weight: λ, a number, or with ``per_step`` also a tensor [T].

    Raises:
        ValueError: λ has another shape.
    """
    weight = torch.as_tensor(momentum_weight, dtype=momenta.dtype, device=momenta.device)
    if not per_step:
        if weight.dim() != 0:
            raise ValueError(
                f"momentum_weight must be a number for a dynamics with one momentum, got shape {tuple(weight.shape)}"
            )
        return weight / 2 * momenta.flatten(1).square().sum(1)
    squares = momenta.flatten(2).square().sum(-1)  # [T, B]
    if weight.dim() > 1 or (weight.dim() == 1 and weight.shape[0] != squares.shape[0]):
        raise ValueError(
            f"momentum_weight must be a number or have one entry per step, shape ({squares.shape[0]},), "
            f"got {tuple(weight.shape)}"
        )
    return (weight.reshape(-1, 1) / 2 * squares).sum(0)


def log_weights(
    values: Tensor,
    momenta: Tensor | None,
    log_q: Tensor,
    momentum_weight: float | Tensor = 1.0,
    *,
    per_step: bool = False,
) -> Tensor:
    """``log w = f(x^T) - Σ_i λ_i/2 ‖v_i^T‖² - log q^T(x^T, v^T)``, [B] in float64.

    Args:
        values: [B], f(x^T).
        momenta: v^T, [B, *momentum]; [T, B, *event] with ``per_step``; None where there is none.
        log_q: [B], log q^T of this very (x^T, v^T).
        momentum_weight: λ, a number, or with ``per_step`` also [T].
        per_step: ``sampler.draws_own_momenta()``, whether the dynamics draws one momentum per step.
    """
    log_w = values.double() - log_q.double()
    return log_w if momenta is None else log_w - kinetic(momenta, momentum_weight, per_step=per_step).double()


def log_normaliser(momentum_shape: Sequence[int], n_momenta: int, momentum_weight: float | Tensor = 1.0) -> Tensor:
    """``Σ_i l/2 log(2π/λ_i)``, a float64 scalar: log Z_x is ``log_mean_exp(log_w)`` less this.

    Args:
        momentum_shape: of one momentum, l elements.
        n_momenta: how many there are: 0 without a momentum, 1, or T where the dynamics draws one per step.
        momentum_weight: λ > 0, a number or [n_momenta].

    Raises:
        ValueError: λ is not positive (the momenta's mass is then infinite), or of another shape.
    """
    weight = torch.as_tensor(momentum_weight, dtype=torch.float64)
    if weight.dim() > 1 or (weight.dim() == 1 and n_momenta != weight.shape[0]):
        raise ValueError(f"momentum_weight must be a number or have shape ({n_momenta},), got {tuple(weight.shape)}")
    if n_momenta and not bool((weight > 0).all()):
        raise ValueError(
            f"momentum_weight must be positive: with λ = {weight.min().item():g} the momenta have infinite mass, and "
            "log Z is not defined"
        )
    if n_momenta == 0:
        return weight.new_zeros(())
    return math.prod(momentum_shape) / 2 * torch.log(2 * math.pi / weight).expand(n_momenta).sum()


def log_mean_exp(log_w: Tensor, dim: int = 0) -> Tensor:
    """``log mean exp(log_w)`` over one axis, float64. -inf is a weight of 0.

    Raises:
        ValueError: a NaN or +inf, or no weights at all.
    """
    log_w = _checked(log_w, dim)
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])


def effective_sample_size(log_w: Tensor, dim: int = 0) -> Tensor:
    """Kish's effective sample size as a fraction, ``(Σ w)² / (n Σ w²)`` in (0, 1], float64; 0 if all weights are 0.

    Raises:
        ValueError: as :func:`log_mean_exp`.
    """
    log_w = _checked(log_w, dim)
    highest = log_w.amax(dim, keepdim=True)
    w = torch.exp(log_w - torch.where(highest == -math.inf, 0.0, highest))
    squares = w.square().sum(dim)
    # Rounding must not make it exceed 1.
    fraction = (w.sum(dim).square() / (log_w.shape[dim] * squares)).clamp(max=1.0)
    return torch.where(squares == 0, 0.0, fraction)


def log_mean_exp_error(log_w: Tensor, dim: int = 0) -> Tensor:
    """Standard error of :func:`log_mean_exp` by the delta method, ``sqrt(Var(w) / n) / mean w``, float64.

    That is ``sqrt((1/ess - 1) / (n - 1))`` with the effective sample size as a fraction; infinite for one weight, and
    where all weights are 0.
    """
    n = log_w.shape[dim]
    ess = effective_sample_size(log_w, dim)
    if n == 1:
        return torch.full_like(ess, math.inf)
    return ((1 / ess - 1) / (n - 1)).sqrt()


def _checked(log_w: Tensor, dim: int) -> Tensor:
    """The log-weights in float64, each a number below +inf."""
    if log_w.dim() == 0 or log_w.shape[dim] == 0:
        raise ValueError(f"log-weights must have at least one entry, got shape {tuple(log_w.shape)}")
    if not bool((log_w < math.inf).all()):  # false for NaN
        raise ValueError(f"log-weights must be below infinity, got {log_w[~(log_w < math.inf)][0].item()}")
    return log_w.double()

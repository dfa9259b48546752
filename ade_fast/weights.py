"""The dual sampler's importance weights: how they are formed, and what is read off them.

log w = f(x^T) - sum_i lambda_i/2 |v_i^T|^2 - log q^T(x^T, v^T), with the density of Theorem 4 (divided by the
determinants), so that E_q[w] = Z_x prod_i (2 pi / lambda_i)^(l/2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def log_mean_exp(log_w: Tensor) -> Tensor:
    """log mean w over the last axis: [..., K] -> [...]."""
    return torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])


def effective_sample_size(log_w: Tensor) -> Tensor:
    """(mean w)^2 / mean w^2, a fraction in (0, 1], over the last axis: [..., K] -> [...], float64."""
    w = log_w.double().softmax(-1)
    return 1 / (w.square().sum(-1) * log_w.shape[-1])


def log_normaliser(shape: Sequence[int], count: int, momentum_weight: Tensor) -> Tensor:
    """Sum over ``count`` momenta of ``shape`` of l/2 log(2 pi / lambda_i)."""
    size = math.prod(shape)
    return (0.5 * size * (math.log(2 * math.pi) - momentum_weight.log())).expand(count).sum()


def why_no_weights(sampler, momentum_weight: Tensor) -> str | None:
    """Why q^T has no density to form weights with, or None."""
    from .initial import Empirical

    if isinstance(sampler.initial, Empirical):
        return "Empirical has no density"
    if getattr(getattr(sampler.dynamics, "options", None), "sample_range", None) is not None:
        return "dynamics clips samples to sample_range, where q^T has atoms"
    if not bool((momentum_weight > 0).all()):
        return "momentum_weight is 0, under which momenta have no distribution"
    return None

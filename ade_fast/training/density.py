"""log Z of a potential, by the weights of its sampler: what makes f a density."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..weights import effective_sample_size, log_mean_exp, log_normaliser
from .sampler import DualSampler

_CHUNK = 5000


@dataclass(frozen=True)
class Density:
    """log Z of f with its standard error, and the effective sample size (a fraction) that it was estimated with."""

    log_z: float
    log_z_standard_error: float
    ess: float


@torch.no_grad()
def estimate_density(potential, sampler: DualSampler, n: int, momentum_weight: Tensor, generator) -> Density:
    parts = []
    for start in range(0, n, _CHUNK):
        sample = sampler.sample(potential, min(_CHUNK, n - start), generator)
        log_w = potential(sample.x).reshape(-1).double() - sample.log_q.double()
        if sample.v is not None:
            log_w -= momentum_weight / 2 * sample.v.double().flatten(1).square().sum(1)
            log_w -= log_normaliser(sample.v.shape[1:], 1, momentum_weight)
        parts.append(log_w)
    log_w = torch.cat(parts)
    ess = effective_sample_size(log_w).item()
    return Density(log_mean_exp(log_w).item(), ((1 / ess - 1) / (n - 1)) ** 0.5, ess)

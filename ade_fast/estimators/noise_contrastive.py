"""Noise-contrastive estimation (Gutmann and Hyvärinen 2010)."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import softplus

from ..initial.base import InitialDistribution, as_count
from ._values import Potential, check_generator, check_like, estimating, normal, values


class Noise(Protocol):
    """A density that can be drawn from: an initial distribution with ``log_prob``, or one of `torch.distributions`."""

    def log_prob(self, x: Tensor) -> Tensor: ...


class GaussianNoise:
    """N(mean, covariance) of given points [n, *event], n > D."""

    def __init__(self, layer: str, data: Tensor) -> None:
        rows = data.detach().flatten(1)
        n, dim = rows.shape
        if n <= dim:
            raise ValueError(
                f"{layer}: noise must be given where there are no more points than dimensions, got {n} points of {dim}"
            )
        self._mean = rows.mean(0)
        self._root, info = torch.linalg.cholesky_ex((rows - self._mean).T @ (rows - self._mean) / (n - 1))
        if int(info) or not bool(self._root.isfinite().all()):
            raise ValueError(f"{layer}: noise must be given: data have no covariance of full rank")

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self._mean + normal((n, len(self._mean)), self._mean, generator) @ self._root.T

    def log_prob(self, x: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(self._root, (x.flatten(1) - self._mean).T, upper=False)
        constant = self._root.diagonal().log().sum() + 0.5 * len(self._mean) * math.log(2 * math.pi)
        return -0.5 * white.square().sum(0) - constant


def noise_contrastive(
    potential: Potential,
    data: Tensor,
    noise: Noise | None = None,
    *,
    log_normaliser: Tensor | float = 0.0,
    ratio: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``-E_D[log h(x)] - ν E_{p_n}[log(1 - h(y))]``, h = σ(f - c - log p_n - log ν): data or noise?

    Source: (50) with its sign turned, D.7 (ν = 1); Gutmann and Hyvärinen 2010. Dual sampler: the mixture
    ½ p_D + ½ p_n, reweighted by h (the factor 2 that (51) lacks). f - c comes out normalised: c is log Z.

    Args:
        potential: f, [B, *event] -> [B] or [B, 1].
        data: [B, *event], B >= 1.
        noise: p_n, an initial distribution with ``log_prob`` (`ade.initial.SplineFlow`) or a
            `torch.distributions.Distribution` over events; None: the Gaussian with the data's mean and covariance.
            Nothing in it gets gradients.
        log_normaliser: c, a number or a scalar tensor (a parameter to learn it); 0 where f has a constant of its own.
        ratio: ν, points of noise for each of data, >= 1.
        generator: source of the noise; not for `torch.distributions`, which draw from torch's own.

    Returns:
        A scalar to minimise, differentiable in whatever f depends on, and in c.

    Raises: TypeError, ValueError: an argument of the wrong kind, shape or range.
    """
    layer = "noise_contrastive"
    check_generator(layer, generator)
    ratio = as_count(layer, "ratio", ratio, least=1)
    if isinstance(log_normaliser, Tensor) and log_normaliser.numel() != 1:
        raise ValueError(f"{layer}: log_normaliser must be a scalar, got shape {tuple(log_normaliser.shape)}")
    with estimating(layer, potential, data):
        n = len(data)
        noise = GaussianNoise(layer, data) if noise is None else noise
        with torch.no_grad():
            y = _draw(layer, noise, ratio * n, data, generator)
            log_noise = noise.log_prob(torch.cat([data, y]))
        if tuple(log_noise.shape) != (len(data) + len(y),):
            raise ValueError(
                f"{layer}: noise must give one log-density per event, got shape {tuple(log_noise.shape)} for "
                f"{n + len(y)} points (torch.distributions.Independent takes dimensions together)"
            )
        odds = values(layer, potential, torch.cat([data, y])) - log_normaliser - log_noise - math.log(ratio)
        return softplus(-odds[:n]).mean() + ratio * softplus(odds[n:]).mean()


def _draw(layer: str, noise: Noise, n: int, data: Tensor, generator: torch.Generator | None) -> Tensor:
    event = tuple(data.shape[1:])
    if isinstance(noise, GaussianNoise):
        return noise.draw(n, generator).view(n, *event)
    if not callable(getattr(noise, "log_prob", None)):
        raise TypeError(
            f"{layer}: noise must have log_prob, the density at given points: {type(noise).__name__} has none"
        )
    if isinstance(noise, InitialDistribution):
        y = noise.sample(n, generator=generator).x
    elif isinstance(noise, Distribution):
        if generator is not None:
            raise ValueError(f"{layer}: generator must be None with torch.distributions, which draw from torch's own")
        y = noise.sample((n,))
    else:
        raise TypeError(
            f"{layer}: noise must be an initial distribution or a torch.distributions.Distribution, got "
            f"{type(noise).__name__}"
        )
    return check_like(layer, "noise's samples", y, data, (n, *event))

"""A Gaussian mixture as ADE's base measure and initial distribution: f = network + log mixture, q⁰ = mixture."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import ade_fast as ade


class Mixture(ade.initial.InitialDistribution):
    """sum_k w_k N(mean_k, L_k L_kᵀ) with the density of the whole mixture.

    A draw picks its component by fixed weights and is reparametrised given it, so gradients for means and factors are
    exact.

    Args:
        weights [K], means [K, d], covariances [K, d, d]: as of scikit-learn's GaussianMixture, full.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        super().__init__(means.shape[1])
        self.register_buffer("weights", weights.float())
        self.means = nn.Parameter(means.float())
        self.factors = nn.Parameter(torch.linalg.cholesky(covariances).float())

    @classmethod
    def of(cls, fitted) -> Mixture:
        """The same as a fitted GaussianMixture of scikit-learn, whatever its kind of covariance."""
        count, dim = fitted.means_.shape
        covariances = torch.as_tensor(fitted.covariances_)
        if fitted.covariance_type == "diag":
            covariances = torch.diag_embed(covariances)
        covariances = covariances.expand(count, dim, dim)
        return cls(torch.as_tensor(fitted.weights_), torch.as_tensor(fitted.means_), covariances)

    def log_prob(self, x: Tensor) -> Tensor:
        """[B, d] -> [B]."""
        factors = self.factors.tril()
        whitened = torch.linalg.solve_triangular(factors, (x - self.means[:, None]).mT, upper=False)  # [K, d, B]
        scale = factors.diagonal(dim1=1, dim2=2).abs().log().sum(1) + 0.5 * x.shape[1] * math.log(2 * math.pi)
        return torch.logsumexp((self.weights.log() - scale)[:, None] - 0.5 * whitened.square().sum(1), 0)

    def sample_x(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = self._normal((n, *self.event), generator)
        x = self.means[component] + (self.factors.tril()[component] @ noise[..., None]).squeeze(-1)
        return x, self.log_prob(x)


class Tilted(nn.Module):
    """f(x) = network(x) + log base(x), [B, d] -> [B], with a base that does not learn."""

    def __init__(self, network: nn.Module, base: Mixture) -> None:
        super().__init__()
        self.network = network
        self.base = base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + self.base.log_prob(x)

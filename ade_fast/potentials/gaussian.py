"""A Gaussian's log-density up to its constant: the f of the parameter estimation experiments."""

import torch
from torch import Tensor, nn

from ._checks import batch_of, positive_int


class GaussianPotential(nn.Module):
    """``f(x) = -½ Σ_i ((x_i - mean_i) / exp(log_std_i))²``, ``(B, dim) -> (B,)``.

    Source: appendix F.1, "Parameter estimation experiments" (diagonal Σ).

    Args:
        dim: length of one x.

    Attributes:
        mean, log_std: the parameters, ``(dim,)``, both starting at 0: f starts as N(0, I).

    Raises:
        TypeError, ValueError: a ``dim`` that is no positive int; an x of another shape.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = positive_int("GaussianPotential", "dim", dim)
        self.mean = nn.Parameter(torch.zeros(dim))
        self.log_std = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        batch_of("GaussianPotential", x, (self.dim,))
        return -0.5 * ((x - self.mean) * (-self.log_std).exp()).square().sum(dim=-1)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"

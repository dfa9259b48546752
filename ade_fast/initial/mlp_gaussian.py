"""An MLP from noise to mean and scale: the initial distribution of the Gaussian experiments."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import InitialDistribution, as_shape
from .flow import Flow


class _MaskedLinear(nn.Linear):
    """A linear layer that sees an input only where ``mask`` ``(out, in)`` is 1."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.mask, self.bias)


class MLPGaussian(Flow):
    """``x_i = μ_i(ε_<i) + exp(s_i(ε_<i)) ε_i`` with ``ε ~ N(0, I)``, μ and s from one masked MLP.

    F.1 names a "2-layer MLP" and no more; the released code takes ``x = μ(z) + exp(s(z)) ε`` for a second
    noise z and counts the density of the pair (z, x), so that the entropy it maximises is not that of x. Here
    the MLP sees the noise through autoregressive masks (Germain et al., 2015; as in Kingma et al., 2016),
    output i only the coordinates before i: the Jacobian ∂x/∂ε is triangular with diagonal exp(s), hence
    ``log q(x) = log N(ε; 0, I) - Σ_i s_i``, exact, from the one pass that makes the sample. Each x_i is
    Gaussian given the coordinates before it; every Gaussian with diagonal covariance is included. It starts
    as about N(0, I).

    Source: appendix F.1, "Parameter estimation experiments".

    Args:
        dim: length of one x.
        hidden: width of the hidden layer (a 2-layer MLP), or a tuple of widths.
        momentum: the distribution of v; None is N(0, I).

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """

    def __init__(
        self, dim: int, hidden: int | Sequence[int] = 128, *, momentum: InitialDistribution | None = None
    ) -> None:
        super().__init__(dim, momentum=momentum)
        self.hidden = as_shape("MLPGaussian", "hidden", hidden)
        # A unit of degree k sees the coordinates 1 .. k; output i sees the units of degree below i.
        coordinates = torch.arange(1, self.dim + 1)
        degrees = [coordinates, *(torch.arange(width) % max(self.dim - 1, 1) + 1 for width in self.hidden)]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(degrees):
            layers += [_MaskedLinear(outputs[:, None] >= inputs), nn.ReLU()]
        layers.append(_MaskedLinear(coordinates.repeat(2)[:, None] > degrees[-1]))
        self.layers = nn.Sequential(*layers)
        with torch.no_grad():  # start close to N(0, I), whatever the width
            last = self.layers[-1]
            assert isinstance(last, nn.Linear)
            last.weight.mul_(0.1)
            last.bias.zero_()

    def transform(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The map itself: ``ε`` ``(n, dim)`` to ``x`` ``(n, dim)`` and ``log|det ∂x/∂ε|`` ``(n,)``."""
        self._check_points("noise", noise)
        mean, log_std = self.layers(noise).chunk(2, dim=1)
        return torch.addcmul(mean, log_std.exp(), noise), log_std.sum(dim=1)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, hidden={self.hidden}"

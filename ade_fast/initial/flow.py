"""What normalizing flows share: a Gaussian base, and a map from it with a known log-determinant."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from .._tensors import floating_tensor
from .base import InitialDistribution, as_count, as_std, standard_normal_log_density
from .gaussian import Gaussian


class Flow(InitialDistribution):
    """``x = g(z)`` with ``z ~ N(0, std² I)``: ``log q(x) = log N(z) - log|det ∂g/∂z|``.

    A subclass implements :meth:`transform`, which is g. A `DualSampler` with an annealed dynamics runs it in z.

    Args:
        dim: length of one x.
        std: standard deviation of the base Gaussian, fixed.
        momentum: the distribution of v; None is N(0, I).

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """

    def __init__(self, dim: int, std: float = 1.0, *, momentum: InitialDistribution | None = None) -> None:
        layer = type(self).__name__
        dim = as_count(layer, "dim", dim, least=1)
        super().__init__((dim,), momentum=momentum)
        self.dim = dim
        self.std = as_std(layer, "std", std)

    @abstractmethod
    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """g itself: ``z`` ``(n, dim)`` to ``x`` ``(n, dim)`` and ``log|det ∂x/∂z|`` ``(n,)``; differentiable."""

    @property
    def base(self) -> Gaussian:
        """The distribution of ``(z, v)``, with the dtype and device of the flow and its very momentum.

        ``base.sample(n, shape, generator)`` are the z of ``sample(n, shape, generator)``.
        """
        base = Gaussian(self.dim, torch.tensor(self.std, dtype=torch.float64)).to(self._anchor)
        base.momentum = self.momentum  # now, so that it is not moved
        return base

    def sample_x(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        noise = self._normal((n, self.dim), generator)
        x, log_det = self._transform_once(noise * self.std)
        return x, standard_normal_log_density(noise) - self.dim * math.log(self.std) - log_det

    def _transform_once(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`transform` where it need not be differentiable twice: a subclass may have a faster way."""
        return self.transform(z)

    def _check_points(self, name: str, points: Tensor) -> None:
        floating_tensor(type(self).__name__, name, points)
        if points.ndim != 2 or points.shape[1] != self.dim:
            raise ValueError(
                f"{type(self).__name__}: {name} must have the shape (n, {self.dim}), got {tuple(points.shape)}"
            )

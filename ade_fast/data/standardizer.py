"""Data in units of their own spread: z = (x - mean) / std, and what that does to a log-density."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .tables import check_varied


class Standardizer(nn.Module):
    """z = (x - mean) / std per coordinate, in float64, so that a large mean costs the result no digits.

    With z's density q the density of x is log p(x) = log q(z) + ``log_det``.

    State: ``mean`` and ``std``, float64 buffers ``(d,)``.

    Args:
        mean, std: ``(d,)``, finite, std > 0.

    Raises:
        TypeError, ValueError: one of them is no such tensor.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                got = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"Standardizer: {name} must be a floating-point tensor, got {got}")
            if value.dim() != 1 or not value.isfinite().all():
                raise ValueError(f"Standardizer: {name} must be (d,) and finite, got {_shown(value)}")
        if mean.shape != std.shape:
            raise ValueError(f"Standardizer: std must have mean's shape {tuple(mean.shape)}, got {tuple(std.shape)}")
        if not (std > 0).all():
            raise ValueError(f"Standardizer: std must be positive, got {_shown(std)}")
        self.register_buffer("mean", mean.detach().double().clone())
        self.register_buffer("std", std.detach().double().clone())

    @classmethod
    def of(cls, train: Tensor) -> Standardizer:
        """Mean and (population) standard deviation of the training rows ``(n, d)``.

        Raises:
            DataError: a column is constant.
            ValueError: ``train`` is not (n, d) with at least two rows.
        """
        if not isinstance(train, Tensor) or train.dim() != 2 or len(train) < 2:
            got = tuple(train.shape) if isinstance(train, Tensor) else type(train).__name__
            raise ValueError(f"Standardizer.of: train must be a tensor (n, d) with n at least 2, got {got}")
        check_varied("Standardizer.of: train", train)
        rows = train.detach().double()
        return cls(rows.mean(dim=0), rows.std(dim=0, correction=0))

    @classmethod
    def identity(cls, d: int) -> Standardizer:
        """The one that leaves ``d`` coordinates as they are."""
        return cls(torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64))

    @property
    def log_det(self) -> float:
        """log |dz/dx| = -Σ log std."""
        return -self.std.double().log().sum().item()

    def forward(self, x: Tensor) -> Tensor:
        """z of ``x`` (..., d), of x's dtype."""
        self._check("x", x)
        return ((x.double() - self.mean) / self.std).to(x.dtype)

    def inverse(self, z: Tensor) -> Tensor:
        """x of ``z`` (..., d), of z's dtype."""
        self._check("z", z)
        return (z.double() * self.std + self.mean).to(z.dtype)

    def _check(self, name: str, value: Tensor) -> None:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"Standardizer: {name} must be a floating-point tensor, got {got}")
        if value.dim() == 0 or value.shape[-1] != len(self.mean):
            raise ValueError(f"Standardizer: {name} must be (..., {len(self.mean)}), got {tuple(value.shape)}")

    def extra_repr(self) -> str:
        return f"d={len(self.mean)}"


def _shown(value: Tensor) -> str:
    return str(value.tolist()) if value.dim() == 1 and len(value) <= 4 else f"shape {tuple(value.shape)}"

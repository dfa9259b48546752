"""A Gaussian with diagonal covariance."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import InitialDistribution, standard_normal_log_density


class Gaussian(InitialDistribution):
    """``x ~ N(mean, diag(std²))``.

    Args:
        event: shape of one x; an int is the length of a vector.
        std: a positive number, or a floating tensor broadcastable to ``event``.
        mean: a number, or a floating tensor broadcastable to ``event``.
        learnable: whether ``mean`` and ``log_std`` (both of shape ``event``) are parameters, else buffers.
        momentum: the distribution of v; None is N(0, I).

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: ``std`` is not positive, a value is not finite or does not broadcast to ``event``.
    """

    def __init__(
        self,
        event: int | Sequence[int],
        std: float | Tensor = 1.0,
        mean: float | Tensor = 0.0,
        *,
        learnable: bool = False,
        momentum: InitialDistribution | None = None,
    ) -> None:
        super().__init__(event, momentum=momentum)
        # A tensor decides on dtype and device, std before mean.
        like = next((value for value in (std, mean) if isinstance(value, Tensor)), self._anchor)
        mean = _broadcast("mean", mean, self.event, like)
        std = _broadcast("std", std, self.event, like)
        if not bool((std > 0).all()):
            raise ValueError(f"Gaussian: std must be positive, got {std.min().item()}")
        self._anchor = std.new_empty(0)
        if learnable:
            self.mean = nn.Parameter(mean)
            self.log_std = nn.Parameter(std.log())
        else:
            self.register_buffer("mean", mean)
            self.register_buffer("log_std", std.log())

    def sample_x(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        noise = self._normal((n, *self.event), generator)
        x = torch.addcmul(self.mean, self.log_std.exp(), noise)
        return x, standard_normal_log_density(noise) - self.log_std.sum()


def _broadcast(argument: str, value: float | Tensor, event: tuple[int, ...], like: Tensor) -> Tensor:
    """``value`` as a new tensor of shape ``event``, with the dtype and device of ``like``."""
    if not isinstance(value, (numbers.Real, Tensor)) or isinstance(value, bool):
        raise TypeError(f"Gaussian: {argument} must be a number or a tensor, got {type(value).__name__}")
    if isinstance(value, Tensor) and not value.is_floating_point():
        raise TypeError(f"Gaussian: {argument} must be floating point, got {value.dtype}")
    value = torch.as_tensor(value).detach().to(like)
    if not bool(value.isfinite().all()):
        raise ValueError(f"Gaussian: {argument} must be finite, got NaN or infinity")
    try:
        return value.broadcast_to(event).clone()
    except RuntimeError as error:
        raise ValueError(f"Gaussian: {argument} must broadcast to {event}, got {tuple(value.shape)}") from error

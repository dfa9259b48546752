"""A potential on top of a Gaussian base measure."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..initial.base import as_count, as_shape
from ._checks import per_sample


class WithBase(nn.Module):
    """``f(x) = potential(x) + log N(x; mean, diag(std²))``, ``(B, *event) -> (B,)``, normaliser included.

    Source: the base measure of eq. (1). exp f has a finite integral whatever the potential is, as long as it grows at
    most linearly, as networks with Lipschitz activations do: no mass can hide far from the data.

    In the dynamics the Gaussian is taken apart from the potential: its force and its constant, diagonal Hessian are
    added to the potential's own, so that a piecewise-linear potential is still recognised as one.

    Args:
        potential: a module (or any callable) from ``(B, *event)`` to ``(B,)`` or ``(B, 1)``.
        mean: a number, or a floating tensor broadcastable to the event.
        std: a positive number, or a positive floating tensor broadcastable to the event.

    Attributes:
        potential: as given. Its parameters keep their names under ``potential.`` in the ``state_dict``.
        mean, std: buffers of the shapes given; numbers are 0-d.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: ``std`` is not positive, a value is not finite, ``mean`` and ``std`` do not broadcast to one shape;
            at the call, they do not broadcast to the event, or the potential's output is neither ``(B,)`` nor
            ``(B, 1)``.
    """

    mean: Tensor
    std: Tensor
    _anchor: Tensor

    def __init__(self, potential: Callable[[Tensor], Tensor], mean: float | Tensor, std: float | Tensor) -> None:
        super().__init__()
        if not callable(potential):
            raise TypeError(f"WithBase: potential must be a module or a callable, got {type(potential).__name__}")
        self.potential = potential
        # A tensor decides on dtype and device, std before mean.
        like = next((value for value in (std, mean) if isinstance(value, Tensor)), torch.empty(0))
        self.register_buffer("mean", _finite("mean", mean, like))
        self.register_buffer("std", _finite("std", std, like))
        if not bool((self.std > 0).all()):
            raise ValueError(f"WithBase: std must be positive, got {self.std.min().item()}")
        try:
            self._event = torch.broadcast_shapes(self.mean.shape, self.std.shape)
        except RuntimeError as error:
            raise ValueError(
                f"WithBase: mean and std must broadcast to one event, got {tuple(self.mean.shape)} and "
                f"{tuple(self.std.shape)}"
            ) from error
        # Follows .to(): the dtype and the device to draw in.
        self.register_buffer("_anchor", torch.empty(0).to(like), persistent=False)

    def forward(self, x: Tensor, *condition: object) -> Tensor:
        return per_sample("WithBase", "potential", self.potential(x, *condition), len(x)) + self.log_base(x)

    def log_base(self, x: Tensor) -> Tensor:
        """``log N(x; mean, diag(std²))``, ``(B, *event) -> (B,)``, in x's dtype, at least float32."""
        pull, mean, normaliser = self.precision(x.shape[1:], torch.promote_types(x.dtype, torch.float32))
        squares = (x.reshape(len(x), pull.numel()) - mean).square()
        # One product in place of a division, a sum and their nodes: it is evaluated wherever f is.
        return torch.addmv(normaliser.expand(len(x)), squares, pull, alpha=-0.5)

    def sample_base(
        self, n: int, event: int | Sequence[int] | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """``n`` draws from N(mean, diag(std²)), ``(n, *event)``, with the dtype and device of the buffers.

        Args:
            n: how many; 0 is allowed.
            event: shape of one x; an int is the length of a vector. None is the shape that ``mean`` and ``std``
                have together, which numbers have not.
            generator: where the randomness comes from. One on another device than the module's is allowed (a CPU
                generator gives the same samples on every device, at the price of a copy).

        Raises:
            TypeError, ValueError: an argument of the wrong kind or size; None for an event where ``mean`` and ``std``
                are both numbers.
        """
        n = as_count("WithBase", "n", n, least=0)
        if event is None and not self._event:
            raise ValueError("WithBase: event must be given where mean and std are both numbers, got None")
        event = tuple(self._event) if event is None else as_shape("WithBase", "event", event)
        mean, std = self.base(event, self._anchor.dtype)
        device = self._anchor.device if generator is None else generator.device
        noise = torch.randn((n, *event), generator=generator, dtype=self._anchor.dtype, device=device)
        return mean + std * noise.to(self._anchor.device)

    def base(self, event: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``(mean, std)`` in ``dtype``, each broadcast to ``event``.

        Raises:
            ValueError: they do not broadcast to it.
        """
        event = tuple(event)
        try:
            return self.mean.to(dtype).expand(event), self.std.to(dtype).expand(event)
        except RuntimeError as error:
            raise ValueError(
                f"WithBase: mean and std must broadcast to the event {event}, got {tuple(self.mean.shape)} and "
                f"{tuple(self.std.shape)}"
            ) from error

    def precision(self, event: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """(1/std², mean, the density's log-normaliser) in ``dtype``: rows ``(numel(event),)`` twice, and ``()``."""
        mean, std = self.base(event, dtype)
        pull = std.reshape(-1).square().reciprocal()
        return pull, mean.reshape(-1), 0.5 * (pull.log().sum() - pull.numel() * math.log(2 * math.pi))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={_shown(value)}" for name, value in (("mean", self.mean), ("std", self.std)))


def _finite(argument: str, value: float | Tensor, like: Tensor) -> Tensor:
    """``value`` as a new tensor of its own shape, a number in float64: it is cast to x's dtype at every call."""
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, Tensor)):
        raise TypeError(f"WithBase: {argument} must be a number or a tensor, got {type(value).__name__}")
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"WithBase: {argument} must be floating point, got {value.dtype}")
        value = value.detach().to(like, copy=True)
    else:
        value = torch.tensor(float(value), dtype=torch.float64, device=like.device)
    if not bool(value.isfinite().all()):
        raise ValueError(f"WithBase: {argument} must be finite, got NaN or infinity")
    return value


def _shown(value: Tensor) -> str:
    return f"{value.item():g}" if value.dim() == 0 else f"tensor of shape {tuple(value.shape)}"

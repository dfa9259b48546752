"""What every initial distribution shares: the momentum, the joint log-density, and checks of arguments."""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import _log_weights_op
from .._integers import as_integer
from .._ops import is_plain_on_cpu


class InitialSample(NamedTuple):
    """A draw from q⁰.

    ``x`` ``(n, *event)``, ``v`` ``(n, *momentum_shape)`` or None, ``log_q`` ``(n,)`` or None.
    """

    x: Tensor
    v: Tensor | None
    log_q: Tensor | None


def as_shape(layer: str, argument: str, value: int | Sequence[int]) -> tuple[int, ...]:
    """``value`` as a shape: an int is a vector's length. Every size must be at least 1."""
    sizes = (value,) if isinstance(value, numbers.Integral) else value
    if isinstance(value, (bool, str)) or not isinstance(sizes, Sequence):
        raise TypeError(f"{layer}: {argument} must be an int or a tuple of ints, got {value!r}")
    try:
        sizes = tuple(map(as_integer, sizes))
    except TypeError:
        raise TypeError(f"{layer}: {argument} must be an int or a tuple of ints, got {value!r}") from None
    if any(size < 1 for size in sizes):
        raise ValueError(f"{layer}: {argument} must have sizes of at least 1, got {value!r}")
    return sizes


def as_count(layer: str, argument: str, value: int, least: int) -> int:
    """``value``, of any type that counts as an integer (numpy's too), as an int of at least ``least``."""
    try:
        count = as_integer(value)
    except TypeError:
        raise TypeError(f"{layer}: {argument} must be an int, got {type(value).__name__}") from None
    if count < least:
        raise ValueError(f"{layer}: {argument} must be at least {least}, got {count}")
    return count


def as_std(layer: str, argument: str, value: float) -> float:
    """``value`` as a positive, finite float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{layer}: {argument} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{layer}: {argument} must be positive and finite, got {value}")
    return float(value)


def standard_normal_log_density(noise: Tensor) -> Tensor:
    """``log N(noise; 0, I)``, summed over all but the first axis: ``(n, *shape)`` to ``(n,)``."""
    noise = noise.reshape(len(noise), math.prod(noise.shape[1:]))
    if is_plain_on_cpu(noise):
        return _log_weights_op.normal_log_density(noise)
    return -0.5 * noise.square().sum(dim=1) - 0.5 * math.log(2 * math.pi) * noise.shape[1]


class InitialDistribution(nn.Module, ABC):
    """Base class: ``q⁰(x, v) = q⁰(x) q⁰(v)``, as C.2 decomposes it.

    A subclass implements :meth:`sample_x`. Samples have the dtype and device of the module (``.to()`` moves
    them), are reparametrised (differentiable in the module's parameters), and are drawn in that dtype under
    autocast too: a density is not to be rounded to bfloat16.

    Args:
        event: shape of one x; an int is the length of a vector.
        momentum: the distribution of v; None is N(0, I). Its ``event`` must be the ``momentum_shape`` that
            :meth:`sample` is asked for.

    Attributes:
        event: shape of one x, a tuple.

    Raises: TypeError, ValueError: there is no such event; momentum is no distribution.
    """

    _anchor: Tensor

    def __init__(self, event: int | Sequence[int], *, momentum: InitialDistribution | None = None) -> None:
        super().__init__()
        self.event = as_shape(type(self).__name__, "event", event)
        if momentum is not None and not isinstance(momentum, InitialDistribution):
            raise TypeError(
                f"{type(self).__name__}: momentum must be an InitialDistribution or None, got {type(momentum).__name__}"
            )
        self.momentum = momentum
        # Follows .to(): the dtype and the device to draw in, whatever parameters the subclass has.
        self.register_buffer("_anchor", torch.empty(0), persistent=False)

    @abstractmethod
    def sample_x(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        """``n`` draws of x ``(n, *event)`` and their log-density ``(n,)``, None where there is no density."""

    def sample(
        self, n: int, momentum_shape: Sequence[int] | None = None, generator: torch.Generator | None = None
    ) -> InitialSample:
        """Draw ``(x⁰, v⁰)``.

        Args:
            n: how many; 0 is allowed.
            momentum_shape: shape of one sample's momentum; None draws no momentum.
            generator: where the randomness comes from. One on another device than the module's is allowed (a
                CPU generator gives the same samples on every device, at the price of a copy).

        Returns:
            ``(x, v, log_q)``: ``log_q`` is ``log q⁰(x, v)``, of x alone when there is no momentum, and None
            where x has no density.

        Raises:
            TypeError, ValueError: an argument of the wrong kind or size; a momentum distribution of another
                shape.
        """
        layer = type(self).__name__
        n = as_count(layer, "n", n, least=0)
        if momentum_shape is not None:
            momentum_shape = as_shape(layer, "momentum_shape", momentum_shape)
            if self.momentum is not None and self.momentum.event != momentum_shape:
                raise ValueError(
                    f"{layer}: momentum must have the event {momentum_shape} asked for, got {self.momentum.event}"
                )
        with torch.autocast(self._anchor.device.type, enabled=False):
            x, log_q = self.sample_x(n, generator)
            if momentum_shape is None:
                return InitialSample(x, None, log_q)
            v, log_q_v = self._sample_v(n, momentum_shape, generator)
            log_q = None if log_q is None or log_q_v is None else log_q + log_q_v
            return InitialSample(x, v, log_q)

    def _sample_v(
        self, n: int, shape: tuple[int, ...], generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.momentum is not None:
            return self.momentum.sample_x(n, generator)
        v = self._normal((n, *shape), generator)
        return v, standard_normal_log_density(v)

    def _normal(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        """Standard normal draws in the module's dtype, on its device."""
        device = self._anchor.device if generator is None else generator.device
        return torch.randn(shape, generator=generator, dtype=self._anchor.dtype, device=device).to(self._anchor.device)

    def extra_repr(self) -> str:
        return f"event={self.event}"

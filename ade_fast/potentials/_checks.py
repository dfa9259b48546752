"""Checks of arguments that the potentials share."""

import math
import numbers

from torch import Tensor

from .._integers import as_integer


def positive_int(layer: str, argument: str, value: int) -> int:
    """``value`` as an int of at least 1."""
    try:
        value = as_integer(value)
    except TypeError:
        raise TypeError(f"{layer}: {argument} must be an int, got {type(value).__name__}") from None
    if value < 1:
        raise ValueError(f"{layer}: {argument} must be at least 1, got {value}")
    return value


def positive_number(layer: str, argument: str, value: float) -> float:
    """``value`` as a positive, finite float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{layer}: {argument} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{layer}: {argument} must be positive and finite, got {value}")
    return float(value)


def batch_of(layer: str, x: Tensor, event: tuple[int, ...]) -> None:
    """Refuse an ``x`` that is not ``(B, *event)``."""
    if x.ndim != 1 + len(event) or tuple(x.shape[1:]) != event:
        wanted = ", ".join(map(str, event)) + ("," if not event else "")
        raise ValueError(f"{layer}: x must have the shape (B, {wanted}), got {tuple(x.shape)}")


def per_sample(layer: str, argument: str, y: Tensor, n: int) -> Tensor:
    """``y``, the output of ``argument`` for ``n`` samples, ``(n,)`` or ``(n, 1)``, as ``(n,)``."""
    if tuple(y.shape) not in ((n,), (n, 1)):
        raise ValueError(f"{layer}: {argument} must return ({n},) or ({n}, 1), got {tuple(y.shape)}")
    return y.reshape(n)


def independent_of_x(layer: str) -> ValueError:
    """Of a potential that autograd cannot differentiate in x."""
    return ValueError(
        f"{layer}: potential's output does not depend on x through autograd: it must be differentiable in x "
        f"(is it detached, or computed under no_grad?)"
    )

"""What all estimators share: checks of their arguments, f at points, and ∇f."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .._tensors import floating_tensor, naming_dtypes
from ..dynamics.base import is_number
from ..fields import fused_value, fused_value_and_grad, pinned
from ..potentials._checks import per_sample

Potential = Callable[[Tensor], Tensor]


@contextmanager
def estimating(
    layer: str, potential: Potential, data: Tensor, *, least: int = 1, discrete: bool = False
) -> Iterator[None]:
    """Within this block, f is one function (parametrised weights are computed once), of checked arguments."""
    if not callable(potential):
        raise TypeError(f"{layer}: potential must be callable, [B, *event] -> [B], got {type(potential).__name__}")
    check_points(layer, "data", data, least=least, discrete=discrete)
    with pinned(potential), naming_dtypes(layer, "data", data, potential):
        yield


def check_points(layer: str, name: str, points: object, *, least: int = 1, discrete: bool = False) -> Tensor:
    """points [B, *event], B >= least; of a floating dtype unless ``discrete``."""
    if not (discrete and isinstance(points, Tensor)):
        points = floating_tensor(layer, name, points)
    if points.dim() < 2 or len(points) < least:
        raise ValueError(f"{layer}: {name} must be [B, *event] with B at least {least}, got {tuple(points.shape)}")
    return points


def check_like(layer: str, name: str, points: object, data: Tensor, shape: tuple[int | str, ...]) -> Tensor:
    """points of data's dtype and device, and of this shape, where a letter stands for any size of at least 1."""
    if not isinstance(points, Tensor):
        raise TypeError(f"{layer}: {name} must be a tensor, got {type(points).__name__}")
    fits = points.dim() == len(shape) and all(
        size >= 1 if isinstance(wanted, str) else size == wanted
        for size, wanted in zip(points.shape, shape, strict=False)
    )
    if not fits:
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{layer}: {name} must have shape ({wanted}), got {tuple(points.shape)}")
    if points.dtype != data.dtype:
        raise TypeError(f"{layer}: {name} must have data's dtype {data.dtype}, got {points.dtype}")
    if points.device != data.device:
        raise ValueError(f"{layer}: {name} must be on data's device {data.device}, got {points.device}")
    return points


def check_positive(layer: str, name: str, value: object) -> float:
    if not is_number(value):
        raise TypeError(f"{layer}: {name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{layer}: {name} must be positive and finite, got {value}")
    return float(value)


def check_generator(layer: str, generator: object) -> torch.Generator | None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"{layer}: generator must be a torch.Generator or None, got {type(generator).__name__}")
    return generator


def normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normals in like's dtype, on its device; a CPU generator gives the same on every device."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)


def values(layer: str, potential: Potential, x: Tensor) -> Tensor:
    """f(x), [B]."""
    fused = fused_value(potential, x) if x.is_floating_point() else None
    return per_sample(layer, "potential", potential(x), len(x)) if fused is None else fused


def gradients(layer: str, potential: Potential, x: Tensor) -> Tensor:
    """∇f(x), [B, D], at points without a graph; where gradients are on, differentiable once in f's parameters."""
    if (fused := fused_value_and_grad(potential, x.detach())) is not None:
        return fused[1].flatten(1)
    _, grad = gradients_with_graph(layer, potential, x)
    return grad if torch.is_grad_enabled() else grad.detach()


def gradients_with_graph(layer: str, potential: Potential, x: Tensor) -> tuple[Tensor, Tensor]:
    """(x as rows [B, D] that require grad, ∇f there [B, D] as a function of them), whether gradients are on or not."""
    with torch.inference_mode(False), torch.enable_grad():
        rows = x.detach().flatten(1).clone().requires_grad_()
        total = per_sample(layer, "potential", potential(rows.view(x.shape)), len(x)).sum()
        if not total.requires_grad:  # a constant
            return rows, torch.zeros_like(rows)
        (grad,) = torch.autograd.grad(total, rows, create_graph=True, allow_unused=True)
    return rows, torch.zeros_like(rows) if grad is None else grad

"""f where the objective needs it, and the penalties, from as few evaluations as they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._ends import End
from .._sums import mean_square
from ..fields import fused_value, fused_value_and_grad


class Evaluations(NamedTuple):
    """f at the data [n], at the samples [K] and at the base samples [M] (or None).

    slope, square: E |∇f|² and E f², scalars, or None where they were not asked for.
    """

    data: Tensor
    samples: Tensor
    base: Tensor | None
    slope: Tensor | None
    square: Tensor | None


def evaluate(
    potential: Callable[[Tensor], Tensor],
    data: Tensor,
    base: Tensor | None,
    x: Tensor,
    want_slope: bool,
    want_square: bool,
    apart: bool,
    separately: bool = False,
    end: End | None = None,
) -> Evaluations:
    """f at the data, the samples x and the base samples, and what `ADE` penalises.

    That is at the data and at as many samples (at all of them, where they are fewer), and moves f alone.

    apart: the derivatives by x and by f's parameters will be asked for one after the other, and each shall cost its
        own part alone.
    separately: f takes the rows of one of the three at a time (it captured tensors with as many).
    end: what the unroll knows of f at x.
    """
    if separately:
        return _evaluate_separately(potential, data, base, x, want_slope, want_square)
    n, k, parts = len(data), len(x), [] if base is None else [base]
    rows = n + min(n, k)
    if end is not None and not want_square and not (want_slope and end.gradient is None):
        given = torch.cat([data, *parts]) if parts else data
        found = fused_value_and_grad(potential, given.detach() if want_slope else given)
        if found is not None:
            return _with_end(end, n, *found, want_slope)
    slope = None
    points = torch.cat([data, x, *parts])
    learning = torch.is_grad_enabled() and not data.requires_grad
    found = fused_value_and_grad(potential, points.detach()) if want_slope or learning else None
    if want_slope and found is None:
        found = unfused_values_and_grad(potential, points.detach())
    if found is not None:
        values, grad = found
        if want_slope:
            slope = mean_square(grad if len(grad) == rows else grad[:rows])
        # f's derivative by the samples is known: another evaluation would find the same.
        own = (x - x.detach()) * grad[n : n + k].detach()
        at_x = values[n : n + k] + own.flatten(1).sum(1)
    elif want_square:
        values, at_x = values_of(potential, points.detach()), values_of(potential, x)
    elif apart:
        at_x, others = values_of(potential, x), values_of(potential, torch.cat([data, *parts]))
        values = torch.cat([others[:n], at_x, others[n:]])
    else:
        values = values_of(potential, points)
        at_x = values[n : n + k]
    square = values[:rows].square().mean() if want_square else None
    return Evaluations(values[:n], at_x, None if base is None else values[n + k :], slope, square)


def _with_end(end: End, n: int, values: Tensor, grad: Tensor, want_slope: bool) -> Evaluations:
    """values, grad: at the data, and behind them at the base samples."""
    slope, with_base = None, len(values) > n
    if want_slope:
        assert end.gradient is not None
        slope = mean_square(*(g if len(g) == n else g[:n] for g in (grad, end.gradient)))
    at_data, at_base = (values[:n], values[n:]) if with_base else (values, None)
    return Evaluations(at_data, end.value, at_base, slope, None)


def _evaluate_separately(
    potential: Callable[[Tensor], Tensor],
    data: Tensor,
    base: Tensor | None,
    x: Tensor,
    want_slope: bool,
    want_square: bool,
) -> Evaluations:
    slope = square = None
    n, at_x = len(data), values_of(potential, x)
    if want_slope:
        (at_data, grad), (penalised, more) = (unfused_values_and_grad(potential, part.detach()) for part in (data, x))
        slope = mean_square(grad, more[:n])
    else:
        at_data = values_of(potential, data)
        penalised = values_of(potential, x.detach()) if want_square else at_x
    if want_square:
        square = torch.cat([at_data, penalised[:n]]).square().mean()
    return Evaluations(at_data, at_x, None if base is None else values_of(potential, base), slope, square)


def values_of(potential: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f(x), [B]; a trailing [B, 1] is accepted, anything else would broadcast into nonsense."""
    if (values := fused_value(potential, x)) is not None:
        return values
    values = potential(x)
    if values.shape == (x.shape[0], 1):
        values = values.squeeze(1)
    if values.shape != (x.shape[0],):
        raise ValueError(
            f"ADE: potential must map {tuple(x.shape)} to ({x.shape[0]},) or ({x.shape[0]}, 1), "
            f"got {tuple(values.shape)}"
        )
    return values


def unfused_values_and_grad(potential: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """(f(x) [B], grad f(x) [B, *event]) at points without a graph, both with the parameters' where gradients are on."""
    learning = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():  # grad f is needed where no one learns, too
        x = x.clone().requires_grad_()
        values = values_of(potential, x)
        (grad,) = torch.autograd.grad(values.sum(), x, create_graph=learning)
    return (values, grad) if learning else (values.detach(), grad.detach())

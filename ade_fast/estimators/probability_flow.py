"""Minimum probability flow (Sohl-Dickstein, Battaglino, DeWeese 2011)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dynamics import Leapfrog
from ._values import Potential, check_generator, check_like, check_positive, estimating, normal, values


def minimum_probability_flow(
    potential: Potential,
    data: Tensor,
    neighbours: Tensor | None = None,
    *,
    radius: float = 0.5,
    dynamics: Leapfrog | None = None,
    generator: torch.Generator | None = None,
    context: tuple[Tensor, ...] | None = None,
) -> Tensor:
    """``E_D E_{x' ~ T(·|x)} exp( ½ (f(x') - f(x)) )``, T symmetric: the rate at which probability leaves the data.

    Source: (49), D.6, whose print is an update direction; Sohl-Dickstein, Battaglino, DeWeese 2011. Dual sampler: x
    from the data, x' ~ T(x'|x) weighted by exp ½(f(x') - f(x)).

    With ``dynamics`` T is a Hamiltonian trajectory of (x, v), v ~ N(0, I), and f - ½‖v‖² takes f's place. With its
    ``gradient="full"`` the derivative goes through the trajectory, (49)'s third term; a T that follows f moves the
    minimum: at p_f = p_D this gradient is not 0. With ``gradient="none"`` it is, and the estimator is consistent.

    Args:
        potential: f, [B, *event] -> [B] or [B, 1], of data of any dtype where ``neighbours`` are given.
        data: [B, *event], B >= 1.
        neighbours: [B, M, *event], the x' of each x under a symmetric relation (all single flips of a spin), averaged.
        radius: where there are none and no ``dynamics``: x' ~ N(x, radius² I).
        dynamics: `Leapfrog`.
        generator: source of the randomness.
        context: non-leaf tensors that the potential depends on.

    Returns:
        A scalar to minimise, differentiable in whatever f depends on.

    Raises: TypeError, ValueError: an argument of the wrong kind, shape or range.
    """
    layer = "minimum_probability_flow"
    check_generator(layer, generator)
    radius = check_positive(layer, "radius", radius)
    if dynamics is not None and not isinstance(dynamics, Leapfrog):
        raise TypeError(f"{layer}: dynamics must be an ade.Leapfrog or None, got {type(dynamics).__name__}")
    if dynamics is not None and neighbours is not None:
        raise ValueError(f"{layer}: give neighbours or dynamics, not both")
    with estimating(layer, potential, data, discrete=neighbours is not None):
        n, event = len(data), tuple(data.shape[1:])
        if dynamics is not None:
            v = normal(tuple(data.shape), data, generator)
            end = dynamics(potential, data, v, context=context)
            f = values(layer, potential, torch.cat([data, end.x]))
            gain = f[n:] - f[:n] - 0.5 * (end.v.square() - v.square()).flatten(1).sum(1)
            return (0.5 * gain).exp().mean()
        if neighbours is None:
            neighbours = (data + radius * normal(tuple(data.shape), data, generator)).unsqueeze(1)
        check_like(layer, "neighbours", neighbours, data, (n, "M", *event))
        size = neighbours.shape[1]
        f = values(layer, potential, torch.cat([data, neighbours.reshape(n * size, *event)]))
        return (0.5 * (f[n:].view(n, size) - f[:n].view(n, 1))).exp().mean()

"""Improved contrastive divergence (Du et al. 2021): the term that contrastive divergence leaves out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..dynamics import Langevin
from ..dynamics.base import Dynamics, is_number
from ..fields import fused_value_and_grad
from ._values import Potential, check_like, check_positive, estimating, gradients, values


def improved_contrastive_divergence(
    potential: Potential,
    data: Tensor,
    n_steps: int = 15,
    step_size: float = 0.1,
    *,
    dynamics: Dynamics | None = None,
    start: Tensor | None = None,
    kl_weight: float = 1.0,
    reference: Tensor | None = None,
    generator: torch.Generator | None = None,
    context: tuple[Tensor, ...] | None = None,
) -> Tensor:
    """CD with its KL term: ``E[f(sg x^k)] - E_D[f(x)] + kl_weight (-E[sg f(x^k)] - H(x^k))``; sg: no gradient.

    The last term is KL(q^k ‖ p_f) with f held fixed: its gradient reaches f through the sampler alone, and makes the
    sampler a better one. Its authors take it through the last step; here it is exact through all of them, by the
    unrolled layers. It is 0 where p_f = p_D and the transitions leave p_f invariant. The derivative of contrastive
    divergence itself, KL(p_D ‖ p_f) - KL(q^k ‖ p_f), and that of (20), where f works against the sampler, have this
    term with the other sign: ``kl_weight=-1``. H is the
    estimate of the entropy by nearest neighbours (Kozachenko and Leonenko), ``D E log min_j ‖x_i - r_j‖``, up to a
    constant.

    Source: Du, Li, Tenenbaum, Mordatch 2021, and their code. Dual sampler: that of `contrastive_divergence`, with the
    gradient through it.

    Args:
        potential, data, generator, context: as in `contrastive_divergence`.
        n_steps, step_size: of `Langevin`, where no ``dynamics`` is given.
        dynamics: the transitions, a dynamics layer with ``gradient="full"``; its own parameters get gradients too.
        start: [K, *event], where chains begin; None: at the data.
        kl_weight: 1 is the authors' loss, 0 `contrastive_divergence`.
        reference: [M, *event], the r_j (the authors': a replay buffer), no gradient; None: the other end points.

    Returns:
        A scalar to minimise, differentiable in whatever f depends on.

    Raises: TypeError, ValueError: an argument of the wrong kind, shape or range.
    """
    layer = "improved_contrastive_divergence"
    if dynamics is not None and not isinstance(dynamics, Dynamics):
        raise TypeError(f"{layer}: dynamics must be a dynamics layer or None, got {type(dynamics).__name__}")
    if dynamics is not None and dynamics.options.gradient != "full":
        raise ValueError(f"{layer}: dynamics must have gradient='full', got {dynamics.options.gradient!r}")
    if not is_number(kl_weight):
        raise TypeError(f"{layer}: kl_weight must be a number, got {type(kl_weight).__name__}")
    if not math.isfinite(kl_weight):
        raise ValueError(f"{layer}: kl_weight must be finite, got {kl_weight}")
    with estimating(layer, potential, data):
        event = tuple(data.shape[1:])
        start = data if start is None else check_like(layer, "start", start, data, ("K", *event))
        if reference is not None:
            check_like(layer, "reference", reference, data, ("M", *event))
        elif len(start) < 2:
            raise ValueError(f"{layer}: entropy by nearest neighbours needs 2 points at least, got {len(start)}")
        if dynamics is None:
            step = torch.tensor(check_positive(layer, "step_size", step_size), dtype=data.dtype, device=data.device)
            dynamics = Langevin(n_steps, step, learn_step_size=False)
        x = dynamics(potential, start.detach(), generator=generator, context=context).x
        f = values(layer, potential, torch.cat([data, x.detach()]))
        contrast = f[len(data) :].mean() - f[: len(data)].mean()
        return contrast + kl_weight * (-_along(layer, potential, x).mean() - _entropy(x, reference))


def _along(layer: str, potential: Potential, x: Tensor) -> Tensor:
    """f(x) [B] whose gradient reaches x, and not f's parameters by any other way."""
    with torch.no_grad():
        fused = fused_value_and_grad(potential, x.detach())
        found = (values(layer, potential, x), gradients(layer, potential, x)) if fused is None else fused
    f, grad = found
    return f + ((x - x.detach()).flatten(1) * grad.flatten(1)).sum(1)


def _entropy(x: Tensor, reference: Tensor | None) -> Tensor:
    """D E log of the distance to the nearest neighbour; of coinciding points the smallest distance counts as tiny."""
    rows = x.flatten(1)
    with torch.no_grad():
        others = rows if reference is None else reference.flatten(1)
        distances = torch.cdist(rows, others)
        if reference is None:
            distances.fill_diagonal_(torch.inf)
        nearest = distances.argmin(1)
    others = rows[nearest] if reference is None else reference.flatten(1).detach()[nearest]
    squares = (rows - others).square().sum(1)
    return 0.5 * rows.shape[1] * squares.clamp(min=torch.finfo(x.dtype).tiny).log().mean()

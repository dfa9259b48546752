"""Non-local contrastive objectives (Vickrey, Lin, Koller 2010)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..initial.base import as_count
from ._values import Potential, check_generator, check_like, check_positive, estimating, normal, values


def nonlocal_contrastive(
    potential: Potential,
    data: Tensor,
    others: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    n_others: int = 10,
    radius: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``-E_D[ Σ_i w(x, S_i) (f(x) - log Σ_{y in S_i} exp f(y)) ]``, S_i finite sets that x is one of.

    Source: (47) with its sign turned, D.5; Vickrey, Lin, Koller 2010. Dual sampler: x from the data, a set S_i by
    w(x, S_i), a point of it by p_f within the set. Consistent where a set is as likely to come from each of its
    points: for a fixed partition, or for the sets that are drawn here where none are given: a centre c ~ N(x, r² I),
    and ``n_others`` points from N(c, r² I).

    Args:
        potential: f, [B, *event] -> [B] or [B, 1], of data of any dtype where ``others`` are given.
        data: [B, *event], B >= 1.
        others: [B, M, *event], the other points of each datum's set; or [B, S, M, *event], of S sets.
        weights: [B, S], w(x, S_i) >= 0, rows that sum to 1; None: 1/S each.
        n_others, radius: of the sets that are drawn, >= 1, and r > 0.
        generator: where they come from.

    Returns:
        A scalar to minimise, differentiable in whatever f depends on.

    Raises: TypeError, ValueError: an argument of the wrong kind, shape or range.
    """
    layer = "nonlocal_contrastive"
    check_generator(layer, generator)
    n_others, radius = as_count(layer, "n_others", n_others, least=1), check_positive(layer, "radius", radius)
    with estimating(layer, potential, data, discrete=others is not None):
        n, event = len(data), tuple(data.shape[1:])
        if others is None:
            centre = data + radius * normal((n, *event), data, generator)
            others = centre.unsqueeze(1) + radius * normal((n, n_others, *event), data, generator)
        if isinstance(others, Tensor) and others.dim() == 2 + len(event):
            others = others.unsqueeze(1)
        check_like(layer, "others", others, data, (n, "S", "M", *event))
        sets, size = others.shape[1:3]
        f = values(layer, potential, torch.cat([data, others.reshape(n * sets * size, *event)]))
        own, rest = f[:n].view(n, 1), f[n:].view(n, sets, size)
        log_p = own - torch.logaddexp(own, rest.logsumexp(2))
        if weights is None:
            return -log_p.mean()
        check_weights(layer, weights, (n, sets))
        return -(weights.to(f) * log_p).sum(1).mean()


def check_weights(layer: str, weights: object, shape: tuple[int, int]) -> None:
    """Rows of non-negative numbers that sum to 1."""
    if not isinstance(weights, Tensor):
        raise TypeError(f"{layer}: weights must be a tensor or None, got {type(weights).__name__}")
    if tuple(weights.shape) != shape:
        raise ValueError(f"{layer}: weights must have shape {shape}, got {tuple(weights.shape)}")
    if not bool((weights >= 0).all()) or not torch.allclose(weights.sum(1), weights.new_ones(shape[0]), atol=1e-4):
        raise ValueError(f"{layer}: weights must be >= 0 with rows that sum to 1")

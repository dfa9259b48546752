"""Pseudo-likelihood (Besag 1975) and conditional composite likelihood (Lindsay 1988)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._integers import as_integer
from ._values import Potential, estimating, values

_MOST_STATES = 4096
"""Of one block: all of them are evaluated for every point."""


def pseudo_likelihood(potential: Potential, data: Tensor, states: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """``-E_D[ Σ_i log p_f(x_i | x_-i) ]``, every conditional normalised by enumerating what x_i may be.

    Source: (45) with its sign turned, D.4; Besag 1975. Dual sampler: a site i at random, x from the data, x_i drawn
    anew from p_f(x_i | x_-i).

    Args: as `composite_likelihood`, whose blocks are single sites here.

    Returns, raises: as `composite_likelihood`.
    """
    layer = "pseudo_likelihood"
    with estimating(layer, potential, data, discrete=True):
        states = _check_states(layer, states, weights, data)
        n_sites = _sites(data, states)
        return _composite(layer, potential, data, [(i,) for i in range(n_sites)], states, weights)


def composite_likelihood(
    potential: Potential,
    data: Tensor,
    blocks: Sequence[Sequence[int]],
    states: Tensor,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """``-E_D[ Σ_A log p_f(x_A | x_-A) ]``, over blocks A of sites, each normalised by enumerating its K^|A| states.

    Source: (46) with its sign turned, D.4; Lindsay 1988. Dual sampler: a block A of the given ones, x from the data,
    x_A drawn anew from p_f(x_A | x_-A). One block of all sites is maximum likelihood.

    Args:
        potential: f, [B, *event] -> [B] or [B, 1], of data of any dtype.
        data: [B, *event], B >= 1. A site is an element of the event, in the order of ``flatten``; or with vector
            states a leading index of it, where the event ends in a state's shape.
        blocks: sites of each block, distinct within it. (46) has them partition all sites; they may overlap.
        states: [K], the values that a site may take; or [K, *state], such as one-hot vectors ``torch.eye(K)``.
        weights: [K] > 0, the measure of each state; None: 1, sites are discrete, and data must consist of the states.
            With quadrature weights, sites are continuous: ``states`` are the nodes, and data need not be among them.

    Returns:
        A scalar to minimise, differentiable in whatever f depends on.

    Raises: TypeError, ValueError: an argument of the wrong kind, shape or range; data that are no states; a block of
        more than 4,096 states.
    """
    layer = "composite_likelihood"
    with estimating(layer, potential, data, discrete=True):
        states = _check_states(layer, states, weights, data)
        return _composite(layer, potential, data, _check_blocks(layer, blocks, _sites(data, states)), states, weights)


def _composite(
    layer: str,
    potential: Potential,
    data: Tensor,
    blocks: list[tuple[int, ...]],
    states: Tensor,
    weights: Tensor | None,
) -> Tensor:
    n, k = len(data), len(states)
    f_data = values(layer, potential, data)
    log_weights = None if weights is None else weights.to(f_data).log()
    total = f_data.new_zeros(n)
    for block in blocks:
        if k ** len(block) > _MOST_STATES:
            raise ValueError(
                f"{layer}: a block must have at most {_MOST_STATES} states, got {k}^{len(block)} of {block}"
            )
        picks = torch.cartesian_prod(*[torch.arange(k, device=data.device)] * len(block)).view(-1, len(block))
        others = data.reshape(n, 1, -1, *states.shape[1:]).repeat(1, len(picks), 1, *(1 for _ in states.shape[1:]))
        others[:, :, list(block)] = states[picks]
        f = values(layer, potential, others.view(n * len(picks), *data.shape[1:])).view(n, len(picks))
        if log_weights is not None:
            f = f + log_weights[picks].sum(1)
        total = total + f_data - f.logsumexp(1)
    return -total.mean()


def _check_states(layer: str, states: object, weights: object, data: Tensor) -> Tensor:
    if not isinstance(states, Tensor):
        raise TypeError(f"{layer}: states must be a tensor, [K] or [K, *state], got {type(states).__name__}")
    event, shape = tuple(data.shape[1:]), tuple(states.shape[1:])
    if states.dim() < 1 or len(states) < 2 or (shape and event[len(event) - len(shape) :] != shape):
        raise ValueError(
            f"{layer}: states must be [K] or [K, *state] with K at least 2 and the event {event} ending in a state's "
            f"shape, got {tuple(states.shape)}"
        )
    states = states.to(data)
    if weights is None:
        sites = data.reshape(len(data), -1, 1, states[0].numel())
        if not bool((sites == states.reshape(len(states), -1)).all(-1).any(-1).all()):
            raise ValueError(
                f"{layer}: data must consist of the states where these have no weights; for continuous data give "
                "quadrature nodes as states and their weights"
            )
        return states
    if not isinstance(weights, Tensor):
        raise TypeError(f"{layer}: weights must be a tensor or None, got {type(weights).__name__}")
    if tuple(weights.shape) != (len(states),) or not bool((weights > 0).all() & weights.isfinite().all()):
        raise ValueError(f"{layer}: weights must be ({len(states)},), positive and finite, got {tuple(weights.shape)}")
    return states


def _sites(data: Tensor, states: Tensor) -> int:
    return data[0].numel() // states[0].numel()


def _check_blocks(layer: str, blocks: Any, n_sites: int) -> list[tuple[int, ...]]:
    try:
        checked = [tuple(as_integer(site) for site in block) for block in blocks]
    except TypeError:
        raise TypeError(f"{layer}: blocks must be a sequence of sequences of sites, got {blocks!r}") from None
    if not checked:
        raise ValueError(f"{layer}: blocks must have one block at least, got none")
    for block in checked:
        if not block or len(set(block)) < len(block) or not all(0 <= site < n_sites for site in block):
            raise ValueError(f"{layer}: a block must have distinct sites from 0 to {n_sites - 1}, got {block}")
    return checked

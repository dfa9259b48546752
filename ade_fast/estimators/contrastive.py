"""Contrastive divergence (Hinton 2002), and with chains that persist (Tieleman 2008)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..fields import fused_weighted_value
from ..initial import Empirical
from ._values import Potential, estimating, values
from .chain import Chain


def contrastive_divergence(
    potential: Potential,
    data: Tensor,
    n_steps: int = 15,
    step_size: float = 0.1,
    *,
    accept_reject: bool = False,
    chain: Chain | None = None,
    generator: torch.Generator | None = None,
    context: tuple[Tensor, ...] | None = None,
) -> Tensor:
    """CD-k: ``E[f(x^k)] - E_D[f(x)]``, x^k after k transitions from the data, and a constant.

    Source: (42), D.1; Hinton 2002. Dual sampler: q⁰ the data, k Langevin or HMC steps, no gradient through them: the
    third term of (21) is left out. Its fixed point is p_f = p_D only where the transitions leave p_f invariant
    (``accept_reject``) or are short; the loss's value says nothing of the fit.

    Args:
        potential: f, [B, *event] -> [B] or [B, 1].
        data: [B, *event], B >= 1; as many negative samples are drawn.
        n_steps, step_size: of `Langevin`, where no ``chain`` is given.
        accept_reject: with these, a Metropolis test of every step (MALA).
        chain: other transitions, `Chain`: several rounds of HMC with a test of each, for instance.
        generator: source of the transitions' randomness.
        context: non-leaf tensors that the potential depends on.

    Returns:
        A scalar to minimise, differentiable in whatever f depends on.

    Raises: TypeError, ValueError: an argument of the wrong kind, shape or range.
    """
    layer = "contrastive_divergence"
    with estimating(layer, potential, data):
        negatives = _chain(layer, chain, n_steps, step_size, accept_reject, data)
        if (found := negatives.contrast(potential, data, generator=generator)) is not None:
            return found
        return _contrast(layer, potential, data, negatives.run(potential, data, generator=generator, context=context).x)


def persistent_contrastive_divergence(
    potential: Potential,
    data: Tensor,
    replay: Empirical,
    n_steps: int = 15,
    step_size: float = 0.1,
    *,
    accept_reject: bool = False,
    chain: Chain | None = None,
    generator: torch.Generator | None = None,
    context: tuple[Tensor, ...] | None = None,
) -> Tensor:
    """PCD: ``E[f(x^k)] - E_D[f(x)]``, x^k after k transitions from where earlier chains ended, and a constant.

    Source: D.1; Tieleman 2008, Du and Mordatch 2019. Dual sampler: q⁰ a replay buffer, then as in
    `contrastive_divergence`. Every call moves the buffer on: its new end points take the place of the oldest.

    Args:
        potential, data, n_steps, step_size, accept_reject, chain, generator, context: as in `contrastive_divergence`.
        replay: `ade.initial.Empirical` with a ``buffer_size``; its ``data`` is what chains start from, with
            probability ``reinit`` again and again.

    Returns, raises: as `contrastive_divergence`.
    """
    layer = "persistent_contrastive_divergence"
    if not isinstance(replay, Empirical) or replay.buffer_size is None:
        got = "one without" if isinstance(replay, Empirical) else type(replay).__name__
        raise TypeError(f"{layer}: replay must be an ade.initial.Empirical with a buffer_size, got {got}")
    with estimating(layer, potential, data):
        if replay.event != tuple(data.shape[1:]):
            raise ValueError(f"{layer}: replay must have data's event {tuple(data.shape[1:])}, got {replay.event}")
        start = replay.sample(len(data), generator=generator).x
        end = _chain(layer, chain, n_steps, step_size, accept_reject, data)
        x = end.run(potential, start, generator=generator, context=context).x
        replay.update(x)
        return _contrast(layer, potential, data, x)


def _chain(layer: str, chain: Chain | None, n_steps: int, step_size: float, accept_reject: bool, data: Tensor) -> Chain:
    if chain is None:
        return Chain.langevin(n_steps, step_size, accept_reject, like=data)
    if not isinstance(chain, Chain):
        raise TypeError(f"{layer}: chain must be an ade.estimators.Chain or None, got {type(chain).__name__}")
    if accept_reject:
        raise ValueError(
            f"{layer}: accept_reject is the chain's own where one is given: Chain(..., accept_reject=True)"
        )
    return chain


def _contrast(layer: str, potential: Potential, data: Tensor, negatives: Tensor) -> Tensor:
    """Both means from one evaluation, and where the kernels know f its gradient too: it is linear in f."""
    both = torch.cat([data, negatives.to(data.dtype)])
    n = len(data)
    factor = both.new_full((2 * n,), 1 / n)
    factor[:n] = -1 / n
    if both.is_floating_point() and (found := fused_weighted_value(potential, both, factor)) is not None:
        return found
    f = values(layer, potential, both)
    return f[n:].mean() - f[:n].mean()

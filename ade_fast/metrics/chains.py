"""Convergence diagnostics of Markov chains, by ArviZ."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._tensors import floating_tensor


class ChainDiagnostics(NamedTuple):
    """Of every coordinate, shape ``event``, float64. r_hat: near 1 where the chains agree, below 1.01 is good.
    ess_bulk, ess_tail: effective numbers of draws, of all chains together, for means and for 5 % and 95 % quantiles."""

    r_hat: Tensor
    ess_bulk: Tensor
    ess_tail: Tensor


def chain_diagnostics(chains: Tensor) -> ChainDiagnostics:
    """Rank-normalised split R̂ and effective sample sizes of Markov chains.

    Source: Vehtari, Gelman, Simpson, Carpenter, Bürkner 2021; as ArviZ computes them.

    Args:
        chains: ``(n_chains, n_draws, *event)``, at least 2 chains of 4 draws, floating point, in the order of the
            draws; a constant coordinate gets R̂ = NaN.

    Raises:
        ImportError: ArviZ is not installed.
        TypeError, ValueError: an argument of the wrong kind or shape; a draw that is not finite.
    """
    name = "chain_diagnostics"
    floating_tensor(name, "chains", chains)
    if chains.dim() < 2 or chains.shape[0] < 2 or chains.shape[1] < 4:
        raise ValueError(
            f"{name}: chains must be (n_chains, n_draws, *event), at least 2 chains of 4 draws, "
            f"got {tuple(chains.shape)}"
        )
    if not bool(chains.isfinite().all()):
        raise ValueError(f"{name}: chains must be finite, got NaN or infinity")
    try:
        import arviz
    except ImportError:
        raise ImportError("chain_diagnostics needs ArviZ: pip install arviz") from None
    draws = chains.detach().double().cpu().flatten(2) if chains.dim() > 2 else chains.detach().double().cpu()[..., None]
    columns = [column.contiguous().numpy() for column in draws.unbind(2)]
    found = [
        [arviz.rhat(c, method="rank") for c in columns],
        [arviz.ess(c, method="bulk") for c in columns],
        [arviz.ess(c, method="tail") for c in columns],
    ]
    return ChainDiagnostics(
        *(torch.tensor([float(v) for v in values], dtype=torch.float64).view(chains.shape[2:]) for values in found)
    )

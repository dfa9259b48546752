"""A goodness-of-fit test by the kernel Stein discrepancy: are these points draws from p_f? log Z is not needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..dynamics.base import is_number
from ..initial.base import as_count
from .mmd import Bandwidth

_CHUNK_ELEMENTS = 1 << 20  # 8 MiB of float64 signs at a time


class _Found(NamedTuple):
    ksd2: float
    p: float


class KSDTest(_Found):
    """``(ksd2, p)``, the unbiased KSD² and the bootstrap's p-value, both Python floats.

    Attributes:
        null: ``(n_bootstrap,)`` float64, the bootstrapped values: what KSD² is when the points come from p_f.
    """

    null: Tensor


def ksd_test(
    potential: Callable[[Tensor], Tensor],
    x: Tensor,
    n_bootstrap: int = 1000,
    generator: torch.Generator | None = None,
    bandwidth: Bandwidth = "median",
    *,
    flip: float = 0.5,
) -> KSDTest:
    """Test of "x are draws from p_f" with the unbiased KSD² (`ade.estimators.kernel_stein_discrepancy`) as statistic.

    Wild bootstrap: ``1/(n(n-1)) Σ_{i≠j} ε_i ε_j u(x_i, x_j)`` for random signs ε has the statistic's limit under the
    null. ``p = (1 + #{bootstrapped ≥ observed}) / (1 + n_bootstrap)``, right as n grows. The bandwidth is of x itself,
    chosen without a look at f.

    Source: Liu, Lee, Jordan 2016; Chwialkowski, Strathmann, Gretton 2016 (signs that persist, for correlated draws).

    Args:
        potential: f, ``(B, *event)`` to ``(B,)`` or ``(B, 1)``; p_f ∝ exp f, its normaliser unknown.
        x: ``(n, *event)``, n ≥ 2, floating point.
        n_bootstrap: how many sign patterns, at least 1.
        generator: where they come from.
        bandwidth: as in :func:`mmd2`.
        flip: in (0, 1/2], the probability that a sign differs from the one before. 1/2 is for independent points; for
            the states of one Markov chain in their order, less: about the inverse of its correlation length. Where the
            chain is not far longer than 1/flip, the test rejects too often.

    Returns:
        ``(ksd2, p)``, Python floats, with the bootstrapped values as ``.null``. A small p: x are not from p_f.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range.
    """
    from ..estimators._values import estimating
    from ..estimators.stein import stein_kernel

    n_bootstrap = as_count("ksd_test", "n_bootstrap", n_bootstrap, least=1)
    if not is_number(flip):
        raise TypeError(f"ksd_test: flip must be a number, got {type(flip).__name__}")
    if not 0 < flip <= 0.5:
        raise ValueError(f"ksd_test: flip must be above 0 and at most 0.5, got {flip}")
    with torch.no_grad(), estimating("ksd_test", potential, x, least=2):
        u = stein_kernel("ksd_test", potential, x, bandwidth)
        n = len(x)
        u.fill_diagonal_(0)
        observed = u.sum().item() / (n * (n - 1))
        null, chunk = [], max(1, _CHUNK_ELEMENTS // n)
        for start in range(0, n_bootstrap, chunk):
            signs = _signs(min(chunk, n_bootstrap - start), n, flip, generator, u)
            null.append((signs @ u).mul_(signs).sum(1) / (n * (n - 1)))
    bootstrapped = torch.cat(null)
    found = KSDTest(observed, (1 + int((bootstrapped >= observed).sum())) / (1 + n_bootstrap))
    found.null = bootstrapped
    return found


def _signs(count: int, n: int, flip: float, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """``(count, n)`` of ±1: the first of a row ±1 with equal chances, each other one flipped with this probability."""
    device = like.device if generator is None else generator.device
    unit = torch.rand(count, n, generator=generator, dtype=torch.float64, device=device).to(like.device)
    changes = unit < flip
    changes[:, 0] = unit[:, 0] < 0.5
    return 1 - 2 * (changes.cumsum(1) % 2).to(like.dtype)

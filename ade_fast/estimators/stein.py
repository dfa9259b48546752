"""Kernel Stein discrepancy (Liu, Lee, Jordan 2016; Barp et al. 2019)."""

from __future__ import annotations

from torch import Tensor

from ..metrics.mmd import Bandwidth, kernel_variance, squared_distances
from ._values import Potential, estimating, gradients


def kernel_stein_discrepancy(potential: Potential, data: Tensor, bandwidth: Bandwidth = "median") -> Tensor:
    """``1/(n(n-1)) Σ_{i≠j} u(x_i, x_j)``, unbiased for KSD², which is 0 just where p_f = p_D; may be negative.

    With s = ∇f and ``k(x, y) = exp(-‖x - y‖²/(2h²))``:
    ``u = k [ s(x)·s(y) + (s(x) - s(y))·(x - y)/h² + D/h² - ‖x - y‖²/h⁴ ]``. Arithmetic is in float64.

    Source: (44) with its sign turned, D.3; Liu, Lee, Jordan 2016, eqs. (6), (14). Dual sampler: one step of Stein
    variational gradient descent from the data: η times this is what it adds to (5), up to o(η).

    Args:
        potential: f, [B, *event] -> [B] or [B, 1].
        data: [n, *event], n >= 2.
        bandwidth: h, a number; "median": h² is the median of the squared distances of all pairs; "fine": a fifth of
            that h.

    Returns:
        A scalar to minimise, differentiable in whatever f depends on; not in data.

    Raises: TypeError, ValueError: an argument of the wrong kind, shape or range; over half of the pairs coincide.
    """
    layer = "kernel_stein_discrepancy"
    with estimating(layer, potential, data, least=2):
        u = stein_kernel(layer, potential, data, bandwidth)
        n = len(data)
        return ((u.sum() - u.diagonal().sum()) / (n * (n - 1))).to(data.dtype)


def stein_kernel(layer: str, potential: Potential, data: Tensor, bandwidth: Bandwidth) -> Tensor:
    """u at all pairs, [n, n], float64; differentiable in f's parameters."""
    x, s = data.detach().flatten(1).double(), gradients(layer, potential, data).double()
    squares = squared_distances(x)
    inverse = 1 / kernel_variance(layer, squares, bandwidth)
    # (s_i - s_j)·(x_i - x_j), from centred points, whose products are no larger than they have to be.
    centred = x - x.mean(0)
    cross = s @ centred.T
    own = cross.diagonal()
    slopes = own[:, None] + own - cross - cross.T
    return (-0.5 * inverse * squares).exp() * (s @ s.T + inverse * slopes + inverse * x.shape[1] - inverse**2 * squares)

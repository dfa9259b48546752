"""log|det(I + ηH)| of Hessians H: exact, or estimated from Hessian-vector products alone (B.1)."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._integers import as_integer
from .base import is_number

MODES = ("exact", "taylor", "chebyshev", "laplacian")
_EXPANSIONS = ("taylor", "chebyshev")

# Chebyshev's interval stops here, before the singularity of log(1 + a) at a = -1.
_LOWEST = 0.99
_POWER_ITERATIONS = 10
# By how much a norm that power iteration found from below is enlarged.
_MARGIN = 1.2

Product = Callable[[Tensor], Tensor]
"""u [N, D] -> A u [N, D], a product of each row with its own matrix."""


@dataclass(frozen=True)
class LogDet:
    """How log-determinants are found; see `DeterministicLangevin` for the fields' meaning."""

    mode: str = "exact"
    order: int = 10
    n_probes: int = 1
    spectral_bound: float | None = None

    @classmethod
    def of(cls, layer: str, mode: object, order: object, n_probes: object, spectral_bound: object) -> LogDet:
        """From a layer's arguments.

        Raises: ValueError, TypeError.
        """
        if not isinstance(mode, str) or mode not in MODES:
            raise ValueError(f"{layer}: log_det must be one of {MODES}, got {mode!r}")
        if spectral_bound is not None:
            if not is_number(spectral_bound):
                kind = type(spectral_bound).__name__
                raise TypeError(f"{layer}: spectral_bound must be a number or None, got {kind}")
            if not (spectral_bound > 0 and math.isfinite(spectral_bound)):
                raise ValueError(f"{layer}: spectral_bound must be positive and finite, got {spectral_bound}")
            spectral_bound = float(spectral_bound)
        return cls(mode, _count(layer, "order", order), _count(layer, "n_probes", n_probes), spectral_bound)

    @property
    def is_estimated(self) -> bool:
        return self.mode != "exact"

    @property
    def wants_probes(self) -> bool:
        return self.mode in _EXPANSIONS

    def expand(self, product: Product, z: Tensor, bound: Tensor) -> Tensor:
        """The expansion's estimate of log|det(I + A)| from one probe z [N, D]; bound [N]. [N]."""
        expansion = taylor if self.mode == "taylor" else chebyshev
        return expansion(product, z, bound, self.order)


def _count(layer: str, name: str, value: object) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{layer}: {name} must be an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{layer}: {name} must be at least 1, got {value}")
    return as_integer(value)


def exact(hessian: Tensor, eta: Tensor) -> Tensor:
    """log|det(I + diag(η) H)|: hessian [N, D, D], eta [N, D] -> [N]."""
    matrix = eta.unsqueeze(2) * hessian
    return torch.linalg.slogdet(matrix + torch.eye(eta.shape[1], dtype=eta.dtype, device=eta.device)).logabsdet


def folds(hessian: Tensor, eta: Tensor) -> Tensor:
    """Where an eigenvalue of I + diag(η) H is not positive, which x + η∇f(x) then is no one-to-one map: [N], bool."""
    # diag(1/η) + H is symmetric, and has as many negative eigenvalues as I + √η H √η: none, or there is no Cholesky.
    return torch.linalg.cholesky_ex(torch.diag_embed(eta.reciprocal()) + hessian).info != 0


def taylor(product: Product, z: Tensor, bound: Tensor, order: int) -> Tensor:
    """B.1: d log(1 + b) - Σ_{i=1}^k zᵀCⁱz / i with C = (b I - A) / (1 + b), unbiased for the sum of traces. [N].

    z [N, D] of entries ±1; bound b [N] of A's spectral radius. The error falls as (2b / (1 + b))^(k+1) at the latest,
    for b >= 1 as the powers of C's largest eigenvalue, which is below 1 while A's are above -1.
    """
    b = bound.unsqueeze(1)
    total, w = z.shape[1] * torch.log1p(bound), z
    for i in range(1, order + 1):
        w = (b * w - product(w)) / (1 + b)
        total = total - (z * w).sum(1) / i
    return total


def chebyshev(product: Product, z: Tensor, bound: Tensor, order: int) -> Tensor:
    """B.1: Σ_{j=0}^n c_j zᵀR_j(S)z, R_j Chebyshev's polynomials, unbiased for the sum of traces. [N].

    S = A / b where b <= 0.99: the error falls as ρ^-(n+1), ρ = 1/b + √(1/b² - 1). Else the interval [-0.99, b], which
    ends before the singularity of log(1 + a), is mapped to [-1, 1]. z and bound as in `taylor`.
    """
    low = -bound.clamp(max=_LOWEST)
    centre, half = ((bound + low) / 2).unsqueeze(1), ((bound - low) / 2).unsqueeze(1)
    angles = math.pi * (torch.arange(order + 1, dtype=bound.dtype, device=bound.device) + 0.5) / (order + 1)
    values = torch.log1p(centre + half * angles.cos())  # [N, n + 1], at the nodes
    total = z.shape[1] * values.mean(1)
    before, now = torch.zeros_like(z), z
    for j in range(1, order + 1):
        step = (product(now) - centre * now) / half
        before, now = now, step if j == 1 else 2 * step - before
        total = total + 2 * (values * (j * angles).cos()).mean(1) * (z * now).sum(1)
    return total


@torch.no_grad()
def power_iteration(product: Product, start: Tensor, eta: Tensor) -> Tensor:
    """A bound of the spectral radius of A = diag(η) H, [N], H symmetric: what power iteration finds, and a fifth.

    start [N, D], random; eta [N, D]. Norms are those in which A is symmetric, Σ u²/|η|, so that they grow towards the
    radius from below.
    """
    weight = eta.abs().rsqrt()
    u = start / _norm(weight * start)
    for _ in range(_POWER_ITERATIONS):
        v = product(u)
        radius = _norm(weight * v)
        u = v / radius.clamp(min=torch.finfo(v.dtype).tiny)
    return _MARGIN * radius.squeeze(1)


def _norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def warn_folds(layer: str, count: int, of: int) -> None:
    warnings.warn(
        f"{layer}: x + step_size ∇f(x) is no one-to-one map at {count} of {of} points (an eigenvalue of step_size ∇²f "
        "is at or below -1): log_det is not that of a density there; reduce step_size",
        UserWarning,
        stacklevel=2,
    )


def warn_bound(layer: str, bound: float) -> None:
    warnings.warn(
        f"{layer}: step_size times the Hessian's spectral bound is {bound:.3g}, not below 1: the expansion of log_det "
        "converges slowly, and if an eigenvalue of step_size ∇²f is below -1 not at all; reduce step_size",
        UserWarning,
        stacklevel=2,
    )


def warn_kinks(layer: str) -> None:
    warnings.warn(
        f"{layer}: potential is piecewise linear: x + step_size ∇f(x) jumps where f bends, so that samples overlap or "
        "leave gaps there, which log_det does not see: densities, entropies and weights are not right; use a smooth "
        "activation",
        UserWarning,
        stacklevel=2,
    )

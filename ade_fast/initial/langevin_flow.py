"""Gradient steps of potentials of their own: the second initial distribution of appendix C.2."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .base import InitialDistribution, as_count, as_std
from .flow import Flow


class LangevinFlow(Flow):
    """``n_layers`` maps ``x ← x + ε φᵗ(x)`` of ``x ~ N(0, std² I)``, φᵗ the gradient of a potential of each layer's
    own, with the exact log-density.

    A layer's potential is a network of one hidden layer, ``Σ_k a_k softplus(w_kᵀx + b_k)``, whose gradient and Hessian
    are closed forms: ``φ = Σ_k a_k σ(w_kᵀx + b_k) w_k`` and ``H = Σ_k a_k σ'(w_kᵀx + b_k) w_k w_kᵀ``, σ the logistic
    function; ``log|det| = log det(I + εH)`` as in B.1. A layer is invertible where no eigenvalue of εH reaches -1. As
    ``σ' <= 1/4``, the negative a_k are divided by ``1 + ε/4 Σ |a_k| ‖w_k‖²``, the sum over them, so that it always is.

    Source: appendix C.2, second item. Reference: ``reference.deterministic_langevin`` of one step of each potential.
    Shapes: ``w`` ``(n_layers, hidden, dim)``, ``a``, ``b`` ``(n_layers, hidden)``, all parameters.
    Cost: a determinant of size ``dim`` per sample and layer, for small ``dim``. The maps start close to the identity.

    Args:
        dim: length of one x.
        n_layers: number of maps; 0 is the base Gaussian.
        hidden: units of each layer's potential.
        step_size: ε > 0, fixed: the size of ``a`` does as much.
        std: standard deviation of the base Gaussian, fixed.
        momentum: the distribution of v; None is N(0, I).

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """

    def __init__(
        self,
        dim: int,
        n_layers: int = 5,
        hidden: int = 32,
        *,
        step_size: float = 0.1,
        std: float = 1.0,
        momentum: InitialDistribution | None = None,
    ) -> None:
        super().__init__(dim, std, momentum=momentum)
        self.n_layers = as_count("LangevinFlow", "n_layers", n_layers, least=0)
        self.hidden = as_count("LangevinFlow", "hidden", hidden, least=1)
        self.step_size = as_std("LangevinFlow", "step_size", step_size)
        self.w = nn.Parameter(torch.randn(self.n_layers, self.hidden, self.dim) / math.sqrt(self.dim))
        self.a = nn.Parameter(torch.randn(self.n_layers, self.hidden) / math.sqrt(self.hidden))
        self.b = nn.Parameter(torch.randn(self.n_layers, self.hidden))

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The flow itself: ``z`` ``(n, dim)`` to ``x`` ``(n, dim)`` and ``log|det ∂x/∂z|`` ``(n,)``."""
        self._check_points("z", z)
        x, log_det = z, z.new_zeros(len(z))
        identity = torch.eye(self.dim, dtype=z.dtype, device=z.device)
        for w, heights, b in zip(self.w.unbind(), self._heights().unbind(), self.b.unbind(), strict=True):
            s = torch.addmm(b, x, w.mT).sigmoid()  # [n, hidden]
            bend = heights * s * (1 - s)
            log_det = log_det + torch.linalg.slogdet(identity + w.mT @ (bend.unsqueeze(2) * w)).logabsdet
            x = torch.addmm(x, heights * s, w)
        return x, log_det

    def _heights(self) -> Tensor:
        """ε a ``(n_layers, hidden)``, the negative ones made as small as invertibility wants."""
        down = self.step_size * (-self.a).clamp(min=0.0)
        sharpest = (down * self.w.square().sum(2)).sum(1, keepdim=True) / 4
        return self.step_size * self.a.clamp(min=0.0) - down / (1 + sharpest)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, n_layers={self.n_layers}, hidden={self.hidden}, step_size={self.step_size}, "
            f"std={self.std}"
        )

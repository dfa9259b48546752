"""Planar flow (Rezende and Mohamed, 2015): the initial distribution of the two-dimensional experiments."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import _planar_flow_op
from .base import InitialDistribution, as_count
from .flow import Flow

_LOG_E_MINUS_1 = math.log(math.e - 1)


class PlanarFlow(Flow):
    """``n_layers`` maps ``z ← z + û tanh(wᵀz + b)`` of ``z ~ N(0, std² I)``, with the exact log-density.

    One layer has ``log|det| = log(1 + ûᵀw (1 - tanh²))`` and is invertible when ``ûᵀw > -1``. Rezende and
    Mohamed enforce that by ``û = u + (m(uᵀw) - uᵀw) w / ‖w‖²`` with ``m(a) = -1 + log(1 + eᵃ)``. Here
    ``m(a) = -1 + log(1 + (e - 1) eᵃ)``, the same function shifted so that ``m(0) = 0``: then u = 0 is the
    identity map, and û stays bounded as w vanishes, where the original divides by ‖w‖.

    Source: appendix C.2, first item; F.1 (10 layers; a base std of 0.5 "more helpful in some cases").
    Shapes: ``u``, ``w`` ``(n_layers, dim)``, ``b`` ``(n_layers,)``, all parameters.
    Cost: :meth:`transform` takes three operations a layer and one log for all layers, :meth:`sample` one operator
    (float32 or float64, up to 16 dimensions, on the CPU or CUDA) whose samples are differentiable once. The maps
    start close to the identity.

    Args:
        dim: length of one x.
        n_layers: number of planar maps; 0 is the base Gaussian.
        std: standard deviation of the base Gaussian, fixed.
        momentum: the distribution of v; None is N(0, I).

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """

    def __init__(
        self, dim: int, n_layers: int = 10, *, std: float = 1.0, momentum: InitialDistribution | None = None
    ) -> None:
        super().__init__(dim, std, momentum=momentum)
        self.n_layers = as_count("PlanarFlow", "n_layers", n_layers, least=0)
        self.u = nn.Parameter(torch.randn(n_layers, dim) * 0.1)
        self.w = nn.Parameter(torch.randn(n_layers, dim) / math.sqrt(dim))
        self.b = nn.Parameter(torch.empty(n_layers).uniform_(-1, 1))

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The flow itself: ``z`` ``(n, dim)`` to ``x`` ``(n, dim)`` and ``log|det ∂x/∂z|`` ``(n,)``.

        Differentiable any number of times, unlike the samples.
        """
        self._check_points("z", z)
        if self.n_layers == 0:
            return z, z.new_zeros(len(z))
        u_hat, one_plus_uw = self._constrained()
        x, heights = z, []
        for u, w, b in zip(u_hat.unbind(), self.w.unbind(), self.b.unbind(), strict=True):
            h = torch.addmv(b.expand(len(x)), x, w).tanh()  # [n]; unexpanded, addmv is 0-d for n = 0
            x = torch.addr(x, h, u)
            heights.append(h)
        squares = torch.stack(heights, dim=1).square()  # [n, n_layers]
        # 1 + ûᵀw (1 - h²), as a mean of two positive numbers: it cannot round to 0 or below.
        factors = torch.lerp(one_plus_uw.expand_as(squares), torch.ones_like(squares), squares)
        return x, factors.log().sum(dim=1)

    def _transform_once(self, z: Tensor) -> tuple[Tensor, Tensor]:
        parameters = (self.u, self.w, self.b)
        own = getattr(self.transform, "__func__", None) is PlanarFlow.transform  # not a subclass's, nor replaced
        if own and _planar_flow_op.takes(z, *parameters):
            return _planar_flow_op.planar_flow(z, *parameters)
        return self.transform(z)

    def _constrained(self) -> tuple[Tensor, Tensor]:
        """û ``(n_layers, dim)`` and ``1 + ûᵀw`` ``(n_layers,)``, which is positive."""
        a = (self.u * self.w).sum(dim=1)
        # m(a) - a = log(1 + (e⁻ᵃ - 1) / e), exactly 0 at a = 0; it is linear below -80, where e⁻ᵃ would
        # overflow.
        a_floor = a.clamp(min=-80.0)
        correction = torch.log1p(torch.expm1(-a_floor) / math.e) + (a_floor - a)
        square_norm = self.w.square().sum(dim=1).clamp(min=torch.finfo(a.dtype).tiny)
        u_hat = self.u + (correction / square_norm)[:, None] * self.w
        # softplus(a + log(e - 1)), by logaddexp: torch's softplus turns linear above 20.
        return u_hat, torch.logaddexp(a + _LOG_E_MINUS_1, torch.zeros_like(a))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, n_layers={self.n_layers}, std={self.std}"

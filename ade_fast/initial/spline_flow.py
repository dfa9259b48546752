"""Neural spline flow (Durkan et al., 2019), by the library zuko."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._tensors import check_dtype
from .base import InitialDistribution, as_count, as_shape, standard_normal_log_density
from .flow import Flow


class SplineFlow(Flow):
    """Autoregressive maps of ``z ~ N(0, I)`` by monotonic rational-quadratic splines, with the exact log-density.

    The maps are those of ``zuko.flows.NSF``, run in the direction in which each takes one pass of its network: samples
    with their density cost the same in any dimension; :meth:`log_prob` of other points takes ``dim`` passes per map.
    In one dimension a map is a spline with parameters of its own, without a network.

    The splines live on the box [-5, 5]^dim and are the identity outside of it: standardise the data. The maps start
    close to the identity.

    Source: Durkan, Bekasov, Murray and Papamakarios 2019. Needs zuko (``pip install zuko``).

    Args:
        dim: length of one x.
        n_layers: number of maps, the order of the coordinates reversed from one to the next.
        hidden: width of the hidden layer of each map's network, or a tuple of widths.
        bins: pieces of each spline.
        momentum: the distribution of v; None is N(0, I).

    Raises:
        ImportError: zuko is not installed.
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """

    def __init__(
        self,
        dim: int,
        n_layers: int = 2,
        hidden: int | Sequence[int] = (64, 64),
        bins: int = 8,
        *,
        momentum: InitialDistribution | None = None,
    ) -> None:
        super().__init__(dim, momentum=momentum)
        self.n_layers = as_count("SplineFlow", "n_layers", n_layers, least=1)
        self.hidden = as_shape("SplineFlow", "hidden", hidden)
        self.bins = as_count("SplineFlow", "bins", bins, least=2)
        try:
            from zuko.flows import NSF

            from . import _spline
        except ImportError as error:
            raise ImportError("SplineFlow: needs zuko: pip install zuko") from error
        # SiLU: annealing differentiates the log-determinant twice.
        flow = NSF(self.dim, bins=self.bins, transforms=self.n_layers, hidden_features=self.hidden, activation=nn.SiLU)
        self.maps = flow.transform
        for layer in self.maps.transforms if hasattr(self.maps, "transforms") else [self.maps]:
            layer.univariate = _spline.univariate
        self._once = _spline.differentiable_once

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The flow itself: ``z`` ``(n, dim)`` to ``x`` ``(n, dim)`` and ``log|det ∂x/∂z|`` ``(n,)``."""
        self._check_points("z", z)
        if len(z) == 0:  # which torch.distributions cannot sum over
            return z, z.new_zeros(0)
        return self.maps().call_and_ladj(z)

    def _transform_once(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with self._once():
            return self.transform(z)

    def log_prob_once(self, x: Tensor) -> Tensor:
        """`log_prob` of x [n, dim], differentiable once: several times faster."""
        with self._once():
            return self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """``log q(x)``, ``(n, dim)`` to ``(n,)``; differentiable."""
        self._check_points("x", x)
        if not torch.is_autocast_enabled(x.device.type):
            check_dtype(type(self).__name__, "x", x, "the flow's", next(self.parameters()).dtype)
        if len(x) == 0:
            return x.new_zeros(0)
        z, log_det = self.maps().inv.call_and_ladj(x)
        return standard_normal_log_density(z) + log_det

    def extra_repr(self) -> str:
        return f"dim={self.dim}, n_layers={self.n_layers}, hidden={self.hidden}, bins={self.bins}"

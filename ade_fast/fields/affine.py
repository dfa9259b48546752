"""The force of a Gaussian base measure, which needs no autograd: affine in x, with a constant diagonal Hessian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

from .._slow_paths import note_slow_path
from ..potentials.with_base import WithBase
from .layout import Layout
from .modules import is_tampered_with


@dataclass(frozen=True)
class AffineForce:
    """∇_x log N(x; centre, diag(1/pull)) = -pull ⊙ (x - centre), along one unroll.

    pull, centre: rows [D], in the accumulation dtype, where the arithmetic is; results are in their arguments' dtype.
    """

    pull: Tensor
    centre: Tensor

    @property
    def normaliser(self) -> Tensor:
        """The log-density's maximum, at the centre; a scalar."""
        return 0.5 * (self.pull.log().sum() - len(self.pull) * math.log(2 * math.pi))

    def log_density(self, x: Tensor) -> Tensor:
        """log N(x; centre, diag(1/pull)) of rows [..., D]."""
        return self.normaliser - 0.5 * ((x - self.centre).square() @ self.pull)

    def added_to(self, grad: Tensor, x: Tensor) -> Tensor:
        """grad + the force at x, rows [B, D]; autograd sees it."""
        return torch.addcmul(grad, self.pull, x - self.centre, value=-1).to(grad.dtype)

    def vjp_added_to(self, hessian_u: Tensor | None, u: Tensor) -> Tensor:
        """hessian_u (None for zero) + the force's own H u = -pull ⊙ u, rows [B, D]."""
        own = (-self.pull * u).to(u.dtype)
        return own if hessian_u is None else hessian_u + own


def without_base(
    layer: str, potential: Callable[..., Tensor], layout: Layout, x0: Tensor, dtype: torch.dtype
) -> tuple[Callable[..., Tensor], AffineForce | None]:
    """A `WithBase` as its potential and the force of its base, in `dtype`; anything else as it is, and None.

    x0: states whose device the base must be on.

    Raises: ValueError if mean and std do not broadcast to the event, or are on another device.
    """
    if type(potential) is not WithBase:
        return potential, None
    if (why := why_whole(potential)) is not None:
        note_slow_path(f"base {why}", f"{layer}: {why}: the Gaussian is differentiated by autograd, Hessian included")
        return potential, None
    for name in ("mean", "std"):
        values = getattr(potential, name)
        if values.dim() > 0 and values.device != x0.device:
            raise ValueError(
                f"{layer}: WithBase's {name} is on {values.device}, x0 is on {x0.device}: move it with .to(...)"
            )
    # A copy: the backward pass has the force of the forward pass, whatever is written to the buffers.
    both = torch.stack([values.to(x0.device) for values in potential.base(layout.event, dtype)])
    mean, std = layout.rows(both).unbind()
    return potential.potential, AffineForce(std.square().reciprocal(), mean)


def why_whole(potential: WithBase) -> str | None:
    """Why a `WithBase` cannot be taken apart, or None."""
    if is_tampered_with(potential) or _has_any_global_hook():
        return "WithBase has hooks or a forward of its own, or there are hooks on all modules"
    if potential.mean.requires_grad or potential.std.requires_grad:
        return "WithBase's mean or std requires grad"
    return None

"""tr ∂y/∂x of each sample, by autograd: exact, or estimated (Hutchinson 1990)."""

from __future__ import annotations

import torch
from torch import Tensor

from .._engine import derivatives


def jacobian_trace(y: Tensor, x: Tensor, probes: Tensor | None = None) -> Tensor:
    """tr ∂y/∂x of each sample, [B]; differentiable where gradients are on.

    Shapes: x [B, D], which requires grad; y [B, D], computed from it, each row from its own.
    probes: z [P, B, D] with E[z zᵀ] = I, for the estimate mean z·(∂y/∂x)ᵀz from P vector-Jacobian products; None
        is the exact trace, from D of them.
    """
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    if not y.requires_grad:
        return total
    learning = torch.is_grad_enabled()
    directions = unit_rows(x) if probes is None else probes
    for z in directions:
        (product,) = derivatives([y], [x], [z], retain_graph=True, create_graph=learning)
        if product is not None:
            total = total + (product * z).sum(1)
    return total if probes is None else total / len(probes)


def unit_rows(x: Tensor) -> Tensor:
    """The unit vectors of all samples, [D, B, D]."""
    dim = x.shape[1]
    return torch.eye(dim, dtype=x.dtype, device=x.device).unsqueeze(1).expand(dim, len(x), dim)


def rademacher(shape: tuple[int, ...], x: Tensor, generator: torch.Generator | None) -> Tensor:
    """±1 with probability ½ each, in x's dtype and on its device."""
    return torch.randint(0, 2, shape, generator=generator, device=x.device).to(x.dtype).mul_(2).sub_(1)

"""How much memory each plan of an unroll will keep for its backward pass, before it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..fields import AutogradField, Layout, MLPField, Surroundings, kept_per_gradient, without_base
from . import base
from .base import Dynamics
from .damped_leapfrog import DampedLeapfrog
from .leapfrog import Leapfrog

_REVERSIBLE = (Leapfrog, DampedLeapfrog)


def memory_forecast(
    potential: Callable[[Tensor], Tensor],
    dynamics: Dynamics,
    x_shape: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, int]:
    """Bytes that a call of ``dynamics(potential, x0)`` keeps for its backward pass under each memory plan.

    From one evaluation of the potential at x0 ~ N(0, I) of that shape; the momenta and what a single evaluation of ∇f
    needs while it runs come on top. ``"auto"`` takes the first of "graph", "masks" and "states" that fits
    ``ade.set_memory_budget`` beside the states.

    Args:
        potential: f, (B, *event) -> (B,) or (B, 1).
        dynamics: a layer with steps.
        x_shape: (B, *event).
        dtype: of the states; None is torch's default.
        device: where.

    Returns:
        {"graph": bytes, "states": bytes}, "masks" between them for potentials that are not fused MLPs, and
        "reversible" for the dynamics that have it.

    Raises: TypeError, ValueError for wrong arguments.
    """
    layer = "memory_forecast"
    if not isinstance(dynamics, Dynamics) or not hasattr(dynamics, "n_steps"):
        raise TypeError(f"{layer}: dynamics must be a dynamics layer with steps, got {type(dynamics).__name__}")
    x0 = torch.randn(tuple(x_shape), dtype=dtype, device=device)
    base.check_x0(layer, x0)
    layout = Layout.of(x0)
    rows = layout.rows(x0)
    kicks = dynamics.n_steps + 1
    state = 2 * rows.numel() * rows.element_size()
    inner, gaussian = without_base(layer, potential, layout, rows, base.accumulation_dtype(rows.dtype))
    mlp = MLPField.match(inner)
    if isinstance(mlp, MLPField) and mlp.refuses(rows) is None:
        bits = len(rows) * sum(mlp.spec.hidden) // 8 * kicks if mlp.spec.piecewise_linear else 0
        found = {
            "graph": state * kicks + bits + mlp.spec.product_bytes(len(rows), dynamics.n_steps, rows.dtype),
            "states": state * kicks,
        }
    else:
        surroundings = Surroundings(layer, {"potential": potential}, rows.device)
        with surroundings.held(), torch.enable_grad():
            first = AutogradField(layer, inner, layout, surroundings.known, gaussian).first_value(rows)
        grads = 0 if first.program is None else rows.numel() * rows.element_size()  # ∇f(x_t) is kept beside the states
        found = {
            "graph": (kept_per_gradient(first) + state + grads) * kicks,
            "masks": (kept_per_gradient(first, "masks") + state + grads) * kicks,
            "states": (state + grads) * kicks,
        }
    if isinstance(dynamics, _REVERSIBLE):
        rates = math.log2(1 / dynamics.damping) if isinstance(dynamics, DampedLeapfrog) else 0.0
        found["reversible"] = 2 * 8 * rows.numel() + math.ceil(rows.numel() * rates * kicks / 8)
    return found

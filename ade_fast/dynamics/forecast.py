"""How much memory each plan of an unroll will keep for its backward pass, before it runs."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from ..fields import AutogradField, Layout, MLPField, Surroundings, kept_per_gradient, without_base
from . import base
from .base import Dynamics
from .damped_leapfrog import DampedLeapfrog
from .leapfrog import Leapfrog

_REVERSIBLE = (Leapfrog, DampedLeapfrog)
_PROBED_STEPS = 16, 80


def memory_forecast(
    potential: Callable[[Tensor], Tensor],
    dynamics: Dynamics,
    x_shape: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, int]:
    """Bytes that a call of ``dynamics(potential, x0)`` keeps for its backward pass under each memory plan.

    From one evaluation of the potential at x0 ~ N(0, I) of that shape (and unrolls of up to 80 steps, where a
    reversible layer has a `sample_range`); the momenta and what a single evaluation of ∇f needs while it runs come on
    top. ``"auto"`` takes the first of "graph", "masks" and "states" that fits
    ``ade.set_memory_budget`` beside the states. What "reversible" keeps of entries that `sample_range` stops depends on
    where x goes: it is what the first 80 steps from x0 keep, continued.

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
        if dynamics.options.sample_range is not None:
            found["reversible"] += _stopped_bytes(potential, dynamics, x0)
    return found


def _stopped_bytes(potential: Callable[[Tensor], Tensor], dynamics: Leapfrog | DampedLeapfrog, x0: Tensor) -> int:
    """What the reversible unroll keeps of the entries that `sample_range` stops, by its first steps: where x0 lies
    beyond the range, more are stopped at the beginning than later."""
    n, v0 = dynamics.n_steps, torch.randn_like(x0)
    few, many = _PROBED_STEPS
    if n <= many:
        return _stopped_in(n, potential, dynamics, x0, v0)
    first, all_ = (_stopped_in(steps, potential, dynamics, x0, v0) for steps in _PROBED_STEPS)
    return all_ + math.ceil((all_ - first) * (n - many) / (many - few))


def _stopped_in(
    n_steps: int,
    potential: Callable[[Tensor], Tensor],
    dynamics: Leapfrog | DampedLeapfrog,
    x0: Tensor,
    v0: Tensor,
) -> int:
    """The bytes of their places and values, which are the only rows of integers among what is saved."""
    probe = copy.copy(dynamics)
    probe._forward_hooks, probe._forward_pre_hooks = OrderedDict(), OrderedDict()  # whoever is hooked did not ask
    probe.n_steps = n_steps
    probe.options = dataclasses.replace(dynamics.options, memory="reversible", gradient="full")
    steps = {**dict(dynamics.named_parameters()), **dict(dynamics.named_buffers())}
    steps = {name: step[:n_steps] if step.dim() == x0.dim() else step for name, step in steps.items()}
    kept = 0

    def save(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes if tensor.dtype == torch.int64 and tensor.dim() == 1 else 0
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        functional_call(probe, steps, (potential, x0.clone().requires_grad_(), v0))
    return kept

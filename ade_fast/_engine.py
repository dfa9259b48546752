"""`torch.autograd.grad` without its bookkeeping, for calls that are made T + 1 times an unroll."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def derivatives(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    *,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad(outputs, inputs, cotangents, ..., allow_unused=True)``, for cotangents of right shapes.

    The public function checks every shape symbolically, which takes three times as long (60 us) as the engine's own
    work on a small graph. This calls the engine as that function does. An input that does not require grad any more (a
    player frozen between the passes) gets None, as it would get no ``.grad``.
    """
    if not all(t.requires_grad for t in inputs):
        asked = [t for t in inputs if t.requires_grad]
        options = {"retain_graph": retain_graph, "create_graph": create_graph}
        found = iter(derivatives(outputs, asked, cotangents, **options) if asked else ())
        return tuple(next(found) if t.requires_grad else None for t in inputs)
    return torch.autograd.Variable._execution_engine.run_backward(
        tuple(outputs), tuple(cotangents), retain_graph or create_graph, create_graph, tuple(inputs), True, False
    )

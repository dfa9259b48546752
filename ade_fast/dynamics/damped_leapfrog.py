"""Damped leapfrog: the update of the paper's released image code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..fields import Plan
from . import base
from .base import Clip, Dynamics, DynamicsOutput, Options
from .diagnostics import Watched
from .leapfrog import run_leapfrog


def check_damping(layer: str, damping: object) -> float:
    if not base.is_number(damping):
        raise TypeError(f"{layer}: damping must be a number, got {type(damping).__name__}")
    if not 0 < damping <= 1:
        raise ValueError(f"{layer}: damping must be in (0, 1], got {damping}")
    return float(damping)


@base.outside_of_graphs
def run_damped_leapfrog(
    layer: str,
    potential: Callable[..., Tensor],
    x0: Tensor,
    v0: Tensor | None,
    step_size: Tensor,
    n_steps: int,
    options: Options,
    *,
    damping: float,
    drift_step: Tensor,
    generator: torch.Generator | None = None,
    context: Tensor | Sequence[Tensor] | None = None,
    watched: Watched | None = None,
) -> tuple[DynamicsOutput, Plan | None]:
    """`run_leapfrog` with damping, and the log-determinant that damping costs: (T + 1) d log m."""
    output, plan = run_leapfrog(
        layer, potential, x0, v0, step_size, n_steps, options, damping=damping, drift_step=drift_step,
        generator=generator, context=context, watched=watched,
    )  # fmt: skip
    log_det = (n_steps + 1) * math.prod(x0.shape[1:]) * math.log(damping)
    return output._replace(log_det=output.log_det + log_det), plan


class DampedLeapfrog(Dynamics):
    """T + 1 kicks v ← m v + η F(x), the first and last with η/2, between T drifts x ← x + δ v.

    Source: the released image code (the text's "η fixed to 0.5" is its damping m). Not an instance of eq. (13), which
    would damp twice a step and drift by η v. log_det is (T + 1) d log m. Reference: ``reference.damped_leapfrog``.
    Calls, shapes, gradients, options and errors as in `Leapfrog`.

    Args:
        n_steps: T.
        step_size: η of the kicks, as in `Leapfrog`; with one per step, the kick between two steps takes their mean.
        damping: m in (0, 1].
        drift_step: δ > 0 of the drifts: a number, or a tensor broadcastable like `step_size`. Not learned.
    """

    drift_step: Tensor

    def __init__(
        self,
        n_steps: int,
        step_size: float | Tensor = 0.1,
        damping: float = 0.5,
        *,
        drift_step: float | Tensor = 1.0,
        learn_step_size: bool = True,
        step_size_positive: bool = False,
        grad_clip: Clip | None = None,
        momentum_clip: Clip | None = None,
        sample_range: tuple[float | Tensor, float | Tensor] | None = None,
        gradient: Literal["full", "truncated", "stopped", "none"] = "full",
        memory: Literal["graph", "masks", "states", "reversible", "auto"] = "auto",
        check_finite: bool = False,
        check_potential: bool = False,
    ) -> None:
        options = Options(grad_clip, momentum_clip, sample_range, gradient, memory, check_finite, check_potential)
        super().__init__(n_steps, step_size, learn_step_size, options, step_size_positive)
        self.damping = check_damping("DampedLeapfrog", damping)
        drift_step = base.check_step_size("DampedLeapfrog", drift_step, "drift_step", torch.float64)
        self.register_buffer("drift_step", drift_step)  # cast to the states' dtype at every call

    @base.conditional
    def forward(
        self,
        potential: Callable[..., Tensor],
        x0: Tensor,
        v0: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        context: Tensor | Sequence[Tensor] | None = None,
        diagnostics: bool = False,
    ) -> DynamicsOutput:
        watched = self._watched(diagnostics)
        output, plan = run_damped_leapfrog(
            "DampedLeapfrog", potential, x0, v0, self.step_size, self.n_steps, self.options,
            damping=self.damping, drift_step=self.drift_step, generator=generator, context=context, watched=watched,
        )  # fmt: skip
        return self._planned(output, plan, watched)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, damping={self.damping}"

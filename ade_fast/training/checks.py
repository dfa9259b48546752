"""What is looked at when a run has ended, and told as warnings: mass where no sample goes, weights, step sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..potentials import WithBase
from ..weighted import evaluate as values_of
from ..weighted import evaluating
from .divergence import FEW, VANISHED
from .evaluation import Evaluation
from .trained import TrainedModel

# The data's own part of space ends so many standard deviations beyond the outermost points; the mass counts up to FAR.
NEAR, FAR = 3.0, 40.0
_TOLERATED = 0.01
_CELLS, _BASE_SAMPLES = 400, 50_000


def tail_mass(model: TrainedModel, points: Tensor, generator: torch.Generator) -> float | None:
    """The fraction of p_f's mass that lies far from all data, where the sampler's weights do not see it.

    Far is: in some coordinate more than 3 standard deviations beyond the outermost points. In one and two dimensions by
    sums over a grid, up to 40 standard deviations; above by samples of the base measure, and None without one.

    Args:
        model: with a density.
        points: [n, d] in the model's coordinates: where the data are.
        generator: source of the base samples.
    """
    low, high = points.amin(0) - NEAR, points.amax(0) + NEAR
    with evaluating(model.potential):
        if model.event[0] <= 2:
            near = _log_integral(model, low, high)
            far = _log_integral(model, torch.full_like(low, -FAR), torch.full_like(high, FAR), (low, high))
            return math.exp(far - torch.logaddexp(near, far))
        if not isinstance(model.potential, WithBase):
            return None
        x = model.potential.sample_base(_BASE_SAMPLES, model.event, generator=generator)
        x = x[_outside(x, low, high)]
        if len(x) == 0:
            return 0.0
        log_w = values_of("tail_mass", model.potential, x) - model.potential.log_base(x).double()
        return (torch.logsumexp(log_w, 0) - math.log(_BASE_SAMPLES) - model.log_z).exp().item()


def findings(model: TrainedModel, found: Evaluation, points: Tensor, generator: torch.Generator) -> list[str]:
    """What a user should know of a finished run, a sentence each; functions of the model alone."""
    told = list(found.warnings)
    if model.density is not None:
        mass = tail_mass(model, points, generator)
        if mass is not None and mass > _TOLERATED:
            told.append(
                f"{100 * mass:.0f} % of the model's mass lies more than {NEAR:g} standard deviations beyond all data, "
                "where the sampler does not go: log Z is too low; set a base measure (base_std) with defensive samples"
            )
        if model.ess < FEW:
            told.append(
                f"the sampler's effective sample size is {100 * model.ess:.1f} %: log Z and likelihoods say little"
            )
    step_size = getattr(model.sampler.dynamics, "step_size", None)
    if step_size is not None and step_size.abs().max().item() < VANISHED * model.config.step_size:
        told.append(f"the step sizes have shrunk to {step_size.abs().max().item():.2g}: the dynamics move nothing")
    return told


def _log_integral(model: TrainedModel, low: Tensor, high: Tensor, but: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """log of the sum of exp f over the cells of a box, those whose centres lie in the box ``but`` left out."""
    widths = (high - low) / _CELLS
    steps = torch.arange(_CELLS, device=low.device, dtype=low.dtype) + 0.5
    axes = [start + width * steps for start, width in zip(low, widths, strict=True)]
    cells = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    if but is not None:
        cells = cells[_outside(cells, *but)]
    return torch.logsumexp(values_of("tail_mass", model.potential, cells), 0) + widths.double().log().sum()


def _outside(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return ((x < low) | (x > high)).flatten(1).any(1)

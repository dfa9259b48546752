"""Temperature scaling: the one parameter of f that a run's end can still fit exactly, by the validation points."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..fields.modules import is_tampered_with
from ..metrics import LogZ, log_z
from ..potentials import MLPPotential, WithBase
from ..weighted import WeightedSampler, evaluating
from ..weighted import evaluate as values_of
from ..weights import log_mean_exp
from .sampler import DualSampler
from .temperature import best_scale

# A scale that thins the weights out by more than this is not taken as it is: it comes from them.
_KEPT_ESS = 0.9
_TRIES = 4


def can_scale(potential: nn.Module) -> bool:
    """Whether c f is again a potential of this kind, with other numbers in it."""
    inner = potential.potential if type(potential) is WithBase else potential
    if type(inner) is not MLPPotential:
        return False
    return not any(map(is_tampered_with, potential.modules())) and not any(map(is_parametrized, inner.linears))


@torch.no_grad()
def scale(potential: nn.Module, factor: float) -> None:
    """f becomes ``factor`` f, up to a constant, in place. See `can_scale`."""
    inner: object = potential
    if type(potential) is WithBase:
        potential.std = potential.std * factor**-0.5  # the base's normaliser is that constant
        inner = potential.potential
    assert isinstance(inner, MLPPotential)
    for parameter in inner.linears[-1].parameters():
        parameter.mul_(factor)


def calibrated(
    potential: nn.Module,
    sampler: DualSampler,
    points: Tensor,
    n_samples: int,
    momentum_weight: float | Tensor | None,
    generator: Callable[[], torch.Generator],
) -> tuple[nn.Module, float, LogZ]:
    """c f with the c that gives the points the highest likelihood, c, and log Z of c f.

    The data's likelihood at exp(c f) is concave in c (`best_scale`): on few rows, which f knows by heart, c comes out
    below 1, and where f had no time to grow above. It is 1 where the points gain less by it than the standard error of
    that gain. The sampler stays as it is, and c is halved towards 1 (in its logarithm) until the effective sample size
    is at least nine tenths of what it was.

    Source: Guo et al. 2017, for a density.

    Args:
        potential: f, which `can_scale`; it stays as it is.
        points: [n, *event], not trained on, in f's coordinates.
        n_samples: samples of the sampler for c, and for log Z.
        generator: makes one, the same whenever it is called.
    """
    source = WeightedSampler("calibrate", potential, sampler, momentum_weight)
    with evaluating(potential):
        x, log_w = map(torch.cat, zip(*source.chunks(n_samples, generator()), strict=True))
        values, at_points = (values_of("calibrate", potential, p) for p in (x, points))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few effective samples: the final test says so
        factor, before = best_scale(values, at_points, log_w), LogZ.of(log_w)
        if not _gains(factor, values, at_points, log_w):
            return potential, 1.0, before
        for _ in range(_TRIES):
            scaled = copy.deepcopy(potential)
            scale(scaled, factor)
            found = log_z(scaled, sampler, n_samples, momentum_weight, generator())
            if found.ess >= _KEPT_ESS * before.ess:
                return scaled, factor, found
            factor **= 0.5
    return potential, 1.0, before


def _gains(factor: float, values: Tensor, at_points: Tensor, log_w: Tensor) -> bool:
    """Whether the points' likelihood under c f is higher than under f by more than the standard error of that."""
    rise = (factor - 1) * at_points
    gain = rise.mean() - (log_mean_exp(log_w + (factor - 1) * values) - log_mean_exp(log_w))
    return len(rise) > 1 and bool(gain > rise.std() / len(rise) ** 0.5)

"""Histograms of f on several sets of points (Figure 3): where they overlap, f does not tell the sets apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .._tensors import floating_tensor
from ..dynamics import NonFiniteError
from ..initial.base import as_count
from ..weighted import evaluate, evaluating


class EnergyHistogram(NamedTuple):
    """edges: ``(bins + 1,)``, of f, the same for all sets. densities: by name, ``(bins,)``, each of integral 1.
    values: by name, f at the points. All float64, on the CPU."""

    edges: Tensor
    densities: Mapping[str, Tensor]
    values: Mapping[str, Tensor]

    def overlap(self, one: str, other: str) -> float:
        """The common area of two histograms: 1 where they agree, 0 where f tells every point apart."""
        common = torch.minimum(self.densities[one], self.densities[other])
        return (common * self.edges.diff()).sum().item()

    def auroc(self, one: str, other: str) -> float:
        """The probability that f is higher at a point of ``one`` than at one of ``other``, ties counted half.

        The area under the curve of a detector that calls low f out of distribution: 1 where it is never wrong, ½ where
        f tells nothing.
        """
        inside, outside = self.values[one], self.values[other].sort().values
        below, up_to = (torch.searchsorted(outside, inside, side=side).double() for side in ("left", "right"))
        return ((below + up_to).mean() / (2 * len(outside))).item()


def energy_histogram(
    potential: Callable[[Tensor], Tensor], sets: Mapping[str, Tensor], bins: int = 50
) -> EnergyHistogram:
    """Histograms of f (minus the energy) on sets of points, training data, held-out data and samples for instance.

    Source: Figure 3. `ade_fast.plots.energies` draws it.

    Args:
        potential: f, ``(B, *event)`` to ``(B,)`` or ``(B, 1)``, in the mode that it is in; evaluated in chunks.
        sets: points by name, each ``(n, *event)``, n ≥ 1.
        bins: of equal width, between the lowest and the highest value of all.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or shape; no sets.
        NonFiniteError: f is not finite at a point.
    """
    name = "energy_histogram"
    bins = as_count(name, "bins", bins, least=1)
    if not callable(potential):
        raise TypeError(f"{name}: potential must be callable, got {type(potential).__name__}")
    if not isinstance(sets, Mapping) or not sets:
        raise TypeError(f"{name}: sets must map names to points, at least one, got {type(sets).__name__}")
    values = {}
    with evaluating(potential):
        for key, points in sets.items():
            floating_tensor(name, key, points)
            if points.dim() < 2 or not len(points):
                raise ValueError(f"{name}: {key} must be (n, *event) with n at least 1, got {tuple(points.shape)}")
            values[key] = evaluate(name, potential, points).cpu()
            if not bool(values[key].isfinite().all()):
                raise NonFiniteError(f"{name}: f is -inf at points of {key}")
    low, high = (float(extreme(torch.cat([*values.values()]))) for extreme in (torch.min, torch.max))
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    densities = {key: torch.histogram(f, edges, density=True).hist for key, f in values.items()}
    return EnergyHistogram(edges, densities, values)

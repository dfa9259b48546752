"""Histograms of f on data and samples (Figure 3)."""

from __future__ import annotations

from matplotlib.axes import Axes

from ..metrics import EnergyHistogram
from .axes import DATA, EXACT, RAW, TRUTH, current

_COLOURS = (DATA, EXACT, RAW, TRUTH)


def energies(histogram: EnergyHistogram, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Densities of f's values, one outline per set of points; the first one filled.

    Args:
        histogram: of `ade.metrics.energy_histogram`.
        ax: where to draw, pyplot's current axis by default.
        legend: whether to draw one.

    Returns:
        The axis.

    Raises: as matplotlib does.
    """
    ax, edges = current(ax), histogram.edges.numpy()
    for i, (name, density) in enumerate(histogram.densities.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        ax.stairs(density.numpy(), edges, color=colour, fill=i == 0, alpha=0.6 if i == 0 else 1.0, label=name)
    ax.set(xlabel="f(x)", ylabel="density", xlim=(edges[0], edges[-1]))
    if legend:
        ax.legend(frameon=False, fontsize=8)
    return ax

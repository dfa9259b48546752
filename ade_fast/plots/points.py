"""Samples over the data: clouds in a plane, histograms on a line, and planes of the first few coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from .axes import BINS, DATA, EXACT, RAW, SHOWN, Window, check, current, frame, numpy, window

_HALO, _DOT = 18, 2.5  # areas
SMALL = 0.75
"""``size`` in a grid of many axes."""


def points(
    data: Tensor,
    samples: Tensor | None = None,
    ax: Axes | None = None,
    *,
    dims: tuple[int, int] = (0, 1),
    within: Window | None = None,
    label: str = "samples",
    colour: str = EXACT,
    size: float = 1.0,
    legend: bool = True,
) -> Axes:
    """Samples over the data, both visible: small dots in the pale, wider dots of the data (d = 1: histograms).

    Where the pale cloud lacks dots the model lacks mass; dots outside of it are stray. Of each at most the first 2,000
    are drawn; those of the samples that lie outside of the window are counted.

    Args:
        data: [n, d].
        samples: [m, d], or None: the data alone.
        ax: where to draw, pyplot's current axis by default.
        dims: the two coordinates shown, where d ≥ 2.
        within: an interval per coordinate; around the data by default.
        label, colour: of the samples.
        size: of dots and text; below 1 for small axes.
        legend: whether to draw one.

    Returns:
        The axis.

    Raises:
        ValueError: shapes do not fit.
    """
    check("points", data, samples=samples)
    ax, within = current(ax), within or window(data)
    if data.shape[1] == 1:
        _histograms(ax, data, samples, within[0], label, colour)
    else:
        _clouds(ax, data, samples, dims, within, label, colour, size)
    shown = data[:0] if samples is None else samples[:SHOWN]
    if outside := _outside(shown, within, dims if data.shape[1] > 1 else (0,)):
        text = f"{outside:,} of {len(shown):,} outside"
        paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
        ax.text(
            0.98, 0.98, text, transform=ax.transAxes, ha="right", va="top", fontsize=8 * size, color=colour, bbox=paper
        )
    if legend:
        ax.legend(handles=handles(data.shape[1], {label: colour} if samples is not None else {}), fontsize=8)
    return ax


def corner(figure: Figure, data: Tensor, raw: Tensor, exact: Tensor | None, n_dims: int) -> None:
    """Planes of the first ``n_dims`` coordinates: exact samples below the diagonal, raw ones above, over the data."""
    within = window(data)
    grid = figure.subplots(n_dims, n_dims)
    for i in range(n_dims):
        for j in range(n_dims):
            ax = grid[i, j]
            if i == j:
                _histograms(ax, data[:, i : i + 1], raw[:, i : i + 1], within[i], "raw", RAW)
                if exact is not None:
                    _steps(ax, exact[:, i], within[i], EXACT)
                ax.set(xlabel="", ylabel="", yticks=[])
            elif i > j and exact is not None:
                points(data, exact, ax, dims=(j, i), within=within, size=SMALL, legend=False)
            else:
                points(data, raw, ax, dims=(j, i), within=within, colour=RAW, size=SMALL, legend=False)
            ax.set(xlabel=_name(j) if i == n_dims - 1 else "", ylabel=_name(i) if j == 0 and i > 0 else "")
            ax.tick_params(labelsize=7, labelbottom=i == n_dims - 1, labelleft=j == 0 and i > 0)
            ax.locator_params(axis="x", nbins=3)
    named = {"raw samples of the dual sampler" + (" (above)" if exact is not None else ""): RAW}
    if exact is not None:
        named = {"exact samples, of $p_f$ (below)": EXACT, **named}
    # Small enough for the narrowest figure, of three coordinates.
    options: dict[str, Any] = {"ncols": 3, "frameon": False, "fontsize": 8, "columnspacing": 1.0}
    figure.legend(handles=handles(2, named), loc="outside lower center", **options)


def handles(d: int, named: dict[str, str]) -> list[Line2D | Patch]:
    """Entries of a legend: the data's, and one for each name and colour."""
    if d == 1:
        lines = [Line2D([], [], color=colour, label=name) for name, colour in named.items()]
        return [Patch(color=DATA, alpha=0.5, label="data"), *lines]
    dot: dict[str, Any] = {"marker": "o", "linestyle": "none"}
    return [
        Line2D([], [], color=DATA, alpha=0.7, markersize=7, label="data", **dot),
        *(Line2D([], [], color=colour, markersize=4, label=name, **dot) for name, colour in named.items()),
    ]


def _clouds(
    ax: Axes,
    data: Tensor,
    samples: Tensor | None,
    dims: tuple[int, ...],
    within: Window,
    label: str,
    colour: str,
    size: float,
) -> None:
    i, j = dims
    shown = numpy(data[:SHOWN])
    ax.scatter(
        shown[:, i], shown[:, j], s=_HALO * size**2, c=DATA, alpha=0.45, linewidths=0, label="data", rasterized=True
    )
    if samples is not None:
        dots = numpy(samples[:SHOWN])
        ax.scatter(dots[:, i], dots[:, j], s=_DOT * size**2, c=colour, linewidths=0, label=label, rasterized=True)
    frame(ax, within[i], within[j])
    ax.set(xlabel=_name(i), ylabel=_name(j))


def _histograms(
    ax: Axes, data: Tensor, samples: Tensor | None, within: tuple[float, float], label: str, colour: str
) -> None:
    data_on_line(ax, data, within)
    if samples is not None:
        _steps(ax, samples[:, 0], within, colour, label)
    ax.set(xlim=within, xlabel="$x$", ylabel="density")
    ax.set_box_aspect(1)


def data_on_line(ax: Axes, data: Tensor, within: tuple[float, float]) -> None:
    """The histogram of [n, 1] that everything of one dimension is drawn over."""
    ax.hist(numpy(data[:, 0]), bins=BINS, range=within, density=True, color=DATA, alpha=0.5, label="data")


def _steps(ax: Axes, column: Tensor, within: tuple[float, float], colour: str, label: str = "samples") -> None:
    """A histogram's outline, of all samples: those outside of the window do not raise it."""
    counts, edges = np.histogram(numpy(column), BINS, within)
    ax.stairs(counts / (len(column) * (edges[1] - edges[0])), edges, color=colour, linewidth=1.2, label=label)


def _outside(samples: Tensor, within: Window, dims: tuple[int, ...]) -> int:
    inside = [(samples[:, i] >= within[i][0]) & (samples[:, i] <= within[i][1]) for i in dims]
    return int((~(inside[0] & inside[-1])).sum())


def _name(i: int) -> str:
    return f"$x_{{{i + 1}}}$"

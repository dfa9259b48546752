"""A normalised log-density on a grid: a curve for d = 1, a coloured plane with a colour bar for d = 2."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from torch import Tensor

from .axes import EXACT, Window, current, frame, numpy

LogProb = Callable[[Tensor], Tensor]

DECADES = 3
"""How far below the peak the colours reach."""

_POINTS = 240
_CHUNK = 1 << 14


class Gridded:
    """A log-density on a regular grid of cell centres, evaluated once.

    Args:
        log_prob: [n, d] -> [n], normalised.
        within: an interval per coordinate; d = 1 or 2.
        like: a tensor whose dtype and device the points have.

    Attributes:
        axes: the coordinates of the centres, float64, d of them.
        values: the density, [240] or [240, 240] float64, first coordinate first.
        mass: its integral over the window.
    """

    def __init__(self, log_prob: LogProb, within: Window, like: Tensor):
        self.within = within
        self.axes, volume = cells(within)
        log_density = on_cells(log_prob, self.axes, like)
        self.values = log_density.exp().reshape([len(axis) for axis in self.axes])
        self.mass = float(self.values.sum()) * volume


def cells(within: Window) -> tuple[list[Tensor], float]:
    """Centres of equal cells, an axis per coordinate, float64; and a cell's volume."""
    n = 4 * _POINTS if len(within) == 1 else _POINTS
    widths = [(high - low) / n for low, high in within]
    steps = torch.arange(n, dtype=torch.float64) + 0.5
    return [low + width * steps for (low, _), width in zip(within, widths, strict=True)], math.prod(widths)


def on_cells(function: Callable[[Tensor], Tensor], axes: list[Tensor], like: Tensor) -> Tensor:
    """A function of points [n, d] at all centres, first coordinate slowest, float64 on the CPU."""
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2).to(like)
    with torch.no_grad():
        return torch.cat([function(rows).reshape(-1).double().cpu() for rows in grid.split(_CHUNK)])


def density(
    log_prob: LogProb,
    within: Window,
    ax: Axes | None = None,
    *,
    like: Tensor | None = None,
    peak: float | None = None,
    label: str | None = None,
    colour: str = EXACT,
    linestyle: str = "-",
    colorbar: bool = True,
) -> Axes:
    """exp log_prob(x) within a window, and in the corner of a plane its integral there.

    A plane's colours are logarithmic, three decades from ``peak`` down, since the likelihood is one of logarithms: the
    blur of an edge and a stray bridge of a hundredth of the peak are seen, which linear colours hide. Give two planes
    the same ``peak`` to compare them.

    Args:
        log_prob: [n, d] -> [n], normalised, in the units of ``within``.
        within: an interval per coordinate, d = 1 or 2.
        ax: where to draw, pyplot's current axis by default.
        like: a tensor whose dtype and device the points have (float32 on the CPU).
        peak: the density of the brightest colour; its own highest by default.
        label, colour, linestyle: of the curve, d = 1.
        colorbar: whether a plane gets one.

    Returns:
        The axis.

    Raises:
        ValueError: ``within`` is of another dimension.
    """
    if len(within) not in (1, 2):
        raise ValueError(f"plots.density: within must have 1 or 2 intervals, got {len(within)}")
    gridded = Gridded(log_prob, within, torch.empty(0) if like is None else like)
    ax = current(ax)
    if len(within) == 1:
        return draw_curve(ax, gridded, label, colour, linestyle)
    return draw_plane(ax, gridded, peak or float(gridded.values.max()), colorbar)


def draw_curve(ax: Axes, gridded: Gridded, label: str | None, colour: str, linestyle: str = "-") -> Axes:
    ax.plot(numpy(gridded.axes[0]), numpy(gridded.values), color=colour, linestyle=linestyle, label=label)
    ax.set(xlim=gridded.within[0], xlabel="$x$", ylabel="density")
    return ax


def draw_plane(ax: Axes, gridded: Gridded, peak: float, colorbar: bool = True) -> Axes:
    lowest = peak * 10.0**-DECADES
    image = ax.imshow(
        numpy(gridded.values.clamp(min=lowest).T),
        origin="lower",
        extent=(*gridded.within[0], *gridded.within[1]),
        aspect="auto",
        cmap="magma",
        norm=LogNorm(lowest, peak),
        interpolation="nearest",
    )
    frame(ax, *gridded.within)
    ax.set(xlabel="$x_{1}$", ylabel="$x_{2}$", facecolor=image.cmap(0.0))
    ax.text(0.03, 0.03, f"mass in this window {gridded.mass:.3f}", transform=ax.transAxes, fontsize=8, color="white")
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label="density (log scale)", extend="min", shrink=0.85)
    return ax

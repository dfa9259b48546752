"""Images side by side: samples with the nearest training image beside each, chains, completions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from .axes import current, heading, new_figure

_GAP = 1  # pixels between images
_PAPER = 1.0


def mosaic(images: Tensor, columns: int) -> Tensor:
    """``(n, C, H, W)`` in [0, 1] as one picture ``(height, width, 3)``, row by row; the last row may stay part empty.

    Raises:
        ValueError: ``images`` is not (n, 1 or 3, H, W) with n at least 1.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"plots.images: images must have shape (n, 1 or 3, H, W), got {tuple(images.shape)}")
    pixels = images.detach().cpu().float().clamp(0, 1).expand(-1, 3, -1, -1)
    rows = -(-len(pixels) // columns)
    pixels = torch.cat([pixels, pixels.new_full((rows * columns - len(pixels), *pixels.shape[1:]), _PAPER)])
    pixels = functional.pad(pixels, (0, _GAP, 0, _GAP), value=_PAPER)
    height, width = pixels.shape[2:]
    grid = pixels.reshape(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2)
    return grid.reshape(rows * height, columns * width, 3)[:-_GAP, :-_GAP]


def images(pixels: Tensor, ax: Axes | None = None, *, columns: int = 16, title: str = "") -> Axes:
    """A grid of images ``(n, C, H, W)``, pixels in [0, 1], on ``ax`` or pyplot's current axis, which is returned.

    Raises: ValueError: ``pixels`` is not (n, 1 or 3, H, W) with n at least 1.
    """
    ax = current(ax)
    ax.imshow(mosaic(pixels, columns).numpy(), interpolation="nearest")
    ax.set_axis_off()
    if title:
        ax.set_title(title, fontsize=9)
    return ax


def with_neighbours(
    samples: Tensor, nearest: Tensor, *, columns: int = 16, title: str = "", scores: str = ""
) -> Figure:
    """Samples ``(n, C, H, W)`` in rows, the nearest training image of each in the row beneath, paler.

    A sample that equals what is beneath it is remembered, not made.

    Raises: ValueError: the two have different shapes, or are no images.
    """
    if samples.shape != nearest.shape:
        raise ValueError(
            f"plots.with_neighbours: nearest must have samples' shape {tuple(samples.shape)}, "
            f"got {tuple(nearest.shape)}"
        )
    rows = -(-len(samples) // columns)
    figure = new_figure(0.45 * columns, 0.95 * rows + 0.6)
    pairs = []
    for one, other in zip(samples.split(columns), nearest.split(columns), strict=True):
        missing = one.new_ones(columns - len(one), *one.shape[1:])
        pairs += [one, missing, 0.45 + 0.55 * other.to(one), missing]
    images(torch.cat(pairs), figure.subplots(), columns=columns)
    heading(figure, title, scores)
    return figure


def stages_of(rows: Mapping[str, Tensor], *, title: str = "") -> Figure:
    """A row of images ``(n, C, H, W)`` for each name, the same n in all: where chains are, or what was completed.

    Raises: ValueError: rows of different lengths, or of no images.
    """
    (columns,) = {len(row) for row in rows.values()}
    figure = new_figure(0.45 * columns + 1.2, 0.5 * len(rows) + 0.5)
    axes = figure.subplots(len(rows), squeeze=False)[:, 0]
    for ax, (name, row) in zip(axes, rows.items(), strict=True):
        images(row, ax, columns=columns)
        ax.text(-0.01, 0.5, name, transform=ax.transAxes, ha="right", va="center", fontsize=8)
    heading(figure, title, "")
    return figure

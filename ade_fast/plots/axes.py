"""What all pictures share: colours, figures, windows around the data, and checks."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

Window = Sequence[tuple[float, float]]

# Apart for colour-blind eyes too, and the data's is the lighter: it lies behind.
DATA, EXACT, RAW, TRUTH = "#f0a35e", "#1b4f9c", "#0b7a5b", "#a3312f"
SHOWN = 2000
"""Points of one cloud that are drawn, at most: the first ones."""

BINS = 60

# A plane whose sides differ by less than this factor is widened to a square: then its units are equal.
_NEARLY_SQUARE = 3.0
_BETWEEN = re.compile(r"\s*·\s*")


def window(data: Tensor, margin: float = 0.12) -> list[tuple[float, float]]:
    """An interval per coordinate that holds all but about 2 points of 1,000, and a margin.

    The two of a plane are of one length where the data are about as wide as high: their units are then drawn equal.

    Args:
        data: [n, d].
        margin: on each side, as a fraction of the width.

    Raises: ValueError: ``data`` is not (n, d), or empty.
    """
    check("window", data=data)
    rows = data[:100_000].detach().double().cpu()
    low, high = torch.quantile(rows, rows.new_tensor([0.001, 0.999]), dim=0)
    widths = high - low
    widths[widths == 0] = 1.0  # a constant column still has a width to draw
    if len(widths) == 2 and widths.max() < _NEARLY_SQUARE * widths.min():
        widths[:] = widths.max()
    middle, half = (low + high) / 2, (0.5 + margin) * widths
    return list(zip((middle - half).tolist(), (middle + half).tolist(), strict=True))


def check(where: str, data: Tensor, **others: Tensor | None) -> None:
    """Raises ValueError unless ``data`` is [n, d], n and d at least 1, and the others [m, d]."""
    for name, points in (("data", data), *others.items()):
        if points is None:
            continue
        wanted = "(n, d)" if name == "data" else f"(n, {data.shape[1]}) like data"
        if points.dim() != 2 or 0 in points.shape or points.shape[1] != data.shape[1]:
            raise ValueError(f"plots.{where}: {name} must have shape {wanted}, got {tuple(points.shape)}")


def current(ax: Axes | None) -> Axes:
    """The given axis, else pyplot's current one."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # only here: a figure for a file needs no global state

    return plt.gca()


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no global pyplot state
    return figure


def frame(ax: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    """A plane, drawn as a square."""
    ax.set(xlim=x, ylim=y)
    ax.set_box_aspect(1)


def heading(figure: Figure, title: str, scores: str) -> None:
    """The title and beneath it the scores, in as many lines as the figure's width asks for."""
    whole = _BETWEEN.sub(" · ", scores.replace(" ", "\u00a0"))  # no line ends within a score
    wrapped = textwrap.wrap(whole, int(9 * figure.get_figwidth()))
    lines = [title, *(line.removesuffix(" ·").replace("\u00a0", " ") for line in wrapped)]
    if any(lines):
        figure.suptitle("\n".join(filter(None, lines)), fontsize=11)


def numpy(points: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return points.detach().cpu().double().numpy()

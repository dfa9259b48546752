"""The picture of sets × methods: samples over the data."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..data import toy
from ..plots import points, window
from ..plots.axes import new_figure
from ..training.files import write_atomically
from ..training.streams import stream
from .jobs import SAMPLES
from .scoring import POINTS


def save(
    path: Path,
    directory: Path,
    names: Sequence[str],
    methods: Sequence[str],
    stems: Mapping[tuple[str, str], str],
) -> None:
    """A panel per set and method, from the samples that runs left; empty where a run diverged."""
    figure = new_figure(1.9 * len(methods) + 0.4, 1.9 * len(names) + 0.6)
    axes = figure.subplots(len(names), len(methods), squeeze=False)
    for row, name in zip(axes, names, strict=True):
        data = held_out(name)
        for ax, method in zip(row, methods, strict=True):
            kept = samples(directory, stems[name, method])
            if kept is None:
                ax.set_axis_off()
            else:
                cloud(ax, data, kept[0])
            if ax is row[0]:
                ax.text(-0.06, 0.5, name, transform=ax.transAxes, rotation=90, ha="right", va="center", fontsize=9)
            if name == names[0]:
                ax.set_title(method, fontsize=8)
    write_picture(figure, path)


def cloud(ax: Axes, data: Tensor, samples: Tensor) -> None:
    """Samples over the data, on a small axis without ticks."""
    points(data, samples, ax, within=window(data), size=0.6, legend=False)
    ax.set(xlabel="", ylabel="", xticks=[], yticks=[])


def held_out(name: str) -> Tensor:
    """The data of every picture."""
    return toy(name).sample(POINTS, stream(0, "reproduce pictures"))


def samples(directory: Path, stem: str) -> Tensor | None:
    """What `trainings.keep_samples` wrote; None: the run diverged."""
    path = directory / SAMPLES / f"{stem}.npy"
    return torch.from_numpy(np.load(path)) if path.exists() else None


def write_picture(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(path, buffer.getvalue())

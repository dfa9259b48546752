"""Runs beside each other: their scores over the updates, and the held-out likelihoods at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure

from .axes import new_figure
from .convergence import finite, settled

_PANELS = {"nll": "validation NLL in nats", "ess": "effective sample size", "mmd2": "MMD², raw samples"}


def comparison(
    histories: Mapping[str, Sequence[Mapping[str, float | None]]],
    scores: Mapping[str, tuple[float | None, float | None]],
) -> Figure:
    """A panel per score of the validations, a line per run; and each run's held-out NLL with its standard error.

    Args:
        histories: by the run's name, a mapping per validation: "update" and those of "nll", "ess", "mmd2" there are.
        scores: by the run's name, NLL and its standard error on held-out data; None where one is not known.

    Returns:
        A new figure; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: the names differ; there is nothing to draw.
    """
    if set(histories) != set(scores):
        raise ValueError(
            f"plots.comparison: histories and scores must be of the same runs, got {sorted(histories)} and "
            f"{sorted(scores)}"
        )
    lines = {
        key: {
            name: [(entry["update"], value) for entry in history if finite(value := entry.get(key))]
            for name, history in histories.items()
        }
        for key in _PANELS
    }
    panels = [key for key in _PANELS if any(lines[key].values())]
    known = [name for name in scores if finite(scores[name][0])]
    if not panels and not known:
        raise ValueError("plots.comparison: no run has a score to draw")
    colours = {name: colormaps["tab10" if len(scores) <= 10 else "tab20"](i % 20) for i, name in enumerate(scores)}
    count = len(panels) + bool(known)
    figure = new_figure(max(3.9 * count, 5.0), 3.6 + 0.22 * math.ceil(len(scores) / 3))
    axes = figure.subplots(1, count, squeeze=False)[0]
    for ax, key in zip(axes, panels, strict=False):
        for name, points in lines[key].items():
            if points:
                ax.plot(*zip(*points, strict=True), color=colours[name], linewidth=1.4, marker=".", markersize=4)
        ax.set(xlabel="updates of f", ylabel=_PANELS[key])
        if key == "nll":
            ax.set_ylim(*settled(sorted(value for points in lines[key].values() for _, value in points)))
        elif key == "ess":
            ax.set_ylim(0, 1)
        else:
            ax.set_yscale("symlog", linthresh=1e-3)
    if known:
        ax = axes[-1]
        for row, name in enumerate(scores):
            nll, error = scores[name]
            if finite(nll):
                ax.errorbar(nll, row, xerr=error if finite(error) else None, fmt="o", color=colours[name], capsize=3)
        ax.set(xlabel="held-out NLL ± standard error, nats", ylim=(len(scores) - 0.5, -0.5))
        ax.set_yticks([])
    handles = [figure.axes[0].plot([], [], color=colours[name], marker=".", label=name)[0] for name in scores]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure

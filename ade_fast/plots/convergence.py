"""How a sampler converges: over training, over the steps of its dynamics, and in scores over the updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .axes import EXACT, RAW, check, current, heading, new_figure, window
from .points import SMALL, handles, points

_MOST_PANELS = 6
_STRIP = 0.11
_Item = TypeVar("_Item")
_GRAY, _CHOSEN = "0.45", "#a3312f"
# Scores and their lines: (key of the history, label, colour).
_SCORES = {
    "nll": ("held-out NLL in nats", (("nll", "validation", EXACT),)),
    "ess": ("effective sample size", (("ess", "sampler", EXACT), ("initial_ess", "q⁰ alone", _GRAY))),
    "mmd2": ("MMD², raw samples", (("mmd2", "validation", RAW),)),
}


def convergence(
    data: Tensor,
    snapshots: Sequence[tuple[int, Tensor]],
    stages: Sequence[Tensor],
    history: Sequence[Mapping[str, float | None]],
    chosen: int | None = None,
    *,
    entropy: float | None = None,
    title: str = "",
    scores: str = "",
) -> Figure:
    """Samples along training and along the dynamics' steps, over the data; beneath, the scores on the validation draw.

    Of d > 2 coordinates the first two are shown.

    Args:
        data: [n, d], in its own units, as all points here.
        snapshots: (update, samples [m, d]) over training.
        stages: x^0 ... x^T of the trained sampler, each [m, d].
        history: a mapping per validation: "update", and those of "nll", "ess", "initial_ess", "mmd2" there are; a score
            that no validation has gets no panel, and no stages or no snapshots no row.
        chosen: the update whose players were chosen.
        entropy: the data's own, in nats: the NLL that no model beats.
        title, scores: the two lines of the heading.

    Returns:
        A new figure; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: shapes do not fit; there is nothing to draw.
    """
    check("convergence", data, snapshots=_first(snapshots), stages=stages[0] if stages else None)
    rows = [
        ("training", EXACT, [(f"update {update:,}", samples) for update, samples in _spread(snapshots)]),
        ("steps of the dynamics", RAW, [(f"$x^{{{t}}}$", samples) for t, samples in _spread(list(enumerate(stages)))]),
    ]
    rows = [row for row in rows if row[2]]
    panels = [key for key in _SCORES if any(finite(entry.get(key)) for entry in history)]
    if not rows and not panels:
        raise ValueError("plots.convergence: there are no snapshots, no stages and no scores to draw")
    columns = max((len(shown) for _, _, shown in rows), default=0)
    figure = new_figure(max(2.3 * columns, 7) + 0.3, 2.85 * len(rows) + (3.0 if panels else 0.3))
    # Legends in strips of their own: squares that do not fill their row would come beneath one outside of it.
    heights = [_STRIP, 1 - _STRIP] * len(rows) + [1.05] * bool(panels)
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    within = window(data, margin=0.25)
    for strip, part, (name, colour, shown) in zip(parts[::2], parts[1::2], rows, strict=False):
        axes = part.subplots(1, columns, squeeze=False)[0]
        for ax in axes[len(shown) :]:
            ax.set_visible(False)
        for ax, (label, samples) in zip(axes, shown, strict=False):
            points(data, samples, ax, within=within, colour=colour, size=SMALL, legend=False)
            ax.set_title(label, fontsize=9)
            ax.tick_params(labelsize=7, labelleft=ax is axes[0])
            ax.locator_params(axis="x", nbins=3)
            ax.set(xlabel="", ylabel="")
            ax.set_box_aspect(1)
        marks = handles(data.shape[1], {f"samples, over the {name}": colour})
        strip.legend(handles=marks, loc="center", ncols=2, frameon=False, fontsize=9)
    if panels:
        for ax, key in zip(parts[-1].subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            curve(history, key, ax, chosen=chosen, entropy=entropy)
    heading(figure, title, scores)
    return figure


def curve(
    history: Sequence[Mapping[str, float | None]],
    score: str = "nll",
    ax: Axes | None = None,
    *,
    chosen: int | None = None,
    entropy: float | None = None,
) -> Axes:
    """One score of the history over the updates: "nll", with the data's entropy; "ess", with q⁰'s own; or "mmd2".

    Args:
        history, chosen, entropy: as in :func:`convergence`.
        score: which one.
        ax: where to draw, pyplot's current axis by default.

    Returns:
        The axis.

    Raises:
        ValueError: there is no such score.
    """
    if score not in _SCORES:
        raise ValueError(f"plots.curve: score must be one of {', '.join(_SCORES)}, got {score!r}")
    ax, (name, lines) = current(ax), _SCORES[score]
    for key, label, colour in lines:
        drawn = [(entry["update"], entry[key]) for entry in history if finite(entry.get(key))]
        if drawn:
            ax.plot(*zip(*drawn, strict=True), color=colour, linewidth=1.4, marker=".", markersize=4, label=label)
    if score == "nll":
        values = sorted(value for entry in history if finite(value := entry.get("nll")))
        if finite(entropy):
            ax.axhline(entropy, color="black", linewidth=0.9, linestyle=":", label=f"data's entropy, {entropy:.3f}")
            values = [entropy, *values]
        if values:
            ax.set_ylim(*settled(values))
    elif score == "ess":
        ax.set_ylim(0, 1)
    else:
        ax.axhline(0, color=_GRAY, linewidth=0.7)
        ax.set_yscale("symlog", linthresh=1e-3)
    if chosen is not None:
        ax.axvline(chosen, color=_CHOSEN, linewidth=0.9, linestyle="--", label=f"chosen: update {chosen:,}")
    ax.set(xlabel="updates of f", ylabel=name)
    ax.legend(frameon=False, fontsize=8)
    return ax


def settled(values: list[float]) -> tuple[float, float]:
    """Limits, of sorted values, in which the later course is seen: the first ones may be many nats higher."""
    low, median, high = values[0], values[len(values) // 2], values[-1]
    top = min(high, low + 4 * max(median - low, 0.05))
    margin = 0.06 * (top - low) or 0.05
    return low - margin, top + margin


def _spread(items: Sequence[_Item]) -> list[_Item]:
    """At most ``_MOST_PANELS`` of the items, evenly spread, first and last included."""
    n = len(items)
    if n <= _MOST_PANELS:
        return list(items)
    return [items[round(i * (n - 1) / (_MOST_PANELS - 1))] for i in range(_MOST_PANELS)]


def _first(snapshots: Sequence[tuple[int, Tensor]]) -> Tensor | None:
    return snapshots[0][1] if snapshots else None


def finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)

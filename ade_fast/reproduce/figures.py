"""Figures 1, 2 and 5: what ADE has learned, and how its sampler came there; by our settings and by the paper's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..plots import density, window
from ..plots.axes import new_figure
from ..plots.density import cells, on_cells
from ..training import TrainedModel, load
from ..training.checkpoint import load_checkpoint
from ..training.directory import CHECKPOINT
from ..training.temperature import best_scale
from . import table2
from .gallery import cloud, held_out, samples, write_picture
from .jobs import RUNS, Job, Row
from .table2 import AS_PAPER, OURS, SETS
from .targets import Options, Target, markdown, values

VARIANTS = {OURS: "", AS_PAPER: "-paper"}
"""Both ways to train, and how their pictures' names end."""
_WIDE = 7
# Of the snapshots of a run (`loop`) all but the last, which is of the update before the choice.
_PANELS = 6


def jobs(options: Options) -> list[Job]:
    """Runs of Table 2."""
    return [
        table2.job(method, name, seed, options.budget)
        for name in options.only
        for seed in range(options.seeds)
        for method in VARIANTS
    ]


def lines(options: Options, rows: Mapping[str, Row]) -> list[str]:
    """The figures of the runs that are drawn."""
    table = []
    for name in options.only:
        for method in VARIANTS:
            found = rows.get(table2.job(method, name, 0, options.budget).file)
            if found is None:
                continue
            shown = [f"{1e3 * v:+.2f}" if (v := found.get("mmd2")) is not None else "diverged"]
            nll = values([found], "nll")
            table.append([name, method, *shown, f"{nll[0]:.3f}" if nll else "-"])
    return markdown(["set", "", "MMD² × 1e3, raw samples", "NLL"], table, left=2)


def draw_learned(stem: str) -> Callable[[Options, Path, Mapping[str, Row]], dict[str, str]]:
    """Samples over the data, and beneath f as a density: Figures 1 and 5."""

    def draw(options: Options, directory: Path, rows: Mapping[str, Row]) -> dict[str, str]:
        written = {}
        for method, ending in VARIANTS.items():
            file = f"{stem}{ending}.png"
            _learned(directory / file, directory, options, method)
            tuned = " exp(c f), c chosen within [0.01, 10] as in the paper." if ending else " p_f itself, c = 1."
            written[file] = f"{method}: samples of the dual sampler over the data; beneath,{tuned}"
        return written

    return draw


def _learned(path: Path, directory: Path, options: Options, method: str) -> None:
    blocks = [options.only[i : i + _WIDE] for i in range(0, len(options.only), _WIDE)]
    figure = new_figure(2.0 * min(_WIDE, len(options.only)), 4.2 * len(blocks))
    axes = figure.subplots(2 * len(blocks), min(_WIDE, len(options.only)), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for block, names in enumerate(blocks):
        for column, name in enumerate(names):
            stem, data = table2.job(method, name, 0, options.budget).file, held_out(name)
            kept = samples(directory, stem)
            top, beneath = axes[2 * block, column], axes[2 * block + 1, column]
            top.set_axis_on()
            top.set_title(name, fontsize=9)
            if kept is None:
                top.text(0.5, 0.5, "diverged", ha="center", transform=top.transAxes)
                continue
            cloud(top, data, kept[0])
            beneath.set_axis_on()
            density(_log_density(load(directory / RUNS / stem), data, method), window(data), beneath, colorbar=False)
            beneath.set(xlabel="", ylabel="", xticks=[], yticks=[])
            beneath.texts[-1].remove()  # the mass in the window, too large for such a panel
    write_picture(figure, path)


def _log_density(model: TrainedModel, data: Tensor, method: str) -> Callable[[Tensor], Tensor]:
    """log p_f in the data's units, normalised within the window; of the paper's settings at the best temperature."""

    def f(x: Tensor) -> Tensor:
        return model.potential(model.space.to_z(x)).reshape(-1).double()

    axes, volume = cells(window(data))
    on_plane = on_cells(f, axes, data)
    with torch.no_grad():
        c = best_scale(on_plane, f(data)) if method == AS_PAPER else 1.0
    log_z = float(torch.logsumexp(c * on_plane, 0)) + math.log(volume)
    return lambda x: c * f(x) - log_z


def draw_convergence(options: Options, directory: Path, rows: Mapping[str, Row]) -> dict[str, str]:
    """Samples over the updates: Figure 2."""
    written = {}
    for method, ending in VARIANTS.items():
        file = f"figure2{ending}.png"
        _convergence(directory / file, directory, options.only, method, options.budget)
        written[file] = f"{method}: samples of the averaged players over the updates, over the data."
    return written


def _convergence(path: Path, directory: Path, names: Sequence[str], method: str, budget: str) -> None:
    figure = new_figure(1.9 * _PANELS, 2.1 * len(names))
    axes = figure.subplots(len(names), _PANELS, squeeze=False)
    for row, name in zip(axes, names, strict=True):
        folder, data = directory / RUNS / table2.job(method, name, 0, budget).file, held_out(name)
        snapshots = load_checkpoint(folder / CHECKPOINT)["snapshots"]
        model = load(folder)
        for ax in row:
            ax.set_axis_off()
        for ax, (update, z) in zip(row, snapshots, strict=False):
            ax.set_axis_on()
            cloud(ax, data, model.space.to_data(z))
            ax.set_title(f"{name}, update {update:,}", fontsize=7)
    write_picture(figure, path)


_SEEDS = {"quick": 1, "full": 1}
FIGURE1 = Target(
    "Figure 1",
    _SEEDS,
    ("2spirals", "Cosine", "moons", "Multiring", "pinwheel", "Spiral"),
    jobs,
    lines,
    draw_learned("figure1"),
)
FIGURE2 = Target("Figure 2", _SEEDS, ("moons", "Multiring", "pinwheel"), jobs, lines, draw_convergence)
FIGURE5 = Target("Figure 5", _SEEDS, SETS, jobs, lines, draw_learned("figure5"))

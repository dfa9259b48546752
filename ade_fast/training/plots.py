"""Pictures of a trained model: what it learned (Figure 1) and how its sampler converges (Figure 2)."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from .files import write_atomically
from .sampler import DualSampler

_GRID = 200
_MAX_PANELS = 6


def save_learned(
    path: str | Path,
    data: Tensor,
    samples: Tensor,
    potential: nn.Module,
    *,
    title: str = "",
) -> None:
    """Data, samples of the dual sampler, and the learned exp(c f), as in Figure 1.

    The paper tunes c within [0.01, 10] by hand; here it is the c in that interval under which exp(c f) gives
    the data the highest likelihood.

    Args:
        path: the PNG to write.
        data, samples: [n, 2].
        potential: f, [B, 2] -> [B].
        title: the data's name.
    """
    limits = _square_around(data)
    figure = _figure(12, 4)
    left, middle, right = figure.subplots(1, 3)
    _scatter(left, data, limits, f"{title} data", "tab:gray")
    _scatter(middle, samples, limits, "ADE samples", "tab:blue")
    values, axis = _on_grid(potential, limits, data.device)
    with torch.no_grad():
        at_data = potential(data).reshape(-1).double().cpu()
    c = best_scale(values, at_data)
    density = (c * (values - values.max())).exp()
    right.pcolormesh(
        axis.numpy(), axis.numpy(), density.reshape(_GRID, _GRID).T.numpy(), cmap="viridis", rasterized=True
    )
    _frame(right, limits, f"learned exp(c f), c = {c:.2g}")
    _save(figure, path)


def save_convergence(
    path: str | Path,
    data: Tensor,
    snapshots: Sequence[tuple[int, Tensor]],
    stages: Sequence[Tensor],
    history: Sequence[tuple[int, float]],
    chosen: int,
) -> None:
    """How the samples converge, after Figure 2: over training, over the dynamics' steps, and as MMD^2.

    Args:
        path: the PNG to write.
        data: [n, 2], drawn faintly behind the samples.
        snapshots: (update, samples [n, 2]) over training.
        stages: x^0 ... x^T of the trained sampler, each [n, 2].
        history: (update, MMD^2 to the validation draw).
        chosen: the update whose players were chosen.
    """
    limits = _square_around(data)
    shown_stages = [(t, stages[t]) for t in _spread(len(stages), _MAX_PANELS)]
    shown_snapshots = [snapshots[i] for i in _spread(len(snapshots), _MAX_PANELS)]
    columns = max(len(shown_stages), len(shown_snapshots))
    figure = _figure(2.2 * columns, 8)
    grid = figure.add_gridspec(3, columns, height_ratios=[1, 1, 1.2])
    rows = (
        (shown_snapshots, "tab:blue", "after {} updates", "over training"),
        (shown_stages, "tab:green", "after {} steps", "over the dynamics"),
    )
    for row, (panels, colour, label, name) in enumerate(rows):
        for column, (index, points) in enumerate(panels):
            axes = figure.add_subplot(grid[row, column])
            axes.scatter(*data.cpu().T.numpy(), s=1, c="lightgray", linewidths=0)
            _scatter(axes, points, limits, label.format(index), colour, size=2)
            if column == 0:
                axes.set_ylabel(name)
    axes = figure.add_subplot(grid[2, :])
    finite = [(update, score) for update, score in history if math.isfinite(score)]
    updates, scores = zip(*finite, strict=True) if finite else ((), ())
    axes.plot(updates, scores, color="tab:blue", linewidth=1.2)
    axes.axhline(0, color="gray", linewidth=0.6)
    axes.axvline(chosen, color="tab:red", linewidth=0.8, linestyle="--", label=f"chosen: update {chosen}")
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_xlabel("updates of f")
    axes.set_ylabel("validation MMD²")
    axes.legend(frameon=False)
    _save(figure, path)


def stages(
    potential: nn.Module, sampler: DualSampler, n: int, generator: torch.Generator | None = None
) -> list[Tensor]:
    """x^0, x^1, ..., x^T of one batch of the sampler, each [n, *event].

    x^t of a T-step run is the end point of a t-step run from the same start: the two differ only in the last
    kick, which moves v.
    """
    dynamics = sampler.dynamics
    with torch.no_grad():
        shape = dynamics.momentum_shape(tuple(sampler.initial.event))
        x, v, _ = sampler.initial.sample(n, momentum_shape=shape, generator=generator)
        return [x] + [_first_steps(dynamics, t, x.dim())(potential, x, v).x for t in range(1, dynamics.n_steps + 1)]


def best_scale(grid_values: Tensor, data_values: Tensor) -> float:
    """The c in [0.01, 10] for which exp(c f), normalised on the grid, gives the data most likelihood."""
    scales = torch.logspace(-2, 1, 121, dtype=torch.float64)
    log_likelihood = scales * data_values.mean() - torch.logsumexp(scales[:, None] * grid_values, dim=1)
    return float(scales[log_likelihood.argmax()])


def _first_steps(dynamics: nn.Module, n_steps: int, per_step_dim: int) -> nn.Module:
    """The dynamics cut after ``n_steps`` steps; a step size of ``per_step_dim`` axes has one row per step."""
    cut = copy.deepcopy(dynamics)
    cut.n_steps = n_steps
    if cut.step_size.dim() == per_step_dim:
        cut.step_size.data = cut.step_size.data[:n_steps]
    return cut


def _square_around(points: Tensor) -> tuple[float, float]:
    """The interval that holds both coordinates of all points, with a margin."""
    low, high = points.min().item(), points.max().item()
    margin = 0.1 * (high - low)
    return low - margin, high + margin


def _on_grid(potential: nn.Module, limits: tuple[float, float], device: torch.device) -> tuple[Tensor, Tensor]:
    """f on a square grid, [_GRID * _GRID] float64, first coordinate slowest; and the grid's axis."""
    axis = torch.linspace(*limits, _GRID)
    points = torch.cartesian_prod(axis, axis).to(device)
    with torch.no_grad():
        return potential(points).reshape(-1).double().cpu(), axis


def _spread(n: int, limit: int) -> list[int]:
    """At most ``limit`` indices of 0 ... n-1, evenly spread, first and last included."""
    if n <= limit:
        return list(range(n))
    return [round(i * (n - 1) / (limit - 1)) for i in range(limit)]


def _scatter(axes: Axes, points: Tensor, limits: tuple[float, float], title: str, colour: str, size: float = 3) -> None:
    axes.scatter(*points.detach().cpu().T.numpy(), s=size, c=colour, linewidths=0)
    _frame(axes, limits, title)


def _frame(axes: Axes, limits: tuple[float, float], title: str) -> None:
    axes.set(xlim=limits, ylim=limits, aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no display, and no global pyplot state
    return figure


def _save(figure: Figure, path: str | Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())

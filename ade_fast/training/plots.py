"""The pictures that a run writes: what it learned (Figure 1) and how its sampler converges (Figure 2)."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..dynamics import Diagnostics
from ..metrics import EnergyHistogram
from ..plots import comparison, convergence, energies, learned, stages_of, unroll, window, with_neighbours
from ..plots.axes import new_figure
from ..plots.density import LogProb, cells, on_cells
from .files import write_atomically
from .temperature import best_scale

if TYPE_CHECKING:
    from .sampler import DualSampler

__all__ = [
    "best_scale",
    "normalised_within",
    "save_comparison",
    "save_convergence",
    "save_diagnostics",
    "save_energies",
    "save_image_rows",
    "save_images",
    "save_learned",
    "stages",
]


def save_learned(
    path: str | Path,
    data: Tensor,
    samples: Tensor,
    exact: Tensor | None = None,
    log_prob: LogProb | None = None,
    true_log_prob: LogProb | None = None,
    *,
    title: str = "",
    scores: str = "",
) -> None:
    """Writes :func:`ade_fast.plots.learned`, whose arguments these are, as a PNG at ``path``."""
    _save(learned(data, samples, exact, log_prob, true_log_prob, title=title, scores=scores), path)


def save_convergence(
    path: str | Path,
    data: Tensor,
    snapshots: Sequence[tuple[int, Tensor]],
    stages: Sequence[Tensor],
    history: Sequence[Mapping[str, float | None]],
    chosen: int | None,
    *,
    entropy: float | None = None,
    title: str = "",
    scores: str = "",
) -> None:
    """Writes :func:`ade_fast.plots.convergence`, whose arguments these are, as a PNG at ``path``."""
    _save(convergence(data, snapshots, stages, history, chosen, entropy=entropy, title=title, scores=scores), path)


def save_diagnostics(path: str | Path, diagnostics: Diagnostics, *, title: str = "") -> None:
    """Writes :func:`ade_fast.plots.unroll`, whose arguments these are, as a PNG at ``path``."""
    _save(unroll(diagnostics, title=title), path)


def save_comparison(
    path: str | Path,
    histories: Mapping[str, Sequence[Mapping[str, float | None]]],
    scores: Mapping[str, tuple[float | None, float | None]],
) -> None:
    """Writes :func:`ade_fast.plots.comparison`, whose arguments these are, as a PNG at ``path``."""
    _save(comparison(histories, scores), path)


def save_images(path: str | Path, samples: Tensor, nearest: Tensor, *, title: str = "", scores: str = "") -> None:
    """Writes :func:`ade_fast.plots.with_neighbours`, whose arguments these are, as a PNG at ``path``."""
    _save(with_neighbours(samples, nearest, title=title, scores=scores), path)


def save_image_rows(path: str | Path, rows: Mapping[str, Tensor], *, title: str = "") -> None:
    """Writes :func:`ade_fast.plots.stages_of`, whose arguments these are, as a PNG at ``path``."""
    _save(stages_of(rows, title=title), path)


def save_energies(path: str | Path, histogram: EnergyHistogram, *, title: str = "") -> None:
    """Writes :func:`ade_fast.plots.energies` as a PNG at ``path``."""
    figure = new_figure(8.0, 3.2)
    energies(histogram, figure.subplots()).set_title(title, fontsize=8)
    _save(figure, path)


def stages(
    potential: nn.Module,
    sampler: DualSampler,
    n: int,
    generator: torch.Generator | None = None,
    to_data: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """x^0, x^1, ..., x^T of one batch of the dual sampler, each [n, *event].

    x^t of a T-step run is the end point of a t-step run from the same start: the two differ only in the last
    kick, which moves v. Noise of the dynamics is keyed by its seed and the step, so that both draw the same.

    Args:
        potential, sampler: the players.
        n: size of the batch.
        generator: where (x^0, v^0) come from.
        to_data: from the players' coordinates to the data's own units, [n, *event] -> [n, *event].
    """
    dynamics = sampler.dynamics
    with torch.no_grad():
        shape = dynamics.momentum_shape(tuple(sampler.initial.event))
        x, v, _ = sampler.initial.sample(n, momentum_shape=shape, generator=generator)
        seen = [x]
        for t in range(1, dynamics.n_steps + 1):
            noise = torch.Generator(x.device).manual_seed(0)
            seen.append(_first_steps(dynamics, t, x.dim())(potential, x, v, generator=noise).x)
        return seen if to_data is None else [to_data(x) for x in seen]


def normalised_within(potential: nn.Module, data: Tensor) -> LogProb:
    """f - log Z with Z a sum over the picture's window: for players whose Z no weights give; d = 1 or 2.

    Args:
        potential: f, [B, d] -> [B], of points in the data's units.
        data: [n, d], around which the window is.
    """
    axes, volume = cells(window(data))
    log_z = float(torch.logsumexp(on_cells(potential, axes, data), 0)) + math.log(volume)
    return lambda x: potential(x).reshape(-1).double() - log_z


def _first_steps(dynamics: Any, n_steps: int, per_step_dim: int) -> Any:
    """The dynamics cut after ``n_steps`` steps; what it has of ``per_step_dim`` axes has one row per step."""
    cut = copy.deepcopy(dynamics)
    for own in (*cut.parameters(recurse=False), *cut.buffers(recurse=False)):
        if own.dim() == per_step_dim and len(own) == cut.n_steps:
            own.data = own.data[:n_steps]
    cut.n_steps = n_steps
    return cut


def _save(figure: Figure, path: str | Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())

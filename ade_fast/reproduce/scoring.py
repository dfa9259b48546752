"""What every method is scored by: MMD² against fresh points, and in two dimensions log Z from sums over grids."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import toy
from ..metrics import mmd2, mmd_test
from ..training.source import Space
from ..training.streams import stream
from ..weighted import evaluate, evaluating

POINTS = 1000
"""Samples and held-out points that MMD² compares, as in the paper."""
NLL_POINTS = 20_000
_PERMUTATIONS = 200
# Cells along each axis: around the data, and out to where a Gaussian base measure of f has nothing left.
_NEAR, _FAR = 801, 401
_MARGIN, _BASES = 1.0, 7.0
# The kernel's width in the released code, over the median distance.
_RELEASED_WIDTH = 0.1


class Grid(NamedTuple):
    """Cells that hold all mass of exp f. centres: [K, 2], z. widths: [K, 2]. log_mass: [K], float64, normalised."""

    centres: Tensor
    widths: Tensor
    log_mass: Tensor
    log_z: float

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Exact draws of the cells, uniform within each: [n, 2]."""
        cumulated = self.log_mass.exp().cumsum(0)
        drawn = torch.rand(n, generator=generator, dtype=torch.float64) * cumulated[-1]
        cell = torch.searchsorted(cumulated, drawn).clamp_(max=len(cumulated) - 1)
        return self.centres[cell] + self.widths[cell] * (torch.rand(n, 2, generator=generator) - 0.5)


def grid(potential: Callable[[Tensor], Tensor], space: Space, base_std: float | None, *, bounded: bool) -> Grid:
    """exp f on the plane.

    f on a base measure: cells around the data's range, and wider ones around these as far as the measure reaches.
    f without one need not have a log Z on the plane: it is a density on the range, as the paper assumes.

    Args:
        potential: f, [B, 2] -> [B] in z.
        space: the coordinates z.
        base_std: width of f's base measure; None: it has none.
        bounded: take the range alone in any case.
    """
    low, high = space.range
    if base_std is None or bounded:
        centres, widths = _cells(low, high, _NEAR)
    else:
        reach = _BASES * base_std
        centres, widths = _cells(low - _MARGIN, high + _MARGIN, _NEAR)
        far, far_widths = _cells(-reach, reach, _FAR)
        around = _outside(far, far_widths, low - _MARGIN, high + _MARGIN)
        centres = torch.cat([centres, far[around]])
        widths = torch.cat([widths, far_widths[around]])
    with evaluating(potential):
        log_mass = evaluate("reproduce", potential, centres) + widths.double().log().sum(1)
    log_z = float(torch.logsumexp(log_mass, 0))
    return Grid(centres, widths, log_mass - log_z, log_z)


def _cells(low: float, high: float, n: int) -> tuple[Tensor, Tensor]:
    width = (high - low) / n
    axis = low + width * (torch.arange(n, dtype=torch.float64) + 0.5)
    centres = torch.cartesian_prod(axis, axis).float()
    return centres, torch.full_like(centres, width)


def _outside(centres: Tensor, widths: Tensor, low: float, high: float) -> Tensor:
    """The cells whose centre lies outside of the inner square. Cells on its edge are counted a little too much or too
    little: there f's mass has to be nothing."""
    return ~((centres > low) & (centres < high)).all(1)


def nll(potential: Callable[[Tensor], Tensor], space: Space, cells: Grid, name: str, seed: int) -> dict[str, float]:
    """Held-out negative log-likelihood on fresh points, in nats and the data's units, with its standard error."""
    points = toy(name).sample(NLL_POINTS, stream(seed, "reproduce likelihood"))
    with evaluating(potential):
        values = evaluate("reproduce", potential, space.to_z(points))
    return {
        "nll": cells.log_z - values.mean().item() - space.log_det,
        "nll_standard_error": values.std().item() / math.sqrt(len(values)),
    }


def compare(name: str, seed: int, raw: Tensor, exact: Tensor | None = None) -> dict[str, Any]:
    """MMD² of samples [POINTS, 2], in the data's units, against points that no run has seen.

    mmd2_tenth: with the released code's kernel. exact_*: of samples of p_f.
    """
    held_out = toy(name).sample(POINTS, stream(seed, "reproduce held-out"))
    found = {"mmd2_tenth": float(mmd2(raw, held_out, _RELEASED_WIDTH * _median(raw, held_out)))}
    for prefix, samples in (("", raw), ("exact_", exact)):
        if samples is not None:
            test = mmd_test(samples, held_out, _PERMUTATIONS, stream(seed, "reproduce permutations"))
            found |= {f"{prefix}mmd2": test.mmd2, f"{prefix}p_value": test.p}
    return found


def _median(*parts: Tensor) -> float:
    return torch.pdist(torch.cat(parts)).median().item()


def null_row(arguments: dict[str, Any], directory: Any, stem: str) -> dict[str, Any]:
    """MMD² between true draws: mean and standard deviation of one, and the values."""
    set_, generator = toy(arguments["data"]), stream(0, "reproduce null")
    values = [
        float(mmd2(set_.sample(POINTS, generator), set_.sample(POINTS, generator))) for _ in range(arguments["pairs"])
    ]
    found = torch.tensor(values, dtype=torch.float64)
    return {"mean": found.mean().item(), "std": found.std().item()}

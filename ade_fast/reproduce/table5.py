"""Table 5: mean and scale of Gaussians, beside what maximum likelihood has on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .gaussians import AVERAGED_EPOCHS, LEARNING_RATE, METHODS, STD
from .jobs import Job, Row
from .targets import Options, Target, markdown, mean_and_error, of, values

PAPER = {"2": (2.18, 5.67, 2.28), "5": (3.17, 419.0, 3.09), "10": (3.90, 636.0, 3.23)}
"""RMSE × 1e3 of SM, CD and ADE as the paper prints them."""
_ALL = ("exact", *METHODS)
SAMPLES = 1000
SIZES = {"quick": {"epochs": 100, "batches": 10}, "full": {"epochs": 500, "batches": 10}}


def job(method: str, dim: str, seed: int, budget: str) -> Job:
    arguments: dict[str, Any] = {"method": method, "dim": int(dim), "seed": seed, "samples": SAMPLES, **SIZES[budget]}
    return Job((f"gaussian {dim}-D", method, f"seed {seed}"), "gaussian", arguments, 0.01 if method == "exact" else 1.0)


def jobs(options: Options) -> list[Job]:
    return [
        job(method, dim, seed, options.budget)
        for dim in options.only
        for seed in range(options.seeds)
        for method in _ALL
    ]


def lines(options: Options, rows: Mapping[str, Row]) -> list[str]:
    found = {
        (dim, method): of([job(method, dim, seed, options.budget) for seed in range(options.seeds)], rows)
        for dim in options.only
        for method in _ALL
    }
    table = []
    for dim in options.only:
        cells = {method: mean_and_error(values(found[dim, method], "rmse"), ".2f", 1e3) for method in _ALL}
        exact = values(found[dim, "exact"], "rmse")
        ours = values(found[dim, "ADE"], "rmse")
        whole = exact and len(ours) == len(exact)
        ratio = f"{sum(ours) / sum(exact):.3f}" if whole else "-"
        printed = [format(value, "g") for value in PAPER[dim]]
        table.append(
            [f"{dim}-D", cells["exact"], cells["SM"], printed[0], cells["CD-15"], printed[1], cells["ADE"], printed[2],
             ratio]
        )  # fmt: skip
    size = SIZES[options.budget]
    return [
        f"RMSE × 1e3 of all parameters (mean −1 and scale {STD} of each coordinate), mean ± standard error over "
        f"{options.seeds} run(s); a run is other samples. “paper” is the paper's column (its CD has 5 steps).",
        "",
        *markdown(
            ["", "maximum likelihood", "SM", "paper", "CD-15", "paper", "ADE", "paper", "ADE / maximum likelihood"],
            table,
        ),
        "",
        f"The same {SAMPLES:,} samples, {size['epochs']} epochs of {size['batches']} batches, and Adam from "
        f"{LEARNING_RATE:g} to 0 for all; parameters averaged over the last {AVERAGED_EPOCHS} epochs.",
    ]


def draw(options: Options, directory: Path, rows: Mapping[str, Row]) -> dict[str, str]:
    return {}


TARGET = Target("Table 5", {"quick": 5, "full": 5}, tuple(PAPER), jobs, lines, draw)

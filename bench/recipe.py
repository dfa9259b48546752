"""How well the training recipe does, and what each part of it does: many whole runs of ``ade-fast train``.

    python bench/recipe.py sets         the default settings on every set
    python bench/recipe.py seeds        the default settings, five seeds
    python bench/recipe.py gradients    exact, truncated and stopped gradient
    python bench/recipe.py ablation     the default settings with one thing changed

Every run takes minutes, on one thread; ``--jobs`` of them run side by side. Each writes its row to
``bench/results/recipe-<table>-<machine>.json`` as soon as it has ended, and a second call does what is missing. Runs
with the same settings are made once, whatever tables they are in. `bench/report.py` puts them into docs/recipe.md.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import common
import records
import torch

import ade_fast as ade
from ade_fast.data import TOY_NAMES
from ade_fast.training import Config, DivergenceError

# Scores of the table, beside the run's own test: means over several draws, for a scatter below a tenth of 1e-3.
SCORE_DRAWS, SCORE_POINTS = 4, 3000
SCORE_SEED = 20_190_424
FINE = 0.2
"""Bandwidth of the second score, as a fraction of the median distance: it sees blur, which the median does not."""

GRADIENTS = ("full", "truncated", "stopped")

_FIXED_STEPS = {"momentum_weight": 1.0, "learn_step_size": False}
ABLATION: dict[str, dict[str, Any]] = {
    "the default settings": {},
    "as printed: plain objective, Adam 1e-3, no clips": {
        "gradient_penalty": 0.0, "momentum_weight": 1.0, "potential_lr": 1e-3, "sampler_lr": 1e-3, "beta1": 0.9,
        "grad_clip": None, "momentum_clip": None, "grad_norm_clip": None, "lr_decay_to": 1.0, "ema_decay": 0.0,
    },
    "no penalty": {"gradient_penalty": 0.0},
    "gradient penalty kept to the end": {"penalty_decay_to": 1.0},
    "f² penalty 0.005 instead": {"gradient_penalty": 0.0, "value_penalty": 0.005},
    "spectral norm instead": {"gradient_penalty": 0.0, "spectral_norm": True},
    "five sampler steps per step of f": {"sampler_steps": 5, "potential_lr": 5e-4, "updates": 1500},
    "equal learning rates, 1e-3": {"potential_lr": 1e-3, "sampler_lr": 1e-3},
    "no decay of the learning rates": {"lr_decay_to": 1.0},
    "no averaging": {"ema_decay": 0.0},
    "Adam's β₁ = 0.9": {"beta1": 0.9},
    "λ = 1": {"momentum_weight": 1.0},
    "entropy weight 0.5": {"entropy_weight": 0.5},
    "λ = 1, step size fixed at 0.05": {**_FIXED_STEPS, "step_size": 0.05},
    "q⁰ a Gaussian": {"initial": "gaussian"},
    "generalized leapfrog": {"dynamics": "generalized"},
    "damped leapfrog": {"dynamics": "damped"},
    "T = 1": {"n_steps": 1},
    "T = 10": {"n_steps": 10},
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Variants (name -> settings that differ from the defaults) x sets x seeds."""

    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"default": {}})
    sets: Sequence[str] = TOY_NAMES
    seeds: Sequence[int] = (0,)

    def runs(self) -> list[tuple[str, dict[str, Any]]]:
        return [
            (variant, {**changes, "data": data, "seed": seed})
            for seed in self.seeds
            for variant, changes in self.variants.items()
            for data in self.sets
        ]


TABLES = {
    "sets": Table(),
    "seeds": Table(sets=("moons", "2spirals", "pinwheel"), seeds=range(5)),
    "gradients": Table(
        {g: {"gradient": g} for g in GRADIENTS}, ("moons", "2spirals", "pinwheel", "checkerboard"), range(3)
    ),
    "ablation": Table(ABLATION, ("2spirals", "pinwheel"), (0,)),
}


def run(variant: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One training from start to end, and its row. A run that diverges is a row with the reason."""
    row: dict[str, Any] = {"variant": variant, "settings": dict(settings), "commit": common.commit()}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ade_fast_recipe_") as folder:
        try:
            summary = ade.training.train(Config.from_dict(dict(settings)), folder, progress=False)
        except (ade.NonFiniteError, DivergenceError) as error:
            return {**row, "diverged": str(error), "seconds": round(time.perf_counter() - started, 1)}
        model = ade.load(folder)
    return {
        **row,
        "p_value": summary.p_value,
        "mmd2": summary.mmd2,
        **_scores(model, settings["data"]),
        "chosen_update": summary.chosen_update,
        "updates": summary.updates,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _scores(model: ade.training.TrainedModel, name: str) -> dict[str, float]:
    """MMD² with a kernel as wide as the data, and with a narrow one; each the mean over `SCORE_DRAWS` draws."""
    generator = torch.Generator().manual_seed(SCORE_SEED)
    wide, fine = [], []
    for draw in range(SCORE_DRAWS):
        data = ade.data.toy(name).sample(SCORE_POINTS, generator)
        samples = model.sample(SCORE_POINTS, SCORE_SEED + draw)
        median = torch.pdist(data).median().item()
        wide.append(float(ade.metrics.mmd2(samples, data, bandwidth=median)))
        fine.append(float(ade.metrics.mmd2(samples, data, bandwidth=FINE * median)))
    return {"mmd2_large": mean(wide), "mmd2_fine": mean(fine)}


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _resolved(settings: Mapping[str, Any]) -> dict[str, Any]:
    return Config.from_dict(dict(settings)).to_dict()


def _measured(paths: Sequence[Path], jobs: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of earlier calls that serve, under their name in this table; tables share runs of the same settings."""
    found = [row for path in paths if path.exists() for row in records.read_results(path)["runs"]]
    rows = []
    for variant, settings in jobs:
        same = (row for row in found if _resolved(row["settings"]) == _resolved(settings))
        row = next(same, None)
        if row is not None:
            rows.append({**row, "variant": variant, "settings": settings})
    return rows


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--jobs", type=int, default=cores, help="runs side by side (default: all cores)")
    parser.add_argument("--updates", type=int, help="fewer updates, for a smoke test; needs --out")
    parser.add_argument("--only", help="one set only; needs --out")
    parser.add_argument("--again", action="store_true", help="measure every row again")
    parser.add_argument("--out", type=Path, help="results file (default: in bench/results/)")
    args = parser.parse_args(argv)
    if not 1 <= args.jobs <= cores:
        parser.error(f"--jobs must be 1 to {cores} (the CPUs this process may use), got {args.jobs}")
    if (args.updates or args.only) and not args.out:
        parser.error("--updates and --only narrow the table: say where it shall go with --out")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    table = TABLES[args.table]
    if args.only:
        table = Table(table.variants, (args.only,), table.seeds)
    if args.updates:
        variants = {name: {**changes, "updates": args.updates} for name, changes in table.variants.items()}
        table = Table(variants, table.sets, table.seeds)
    results = common.described_run("recipe", torch.device("cpu"), 1)
    results["benchmark"] = f"recipe-{args.table}"
    results["settings"] = {"jobs": args.jobs, "score_draws": SCORE_DRAWS, "score_points": SCORE_POINTS, "fine": FINE}
    path = args.out or records.RESULTS / f"recipe-{args.table}-{records.slug(results)}.json"
    jobs = table.runs()
    earlier = [] if args.again else [path, *([] if args.out else sorted(records.RESULTS.glob("recipe-*.json")))]
    results["runs"] = _measured(earlier, jobs)
    done = [(row["variant"], row["settings"]) for row in results["runs"]]
    todo = [job for job in jobs if job not in done]
    records.write_results(results, path)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with concurrent.futures.ProcessPoolExecutor(args.jobs, context) as pool:
        for finished in concurrent.futures.as_completed([pool.submit(run, *job) for job in todo]):
            row = _finite(finished.result())
            results["runs"].append(row)
            results["runs"].sort(key=lambda r: jobs.index((r["variant"], r["settings"])))
            records.write_results(results, path)
            shown = row.get("diverged") or f"MMD^2 {1e3 * row['mmd2']:.2f}e-3, p = {row['p_value']:.3f}"
            print(f"{row['variant']}, {row['settings']}: {shown}, {row['seconds']} s", flush=True)
    print(f"written: {path}; `python bench/report.py` puts it into the documents")


if __name__ == "__main__":
    sys.exit(main())

"""How well the training recipe does, and what each part of it does: many whole runs of ``ade-fast train``.

    python bench/recipe.py sets         the default settings on every set, three seeds
    python bench/recipe.py gradients    exact, truncated and stopped gradient: long unrolls of smooth f from a Gaussian
    python bench/recipe.py ablation     the default settings with one thing changed
    python bench/recipe.py dynamics     the default settings with every dynamics, three seeds

Every run takes minutes, on one thread; ``--jobs`` of them run side by side. Each writes its row to
``bench/results/recipe-<table>-<machine>.json`` as soon as it has ended, and a second call does what is missing. Runs
with the same settings are made once, whatever tables they are in, and all of one seed before the next's.
`bench/report.py` puts them into docs/recipe.md.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import records
import torch

import ade_fast as ade
from ade_fast.data import TOY_NAMES
from ade_fast.training import Config, DivergenceError
from ade_fast.training.dynamics_config import RECIPES

# Scores of the table, beside the run's own test: on many more fresh points, and by grids.
SCORE_POINTS = 50_000
SCORE_SEED = 20_190_424
GRID = 1001
"""Points along each axis of the grids on which exp(log_prob) is summed."""
NEAR, FAR = 3.0, 40.0
"""How far they reach: data units beyond the data, and standard deviations."""

GRADIENTS = ("full", "truncated", "stopped")
# A Gaussian q0, so that there is something to gain for the steps, and the smooth f of the recipe.
_WEAK_START = {"initial": "gaussian", "base_std": 3.0}
SAMPLERS: dict[str, dict[str, Any]] = {
    "leapfrog, λ = ½": {**_WEAK_START, "dynamics": "leapfrog", "momentum_weight": 0.5},
    "annealed": {**_WEAK_START, "dynamics": "annealed"},
}

ABLATION: dict[str, dict[str, Any]] = {
    "the default settings": {},
    "the bound of (20) for both": {"bound": "elbo", "sampler_bound": "elbo", "defensive": 0.0},
    "the bound of (20), gradient penalty": {
        "bound": "elbo", "sampler_bound": "elbo", "defensive": 0.0, "gradient_penalty": 0.005,
    },
    "the sampler by (20)": {"sampler_bound": "elbo"},
    "the sampler by the importance-weighted bound": {"sampler_bound": "importance"},
    "no base measure": {"base_std": None, "defensive": 0.0},
    "no defensive samples": {"defensive": 0.0},
    "q⁰ a planar flow": {"initial": "planar"},
    "q⁰ a Gaussian": {"initial": "gaussian"},
    "f with ReLU": {"activation": "relu"},
    "f with no input gain": {"input_gain": 1.0},
    "f's learning rate 1e-3": {"potential_lr": 1e-3},
    "no decay of the learning rates": {"lr_decay_to": 1.0},
    "no averaging": {"ema_decay": 0.0},
    "T = 1": {"n_steps": 1},
    "T = 10": {"n_steps": 10},
    "4 samples per data point": {"samples_per_point": 4},
}  # fmt: skip

# The half-step's variance, √(η/2) at η = 0.1: what makes Langevin's steps their own reverse, to first order.
_QUIET = {"noise_std": math.sqrt(0.1 / 2)}
# What the command line takes for these dynamics; of the deterministic ones, T = 1.
_SMALL = {"dynamics": "deterministic", "step_size": 0.01, "learn_step_size": False}
_CONTINUOUS = {"dynamics": "continuous", **RECIPES["continuous"]}


def _each_length(name: str, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The variants of T = 1, 2 and 5; 2 is the default."""
    return {f"{name}, T = {steps}": {**settings, **({} if steps == 2 else {"n_steps": steps})} for steps in (1, 2, 5)}


DYNAMICS: dict[str, dict[str, Any]] = {
    **_each_length("leapfrog", {}),
    **_each_length("generalized leapfrog", {"dynamics": "generalized"}),
    **_each_length("damped leapfrog", {"dynamics": "damped"}),
    **_each_length("annealed leapfrog", {"dynamics": "annealed"}),
    **_each_length("Langevin, σ = √η", {"dynamics": "langevin"}),
    **_each_length("Langevin, σ = √(η/2)", {"dynamics": "langevin", **_QUIET}),
    "generalized Langevin, σ = √(η/2), T = 2": {"dynamics": "generalized-langevin", **_QUIET},
    **_each_length("deterministic Langevin, η = 0.01 fixed", _SMALL),
    "deterministic Langevin, T = 2": {"dynamics": "deterministic"},
    "continuous Langevin, 1000 updates of 128": _CONTINUOUS,
    "generalized continuous, 500 updates of 128": {
        "dynamics": "generalized-continuous",
        **RECIPES["generalized-continuous"],
    },
}


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
    "sets": Table(seeds=range(3)),
    "gradients": Table(
        {
            f"{name}, T = {steps}, {gradient}": {**sampler, "n_steps": steps, "gradient": gradient}
            for name, sampler in SAMPLERS.items()
            for steps in (5, 20, 50)
            for gradient in GRADIENTS
        },
        ("moons", "pinwheel"),
        range(3),
    ),
    "ablation": Table(ABLATION, ("moons", "pinwheel")),
    "dynamics": Table(DYNAMICS, ("moons", "pinwheel"), range(3)),
}

# Of the run's own summary.
_REPORTED = (
    "nll", "nll_standard_error", "entropy", "entropy_exact", "log_z", "log_z_standard_error", "ess", "initial_ess",
    "best_temperature", "mmd2", "p_value", "mmd2_fine", "fine_p_value", "exact_mmd2", "exact_p_value",
    "chosen_update", "updates", "milliseconds_per_update",
)  # fmt: skip


def run(variant: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One training from start to end, and its row. A run that diverges is a row with the reason."""
    row: dict[str, Any] = {
        "variant": variant,
        "settings": dict(settings),
        "resolved": _resolved(settings),  # the defaults of the day included
        "commit": common.commit(),
    }
    started, worked = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="ade_fast_recipe_") as folder:
        try:
            summary = ade.training.train(Config.from_dict(dict(settings)), folder, progress=False)
        except (ade.NonFiniteError, DivergenceError) as error:
            reason = str(error).replace(f"{folder}/", "")  # which is gone by now
            return {**row, "diverged": reason, "seconds": round(time.perf_counter() - started, 1)}
        model = ade.load(folder)
    return {
        **row,
        **{name: getattr(summary, name) for name in _REPORTED},
        **_scores(model, settings["data"]),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - worked, 1),  # what a core of its own would have taken
    }


def _scores(model: ade.training.TrainedModel, name: str) -> dict[str, float]:
    """Held-out NLL on many more points, and what exp(log_prob) sums to near the data and far around it."""
    data = ade.data.toy(name).sample(SCORE_POINTS, torch.Generator().manual_seed(SCORE_SEED))
    mean, std = data.mean(0), data.std(0)
    near = (data.min(0).values - NEAR, data.max(0).values + NEAR)
    far = (mean - FAR * std, mean + FAR * std)
    return {
        "nll_large": -model.score(data),
        "mass_near": _mass(model.log_prob, *near),
        "mass_far": _mass(model.log_prob, *far),
    }


def _mass(log_prob: Callable[[torch.Tensor], torch.Tensor], low: torch.Tensor, high: torch.Tensor) -> float:
    axes = [torch.linspace(float(a), float(b), GRID) for a, b in zip(low, high, strict=True)]
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    points = torch.cartesian_prod(*axes)
    return cell * sum(float(log_prob(part).double().exp().sum()) for part in points.split(1 << 17))


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
        same = (row for row in found if row.get("resolved") == _resolved(settings))
        row = next(same, None)
        if row is not None:
            rows.append({**row, "variant": variant, "settings": settings})
    return rows


def _chosen(
    jobs: list[tuple[str, dict[str, Any]]], beginnings: Sequence[str], seeds: Sequence[int] | None
) -> list[tuple[str, dict[str, Any]]]:
    """Those of the seeds whose variants begin with one of the words, in the words' order; no words, no seeds: all."""
    jobs = [job for job in jobs if seeds is None or job[1]["seed"] in seeds]
    found = [job for word in beginnings for job in jobs if job[0].startswith(word)]
    return [job for i, job in enumerate(found) if job not in found[:i]] if beginnings else jobs


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--jobs", type=int, default=cores, help="runs side by side (default: all cores)")
    parser.add_argument("--updates", type=int, help="fewer updates, for a smoke test; needs --out")
    parser.add_argument("--only", help="one set only; needs --out")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=[],
        metavar="WORD",
        help="only the missing runs of variants whose names begin so, in this order",
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="only the missing runs of these seeds")
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
    results["settings"] = {"jobs": args.jobs, "score_points": SCORE_POINTS, "grid": GRID, "near": NEAR, "far": FAR}
    path = args.out or records.RESULTS / f"recipe-{args.table}-{records.slug(results)}.json"
    jobs = table.runs()
    earlier = [] if args.again else [path, *([] if args.out else sorted(records.RESULTS.glob("recipe-*.json")))]
    results["runs"] = _measured(earlier, jobs)
    done = [(row["variant"], row["settings"]) for row in results["runs"]]
    todo = _chosen([job for job in jobs if job not in done], args.variants, args.seeds)
    records.write_results(results, path)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with concurrent.futures.ProcessPoolExecutor(args.jobs, context) as pool:
        for finished in concurrent.futures.as_completed([pool.submit(run, *job) for job in todo]):
            row = _finite(finished.result())
            results["runs"].append(row)
            results["runs"].sort(key=lambda r: jobs.index((r["variant"], r["settings"])))
            records.write_results(results, path)
            shown = row.get("diverged") or f"NLL {row['nll_large']:.3f}, ESS {row['ess'] or 0:.2f}"
            print(f"{row['variant']}, {row['settings']}: {shown}, {row['seconds']} s", flush=True)
    print(f"written: {path}; `python bench/report.py` puts it into the documents")


if __name__ == "__main__":
    sys.exit(main())

"""Digits by unrolls of 30 steps: f's exact gradient beside the truncated and the stopped one, as many updates each.

    python bench/image_gradients.py --into runs/gradients     every row that is not in bench/results/ yet
    python bench/image_gradients.py --into runs/gradients --methods full;truncated --seeds 0

Runs of `ade-fast train --data digits` with 30 steps, 1,000 chains, an f of 16 to 64 channels and momentum_weight 0
(with which the exact gradient does see the chains' end), otherwise by the recipe; each is in a directory of its own and
goes on where it was stopped. "stopped" differs from "truncated" only where the sampler learns: in the rows "learned"
all three learn the step size. Scored as by `image_runs.py`. "ms" is process time per update, on one thread, the median
of a few updates before the run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import image_runs
import image_tables
import records
import torch

import ade_fast as ade
from ade_fast.training import Config, DivergenceError, load, train
from ade_fast.training.trainer import Trainer

_LEARNED = {"learn_step_size": True, "sampler_lr": 1e-4}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"gradient": "full"},
    "truncated": {"gradient": "truncated"},
    "full, step learned": {"gradient": "full", **_LEARNED},
    "truncated, step learned": {"gradient": "truncated", **_LEARNED},
    "stopped, step learned": {"gradient": "stopped", **_LEARNED},
}
"""Settings that differ from row to row."""
SETTINGS: dict[str, Any] = {
    "hidden": (16, 32, 32, 64, 64),
    "n_steps": 30,
    "buffer_size": 1000,
    "momentum_weight": 0.0,
}
"""That differ from the recipe's."""
_QUIET = {"tensorboard": "off", "pictures_every": 0, "test_permutations": 20, "checkpoint_every": 50}


def config(method: str, seed: int, updates: int) -> Config:
    own = {"data": "digits", "seed": seed, "updates": updates, "validate_every": updates}
    return Config.with_recipe({**own, **SETTINGS, **_QUIET, **METHODS[method]})


def is_same(row: Mapping[str, Any], method: str, seed: int, updates: int) -> bool:
    """Whether a row is what this would measure: its settings are today's."""
    wanted = config(method, seed, updates).to_dict()
    return (row["method"], row["seed"], row["settings"]) == (method, seed, wanted)


def milliseconds(settings: Config, updates: int = 6) -> float:
    """Of process time per update: the median, after two that are not counted."""
    trainer, found = Trainer(settings), []
    for _ in range(2 + updates):
        start = time.process_time()
        trainer.step()
        found.append(1e3 * (time.process_time() - start))
    return round(statistics.median(found[2:]), 1)


def measure(method: str, seed: int, updates: int, into: Path) -> dict[str, Any]:
    """One row; the run that it is of stays in `into`."""
    settings = config(method, seed, updates)
    row = {"method": method, "seed": seed, "updates": updates, "settings": settings.to_dict()}
    directory = into / f"{method.replace(', ', '-').replace(' ', '-')}-{seed}"
    row["ms"] = milliseconds(settings)
    try:
        train(settings, directory, resume=directory.exists(), progress=False, pictures=False)
    except (DivergenceError, ade.NonFiniteError) as error:
        return {**row, "skipped": str(error).split(";")[0]}
    step = load(directory).sampler.dynamics.step_size
    return {**image_runs.measure(directory), **row, "step_size": round(step.max().item(), 4)}


def run(args: argparse.Namespace) -> dict[str, Any]:
    common.limit_threads(1)
    results = common.described_run("image_gradients", torch.device("cpu"), 1)
    out = args.out or records.RESULTS / f"image_gradients-{records.slug(results)}.json"
    rows = records.read_results(out)["rows"] if out.exists() else []
    results["rows"] = rows
    for seed in args.seeds:
        for method in args.methods:
            if any(is_same(row, method, seed, args.updates) for row in rows):
                continue
            print(f"{method}, seed {seed} ...", file=sys.stderr, flush=True)
            rows[:] = [row for row in rows if (row["method"], row["seed"]) != (method, seed)]
            rows.append({**measure(method, seed, args.updates, args.into), "commit": results["commit"]})
            records.write_results(results, out)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--methods", type=lambda text: text.split(";"), default=list(METHODS), help="by semicolons")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1])
    parser.add_argument("--updates", type=int, default=600, help="of f, each (default 600)")
    parser.add_argument("--out", type=Path, help="results file (default: in bench/results/)")
    args = parser.parse_args(argv)
    if unknown := [method for method in args.methods if method not in METHODS]:
        parser.error(f"no method {unknown[0]!r}: choose from {'; '.join(METHODS)}")
    print(image_tables.gradients(run(args)))


if __name__ == "__main__":
    main()

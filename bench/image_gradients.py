"""Digits by unrolls of 30 steps: f's exact gradient beside the truncated one, as many updates each.

    python bench/image_gradients.py --into runs/gradients     every row that is not in bench/results/ yet
    python bench/image_gradients.py --into runs/gradients --methods full;truncated --seeds 0

Runs of `ade-fast train --data digits` with 30 steps, 1,000 chains, an f of 16 to 64 channels and momentum_weight 0
(with which the exact gradient does see the chains' end), otherwise by the recipe; each is in a directory of its own and
goes on where it was stopped. The stopped gradient has no rows: f is piecewise linear and has no base, so that ∇f does
not change with x except where it jumps: it is the truncated one, also where the sampler learns its step size. Scored as
by `image_runs.py`. "ms" is process time per update, on one thread, the median of a few updates before the run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import image_rows
import image_runs
import image_tables

import ade_fast as ade
from ade_fast.training import Config, DivergenceError, load, train
from ade_fast.training.trainer import Trainer

_LEARNED = {"learn_step_size": True, "sampler_lr": 1e-4}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"gradient": "full"},
    "truncated": {"gradient": "truncated"},
    "full, step learned": {"gradient": "full", **_LEARNED},
    "truncated, step learned": {"gradient": "truncated", **_LEARNED},
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


def main(argv: Sequence[str] | None = None) -> None:
    parser = image_rows.parser(__doc__, [*METHODS], [0, 1])
    parser.add_argument("--into", type=Path, required=True, help="where the runs are kept")
    args = parser.parse_args(argv)

    def row(method: str, seed: int) -> dict[str, Any]:
        return measure(method, seed, args.updates, args.into)

    print(image_tables.gradients(image_rows.by_methods("image_gradients", args, config, row)))


if __name__ == "__main__":
    main()

"""What the paper's text and its released code do otherwise, one thing at a time."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import gallery, table2
from .jobs import Job, Row
from .profiles import REDRAWN, profile
from .table2 import AS_PAPER, OURS, PAPER, UPDATES
from .targets import Options, Target, diverged, markdown, mean_and_error, of, values

_RELEASED = profile("released").settings
CHANGES: dict[str, dict[str, Any]] = {
    "the paper's settings": {},
    "f's gradient stops at the samples, (38); released toy code": {"gradient": "truncated"},
    "∇f a constant of the unroll; released image code": {"gradient": "stopped"},
    "5 updates of the sampler for one of f; released": {"sampler_steps": 5},
    "momentum drawn anew, step size 0.01; released": REDRAWN,
    "all of these but the second; released toy code": _RELEASED,
    "clips of norm 10": {"grad_clip": 10.0, "momentum_clip": 10.0},
    "a noise that is not learned": {"learn_noise_std": False},
    "HMC, five leapfrog steps of one momentum": {"dynamics": "leapfrog", "momentum_weight": 0.5, "step_size": 0.1},
    "q⁰ from N(0, 0.5²)": {"initial_std": 0.5},
    "samples not clipped": {"clip_samples": False},
    "no gradient penalty": {"gradient_penalty": 0.0},
}
"""Name -> settings that differ from the paper's."""
BY_TEXT = "the paper's settings"


def job(name: str, data: str, seed: int, budget: str) -> Job:
    """One change on one set; none is Table 2's own run."""
    plain = table2.job(AS_PAPER, data, seed, budget)
    if not CHANGES[name]:
        return plain
    updates = UPDATES[budget][AS_PAPER]
    arguments = table2.training(AS_PAPER, data, seed, budget, updates, **CHANGES[name])
    cost = plain.cost * CHANGES[name].get("sampler_steps", 1)
    return Job((data, "deviation", name, f"seed {seed}"), "training", arguments, cost)


def jobs(options: Options) -> list[Job]:
    return [
        made
        for data in options.only
        for seed in range(options.seeds)
        for made in (
            *(job(name, data, seed, options.budget) for name in CHANGES),
            table2.job(OURS, data, seed, options.budget),
        )
    ]


def lines(options: Options, rows: Mapping[str, Row]) -> list[str]:
    table = []
    for data in options.only:
        for name in (*CHANGES, "our own settings"):
            seeds = range(options.seeds)
            ours = name not in CHANGES
            wanted = [
                table2.job(OURS, data, s, options.budget) if ours else job(name, data, s, options.budget) for s in seeds
            ]
            found = of(wanted, rows)
            lost = f" ({n} diverged)" if (n := diverged(found)) else ""
            table.append(
                [
                    data,
                    name,
                    mean_and_error(values(found, "mmd2"), "+.2f", 1e3) + lost,
                    mean_and_error(values(found, "validation_mmd2"), "+.2f", 1e3),
                    mean_and_error(values(found, "mmd2_tenth"), "+.2f", 1e3),
                    mean_and_error(values(found, "nll"), ".3f"),
                ]
            )
    head = [
        "set", "changed", "MMD² × 1e3, raw samples", "on the points it was chosen by", "kernel of a tenth of the width",
        "NLL",
    ]  # fmt: skip
    printed = ", ".join(f"{name} {PAPER[name][3]:+.2f}" for name in options.only)
    return [
        f"One thing changed at a time, {options.seeds} seed(s); the paper prints MMD² × 1e3 of {printed}.",
        "",
        *markdown(head, table, left=2),
        "",
        "The fourth and the fifth column are the released code's ways to score: on the points by which the checkpoint "
        "was chosen (ours are chosen by likelihood, and have none), and with a tenth of the median bandwidth. NLL of f "
        "is within the data's range, where the paper's samples are kept.",
        "",
        "(38) and a constant ∇f are one gradient here, and their rows the same: f is piecewise linear (ReLU), so that "
        "∇f does not change with x except where it jumps.",
        "",
        "Not here, as they make another gradient or another density: the sign of the kinetic term in (21), the "
        "log-determinants of (17) and (18), and the Metropolis test of the released toy code.",
    ]


def draw(options: Options, directory: Path, rows: Mapping[str, Row]) -> dict[str, str]:
    stems = {(data, name): job(name, data, 0, options.budget).file for data in options.only for name in CHANGES}
    short = {name: textwrap.fill(name.partition(";")[0], 20) for name in CHANGES}
    gallery.save(
        directory / "deviations.png",
        directory,
        options.only,
        tuple(short.values()),
        {(data, short[name]): stem for (data, name), stem in stems.items()},
    )
    return {"deviations.png": "Raw samples over the data (seed 0), one thing changed at a time."}


TARGET = Target(
    "Deviations of paper and released code", {"quick": 1, "full": 1}, ("moons", "pinwheel"), jobs, lines, draw
)

"""Table 2: MMD² on the two-dimensional sets, and what the paper lacks: held-out likelihoods and effective sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..training import Config
from . import gallery
from .jobs import Job, Row
from .profiles import profile
from .targets import Options, Target, diverged, markdown, mean_and_error, of, values

PAPER: dict[str, tuple[float, float, float, float]] = {
    "2spirals": (5.09, 0.69, -0.45, -0.61), "Banana": (8.10, 0.88, -0.31, -0.99),
    "circles": (4.90, 0.76, -0.83, -1.13), "cos": (10.36, 0.91, 7.15, -0.55), "Cosine": (8.34, 2.15, 0.78, -1.09),
    "Funnel": (13.07, -0.92, -0.38, -0.75), "swissroll": (19.93, 1.97, 0.20, -0.36),
    "line": (10.28, 0.39, 10.5, -1.30), "moons": (41.34, 0.80, 2.21, -1.10), "Multiring": (2.01, 0.30, -0.38, -1.02),
    "pinwheel": (18.41, 3.01, -1.03, -0.95), "Ring": (9.22, 161.89, 0.12, -0.91), "Spiral": (9.48, 5.96, -0.41, -0.81),
    "Uniform": (5.88, 0.00, -1.17, -0.94),
}  # fmt: skip
"""MMD² × 1e3 of SM, NF, CD-15 and ADE as the paper prints them."""

SETS = tuple(PAPER)
OURS, AS_PAPER = "ADE", "ADE, the paper's settings"

# Our recipe's f and its evaluation; other estimators have no bound and no weights to shape it.
_OTHERS: dict[str, Any] = {"sampler_lr": 3e-3}
_FLOW_ALONE: dict[str, Any] = {
    # The steps of no length that the loop needs: q^T is q⁰.
    "flow_layers": 20, "dynamics": "leapfrog", "n_steps": 1, "step_size": 1e-6, "step_size_per": "all",
    "learn_step_size": False,
}  # fmt: skip
METHODS: dict[str, tuple[int, str, dict[str, Any]]] = {
    # name: (the paper's column, how samples are taken, settings)
    "SM": (0, "hmc", {"objective": "sm", **_OTHERS}),
    "NF, by (20)": (1, "dual", {**profile("paper").settings, **_FLOW_ALONE}),
    "NF, by likelihood": (1, "flow", {}),
    "CD-15": (2, "chain", {"objective": "cd", **_OTHERS}),
    AS_PAPER: (3, "dual", profile("paper").settings),
    OURS: (3, "dual", {}),
}
# Updates of f. The recipe's schedule fits any number; the paper does not say its own.
UPDATES = {
    "quick": {"SM": 1000, "NF, by (20)": 2000, "NF, by likelihood": 1000, "CD-15": 1000, AS_PAPER: 2000, OURS: 1000},
    "full": {
        "SM": 4000, "NF, by (20)": 20_000, "NF, by likelihood": 4000, "CD-15": 4000, AS_PAPER: 20_000, OURS: 4000,
    },
}  # fmt: skip
_COST = {"SM": 1.5, "NF, by (20)": 0.5, "NF, by likelihood": 0.7, "CD-15": 1.5, AS_PAPER: 0.6, OURS: 1.0}
_PAIR_COST = 20  # beside an update
NULL_PAIRS = 200  # of 40 a limit of two standard deviations is up to two thirds too wide, or a third too narrow
# What only costs time: nothing is looked at on the way.
_PLAIN: dict[str, Any] = {"tensorboard": "off", "pictures_every": 0, "test_permutations": 100}
# Tests make everything smaller by this.
SMALLER: dict[str, Any] = {}


def training(method: str, name: str, seed: int, budget: str, updates: int, **changes: Any) -> dict[str, Any]:
    """The arguments of `trainings.row`, all settings resolved."""
    _, sampler, own = METHODS[method]
    validate = max(1, updates // 10)
    checkpoint = min(500, validate)
    settings = {**_PLAIN, **own, "validate_every": validate, "checkpoint_every": checkpoint, **changes, **SMALLER}
    config = Config.from_dict({**settings, "data": name, "seed": seed, "updates": updates})
    return {"settings": config.to_dict(), "sampler": sampler, "sampler_alone": method == "NF, by (20)"}


def job(method: str, name: str, seed: int, budget: str) -> Job:
    """One method on one set."""
    updates = UPDATES[budget][method]
    label, cost = (name, method, f"seed {seed}"), _COST[method] * updates
    if METHODS[method][1] == "flow":
        arguments = {"data": name, "seed": seed, "updates": updates, "batch_size": Config.batch_size}
        return Job(label, "flow", arguments, cost)
    return Job(label, "training", training(method, name, seed, budget, updates), cost)


def null_job(name: str) -> Job:
    return Job((name, "null"), "null", {"data": name, "pairs": NULL_PAIRS}, _PAIR_COST * NULL_PAIRS)


def jobs(options: Options) -> list[Job]:
    """A set at a time, the null first."""
    return [
        made
        for name in options.only
        for made in (
            null_job(name),
            *(job(method, name, seed, options.budget) for seed in range(options.seeds) for method in METHODS),
        )
    ]


def lines(options: Options, rows: Mapping[str, Row]) -> list[str]:
    """Three tables: MMD², likelihoods, and whether exact samples differ from the data."""
    found = {
        (name, method): of([job(method, name, seed, options.budget) for seed in range(options.seeds)], rows)
        for name in options.only
        for method in METHODS
    }
    mmd, likelihood = [], []
    for name in options.only:
        shown = []
        for column, method in enumerate(METHODS):
            cell = mean_and_error(values(found[name, method], "mmd2"), "+.2f", 1e3) + _lost(found[name, method])
            last = column + 1 == len(METHODS) or list(METHODS.values())[column + 1][0] != METHODS[method][0]
            shown += [cell, f"{PAPER[name][METHODS[method][0]]:+.2f}"] if last else [cell]
        exact = mean_and_error(values(found[name, OURS], "exact_mmd2"), "+.2f", 1e3)
        mmd.append([name, *shown[:-1], exact, shown[-1], _verdict(options, rows, name, found[name, OURS])])
        ess = mean_and_error([100 * ess for ess in values(found[name, OURS], "ess")], ".0f")
        scored = [m for m in METHODS if m != "NF, by (20)"]
        likelihood.append([name, *(mean_and_error(values(found[name, m], "nll"), ".3f") for m in scored), ess])
    head = [
        "set", "SM", "paper", "NF, by (20)", "NF, by likelihood", "paper", "CD-15", "paper", AS_PAPER,
        "ADE, raw samples", "ADE, exact samples", "paper", "exact: within 2 s.d. of true draws",
    ]  # fmt: skip
    names = [m for m in METHODS if m != "NF, by (20)"]
    updates = ", ".join(f"{method} {count:,}" for method, count in UPDATES[options.budget].items())
    return [
        f"MMD² × 1e3, mean ± standard error over {options.seeds} seed(s); “paper” is the paper's column.",
        *_fewer(options, found),
        "",
        *markdown(head, mmd),
        "",
        "Held-out negative log-likelihood, nats, by sums over grids (of the flow: its own density); ESS in per cent.",
        "",
        *markdown(["set", *names, "ESS, ADE"], likelihood),
        "",
        f"Budget `{options.budget}`; updates: {updates}.",
    ]


def _fewer(options: Options, found: Mapping[tuple[str, str], list[Row]]) -> list[str]:
    """Where runs are missing: how many seeds each method has, so that no mean is taken for one of more."""
    made = {method: [len(found[name, method]) for name in options.only] for method in METHODS}
    if all(count == options.seeds for counts in made.values() for count in counts):
        return []
    ranges = {m: sorted({min(counts), max(counts)}) for m, counts in made.items()}
    seeds = "; ".join(f"{method} {' to '.join(map(str, ends))}" for method, ends in ranges.items())
    return ["", f"Seeds made so far, fewest to most of a set: {seeds}. “-”: none yet; without ±: one."]


def _lost(rows: list[Row]) -> str:
    count = diverged(rows)
    return f" ({count} diverged)" if count else ""


def _verdict(options: Options, rows: Mapping[str, Row], name: str, ours: list[Row]) -> str:
    """Whether the mean over seeds of exact samples' MMD² is within two standard deviations of such means of draws."""
    exact, null = values(ours, "exact_mmd2"), rows.get(null_job(name).file)
    if not exact or null is None:
        return "-"
    limit = null["mean"] + 2 * null["std"] / len(exact) ** 0.5
    return f"{'yes' if sum(exact) / len(exact) <= limit else 'no'} (≤ {1e3 * limit:+.2f})"


def draw(options: Options, directory: Path, rows: Mapping[str, Row]) -> dict[str, str]:
    """The gallery: sets × methods, of the first seed."""
    stems = {(name, method): job(method, name, 0, options.budget).file for name in options.only for method in METHODS}
    gallery.save(directory / "gallery.png", directory, options.only, tuple(METHODS), stems)
    return {"gallery.png": "Samples of each method (seed 0) over the data: raw, as the method takes them."}


TARGET = Target("Table 2", {"quick": 1, "full": 3}, SETS, jobs, lines, draw)

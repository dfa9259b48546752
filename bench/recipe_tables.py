"""The recipe's results files to markdown, for docs/recipe.md. Scores are MMD² × 10³."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

Run = Mapping[str, Any]
Rows = tuple[list[str], list[list[str]]]

LEVEL = 0.05


def _score(value: float | None) -> str:
    return "diverged" if value is None else f"{1e3 * value:.2f}"


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _in_order(runs: Sequence[Run]) -> list[Run]:
    """Runs end in any order; tables do not depend on it."""
    return sorted(runs, key=lambda r: (r["settings"]["data"].lower(), r["settings"]["seed"]))


def sets(runs: Sequence[Run]) -> Rows:
    """One row per set: the run's own test on 1000 points, and the two scores on many more."""
    head = ["set", "MMD², held-out", "p", "MMD², 4 × 3000 points", "fine MMD²", "update", "seconds"]
    rows = [
        [r["settings"]["data"], "diverged", *["-"] * 4, f"{r['seconds']:.0f}"]
        if "diverged" in r
        else [
            r["settings"]["data"],
            _score(r["mmd2"]),
            f"{r['p_value']:.2f}",
            _score(r["mmd2_large"]),
            _score(r["mmd2_fine"]),
            f"{r['chosen_update']}",
            f"{r['seconds']:.0f}",
        ]
        for r in _in_order(runs)
    ]
    return head, rows


def seeds(runs: Sequence[Run]) -> Rows:
    """One row per set: p of every seed, and how many are not rejected."""
    runs = _in_order(runs)
    numbers = _unique(r["settings"]["seed"] for r in runs)
    rows = []
    for name in _unique(r["settings"]["data"] for r in runs):
        of_set = {r["settings"]["seed"]: r for r in runs if r["settings"]["data"] == name}
        values = [of_set.get(seed, {}).get("p_value") for seed in numbers]
        held = sum(p is not None and p >= LEVEL for p in values)
        rows.append([name, *("-" if p is None else f"{p:.2f}" for p in values), f"{held} of {len(values)}"])
    return ["set: p", *(f"seed {n}" for n in numbers), "not rejected at 5 %"], rows


def variants(runs: Sequence[Run]) -> Rows:
    """One row per variant, two columns per set: mean over seeds of the score and of the fine score."""
    ordered = _in_order(runs)
    names = _unique(r["settings"]["data"] for r in ordered)
    n_seeds = len(_unique(r["settings"]["seed"] for r in ordered))
    head = [
        "",
        *(f"{name}{suffix}" for name in names for suffix in ("", ", fine")),
        f"rejected, of {n_seeds} seeds each",
    ]
    rows = []
    for variant in _unique(r["variant"] for r in runs):
        cells, rejected = [], []
        for name in names:
            of_cell = [r for r in ordered if r["variant"] == variant and r["settings"]["data"] == name]
            cells += [_mean(of_cell, "mmd2_large"), _mean(of_cell, "mmd2_fine")]
            rejected.append(str(sum("diverged" in r or r["p_value"] < LEVEL for r in of_cell)))
        rows.append([variant, *cells, " + ".join(rejected)])
    return head, rows


def _mean(runs: Sequence[Run], key: str) -> str:
    values = [r[key] for r in runs if r.get(key) is not None]
    diverged = sum("diverged" in r for r in runs)
    text = "-" if not values else f"{1e3 * mean(values):.2f}"
    return text + (f" ({diverged} diverged)" if diverged else "")


TABLES: dict[str, Callable[[Sequence[Run]], Rows]] = {
    "recipe-sets": sets,
    "recipe-seeds": seeds,
    "recipe-gradients": variants,
    "recipe-ablation": variants,
}

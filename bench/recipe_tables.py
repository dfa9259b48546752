"""The recipe's results files to markdown, for docs/recipe.md. NLL in nats; MMD² × 10³."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

Run = Mapping[str, Any]
Rows = tuple[list[str], list[list[str]]]

LEVEL = 0.01


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _in_order(runs: Sequence[Run]) -> list[Run]:
    """Runs end in any order; tables do not depend on it."""
    return sorted(runs, key=lambda r: (r["settings"]["data"].lower(), r["settings"]["seed"]))


def _of(runs: Sequence[Run], key: str) -> list[float]:
    return [r[key] for r in runs if r.get(key) is not None]


def _spread(runs: Sequence[Run], key: str, digits: str, scale: float = 1.0) -> str:
    """Mean over seeds, and their standard deviation where there are several."""
    values = [scale * v for v in _of(runs, key)]
    diverged = sum("diverged" in r for r in runs)
    text = "-" if not values else f"{mean(values):{digits}}"
    text += f" ± {stdev(values):{digits}}" if len(values) > 1 else ""
    return text + (f" ({diverged} diverged)" if diverged else "")


def _entropy(runs: Sequence[Run]) -> str:
    values = _of(runs, "entropy")
    if not values:
        return "none"
    return f"{values[0]:.3f}" + ("" if runs[0].get("entropy_exact") else " (est.)")


def _excess(runs: Sequence[Run]) -> str:
    found = [r["nll_large"] - r["entropy"] for r in runs if r.get("entropy") is not None]
    return f"{mean(found):+.3f}" if found else "-"


def _held(runs: Sequence[Run], key: str) -> str:
    """How many of the tests do not reject."""
    return f"{sum(p >= LEVEL for p in _of(runs, key))} of {len(runs)}"


def sets(runs: Sequence[Run]) -> Rows:
    """One row per set, over its seeds."""
    runs = _in_order(runs)
    head = [
        "set", "NLL", "data's entropy", "NLL − entropy", "best c", "ESS", "ESS of q⁰", "MMD², raw", "MMD², exact",
        "exact not rejected at 1 %", "mass near, far", "seconds",
    ]  # fmt: skip
    rows = []
    for name in _unique(r["settings"]["data"] for r in runs):
        group = [r for r in runs if r["settings"]["data"] == name]
        masses = [f"{mean(_of(group, key)):.3f}" if _of(group, key) else "-" for key in ("mass_near", "mass_far")]
        rows.append(
            [
                name,
                _spread(group, "nll_large", ".3f"),
                _entropy(group),
                _excess(group),
                _spread(group, "best_temperature", ".2f"),
                _spread(group, "ess", ".2f"),
                _spread(group, "initial_ess", ".2f"),
                _spread(group, "mmd2", ".2f", 1e3),
                _spread(group, "exact_mmd2", ".2f", 1e3),
                _held(group, "exact_p_value"),
                ", ".join(masses),
                _spread(group, "seconds", ".0f"),
            ]
        )
    return head, rows


def variants(runs: Sequence[Run], seconds: bool = False) -> Rows:
    """One row per variant; NLL, effective sample sizes, and seconds if asked for, for each set, over the seeds. Seconds
    are a core's, of those runs that say them: others waited for what else the machine had to do."""
    ordered = _in_order(runs)
    names = _unique(r["settings"]["data"] for r in ordered)
    whats = ("NLL", "ESS", "ESS of q⁰", *(("seconds of a core",) if seconds else ()))
    head = ["", *(f"{name}: {what}" for name in names for what in whats)]
    rows = []
    for variant in _unique(r["variant"] for r in runs):
        cells = []
        for name in names:
            group = [r for r in ordered if r["variant"] == variant and r["settings"]["data"] == name]
            cells += [
                _spread(group, "nll_large", ".3f"),
                _spread(group, "ess", ".2f"),
                _spread(group, "initial_ess", ".2f"),
                *((_spread(group, "cpu_seconds", ".0f"),) if seconds else ()),
            ]
        rows.append([variant, *cells])
    return head, rows


TABLES: dict[str, Callable[[Sequence[Run]], Rows]] = {
    "recipe-sets": sets,
    "recipe-gradients": variants,
    "recipe-ablation": variants,
    "recipe-dynamics": functools.partial(variants, seconds=True),
}

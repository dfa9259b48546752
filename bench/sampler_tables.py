"""The samplers' results file to markdown, for docs/likelihood.md. Needs nothing but Python."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import tables

LABELS = {
    "leapfrog": "leapfrog, λ = 1",
    "mismatched": "leapfrog, λ = ½",
    "tempered": "tempered momenta",
    "annealed": "**annealed leapfrog**",
}
TARGETS = {"mlp": "MLP", "mixture": "mixture"}
ALONE = "none"
"""The sampler with no steps: q⁰'s own row, the first column of all others."""


def _ess(runs: Sequence[dict[str, Any]]) -> str:
    """Median, and the lowest where that is another figure, of all draws of all seeds."""
    values = [ess for run in runs for ess in run.get("ess", [])]
    shown = [f"{v:.2f}" for v in (median(values), min(values))] if values else ["-"]
    diverged = sum("diverged" in run for run in runs)
    text = " / ".join(dict.fromkeys(shown))
    return f"{text} ({diverged} diverged)" if diverged else text


def _worst_error(runs: Sequence[dict[str, Any]]) -> str:
    """The largest |log Z - the known one|, in standard errors."""
    errors = [
        abs(error) / standard_error
        for run in runs
        for error, standard_error in zip(run.get("log_z_error", []), run.get("log_z_standard_error", []), strict=True)
    ]
    return f"{max(errors):.1f}" if errors else "-"


def summary(results: tables.Results) -> str:
    """Effective sample size of each sampler by T, a table that ends with how far off log Z was at most."""
    cases = results["cases"]
    n_steps = sorted({case["n_steps"] for case in cases} - {0})
    head = ["f; q⁰; sampler", "q⁰ alone", *(f"T = {t}" for t in n_steps), "log Z, worst error in its s.e."]
    rows = []
    for target, initial in dict.fromkeys((case["target"], case["initial"]) for case in cases):
        here = [case for case in cases if (case["target"], case["initial"]) == (target, initial)]
        alone = [case for case in here if case["sampler"] == ALONE]
        for sampler, label in LABELS.items():
            runs = [case for case in here if case["sampler"] == sampler]
            if runs:
                by_steps = (_ess([run for run in runs if run["n_steps"] == t]) for t in n_steps)
                rows.append([f"{TARGETS[target]}; {initial}; {label}", _ess(alone), *by_steps, _worst_error(runs)])
    settings, seeds = results["settings"], len({case["seed"] for case in cases})
    commits = ", ".join(sorted({case["commit"] for case in cases}))
    how = (
        f"Effective sample size after {settings['steps']} steps of Adam, by {settings['draws']} draws of "
        f"{settings['samples']:,} samples, {seeds} seed{'s' if seeds > 1 else ''}: median / lowest of the draws."
    )
    return f"{tables.table(head, rows)}\n\n{how} {tables.origin(results)} Rows made at {commits}."

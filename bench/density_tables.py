"""The rows of `bench/density.py` to markdown, for docs/density.md. Nats a row; lower is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import tables

Run = Mapping[str, Any]

REFERENCE = "gaussian mixture"
UNRELIABLE = 0.1
"""Standard error of log Z beyond which a score is marked: below 100 effective samples weights say little."""


def show(results: tables.Results) -> str:
    """The scores, what each run chose and what its normaliser rests on, why what is missing is missing, the origin."""
    runs = results["runs"]
    missing = [
        f"- {run['set']}, {run['method']}, seed {run['seed']}: {run['skipped']}" for run in runs if "skipped" in run
    ]
    commits = ", ".join(sorted({run["commit"] for run in runs}))
    parts = [scores(runs), details(runs)]
    parts += ["Not measured:\n\n" + "\n".join(missing)] if missing else []
    return "\n\n".join([*parts, f"{tables.origin(results)} Runs made at {commits}."])


def scores(runs: Sequence[Run]) -> str:
    """One row per set and method: every seed with the standard error over its test rows, marked where its log Z is
    `UNRELIABLE`, the mean, and the mean difference from `REFERENCE` on the same splits."""
    runs = [run for run in runs if "skipped" not in run]
    seeds = sorted({run["seed"] for run in runs})
    head = ["set", "method", *(f"seed {seed}" for seed in seeds), "mean", "per dimension", f"minus {REFERENCE}"]
    rows = []
    for name, method in dict.fromkeys((run["set"], run["method"]) for run in runs):
        of_set = [run for run in runs if run["set"] == name]
        found = {run["seed"]: run for run in of_set if run["method"] == method}
        reference = {run["seed"]: run["nll"] for run in of_set if run["method"] == REFERENCE}
        average = mean(run["nll"] for run in found.values())
        paired = [run["nll"] - reference[seed] for seed, run in found.items() if seed in reference]
        cells = [_score(found[seed]) if seed in found else "-" for seed in seeds]
        dim = next(iter(found.values()))["dim"]
        difference = f"{mean(paired):+.2f}" if paired and method != REFERENCE else "-"
        rows.append([f"{name}, d = {dim}", method, *cells, f"{average:.2f}", f"{average / dim:.3f}", difference])
    return tables.table(head, rows)


def _score(run: Run) -> str:
    mark = " †" if (run["log_z_se"] or 0.0) > UNRELIABLE else ""
    return f"{run['nll']:.2f} ± {run['nll_se']:.2f}{mark}"


def details(runs: Sequence[Run]) -> str:
    """One row per set and method: what was chosen, ESS and standard error of log Z (the worst seed's), seconds."""
    runs = [run for run in runs if "skipped" not in run]
    rows = []
    for name, method in dict.fromkeys((run["set"], run["method"]) for run in runs):
        found = [run for run in runs if (run["set"], run["method"]) == (name, method)]
        weighted = [run for run in found if run["ess"] is not None]
        ess = f"{min(run['ess'] for run in weighted):.2g}" if weighted else "-"
        error = f"{max(run['log_z_se'] for run in weighted):.1g}" if weighted else "-"
        chosen = "; ".join(run["chosen"] for run in found if run["chosen"])
        seconds = tables.number(mean(run["seconds"] for run in found))
        rows.append([name, method, seconds, ess, error, chosen or "-"])
    return tables.table(["set", "method", "seconds", "least ESS", "log Z ±, at most", "chosen"], rows)

"""The bounds' results file to markdown. Needs nothing but Python."""

from __future__ import annotations

import tables


def summary(results: tables.Results) -> str:
    """Milliseconds of each update, and over that with (20)'s bound."""
    names = list(results["cases"][0]["peers"])
    rows = []
    for case in results["cases"]:
        found = case["peers"]
        over = {name: tables.ratio(found, "ms", name, "elbo") for name in names}
        rows.append([f"`{case['case']}`", *(f"{tables.ms(found[n])} ({tables.times(over[n])})" for n in names)])
    return f"{tables.table(['one update, ms', *names], rows)}\n\n{tables.origin(results)}"

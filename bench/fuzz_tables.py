"""The fuzzer's results file to markdown. Needs nothing but Python."""

from __future__ import annotations

import tables


def summary(results: tables.Results) -> str:
    """How many cases, how far the worst is off, and how many failed."""
    seeds = results["seeds"]
    row = [
        results["settings"]["dtype"],
        f"{sum(of['cases'] for of in seeds):,}",
        str(len(seeds)),
        f"{max(of['worst'] for of in seeds):.1e}",
        str(sum("failing" in of for of in seeds)),
    ]
    head = ["fuzz cases in", "different cases", "seeds", "worst relative error", "seeds that failed"]
    return f"{tables.table(head, [row])}\n\n{tables.origin(results)}"

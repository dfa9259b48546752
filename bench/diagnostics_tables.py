"""The results of bench/diagnostics.py to markdown. Needs nothing but Python."""

from __future__ import annotations

import tables


def show(results: tables.Results) -> str:
    """Milliseconds without diagnostics, and how many times as long it takes with them, and with them read."""
    head = ["forward + backward, ms", "without", "asked for", "read every time", "asked for, lowest", "read, lowest"]
    rows = []
    for case in results["cases"]:
        ratios = [
            tables.times(case[ways][how] / case["without"][how], ".3f")
            for how in ("median", "lowest")
            for ways in ("asked", "read")
        ]
        rows.append([f"`{case['case']}`", tables.number(case["without"]["median"]), *ratios])
    return f"{tables.table(head, rows)}\n\n{tables.origin(results)}"

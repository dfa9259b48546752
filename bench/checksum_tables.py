"""The results of bench/checksum.py to markdown. Needs nothing but Python."""

from __future__ import annotations

import tables


def show(results: tables.Results) -> str:
    head = ["iteration", "ms of the thread", "of which comparing, median", "most"]
    rows = [
        [f"`{case['case']}`", f"{case['ms']:.0f}", f"{100 * case['share']:.2f} %", f"{100 * case['most']:.2f} %"]
        for case in results["cases"]
    ]
    return f"{tables.table(head, rows)}\n\n{tables.origin(results)}"

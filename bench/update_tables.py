"""The results of bench/update.py to markdown. Needs nothing but Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tables
from tables import LABELS, Entry, Results

Case = Mapping[str, Any]
OURS = "ade-auto"


def summary(results: Results) -> str:
    """For README.md: milliseconds of each peer and how many times faster ade_fast is."""
    return f"{_times(results)}\n\n{tables.origin(results)}"


def show(results: Results) -> str:
    """Milliseconds of each peer and how many times faster ade_fast is, where its time goes, and what is missing."""
    flat = [(f"`{case['case']}`", case["peers"]) for case in results["cases"]]
    parts = [_times(results), *_parts(results), _errors(results), *tables.compilation(flat)]
    return "\n\n".join([*parts, *tables.not_measured(flat), *tables.left_out(results), tables.origin(results)])


def _times(results: Results) -> str:
    names = tables.measured([case["peers"] for case in results["cases"]])
    others = [name for name in names if name != OURS]
    processes = results["cases"][0].get("processes")
    cell = _with_spread if processes else tables.ms
    rows = []
    for case in results["cases"]:
        found = case["peers"]
        faster = [tables.times(tables.ratio(found, "ms", name, OURS)) for name in others]
        rows.append([f"`{case['case']}`", *tables.cells(found, names, cell), *faster])
    of = f"{processes} processes (least-most)" if processes else f"{results['settings']['runs']}"
    head = [f"one update, ms, median of {of}", *(LABELS[name] for name in names)]
    return tables.table([*head, *(f"ade_fast vs {LABELS[name]}" for name in others)], rows)


def _with_spread(entry: Entry) -> str:
    if "ms" not in entry:
        return tables.ms(entry)
    least, most = min(entry["ms_all"]), max(entry["ms_all"])
    return f"{tables.ms(entry)} ({tables.number(least)}-{tables.number(most)})"


def _parts(results: Results) -> list[str]:
    """The update of ade_fast over its unroll alone, and the parts of it in milliseconds; none: no table."""
    rows = []
    for case in results["cases"]:
        found, whole = case.get("parts"), case["peers"].get(OURS, {}).get("ms")
        if found is None:
            continue
        penalised = found.get("values, penalty")
        penalty = 0.0 if penalised is None else penalised - found["values"]
        known = [found["unroll"], found["q0"], found["values"], penalty, found["metrics"], found["optimizers"]]
        cells = [tables.number(ms) for ms in known]
        cells[3] = "-" if penalised is None else cells[3]
        over = tables.times(whole / found["unroll"])
        rows.append([f"`{case['case']}`", tables.number(whole), over, *cells, tables.number(whole - sum(known))])
    head = ["ade_fast's update, ms", "whole", "over the unroll", "unroll", "q⁰", "f at data and samples", "penalty"]
    return [tables.table([*head, "metrics of the weights", "optimizers", "the rest"], rows)] if rows else []


def _errors(results: Results) -> str:
    rows = [case["peers"] for case in results["cases"]]
    worst = {
        name: max((row[name]["error"] for row in rows if "error" in row.get(name, {})), default=None)
        for name in tables.measured(rows)
    }
    found = [f"{LABELS[name]} {error:.0e}" for name, error in worst.items() if error is not None]
    return f"Largest relative error of a metric or of a player's gradient, against float64: {', '.join(found)}."

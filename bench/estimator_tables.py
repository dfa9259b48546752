"""The results of bench/estimators.py to markdown. Needs nothing but Python."""

from __future__ import annotations

import tables

PEERS = {"eager": "eager", "jax": "JAX jit + scan"}


def show(results: tables.Results) -> str:
    """Milliseconds of one update by everyone, and how many times faster than each peer ade_fast's is."""
    head = ["one update, ms", *PEERS.values(), "**ade_fast**", *(f"vs {label}" for label in PEERS.values())]
    rows = []
    for case in results["cases"]:
        found = case["peers"]
        times = [tables.ms(found[name]) for name in (*PEERS, "ade")]
        rows.append([f"`{case['case']}`", *times, *(tables.times(tables.ratio(found, "ms", p, "ade")) for p in PEERS)])
    return f"{tables.table(head, rows)}\n\n{tables.origin(results)}"

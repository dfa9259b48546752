"""The results of bench/estimators.py to markdown. Needs nothing but Python."""

from __future__ import annotations

import tables

PEERS = {"eager": "eager", "jax": "JAX jit + scan"}


def show(results: tables.Results) -> str:
    """Milliseconds of one update by everyone and of its products alone, and how many times faster ade_fast's is."""
    versus = (f"vs {label}" for label in PEERS.values())
    head = ["one update, ms", *PEERS.values(), "its products, at a large one's rate", "**ade_fast**", *versus]
    rows = []
    for case in results["cases"]:
        found = case["peers"]
        times = [tables.ms(found[name]) for name in PEERS]
        products = tables.number(1e3 * case["gflop"] / case["matmul_gflops"])
        ratios = (tables.times(tables.ratio(found, "ms", p, "ade")) for p in PEERS)
        rows.append([f"`{case['case']}`", *times, products, tables.ms(found["ade"]), *ratios])
    return f"{tables.table(head, rows)}\n\n{tables.origin(results)}"

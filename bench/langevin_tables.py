"""The results of bench/langevin.py to markdown. Needs nothing but Python."""

from __future__ import annotations

import tables

PEERS = {"eager-t1": "eager", "jax": "JAX jit + scan"}


def show(results: tables.Results) -> str:
    """Milliseconds of both unrolls, the one over the other, and how many times faster than each peer both are."""
    head = [
        "forward + backward, ms",
        "leapfrog",
        "**Langevin**",
        "Langevin over leapfrog",
        *(f"{which} vs {label}" for label in PEERS.values() for which in ("leapfrog", "Langevin")),
    ]
    rows = []
    for case in results["cases"]:
        found = case["peers"]
        leads = [
            tables.times(tables.ratio(found, "ms", before + peer, before + "ade-auto"))
            for peer in PEERS
            for before in ("leapfrog ", "")
        ]
        times = [tables.ms(found[name]) for name in ("leapfrog ade-auto", "ade-auto")]
        over = tables.times(tables.ratio(found, "ms", "ade-auto", "leapfrog ade-auto"))
        rows.append([f"`{case['case']}`", *times, over, *leads])
    return f"{tables.table(head, rows)}\n\n{tables.origin(results)}"

"""The results of bench/mlp.py to markdown: `summary` for README.md, `full` for bench/README.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tables
from tables import LABELS, Entry, Results

Pass = Mapping[str, Any]

FORWARD, BOTH = "forward", "forward+backward"
TITLES = {FORWARD: "forward alone", BOTH: "forward + backward"}


def gflops(measured: Pass, name: str) -> float | None:
    """Nominal work per second of a peer."""
    entry = measured["peers"].get(name, {})
    return 1e3 * measured["gflop"] / entry["ms"] if "ms" in entry else None


def fraction(measured: Pass, name: str) -> float | None:
    """The same, over what the machine's matrix product leaves of its own rate where `products` of them make one."""
    rate = gflops(measured, name)
    return None if rate is None else rate * measured["products"] / measured["matmul_gflops"]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _rate(measured: Pass, name: str) -> str:
    value = gflops(measured, name)
    return "-" if value is None else tables.number(value)


def _both(case: Mapping[str, Any], cell: Callable[[Pass], str]) -> str:
    found = case["passes"]
    return " / ".join(cell(found[which]) if which in found else "-" for which in (FORWARD, BOTH))


def _names(results: Results) -> list[str]:
    return tables.measured([measured["peers"] for case in results["cases"] for measured in case["passes"].values()])


def _product(results: Results) -> str:
    what = "float32 2048³" if results["device"] == "cpu" else "bfloat16 8192³"
    return f"matrix product ({what}), GFLOP/s"


def summary(results: Results) -> str:
    """The fused unroll alone: its time, how many times faster than each peer, and how near to the machine's rate."""
    timed = {
        name for case in results["cases"] for name, entry in case["passes"][BOTH]["peers"].items() if "ms" in entry
    }
    others = [name for name in _names(results) if name in timed and not name.startswith("ade-")]
    rows = []
    for case in results["cases"]:
        if BOTH not in case["passes"]:
            continue
        measured = case["passes"][BOTH]
        faster = [tables.times(tables.ratio(measured["peers"], "ms", name, "ade-auto")) for name in others]
        time = tables.ms(measured["peers"].get("ade-auto", {}))
        rows.append([f"`{case['case']}`", time, *faster, _percent(fraction(measured, "ade-auto"))])
    head = [
        "forward + backward",
        f"{LABELS['ade-auto']}, ms",
        *(f"vs {LABELS[name]}" for name in others),
        "of the matrix rate",
    ]
    return f"{tables.table(head, rows)}\n\n{tables.origin(results)}"


def full(results: Results) -> str:
    """Everything that was measured, and why what is missing is missing."""
    names = _names(results)
    cases, runs = results["cases"], results["settings"]["runs"]
    labels = [LABELS[name] for name in names]
    others = [name for name in names if not name.startswith("ade-")]
    parts = [tables.origin(results)]

    def rows(cells: Callable[[Mapping[str, Any]], list[str]]) -> list[list[str]]:
        return [[f"`{case['case']}`", *cells(case)] for case in cases]

    nothing: Mapping[str, Any] = {"peers": {}}
    for which, title in TITLES.items():
        if not any(which in case["passes"] for case in cases):
            continue
        times = rows(lambda c, w=which: tables.cells(c["passes"].get(w, nothing)["peers"], names, tables.ms))
        parts.append(tables.table([f"{title}, ms, median of {runs}", *labels], times))

    def faster(case: Mapping[str, Any], name: str) -> str:
        return _both(case, lambda p: tables.times(tables.ratio(p["peers"], "ms", name, "ade-auto")))

    if others and "ade-auto" in names:
        head = ["ade_fast, times faster than (forward / forward + backward)", *(LABELS[name] for name in others)]
        parts.append(tables.table(head, rows(lambda c: [faster(c, name) for name in others])))

    work = [
        "nominal GFLOP/s (forward / forward + backward)",
        *labels,
        _product(results),
        "ade_fast, of that rate",
    ]
    parts.append(
        tables.table(
            work,
            rows(
                lambda c: [
                    *(_both(c, lambda p, n=name: _rate(p, n)) for name in names),
                    _both(c, lambda p: tables.number(p["matmul_gflops"])),
                    _both(c, lambda p: _percent(fraction(p, "ade-auto"))),
                ]
            ),
        )
    )

    def over_eager(entry: Entry) -> str:
        return tables.times(entry.get("error_over_eager"), ".2g")

    error = rows(
        lambda c: [
            *tables.cells(c["passes"].get(BOTH, nothing)["peers"], names, tables.error),
            _both(c, lambda p: over_eager(p["peers"].get("ade-auto", {}))),
        ]
    )
    head = ["relative error, forward + backward", *labels, "ade_fast over eager T+1 (forward / forward + backward)"]
    parts.append(tables.table(head, error))
    flat = [
        (f"`{case['case']}`, {TITLES[which]}", measured["peers"])
        for case in cases
        for which, measured in case["passes"].items()
    ]
    parts += tables.compilation(flat) + tables.not_measured(flat) + tables.left_out(results) + _unfused(flat)
    return "\n\n".join(parts)


def _unfused(rows: list[tuple[str, tables.Row]]) -> list[str]:
    found = [label for label, row in rows if row.get("ade-auto", {}).get("field", "mlp") != "mlp"]
    return [f"ade_fast without its MLP kernels, on autograd's gradients: {', '.join(found)}"] if found else []

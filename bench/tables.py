"""How every table writes its rows, numbers and peers. Needs nothing but Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]
Entry = Mapping[str, Any]
Row = Mapping[str, Entry]
"""What was measured of each peer, by its name."""

LABELS = {
    "eager-2t": "eager, 2T",
    "eager-t1": "eager, T+1",
    "compile": "torch.compile",
    "cuda-graph": "CUDA graph",
    "jax": "JAX jit + scan",
    "ade-auto": "**ade_fast**",
    "ade-graph": "ade_fast `graph`",
    "ade-states": "ade_fast `states`",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def number(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ms(entry: Entry) -> str:
    if "ms" in entry:
        return number(entry["ms"])
    return "wrong" if entry.get("skipped", "").startswith("wrong") else "-"


def error(entry: Entry) -> str:
    return "-" if "error" not in entry else f"{entry['error']:.0e}"


def ratio(row: Row, key: str, of: str, by: str) -> float | None:
    """`key` of peer `of` over that of peer `by`; None where one was not measured."""
    over, under = (row.get(name, {}).get(key) for name in (of, by))
    return None if over is None or under is None else over / under


def times(value: float | None, digits: str = ".2f") -> str:
    return "-" if value is None else f"{value:{digits}}×"


def measured(rows: Sequence[Row]) -> list[str]:
    """The peers in `rows`, in the order of `LABELS`."""
    found = {name for row in rows for name in row}
    return [name for name in LABELS if name in found]


def compilation(rows: Sequence[tuple[str, Row]]) -> list[str]:
    """A table of compile times, if any: `rows` are (name as markdown, peers)."""
    names = measured([{name: entry for name, entry in row.items() if "compile_s" in entry} for _, row in rows])
    if not names:
        return []
    seconds = [[label, *cells(row, names, lambda e: str(e.get("compile_s", "-")))] for label, row in rows]
    return [table(["compilation, s", *(LABELS[name] for name in names)], seconds)]


def not_measured(rows: Sequence[tuple[str, Row]]) -> list[str]:
    """A list of what is missing and why, if anything is: `rows` are (name as markdown, peers)."""
    missing: dict[tuple[str, str], list[str]] = {}
    for label, row in rows:
        for name in measured([row]):
            if "skipped" in row[name]:
                missing.setdefault((name, row[name]["skipped"]), []).append(label)
    lines = [
        f"- {'everywhere' if len(labels) == len(rows) else '; '.join(labels)}, {LABELS[name]}: {why}"
        for (name, why), labels in missing.items()
    ]
    return ["Not measured:\n\n" + "\n".join(lines)] if lines else []


def left_out(results: Results) -> list[str]:
    """The cases that were not begun for want of time, if any."""
    names = results.get("left_out", [])
    return [f"Out of time, not begun: {', '.join(f'`{name}`' for name in names)}"] if names else []


def origin(results: Results) -> str:
    """One line: machine, versions, commit, command, date."""
    machine, versions = results["machine"], results["versions"]
    hardware = f"{machine['cpu']}, {machine['isa']}, {machine['threads']} of {machine['cores']} cores"
    if "gpu" in machine:
        hardware = f"{machine['gpu']} ({hardware})"
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{hardware}; {software}; commit {results['commit']}; `{results['command']}`, {results['date']}, "
        f"load {machine['load']} at the start."
    )


def cells(row: Row, names: Sequence[str], cell: Callable[[Entry], str]) -> list[str]:
    """A cell per peer; "-" where it was not measured."""
    return [cell(row[name]) if name in row else "-" for name in names]

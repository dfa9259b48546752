"""Results files to markdown, and into the documents that quote them.

    python bench/report.py            rewrites the marked blocks of the documents
    python bench/report.py --check    fails, naming them, if a block is not what bench/results/ says

A block stands between ``<!-- bench:NAME -->`` and ``<!-- /bench -->``; NAME is a key of `BLOCKS`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import recipe_tables
import records

Results = Mapping[str, Any]
Entry = Mapping[str, Any]

LABELS = {
    "eager-2t": "eager, 2T",
    "eager-t1": "eager, T+1",
    "compile": "torch.compile",
    "jax": "JAX jit + scan",
    "ade-auto": "**ade_fast**",
    "ade-graph": "ade_fast `graph`",
    "ade-states": "ade_fast `states`",
}
DOCUMENTS = ("README.md", "bench/README.md", "docs/recipe.md")
_MARK = re.compile(r"(<!-- bench:([\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def _number(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ms(entry: Entry) -> str:
    if "ms" in entry:
        return _number(entry["ms"])
    return "wrong" if entry["skipped"].startswith("wrong") else "-"


def _mb(n_bytes: int | None) -> str:
    return "-" if n_bytes is None else _number(n_bytes / 1e6)


def _ratio(case: Mapping[str, Any], key: str, of: str, by: str) -> float | None:
    """`key` of peer `of` over that of peer `by`; None where one was not measured."""
    over, under = (case["peers"].get(name, {}).get(key) for name in (of, by))
    return None if over is None or under is None else over / under


def _times(ratio: float | None, digits: str = ".2f") -> str:
    return "-" if ratio is None else f"{ratio:{digits}}×"


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


def _peers(results: Results) -> list[str]:
    measured = {name for case in results["cases"] for name in case["peers"]}
    return [name for name in LABELS if name in measured]


def summary(results: Results) -> str:
    """For README.md: milliseconds of each peer, speed against eager T+1, bytes kept for the backward pass."""
    names = [name for name in _peers(results) if name not in ("ade-graph", "ade-states")]
    rows = []
    for case in results["cases"]:
        found = case["peers"]
        times = [_ms(found[name]) for name in names]
        speed = _times(_ratio(case, "ms", "eager-t1", "ade-auto"))
        kept = [_mb(found.get(name, {}).get("kept_bytes")) for name in ("eager-t1", "ade-states")]
        rows.append([f"`{case['case']}`", *times, speed, " → ".join(kept)])
    head = [
        "forward + backward, ms",
        *(LABELS[name] for name in names),
        "vs eager T+1",
        'MB kept: eager T+1 → `memory="states"`',
    ]
    return f"{_table(head, rows)}\n\n{origin(results)}"


def full(results: Results) -> str:
    """For bench/README.md: everything that was measured, and why what is missing is missing."""
    names = _peers(results)
    runs = results["settings"]["runs"]

    def rows(cell: Callable[[Entry], str], *more: Callable[[Mapping[str, Any]], str]) -> list[list[str]]:
        return [
            [f"`{c['case']}`", *(cell(c["peers"][n]) for n in names), *(extra(c) for extra in more)]
            for c in results["cases"]
        ]

    labels = [LABELS[name] for name in names]
    speed = _table(
        [f"ms, median of {runs}", *labels, "ade_fast vs eager T+1"],
        rows(_ms, lambda c: _times(_ratio(c, "ms", "eager-t1", "ade-auto"))),
    )
    peak = _table(["peak MB", *labels], rows(lambda e: _mb(e.get("peak_bytes"))))
    kept = _table(
        ["MB kept for the backward pass", *labels, "eager T+1 over `states`"],
        rows(
            lambda e: _mb(e.get("kept_bytes")),
            lambda c: _times(_ratio(c, "kept_bytes", "eager-t1", "ade-states"), ".0f"),
        ),
    )
    error = _table(["relative error", *labels], rows(lambda e: "-" if "error" not in e else f"{e['error']:.0e}"))
    parts = [origin(results), speed, peak, kept, error]
    compiled = [name for name in names if any("compile_s" in c["peers"][name] for c in results["cases"])]
    if compiled:
        parts.append(
            _table(
                ["compilation, s", *(LABELS[name] for name in compiled)],
                [
                    [f"`{c['case']}`", *(str(c["peers"][n].get("compile_s", "-")) for n in compiled)]
                    for c in results["cases"]
                ],
            )
        )
    missing = [
        f"- `{case['case']}`, {LABELS[name]}: {case['peers'][name]['skipped']}"
        for case in results["cases"]
        for name in names
        if "skipped" in case["peers"][name]
    ]
    if missing:
        parts.append("Not measured:\n\n" + "\n".join(missing))
    return "\n\n".join(parts)


def _recipe(name: str) -> Callable[[Results], str]:
    def show(results: Results) -> str:
        commits = ", ".join(sorted({run["commit"] for run in results["runs"]}))
        return f"{_table(*recipe_tables.TABLES[name](results['runs']))}\n\n{origin(results)} Runs made at {commits}."

    return show


# Block name -> (benchmark whose results it shows, how one results file is shown).
BLOCKS: dict[str, tuple[str, Callable[[Results], str]]] = {
    "dynamics": ("dynamics", summary),
    "dynamics-full": ("dynamics", full),
    **{name: (name, _recipe(name)) for name in recipe_tables.TABLES},
}


def block(name: str, folder: Path) -> str:
    """The text of a block: every results file of its benchmark, in order of their names."""
    if name not in BLOCKS:
        raise ValueError(f"no block {name!r}: there are {', '.join(BLOCKS)}")
    benchmark, show = BLOCKS[name]
    files = sorted(folder.glob(f"{benchmark}-*.json"))
    if not files:
        raise FileNotFoundError(f"no {benchmark}-*.json in {folder}: run `python bench/{benchmark}.py`")
    return "\n\n".join(show(records.read_results(file)) for file in files)


def rewritten(document: Path, folder: Path) -> str:
    """The document's text with its blocks as `folder` has them."""
    text = document.read_text()
    if not _MARK.search(text):
        raise ValueError(f"{document}: no block <!-- bench:NAME --> ... <!-- /bench -->")
    return _MARK.sub(lambda found: f"{found[1]}{block(found[2], folder)}\n{found[3]}", text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", nargs="*", type=Path, help=f"default: {', '.join(DOCUMENTS)}")
    parser.add_argument("--results", type=Path, default=records.RESULTS, help="folder (default bench/results)")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if out of date")
    args = parser.parse_args(argv)
    stale = False
    for document in args.documents or [records.ROOT / name for name in DOCUMENTS]:
        new = rewritten(document, args.results)
        if new == document.read_text():
            continue
        if args.check:
            print(f"{document}: out of date: run `python bench/report.py`", file=sys.stderr)
            stale = True
        else:
            document.write_text(new)
            print(f"{document}: rewritten")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())

"""Results files to markdown, and into the documents that quote them.

    python bench/report.py            rewrites the marked blocks of the documents
    python bench/report.py --check    fails, naming them, if a block is not what bench/results/ says

A block stands between ``<!-- bench:NAME -->`` and ``<!-- /bench -->``; NAME is a key of `BLOCKS`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import bounds_tables
import checksum_tables
import density_tables
import diagnostics_tables
import estimator_tables
import fuzz_tables
import image_tables
import langevin_tables
import mlp_tables
import recipe_tables
import records
import sampler_tables
import tables
import update_tables
from tables import LABELS, Entry, Results, Row

DOCUMENTS = (
    "README.md", "bench/README.md", "docs/recipe.md", "docs/likelihood.md", "docs/density.md", "docs/images.md",
    "CONTRIBUTING.md",
)  # fmt: skip
_MARK = re.compile(r"(<!-- bench:([\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)


def _mb(n_bytes: int | None) -> str:
    return "-" if n_bytes is None else tables.number(n_bytes / 1e6)


def _peers(results: Results) -> list[str]:
    return tables.measured([case["peers"] for case in results["cases"]])


def _against_eager(row: Row, key: str, of: str, by: str, digits: str = ".2f") -> str:
    return tables.times(tables.ratio(row, key, of, by), digits)


def summary(results: Results) -> str:
    """For README.md: milliseconds of each peer, speed against eager T+1, bytes kept for the backward pass."""
    names = [name for name in _peers(results) if name not in ("ade-graph", "ade-states")]
    rows = []
    for case in results["cases"]:
        found = case["peers"]
        times = tables.cells(found, names, tables.ms)
        speed = _against_eager(found, "ms", "eager-t1", "ade-auto")
        kept = [_mb(found.get(name, {}).get("kept_bytes")) for name in ("eager-t1", "ade-states")]
        rows.append([f"`{case['case']}`", *times, speed, " → ".join(kept)])
    head = [
        "forward + backward, ms",
        *(LABELS[name] for name in names),
        "vs eager T+1",
        'MB kept: eager T+1 → `memory="states"`',
    ]
    return f"{tables.table(head, rows)}\n\n{tables.origin(results)}"


def full(results: Results) -> str:
    """For bench/README.md: everything that was measured, and why what is missing is missing."""
    names = _peers(results)
    runs = results["settings"]["runs"]

    def rows(cell: Callable[[Entry], str], *more: Callable[[Row], str]) -> list[list[str]]:
        return [
            [f"`{c['case']}`", *tables.cells(c["peers"], names, cell), *(extra(c["peers"]) for extra in more)]
            for c in results["cases"]
        ]

    labels = [LABELS[name] for name in names]
    speed = tables.table(
        [f"ms, median of {runs}", *labels, "ade_fast vs eager T+1"],
        rows(tables.ms, lambda row: _against_eager(row, "ms", "eager-t1", "ade-auto")),
    )
    peak = tables.table(["peak MB", *labels], rows(lambda e: _mb(e.get("peak_bytes"))))
    kept = tables.table(
        ["MB kept for the backward pass", *labels, "eager T+1 over `states`"],
        rows(
            lambda e: _mb(e.get("kept_bytes")),
            lambda row: _against_eager(row, "kept_bytes", "eager-t1", "ade-states", ".0f"),
        ),
    )
    error = tables.table(["relative error", *labels], rows(tables.error))
    flat = [(f"`{case['case']}`", case["peers"]) for case in results["cases"]]
    parts = [tables.origin(results), speed, peak, kept, error]
    return "\n\n".join(parts + tables.compilation(flat) + tables.not_measured(flat) + tables.left_out(results))


def _recipe(name: str) -> Callable[[Results], str]:
    def show(results: Results) -> str:
        commits = ", ".join(sorted({run["commit"] for run in results["runs"]}))
        table = tables.table(*recipe_tables.TABLES[name](results["runs"]))
        return f"{table}\n\n{tables.origin(results)} Runs made at {commits}."

    return show


# Block name -> (benchmark whose results it shows, how one results file is shown).
BLOCKS: dict[str, tuple[str, Callable[[Results], str]]] = {
    "checksum": ("checksum", checksum_tables.show),
    "dynamics": ("dynamics", summary),
    "dynamics-full": ("dynamics", full),
    "density": ("density", density_tables.show),
    "diagnostics": ("diagnostics", diagnostics_tables.show),
    "estimators": ("estimators", estimator_tables.show),
    "fuzz": ("fuzz", fuzz_tables.summary),
    "images": ("images", image_tables.digits),
    "image-runs": ("image_runs", image_tables.runs),
    "image-density": ("image_density", image_tables.density),
    "images-gradients": ("image_gradients", image_tables.gradients),
    "images-iteration": ("images_iteration", image_tables.iteration),
    "reversible": ("reversible", image_tables.reversible),
    "langevin": ("langevin", langevin_tables.show),
    "mlp": ("mlp", mlp_tables.summary),
    "mlp-full": ("mlp", mlp_tables.full),
    "bounds": ("bounds", bounds_tables.summary),
    "samplers": ("samplers", sampler_tables.summary),
    "update-summary": ("update", update_tables.summary),
    "update": ("update", update_tables.show),
    **{name: (name, _recipe(name)) for name in recipe_tables.TABLES},
}


def block(name: str, folder: Path) -> str:
    """The text of a block: every results file of its benchmark, in order of their names."""
    if name not in BLOCKS:
        raise ValueError(f"no block {name!r}: there are {', '.join(BLOCKS)}")
    benchmark, show = BLOCKS[name]
    if not any(folder.glob("*.json")):
        raise FileNotFoundError(f"no *.json in {folder}: run `python bench/{benchmark}.py`")
    files = sorted(folder.glob(f"{benchmark}-*.json"))
    if not files:
        return f"No results in `bench/results/` yet: `python bench/{benchmark}.py` makes them."
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

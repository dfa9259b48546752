"""Fuzzes the dynamics: random cases of layer, potential, plan, options and shapes against ade_fast/reference.py.

    python bench/fuzz.py --cases 2000     prints the worst relative error; exit code 1 if one is above the limit
    python bench/fuzz.py --out FILE       writes each seed's worst case as it is done; goes on where FILE ended

A seed is a run of hypothesis, which shrinks a case that fails; with the printed `Case(...)` it is made again:
``fuzz_check.error_of(Case(...))``. What the cases are stands in tests/fuzz_cases.py.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import hypothesis
import torch
from common import described_run, limit_threads
from records import RESULTS, ROOT, read_results, slug, write_results

sys.path.insert(1, str(ROOT / "tests"))
from fuzz_cases import Case, cases
from fuzz_check import LIMIT, error_of


def run_seed(seed: int, count: int, dtype: str) -> dict[str, Any]:
    """`count` cases; the largest error and its case, and if there is one, the smallest case that hypothesis finds to
    be above the limit or to raise."""
    limit_threads(1)
    seen: set[Case] = set()
    worst: tuple[float, Case | None] = (0.0, None)
    failing: tuple[Case, str] | None = None

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False, print_blob=False,
    )  # fmt: skip
    @hypothesis.given(cases(dtype))
    def check(case: Case) -> None:
        nonlocal worst, failing
        seen.add(case)
        try:
            error = error_of(case)
        except Exception as problem:
            failing = case, f"{type(problem).__name__}: {problem}"
            raise
        worst = max(worst, (error, case), key=lambda found: found[0])
        if error > LIMIT[dtype]:
            failing = case, f"off by {error:.2e}"
            raise AssertionError(failing[1])

    row: dict[str, Any] = {"seed": seed}
    try:
        check()
    except Exception:
        row["failing"], row["why"] = repr(failing[0]), failing[1][:500]
    return row | {"cases": len(seen), "worst": worst[0], "case": repr(worst[1])}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All seeds that the file has not got yet, and the results."""
    results = described_run("fuzz", torch.device("cpu"), 1)
    results["versions"]["hypothesis"] = importlib.metadata.version("hypothesis")
    results["settings"] = {"dtype": args.dtype, "per_seed": args.per_seed, "limit": LIMIT[args.dtype]}
    results["seeds"] = []
    out = args.out or (RESULTS / f"fuzz-{slug(results)}.json" if args.keep else None)
    if out is not None and out.exists():
        before = read_results(out)
        if (before["settings"], before["commit"]) != (results["settings"], results["commit"]):
            raise ValueError(f"{out} is of other settings or another commit: move it away, or name another --out")
        results = before
    done = {row["seed"] for row in results["seeds"]}
    wanted = range(args.first_seed, args.first_seed + -(-args.cases // args.per_seed))
    pending = [seed for seed in wanted if seed not in done]
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(run_seed, seed, args.per_seed, args.dtype) for seed in pending]
        for finished in as_completed(running):
            row = finished.result()
            results["seeds"] = sorted([*results["seeds"], row], key=lambda of: of["seed"])
            print(f"seed {row['seed']}: {row['cases']} cases, worst {row['worst']:.1e}", file=sys.stderr, flush=True)
            if out is not None:
                write_results(results, out)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="how many, about (default 2000)")
    parser.add_argument("--per-seed", type=int, default=500, help="cases of one seed (default 500)")
    parser.add_argument("--first-seed", type=int, default=0, help="so that several machines share the work")
    parser.add_argument("--dtype", choices=tuple(LIMIT), default="float64")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--keep", action="store_true", help="write to bench/results/")
    parser.add_argument("--out", type=Path, help="write there instead; an earlier run's file is gone on with")
    args = parser.parse_args(argv)
    if min(args.cases, args.per_seed, args.jobs) < 1:
        parser.error("--cases, --per-seed and --jobs must be at least 1")
    results = run(args)
    worst = max(results["seeds"], key=lambda row: row["worst"])
    failed = [row for row in results["seeds"] if "failing" in row]
    print(json.dumps({key: worst[key] for key in ("worst", "seed", "case")}, indent=1))
    print(f"{sum(row['cases'] for row in results['seeds'])} different cases, worst relative error {worst['worst']:.1e}")
    for row in failed:
        print(f"seed {row['seed']} FAILED: {row['why']}\n  {row['failing']}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

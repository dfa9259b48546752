"""Held-out negative log-likelihood on scikit-learn's tables: ADE beside other densities.

    python bench/density.py                             all sets and methods, three seeds
    python bench/density.py --sets wine --methods ADE   a part of it

Every method gets the same split and the same standardised coordinates (`density_data.py`); what they are is in
`density_methods.py`. Each run is on one thread; ``--jobs`` of them run side by side. A run's row is in
``bench/results/density-<machine>.json`` as soon as it has ended, and a second call does what is missing.
`bench/report.py` puts them into docs/density.md.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common
import records
import torch
from density_data import SETS, split
from density_methods import METHODS

import ade_fast as ade


class Job(NamedTuple):
    set: str
    method: str
    seed: int


def run(job: Job) -> dict[str, Any]:
    """One fit, and its row. A method whose package is absent, or that diverges, is a row with the reason."""
    row: dict[str, Any] = {**job._asdict(), "commit": common.commit()}
    data = split(job.set, job.seed)
    started = time.perf_counter()
    try:
        fit = METHODS[job.method](data, job.seed)
    except ModuleNotFoundError as error:
        return {**row, "skipped": f"{error.name} is not installed"}
    except (ade.NonFiniteError, ade.training.DivergenceError) as error:
        return {**row, "skipped": f"diverged: {error}"}
    nll = -fit.log_prob.double()
    return {
        **row,
        "dim": data.dim,
        "rows": [len(part) for part in data],
        "nll": nll.mean().item(),
        "nll_se": (nll.std() / len(nll) ** 0.5).item(),
        "log_z_se": fit.log_z_se,
        "ess": fit.ess,
        "chosen": fit.chosen,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _of(row: dict[str, Any]) -> Job:
    return Job(row["set"], row["method"], row["seed"])


def _place(row: dict[str, Any]) -> tuple[int, int, int]:
    return list(SETS).index(row["set"]), list(METHODS).index(row["method"]), row["seed"]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    def names(text: str, known: Sequence[str]) -> list[str]:
        unknown = sorted(set(text.split(",")) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(f"no {unknown[0]!r}: choose from {', '.join(known)}")
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--sets", type=lambda t: names(t, list(SETS)), default=list(SETS), help=f"of {','.join(SETS)}")
    parser.add_argument(
        "--methods", type=lambda t: names(t, list(METHODS)), default=list(METHODS), help=f"of {','.join(METHODS)}"
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many: of split and initialisation (default 3)")
    parser.add_argument("--jobs", type=int, default=cores, help="runs side by side (default: all cores)")
    parser.add_argument("--again", action="store_true", help="make the selected runs again")
    parser.add_argument("--out", type=Path, help="results file (default: in bench/results/)")
    args = parser.parse_args(argv)
    if not 1 <= args.jobs <= cores:
        parser.error(f"--jobs must be 1 to {cores} (the CPUs this process may use), got {args.jobs}")
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {args.seeds}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    jobs = [Job(name, method, seed) for name in args.sets for method in args.methods for seed in range(args.seeds)]
    results = common.described_run("density", torch.device("cpu"), 1)
    results["settings"] = {"jobs": args.jobs}
    path = args.out or records.RESULTS / f"density-{records.slug(results)}.json"
    earlier = records.read_results(path)["runs"] if path.exists() else []
    done = {_of(row) for row in earlier if "skipped" not in row}
    todo = [job for job in jobs if args.again or job not in done]
    results["runs"] = [row for row in earlier if _of(row) not in todo]
    records.write_results(results, path)
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of the processes to come
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    one_thread = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with concurrent.futures.ProcessPoolExecutor(args.jobs, context, **one_thread) as pool:
        for finished in concurrent.futures.as_completed([pool.submit(run, job) for job in todo]):
            row = finished.result()
            results["runs"].append(row)
            results["runs"].sort(key=_place)
            records.write_results(results, path)
            shown = row.get("skipped") or f"{row['nll']:.3f} nats, {row['chosen']}, {row['seconds']} s"
            print(f"{row['set']}, {row['method']}, seed {row['seed']}: {shown}", flush=True)
    print(f"written: {path}; `python bench/report.py` puts it into the documents")


if __name__ == "__main__":
    sys.exit(main())

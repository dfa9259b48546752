"""Rows of results on images, each written as soon as it is made: for methods and seeds, or for directories of runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import records
import torch

from ade_fast.training import Config

Configure = Callable[[str, int, int], Config]
"""The settings of a method, a seed and a number of updates."""


def parser(description: str | None, methods: Sequence[str], seeds: Sequence[int]) -> argparse.ArgumentParser:
    """--methods, --seeds, --updates, --out; an unknown method is an error."""

    def known(text: str) -> list[str]:
        for method in (names := text.split(";")):
            if method not in methods:
                raise argparse.ArgumentTypeError(f"no method {method!r}: choose from {'; '.join(methods)}")
        return names

    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--methods", type=known, default=list(methods), help="by semicolons")
    made.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=list(seeds))
    made.add_argument("--updates", type=int, default=600, help="of f, each (default 600)")
    made.add_argument("--out", type=Path, help="results file (default: in bench/results/)")
    return made


def is_same(row: Mapping[str, Any], config: Configure, method: str, seed: int, updates: int) -> bool:
    """Whether a row is what this would measure: its settings are today's."""
    return (row["method"], row["seed"], row["settings"]) == (method, seed, config(method, seed, updates).to_dict())


def by_methods(
    benchmark: str, args: argparse.Namespace, config: Configure, measure: Callable[[str, int], Mapping[str, Any]]
) -> dict[str, Any]:
    """The results with all rows asked for; what is there with today's settings is not made again."""
    results, out = _begun(benchmark, args.out)
    rows = results["rows"]
    for seed in args.seeds:
        for method in args.methods:
            if any(is_same(row, config, method, seed, args.updates) for row in rows):
                continue
            print(f"{method}, seed {seed} ...", file=sys.stderr, flush=True)
            rows[:] = [row for row in rows if (row["method"], row["seed"]) != (method, seed)]
            rows.append({**measure(method, seed), "commit": results["commit"]})
            records.write_results(results, out)
    return results


def by_directories(
    benchmark: str, args: argparse.Namespace, measure: Callable[[Path], Mapping[str, Any]]
) -> dict[str, Any]:
    """The results with a row of each directory, in the place of an older one of its set and seed."""
    results, out = _begun(benchmark, args.out)
    rows = results["rows"]
    for directory in args.directories:
        print(f"{directory} ...", file=sys.stderr, flush=True)
        row = measure(directory)
        rows[:] = [old for old in rows if (old["data"], old["seed"]) != (row["data"], row["seed"])]
        rows.append({**row, "commit": results["commit"]})
        rows.sort(key=lambda row: (row["data"], row["seed"]))
        records.write_results(results, out)
    return results


def _begun(benchmark: str, out: Path | None) -> tuple[dict[str, Any], Path]:
    """This run's description with the rows that are there already, and the file they are in."""
    common.limit_threads(1)
    results = common.described_run(benchmark, torch.device("cpu"), 1)
    out = out or records.RESULTS / f"{benchmark}-{records.slug(results)}.json"
    results["rows"] = records.read_results(out)["rows"] if out.exists() else []
    return results, out

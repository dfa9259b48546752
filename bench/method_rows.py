"""Rows of results, one for each method and seed: the command line that asks for them, and the making of what lacks."""

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


def run(
    benchmark: str, args: argparse.Namespace, config: Configure, measure: Callable[[str, int], Mapping[str, Any]]
) -> dict[str, Any]:
    """The results with all rows asked for; each is written as soon as it is made, in the place of an older one."""
    common.limit_threads(1)
    results = common.described_run(benchmark, torch.device("cpu"), 1)
    out = args.out or records.RESULTS / f"{benchmark}-{records.slug(results)}.json"
    rows = records.read_results(out)["rows"] if out.exists() else []
    results["rows"] = rows
    for seed in args.seeds:
        for method in args.methods:
            if any(is_same(row, config, method, seed, args.updates) for row in rows):
                continue
            print(f"{method}, seed {seed} ...", file=sys.stderr, flush=True)
            rows[:] = [row for row in rows if (row["method"], row["seed"]) != (method, seed)]
            rows.append({**measure(method, seed), "commit": results["commit"]})
            records.write_results(results, out)
    return results

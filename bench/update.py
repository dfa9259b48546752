"""One whole update of both players, data in and metrics out: `ADE.step` and the same written by its peers' users.

    python bench/update.py               every case, on one thread; writes bench/results/update-<machine>.json
    python bench/update.py --threads 2   the same on two; writes bench/results/update-2-threads-<machine>.json
    python bench/update.py --apart 5     each peer alone, in five processes; writes update-apart-<machine>.json
    python bench/update.py --quick       the smallest case, few rounds; writes nothing

f is an MLP 2-128-128-128-1, q0 a planar flow of 10 layers; leapfrog with a learned step size, gradient and momentum
clipped to norm 10. Not every combination: all batches for ReLU with a gradient penalty, 256 and 1000 for its other
losses and for SiLU, T = 20 at 256.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import peers
import torch
import update_exact
import update_peers
import update_tables
from players import Problem, make_problem
from torch import Tensor
from update_parts import parts

LOSSES: dict[str, dict[str, Any]] = {
    "elbo": {},
    "penalty": {"gradient_penalty": 0.01},
    "importance-base": {"bound": "importance", "base_std": 3.0},
}
"""(20); the same with a gradient penalty; log mean w for both players, and f on a base measure."""

# Of metrics and gradients, relative: kinks make more of it than rounding (bench/dynamics.py).
TOLERANCE = {"relu": 1e-3, "silu": 1e-4}
# Of the parameters' way: one step is so short that they resolve it to a few per cent.
MOVED_TOLERANCE = 0.05


@dataclass(frozen=True)
class Case:
    """loss: one of `LOSSES`."""

    activation: str
    batch: int
    loss: str = "penalty"
    n_steps: int = 5

    @property
    def name(self) -> str:
        return f"update-{self.activation}-B{self.batch}-T{self.n_steps}-{self.loss}"

    def problem(self, device: torch.device) -> Problem:
        return make_problem(self.activation, self.batch, self.n_steps, device, **LOSSES[self.loss])


CASES = [
    *(Case("relu", batch) for batch in (256, 1000, 100, 8192)),
    *(Case("silu", batch) for batch in (256, 1000)),
    *(Case(activation, 256, n_steps=20) for activation in ("relu", "silu")),
    *(Case("relu", batch, loss) for loss in ("elbo", "importance-base") for batch in (256, 1000)),
    *(Case("silu", batch, "importance-base") for batch in (256, 1000)),
]
QUICK = Case("relu", 100)


def judge_of(case: Case, problem: Problem) -> peers.Judge:
    expected = update_exact.expected(problem)

    def judge(_: str, outputs: Sequence[Tensor | None]) -> tuple[dict[str, Any], str | None]:
        error, of_moves = update_exact.errors(outputs, expected, problem)
        entry, wrong = peers.judged(error, TOLERANCE[case.activation])
        if wrong is None and not of_moves <= MOVED_TOLERANCE:
            wrong = f"wrong: parameters moved otherwise, by {of_moves:.1e} of their way, allowed {MOVED_TOLERANCE:g}"
        return entry, wrong

    return judge


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """One row: every peer is built and checked first, then all are timed together with the parts of ade_fast's."""
    device = torch.device(args.device)
    problem, settings = case.problem(device), peers.Settings(args.compile_limit)
    makers = {name: update_peers.PEERS[name] for name in args.peers}
    ready, row = peers.build(makers, problem, settings, judge_of(case, problem))
    pieces = parts(problem) if "ade-auto" in ready and not args.without_parts else {}
    runs = {**{n: peer.run for n, peer in ready.items()}, **{("part", n): run for n, run in pieces.items()}}
    samples = common.interleaved(runs, args.runs, args.warmups, device)
    for name in ready:
        row[name] |= common.timed(samples[name])
    found = {name: round(common.median_ms(samples["part", name]), 3) for name in pieces}
    return {"case": case.name, "peers": row, **({"parts": found} if found else {})}


# --- Each peer alone ----------------------------------------------------------------------------------------


def measure_apart(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """One row: the median and the spread of as many processes for each peer, in turn, as `args.apart` says."""
    entries: dict[str, list[dict[str, Any]]] = {name: [] for name in args.peers}
    for _ in range(args.apart):
        for name, found in entries.items():
            if not any("skipped" in entry for entry in found):  # what is wrong once has no figure
                found.append(_alone(case, name, args))
    return {"case": case.name, "processes": args.apart, "peers": {n: _together(found) for n, found in entries.items()}}


def _alone(case: Case, name: str, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ade_fast_bench_") as folder:
        out = Path(folder, "update.json")
        options = {"device": args.device, "threads": args.threads, "runs": args.runs, "warmups": args.warmups}
        options |= {"compile-limit": args.compile_limit, "cases": case.name, "peers": name, "out": out}
        command = [sys.executable, __file__, "--without-parts", *(["--quick"] if args.quick else [])]
        command += [f"--{option}={value}" for option, value in options.items()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{name} alone, {case.name}: exit code {done.returncode}\n{done.stderr}")
        return json.loads(out.read_text())["cases"][0]["peers"][name]


def _together(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last process's entry, with the median and each of all processes' medians in place of its own."""
    skipped = next((entry for entry in entries if "skipped" in entry), None)
    if skipped is not None:
        return dict(skipped)
    medians = [entry["ms"] for entry in entries]
    return {**entries[-1], "ms": round(statistics.median(medians), 3), "ms_all": medians}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_options(parser, tuple(update_peers.PEERS))
    parser.set_defaults(threads=1)
    parser.add_argument("--apart", type=int, default=0, metavar="N", help="each peer alone, in N processes of its own")
    parser.add_argument("--without-parts", action="store_true", help="not where the time of ade_fast's goes")
    args = parser.parse_args(argv)
    if args.apart < 0:
        parser.error(f"--apart must be at least 1, got {args.apart}")
    common.check_options(parser, args, [QUICK] if args.quick else CASES)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    variant = ("-apart" if args.apart else "") + (f"-{args.threads}-threads" if args.threads > 1 else "")
    row = measure_apart if args.apart else measure
    whole = args.apart > 0 or not args.without_parts
    results = common.run_cases("update", args, tuple(update_peers.PEERS), lambda c: row(c, args), variant, whole)
    print(update_tables.show(results))
    sys.exit(common.exit_code(results))


if __name__ == "__main__":
    main()

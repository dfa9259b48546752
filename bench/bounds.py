"""What a bound costs: one whole update of both players (`ADE.step`) with each bound and base, against (20)'s.

    python bench/bounds.py           writes bench/results/bounds-<machine>.json
    python bench/bounds.py --quick   few rounds; writes nothing

Same players, batch and optimizers for all of a case; no penalty. "peers" are the bounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bounds_tables
import common
import torch
from players import make_model, make_problem

VARIANTS: dict[str, dict[str, Any]] = {
    "elbo": {},
    "importance": {"bound": "importance", "sampler_bound": "importance"},
    "renyi": {"bound": "importance", "sampler_bound": "renyi"},
    "elbo, base": {"base": True},
    "renyi, base, defensive": {"base": True, "bound": "importance", "sampler_bound": "renyi", "defensive": 0.5},
}


@dataclass(frozen=True)
class Case:
    """f is an MLP 2-128-128-128-1, q0 a planar flow of 10 layers, T leapfrog steps."""

    activation: str
    batch: int = 256
    n_steps: int = 5

    @property
    def name(self) -> str:
        return f"update-{self.activation}-B{self.batch}-T{self.n_steps}"


CASES = [Case("relu"), Case("silu"), Case("relu", 1000), Case("silu", 1000)]


def update(case: Case, device: torch.device, *, base: bool = False, **bounds) -> Callable[[], object]:
    """One update of new players."""
    problem = make_problem(case.activation, case.batch, case.n_steps, device, base_std=3.0 if base else None)
    model = make_model(problem, **bounds)
    return lambda: model.step(problem.data)


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(args.device)
    runs = {name: update(case, device, **VARIANTS[name]) for name in args.peers}
    samples = common.interleaved(runs, args.runs, args.warmups, device)
    return {"case": case.name, "peers": {name: common.timed(samples[name]) for name in runs}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_options(parser, tuple(VARIANTS))
    parser.set_defaults(threads=1)
    args = parser.parse_args()
    common.check_options(parser, args, CASES[:1] if args.quick else CASES)
    results = common.run_cases("bounds", args, tuple(VARIANTS), lambda case: measure(case, args))
    print(bounds_tables.summary(results))
    sys.exit(common.exit_code(results))


if __name__ == "__main__":
    main()

"""What diagnostics cost: one fused unroll with its full backward pass, with and without, interleaved in one process.

    python bench/diagnostics.py                 writes bench/results/diagnostics-<machine>.json
    python bench/diagnostics.py --rounds 20 --out FILE

f is an MLP 2-128-128-128-1; the loss is a linear function of (x^T, v^T), so that nothing but the unroll is measured.
"read": the figures are looked at too, once after every backward pass. Process time of one thread, medians and lowest:
what else the machine does counts little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import common
import records
import torch

import ade_fast as ade

CASES = [(activation, batch, n_steps) for activation in ("silu", "relu") for batch, n_steps in ((256, 5), (1000, 10))]


def measure(activation: str, batch: int, n_steps: int, rounds: int) -> list[list[float]]:
    """Milliseconds of each round: without diagnostics, with them, and with them read."""
    torch.manual_seed(0)
    potential, layer = ade.MLPPotential(2, (128, 128, 128), activation), ade.Leapfrog(n_steps, 0.1)
    x0, v0, dx, dv = torch.randn(4, batch, 2)
    x0.requires_grad_()
    v0.requires_grad_()
    found: list[list[float]] = [[], [], []]
    for i in range(3 * (rounds + 3)):
        started = time.process_time()
        out = layer(potential, x0, v0, diagnostics=i % 3 > 0)
        torch.autograd.backward((out.x, out.v), (dx, dv))
        if i % 3 == 2:
            layer.diagnostics.rows()
        found[i % 3].append(1e3 * (time.process_time() - started))
    return [times[3:] for times in found]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path, help="results file (default: in bench/results/)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = common.described_run("diagnostics", torch.device("cpu"), 1)
    results |= {"settings": {"rounds": args.rounds}, "cases": []}
    for activation, batch, n_steps in CASES:
        times = measure(activation, batch, n_steps, args.rounds)
        found = {
            way: {"median": statistics.median(of), "lowest": min(of)}
            for way, of in zip(("without", "asked", "read"), times, strict=True)
        }
        results["cases"].append({"case": f"diagnostics-{activation}-B{batch}-T{n_steps}", **found})
        print(results["cases"][-1], flush=True)
    path = args.out or records.RESULTS / f"diagnostics-{records.slug(results)}.json"
    records.write_results(results, path)
    print(f"written: {path}")


if __name__ == "__main__":
    main()

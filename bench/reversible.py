"""memory="reversible" over thousands of steps: peak memory of an unroll with its backward pass, and the derivatives.

    python bench/reversible.py                  writes bench/results/reversible-<machine>.json; some minutes
    python bench/reversible.py --steps 100      as many steps alone; writes nothing

A small convolutional f on 4 images of 8x8, float32, by damped leapfrog as the paper's image settings have it (F.2:
damping 1/2, force and momentum clipped at 0.01) with samples clipped to a range that holds most pixels on its bounds,
and by leapfrog. The backward pass refuses to end anywhere but at x0 and v0, to the last bit. "error", up to 1,000
steps, is that of the derivatives by x0, v0, the step size and f's parameters, against memory="states" in float64.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import common
import image_tables
import torch
from records import RESULTS, slug, write_results
from torch import Tensor, nn

import ade_fast as ade

STEPS = (1_000, 10_000)
RANGE = 0.02
_CLIP = ade.Clip.value(0.01)
DYNAMICS: dict[str, Callable[[int, str], nn.Module]] = {
    "damped": lambda n_steps, memory: ade.DampedLeapfrog(
        n_steps, 0.5, 0.5, grad_clip=_CLIP, momentum_clip=_CLIP, sample_range=(-RANGE, RANGE), memory=memory
    ),
    "leapfrog": lambda n_steps, memory: ade.Leapfrog(n_steps, 0.01, memory=memory),
}


def problem(dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    """f, x0 and v0."""
    torch.manual_seed(0)
    potential = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.LeakyReLU(0.1), nn.Conv2d(8, 8, 3, stride=2), nn.LeakyReLU(0.1),
        nn.Flatten(), nn.Linear(32, 1),
    )  # fmt: skip
    x0, v0 = (RANGE * torch.randn(2, 4, 1, 8, 8)).clamp(-RANGE, RANGE)
    return potential.to(dtype), x0.to(dtype).requires_grad_(), v0.to(dtype).requires_grad_()


def derivatives(layer: nn.Module, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """(x^T, the derivatives of a sum over it and over v^T)."""
    potential, x0, v0 = problem(dtype)
    layer = layer.to(dtype)
    x, v, _ = layer(potential, x0, v0)
    inputs = [x0, v0, layer.step_size, *potential.parameters()]
    return x.detach(), list(torch.autograd.grad(x.sum() + v.square().sum(), inputs, materialize_grads=True))


def measure(name: str, n_steps: int) -> dict[str, Any]:
    """A row: peak bytes of both plans, the share of pixels that end on a bound, the error in float64."""
    make = DYNAMICS[name]
    row: dict[str, Any] = {"dynamics": name, "steps": n_steps}
    for memory in ("states", "reversible"):
        ends: list[Tensor] = []

        def run(memory: str = memory, ends: list[Tensor] = ends) -> None:
            ends.append(derivatives(make(n_steps, memory), torch.float32)[0])

        derivatives(make(10, memory), torch.float32)
        row[f"{memory}_peak_bytes"] = common.peak_bytes(run, torch.device("cpu"), rounds=1)
        row["on_bound"] = float((ends[0].abs() > 0.999 * RANGE).float().mean()) if name == "damped" else 0.0
    if n_steps <= STEPS[0]:
        (_, got), (_, wanted) = (derivatives(make(n_steps, m), torch.float64) for m in ("reversible", "states"))
        row["error"] = max(float((g - w).norm() / w.norm()) for g, w in zip(got, wanted, strict=True) if w.norm() > 0)
    return row


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="of one row for each dynamics (default: 1,000 and 10,000)")
    args = parser.parse_args(argv)
    common.limit_threads(1)
    results = common.described_run("reversible", torch.device("cpu"), 1)
    results["rows"] = []
    for name in DYNAMICS:
        for n_steps in STEPS if args.steps is None else [args.steps]:
            results["rows"].append(measure(name, n_steps))
            print(results["rows"][-1], file=sys.stderr, flush=True)
            if args.steps is None:
                write_results(results, RESULTS / f"reversible-{slug(results)}.json")
    print(image_tables.reversible(results))


if __name__ == "__main__":
    main()

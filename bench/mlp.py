"""The MLP unroll, forward alone and with its full backward pass: ade_fast's fused kernels and their peers, in one run.

    python bench/mlp.py                 the device's selection of cases; writes bench/results/mlp-<machine>.json
    python bench/mlp.py --grid full     every case (hours on a CPU); writes bench/results/mlp-full-<machine>.json
    python bench/mlp.py --quick         the smallest cases, few rounds; writes nothing
    python bench/mlp.py --cases 'mlp-silu-*' --peers eager-t1,ade-auto

What is measured, and how: bench/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import common
import exact
import mlp_tables
import peers
import torch
from torch import Tensor

import ade_fast as ade
from ade_fast.fields import memory_budget

HIDDEN = (128, 128, 128)
NAMES = ("eager-2t", "eager-t1", "compile", "cuda-graph", "jax", "ade-auto")
PASSES = {"forward": peers.SAMPLERS, "forward+backward": peers.PEERS}

# torch's name of a precision of float32 matrix products -> how many bfloat16 products make one of them.
PRODUCTS = {"highest": 6, "high": 3, "medium": 1}


@dataclass(frozen=True)
class Case:
    """f is an MLP dim-128-128-128-1. precision: one of `PRODUCTS`; on the CPU "highest" alone."""

    activation: str
    batch: int
    n_steps: int = 10
    dim: int = 2
    precision: str = "highest"

    @property
    def name(self) -> str:
        suffix = "" if self.precision == "highest" else f"-{self.precision}"
        return f"mlp-{self.activation}-B{self.batch}-T{self.n_steps}-d{self.dim}{suffix}"

    @property
    def kinked(self) -> bool:
        return self.activation == "relu"


# The most telling first: a run that is cut short has them.
SELECTION = {
    "cpu": [
        *(Case("relu", batch) for batch in (100, 1000, 8192)),
        Case("silu", 1000),
        Case("softplus", 1000),
        Case("silu", 1000, dim=32),
        Case("silu", 1000, n_steps=100),
    ],
    "cuda": [
        *(Case("silu", 1000, n_steps=100, precision=precision) for precision in ("medium", "highest", "high")),
        *(Case("silu", 65536, precision=precision) for precision in ("medium", "high", "highest")),
        *(Case("relu", 1000, n_steps=100, precision=precision) for precision in ("medium", "highest", "high")),
        Case("relu", 65536, precision="medium"),
        Case("relu", 65536),
        Case("relu", 100),
        Case("silu", 8192, dim=32),
        Case("softplus", 8192),
    ],
}


def full_grid(device: str) -> list[Case]:
    precisions = ("highest",) if device == "cpu" else tuple(PRODUCTS)
    axes = (("relu", "silu", "softplus"), (100, 1000, 8192, 65536), (10, 100), (2, 32), precisions)
    return [Case(*values) for values in itertools.product(*axes)]


# --- Work and rates -----------------------------------------------------------------------------------------


def nominal_flop(case: Case) -> dict[str, int]:
    """Floating-point operations that each pass is counted with, whatever a peer really does.

    U = 2 × the number of weights, per sample, is one product with each of them. ∇f takes 2U, and there are T + 1 of
    them. Backward, each ∇f takes 4U where f is piecewise linear (∇f again, the tangent, the weights' gradients) and 6U
    where it is smooth (and the same for the second derivative of the activations). Everything elementwise counts
    nothing.
    """
    sizes = (case.dim, *HIDDEN, 1)
    u = 2 * sum(n * m for n, m in itertools.pairwise(sizes))
    evaluations = case.batch * (case.n_steps + 1)
    forward = evaluations * 2 * u
    return {"forward": forward, "forward+backward": forward + evaluations * (4 if case.kinked else 6) * u}


def matrix_product(device: torch.device) -> tuple[Callable[[], Tensor], int]:
    """One large matrix product in the device's own way, and its operations: float32 on a CPU, bfloat16 on a GPU."""
    size, dtype = (2048, torch.float32) if device.type == "cpu" else (8192, torch.bfloat16)
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2 * size**3


# --- Right or wrong -----------------------------------------------------------------------------------------

# Relative L2 error against the equations in float64. Below "highest", factors of products are rounded to 11 or 8 bits,
# and kinks are passed on another side: eager T+1 with its factors rounded so is 1e-3 and 5e-3 off, or 1e-2 and 3e-2.
TOLERANCE = {
    "highest": {"smooth": 1e-4, "kinked": 2e-3},
    "high": {"smooth": 5e-3, "kinked": 5e-2},
    "medium": {"smooth": 2e-2, "kinked": 1e-1},
}
# ade_fast's own bound on the CPU: so many times the error of eager T+1, both in float32.
WORSE_THAN_EAGER = 2.0
# Samples nearer to a kink, somewhere on their way, are drawn again: which slope they take is up to rounding.
MARGIN = 2e-6


def make_problem(case: Case, device: torch.device) -> peers.Problem:
    """States from N(0, I); for a piecewise-linear f the first `batch` of them that keep clear of its kinks."""
    torch.manual_seed(0)
    potential = ade.MLPPotential(case.dim, HIDDEN, case.activation)
    problem = peers.random_problem(potential, case.batch, (case.dim,), case.n_steps, device)
    if not case.kinked:
        return problem
    found: list[tuple[Tensor, Tensor]] = []
    drawn = problem
    while True:
        clear = exact.clear_of_kinks(drawn, MARGIN)
        found.append((drawn.x0.detach()[clear], drawn.v0.detach()[clear]))
        x0, v0 = (torch.cat(parts)[: case.batch] for parts in zip(*found, strict=True))
        if len(x0) == case.batch:
            return dataclasses.replace(problem, x0=x0.requires_grad_(), v0=v0.requires_grad_())
        drawn = peers.random_problem(potential, case.batch, (case.dim,), case.n_steps, device)


def rounding(outputs: Sequence[Tensor | None], expected: Sequence[Tensor]) -> float:
    """The largest relative error of a tensor: that of the step size's derivative, one number, is one rounding error,
    and says nothing beside another one."""
    found = exact.errors(outputs, expected)
    return max(e for i, e in enumerate(found) if i != 4)


def judge_of(
    case: Case, device: torch.device, expected: Sequence[Tensor], eager: Sequence[Tensor] | None
) -> peers.Judge:
    """Right: within the tolerance, and ade_fast on the CPU within `WORSE_THAN_EAGER`. `eager`: eager T+1's results."""
    tolerance = TOLERANCE[case.precision]["kinked" if case.kinked else "smooth"]

    def judge(name: str, outputs: Sequence[Tensor | None]) -> tuple[dict[str, Any], str | None]:
        entry, wrong = peers.judged(max(exact.errors(outputs, expected)), tolerance)
        if eager is not None and wrong is None:
            ratio = rounding(outputs, expected) / rounding(eager[: len(outputs)], expected)
            entry["error_over_eager"] = float(f"{ratio:.2g}")
            if name.startswith("ade-") and device.type == "cpu" and not ratio <= WORSE_THAN_EAGER:
                wrong = f"wrong: {ratio:.1f} times eager T+1's error, allowed {WORSE_THAN_EAGER:g}"
        return entry, wrong

    return judge


# --- What fits ----------------------------------------------------------------------------------------------

# A peer's peak over what eager T+1 keeps for the backward pass; that of compiled peers is at most eager's.
_PEAK = {"eager-2t": 2.5, "eager-t1": 1.3, "compile": 1.3, "cuda-graph": 1.3, "jax": 1.3}
# These keep their memory for themselves on a GPU: the others have to live with the rest.
_KEEPERS = ("cuda-graph", "jax")


def needed_bytes(name: str, which: str, case: Case, kept_per_gradient: float) -> float:
    """About how much memory a peer needs for a pass; `kept_per_gradient` by eager T+1, of one sample."""
    evaluations = case.batch * (case.n_steps + 1)
    if name.startswith("ade-"):  # its kept states, a bit per unit, and as many products as the budget allows
        states = 2 * 4 * case.dim + sum(HIDDEN) / 8
        products = 4 * (sum(HIDDEN[:-1]) + sum(HIDDEN[1:]))
        return 1.3 * evaluations * states + min(evaluations * products, memory_budget(torch.device("cpu")))
    if which == "forward":  # a graph of one gradient at a time
        return _PEAK[name] * case.batch * kept_per_gradient
    return _PEAK[name] * evaluations * kept_per_gradient


def kept_by_eager(case: Case, device: torch.device) -> float:
    """Bytes that eager T+1 keeps of one sample's gradient, found in a small unroll."""
    small = dataclasses.replace(case, batch=64, n_steps=4)
    problem = make_problem(small, device)
    peer = peers.eager_t1(problem, peers.Settings(0.0))
    peer.forward()
    return common.kept_bytes(peer.forward, device) / (small.batch * (small.n_steps + 1))


def fitting(name: str, which: str, case: Case, kept_per_gradient: float, make: peers.Make) -> peers.Make:
    """`make`, refused where the memory that is free now will not do."""

    def checked(problem: peers.Problem, settings: peers.Settings) -> peers.Peer:
        needed = needed_bytes(name, which, case, kept_per_gradient)
        free = common.available_bytes(problem.x0.device)
        if needed > free:
            raise peers.Skipped(f"needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
        return make(problem, settings)

    return checked


# --- A case -------------------------------------------------------------------------------------------------


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """One row: per pass, every peer is built and checked first, then all are timed together with a matrix product."""
    device = torch.device(args.device)
    torch.set_float32_matmul_precision(case.precision)
    settings = peers.Settings(args.compile_limit, case.precision)
    problem = make_problem(case, device)
    expected = exact.expected(problem)
    kept = kept_by_eager(case, device)
    eager = _eager_outputs(case, problem, kept, settings)
    product, product_flop = matrix_product(device)
    row: dict[str, Any] = {"case": case.name, **dataclasses.asdict(case), "passes": {}}
    for which in args.passes:
        makers = PASSES[which]
        wanted = sorted(args.peers, key=lambda name: name not in _KEEPERS)
        makers = {name: fitting(name, which, case, kept, makers[name]) for name in wanted}
        ready, entries = peers.build(makers, problem, settings, judge_of(case, device, expected, eager))
        runs = {"matmul": product, **{name: peer.run for name, peer in ready.items()}}
        samples = common.interleaved(runs, args.runs, args.warmups, device)
        for name in ready:
            entries[name] |= common.timed(samples[name])
        row["passes"][which] = {
            "gflop": nominal_flop(case)[which] / 1e9,
            "products": PRODUCTS[case.precision] if device.type == "cuda" else 1,
            "matmul_gflops": round(product_flop / 1e6 / common.median_ms(samples["matmul"]), 1),
            "peers": {name: entries[name] for name in args.peers},
        }
    return row


def _eager_outputs(
    case: Case, problem: peers.Problem, kept: float, settings: peers.Settings
) -> Sequence[Tensor] | None:
    """What eager T+1 computes, on the CPU; None where it does not fit."""
    try:
        peer = fitting("eager-t1", "forward+backward", case, kept, peers.eager_t1)(problem, settings)
        return [t.detach().cpu() if t is not None else t for t in peer.outputs(peer.run())]
    except (peers.Skipped, torch.OutOfMemoryError):
        return None


def candidates(args: argparse.Namespace) -> list[Case]:
    if args.quick:
        return [Case("relu", 100), Case("silu", 100)]
    return full_grid(args.device) if args.grid == "full" else SELECTION[args.device]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_options(parser, NAMES)
    parser.add_argument("--grid", choices=("selection", "full"), default="selection", help="(default selection)")
    parser.add_argument("--passes", choices=tuple(PASSES), nargs="+", default=list(PASSES), help="(default both)")
    args = parser.parse_args(argv)
    common.check_options(parser, args, candidates(args))
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    variant = "-full" if args.grid == "full" else ""
    whole = args.passes == list(PASSES)
    results = common.run_cases("mlp", args, NAMES, lambda case: measure(case, args), variant, whole)
    print(mlp_tables.full(results))
    sys.exit(common.exit_code(results))


if __name__ == "__main__":
    main()

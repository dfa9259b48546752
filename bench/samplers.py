"""What T steps gain: samplers alone, trained against a fixed potential whose log Z is known.

    python bench/samplers.py                               every row that is not in bench/results/ yet
    python bench/samplers.py --rows 'mlp/learned/*/T50/*'  of those, the ones with such names

f is an MLP that is fitted to the log-density of ``8gaussians`` (fused kernels; log Z by a grid), and that log-density
itself with a constant added. q0 is a Gaussian, fixed or trained with the rest. Every row is a new sampler, trained by
Adam on Rényi's bound of order 1/2, and its effective sample size and log Z on fresh samples. On one thread; each row
is written as soon as it has ended. `bench/report.py` puts them into docs/likelihood.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import common
import records
import torch
from torch import Tensor, nn

import ade_fast as ade
from ade_fast import weights
from ade_fast.training.bounds import renyi_bound

SET = "8gaussians"
STD = 3.0
"""Of q0 at the start, and of the MLP's base measure."""
LOG_Z = 2.0
"""Of the log-density that a constant is added to."""
FLOOR = -12.0
"""The MLP is fitted to log(density + exp FLOOR): a network need not follow a logarithm into its depths."""
GRID, REACH = 301, 5 * STD
"""Points along each axis of the grid that the MLP's exp f is summed on, and how far it reaches."""


@dataclass(frozen=True)
class Settings:
    """steps, batch, lr: of Adam. draws, samples: how often the figures are taken, and of how many samples each time;
    one large weight among them, rare as it is, makes a small effective sample size. fit_steps, width: of the MLP."""

    steps: int = 200
    batch: int = 256
    lr: float = 1e-2
    draws: int = 5
    samples: int = 20_000
    fit_steps: int = 1000
    width: int = 64


QUICK = Settings(steps=3, batch=16, draws=2, samples=200, fit_steps=3, width=32)


# --- Potentials ---------------------------------------------------------------------------------------------


class Target(NamedTuple):
    """A fixed potential, and its log Z."""

    potential: nn.Module
    log_z: float


class EightGaussians(nn.Module):
    """``ade.data.toy("8gaussians")``'s log-density plus `LOG_Z`, differentiable: [B, 2] -> [B]."""

    def __init__(self) -> None:
        super().__init__()
        angle = torch.arange(8) * (math.pi / 4)
        self.register_buffer("centres", 4 / math.sqrt(2) * torch.stack((angle.cos(), angle.sin()), 1))
        self.variance = 0.5**2 / 2

    def forward(self, x: Tensor) -> Tensor:
        squares = (x.unsqueeze(1) - self.centres).square().sum(2)
        return (-squares / (2 * self.variance)).logsumexp(1) - math.log(8 * 2 * math.pi * self.variance) + LOG_Z


def mixture(settings: Settings) -> Target:
    return Target(EightGaussians(), LOG_Z)


def mlp(settings: Settings) -> Target:
    """A SiLU MLP on a Gaussian base, fitted by least squares to the log-density, at the data and all around them."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    exact, data = EightGaussians(), ade.data.toy(SET)
    potential = ade.WithBase(ade.MLPPotential(2, (settings.width,) * 3, "silu", input_gain=2.0), 0.0, STD)
    optimizer = torch.optim.Adam(potential.parameters(), 3e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, settings.fit_steps)
    for _ in range(settings.fit_steps):
        around = STD * torch.randn(settings.batch, 2, generator=generator)
        x = torch.cat([data.sample(settings.batch, generator), around])
        wanted = exact(x) - LOG_Z
        loss = (potential(x) - torch.logaddexp(wanted, wanted.new_tensor(FLOOR))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    potential.requires_grad_(False)
    return Target(potential, grid_log_z(potential))


def grid_log_z(potential: Callable[[Tensor], Tensor]) -> float:
    axis = torch.linspace(-REACH, REACH, GRID)
    values = [potential(part).double().logsumexp(0) for part in torch.cartesian_prod(axis, axis).split(1 << 15)]
    return float(torch.stack(values).logsumexp(0)) + 2 * math.log(2 * REACH / (GRID - 1))


TARGETS: dict[str, Callable[[Settings], Target]] = {"mlp": mlp, "mixture": mixture}


# --- Samplers -----------------------------------------------------------------------------------------------


class Still(nn.Module):
    """No dynamics, T = 0: the weights are q0's own."""

    def momentum_shape(self, event: tuple[int, ...]) -> tuple[int, ...]:
        return event

    def forward(self, potential, x0: Tensor, v0: Tensor, *, generator=None, context=None) -> ade.DynamicsOutput:
        return ade.DynamicsOutput(x0, v0, x0.new_zeros(len(x0)))


def leapfrog(n_steps: int) -> nn.Module:
    return ade.Leapfrog(n_steps, torch.full((2,), 0.1))


def tempered(n_steps: int) -> nn.Module:
    return ade.GeneralizedLeapfrog(n_steps, torch.full((2,), 0.1), scale_v=nn.Parameter(torch.zeros(n_steps, 2)))


def annealed(n_steps: int) -> nn.Module:
    return ade.AnnealedLeapfrog(n_steps, torch.full((2,), 0.3), refresh=0.5)


# Name -> (dynamics of T steps, λ).
SAMPLERS: dict[str, tuple[Callable[[int], nn.Module], float]] = {
    "none": (lambda n_steps: Still(), 1.0),
    "leapfrog": (leapfrog, 1.0),
    "mismatched": (leapfrog, 0.5),
    "tempered": (tempered, 1.0),
    "annealed": (annealed, 1.0),
}
N_STEPS = {"mlp": (2, 5, 10, 20, 50), "mixture": (2, 10)}
"""The mixture is no MLP: autograd takes its steps, ten times as slowly."""
SEEDS = (0, 1)


@dataclass(frozen=True)
class Case:
    """f, whether q0 is trained too, the sampler, T, and the seed."""

    target: str
    initial: str
    sampler: str
    n_steps: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.target}/{self.initial}/{self.sampler}/T{self.n_steps}/seed{self.seed}"

    def make(self) -> ade.DualSampler:
        initial = ade.initial.Gaussian(2, std=STD, learnable=self.initial == "learned")
        return ade.DualSampler(initial, SAMPLERS[self.sampler][0](self.n_steps))


def cases() -> list[Case]:
    """Short unrolls first; q0 alone once for all samplers."""
    return [
        Case(target, initial, sampler, n_steps, seed)
        for target in TARGETS
        for seed in SEEDS
        for n_steps in (0, *N_STEPS[target])
        for initial in ("fixed", "learned")
        for sampler in SAMPLERS
        if (sampler == "none") == (n_steps == 0)
    ]


def train(sampler: ade.DualSampler, potential: nn.Module, momentum_weight: float, settings: Settings) -> None:
    """Adam on 2 log mean √w, by every parameter that the sampler has.

    Raises: ade.NonFiniteError, where the bound or its gradient is not finite.
    """
    parameters = list(sampler.parameters())
    if not parameters:
        return
    optimizer = torch.optim.Adam(parameters, settings.lr)
    weight = torch.tensor(momentum_weight)
    for step in range(settings.steps):
        drawn = sampler.sample(potential, settings.batch)
        log_w = weights.log_weights("samplers", potential(drawn.x), drawn.v, drawn.log_q, weight)
        loss = -renyi_bound(log_w, 0.5)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        if not bool(loss.isfinite() & norm.isfinite()):
            raise ade.NonFiniteError(f"step {step}: bound {-loss.item():g}, its gradient's norm {norm.item():g}")
        optimizer.step()


def run(case: Case, target: Target, settings: Settings) -> dict[str, Any]:
    """One sampler from start to end, and its row. One that diverges is a row with the reason."""
    started = time.process_time()
    row = {"case": case.name, **vars(case)}
    torch.manual_seed(case.seed)
    sampler, momentum_weight = case.make(), SAMPLERS[case.sampler][1]
    try:
        train(sampler, target.potential, momentum_weight, settings)
        with warnings.catch_warnings():  # of small effective sample sizes, which are what is asked for
            warnings.simplefilter("ignore", UserWarning)
            found = [
                ade.metrics.log_z(target.potential, sampler, settings.samples, momentum_weight)
                for _ in range(settings.draws)
            ]
    except ade.NonFiniteError as error:
        return {**row, "diverged": str(error), "cpu_seconds": round(time.process_time() - started, 2)}
    step_size = getattr(sampler.dynamics, "step_size", None)
    return {
        **row,
        "ess": [draw.ess for draw in found],
        "log_z_error": [draw.log_z - target.log_z for draw in found],
        "log_z_standard_error": [draw.standard_error for draw in found],
        "step_size": None if step_size is None else step_size.tolist(),
        "initial_std": sampler.initial.log_std.exp().tolist(),
        "cpu_seconds": round(time.process_time() - started, 2),
    }


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="*", help="which rows to make, a shell pattern of TARGET/Q0/SAMPLER/T/SEED")
    parser.add_argument("--quick", action="store_true", help="a few steps of each, a smoke test; needs --out")
    parser.add_argument("--again", action="store_true", help="forget what an earlier call has measured")
    parser.add_argument("--out", type=Path, help="results file (default: in bench/results/)")
    args = parser.parse_args(argv)
    args.cases = [case for case in cases() if fnmatch.fnmatch(case.name, args.rows)]
    if not args.cases:
        parser.error(f"--rows {args.rows!r} is none of {cases()[0].name}, ..., {cases()[-1].name}")
    if args.quick and not args.out:
        parser.error("--quick measures nothing: say where it shall go with --out")
    return args


def _earlier(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of earlier calls with these settings."""
    if not path.exists():
        return []
    results = records.read_results(path)
    return results["cases"] if results["settings"] == settings else []


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    settings = QUICK if args.quick else Settings()
    torch.set_num_threads(1)
    results = common.described_run("samplers", torch.device("cpu"), 1)
    results["settings"] = vars(settings)
    path = args.out or records.RESULTS / f"samplers-{records.slug(results)}.json"
    results["cases"] = [] if args.again else _earlier(path, results["settings"])
    order = [case.name for case in cases()]
    done = {row["case"] for row in results["cases"]}
    targets: dict[str, Target] = {}
    for case in args.cases:
        if case.name in done:
            continue
        if case.target not in targets:
            targets[case.target] = TARGETS[case.target](settings)
        row = {**run(case, targets[case.target], settings), "commit": results["commit"]}
        results["cases"] = sorted([*results["cases"], row], key=lambda r: order.index(r["case"]))
        records.write_results(results, path)
        shown = row.get("diverged") or f"ESS {' '.join(f'{ess:.3f}' for ess in row['ess'])}"
        print(f"{case.name}: {shown}, {row['cpu_seconds']} s", flush=True)
    print(f"{len(results['cases'])} of {len(order)} rows: {path}; `python bench/report.py` puts it into the documents")


if __name__ == "__main__":
    sys.exit(main())

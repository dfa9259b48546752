"""The equations in float64: what every peer has to agree with before it is timed, and by how much it is off."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from peers import Problem
from torch import Tensor, nn

import ade_fast as ade

# Samples times steps of one evaluation, a bound on its memory: an MLP of 3 x 128 smooth units keeps 60 kB of each.
_ROW_STEPS = {"cpu": 2**14, "cuda": 2**17}


def expected(problem: Problem) -> list[Tensor]:
    """Outputs and derivatives in the order of `Peer.outputs`, on the CPU; evaluated in slices of the batch."""
    potential = copy.deepcopy(problem.potential).double()
    step = problem.step_size.detach().double().requires_grad_()
    shared = [step, *potential.parameters()]
    totals = [torch.zeros_like(t) for t in shared]
    slices: list[list[Tensor]] = []
    size = max(_ROW_STEPS[step.device.type] // problem.n_steps, 1)
    batched = [t.detach().split(size) for t in (problem.x0, problem.v0, problem.a, problem.b)]
    for x0, v0, a, b in zip(*batched, strict=True):
        x0, v0 = (t.double().requires_grad_() for t in (x0, v0))
        x, v, _ = ade.reference.leapfrog(potential, x0, v0, step, problem.n_steps)
        dx0, dv0, *derivatives = torch.autograd.grad(
            (x, v), [x0, v0, *shared], (a.double(), b.double()), allow_unused=True
        )
        slices.append([x.detach(), v.detach(), dx0, dv0])
        totals = [t if d is None else t + d for t, d in zip(totals, derivatives, strict=True)]
    states = [torch.cat(parts) for parts in zip(*slices, strict=True)]
    return [t.cpu() for t in (*states, *totals)]


def errors(outputs: Sequence[Tensor | None], wanted: Sequence[Tensor]) -> list[float]:
    """Relative L2 errors of x^T, v^T, and if there are any of dx0, dv0, dstep, all parameters' derivatives together.

    `wanted` may have more than `outputs`, which are the first of them then.
    """
    got = []
    for output, right in zip(outputs, wanted, strict=False):
        got.append(torch.zeros_like(right) if output is None else output.detach().cpu().double())
        if got[-1].shape != right.shape:
            raise ValueError(f"a peer returned shape {tuple(got[-1].shape)} for {tuple(right.shape)}")

    def parts(tensors: Sequence[Tensor]) -> list[Tensor]:
        together = [torch.cat([t.flatten() for t in tensors[5:]])] if tensors[5:] else []
        return [t.flatten() for t in tensors[:5]] + together

    pairs = zip(parts(got), parts(wanted[: len(got)]), strict=True)
    return [float((g - w).norm() / w.norm()) for g, w in pairs]


def clear_of_kinks(problem: Problem, margin: float) -> Tensor:
    """Which samples keep every input of every ReLU further than `margin` from 0, at every step: [B].

    The others' results depend on how a peer rounds: either slope of the kink is right.
    """
    potential = copy.deepcopy(problem.potential).double()
    nearest: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nearest.append(inputs[0].detach().abs().flatten(1).amin(1))

    for module in potential.modules():
        if isinstance(module, (nn.ReLU, nn.LeakyReLU)):
            module.register_forward_pre_hook(note)
    clear = []
    for x0, v0 in zip(*(t.detach().double().split(_ROW_STEPS["cpu"]) for t in (problem.x0, problem.v0)), strict=True):
        nearest.clear()
        with torch.no_grad():
            ade.reference.leapfrog(potential, x0, v0, problem.step_size.double(), problem.n_steps)
        clear.append(torch.stack(nearest).amin(0) > margin)
    return torch.cat(clear)

"""The players of one whole update, where every peer's begin, and ade_fast's own update of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from peers import STEP_SIZE
from torch import Tensor

import ade_fast as ade

# Small steps: players that move apart over thousands of timed updates would not be the same ones any more.
LEARNING_RATE = 1e-6
GRAD_NORM_CLIP = 1.0
"""Of each player's gradient."""
INITIAL_ROWS = 256
"""`ADE.step`'s initial_ess is that of so many samples at most: f is evaluated for nothing but this number."""
TRIAL_SEED = 1
"""Of the noise of a peer's first update, in which it is judged."""


@dataclass(frozen=True)
class Problem:
    """One update of both players to be timed.

    potential: f, an MLP 2-128-128-128-1, without its base measure. initial: q^0. step_size: [2], of the leapfrog steps.
    n_steps: T. data: [B, 2]. clip: norm that grad f and v are clipped to where they act. base_std: std of f's base
    measure N(0, std^2), None: it has none. bound: of log Z, for both players. gradient_penalty: its factor.
    """

    potential: ade.MLPPotential
    initial: ade.initial.PlanarFlow
    step_size: Tensor
    n_steps: int
    data: Tensor
    clip: float = 10.0
    base_std: float | None = None
    bound: str = "elbo"
    gradient_penalty: float = 0.0

    @property
    def metrics(self) -> tuple[str, ...]:
        """What an update says of itself, in order: the keys of `ADE.step`'s metrics."""
        of_loss = ("loss", "f_data", "f_samples", "kinetic", "entropy", "penalty")
        of_model = ("f_model",) if self.bound == "importance" else ()
        of_weights = (*of_model, "log_z", "ess", "initial_ess", "beta")
        return (*of_loss, "potential_grad_norm", "sampler_grad_norm", "step_size", *of_weights)

    def noise(self) -> Tensor:
        """What x^0 = g(z) and v^0 are made of in a trial, [2, B, 2], as `ADE.step` draws it by `trial_generator`."""
        generator = trial_generator()
        z, v = (torch.randn(self.data.shape, generator=generator) for _ in range(2))
        return torch.stack([z, v]).to(self.data.device)


def trial_generator() -> torch.Generator:
    return torch.Generator().manual_seed(TRIAL_SEED)


def make_problem(activation: str, batch: int, n_steps: int, device: torch.device, **options) -> Problem:
    """New players, and a batch of ``moons``; options: those of `Problem` that have defaults."""
    torch.manual_seed(0)
    # As steep as a trained one: beside the force of a new f nothing else that is wrong would be seen.
    potential = ade.MLPPotential(2, activation=activation, input_gain=10.0).to(device)
    initial = ade.initial.PlanarFlow(2, 10).to(device)
    data = ade.data.toy("moons").sample(batch).to(device)
    return Problem(potential, initial, torch.full((2,), STEP_SIZE, device=device), n_steps, data, **options)


def make_model(problem: Problem, **bounds) -> ade.ADE:
    """ade_fast's objective of copies of the players; bounds: arguments of `ade.ADE` in place of the problem's."""
    p = problem
    potential, initial = copy.deepcopy(p.potential), copy.deepcopy(p.initial)
    clip = ade.Clip.norm(p.clip)
    dynamics = ade.Leapfrog(p.n_steps, p.step_size, grad_clip=clip, momentum_clip=clip)
    arguments = {"bound": p.bound, "sampler_bound": p.bound, "gradient_penalty": p.gradient_penalty, **bounds}
    if p.data.is_cuda:
        arguments.setdefault("capture", True)  # as one CUDA graph; on the CPU it is what happens unasked
    model = ade.ADE(
        potential if p.base_std is None else ade.WithBase(potential, 0.0, p.base_std),
        ade.DualSampler(initial, dynamics),
        grad_norm_clip=GRAD_NORM_CLIP,
        **arguments,
    ).to(p.data.device)
    for optimizer in (model.potential_optimizer, model.sampler_optimizer):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE
    return model

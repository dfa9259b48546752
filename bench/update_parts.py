"""Where the time of an update goes: what ade_fast's is made of, each part by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from players import Problem, make_model
from torch import Tensor

import ade_fast as ade
from ade_fast.training.updates import clip_grads, grad_norms, gradients_of
from ade_fast.training.values import evaluate

Part = Callable[[], object]


def parts(problem: Problem) -> dict[str, Part]:
    """unroll: the fused one alone, of given x^0 and v^0. q0: drawing these. values: f at the data and at the samples.
    All with their backward passes, to everything that gets a gradient in an update. values, penalty: the same with the
    gradient penalty, where there is one. metrics: those of the weights. optimizers: clipping, and both steps."""
    model, data = make_model(problem), problem.data
    f, sampler = model.potential, model.sampler
    model.step(data)  # leaves gradients for the optimizers
    weights = list(f.parameters())
    sample = sampler.sample(f, len(data))
    x0, v0, x = (t.detach().requires_grad_() for t in (sample.x0, sample.v0, sample.x))
    ones = torch.ones(len(data), device=data.device)

    def unroll() -> Sequence[Tensor | None]:
        out = sampler.dynamics(f, x0, v0)
        inputs = [x0, v0, sampler.dynamics.step_size, *weights]
        return torch.autograd.grad((out.x, out.v), inputs, (x, x), allow_unused=True)

    def q0() -> Sequence[Tensor]:
        drawn = sampler.initial.sample(len(data), data.shape[1:])
        return torch.autograd.grad((drawn.x, drawn.log_q), list(sampler.initial.parameters()), (x, ones))

    def values(penalty: float) -> Sequence[Tensor]:
        found = evaluate(f, data, None, x, bool(penalty), False, model.bounds.differ)
        total = found.data.mean() - found.samples.mean()
        total = total if found.slope is None else total - penalty * found.slope
        return torch.autograd.grad(total, [x, *weights])

    model_terms = model._model_terms(sample, f(sample.x).detach())

    def metrics() -> list[float]:
        figures = model._figures(sample, model_terms, 1.0, None)
        return torch.stack([t.to(data) for t in figures.values()]).tolist()

    found = {"unroll": unroll, "q0": q0, "values": lambda: values(0.0)}
    if problem.gradient_penalty:
        found["values, penalty"] = lambda: values(problem.gradient_penalty)
    return {**found, "metrics": metrics, "optimizers": lambda: optimizers(model)}


def optimizers(model: ade.ADE) -> None:
    for optimizer in (model.potential_optimizer, model.sampler_optimizer):
        clip_grads(optimizer, grad_norms(gradients_of(optimizer)).item(), model.grad_norm_clip)
        optimizer.step()

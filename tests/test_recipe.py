"""The recipe: one set of numbers for `train`, `fit` and hand-made players."""

import pytest
import torch
from torch import nn
from training_cases import TINY, generator

import ade_fast as ade
from ade_fast.training import Config, Trainer


def players(base: bool = True) -> tuple[nn.Module, ade.DualSampler]:
    potential = ade.MLPPotential(2, (16, 16))
    sampler = ade.DualSampler(ade.initial.Gaussian(2, learnable=True), ade.Leapfrog(2, 0.1))
    return ade.WithBase(potential, 0.0, 3.0) if base else potential, sampler


def settings_of(objective: ade.ADE) -> list:
    rates = [
        [group[key] for key in ("lr", "betas", "maximize")]
        for optimizer in (objective.potential_optimizer, objective.sampler_optimizer)
        for group in optimizer.param_groups
    ]
    names = ("entropy_weight", "gradient_penalty", "value_penalty", "sampler_steps", "grad_norm_clip", "bounds")
    return [*rates, *(getattr(objective, name) for name in names), objective.momentum_weight.item()]


def test_its_numbers_are_those_of_the_settings():
    default = Config()
    objective = ade.recipe(*players())
    assert settings_of(objective) == settings_of(Trainer(Config(initial="planar")).ade)
    assert objective.potential_optimizer.param_groups[0]["lr"] == default.potential_lr
    assert objective.bounds.potential == default.bound and objective.bounds.sampler == default.sampler_bound
    assert objective.bounds.defensive == default.defensive


def test_defensive_samples_are_for_a_base_measure_only():
    assert ade.recipe(*players(base=False)).bounds.defensive == 0


def test_changes_go_to_the_objective_and_take_their_companions_with_them():
    changed = ade.recipe(*players(), bound="elbo", sampler_bound="elbo", momentum_weight=0.5, grad_norm_clip=None)
    assert (changed.bounds.potential, changed.bounds.defensive, changed.grad_norm_clip) == ("elbo", 0, None)
    assert changed.momentum_weight == 0.5
    with pytest.raises(TypeError, match="unexpected keyword"):
        ade.recipe(*players(), momentumweight=1.0)


def test_what_has_no_density_is_not_trained_by_another_objective_unasked():
    potential, _ = players()
    sampler = ade.DualSampler(ade.initial.Empirical(torch.randn(10, 2)), ade.Leapfrog(2, 0.1))
    with pytest.raises(ValueError, match="Empirical has no density"):
        ade.recipe(potential, sampler)
    ade.recipe(potential, sampler, bound="elbo", sampler_bound="elbo")


def test_it_trains():
    """A few hundred updates by hand, without a look: the likelihood rises, and nothing runs away."""
    torch.manual_seed(0)
    objective, moons = ade.recipe(*players()), ade.data.toy("moons")
    held_out = moons.sample(2000, generator(1))
    before = ade.metrics.log_likelihood(objective.potential, objective.sampler, held_out, 5000, None, generator())
    for _ in range(200):
        metrics = objective.step(moons.sample(128, generator(objective.updates)))
    after = ade.metrics.log_likelihood(objective.potential, objective.sampler, held_out, 5000, None, generator())
    assert after.mean > before.mean + 0.5 and abs(metrics["f_data"] - metrics["f_samples"]) < 5
    assert metrics["ess"] > 0.2


def test_the_base_measure_is_a_setting():
    for width, kind in ((3.0, ade.WithBase), (None, ade.MLPPotential)):
        trainer = Trainer(Config.from_dict({**TINY.to_dict(), "base_std": width}))
        assert type(trainer.potential) is kind and (trainer.ade.bounds.defensive > 0) is (width is not None)

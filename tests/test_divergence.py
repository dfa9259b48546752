"""Runs that go wrong are stopped early, with advice, and the last good checkpoint is kept."""

import dataclasses
import math

import pytest
import torch
from training_cases import TINY, generator

import ade_fast as ade
from ade_fast.training import DivergenceError, Trainer, checkpoint, divergence, loop

PLAIN = dataclasses.replace(
    TINY,
    updates=4000,
    batch_size=64,
    sampler_steps=1,
    gradient_penalty=0.0,
    grad_clip=None,
    momentum_clip=None,
    grad_norm_clip=None,
    bound="elbo",
    sampler_bound="elbo",
    base_std=None,
    momentum_weight=1.0,
    validate_every=20,
    checkpoint_every=20,
)


# A sampler that cannot leave where it starts.
IDLE = {"initial": "gaussian", "step_size": 1e-6, "learn_step_size": False}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"potential_lr": 1.0, "sampler_lr": 1e-6}, "f runs away|not finite"),
        ({**IDLE, "initial_std": 1e-3}, "have collapsed"),
        ({**IDLE, "initial_std": 1e3}, "fly apart|f runs away"),
    ],
    ids=["f runs away", "samples collapse", "samples fly"],
)
def test_a_run_that_diverges_is_stopped_early_with_advice(tmp_path, no_pictures, changes, wanted):
    settings = dataclasses.replace(PLAIN, **changes)
    with pytest.raises((DivergenceError, ade.NonFiniteError), match=wanted) as caught:
        ade.training.train(settings, tmp_path, progress=False)
    message = str(caught.value)
    assert "lower the learning rates" in message and "\n" not in message
    kept = checkpoint.load_checkpoint(tmp_path / loop.CHECKPOINT)
    assert f"keeps update {kept['update']}" in message and kept["update"] < settings.updates / 4
    assert all(torch.isfinite(t).all() for t in kept["best"]["potential"].values())
    assert ade.load(tmp_path).sample(10).isfinite().all()


def test_divergence_before_the_first_checkpoint_leaves_the_start(tmp_path):
    settings = dataclasses.replace(PLAIN, potential_lr=1e3, checkpoint_every=1000, validate_every=1000)
    with pytest.raises((DivergenceError, ade.NonFiniteError), match="keeps update 0"):
        ade.training.train(settings, tmp_path, progress=False)


def test_what_is_kept_is_from_before_the_run_away(tmp_path, no_pictures):
    """And the message does not send anyone back to where only the same can happen."""
    settings = dataclasses.replace(
        PLAIN, data="moons", updates=300, potential_lr=1.0, sampler_lr=1e-6, checkpoint_every=1, validate_every=50
    )
    step, gaps = Trainer.step, []

    def watched(self):
        gaps.append(abs((metrics := step(self))["f_data"] - metrics["f_samples"]))
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", watched)
        with pytest.raises(DivergenceError, match="begin anew with --overwrite and other settings"):
            ade.training.train(settings, tmp_path, progress=False)
    kept = checkpoint.load_checkpoint(tmp_path / loop.CHECKPOINT)["update"]
    assert kept < len(gaps) and max(gaps[:kept]) <= settings.max_gap < gaps[kept]


def test_one_bad_batch_is_not_divergence_and_many_are():
    watch = divergence.Watch(torch.randn(100, 2), max_gap=5.0)
    bad, good = {"f_data": 9.0, "f_samples": 0.0}, {"f_data": 1.0, "f_samples": 0.0}
    for _ in range(3):
        for _ in range(9):
            watch.metrics(1, bad)
        watch.metrics(1, good)
    with pytest.raises(DivergenceError, match=r"= 9, beyond max_gap 5 for 10 updates"):
        for _ in range(10):
            watch.metrics(7, bad)


@pytest.mark.parametrize(("scale", "wanted"), [(1e-3, "have collapsed"), (1e3, "fly apart"), (math.nan, "not finite")])
def test_samples_far_from_the_datas_spread_are_divergence(scale, wanted):
    watch = divergence.Watch(torch.randn(500, 2, generator=generator()), max_gap=5.0)
    with pytest.raises(DivergenceError, match=f"update 3: samples (are )?{wanted}"):
        watch.samples(3, scale * torch.randn(500, 2, generator=generator(1)))
    watch.samples(3, 0.3 * torch.randn(500, 2, generator=generator(1)))


def test_q0_may_start_anywhere():
    watch = divergence.Watch(torch.randn(500, 2), max_gap=5.0)
    watch.samples(0, torch.zeros(500, 2))


def test_ordinary_training_is_left_alone():
    trainer = Trainer(dataclasses.replace(TINY, data="moons", updates=60, validate_by="mmd2"))
    for _ in range(60):
        trainer.step()
    assert trainer.validate() < 1

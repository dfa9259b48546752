"""What the tests of training share."""

import dataclasses

import torch

from ade_fast.training import Config, Summary

TINY = Config(
    hidden=(32, 32),
    initial="planar",
    flow_layers=2,
    n_steps=2,
    batch_size=32,
    updates=8,
    sampler_steps=2,
    validate_every=2,
    validation_samples=64,
    likelihood_samples=200,
    test_likelihood_samples=200,
    test_samples=64,
    test_permutations=50,
    checkpoint_every=2,
    log_every=1,
    tensorboard="off",
)


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def without_clock(summary: Summary) -> Summary:
    """What must not depend on how fast the machine was."""
    return dataclasses.replace(summary, seconds=0.0, milliseconds_per_update=0.0, time={})

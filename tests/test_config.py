"""Settings: keys, flags, limits; pictures."""

import argparse
import dataclasses
import json
import math
import typing

import numpy as np
import pytest
import torch
from training_cases import TINY, generator

import ade_fast as ade
from ade_fast.training import (
    Config,
    ConfigError,
    config,
    dynamics_config,
    plots,
)

# --- settings


def test_every_setting_is_a_flag_and_a_key_with_help():
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    flags = {option for action in parser._actions for option in action.option_strings}
    for field in dataclasses.fields(Config):
        assert "--" + field.name.replace("_", "-") in flags
        assert field.metadata["help"] and field.metadata["group"] in config.SETTINGS_GROUPS
    assert Config.from_dict(TINY.to_dict()) == TINY
    assert Config.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY


@pytest.mark.parametrize("dynamics", dynamics_config.DYNAMICS)
def test_defaults_of_the_dynamics_are_those_of_a_run_that_gives_none(dynamics):
    own = dynamics_config.RECIPES.get(dynamics, {})
    assert Config.with_recipe({"dynamics": dynamics}) == dataclasses.replace(Config(), dynamics=dynamics, **own)
    given = Config.with_recipe({"dynamics": dynamics, "updates": 3000, "step_size": 0.2})
    assert given.updates == 3000 and given.step_size == 0.2
    # A summary marks what differs from them; keys alone, as of a file of settings, mean the class's defaults.
    assert dataclasses.replace(given.recipe(), dynamics=dynamics) == Config.with_recipe({"dynamics": dynamics})
    assert Config.from_dict({"dynamics": dynamics}).updates == Config().updates


def test_flags_are_read_as_the_settings_they_name():
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    text = "--hidden 8,4 --grad-clip none --momentum-clip 2 --no-clip-samples --spectral-norm --updates 3"
    given = config.given_settings(parser.parse_args(text.split()))
    assert given == {
        "hidden": (8, 4),
        "grad_clip": None,
        "momentum_clip": 2.0,
        "clip_samples": False,
        "spectral_norm": True,
        "updates": 3,
    }


BAD_SETTINGS = {
    "unknown": ({"potentiallr": 1.0}, "unknown key 'potentiallr'; did you mean 'potential_lr'"),
    "type": ({"updates": 1.5}, "updates must be an integer, got 1.5"),
    "bool": ({"updates": True}, "updates must be an integer, got True"),
    "string": ({"data": 3}, "data must be a string, got 3"),
    "conditionals": (
        {"objective": "pl"},
        "objective must be one of .* got 'pl': conditionals of .* nodes",
    ),
    "choice": ({"data": "moon"}, "data must be one of .* got 'moon'; did you mean 'moons'"),
    "low": ({"n_steps": 0}, "n_steps must be >= 1 and <= 10000, got 0"),
    "above": ({"step_size": 0.0}, "step_size must be > 0, got 0.0"),
    "nan": ({"value_penalty": math.nan}, "value_penalty must be >= 0, got nan"),
    "high": ({"beta1": 1.0}, "beta1 must be >= 0 and < 1, got 1.0"),
    "list": ({"hidden": []}, r"hidden must be a list of integers, got \[\]"),
    "items": ({"hidden": [8, 0]}, "hidden must be >= 1 and <= 65536, got 0"),
    "optional": ({"grad_clip": "tight"}, "grad_clip must be a number or none, got 'tight'"),
    "average": ({"ema_decay": 1}, "ema_decay must be >= 0 and < 1, got 1.0"),
    "infinite": ({"max_gap": math.inf}, "max_gap must be between 1e-20 and 1e\\+20, got inf"),
    "large": ({"step_size": 10**400}, "step_size must be between 1e-20 and 1e\\+20, got inf"),
    "long": ({"updates": 10**400}, r"updates must be >= 1 and <= 1000000000, got 10+\.\.\. \(401 characters\)"),
    "longer": ({"seed": 10**5000}, "seed must be .*, got an integer of thousands of digits"),
    "flag": ({"clip_samples": 1}, "clip_samples must be true or false, got 1"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_impossible_settings_are_refused(case):
    values, message = BAD_SETTINGS[case]
    with pytest.raises(ConfigError, match=message):
        Config.from_dict(values)


def test_every_number_has_limits_on_both_sides():
    """Else someone's slip ends in an overflow, or in all of a machine's memory."""
    for field in dataclasses.fields(Config):
        if typing.get_type_hints(Config)[field.name] in (bool, str):
            continue
        limits = field.metadata
        assert limits["low"] is not None or limits["above"] is not None, field.name
        floating = typing.get_type_hints(Config)[field.name] in (float, float | None)  # which has a common upper limit
        assert floating or limits["high"] is not None or limits["below"] is not None, field.name


def test_numbers_of_numpy_and_the_command_lines_none_are_settings():
    settings = Config(seed=np.int64(3), step_size=np.float32(0.5), grad_clip="none")
    assert (settings.seed, settings.step_size, settings.grad_clip) == (3, 0.5, None)
    assert type(settings.seed) is int


def test_a_byte_order_mark_is_no_obstacle(tmp_path):
    (tmp_path / "c.json").write_bytes(b'\xef\xbb\xbf{"data": "line"}')
    assert config.read_config(tmp_path / "c.json") == {"data": "line"}


# --- pictures


@pytest.mark.parametrize("per", ["all", "dimension", "step"])
def test_stages_begin_at_x0_and_end_at_the_samples(per):
    from ade_fast.training.build import build_players

    potential, sampler = build_players(dataclasses.replace(TINY, n_steps=3, step_size_per=per))
    seen = plots.stages(potential, sampler, 5, generator())
    sample = sampler.sample(potential, 5, generator())
    assert len(seen) == 4 and torch.equal(seen[0], sample.x0.detach())
    torch.testing.assert_close(seen[-1], sample.x.detach())
    assert not torch.equal(seen[1], seen[2])


def test_the_scale_of_the_potential_is_found():
    axis = torch.linspace(-6, 6, 200, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    data = torch.randn(20_000, 2, dtype=torch.float64)
    for factor in (0.5, 1.0, 4.0):  # f = factor * log N(0, I), so c = 1 / factor
        c = plots.best_scale(-0.5 * factor * grid.square().sum(1), -0.5 * factor * data.square().sum(1))
        assert c == pytest.approx(1 / factor, rel=0.08)


def test_clipped_samples_are_warned_about_where_the_entropy_is_used() -> None:
    with pytest.warns(UserWarning, match="DualSampler: dynamics clips samples to sample_range"):
        ade.DualSampler(ade.initial.Gaussian((2,)), ade.Leapfrog(2, sample_range=(-1.0, 1.0)))

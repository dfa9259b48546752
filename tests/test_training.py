"""The loop: exact resume, files, divergence, the schedule, the score."""

import csv
import dataclasses
import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import Tensor
from training_cases import TINY, without_clock

import ade_fast as ade
from ade_fast.training import (
    Config,
    ConfigError,
    Trainer,
    checkpoint,
    files,
    loop,
)


def assert_same_state(a, b, where: str = "state") -> None:
    """Bit for bit, but for the clock."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key != "seconds":
                assert_same_state(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.mark.parametrize(
    "settings",
    [{"dynamics": "annealed"}, {"dynamics": "langevin"}, {"dynamics": "deterministic"},
     {"dynamics": "generalized-langevin"}, {"dynamics": "continuous", "time": 0.02},
     {"dynamics": "generalized-continuous", "time": 0.02}, {"initial": "langevin-flow"}],
)  # fmt: skip
def test_the_other_dynamics_and_starts_train(tmp_path, settings):
    config = dataclasses.replace(TINY, updates=4, **settings)
    summary = ade.training.train(config, tmp_path, progress=False)
    assert math.isfinite(summary.nll) and 0 < summary.ess <= 1
    assert torch.isfinite(ade.load(tmp_path).sample(10)).all()


def test_an_estimated_log_determinant_needs_the_bound_of_20(tmp_path):
    settings = dataclasses.replace(TINY, dynamics="deterministic", log_det="taylor", updates=2)
    with pytest.raises(ValueError, match="need weights: dynamics only estimates its log_det"):
        ade.training.train(settings, tmp_path / "no", progress=False)
    elbo = {"bound": "elbo", "sampler_bound": "elbo"}
    summary = ade.training.train(dataclasses.replace(settings, **elbo), tmp_path / "yes", progress=False)
    assert summary.nll is None and math.isfinite(summary.mmd2)


@pytest.mark.parametrize("dynamics", ["leapfrog", "generalized", "damped", "langevin", "deterministic"])
def test_resume_is_bit_identical(tmp_path, dynamics):
    settings = dataclasses.replace(TINY, dynamics=dynamics, spectral_norm=dynamics == "generalized")
    whole, first = Trainer(settings), Trainer(settings)
    for trainer, updates in ((whole, 6), (first, 3)):
        for _ in range(updates):
            trainer.step()
            trainer.validate()
    checkpoint.save_checkpoint(tmp_path / "c.pt", first.state_dict())
    second = Trainer(settings)
    second.load_state_dict(checkpoint.load_checkpoint(tmp_path / "c.pt"))
    torch.randn(17)  # the global generator is nobody's business
    for _ in range(3):
        second.step()
        second.validate()
    assert_same_state(second.state_dict(), whole.state_dict())


def rows_of(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop("seconds")
    return rows


KILLER = """
import os, random, signal, sys, time
import torch
from ade_fast.cli import main
from ade_fast.training import Config, Trainer
torch.set_num_threads(1)
Trainer(Config())  # imports what torch imports late
rng = random.Random(int(sys.argv[1]))
longest, metrics, updates = float(sys.argv[2]), sys.argv[3], int(sys.argv[4])
def rows():
    return open(metrics, "rb").read().count(10) if os.path.exists(metrics) else 0
for kill in range(20):
    child = os.fork()  # of a process that has imported everything: seconds saved each time
    if child == 0:
        os._exit(main(sys.argv[5:]))
    # At a random moment, but on a fast machine before the run can end.
    end, furthest = time.monotonic() + rng.uniform(0, longest), updates * (kill + 1) // 25
    while time.monotonic() < end and rows() < furthest:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (kill, status)
"""


def test_a_run_killed_at_20_random_moments_ends_as_the_uninterrupted_one(tmp_path, no_pictures):
    """SIGKILL, at whatever it was doing: start, update, validation, or half-way through writing a checkpoint."""
    out, settings = tmp_path / "killed", dataclasses.replace(TINY, updates=400, checkpoint_every=3)
    started = time.perf_counter()
    whole = ade.training.train(settings, tmp_path / "whole", progress=False)
    longest = (time.perf_counter() - started) / 12  # 20 lives of half of that on average: most of the run, not all
    (tmp_path / "settings.json").write_text(json.dumps(settings.to_dict()))
    flags = ["train", "--config", str(tmp_path / "settings.json"), "--out", str(out), "--resume", "--no-progress"]
    command = [sys.executable, "-c", KILLER, "1", str(longest), str(out / loop.METRICS), "400", *flags]
    out.mkdir()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    reached = checkpoint.load_checkpoint(out / loop.CHECKPOINT)["update"]
    assert 0 < reached < settings.updates
    parts = ade.training.train(settings, out, resume=True, progress=False)
    assert without_clock(parts) == without_clock(whole)
    assert rows_of(out / loop.METRICS) == rows_of(tmp_path / "whole" / loop.METRICS)
    assert_same_state(*(checkpoint.load_checkpoint(d / loop.CHECKPOINT) for d in (out, tmp_path / "whole")))
    assert not list(out.glob(".*.tmp"))


@pytest.mark.parametrize("stop_at", [1, 5])
def test_an_interrupted_run_resumes_to_the_same_files(tmp_path, monkeypatch, stop_at, no_pictures):
    whole = ade.training.train(TINY, tmp_path / "whole", progress=False)
    step = Trainer.step

    def interrupted(self):
        if self.update == stop_at:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ade.training.train(TINY, tmp_path / "parts", progress=False)
    with open(tmp_path / "parts" / loop.METRICS, "a") as file:
        file.write("6,0.1,half a row")
    parts = ade.training.train(TINY, tmp_path / "parts", resume=True, progress=False)
    assert rows_of(tmp_path / "parts" / loop.METRICS) == rows_of(tmp_path / "whole" / loop.METRICS)
    assert [row["update"] for row in rows_of(tmp_path / "whole" / loop.METRICS)] == [str(n) for n in range(1, 9)]
    assert without_clock(parts) == without_clock(whole)
    assert_same_state(
        checkpoint.load_checkpoint(tmp_path / "parts" / loop.CHECKPOINT),
        checkpoint.load_checkpoint(tmp_path / "whole" / loop.CHECKPOINT),
    )


def test_a_run_leaves_its_files_and_loads(tmp_path):
    out = tmp_path / "a" / "b"
    summary = ade.training.train(TINY, out, progress=False)
    names = {files.LOCK, loop.CHECKPOINT, loop.CONFIG, loop.METRICS, loop.SUMMARY, loop.FIGURE, loop.CONVERGENCE}
    assert {p.name for p in out.iterdir()} == names
    assert (out / loop.FIGURE).read_bytes()[:4] == (out / loop.CONVERGENCE).read_bytes()[:4] == b"\x89PNG"
    assert Config.from_dict(json.loads((out / loop.CONFIG).read_text())) == TINY
    assert json.loads((out / loop.SUMMARY).read_text())["mmd2"] == summary.mmd2
    model = ade.training.load(out)
    assert model.update == summary.chosen_update and model.config == TINY
    assert model.sample(7, seed=1).shape == (7, 2) and model.sample(7).dtype == torch.float32
    assert torch.equal(model.sample(7, seed=1), model.sample(7, seed=1))
    assert not torch.equal(model.sample(7, seed=1), model.sample(7, seed=2))
    with pytest.raises(ValueError, match="sample: n must be"):
        model.sample(-1)


def test_a_model_loads_without_touching_any_random_state_and_counts_as_numpy_does(tmp_path, monkeypatch, no_pictures):
    ade.training.train(TINY, tmp_path, progress=False)
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(5)
    seeded.clear()
    before = torch.get_rng_state()
    model = ade.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before) and not seeded  # the caller's GPU generators neither
    assert torch.equal(model.sample(np.int64(3), seed=np.int32(1)), model.sample(3, seed=1))
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="sample: seed must be an integer"):
            model.sample(3, seed=seed)
    with pytest.raises(ConfigError, match="device must be a torch device of this machine, cpu or cuda, got 'gpu'"):
        ade.load(tmp_path, device="gpu")


def test_large_draws_go_through_in_pieces(tmp_path, monkeypatch, no_pictures):
    ade.training.train(TINY, tmp_path, progress=False)
    model = ade.training.load(tmp_path)
    monkeypatch.setattr(ade.training.trained, "_CHUNK", 4)
    samples = model.sample(10)
    assert samples.shape == (10, 2) and torch.isfinite(samples).all() and len(samples.unique(dim=0)) == 10


def test_a_directory_with_a_run_is_not_overwritten_unasked(tmp_path, no_pictures):
    ade.training.train(TINY, tmp_path, progress=False)
    before = (tmp_path / loop.CHECKPOINT).read_bytes()
    with pytest.raises(ConfigError, match="holds a run already"):
        ade.training.train(TINY, tmp_path, progress=False)
    other = dataclasses.replace(TINY, seed=1)
    with pytest.raises(ConfigError, match=r"other settings .*: seed differ"):
        ade.training.train(other, tmp_path, resume=True, progress=False)
    assert (tmp_path / loop.CHECKPOINT).read_bytes() == before
    ade.training.train(other, tmp_path, overwrite=True, progress=False)
    assert ade.training.load(tmp_path).config.seed == 1


def test_divergence_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    step = Trainer.step

    def diverging(self):
        if self.update == 5:
            raise ade.NonFiniteError("ADE: the objective is not finite; lower the learning rates")
        return step(self)

    monkeypatch.setattr(Trainer, "step", diverging)
    with pytest.raises(ade.NonFiniteError):
        ade.training.train(TINY, tmp_path, progress=False)
    assert checkpoint.load_checkpoint(tmp_path / loop.CHECKPOINT)["update"] == 4


def test_a_short_training_brings_the_samples_closer():
    settings = dataclasses.replace(
        TINY,
        data="moons",
        hidden=(32, 32),
        flow_layers=6,
        batch_size=128,
        updates=400,
        potential_lr=5e-4,
        validation_samples=500,
        validate_by="mmd2",
    )
    trainer = Trainer(settings)
    before = trainer.validate()
    for _ in range(settings.updates):
        trainer.step()
    after = trainer.validate()
    assert after < 0.5 * before
    assert trainer.best.update == settings.updates


def test_the_score_uses_data_that_neither_training_nor_validation_saw():
    trainer = Trainer(TINY)
    trainer.validate()
    _, test_data, test_samples, _ = trainer.test()
    assert not torch.isin(test_data, trainer._validation_data).any()
    assert not torch.isin(
        test_samples, trainer.sampler.sample(trainer.potential, 64, trainer.generator("samples")).x
    ).any()
    assert torch.equal(trainer.test().data, test_data)  # the same draw whenever it is asked for


def test_rates_and_penalties_follow_the_schedule():
    settings = dataclasses.replace(
        TINY, updates=10, lr_decay_from=0.5, lr_decay_to=0.1, penalty_decay_to=0.2, value_penalty=0.3
    )
    trainer = Trainer(settings)
    seen = []
    for trainer.update in (0, 5, 10):
        trainer._set_schedule()
        rates = [o.param_groups[0]["lr"] for o in (trainer.ade.potential_optimizer, trainer.ade.sampler_optimizer)]
        seen.append([*rates, trainer.ade.gradient_penalty, trainer.ade.value_penalty])
    rates, penalties = (settings.potential_lr, settings.sampler_lr), (settings.gradient_penalty, 0.3)
    wanted = [[*(r * k for r in rates), *(p * q for p in penalties)] for k, q in ((1, 1), (1, 1), (0.1, 0.2))]
    assert seen == [pytest.approx(w) for w in wanted]

"""Training by the other estimators: f descends the loss alone, the sampler follows, runs resume bit for bit."""

import dataclasses

import pytest
import torch
from training_cases import TINY, generator

import ade_fast as ade
from ade_fast import training
from ade_fast.training.config import Config
from ade_fast.training.estimating import Estimation

OBJECTIVES = next(f for f in dataclasses.fields(Config) if f.name == "objective").metadata["choices"]
OTHERS = tuple(name for name in OBJECTIVES if name != "ade")


def config(name: str, **changes) -> Config:
    return dataclasses.replace(TINY, objective=name, chain_steps=3, **changes)


@pytest.mark.parametrize("name", OTHERS)
def test_updates_move_both_players_each_by_its_own_objective(name: str) -> None:
    trainer = training.Trainer(config(name, gradient_penalty=0.01, value_penalty=0.01))
    assert isinstance(trainer.ade, Estimation)
    before = [p.clone() for p in (*trainer.potential.parameters(), *trainer.sampler.parameters())]
    metrics = [trainer.step() for _ in range(2)][-1]
    after = [*trainer.potential.parameters(), *trainer.sampler.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    wanted = {"loss", "f_data", "f_samples", "entropy", "kinetic", "penalty", "ess", "log_z", "step_size"}
    assert wanted <= metrics.keys()
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())


def test_the_gradient_of_f_is_the_losss() -> None:
    trainer = training.Trainer(config("sm", potential_lr=1e-12, grad_norm_clip=None))
    data = torch.randn(16, 2)
    loss = ade.estimators.score_matching(trainer.potential, data)
    wanted = torch.autograd.grad(loss, [*trainer.potential.parameters()], allow_unused=True)
    trainer.ade._potential_update(data, generator())
    for parameter, grad in zip(trainer.potential.parameters(), wanted, strict=True):
        got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(got, -(torch.zeros_like(parameter) if grad is None else grad), atol=1e-6)
    assert trainer.ade.loss(data).item() == pytest.approx(loss.item(), rel=1e-5)


def test_a_whole_run_has_the_same_evaluation_as_ade(tmp_path) -> None:
    """Held-out likelihood, weights, tests; nothing scales f afterwards."""
    settings = config("dsm", updates=60, validate_every=30, batch_size=128, denoising_std=0.3, sampler_steps=1)
    settings = dataclasses.replace(settings, initial="spline", spline_hidden=(16,), checkpoint_every=60)
    summary = training.train(settings, tmp_path / "run", progress=False, pictures=False)
    model = ade.load(tmp_path / "run")
    assert summary.scale is None
    assert summary.ess > 0.1
    assert summary.nll < 3.4
    assert model.log_prob(torch.zeros(3, 2)).shape == (3,)
    assert model.config.objective == "dsm"


@pytest.mark.parametrize("name", ["pcd", "nce"])
def test_runs_resume_bit_for_bit(name: str, tmp_path) -> None:
    whole = training.Trainer(config(name))
    first = training.Trainer(config(name))
    for _ in range(2):
        whole.step(), first.step()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = training.Trainer(config(name))
    second.load_state_dict({**torch.load(tmp_path / "state.pt", weights_only=False)} | _chosen(first))
    for _ in range(2):
        assert whole.step() == second.step()
    if name == "pcd":
        assert torch.equal(whole.ade.replay.buffer, second.ade.replay.buffer)
        assert int(second.ade.replay.filled) == 4 * TINY.batch_size


def _chosen(trainer: training.Trainer) -> dict:
    trainer.validate()
    return {key: trainer.state_dict()[key] for key in ("best", "lowest", "history")}


def test_the_flag_is_there_and_checked() -> None:
    with pytest.raises(training.ConfigError, match="objective must be one of ade, cd, pcd"):
        config("maximum likelihood")
    assert Config().objective == "ade"
    assert type(training.Trainer(TINY).ade) is ade.ADE
    with pytest.raises(ValueError, match="context must be None"):
        training.Trainer(config("sm")).ade.loss(torch.zeros(2, 2), context=(torch.zeros(1),))


@pytest.mark.parametrize("argument", ["context", "condition", "weights"])
def test_what_an_estimator_has_no_use_for_is_refused(argument: str) -> None:
    """By name, and before anyone moves."""
    model = training.Trainer(config("cd")).ade
    before = [p.clone() for p in model.parameters()]
    data = torch.randn(8, 2)
    given = {argument: (torch.ones(8),) if argument == "context" else torch.ones(8)}
    for call in (model.loss, model.step):
        with pytest.raises(ValueError, match=argument):
            call(data, **given)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))

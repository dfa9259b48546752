"""Updates that are recorded and replayed compute what they would, bit for bit, and take up what they may."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from capture_cases import DIM, UPDATES, alike, data_of, model_of, spectral, with_base

import ade_fast as ade
from ade_fast.training import Config
from ade_fast.training.capture import RECORDED_AT
from ade_fast.training.trainer import Trainer

CASES = {
    "elbo": {},
    "penalties": {"gradient_penalty": 0.1, "value_penalty": 0.01, "grad_norm_clip": 0.5},
    "importance": {"bound": "importance", "sampler_bound": "renyi"},
    "tempered": {"bound": "importance", "min_ess": 0.5, "sampler_bound": "renyi", "sampler_min_ess": 0.3},
    "defended": {
        "potential": with_base, "initial": lambda: ade.initial.SplineFlow(DIM), "bound": "importance",
        "sampler_bound": "renyi", "defensive": 0.1, "coverage": 0.1, "ess_pace": 0.5, "samples_per_point": 2,
    },
    "spectral norm": {"potential": spectral, "gradient_penalty": 0.1},
    "clipped": {
        "dynamics": lambda: ade.Leapfrog(3, 0.1, grad_clip=ade.Clip.norm(1.0), momentum_clip=ade.Clip.value(1.0))
    },
    "generalized": {"dynamics": lambda: ade.GeneralizedLeapfrog(2, 0.1, scale_v=0.1, scale_x=0.1)},
    "annealed": {"dynamics": lambda: ade.AnnealedLeapfrog(3, 0.1), "initial": lambda: ade.initial.Gaussian(DIM)},
    "several sampler steps": {"sampler_steps": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_recorded_updates_are_the_same_bit_for_bit(name):
    options = CASES[name]
    recorded, plain = model_of(**options), model_of(capture=False, **options)
    alike(recorded, plain, UPDATES + 8 * (name == "defended"))
    assert recorded.capture_refused is None
    assert recorded._captured.recorded == 1 + (name == "defended")  # with and without coverage
    assert plain._captured.recorded == 0


def test_a_matmul_precision_that_was_set_by_its_newer_name_is_no_error(monkeypatch):
    """Torch then refuses to tell it by the older one."""

    def refuse() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    recorded = model_of()
    alike(recorded, model_of(capture=False))
    assert recorded._captured.recorded == 1


def test_attentions_backend_is_part_of_what_a_recording_is_of():
    recorded = model_of()
    alike(recorded, model_of(capture=False), RECORDED_AT)
    torch.backends.cuda.enable_math_sdp(False)
    try:
        recorded.step(data_of())
        assert recorded._captured.recorded == 1, "the one of before is not this one's"
        assert len(recorded._captured._calls) == 2
    finally:
        torch.backends.cuda.enable_math_sdp(True)


def test_each_batch_size_has_a_recording():
    recorded = model_of()
    alike(recorded, model_of(capture=False), 3 * RECORDED_AT, sizes=(24, 24, 7))
    assert recorded._captured.recorded == 2


def test_without_a_generator_the_global_one_is_drawn_from():
    one, other = model_of(), model_of(capture=False)
    for model in (one, other):
        torch.manual_seed(5)
        for update in range(UPDATES):
            last = model.step(
                data_of(seed=update), generator=None if update % 2 else torch.Generator().manual_seed(update)
            )
        model.last = last
    assert one.last == other.last
    for update in range(2 * RECORDED_AT):  # each kind has a recording of its own
        one.step(data_of(), generator=None if update % 2 else torch.Generator().manual_seed(1))
    assert one._captured.recorded == 2


def test_scheduled_penalties_need_no_new_recording():
    model, begun = model_of(), set()
    for update in range(2 * UPDATES):
        model.gradient_penalty = 0.1 / (1 + update)
        model.step(data_of())
        begun.add(model._captured._patience)
    assert len(begun) == 1
    assert model._captured.recorded == 1


def test_a_run_s_updates_are_recorded():
    trainer = Trainer(Config(updates=20, batch_size=32, lr_decay_from=0.2))
    for _ in range(UPDATES):
        trainer.step()
    assert trainer.ade.capture_refused is None
    assert trainer.ade._captured.recorded >= 1


def test_a_setting_that_follows_the_updates_is_followed():
    class Annealed(ade.ADE):
        entropy_weight = property(lambda self: 1 + 0.1 * vars(self).get("updates", 0), lambda self, value: None)

    models = []
    for capture in (None, False):
        plain = model_of()
        models.append(Annealed(plain.potential, plain.sampler, capture=capture))
    alike(*models)
    assert "Annealed is not known" in models[0].capture_refused


def test_more_batch_sizes_than_are_kept_take_the_usual_way():
    sizes = tuple(range(5, 15))
    recorded = model_of()
    alike(recorded, model_of(capture=False), (RECORDED_AT + 2) * len(sizes), sizes=sizes)
    assert recorded._captured.recorded == 8


def test_a_memory_budget_is_kept_to():
    model = model_of()
    try:
        for _ in range(UPDATES):
            model.step(data_of())
        kept = model.sampler.dynamics.last_plan
        ade.set_memory_budget(0)
        model.step(data_of())
        assert model.sampler.dynamics.last_plan != kept
    finally:
        ade.set_memory_budget(None)


def test_coverage_has_one_weight_in_updates_and_in_losses():
    """Every fourth update has all of it, each loss a quarter."""
    options = {"initial": lambda: ade.initial.SplineFlow(DIM), "coverage": 0.4}
    stepping, own = model_of(**options), model_of(**options, optimizer=False)
    data = data_of()

    def gradient(model, covering):
        model.zero_grad()
        terms, _, _ = model._objective(data, torch.Generator().manual_seed(1), None, covering=covering)
        terms.loss.backward()
        return torch.cat([p.grad.flatten() for p in model.sampler_parameters()])

    whole, none = gradient(own, 0.4), gradient(own, 0.0)
    own.zero_grad()
    own.loss(data, generator=torch.Generator().manual_seed(1)).backward()
    found = torch.cat([p.grad.flatten() for p in own.sampler_parameters()])
    torch.testing.assert_close(found - none, (whole - none) / 4, rtol=1e-3, atol=1e-6)
    weights = []
    for _ in range(8):
        weights.append(stepping._covering())
        stepping.step(data)
    assert weights == [0.4, 0, 0, 0] * 2


def test_copies_and_pickles_begin_anew():
    model = model_of()
    for _ in range(UPDATES):
        model.step(data_of())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin._captured.recorded == 0
        alike(copy.deepcopy(model), twin, UPDATES)


def test_autocast_takes_the_usual_way():
    one, other = model_of(), model_of(False)
    alike(one, other)
    with torch.autocast("cpu", torch.bfloat16):
        alike(one, other, 2)


def test_capture_is_true_false_or_none():
    with pytest.raises(TypeError, match="ADE: capture must be True, False or None, got 'yes'"):
        model_of("yes")
    with pytest.raises(TypeError, match="ADE: capture must be True, False or None, got 1"):
        model_of().capture = 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch.cuda.is_available() is False")
@pytest.mark.parametrize("name", ["elbo", "importance", "annealed"])
def test_a_cuda_graph_goes_the_same_way(name):
    models = [model_of(capture, **CASES[name]).cuda() for capture in (True, False)]
    ends = []
    for model in models:
        generator = torch.Generator("cuda").manual_seed(3)
        ends.append([model.step(data_of(seed=u).cuda(), generator=generator) for u in range(UPDATES)][-1])
    assert models[0].capture_refused is None
    assert models[0]._captured.recorded == 1
    assert ends[0] == pytest.approx(ends[1], rel=1e-4, abs=1e-5)

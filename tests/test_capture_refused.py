"""What is recorded on request alone, and what is not at all."""

from __future__ import annotations

import pytest
import torch
from capture_cases import DIM, UPDATES, alike, data_of, model_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ade_fast as ade


class _Smooth(nn.Module):
    """One that autograd differentiates; with noise, which it draws anew at each evaluation."""

    def __init__(self, noise: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(DIM, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 1))
        self.noise = noise

    def forward(self, x):
        return self.layers(x + self.noise * torch.randn_like(x) if self.noise else x).squeeze(-1)


def test_potentials_of_autograd_are_recorded_on_request():
    one, other = model_of(True, potential=_Smooth), model_of(False, potential=_Smooth)
    alike(one, other)
    assert one.capture_refused is None
    assert one._captured.recorded == 1


def test_what_an_evaluation_draws_is_not_recorded():
    """The backward pass draws the same again, by the generators' states, which no operator knows."""
    model = model_of(True, potential=lambda: _Smooth(0.1))
    for _ in range(UPDATES):
        model.step(data_of())
    assert model.capture_refused is not None
    assert model._captured.recorded == 0


def test_a_mode_of_dispatch_sees_every_operator():
    class Counting(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Counting.calls += "mlp_unroll" in str(func)
            return func(*args, **(kwargs or {}))

    model = model_of()
    for _ in range(UPDATES):
        model.step(data_of())
    with Counting():
        model.step(data_of())
    assert Counting.calls == 2  # forward and backward


class _Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(DIM, 1)

    def forward(self, x):
        return -self.linear(x).square().sum(1) - 0.5 * x.square().sum(1)


class _Deciding(_Own):
    def forward(self, x):
        return super().forward(x) * (2.0 if x.mean() > 0 else 1.0)


class _Captive(_Own):
    def __init__(self):
        super().__init__()
        self.outside = [torch.ones(())]

    def forward(self, x):
        return super().forward(x) * self.outside[0]


def test_a_potential_of_ones_own_is_recorded_on_request_alone():
    unasked, asked = model_of(potential=_Own), model_of(True, potential=_Own)
    alike(unasked, model_of(False, potential=_Own))
    assert unasked._captured.recorded == 0
    for _ in range(UPDATES):
        asked.step(data_of())
    assert asked._captured.recorded == (asked.capture_refused is None)


@pytest.mark.parametrize(("kind", "why"), [(_Deciding, "reads a value"), (_Captive, "that no operator made")])
def test_what_cannot_be_replayed_is_refused(kind, why):
    recorded = model_of(True, potential=kind)
    alike(recorded, model_of(False, potential=kind))
    assert recorded._captured.recorded == 0
    assert why in recorded.capture_refused


def test_langevin_looks_at_its_noise_in_each_update():
    options = {"dynamics": lambda: ade.Langevin(3, 0.1)}
    recorded = model_of(**options)
    alike(recorded, model_of(False, **options))
    assert "reads a value" in recorded.capture_refused


def test_a_replay_buffer_and_parts_of_ones_own_are_not_recorded():
    class Mine(ade.initial.Gaussian):
        pass

    model = model_of(initial=lambda: Mine(DIM))
    for _ in range(UPDATES):
        model.step(data_of())
    assert "Mine is not known" in model.capture_refused


def test_data_that_needs_gradients_weights_and_diagnostics_take_the_usual_way():
    one, other = model_of(), model_of(False)
    alike(one, other)
    weights = torch.rand(24, generator=torch.Generator().manual_seed(1))
    for arguments in ({"weights": weights}, {"diagnostics": True}, {}):
        data = [data_of(seed=9).requires_grad_(not arguments) for _ in range(2)]
        found = [
            model.step(x, generator=torch.Generator().manual_seed(1), **arguments)
            for model, x in zip((one, other), data, strict=True)
        ]
        assert found[0] == found[1]
        assert arguments or torch.equal(data[0].grad, data[1].grad)


def test_conditions_take_the_usual_way():
    class Conditional(_Own):
        def forward(self, x, condition):
            return super().forward(x) * condition

    one, other = model_of(True, potential=Conditional), model_of(False, potential=Conditional)
    for update in range(UPDATES):
        condition = torch.full((24,), 1.0 + update)
        found = [
            model.step(data_of(), condition=condition, generator=torch.Generator().manual_seed(update))
            for model in (one, other)
        ]
        assert found[0] == found[1]
    assert one._captured.recorded == 0


def test_to_set_it_again_is_to_look_anew():
    model = model_of(potential=_Own)
    for _ in range(UPDATES):
        model.step(data_of())
    assert "do not know the potential" in model.capture_refused
    model.capture = False
    assert model.capture_refused is None

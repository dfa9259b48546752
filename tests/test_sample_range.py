"""sample_range with an interval per dimension: the reference's results, on every path; the fuzzer draws it too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fuzz_cases import Case
from fuzz_check import error_of

import ade_fast as ade

LO, HI = torch.tensor([-0.5, -1.0, -float("inf")]), torch.tensor([0.25, 0.75, 0.6])
CASES = {
    "leapfrog": Case("leapfrog", dim=3, batch=8),
    "damped": Case("damped", dim=3, batch=8, second_step="number"),
    "generalized": Case("generalized", dim=3, batch=8, scales=("tensor", "number")),
    "networks": Case("generalized", dim=3, batch=8, scales=("network", "network"), shifts=True),
    "langevin": Case("langevin", dim=3, batch=8, second_step="number"),
    "shifted": Case("langevin", dim=3, batch=8, second_step="number", shifts=True),
    "image": Case("leapfrog", family="conv", batch=4),
    "reversible": Case("damped", memory="reversible", dim=3, batch=8),
}


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("changes", [{}, {"family": "plain", "memory": "states"}, {"momentum_clip": "value"}], ids=str)
def test_it_is_the_references(name: str, changes: dict[str, Any]) -> None:
    changes = {k: v for k, v in changes.items() if (k, name) not in {("family", "image"), ("memory", "reversible")}}
    case = replace(CASES[name], sample_range="per_dim", n_steps=4, **changes)
    assert max(error_of(replace(case, seed=seed, content="wide")) for seed in range(3)) < 1e-10


def test_samples_end_inside_and_a_bound_may_be_infinite() -> None:
    torch.manual_seed(0)
    f, x0 = ade.MLPPotential(3, (32,)), 3 * torch.randn(50, 3, requires_grad=True)
    for memory in ("graph", "states", "reversible"):
        layer = ade.Leapfrog(3, 0.3, sample_range=(LO, HI), memory=memory)
        x = layer(f, x0).x
        assert bool((x >= LO - 1e-6).all() and (x <= HI + 1e-6).all()) and x[:, 2].min() < -1
        assert layer.last_plan.field != "mlp"
    assert any("a sample_range per dimension" in message for message in ade.slow_paths())


def test_equal_bounds_are_numbers_and_keep_the_kernels() -> None:
    f, x0 = ade.MLPPotential(3, (32,)), torch.randn(5, 3, requires_grad=True)
    layer = ade.Leapfrog(3, 0.3, sample_range=(torch.full((3,), -1.0), 1.0))
    layer(f, x0)
    assert layer.options.sample_range == (-1.0, 1.0) and layer.last_plan.field == "mlp"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((LO, HI[:2]), r"broadcast to one shape, got \(3,\) and \(2,\)"),
        ((HI, LO), r"lo < hi in every dimension, got \(\[0.25"),
        ((LO, float("nan")), "lo < hi in every dimension"),
        ((LO > 0, HI), "a pair of numbers"),
    ],
)
def test_misuse(given: Any, wanted: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"Leapfrog: sample_range must.*{wanted}"):
        ade.Leapfrog(2, sample_range=given)


def test_it_must_broadcast_to_the_event() -> None:
    layer = ade.Leapfrog(2, sample_range=(LO, HI))
    with pytest.raises(ValueError, match=r"Leapfrog: sample_range must broadcast to the event \(2,\), got shapes"):
        layer(ade.MLPPotential(2, (32,)), torch.randn(4, 2))

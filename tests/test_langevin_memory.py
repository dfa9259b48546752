"""What a Langevin unroll keeps for its backward pass: beside the outputs, no more than the states of its steps."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import make_potential
from torch import Tensor, nn

import ade_fast as ade
from ade_fast.dynamics.langevin import LangevinProgram

BATCH, DIM = 64, 3
ONE_STATE = BATCH * DIM * 8  # bytes
MLP = {"silu": "silu", "relu": "relu", "based": "silu"}


def potential_of(name: str) -> nn.Module:
    if name not in MLP:
        return make_potential(name.removeprefix("general "))
    potential = ade.MLPPotential(DIM, hidden=(32, 32), activation=MLP[name]).double()
    return ade.WithBase(potential, 0.0, 1.5).double() if name == "based" else potential


def kept(outputs: tuple[Tensor, ...], without: list[Tensor]) -> int:
    """Bytes of everything that the outputs' graphs hold, each storage once, but for that of some tensors."""
    storages, seen, nodes = {}, set(), [t.grad_fn for t in outputs]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [function for function, _ in node.next_functions]
        for name in dir(node):
            saved = getattr(node, name) if name == "saved_tensors" or name.startswith("_saved") else ()
            for tensor in saved if isinstance(saved, (tuple, list)) else [saved]:
                if isinstance(tensor, Tensor):
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    for tensor in without:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def states_kept(name: str, n_steps: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> float:
    """In units of one state, beside x⁰, the outputs and all parameters."""
    potential, x0 = potential_of(name), torch.randn(BATCH, DIM, dtype=torch.float64)
    layer = ade.Langevin(n_steps, 0.1, memory="states", **options).double()
    out = layer(potential, x0, generator=torch.Generator().manual_seed(0))
    assert (layer.last_plan.field == "mlp") is (name in MLP)
    # To look at it has the noise drawn again, which is not kept (tests/test_langevin.py): here it takes no room.
    empty: Callable = lambda *_: x0.new_zeros(()).expand(n_steps, BATCH, DIM)  # noqa: E731
    monkeypatch.setattr(LangevinProgram, "_all_noise", empty)
    without = [x0, out.x, out.v, *layer.parameters(), *potential.parameters(), *potential.buffers()]
    found = kept((out.x, out.v, out.log_noise), without) / ONE_STATE
    monkeypatch.undo()
    return found


# A general piecewise-linear f keeps ∇f beside x: its backward pass evaluates nothing step by step.
@pytest.mark.parametrize(
    ("name", "states"), [("silu", 1), ("relu", 1), ("based", 1), ("general silu", 1), ("general relu", 2)]
)
@pytest.mark.parametrize("options", [{}, {"learn_noise_std": True, "grad_clip": ade.Clip.norm(0.6)}], ids=str)
def test_a_step_keeps_its_state(
    name: str, states: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (states_kept(name, n_steps, monkeypatch, **options) for n_steps in (8, 24))
    assert (many - few) / 16 <= 1.1 * states
    assert few <= 8 * states + 5, "and few more for the whole"


def test_momenta_are_kept_where_they_are_outputs() -> None:
    """One storage holds v, as an output and for the backward pass: no step has a second."""
    layer = ade.Langevin(6, 0.1).double()
    out = layer(potential_of("silu"), torch.randn(BATCH, DIM, dtype=torch.float64))
    gc.collect()
    assert out.v.untyped_storage().nbytes() == 6 * ONE_STATE
    nodes = [out.x.grad_fn]
    while nodes and "_UnrollBackward" not in nodes[0].name():
        nodes = nodes[1:] + [function for function, _ in nodes[0].next_functions if function is not None]
    saved = [t.untyped_storage().data_ptr() for t in nodes[0].saved_tensors if t is not None]
    assert saved.count(out.v.untyped_storage().data_ptr()) == 1

"""Recorded updates: what becomes of their gradients, and of whoever watches these."""

from __future__ import annotations

import pytest
import torch
from capture_cases import UPDATES, data_of, model_of, with_base
from torch import nn

import ade_fast as ade
from ade_fast.training.accumulation import are_apart


def test_hooks_of_accumulated_gradients_are_called_once_an_update():
    model, calls = model_of(), []
    weight = model.potential.layers[0].weight
    weight.register_post_accumulate_grad_hook(lambda p: calls.append("after"))
    node = weight.view_as(weight).grad_fn.next_functions[0][0]
    node.register_prehook(lambda grads: calls.append("before"))
    for _ in range(UPDATES):
        model.step(data_of())
    assert model._captured.recorded == 1
    assert calls.count("after") == UPDATES
    assert calls.count("before") == UPDATES


def _accumulated_by_hand(model: ade.ADE) -> list[bool]:
    """Whether the gradients of each recording are handed on as they are, with what is hooked at this moment."""
    watched = model._captured._unchanged.accumulators.are_watched()
    return [known.apart and not watched for known in model._captured._replays.values()]


def test_gradients_that_nobody_watches_are_handed_on_as_they_are():
    """And become autograd's matter again for as long as somebody does, however they are hooked."""
    model, calls = model_of(), []
    weight = model.potential.layers[0].weight

    def updates():
        calls.clear()
        for _ in range(3):
            model.step(data_of())
        return _accumulated_by_hand(model), len(calls)

    for _ in range(UPDATES):
        model.step(data_of())
    assert updates() == ([True], 0)
    node = weight.view_as(weight).grad_fn.next_functions[0][0]
    for register in (node.register_hook, node.register_prehook, weight.register_post_accumulate_grad_hook):
        handle = register(lambda *_: calls.append(1))
        assert updates() == ([False], 3)
        handle.remove()
        assert updates() == ([True], 0)


def test_a_node_that_somebody_holds_already_may_be_hooked():
    model = model_of()
    held = [p.view_as(p).grad_fn.next_functions[0][0] for p in model.potential.parameters()]
    for _ in range(UPDATES):
        model.step(data_of())
    assert _accumulated_by_hand(model) == [False]
    assert len(held) == 6


@pytest.mark.parametrize("model", [model_of, lambda: model_of(potential=with_base, bound="importance")])
def test_gradients_are_memory_of_their_own(model):
    """So that one can be written to, as clipping does, and nothing else changes."""
    model = model()
    for _ in range(UPDATES):
        model.step(data_of())
    assert _accumulated_by_hand(model) == [True]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) == len({g.data_ptr() for g in gradients})
    kept = [g.clone() for g in gradients]
    model.step(data_of())
    for gradient, before in zip(gradients, kept, strict=True):
        assert torch.equal(gradient, before)  # the next update's are others
    for g in gradients:
        for other in gradients:
            before = other.clone()
            g.add_(1.0)
            assert other is g or torch.equal(other, before)


def test_which_gradients_are_apart():
    p = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(4))]
    memory = torch.zeros(40)
    apart = [memory[:12].view(3, 4), memory[12:16]]
    assert are_apart(apart, p, [memory[16:], 1.0, None, memory[20:]])
    assert are_apart([apart[0], None], p, [memory[12:]])
    assert not are_apart(apart, p, [memory[11:13]])
    assert not are_apart([apart[0], memory[11:15]], p, [])
    assert not are_apart([memory[:12].view(4, 3).T, memory[12:16]], p, [])  # laid out otherwise
    assert not are_apart([apart[0], torch.zeros(1).expand(4)], p, [])
    assert not are_apart([apart[0], memory[12:16].double()], p, [])

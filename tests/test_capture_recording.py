"""Recordings: which operators they hold, and how they are simplified."""

from __future__ import annotations

import pytest
import torch

from ade_fast._ops import below_autograd
from ade_fast.training.recording import record


def test_views_of_what_lasts_are_made_once():
    """And show its values of the time; not those that are handed out, nor those of memory that is written to."""
    weight, state, x = torch.randn(3, 4, requires_grad=True), torch.randn(4), torch.randn(2, 4)

    def compute():
        state.add_(1.0)
        return x @ weight.t(), weight.t()[1:], weight[0] * state[None]

    _, replay = record(compute, [x], [weight, state])
    code = replay._run.__self__.code
    assert code.count("aten.t.") == 0
    assert code.count("aten.slice.") == 1
    assert code.count("aten.unsqueeze.") == 1
    with torch.no_grad():
        weight.mul_(2.0)
    before = state.clone()
    found = replay(x)
    state.copy_(before)
    with torch.no_grad():
        for now, again in zip(compute(), found, strict=True):
            assert torch.equal(now, again)
    assert not any(t.requires_grad for t in replay.given if t is not weight)


@pytest.mark.parametrize("context", [below_autograd, torch.inference_mode, torch.no_grad])
def test_copies_that_might_have_been_views_are_made_each_time(context):
    """Schemas call these aliases, and below autograd they come as they are written."""
    weight, x = torch.randn(3, 4), torch.randn(2, 4)

    def compute():
        with context():
            turned = weight.t()
            made = [
                turned.contiguous(),
                turned.reshape(-1),
                weight.to(torch.float64),
                turned.flatten(),
                weight.reshape(-1),
            ]
        return x @ weight.t(), *[2 * t for t in made]

    _, replay = record(compute, [x], [weight])
    weight.add_(1.0)
    for now, again in zip(compute(), replay(x), strict=True):
        assert torch.equal(now, again)


def test_what_nobody_takes_is_in_no_sum():
    x, w = torch.randn(3), torch.randn(3)

    def compute():
        first, same, other = x + w, x + w, x * 2 + w
        x.exp() + w.sin()
        return first, same, other

    _, replay = record(compute, [x, w], [])
    code = replay._run.__self__.code
    assert "exp" not in code and "sin" not in code
    (sums,) = [n for n in replay._run.__self__.graph.nodes if "foreach_add" in str(n.target)]
    assert len(sums.args[0]) == 2


def test_a_view_that_is_as_something_before_is_left_out():
    a = torch.randn(2, 3)

    def compute():
        b = a * 2
        return b.t().t() + 1, b.t().exp().t(), b[None][0].t()

    found, replay = record(compute, [a], [])
    code = replay._run.__self__.code
    assert code.count("aten.t.default(") == 2  # to exp, which the last output is too, and from it
    assert code.count("unsqueeze") == code.count("select") == 0
    for one, other in zip(found, replay(a), strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()


def test_sums_are_made_together_where_nobody_looks_in_between():
    a, b = (torch.randn(3) for _ in range(2))

    def compute():
        first, second = a + b, a * 2 + b
        early = a + 3 * b
        third = early.exp() + b
        return first, second, third, early

    found, replay = record(compute, [a, b], [])
    code = replay._run.__self__.code
    assert code.count("aten._foreach_add.List(") == 1
    assert code.count("aten.add.Tensor(") == 1  # the one that exp takes
    a.mul_(0.5)
    for was, now, again in zip(found, compute(), replay(a, b), strict=True):
        assert torch.equal(now, again) and not torch.equal(now, was)

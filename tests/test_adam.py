"""The players' Adam is torch's, to the last bit, whatever happens to it."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn, optim
from torch.optim.lr_scheduler import ExponentialLR

from ade_fast.training import adam
from ade_fast.training.adam import Adam

SHAPES = [(7, 3), (7,), (1, 7), ()]
OPTIONS = [
    {}, {"maximize": True}, {"weight_decay": 0.1}, {"betas": (0.5, 0.9), "eps": 1e-6, "lr": 0.2},
    {"amsgrad": True}, {"fused": False}, {"decoupled_weight_decay": True, "weight_decay": 0.1},
    {"lr": torch.tensor(0.03)},
]  # fmt: skip


class _Pair:
    """The same parameters with ours and with torch's."""

    def __init__(self, dtype=torch.float32, **options):
        options = {"lr": 0.05, "fused": True} | options
        values = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
        self.params = [[nn.Parameter(v.clone()) for v in values] for _ in range(2)]
        groups = [[{"params": p[:2]}, {"params": p[2:], "eps": 1e-5}] for p in self.params]
        self.optimizers = [kind(group, **options) for kind, group in zip((Adam, optim.Adam), groups, strict=True)]

    def step(self, left_out=()):
        for k, (a, b) in enumerate(zip(*self.params, strict=True)):
            a.grad = None if k in left_out else torch.randn_like(a)
            b.grad = None if a.grad is None else a.grad.clone()
        for optimizer in self.optimizers:
            optimizer.step()

    def check(self):
        for a, b in zip(*self.params, strict=True):
            assert torch.equal(a, b)
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.testing.assert_close(*(state["state"] for state in states), rtol=0, atol=0)
        assert states[0]["param_groups"] == states[1]["param_groups"]


@pytest.fixture
def calls(monkeypatch):
    """How often the kernel was called at once."""
    made = []
    whole = adam._call
    monkeypatch.setattr(adam, "_call", lambda *args: (made.append(1), whole(*args)))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_are_those_of_torch(options, dtype, calls):
    pair = _Pair(dtype, **options)
    for _ in range(5):
        pair.step()
    pair.check()
    rarer = {"amsgrad", "fused", "decoupled_weight_decay"} & set(options) or isinstance(options.get("lr"), torch.Tensor)
    assert len(calls) == (0 if rarer else 8)  # two groups; the first step makes the states


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_what_happens_between_steps_is_seen(calls):
    pair = _Pair()

    def twice():
        pair.step()
        before = len(calls)
        pair.step()
        pair.check()
        return len(calls) - before

    assert twice() == 2
    pair.step(left_out=(1,))  # a parameter without a gradient is left alone
    pair.check()
    assert twice() == 2
    for optimizer in pair.optimizers:  # others' tensors in the place of the states
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert twice() == 2
    for optimizer, params in zip(pair.optimizers, pair.params, strict=True):
        optimizer.state[params[0]]["exp_avg"] = torch.ones_like(params[0])
    assert twice() == 2
    for optimizer, params in zip(pair.optimizers, pair.params, strict=True):
        optimizer.state.pop(params[3])  # begins anew
    assert twice() == 2
    for params in pair.params:
        params.append(nn.Parameter(torch.ones(2)))
    for optimizer, params in zip(pair.optimizers, pair.params, strict=True):
        optimizer.add_param_group({"params": [params[-1]], "lr": 0.5})
    assert twice() == 3
    schedulers = [ExponentialLR(optimizer, 0.5) for optimizer in pair.optimizers]
    for scheduler in schedulers:
        scheduler.step()
    assert twice() == 3
    seen = []
    handles = [o.register_step_pre_hook(lambda *args: seen.append(1)) for o in pair.optimizers]
    assert twice() == 0
    assert len(seen) == 4
    for handle in handles:
        handle.remove()
    assert twice() == 3


def test_a_copy_goes_on_by_itself():
    pair = _Pair()
    pair.step()
    pair.step()
    params, optimizer = copy.deepcopy((pair.params[0], pair.optimizers[0]))
    pair.step()
    for p, like in zip(params, pair.params[0], strict=True):
        p.grad = like.grad.clone()
    optimizer.step()
    for a, b in zip(params, pair.params[0], strict=True):
        assert torch.equal(a, b)


def test_hooks_are_called_where_torchs_own_was_never_made():
    code = """
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from ade_fast.training.adam import Adam
p = torch.nn.Parameter(torch.ones(2))
calls = []
optimizer = Adam([p], fused=True)
optimizer.register_step_pre_hook(lambda *a: calls.append(1))
register_optimizer_step_post_hook(lambda *a: calls.append(2))
for _ in range(3):
    p.grad = torch.ones(2)
    optimizer.step()
assert calls == [1, 2] * 3, calls
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_another_list_of_parameters_and_none_at_all_are_seen(calls):
    pair = _Pair()
    for _ in range(2):
        pair.step()
    pair.params = [params[1:] for params in pair.params]
    for optimizer, params in zip(pair.optimizers, pair.params, strict=True):
        optimizer.param_groups[0]["params"] = params[:1]
        optimizer.add_param_group({"params": []})
    for _ in range(2):
        pair.step()
    for a, b in zip(*pair.params, strict=True):
        assert torch.equal(a, b)


def test_a_closure_is_called():
    pair = _Pair()
    pair.step()
    assert pair.optimizers[0].step(lambda: 3.0) == 3.0

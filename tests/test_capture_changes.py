"""Recorded updates: what changes between them is seen."""

from __future__ import annotations

import pytest
import torch
from capture_cases import DIM, UPDATES, alike, data_of, model_of
from torch import nn

import ade_fast as ade
from ade_fast.training.capture import RECORDED_AT, Unchanged


def _replace(model, update):
    if update == RECORDED_AT + 1:
        layer = model.potential.layers[0]
        layer.weight = nn.Parameter(layer.weight.detach().clone())  # equal, and another
        model.potential_optimizer = ade.training.updates.adam(maximize=True)(model.potential.parameters())


def _swap_memory(model, update):
    if update == RECORDED_AT + 1:
        for p in model.potential.parameters():
            p.data = p.data.clone() * 1.5


def _freeze(model, update):
    if update == RECORDED_AT + 1:
        model.potential.layers[0].weight.requires_grad_(False)


def _set(name, value):
    def change(model, update):
        if update == RECORDED_AT + 1:
            setattr(model, name, value)

    return change


def _set_steps(model, update):
    if update == RECORDED_AT + 1:
        model.sampler.dynamics.n_steps = 5


def _hook(model, update):
    if update == RECORDED_AT + 1:
        model.potential.layers[0].register_forward_hook(lambda module, args, out: 2 * out)


def _of_its_own(model, update):
    if update == RECORDED_AT + 1:
        linear = model.potential.layers[0]
        linear.forward = lambda x: nn.functional.linear(x, 2 * linear.weight, linear.bias)


def _tensor_hook(model, update):
    if update == RECORDED_AT + 1:
        model.potential.layers[0].weight.register_hook(lambda g: 3 * g)


def _in_place(model, update):
    if update >= RECORDED_AT:
        with torch.no_grad():
            model.sampler.dynamics.step_size.mul_(0.9)
            model.momentum_weight.mul_(1.1)


def _schedule(model, update):
    model.gradient_penalty = 0.0 if update < 2 else 0.1 / (1 + update)
    model.value_penalty = 0.01 * (1 + update)


CHANGES = {
    "scheduled penalties": _schedule,
    "a parameter replaced": _replace,
    "memory swapped": _swap_memory,
    "a parameter frozen": _freeze,
    "a penalty": _set("gradient_penalty", 0.3),
    "a weight of the entropy": _set("entropy_weight", 0.5),
    "samples per point": _set("samples_per_point", 2),
    "the steps": _set_steps,
    "a module's hook": _hook,
    "a forward of its own": _of_its_own,
    "a tensor's hook": _tensor_hook,
    "values in place": _in_place,
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_between_updates_is_seen(name):
    recorded = model_of()
    alike(recorded, model_of(capture=False), 2 * RECORDED_AT + 4, CHANGES[name])
    assert (recorded.capture_refused is None) == (name not in ("a module's hook", "a forward of its own"))


@pytest.mark.parametrize("capture", [True, None])
def test_a_patch_of_torch_is_seen(monkeypatch, capture):
    def change(model, update):
        if (update, model) == (RECORDED_AT + 1, one):
            linear = nn.functional.linear
            monkeypatch.setattr(nn.functional, "linear", lambda x, w, b=None: linear(x, 1.1 * w, b))
        if (update, model) == (RECORDED_AT + 2, one):
            monkeypatch.undo()

    options = {"initial": lambda: ade.initial.MLPGaussian(DIM)}
    one, other = model_of(capture, **options), model_of(capture=False, **options)
    alike(one, other, UPDATES, change)


class _Quicker(ade.Leapfrog):
    def forward(self, *args, **options):
        output = super().forward(*args, **options)
        return output._replace(x=output.x * 1.01)


@pytest.mark.parametrize("attribute", ["_forward_hooks", "_forward_pre_hooks"])
def test_what_moves_from_one_part_to_the_next_is_seen(attribute):
    """The same objects in the same order, of another dictionary: a hook before becomes one behind."""
    module = nn.Linear(2, 2)
    getattr(module, attribute)[0] = print
    unchanged = Unchanged([module])
    assert unchanged.holds()
    (other,) = {"_forward_hooks", "_forward_pre_hooks"} - {attribute}
    getattr(module, other)[0] = getattr(module, attribute).pop(0)
    assert not unchanged.holds()
    getattr(module, attribute)[0] = getattr(module, other).pop(0)
    assert unchanged.holds()


def _another_class(model, update):
    if update == RECORDED_AT + 1:
        model.sampler.dynamics.__class__ = _Quicker


@pytest.mark.parametrize("capture", [True, None])
def test_another_class_is_seen(capture):
    alike(model_of(capture), model_of(False), UPDATES, _another_class)


@pytest.mark.parametrize("capture", [True, None])
def test_a_hook_on_all_modules_is_seen(capture):
    handles = []

    def change(model, update):
        if update == RECORDED_AT + 1 and not handles:
            hook = torch.nn.modules.module.register_module_forward_hook
            handles.append(hook(lambda module, args, out: 1.1 * out if isinstance(module, nn.Linear) else None))
        if update == RECORDED_AT + 2:
            handles[0].remove()

    options = {"initial": lambda: ade.initial.MLPGaussian(DIM)}
    alike(model_of(capture, **options), model_of(False, **options), UPDATES, change)


def test_a_method_of_a_class_that_is_replaced_is_seen(monkeypatch):
    def change(model, update):
        if update == RECORDED_AT + 1:
            draw = ade.initial.PlanarFlow.sample
            if not hasattr(draw, "own"):
                own = lambda *args, **options: (s := draw(*args, **options))._replace(x=1.1 * s.x)  # noqa: E731
                own.own = True
                monkeypatch.setattr(ade.initial.PlanarFlow, "sample", own)

    one, other = model_of(), model_of(False)
    alike(one, other, RECORDED_AT + 1)  # both with the class as it is
    for update in range(RECORDED_AT + 1, UPDATES):
        change(one, update)
        found = [m.step(data_of(seed=update), generator=torch.Generator().manual_seed(update)) for m in (one, other)]
        assert found[0] == found[1]


def _counting(module, args, out):
    _counting.calls += 1


@pytest.mark.parametrize("part", ["sampler.dynamics", "sampler.initial", "potential"])
def test_hooks_of_modules_are_called_in_each_update(part):
    counts = []
    for capture in (None, True, False):
        model = model_of(capture, initial=lambda: ade.initial.MLPGaussian(DIM))
        module = model.get_submodule(part)
        (module.net if hasattr(module, "net") else module).register_forward_hook(_counting)
        _counting.calls = 0
        for _ in range(UPDATES):
            model.step(data_of())
        counts.append(_counting.calls)
        assert model._captured.recorded == 0
    assert len(set(counts)) == 1


class _Writing(ade.initial.Gaussian):
    how = "view"

    def sample(self, n, momentum_shape=None, generator=None):
        drawn = super().sample(n, momentum_shape=momentum_shape, generator=generator)
        h = drawn.x.detach().clone()
        a = h * 2
        if self.how == "view":
            h[:, 0] = 5.0
        elif self.how == "foreach":
            torch._foreach_add_([h], 1.0)
        elif self.how == "detach":
            h.detach().add_(1.0)
        elif self.how == "passed on":
            old = h * 1
            h.add_(1.0)
            a = old * 2
        elif self.how == "mask":
            chosen = h[:, 0] > 0
            h[chosen] = h[chosen].sum() / len(h[chosen])
        return drawn._replace(x=drawn.x + 0.01 * (a - h * 2))


@pytest.mark.parametrize("how", ["view", "foreach", "detach", "passed on", "mask"])
def test_memory_that_is_written_to_is_read_as_it_is_then(how):
    def start():
        made = _Writing(DIM)
        made.how = how
        return made

    recorded = model_of(True, initial=start)
    alike(recorded, model_of(False, initial=start))
    assert (recorded._captured.recorded == 0) == (how == "mask")


def test_what_changes_again_and_again_is_no_longer_recorded():
    model = model_of()
    for update in range(12 * RECORDED_AT):
        if update % (RECORDED_AT + 1) == RECORDED_AT:
            model.entropy_weight = 1.0 + 0.001 * update
        model.step(data_of())
    assert "changed again and again" in model.capture_refused


def test_values_laid_out_otherwise_in_the_same_place_are_seen():
    def transpose(model, update):
        if update == RECORDED_AT + 2:
            weight = model.potential.layers[2].weight
            weight.data = weight.data.t()

    one, other = model_of(), model_of(False)
    alike(one, other, change=transpose)
    assert one._captured.recorded == 1


def test_other_shapes_are_no_matter_to_what_is_not_recorded():
    for evaluate in (lambda m: m.step(data_of(), diagnostics=True), lambda m: m.loss(data_of()).backward()):
        model = model_of()
        for _ in range(UPDATES):
            model.step(data_of())
        first, last = model.potential.layers[2], model.potential.layers[4]
        first.weight.data, first.bias.data = (
            t.data.repeat(2, 1)[:64] if t.dim() == 2 else t.data.repeat(2) for t in (first.weight, first.bias)
        )
        last.weight.data = last.weight.data.repeat(1, 2)
        first.out_features = last.in_features = 64
        for p in model.parameters():
            p.grad = None
        model.potential_optimizer.state.clear()
        evaluate(model)

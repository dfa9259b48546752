"""Updates that are recorded and replayed: what they compute, and when they must not be."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ade_fast as ade
from ade_fast._ops import below_autograd
from ade_fast.training import Config
from ade_fast.training.accumulation import are_apart
from ade_fast.training.capture import RECORDED_AT, Unchanged
from ade_fast.training.recording import record
from ade_fast.training.trainer import Trainer

DIM = 2
UPDATES = RECORDED_AT + 6


def _model(capture: bool | None = None, dynamics=None, initial=None, potential=None, **options) -> ade.ADE:
    torch.manual_seed(0)
    potential = ade.MLPPotential(DIM, hidden=(32, 32)) if potential is None else potential()
    initial = ade.initial.PlanarFlow(DIM, 3) if initial is None else initial()
    dynamics = ade.Leapfrog(3, 0.1) if dynamics is None else dynamics()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ade.ADE(potential, ade.DualSampler(initial, dynamics), capture=capture, **options)


def _data(n: int = 24, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


def _with_base():
    return ade.WithBase(ade.MLPPotential(DIM, hidden=(32,), activation="silu"), 0.0, 2.0)


def _spectral():
    f = ade.MLPPotential(DIM, hidden=(32, 32))
    for layer in f.layers:
        if isinstance(layer, nn.Linear):
            nn.utils.parametrizations.spectral_norm(layer)
    return f


def _alike(one: ade.ADE, other: ade.ADE, updates: int = UPDATES, change=None, sizes=(24,)) -> None:
    """Both go the same way, bit for bit; ``change(model, update)`` is done to both before each update."""
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    for update in range(updates):
        metrics = []
        for model, generator in zip((one, other), generators, strict=True):
            if change is not None:
                change(model, update)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data = _data(sizes[update % len(sizes)], update)
                metrics.append(model.step(data, generator=generator))
        assert metrics[0] == metrics[1], update
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or (torch.equal(p.grad, q.grad) and p.grad.stride() == q.grad.stride()), name
    for p, q in zip(one.buffers(), other.buffers(), strict=True):
        assert torch.equal(p, q)


CASES = {
    "elbo": {},
    "penalties": {"gradient_penalty": 0.1, "value_penalty": 0.01, "grad_norm_clip": 0.5},
    "importance": {"bound": "importance", "sampler_bound": "renyi"},
    "tempered": {"bound": "importance", "min_ess": 0.5, "sampler_bound": "renyi", "sampler_min_ess": 0.3},
    "defended": {
        "potential": _with_base, "initial": lambda: ade.initial.SplineFlow(DIM), "bound": "importance",
        "sampler_bound": "renyi", "defensive": 0.1, "coverage": 0.1, "ess_pace": 0.5, "samples_per_point": 2,
    },
    "spectral norm": {"potential": _spectral, "gradient_penalty": 0.1},
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
    recorded, plain = _model(**options), _model(capture=False, **options)
    _alike(recorded, plain, UPDATES + 8 * (name == "defended"))
    assert recorded.capture_refused is None
    assert recorded._captured.recorded == 1 + (name == "defended")  # with and without coverage
    assert plain._captured.recorded == 0


def test_a_matmul_precision_that_was_set_by_its_newer_name_is_no_error(monkeypatch):
    """Torch then refuses to tell it by the older one."""

    def refuse() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    recorded = _model()
    _alike(recorded, _model(capture=False))
    assert recorded._captured.recorded == 1


def test_attentions_backend_is_part_of_what_a_recording_is_of():
    recorded = _model()
    _alike(recorded, _model(capture=False), RECORDED_AT)
    torch.backends.cuda.enable_math_sdp(False)
    try:
        recorded.step(_data())
        assert recorded._captured.recorded == 1, "the one of before is not this one's"
        assert len(recorded._captured._calls) == 2
    finally:
        torch.backends.cuda.enable_math_sdp(True)


def test_each_batch_size_has_a_recording():
    recorded = _model()
    _alike(recorded, _model(capture=False), 3 * RECORDED_AT, sizes=(24, 24, 7))
    assert recorded._captured.recorded == 2


def test_without_a_generator_the_global_one_is_drawn_from():
    one, other = _model(), _model(capture=False)
    for model in (one, other):
        torch.manual_seed(5)
        for update in range(UPDATES):
            last = model.step(
                _data(seed=update), generator=None if update % 2 else torch.Generator().manual_seed(update)
            )
        model.last = last
    assert one.last == other.last
    for update in range(2 * RECORDED_AT):  # each kind has a recording of its own
        one.step(_data(), generator=None if update % 2 else torch.Generator().manual_seed(1))
    assert one._captured.recorded == 2


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
    recorded = _model()
    _alike(recorded, _model(capture=False), 2 * RECORDED_AT + 4, CHANGES[name])
    assert (recorded.capture_refused is None) == (name not in ("a module's hook", "a forward of its own"))


def test_scheduled_penalties_need_no_new_recording():
    model, begun = _model(), set()
    for update in range(2 * UPDATES):
        model.gradient_penalty = 0.1 / (1 + update)
        model.step(_data())
        begun.add(model._captured._patience)
    assert len(begun) == 1
    assert model._captured.recorded == 1


def test_a_run_s_updates_are_recorded():
    trainer = Trainer(Config(updates=20, batch_size=32, lr_decay_from=0.2))
    for _ in range(UPDATES):
        trainer.step()
    assert trainer.ade.capture_refused is None
    assert trainer.ade._captured.recorded >= 1


@pytest.mark.parametrize("capture", [True, None])
def test_a_patch_of_torch_is_seen(monkeypatch, capture):
    def change(model, update):
        if (update, model) == (RECORDED_AT + 1, one):
            linear = nn.functional.linear
            monkeypatch.setattr(nn.functional, "linear", lambda x, w, b=None: linear(x, 1.1 * w, b))
        if (update, model) == (RECORDED_AT + 2, one):
            monkeypatch.undo()

    options = {"initial": lambda: ade.initial.MLPGaussian(DIM)}
    one, other = _model(capture, **options), _model(capture=False, **options)
    _alike(one, other, UPDATES, change)


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


def _another_class(model, update):
    if update == RECORDED_AT + 1:
        model.sampler.dynamics.__class__ = _Quicker


@pytest.mark.parametrize("capture", [True, None])
def test_another_class_is_seen(capture):
    _alike(_model(capture), _model(False), UPDATES, _another_class)


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
    _alike(_model(capture, **options), _model(False, **options), UPDATES, change)


def test_a_method_of_a_class_that_is_replaced_is_seen(monkeypatch):
    def change(model, update):
        if update == RECORDED_AT + 1:
            draw = ade.initial.PlanarFlow.sample
            if not hasattr(draw, "own"):
                own = lambda *args, **options: (s := draw(*args, **options))._replace(x=1.1 * s.x)  # noqa: E731
                own.own = True
                monkeypatch.setattr(ade.initial.PlanarFlow, "sample", own)

    one, other = _model(), _model(False)
    _alike(one, other, RECORDED_AT + 1)  # both with the class as it is
    for update in range(RECORDED_AT + 1, UPDATES):
        change(one, update)
        found = [m.step(_data(seed=update), generator=torch.Generator().manual_seed(update)) for m in (one, other)]
        assert found[0] == found[1]


def _counting(module, args, out):
    _counting.calls += 1


@pytest.mark.parametrize("part", ["sampler.dynamics", "sampler.initial", "potential"])
def test_hooks_of_modules_are_called_in_each_update(part):
    counts = []
    for capture in (None, True, False):
        model = _model(capture, initial=lambda: ade.initial.MLPGaussian(DIM))
        module = model.get_submodule(part)
        (module.net if hasattr(module, "net") else module).register_forward_hook(_counting)
        _counting.calls = 0
        for _ in range(UPDATES):
            model.step(_data())
        counts.append(_counting.calls)
        assert model._captured.recorded == 0
    assert len(set(counts)) == 1


def test_a_setting_that_follows_the_updates_is_followed():
    class Annealed(ade.ADE):
        entropy_weight = property(lambda self: 1 + 0.1 * vars(self).get("updates", 0), lambda self, value: None)

    models = []
    for capture in (None, False):
        plain = _model()
        models.append(Annealed(plain.potential, plain.sampler, capture=capture))
    _alike(*models)
    assert "Annealed is not known" in models[0].capture_refused


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

    recorded = _model(True, initial=start)
    _alike(recorded, _model(False, initial=start))
    assert (recorded._captured.recorded == 0) == (how == "mask")


def test_more_batch_sizes_than_are_kept_take_the_usual_way():
    sizes = tuple(range(5, 15))
    recorded = _model()
    _alike(recorded, _model(capture=False), (RECORDED_AT + 2) * len(sizes), sizes=sizes)
    assert recorded._captured.recorded == 8


def test_a_memory_budget_is_kept_to():
    model = _model()
    try:
        for _ in range(UPDATES):
            model.step(_data())
        kept = model.sampler.dynamics.last_plan
        ade.set_memory_budget(0)
        model.step(_data())
        assert model.sampler.dynamics.last_plan != kept
    finally:
        ade.set_memory_budget(None)


def test_to_set_it_again_is_to_look_anew():
    model = _model(potential=_Own)
    for _ in range(UPDATES):
        model.step(_data())
    assert "do not know the potential" in model.capture_refused
    model.capture = False
    assert model.capture_refused is None


def test_coverage_has_one_weight_in_updates_and_in_losses():
    """Every fourth update has all of it, each loss a quarter."""
    options = {"initial": lambda: ade.initial.SplineFlow(DIM), "coverage": 0.4}
    stepping, own = _model(**options), _model(**options, optimizer=False)
    data = _data()

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


def test_what_changes_again_and_again_is_no_longer_recorded():
    model = _model()
    for update in range(12 * RECORDED_AT):
        if update % (RECORDED_AT + 1) == RECORDED_AT:
            model.entropy_weight = 1.0 + 0.001 * update
        model.step(_data())
    assert "changed again and again" in model.capture_refused


def test_hooks_of_accumulated_gradients_are_called_once_an_update():
    model, calls = _model(), []
    weight = model.potential.layers[0].weight
    weight.register_post_accumulate_grad_hook(lambda p: calls.append("after"))
    node = weight.view_as(weight).grad_fn.next_functions[0][0]
    node.register_prehook(lambda grads: calls.append("before"))
    for _ in range(UPDATES):
        model.step(_data())
    assert model._captured.recorded == 1
    assert calls.count("after") == UPDATES
    assert calls.count("before") == UPDATES


def _accumulated_by_hand(model: ade.ADE) -> list[bool]:
    """Whether the gradients of each recording are handed on as they are, with what is hooked at this moment."""
    watched = model._captured._unchanged.accumulators.are_watched()
    return [known.apart and not watched for known in model._captured._replays.values()]


def test_gradients_that_nobody_watches_are_handed_on_as_they_are():
    """And become autograd's matter again for as long as somebody does, however they are hooked."""
    model, calls = _model(), []
    weight = model.potential.layers[0].weight

    def updates():
        calls.clear()
        for _ in range(3):
            model.step(_data())
        return _accumulated_by_hand(model), len(calls)

    for _ in range(UPDATES):
        model.step(_data())
    assert updates() == ([True], 0)
    node = weight.view_as(weight).grad_fn.next_functions[0][0]
    for register in (node.register_hook, node.register_prehook, weight.register_post_accumulate_grad_hook):
        handle = register(lambda *_: calls.append(1))
        assert updates() == ([False], 3)
        handle.remove()
        assert updates() == ([True], 0)


def test_a_node_that_somebody_holds_already_may_be_hooked():
    model = _model()
    held = [p.view_as(p).grad_fn.next_functions[0][0] for p in model.potential.parameters()]
    for _ in range(UPDATES):
        model.step(_data())
    assert _accumulated_by_hand(model) == [False]
    assert len(held) == 6


@pytest.mark.parametrize("model", [_model, lambda: _model(potential=_with_base, bound="importance")])
def test_gradients_are_memory_of_their_own(model):
    """So that one can be written to, as clipping does, and nothing else changes."""
    model = model()
    for _ in range(UPDATES):
        model.step(_data())
    assert _accumulated_by_hand(model) == [True]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) == len({g.data_ptr() for g in gradients})
    kept = [g.clone() for g in gradients]
    model.step(_data())
    for gradient, before in zip(gradients, kept, strict=True):
        assert torch.equal(gradient, before)  # the next update's are others
    for g in gradients:
        for other in gradients:
            before = other.clone()
            g.add_(1.0)
            assert other is g or torch.equal(other, before)


def test_values_laid_out_otherwise_in_the_same_place_are_seen():
    def transpose(model, update):
        if update == RECORDED_AT + 2:
            weight = model.potential.layers[2].weight
            weight.data = weight.data.t()

    one, other = _model(), _model(False)
    _alike(one, other, change=transpose)
    assert one._captured.recorded == 1


def test_other_shapes_are_no_matter_to_what_is_not_recorded():
    for evaluate in (lambda m: m.step(_data(), diagnostics=True), lambda m: m.loss(_data()).backward()):
        model = _model()
        for _ in range(UPDATES):
            model.step(_data())
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


class _Smooth(nn.Module):
    """One that autograd differentiates; with noise, which it draws anew at each evaluation."""

    def __init__(self, noise: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(DIM, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 1))
        self.noise = noise

    def forward(self, x):
        return self.layers(x + self.noise * torch.randn_like(x) if self.noise else x).squeeze(-1)


def test_potentials_of_autograd_are_recorded_on_request():
    one, other = _model(True, potential=_Smooth), _model(False, potential=_Smooth)
    _alike(one, other)
    assert one.capture_refused is None
    assert one._captured.recorded == 1


def test_what_an_evaluation_draws_is_not_recorded():
    """The backward pass draws the same again, by the generators' states, which no operator knows."""
    model = _model(True, potential=lambda: _Smooth(0.1))
    for _ in range(UPDATES):
        model.step(_data())
    assert model.capture_refused is not None
    assert model._captured.recorded == 0


def test_a_mode_of_dispatch_sees_every_operator():
    class Counting(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Counting.calls += "mlp_unroll" in str(func)
            return func(*args, **(kwargs or {}))

    model = _model()
    for _ in range(UPDATES):
        model.step(_data())
    with Counting():
        model.step(_data())
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
    unasked, asked = _model(potential=_Own), _model(True, potential=_Own)
    _alike(unasked, _model(False, potential=_Own))
    assert unasked._captured.recorded == 0
    for _ in range(UPDATES):
        asked.step(_data())
    assert asked._captured.recorded == (asked.capture_refused is None)


@pytest.mark.parametrize(("kind", "why"), [(_Deciding, "reads a value"), (_Captive, "that no operator made")])
def test_what_cannot_be_replayed_is_refused(kind, why):
    recorded = _model(True, potential=kind)
    _alike(recorded, _model(False, potential=kind))
    assert recorded._captured.recorded == 0
    assert why in recorded.capture_refused


def test_langevin_looks_at_its_noise_in_each_update():
    options = {"dynamics": lambda: ade.Langevin(3, 0.1)}
    recorded = _model(**options)
    _alike(recorded, _model(False, **options))
    assert "reads a value" in recorded.capture_refused


def test_a_replay_buffer_and_parts_of_ones_own_are_not_recorded():
    class Mine(ade.initial.Gaussian):
        pass

    model = _model(initial=lambda: Mine(DIM))
    for _ in range(UPDATES):
        model.step(_data())
    assert "Mine is not known" in model.capture_refused


def test_data_that_needs_gradients_weights_and_diagnostics_take_the_usual_way():
    one, other = _model(), _model(False)
    _alike(one, other)
    weights = torch.rand(24, generator=torch.Generator().manual_seed(1))
    for arguments in ({"weights": weights}, {"diagnostics": True}, {}):
        data = [_data(seed=9).requires_grad_(not arguments) for _ in range(2)]
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

    one, other = _model(True, potential=Conditional), _model(False, potential=Conditional)
    for update in range(UPDATES):
        condition = torch.full((24,), 1.0 + update)
        found = [
            model.step(_data(), condition=condition, generator=torch.Generator().manual_seed(update))
            for model in (one, other)
        ]
        assert found[0] == found[1]
    assert one._captured.recorded == 0


def test_copies_and_pickles_begin_anew():
    model = _model()
    for _ in range(UPDATES):
        model.step(_data())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin._captured.recorded == 0
        _alike(copy.deepcopy(model), twin, UPDATES)


def test_autocast_takes_the_usual_way():
    one, other = _model(), _model(False)
    _alike(one, other)
    with torch.autocast("cpu", torch.bfloat16):
        _alike(one, other, 2)


def test_capture_is_true_false_or_none():
    with pytest.raises(TypeError, match="ADE: capture must be True, False or None, got 'yes'"):
        _model("yes")
    with pytest.raises(TypeError, match="ADE: capture must be True, False or None, got 1"):
        _model().capture = 1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch.cuda.is_available() is False")
@pytest.mark.parametrize("name", ["elbo", "importance", "annealed"])
def test_a_cuda_graph_goes_the_same_way(name):
    models = [_model(capture, **CASES[name]).cuda() for capture in (True, False)]
    ends = []
    for model in models:
        generator = torch.Generator("cuda").manual_seed(3)
        ends.append([model.step(_data(seed=u).cuda(), generator=generator) for u in range(UPDATES)][-1])
    assert models[0].capture_refused is None
    assert models[0]._captured.recorded == 1
    assert ends[0] == pytest.approx(ends[1], rel=1e-4, abs=1e-5)

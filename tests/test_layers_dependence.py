"""What a potential depends on, wherever it keeps it: all of it gets its gradient once, and none may change unseen."""

import types
import warnings

import pytest
import situations
import torch
import torch.nn.functional as F
from cases import DOUBLE as D
from cases import assert_close, normal
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

import ade_fast as ade
from ade_fast import _slow_paths, reference

every_memory = pytest.mark.parametrize("memory", ["graph", "states"])
STEP = torch.tensor(0.3, dtype=D)


def start(batch: int = 5) -> tuple[Tensor, Tensor]:
    return normal(batch, 4, seed=1), normal(batch, 4, seed=2)


def layers() -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return nn.Linear(4, 6, dtype=D), nn.Linear(6, 6, dtype=D), nn.Linear(6, 1, dtype=D)


def assert_eager(potential, wanted, batch=5, n_steps=3, context=None, **options) -> None:
    """The gradients for `wanted`, against the reference's."""
    x0, v0 = start(batch)
    out = ade.functional.leapfrog(potential, x0, v0, STEP, n_steps, context=context, **options)
    x, v, _ = reference.leapfrog(potential, x0, v0, STEP, n_steps)
    options = {"allow_unused": True, "retain_graph": True}
    found = torch.autograd.grad(out.x.square().sum() + out.v.sin().sum(), wanted, **options)
    exact = torch.autograd.grad(x.square().sum() + v.sin().sum(), wanted, **options)
    for i, (a, e) in enumerate(zip(found, exact, strict=True)):
        assert_close(a, e, f"gradient {i}")
    assert any(e is not None and e.abs().max() > 1e-3 for e in exact), "there is something to compare"


@pytest.fixture
def fresh_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_slow_paths, "_TAKEN", {})


# --- Piecewise-linear potentials that are hard to follow ----------------------------------------------------------


def in_place(a, b, c, x):
    h = a(x)
    o = F.relu(h, inplace=True)
    return c(b(o) + h).squeeze(1)


def in_place_discarded(a, b, c, x):
    h = a(x)
    nn.LeakyReLU(0.1, inplace=True)(h)
    return c(F.relu(b(h), True))


HARD_TO_FOLLOW = {
    "in place": in_place,
    "in place, result discarded": in_place_discarded,
    "checkpoint": lambda a, b, c, x: checkpoint(lambda h: F.leaky_relu(a(h)), x, use_reentrant=False).sum(1),
    "checkpoint of relu": lambda a, b, c, x: checkpoint(lambda h: F.relu(a(h)), x, use_reentrant=False).sum(1),
    "checkpoint of two layers": lambda a, b, c, x: c(
        checkpoint(lambda h: F.relu(b(F.relu(a(h)))), x, use_reentrant=False)
    ),
    "checkpoint of a linear layer": lambda a, b, c, x: c(F.relu(checkpoint(a, x, use_reentrant=False))),
    "vmap at the end": lambda a, b, c, x: torch.vmap(c)(F.relu(a(x))),
    "vmap in a term": lambda a, b, c, x: (
        c(F.relu(a(x))).squeeze(1) + torch.vmap(lambda r: (r * a.weight[0]).sum() + a.bias[0])(x)
    ),
    "rounded": lambda a, b, c, x: c(F.relu(a(x))).squeeze(1) + (a.weight[0] * x.to(torch.int64).to(x.dtype)).sum(1),
    "rounded like": lambda a, b, c, x: c(F.relu(a(x)))[:, 0] + a.weight[0, 0] * x.type_as(torch.ones(1).int()).sum(1),
}  # fmt: skip


@every_memory
@pytest.mark.parametrize("name", HARD_TO_FOLLOW)
def test_functions_that_are_hard_to_follow_have_eager_gradients(name: str, memory: str) -> None:
    a, b, c = layers()
    wanted = [p for layer in (a, b, c) for p in layer.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ade.SlowPathWarning)
        assert_eager(lambda x: HARD_TO_FOLLOW[name](a, b, c, x), wanted, memory=memory)


@every_memory
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_layer_has_eager_gradients(memory: str) -> None:
    (a, _, _), last = layers(), torch.jit.script(nn.Linear(6, 1, dtype=D))
    assert_eager(lambda x: last(F.relu(a(x))), [*a.parameters(), *last.parameters()], memory=memory)


@every_memory
def test_control_flow_on_a_single_sample_has_eager_gradients(memory: str) -> None:
    a, _, c = layers()
    x0, v0 = start(1)
    threshold = (reference.leapfrog(lambda x: c(F.relu(a(x))), x0, v0, STEP, 1)[0] + x0)[0, 0].item() / 2
    side = []

    def potential(x: Tensor) -> Tensor:
        side.append(bool(x[0, 0] > threshold))
        return (1.0 if side[-1] else 3.0) * c(F.relu(a(x))).squeeze(1)

    assert_eager(potential, [a.weight, c.weight], batch=1, memory=memory)
    assert {True, False} <= set(side)


@every_memory
def test_a_random_potential_with_its_own_generator_is_noticed_where_it_is_evaluated_again(memory: str) -> None:
    """Or has the gradient of what it drew, where nothing is."""
    a, _, c = layers()
    x0, v0 = start()
    own = torch.Generator()

    def potential(x: Tensor) -> Tensor:
        return c(F.relu(a(x))).squeeze(1) * torch.rand((), generator=own)

    own.manual_seed(0)
    loss = situations.ours(potential, x0, v0, memory=memory)
    if memory == "states":
        with pytest.raises(RuntimeError, match=r"Leapfrog: potential's gradient at the same x is another .* random"):
            loss.backward()
        return
    own.manual_seed(0)
    exact = situations.eager(potential, x0, v0)
    assert_close(*(torch.autograd.grad(found, a.weight)[0] for found in (loss, exact)), "a")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "autocast"])
@every_memory
def test_rounding_is_not_taken_for_another_function(dtype, memory: str, fresh_warnings: None) -> None:
    inner = nn.Sequential(nn.Linear(4, 99), nn.ReLU(), nn.Linear(99, 99), nn.ReLU(), nn.Linear(99, 1))
    inner = inner if dtype == "autocast" else inner.to(dtype)
    x0, v0 = (torch.randn(500, 4).to(next(inner.parameters()).dtype) for _ in range(2))
    with warnings.catch_warnings(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "autocast"):
        warnings.simplefilter("error", ade.SlowPathWarning)
        out = ade.functional.leapfrog(lambda x: inner(x), x0, v0, 0.1, 5, memory=memory)
        (out.x.square().sum() + out.v.square().sum()).backward()
    assert inner[0].weight.grad.isfinite().all()


# --- Every input counted once ------------------------------------------------------------------------------------


def tied(activation):
    """A weight that is used as it is and under spectral norm."""
    a, b, c = layers()
    spectral_norm(b)
    original = b.parametrizations.weight.original
    return lambda x: c(activation(b(activation(a(x)))) + activation(a(x)) @ original).squeeze(1), [original, a.weight]


def context_and_what_is_behind(activation):
    a, beta = layers()[0], nn.Parameter(torch.randn(6, dtype=D))
    code = beta.square().expand(5, 6)
    return lambda x: (activation(a(x)) * code).sum(1) + activation(a(x)) @ beta, [beta, a.weight], code


def nested_contexts(activation):
    a, beta = layers()[0], nn.Parameter(torch.randn(6, dtype=D))
    one = beta.expand(5, 6)
    two = one.square()
    return lambda x: (activation(a(x)) * one).sum(1) + (activation(a(x)) * two).sum(1), [beta, a.weight], (one, two)


@every_memory
@pytest.mark.parametrize("activation", [F.relu, F.silu])
@pytest.mark.parametrize("build", [tied, context_and_what_is_behind, nested_contexts])
def test_an_input_behind_another_is_counted_once(build, activation, memory: str, fresh_warnings: None) -> None:
    potential, wanted, *context = build(activation)
    context = context[0] if context else None
    if build is tied:
        b = wanted[0]
        with ade.fields.pinned(potential), pytest.warns(ade.SlowPathWarning, match="computed from another tensor"):
            assert_eager(potential, wanted, memory=memory)
        assert b.requires_grad
        return
    with pytest.warns(ade.SlowPathWarning, match="computed from another tensor"):
        assert_eager(potential, wanted, context=context, memory=memory)


@every_memory
def test_an_input_behind_another_in_a_network(memory: str, fresh_warnings: None) -> None:
    a, _, _ = layers()
    beta = nn.Parameter(0.1 * torch.randn(4, dtype=D))
    code = beta.square().expand(5, 4)
    x0, v0 = start()
    scale = lambda v: torch.tanh(v * code + beta)  # noqa: E731
    potential = lambda x: F.silu(a(x)).sum(1)  # noqa: E731
    with pytest.warns(ade.SlowPathWarning, match="computed from another tensor"):
        out = ade.functional.generalized_leapfrog(
            potential, x0, v0, STEP, 2, scale_x=scale, context=code, memory=memory
        )
    x, _, log_det = reference.generalized_leapfrog(potential, x0, v0, STEP, 2, scale_x=scale)
    (found,) = torch.autograd.grad(out.x.sum() + out.log_det.sum(), beta, retain_graph=True)
    (exact,) = torch.autograd.grad(x.sum() + log_det.sum(), beta)
    assert_close(found, exact, "beta")


@every_memory
def test_a_context_that_retains_its_gradient_has_it_once(memory: str) -> None:
    a, beta = layers()[0], nn.Parameter(torch.randn(6, dtype=D))
    x0, v0 = start()
    grads = []
    for retains in (False, True):
        code = beta.square().expand(5, 6)
        if retains:
            code.retain_grad()
        potential = lambda x: (F.silu(a(x)) * code).sum(1)  # noqa: E731, B023
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ade.SlowPathWarning)
            out = ade.functional.leapfrog(potential, x0, v0, STEP, 3, context=code, memory=memory)
        if retains:
            out.x.sum().backward()
        grads.append(code.grad if retains else torch.autograd.grad(out.x.sum(), code)[0])
    assert_close(grads[1], grads[0], "retained")


# --- Leaves that a later step reaches first ----------------------------------------------------------------------


def switch(near, far):
    """One function near the start, another further out."""
    return lambda x: near(x) if x.detach()[0, 0].item() < 0.5 else far(x)


@every_memory
@pytest.mark.parametrize("kind", ["raw leaf", "module with a context", "context"])
def test_leaves_that_a_later_step_reaches_first_get_their_gradients(kind: str, memory: str) -> None:
    a, b = nn.Linear(4, 6, dtype=D), nn.Linear(4, 6, dtype=D)
    raw = torch.randn(6, dtype=D, requires_grad=True)
    code = (raw * 2).reshape(1, 6)
    context = None if kind == "raw leaf" else code
    potential = {
        "raw leaf": switch(lambda x: F.silu(a(x)).sum(1), lambda x: F.silu(a(x)) @ raw),
        "module with a context": switch(
            lambda x: (F.silu(a(x)) * code).sum(1), lambda x: (F.silu(a(x) + b(x)) * code).sum(1)
        ),
        "context": switch(lambda x: F.silu(a(x)).sum(1), lambda x: (F.silu(a(x)) * code).sum(1)),
    }[kind]
    x0 = torch.zeros(1, 4, dtype=D)
    v0 = torch.tensor([[3.0, 0.5, -0.5, 0.1]], dtype=D)
    wanted = [a.weight, b.weight, raw]
    out = ade.functional.leapfrog(potential, x0, v0, STEP, 3, context=context, memory=memory)
    assert out.x[0, 0] > 0.5
    x, _, _ = reference.leapfrog(potential, x0, v0, STEP, 3)
    found = torch.autograd.grad(out.x.square().sum(), wanted, allow_unused=True, retain_graph=True)
    exact = torch.autograd.grad(x.square().sum(), wanted, allow_unused=True, retain_graph=True)
    for i, (a_, e) in enumerate(zip(found, exact, strict=True)):
        assert_close(a_, e, f"gradient {i}")


@every_memory
def test_leaves_of_a_network_that_a_later_step_reaches_first(memory: str) -> None:
    a, near, far = layers()[0], nn.Linear(4, 4, dtype=D), nn.Linear(4, 4, dtype=D)

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.near, self.far = near, far

        def forward(self, v: Tensor) -> Tensor:
            return 0.1 * (self.near if v.detach()[0, 0] < limit else self.far)(v)

    x0, v0 = start(1)
    potential = lambda x: F.silu(a(x)).sum(1)  # noqa: E731
    limit = float("inf")
    scale = Scale()
    path = [reference.generalized_leapfrog(potential, x0, v0, STEP, t, scale_x=scale)[1] for t in (1, 2)]
    limit = float(v0[0, 0]) + 1e-6 if path[1][0, 0] > v0[0, 0] else None
    if limit is None:  # v falls: turn the switch around
        near, far = far, near
        limit = float(v0[0, 0]) - 1e-6
    out = ade.functional.generalized_leapfrog(potential, x0, v0, STEP, 3, scale_x=scale, memory=memory)
    x, _, log_det = reference.generalized_leapfrog(potential, x0, v0, STEP, 3, scale_x=scale)
    wanted = list(scale.parameters())
    found = torch.autograd.grad(out.x.sum() + out.log_det.sum(), wanted, allow_unused=True)
    exact = torch.autograd.grad(x.sum() + log_det.sum(), wanted, allow_unused=True)
    for i, (f, e) in enumerate(zip(found, exact, strict=True)):
        assert_close(f, e, f"gradient {i}")


def test_unrelated_parameters_in_sight_may_change_between_the_passes() -> None:
    """A trainer's method as the potential: its other networks are none of the unroll's business."""
    trainer = types.SimpleNamespace(
        net=nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 1)).double(),
        ema=nn.Linear(4, 6).double().requires_grad_(False),
        other=nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout()).double(),
    )
    x0, v0 = start()
    out = ade.functional.leapfrog(lambda x: trainer.net(x), x0, v0, STEP, 3, memory="states")
    with torch.no_grad():
        for module in (trainer.ema, trainer.other):
            for parameter in module.parameters():
                parameter.add_(1.0)
    out.x.sum().backward()
    assert trainer.net[0].weight.grad is not None and trainer.other[0].weight.grad is None


def test_a_parameter_that_only_a_later_step_meets_may_not_change_between_the_passes() -> None:
    a, b = nn.Linear(4, 6, dtype=D), nn.Linear(4, 6, dtype=D)
    potential = switch(lambda x: F.silu(a(x)).sum(1), lambda x: F.silu(a(x) + b(x)).sum(1))
    x0, v0 = torch.zeros(1, 4, dtype=D), torch.tensor([[3.0, 0.5, -0.5, 0.1]], dtype=D)
    out = ade.functional.leapfrog(potential, x0, v0, STEP, 3, memory="states")
    with torch.no_grad():
        b.weight.add_(1.0)
    with pytest.raises(RuntimeError, match=r"leapfrog: a parameter of shape \(6, 4\) was modified"):
        out.x.sum().backward()


# --- Modules, wherever they are -----------------------------------------------------------------------------------

NET: nn.Module = nn.Identity()
HOLDER = {"net": NET}


def energy(x: Tensor) -> Tensor:
    return NET(x).squeeze(1)


class Slotted:
    __slots__ = ("net",)

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)


class OfAClass:
    net: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        return self._value(x)

    def _value(self, x: Tensor) -> Tensor:
        return NET(x)


class Hiding(nn.Module):
    """Keeps a module where nn.Module does not see it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.hidden = [net]

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden[0](x)


PLACES = {
    "closure": lambda net: lambda x: net(x),
    "default argument": lambda net: lambda x, net=net: net(x),
    "keyword default": lambda net: lambda x, *, net=net: net(x),
    "global behind a global function": lambda net: lambda x: -energy(x),
    "global dictionary": lambda net: lambda x: HOLDER["net"](x),
    "global in a lambda in a lambda": lambda net: lambda x: (lambda h: NET(h))(x),
    "slots": lambda net: Slotted(net),
    "method of an object": lambda net: Slotted(net).__call__,
    "global in a method": lambda net: OfAClass(),
    "list of a module": lambda net: Hiding(net),
    "negated energy": lambda net: ade.NegativeEnergy(lambda x: net(x)),
}


@pytest.fixture(params=list(PLACES))
def placed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    def place(net: nn.Module):
        monkeypatch.setitem(globals(), "NET", net)
        monkeypatch.setitem(HOLDER, "net", net)
        return PLACES[request.param](net)

    return place


def test_spectral_norm_is_pinned_wherever_it_is(placed) -> None:
    """One power iteration per unroll."""
    net = nn.Sequential(spectral_norm(nn.Linear(4, 6)), nn.SiLU(), spectral_norm(nn.Linear(6, 1))).double().train()
    potential, (x0, v0) = placed(net), start()
    calls: list[int] = []
    for layer in (net[0], net[2]):
        layer.parametrizations.weight[0].register_forward_hook(lambda *_: calls.append(1))
    ade.functional.leapfrog(potential, x0, v0, STEP, 3, memory="states").x.sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        ade.functional.leapfrog(potential, x0, v0, STEP, 3)
    assert len(calls) == 4


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(6).double()], ids=["dropout", "batch norm"])
@pytest.mark.parametrize("grad", [True, False])
def test_unfit_modules_are_refused_wherever_they_are(placed, layer: nn.Module, grad: bool) -> None:
    net = nn.Sequential(nn.Linear(4, 6), layer, nn.SiLU(), nn.Linear(6, 1)).double().train()
    potential, (x0, v0) = placed(net), start()
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="in training mode"):
        ade.functional.leapfrog(potential, x0, v0, STEP, 3)
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="in training mode"):
        ade.functional.leapfrog(lambda x: potential(x), x0, v0, STEP, 3)
    ade.functional.leapfrog(placed(net.eval()), x0, v0, STEP, 3)


@pytest.mark.parametrize("call", [lambda m, x: m(x), lambda m, x: m.forward(x)], ids=["call", "forward"])
def test_only_unfit_modules_that_are_called_are_refused(call) -> None:
    """At whatever step: a method's owner may have others, which are none of the unroll's business."""
    net = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 1)).double()
    unfit, (x0, v0) = nn.Dropout(0.5), start()
    owner = types.SimpleNamespace(net=net, unfit=unfit)
    ade.functional.leapfrog(lambda x: owner.net(x), x0, v0, STEP, 3).x.sum().backward()
    steps = []

    def later(x: Tensor) -> Tensor:
        steps.append(1)
        return owner.net(call(owner.unfit, x) if len(steps) == 3 else x)

    with pytest.raises(ValueError, match="leapfrog: potential is random"):
        ade.functional.leapfrog(later, x0, v0, STEP, 3)
    assert len(steps) == 3 and "forward" not in unfit.__dict__


def test_a_module_is_found_by_its_shortest_way() -> None:
    """Though a detour of more than the greatest depth leads to it as well."""
    holder = [nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 1)).double()]
    detour: list = [holder]
    for _ in range(7):
        detour = [detour]
    x0, v0 = start()
    for first, second in ((holder, detour), (detour, holder)):
        potential = lambda x, one=first, other=second: holder_of(one, other)(x)  # noqa: E731
        with pytest.raises(ValueError, match="potential is random"):
            ade.functional.leapfrog(potential, x0, v0, STEP, 3)


def holder_of(one: list, other: list) -> nn.Module:
    return next(h[0] for h in (one, other) if isinstance(h[0], nn.Module))


def test_unfit_modules_behind_compiled_code_are_refused_unseen() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 1)).double()
    x0, v0 = start()
    with torch.no_grad(), pytest.raises(ValueError, match="leapfrog: potential is random"):
        ade.functional.leapfrog(torch.compile(net, backend="eager"), x0, v0, STEP, 3)


# --- Constants ---------------------------------------------------------------------------------------------------


def frozen_bias():
    a, b, c = layers()
    a.bias.requires_grad_(False)
    return lambda x: c(F.relu(b(F.relu(a(x))))), a.bias


def captured_in_a_sum():
    a, k = layers()[0], torch.randn(6, dtype=D)
    return lambda x: (F.relu(a(x) + k) * a.weight[:, 0]).sum(1), k


def detached_parameter():
    a, b, _ = layers()
    return lambda x: F.silu(F.linear(x, a.weight) + b.bias.detach()).sum(1), b.bias


def frozen_and_scripted():
    net = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 1)).double()
    net[2].bias.requires_grad_(False)
    scripted = torch.jit.script(net)
    return lambda x: scripted(x), dict(scripted.named_parameters())["2.bias"]


@every_memory
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("build", [frozen_and_scripted, frozen_bias, captured_in_a_sum, detached_parameter])
def test_a_changed_constant_makes_no_silently_wrong_gradient(build, memory: str) -> None:
    """Where nothing is evaluated again it may do no harm; then the gradient is the old one."""
    potential, constant = build()
    x0, v0 = (t.requires_grad_() for t in start())
    out = ade.functional.leapfrog(potential, x0, v0, STEP, 3, memory=memory)
    inputs = [x0, v0, *(p for m in ade.fields.modules_of(potential) for p in m.parameters() if p.requires_grad)]
    of = {"allow_unused": True, "retain_graph": True}
    wanted = torch.autograd.grad(out.x.square().sum(), inputs, **of)
    with torch.no_grad():
        constant.add_(1.0)
    try:
        assert_same = zip(torch.autograd.grad(out.x.square().sum(), inputs, **of), wanted, strict=True)
    except RuntimeError as error:
        assert "modified between the forward and the backward pass" in str(error) or "inplace" in str(error)
        return
    assert memory == "graph"
    for i, (found, old) in enumerate(assert_same):
        assert_close(found, old, f"gradient {i}")


def test_a_constant_of_a_network_is_watched() -> None:
    a, k, (x0, v0) = layers()[0], torch.zeros(4, dtype=D), start()
    out = ade.functional.generalized_leapfrog(
        lambda x: F.silu(a(x)).sum(1), x0, v0, STEP, 3, scale_x=lambda v: torch.tanh(v + k), memory="states"
    )
    k.add_(1.0)
    with pytest.raises(RuntimeError, match=r"output of a network .* was modified"):
        out.x.square().sum().backward()


def test_a_stopped_gradient_lets_the_potential_change() -> None:
    """The potential's step may come before the sampler's backward pass: ∇f(x_t) is a constant there."""
    a, _, c = layers()
    x0, v0 = start()
    x0.requires_grad_()
    out = ade.functional.leapfrog(lambda x: c(F.silu(a(x))), x0, v0, STEP, 3, gradient="stopped")
    with torch.no_grad():
        a.weight.add_(1.0)
        c.bias.add_(1.0)
    out.x.sum().backward()
    assert_close(x0.grad, torch.ones_like(x0), "x0")

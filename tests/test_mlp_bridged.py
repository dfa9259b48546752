"""The fused MLP operators with a Gaussian beside f, a scaled force, and noise: against plain autograd, in float64."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

import ade_fast as ade
from ade_fast.dynamics.base import Clip, clip_code, merged_kicks
from ade_fast.fields.mlp import MLPField, Schedule, mlp_unroll

ACTIVATIONS = ("relu", "leaky_relu", "softplus", "silu", "tanh", "elu")
# Which of the optional inputs are given.
FEATURES = {
    "scale": ("scale",),
    "Gaussian": ("pull", "centre"),
    "noise": ("noise", "noise_v", "noise_x"),
    "everything": ("scale", "pull", "centre", "noise", "noise_v", "noise_x"),
}
OPTIONS = {
    "bare": {},
    "norm clips": {"grad_clip": Clip.norm(0.6), "momentum_clip": Clip.norm(1.0)},
    "value clips, range": {"grad_clip": Clip.value(0.4), "momentum_clip": Clip.value(0.8), "bounds": (-0.9, 1.0)},
    "norm and value clip, range, damping": {
        "grad_clip": Clip.norm(0.6), "momentum_clip": Clip.value(0.8), "bounds": (-0.9, 1.0), "damping": 0.7,
    },
}  # fmt: skip

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_feature = pytest.mark.parametrize("features", FEATURES)
every_option = pytest.mark.parametrize("option", OPTIONS)


def make_potential(activation: str, dim: int, hidden=(32, 64), dtype=torch.float64) -> nn.Module:
    potential = ade.MLPPotential(dim, hidden, activation).to(dtype)
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(1.7)
            parameter += 0.05 * torch.randn_like(parameter)
    return potential


@dataclass
class Case:
    """Inputs of one unroll by the names of `mlp_unroll`; all that may have a gradient require it."""

    potential: nn.Module
    given: dict[str, Tensor]
    options: dict[str, object]

    @staticmethod
    def make(
        potential: nn.Module, batch: int, dim: int, steps: int, features: str, option: str, dtype=torch.float64
    ) -> Case:
        def normal(*shape: int, by: float = 1.0, plus: float = 0.0) -> Tensor:
            return (plus + by * torch.randn(shape, dtype=torch.float64)).to(dtype)

        given = {
            "x0": normal(batch, dim, by=0.8), "v0": normal(batch, dim),
            "kick": normal(steps + 1, dim, by=0.05, plus=0.2), "drift": normal(steps, dim, by=0.05, plus=0.2),
        }  # fmt: skip
        optional = {
            "scale": normal(steps + 1, by=0.3, plus=0.8), "pull": normal(steps + 1, dim, by=0.2, plus=0.7),
            "centre": normal(steps + 1, dim), "noise": normal(steps, batch, dim),
            "noise_v": normal(steps, dim, by=0.3), "noise_x": normal(steps, dim, by=0.2),
        }  # fmt: skip
        given |= {name: optional[name] for name in FEATURES[features]} if features else {}
        for name, tensor in given.items():
            tensor.requires_grad_(name != "noise")
        return Case(potential, given, OPTIONS[option])

    @property
    def leaves(self) -> dict[str, Tensor]:
        return {n: t for n, t in self.given.items() if t.requires_grad} | dict(self.potential.named_parameters())

    def fused(self, **more: object) -> tuple[Tensor, Tensor, Tensor]:
        """x^T, v^T and the momenta."""
        field = MLPField.match(self.potential)
        assert isinstance(field, MLPField), field
        options = {n: clip_code(o) if isinstance(o, Clip) else o for n, o in self.options.items()}
        x, v, log_det, momenta = field.unroll(**self.given, **options, want_momenta=True, **more)
        assert torch.equal(log_det, torch.full_like(log_det, self.given["kick"].numel() * math.log(self.damping)))
        return x, v, momenta

    @property
    def damping(self) -> float:
        return self.options.get("damping", 1.0)

    def eager(self, gradient: str = "full") -> tuple[Tensor, Tensor, Tensor]:
        """The formula of `mlp_unroll`'s docstring."""
        g, potential = self.given, self.potential
        if gradient != "full":
            potential = MLPField.match(potential) and _frozen(potential)
        x, v, momenta = g["x0"], g["v0"], []
        for t in range(len(g["kick"])):
            (force,) = torch.autograd.grad(potential(x).sum(), x, create_graph=True)
            if "scale" in g:
                force = g["scale"][t] * force
            if "pull" in g:
                force = force - g["pull"][t] * (x - g["centre"][t])
            if gradient == "stopped":
                force = force.detach()
            v = self.damping * v + g["kick"][t] * clipped(force, self.options.get("grad_clip"))
            if "noise" in g and t > 0:
                v = v + g["noise_v"][t - 1] * g["noise"][t - 1]
            momenta.append(v)
            if t == len(g["drift"]):
                break
            x = x + g["drift"][t] * clipped(v, self.options.get("momentum_clip"))
            if "noise" in g:
                x = x + g["noise_x"][t] * g["noise"][t]
            x = x.clamp(*self.options.get("bounds", (-math.inf, math.inf)))
        return x, v, torch.stack(momenta)


def _frozen(potential: nn.Module) -> nn.Module:
    def value(x: Tensor) -> Tensor:
        return torch.func.functional_call(potential, {n: p.detach() for n, p in potential.named_parameters()}, x)

    return value


def clipped(u: Tensor, clip: Clip | None) -> Tensor:
    if clip is None:
        return u
    mode, bound = clip_code(clip)
    return u.clamp(-bound, bound) if mode == 1 else u * (bound / u.norm(dim=1, keepdim=True).clamp_min(bound))


def derivatives(outputs: tuple[Tensor, ...], leaves: dict[str, Tensor], cotangents: list[Tensor]) -> dict[str, Tensor]:
    grads = torch.autograd.grad(outputs, [*leaves.values()], cotangents, allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(leaves.items(), grads, strict=True)}


def check(case: Case, tolerance: float = 1e-10, gradient: str = "full", **more: object) -> None:
    """Ends, momenta and every gradient, from cotangents of all of them, against the formula."""
    outputs, expected = case.fused(gradient=gradient, **more), case.eager(gradient)
    cotangents = [torch.randn_like(t) for t in expected]
    got = dict(zip(("x", "v", "momenta"), outputs, strict=True)) | derivatives(outputs, case.leaves, cotangents)
    want = dict(zip(("x", "v", "momenta"), expected, strict=True)) | derivatives(expected, case.leaves, cotangents)
    for name in want:
        assert got[name].shape == want[name].shape, name
        error = ((got[name] - want[name]).abs() / (1 + want[name].abs())).max().item()
        assert error <= tolerance, f"{name}: error {error:.3g}"


# ------------------------------------------------------------------------------------------------------ agreement


@every_option
@every_feature
@every_activation
def test_unroll_agrees_with_the_formula(activation: str, features: str, option: str) -> None:
    check(Case.make(make_potential(activation, 3), 9, 3, 3, features, option))


@pytest.mark.parametrize("batch", [1, 17, 61])
@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_every_size(activation: str, dim: int, batch: int) -> None:
    for hidden, option in (((64, 32), "norm and value clip, range, damping"), ((32, 96, 64), "norm clips")):
        check(Case.make(make_potential(activation, dim, hidden), batch, dim, 2, "everything", option))


@pytest.mark.parametrize("gradient", ["truncated", "stopped"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_gradient_modes(activation: str, gradient: str) -> None:
    """Stopped: the whole force is a constant, and its own numbers have no gradient."""
    for option in OPTIONS:
        check(Case.make(make_potential(activation, 3), 9, 3, 3, "everything", option), gradient=gradient)


def test_no_rows() -> None:
    case = Case.make(make_potential("silu", 2), 0, 2, 2, "everything", "norm clips")
    x, v, momenta = case.fused()
    assert momenta.shape == (3, 0, 2)
    got = derivatives((x, v, momenta), case.leaves, [x, v, momenta])
    assert all((g == 0).all() for g in got.values())


@pytest.mark.parametrize("dim", [1, 2, 3])
@every_activation
def test_what_is_kept_changes_no_bit(activation: str, dim: int) -> None:
    case = Case.make(make_potential(activation, dim, (32, 96, 64)), 70, dim, 3, "everything", "norm clips")
    results = []
    for bits, products in ((False, False), (True, False), (True, True)):
        outputs = case.fused(keep_bits=bits, keep_products=products)
        results.append(derivatives(outputs, case.leaves, [torch.ones_like(t) for t in outputs]))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_neither_do_threads(activation: str) -> None:
    potential = make_potential(activation, 2, (32, 32, 32), torch.float32)
    case = Case.make(potential, 1000, 2, 3, "everything", "norm clips", torch.float32)
    before, results = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        outputs = case.fused()
        results.append(derivatives(outputs, case.leaves, [torch.ones_like(t) for t in outputs]))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


@every_option
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_identities_are_absent_bit_for_bit(activation: str, option: str) -> None:
    """A scale of 1, no pull and no noise change nothing, gradients included."""
    case = Case.make(make_potential(activation, 2), 33, 2, 3, "everything", option)
    with torch.no_grad():
        case.given["scale"].fill_(1)
        for name in ("pull", "noise_v", "noise_x"):
            case.given[name].zero_()
    plain = replace(case, given={n: case.given[n] for n in ("x0", "v0", "kick", "drift")})
    outputs, others = case.fused(), plain.fused()
    assert all(torch.equal(a, b) for a, b in zip(outputs, others, strict=True))
    cotangents = [torch.randn_like(t) for t in outputs]
    got, want = derivatives(outputs, case.leaves, cotangents), derivatives(others, plain.leaves, cotangents)
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("instructions", ["base", "avx2", "avx512"])
@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_every_instruction_set(activation: str, instructions: str, isa) -> None:
    if not isa(instructions):
        pytest.skip(f"this processor has no {instructions}")
    for option, (dim, hidden) in zip(OPTIONS, itertools.cycle(((2, (64, 32, 32)), (33, (32,)))), strict=False):
        check(Case.make(make_potential(activation, dim, hidden), 61, dim, 2, "everything", option))


@every_feature
@every_activation
def test_gradcheck(activation: str, features: str) -> None:
    case = Case.make(make_potential(activation, 2), 3, 2, 2, features, "norm and value clip, range, damping")
    names = list(case.given)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return replace(case, given=dict(zip(names, tensors, strict=True))).fused()

    assert torch.autograd.gradcheck(run, (*case.given.values(),), eps=1e-6, atol=1e-6, fast_mode=True)


# -------------------------------------------------------------------------------------------------------- momenta


@pytest.mark.parametrize("features", [None, "everything"])
def test_momenta_alone_and_beside_others(features: str | None) -> None:
    """Each output's cotangent alone: what is missing counts as zero."""
    case = Case.make(make_potential("silu", 2), 7, 2, 3, features, "norm clips")
    outputs, expected = case.fused(), case.eager()
    for i in range(3):
        cotangent = [torch.randn_like(expected[i])]
        got, want = (derivatives((o[i],), case.leaves, cotangent) for o in (outputs, expected))
        assert all(torch.allclose(got[n], want[n], rtol=1e-10, atol=1e-10) for n in want), i


def test_momenta_are_given_only_where_wanted() -> None:
    case = Case.make(make_potential("silu", 2), 4, 2, 2, None, "bare")
    field = MLPField.match(case.potential)
    assert field.unroll(**case.given).momenta is None
    with torch.no_grad():
        assert torch.equal(field.unroll(**case.given, want_momenta=True).momenta, case.fused()[2])


# ----------------------------------------------------------------------- a constant Gaussian beside plain leapfrog


def scheduled(case: Case, base: tuple[Tensor, Tensor] | None, eta: Tensor, **more: object) -> tuple[Tensor, Tensor]:
    def vjp(dkick: Tensor, ddrift: Tensor, wanted: object) -> tuple[Tensor, None]:
        steps = eta.detach().requires_grad_()
        with torch.enable_grad():
            made = (merged_kicks(steps, len(steps)), 1.0 * steps)
        return torch.autograd.grad(made, steps, (dkick, ddrift))[0], None

    kick = merged_kicks(eta.detach(), len(eta))
    options = {n: clip_code(o) if isinstance(o, Clip) else o for n, o in case.options.items()}
    more = {"keep_bits": True, "keep_products": False, "gradient": "full"} | more
    return MLPField.match(case.potential).scheduled_unroll(
        case.given["x0"], case.given["v0"], Schedule(kick, eta.detach(), (eta, None), vjp), base=base, **options, **more
    )


@every_option
@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize("gradient", ["full", "stopped"])
def test_scheduled_unroll_with_a_base(activation: str, option: str, gradient: str) -> None:
    case = Case.make(make_potential(activation, 2), 13, 2, 3, None, option)
    base = (torch.rand(2, dtype=torch.float64) + 0.3, torch.randn(2, dtype=torch.float64))
    eta = (0.1 + 0.1 * torch.rand(3, 2, dtype=torch.float64)).requires_grad_()
    pull, centre = (row.expand(4, 2) for row in base)
    given = {**case.given, "kick": merged_kicks(eta, 3), "drift": eta, "pull": pull, "centre": centre}
    expected = replace(case, given=given).eager(gradient)[:2]
    leaves = {n: t for n, t in case.leaves.items() if n not in ("kick", "drift")} | {"eta": eta}
    cotangents = [torch.randn_like(t) for t in expected]
    want = derivatives(expected, leaves, cotangents)
    for bits, products in ((True, False), (True, True), (False, False)):
        outputs = scheduled(case, base, eta, gradient=gradient, keep_bits=bits, keep_products=products)
        for actual, wanted in zip(outputs, expected, strict=True):
            assert torch.allclose(actual, wanted, rtol=1e-10, atol=1e-10)
        got = derivatives(outputs, leaves, cotangents)
        assert all(torch.allclose(got[n], want[n], rtol=1e-10, atol=1e-10) for n in want)
    with torch.no_grad():
        assert torch.equal(scheduled(case, base, eta)[0], outputs[0])


# ------------------------------------------------------------------------------------------------------ the field


@pytest.mark.parametrize("dim", [1, 2, 5])
@every_activation
def test_field_with_a_base(activation: str, dim: int) -> None:
    potential = make_potential(activation, dim)
    field = MLPField.match(potential)
    pull, centre = torch.rand(dim, dtype=torch.float64) + 0.3, torch.randn(dim, dtype=torch.float64)
    x = torch.randn(61, dim, dtype=torch.float64, requires_grad=True)
    leaves = {"x": x} | dict(potential.named_parameters())

    value = potential(x) - 0.5 * (pull * (x - centre).square()).sum(1) + 1.25
    (grad,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    base = (pull, centre)
    cotangents = [torch.randn_like(value), torch.randn_like(grad)]
    cases = {
        "both": (field.value_and_grad(x, base, 1.25), (value, grad), cotangents),
        "value": ((field.value(x, base, 1.25),), (value,), cotangents[:1]),
        "grad": ((field.grad(x, base),), (grad,), cotangents[1:]),
    }
    for name, (actual, expected, by) in cases.items():
        for a, e in zip(actual, expected, strict=True):
            assert torch.allclose(a, e, rtol=1e-12, atol=1e-12), name
        got, want = derivatives(actual, leaves, by), derivatives(expected, leaves, by)
        assert all(torch.allclose(got[n], want[n], rtol=1e-10, atol=1e-10) for n in want), name

    hu, dweights, _ = field.vjp(x.detach(), cotangents[1], base)
    want = derivatives((grad,), leaves, cotangents[1:])
    assert torch.allclose(hu, want["x"], rtol=1e-10, atol=1e-10)
    assert torch.allclose(dweights[0], want["layers.0.weight"], rtol=1e-10, atol=1e-10)
    assert torch.equal(field.value(x, shift=2.0), field.value(x) + 2.0)


# -------------------------------------------------------------------------------------------------- the operators


def op_arguments(case: Case, keep: tuple[bool, bool, bool]) -> list:
    field = MLPField.match(case.potential)
    g = case.given
    optional = [g.get(name) for name in ("scale", "pull", "centre", "noise_v", "noise_x", "noise")]
    numbers = [*field.spec.numbers, 1.0, 2, 0.6, 1, 0.8, -0.9, 1.0, False]
    return [g["x0"], g["v0"], g["kick"], g["drift"], None, None, *field.weights(), *numbers, *keep, *optional]


def copies(arguments: list, leaves: bool) -> tuple:
    """Leaves that require grad as the originals do, or none."""

    def copy(value):
        if isinstance(value, list):
            return [copy(v) for v in value]
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone().requires_grad_(leaves and value.requires_grad)

    return tuple(copy(value) for value in arguments)


@pytest.mark.parametrize(("activation", "features"), [("relu", "Gaussian"), ("silu", "everything")])
def test_opcheck(activation: str, features: str) -> None:
    case = Case.make(make_potential(activation, 2, (32, 32), torch.float32), 5, 2, 2, features, "bare", torch.float32)
    ops = torch.ops.ade_fast
    for keep in ((True, True, True), (False, False, False)):
        torch.library.opcheck(ops.mlp_unroll.default, copies(op_arguments(case, keep), leaves=True))
    arguments = op_arguments(case, (True, True, False))
    with torch.no_grad():
        x_end, v_end, *kept = ops.mlp_unroll(*arguments)[:6]
    given, numbers, optional = arguments[1:8], arguments[8:19], arguments[22:]
    for want in (False, True):
        for dv_all in (None, kept[1]):
            back = [x_end, v_end, *given, *kept, *numbers, want, dv_all, *optional]
            torch.library.opcheck(ops.mlp_unroll_backward.default, copies(back, leaves=False))


def test_opcheck_of_the_field() -> None:
    field = MLPField.match(make_potential("silu", 2, dtype=torch.float32))
    x, pull, centre = torch.randn(5, 2, requires_grad=True), torch.rand(2), torch.randn(2)
    ops, network = torch.ops.ade_fast, (*field.weights(), *field.spec.numbers)
    for keep in (False, True):
        torch.library.opcheck(ops.mlp_field.default, (x, *network, True, True, pull, centre, 0.5, keep))
    for dvalue, dgrad in ((torch.randn(5), None), (None, torch.randn(5, 2)), (torch.randn(5), torch.randn(5, 2))):
        arguments = [dvalue, dgrad, x, *network, True, pull, centre]
        torch.library.opcheck(ops.mlp_field_backward.default, copies(arguments, leaves=False))


# --------------------------------------------------------------------------------------------------------- misuse

MISUSES = {
    "pull and centre must come together": {"centre": None},
    "noise, noise_v and noise_x must come together": {"noise_x": None},
    "scale must have one entry per kick, shape (3,), got (2,)": {"scale": torch.ones(2, dtype=torch.float64)},
    "pull must have one row per kick, shape (3, 2), got (2,)": {"pull": torch.ones(2, dtype=torch.float64)},
    "centre must have one row per kick, shape (3, 2), got (2, 2)": {"centre": torch.ones(2, 2, dtype=torch.float64)},
    "noise_v must have one row per step, shape (2, 2), got (3, 2)": {"noise_v": torch.ones(3, 2, dtype=torch.float64)},
    "noise must have one batch of states per step, shape (2, 4, 2), got (4, 2)": {
        "noise": torch.ones(4, 2, dtype=torch.float64)
    },
    "noise must be float64 (x0 is float64), got float32": {"noise": torch.ones(2, 4, 2)},
}


@pytest.mark.parametrize("message", MISUSES)
def test_misuse_is_refused(message: str) -> None:
    case = Case.make(make_potential("relu", 2), 4, 2, 2, "everything", "bare")
    with pytest.raises(RuntimeError) as error:
        mlp_unroll(
            MLPField.match(case.potential).spec, *MLPField.match(case.potential).weights(),
            **case.given | MISUSES[message],
        )  # fmt: skip
    assert f"mlp_unroll: {message}" in str(error.value)


def test_what_gets_no_gradient_must_not_ask_for_one() -> None:
    case = Case.make(make_potential("relu", 2), 4, 2, 2, "everything", "bare")
    case.given["noise"].requires_grad_()
    with pytest.raises(ValueError, match="mlp_unroll: noise must not require grad"):
        case.fused()
    base = (torch.ones(2, dtype=torch.float64, requires_grad=True), torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="mlp_field: pull and centre must not require grad"):
        MLPField.match(case.potential).value(case.given["x0"], base)
    with pytest.raises(ValueError, match="scheduled_unroll: pull and centre must not require grad"):
        scheduled(case, base, case.given["drift"])


def test_differentiating_twice_raises() -> None:
    case = Case.make(make_potential("silu", 2), 4, 2, 2, "everything", "bare")
    for name in ("x0", "scale", "pull", "noise_v"):
        (grad,) = torch.autograd.grad(case.fused()[2].sum(), case.given[name], create_graph=True)
        with pytest.raises(RuntimeError, match="differentiable only once"):
            grad.sum().backward()

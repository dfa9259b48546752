"""The fused MLP operators: unroll and field, against ade_fast.reference and plain autograd; recognition; misuse."""

from __future__ import annotations

import copy
import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import ade_fast as ade
from ade_fast import _slow_paths, reference
from ade_fast.dynamics.base import Clip, clip_code, merged_kicks
from ade_fast.fields import mlp, pinned
from ade_fast.fields.mlp import MLPField, generalized_kicks, mlp_unroll

ACTIVATIONS = ("relu", "leaky_relu", "softplus", "silu", "tanh", "elu")
OPS = ("mlp_unroll", "mlp_unroll_backward", "mlp_field", "mlp_field_backward")
LAYERS = {1: (32,), 2: (32, 64), 3: (64, 32, 32), 4: (32, 64, 32, 32)}


@dataclass(frozen=True)
class Options:
    """What a dynamics of the family can be asked for."""

    kind: str = "leapfrog"
    grad_clip: Clip | None = None
    momentum_clip: Clip | None = None
    sample_range: tuple[float, float] | None = None

    @property
    def fused(self) -> dict:
        return {
            "grad_clip": clip_code(self.grad_clip),
            "momentum_clip": clip_code(self.momentum_clip),
            "bounds": self.sample_range or (-math.inf, math.inf),
        }

    @property
    def reference(self) -> dict:
        names = ("grad_clip", "momentum_clip", "sample_range")
        return {name: getattr(self, name) for name in names}


NORM = Clip.norm(0.6)
VALUE = Clip.value(0.4)
OPTIONS = {
    "leapfrog": Options(),
    "leapfrog, norm clips": Options("leapfrog", NORM, NORM),
    "leapfrog, value clips, range": Options("leapfrog", VALUE, VALUE, (-0.9, 1.0)),
    "damped": Options("damped"),
    "damped, value and norm clip, range": Options("damped", VALUE, NORM, (-0.9, 1.0)),
    "generalized": Options("generalized"),
    "generalized, norm and value clip, range": Options("generalized", NORM, VALUE, (-0.9, 1.0)),
}
DAMPING = 0.7

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_option = pytest.mark.parametrize("option", OPTIONS)


def make_potential(activation: str, dim: int, hidden=(32, 64), spectral_norm=False, dtype=torch.float64) -> nn.Module:
    """An MLP with gradients of the order of 1, so that the clips of OPTIONS act on some samples and not on others."""
    potential = ade.MLPPotential(dim, hidden, activation, spectral_norm).to(dtype).eval()
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(1.7)
            parameter += 0.05 * torch.randn_like(parameter)
    return potential


@dataclass
class Case:
    """Inputs of one unroll, all requiring grad."""

    potential: nn.Module
    x0: Tensor
    v0: Tensor
    eta: Tensor  # [T, D]
    scale_v: Tensor  # [D]
    scale_x: Tensor  # [D]
    drift: Tensor  # [D], of the damped leapfrog

    @staticmethod
    def make(potential: nn.Module, batch: int, dim: int, steps: int, dtype=torch.float64) -> Case:
        def leaf(t: Tensor) -> Tensor:
            return t.to(dtype).requires_grad_()

        return Case(
            potential,
            leaf(0.8 * torch.randn(batch, dim, dtype=torch.float64)),
            leaf(torch.randn(batch, dim, dtype=torch.float64)),
            leaf(0.05 + 0.2 * torch.rand(steps, dim, dtype=torch.float64)),
            leaf(0.3 * torch.randn(dim, dtype=torch.float64)),
            leaf(0.2 * torch.randn(dim, dtype=torch.float64)),
            leaf(0.1 + 0.2 * torch.rand(dim, dtype=torch.float64)),
        )

    def leaves(self, kind: str) -> list[Tensor]:
        own = {"leapfrog": [], "damped": [self.drift], "generalized": [self.scale_v, self.scale_x]}[kind]
        return [self.x0, self.v0, self.eta, *own, *self.potential.parameters()]

    def fused(self, options: Options, **more) -> tuple[Tensor, Tensor, Tensor]:
        field = MLPField.match(self.potential)
        assert isinstance(field, MLPField), field
        return fused(field, self, options, **more)

    def expected(self, options: Options, **more) -> tuple[Tensor, Tensor, Tensor]:
        given = (self.potential, self.x0, self.v0, self.eta)
        steps = len(self.eta)
        if options.kind == "leapfrog":
            return reference.leapfrog(*given, steps, **options.reference, **more)
        if options.kind == "damped":
            return reference.damped_leapfrog(*given, steps, DAMPING, drift_step=self.drift, **options.reference, **more)
        return reference.generalized_leapfrog(
            *given, steps, scale_v=self.scale_v, scale_x=self.scale_x, **options.reference, **more
        )


def fused(field: MLPField, case: Case, options: Options, **more) -> tuple[Tensor, Tensor, Tensor]:
    steps, dim = case.eta.shape
    more |= options.fused
    if options.kind == "leapfrog":
        return field.unroll(case.x0, case.v0, merged_kicks(case.eta, len(case.eta)), case.eta, **more)[:3]
    if options.kind == "damped":
        drift = case.drift.expand(steps, dim)
        return field.unroll(case.x0, case.v0, merged_kicks(case.eta, len(case.eta)), drift, damping=DAMPING, **more)[:3]
    kick, log_decay = generalized_kicks(case.eta / 2, case.scale_v)
    stretch = case.scale_x.expand(steps, dim)
    return field.unroll(case.x0, case.v0, kick, case.eta, log_decay=log_decay, log_stretch=stretch, **more)[:3]


def derivatives(outputs, leaves: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
    grads = torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves, strict=True)]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, message: str) -> None:
    assert actual.shape == expected.shape, message
    if actual.numel():
        error = ((actual - expected).abs() / (1 + expected.abs())).max().item()
        assert error <= tolerance, f"{message}: error {error:.3g} > {tolerance}"


def check(case: Case, options: Options, tolerance=1e-10, **more) -> None:
    """End, log-determinant and every gradient against the reference."""
    outputs, expected = case.fused(options, **more), case.expected(options)
    assert torch.allclose(outputs[0], expected[0], rtol=0, atol=tolerance)
    for name, actual, wanted in zip(("x", "v", "log_det"), outputs, expected, strict=True):
        assert_close(actual, wanted, tolerance, name)
    leaves = case.leaves(options.kind)
    cotangents = [torch.randn_like(t) for t in expected]
    differentiable = [(o, e, c) for o, e, c in zip(outputs, expected, cotangents, strict=True) if o.requires_grad]
    got = derivatives([o for o, _, _ in differentiable], leaves, [c for _, _, c in differentiable])
    wanted = derivatives([e for _, e, _ in differentiable], leaves, [c for _, _, c in differentiable])
    for i, (actual, want) in enumerate(zip(got, wanted, strict=True)):
        assert_close(actual, want, tolerance, f"gradient of leaf {i}")


# ------------------------------------------------------------------------------------- agreement with the reference


@every_option
@every_activation
def test_unroll_agrees_with_the_reference(activation: str, option: str) -> None:
    case = Case.make(make_potential(activation, 3), batch=9, dim=3, steps=3)
    check(case, OPTIONS[option])


@pytest.mark.parametrize("layers", LAYERS)
@every_activation
def test_unroll_of_every_depth(activation: str, layers: int) -> None:
    case = Case.make(make_potential(activation, 2, LAYERS[layers]), batch=5, dim=2, steps=2)
    check(case, OPTIONS["generalized, norm and value clip, range"])


@pytest.mark.parametrize("batch", [0, 1, 15, 17, 60])
@pytest.mark.parametrize(("dim", "steps"), [(1, 1), (2, 1), (3, 2), (4, 1), (33, 2), (128, 1)])
@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_unroll_of_every_size(activation: str, dim: int, steps: int, batch: int) -> None:
    for hidden in ((64, 32), (32, 96, 64)) if dim <= 2 else ((64, 32),):
        case = Case.make(make_potential(activation, dim, hidden), batch, dim, steps)
        check(case, OPTIONS["generalized, norm and value clip, range"])


@pytest.mark.parametrize("hidden", [(96, 160), (256, 32, 128), (128, 128, 128)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_unroll_of_every_width(activation: str, hidden: tuple[int, ...]) -> None:
    case = Case.make(make_potential(activation, 2, hidden), batch=130, dim=2, steps=2)
    check(case, OPTIONS["leapfrog, norm clips"])


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_spectral_norm_carries_gradients_to_the_original_weights(activation: str) -> None:
    case = Case.make(make_potential(activation, 3, (32, 32), spectral_norm=True), batch=6, dim=3, steps=3)
    check(case, OPTIONS["leapfrog"])


def test_pinned_weights_are_used() -> None:
    """In training mode every read of a weight under spectral norm is another weight."""
    potential = make_potential("silu", 2, (32, 32), spectral_norm=True).train()
    case = Case.make(potential, batch=4, dim=2, steps=2)
    with pinned(potential):
        check(case, OPTIONS["leapfrog"])


def test_plain_sequential() -> None:
    net = nn.Sequential(nn.Linear(2, 32), nn.ELU(0.7), nn.Linear(32, 64), nn.ELU(0.7), nn.Linear(64, 1)).double()
    check(Case.make(net, batch=6, dim=2, steps=3), OPTIONS["leapfrog, norm clips"])


@every_option
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_backward_agrees_whatever_is_kept(activation: str, dim: int, option: str) -> None:
    """Bit for bit: what was kept is what would be computed again. Three hidden layers of different widths."""
    case = Case.make(make_potential(activation, dim, (32, 96, 64)), batch=70, dim=dim, steps=3)
    results = []
    for bits, products in ((False, False), (True, False), (True, True)):
        x, v, _ = case.fused(OPTIONS[option], keep_bits=bits, keep_products=products)
        leaves = case.leaves(OPTIONS[option].kind)
        results.append(derivatives([x, v], leaves, [torch.ones_like(x), torch.ones_like(v)]))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("layers", LAYERS)
def test_products_take_the_bytes_that_are_foretold(activation: str, dim: int, layers: int) -> None:
    field = MLPField.match(make_potential(activation, dim, LAYERS[layers]))
    weights, biases = field.weights()
    x = torch.zeros(5, dim, dtype=torch.float64)
    steps = torch.full((5, dim), 0.1, dtype=torch.float64)
    for keep in (False, True):
        _, _, _, _, _, products, *_ = torch.ops.ade_fast.mlp_unroll(
            x, x, steps, steps[1:], None, None, weights, biases, *field.spec.numbers, 1.0, 0, 0.0, 0, 0.0,
            -math.inf, math.inf, False, False, True, keep,
        )  # fmt: skip
        assert products.nbytes == (field.spec.product_bytes(5, 4, torch.float64) if keep else 0)


def test_products_need_the_bits() -> None:
    case = Case.make(make_potential("relu", 3), batch=2, dim=3, steps=1)
    with pytest.raises(ValueError, match="keep_products needs keep_bits"):
        case.fused(OPTIONS["leapfrog"], keep_bits=False, keep_products=True)


@pytest.mark.parametrize("gradient", ["full", "truncated", "stopped"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_gradient_modes(activation: str, gradient: str) -> None:
    case = Case.make(make_potential(activation, 3), batch=9, dim=3, steps=3)
    options = OPTIONS["generalized, norm and value clip, range"]
    outputs = case.fused(options, gradient=gradient)[:2]
    expected = case.expected(options, gradient=gradient)[:2]
    cotangents = [torch.randn_like(t) for t in expected]
    leaves = case.leaves(options.kind)
    for actual, wanted in zip(
        derivatives(outputs, leaves, cotangents), derivatives(expected, leaves, cotangents), strict=True
    ):
        assert_close(actual, wanted, 1e-10, gradient)


def test_unknown_gradient_mode_is_refused() -> None:
    case = Case.make(make_potential("relu", 3), batch=2, dim=3, steps=1)
    with pytest.raises(ValueError, match="gradient must be 'full', 'truncated' or 'stopped', got 'half'"):
        case.fused(OPTIONS["leapfrog"], gradient="half")


def test_gradient_of_one_output_alone_and_of_few_leaves() -> None:
    case = Case.make(make_potential("silu", 2), batch=7, dim=2, steps=2)
    for i in (0, 1):
        outputs, expected = case.fused(OPTIONS["leapfrog"]), case.expected(OPTIONS["leapfrog"])
        leaves = case.leaves("leapfrog")
        for subset in (leaves, leaves[:1], leaves[1:2], leaves[2:3], leaves[3:4], leaves[-1:]):
            one = torch.ones_like(outputs[i])
            got = torch.autograd.grad(outputs[i], subset, one, retain_graph=True, allow_unused=True)
            want = torch.autograd.grad(expected[i], subset, one, retain_graph=True, allow_unused=True)
            for a, b, leaf in zip(got, want, subset, strict=True):
                assert_close(a, torch.zeros_like(leaf) if b is None else b, 1e-10, f"output {i}")


# ---------------------------------------------------------------------------------------------------- gradcheck


@pytest.mark.parametrize("layers", LAYERS)
@every_activation
def test_gradcheck_of_the_unroll(activation: str, layers: int) -> None:
    """By finite differences along random directions (there are thousands of weights), for every option."""
    options = list(OPTIONS.values())
    case = Case.make(make_potential(activation, 2, LAYERS[layers]), batch=3, dim=2, steps=2)
    field = MLPField.match(case.potential)
    weights, biases = field.weights()
    n = len(weights)
    for option in options if layers == 2 else options[layers :: len(LAYERS)]:

        def run(x0, v0, eta, scale_v, scale_x, drift, *wb, option=option):
            inputs = Case(case.potential, x0, v0, eta, scale_v, scale_x, drift)
            replaced = MLPField(field.spec, ())
            replaced.weights = lambda: (list(wb[:n]), list(wb[n:]))
            return fused(replaced, inputs, option)

        inputs = (case.x0, case.v0, case.eta, case.scale_v, case.scale_x, case.drift, *weights, *biases)
        assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-6, fast_mode=True), option


@every_activation
def test_gradcheck_of_the_field(activation: str) -> None:
    field = MLPField.match(make_potential(activation, 2, (32, 32)))
    weights, biases = field.weights()
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    for *want, keep in ((True, False, False), (False, True, False), (True, True, False), (True, True, True)):

        def run(x, *wb, want=want, keep=keep):
            network = (list(wb[:3]), list(wb[3:]), *field.spec.numbers)
            outputs = torch.ops.ade_fast.mlp_field(x, *network, *want, None, None, 0.0, keep)[:2]
            return tuple(out for out, wanted in zip(outputs, want, strict=True) if wanted)

        assert torch.autograd.gradcheck(run, (x, *weights, *biases), eps=1e-6, atol=1e-6, fast_mode=True), want


@every_activation
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("layers", LAYERS)
def test_what_the_field_keeps_changes_no_gradient(layers: int, dim: int, activation: str) -> None:
    potential = make_potential(activation, dim, (32, 64, 32, 96)[:layers])
    field = MLPField.match(potential)
    weights, biases = field.weights()
    x = torch.randn(130, dim, dtype=torch.float64, requires_grad=True)
    df, u = torch.randn(130, dtype=torch.float64), torch.randn(130, dim, dtype=torch.float64)
    found = []
    for keep in (False, True):
        value, grad, *kept = torch.ops.ade_fast.mlp_field(
            x, weights, biases, *field.spec.numbers, True, True, None, None, 0.0, keep
        )
        assert [t.dim() == 2 for t in kept] == [keep and field.spec.piecewise_linear, keep]
        for outputs, by in (((value,), (df,)), ((grad,), (u,)), ((value, grad), (df, u))):
            inputs = [x, *weights, *biases]
            found += torch.autograd.grad(outputs, inputs, by, retain_graph=True, allow_unused=True)
    half = len(found) // 2
    for plain, kept in zip(found[:half], found[half:], strict=True):
        torch.testing.assert_close(kept, plain, rtol=1e-11, atol=1e-12)


def test_keeping_without_a_gradient_is_refused() -> None:
    field = MLPField.match(make_potential("silu", 2, (32, 32)))
    with pytest.raises(RuntimeError, match="mlp_field: keep must come with want_grad"):
        x = torch.randn(3, 2, dtype=torch.float64)
        torch.ops.ade_fast.mlp_field(x, *field.weights(), *field.spec.numbers, True, False, None, None, 0.0, True)
    with pytest.raises(RuntimeError, match="mlp_field_backward: products must come with bits"):
        relu = MLPField.match(make_potential("relu", 2, (32, 32)))
        products = torch.zeros(64, 3, dtype=torch.float64)
        numbers = (*relu.spec.numbers, True, None, None, None, products)
        torch.ops.ade_fast.mlp_field_backward(x[:, 0].contiguous(), None, x, *relu.weights(), *numbers)


# ---------------------------------------------------------------------------------------------------- the field


@pytest.mark.parametrize("layers", LAYERS)
@every_activation
def test_field_agrees_with_autograd(activation: str, layers: int) -> None:
    for batch, dim in ((0, 3), (1, 1), (17, 3), (60, 33), (61, 2)):
        potential = make_potential(activation, dim, LAYERS[layers])
        field = MLPField.match(potential)
        x = torch.randn(batch, dim, dtype=torch.float64, requires_grad=True)
        u = torch.randn(batch, dim, dtype=torch.float64)
        value = potential(x)
        (grad,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        assert_close(field.value(x), value, 1e-12, "value")
        assert_close(field.grad(x), grad, 1e-12, "grad")
        for actual, wanted in zip(field.value_and_grad(x), (value, grad), strict=True):
            assert_close(actual, wanted, 1e-12, "value_and_grad")

        linears = potential.linears
        parameters = [linear.weight for linear in linears] + [linear.bias for linear in linears]
        hu, dweights, dbiases = field.vjp(x.detach(), u)
        wanted = derivatives([grad], [x, *parameters], [u])
        for actual, want in zip((hu, *dweights, *dbiases), wanted, strict=True):
            assert_close(actual, want, 1e-11, "vjp")

        cotangents = [torch.randn_like(value), u]
        got = derivatives(field.value_and_grad(x), [x, *parameters], cotangents)
        both = derivatives([potential(x), torch.autograd.grad(potential(x).sum(), x, create_graph=True)[0]],
                           [x, *parameters], cotangents)  # fmt: skip
        for actual, want in zip(got, both, strict=True):
            assert_close(actual, want, 1e-11, "derivative of value and grad")


def test_activations_far_from_zero() -> None:
    """Large arguments neither overflow nor differ from torch's activations."""
    for activation in ACTIVATIONS:
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            potential = ade.MLPPotential(1, (32,), activation).to(dtype)
            with torch.no_grad():
                for parameter in potential.parameters():
                    parameter.fill_(1.0)
            x = torch.tensor(
                [[-1000.0], [-80.0], [-19.9], [-1e-3], [0.3], [18.0], [21.0], [90.0], [700.0]], dtype=dtype
            )
            x.requires_grad_()
            value = potential(x)
            (grad,) = torch.autograd.grad(value.sum(), x)
            field = MLPField.match(potential)
            assert_close(field.value(x), value, tolerance, activation)
            assert_close(field.grad(x), grad, tolerance, activation)


# ----------------------------------------------------------------------------------------------------- precision


def away_from_kinks(case: Case, options: Options, margin: float) -> Tensor:
    """Samples none of whose hidden units comes near a kink on their way, where float32 may fall on the other side."""
    seen = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().abs().amin(1)))
        for module in case.potential.linears[:-1]
    ]
    case.expected(options)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen).amin(0) > margin


@pytest.mark.parametrize("option", ["leapfrog", "generalized, norm and value clip, range"])
@every_activation
def test_float32_errors_are_at_most_twice_those_of_eager_float32(activation: str, option: str) -> None:
    options = OPTIONS[option]
    torch.manual_seed(3)
    case = Case.make(make_potential(activation, 2, (64, 64, 64)), batch=400, dim=2, steps=5)
    if activation in ("relu", "leaky_relu"):
        keep = away_from_kinks(case, options, 1e-4)
        assert keep.sum() > 200
        case.x0, case.v0 = (t[keep].detach().requires_grad_() for t in (case.x0, case.v0))
    # The very numbers of float32, in both.
    single = Case(
        make_potential(activation, 2, (64, 64, 64)).float(),
        *(t.detach().float().requires_grad_()
          for t in (case.x0, case.v0, case.eta, case.scale_v, case.scale_x, case.drift)),
    )  # fmt: skip
    single.potential.load_state_dict({k: v.float() for k, v in case.potential.state_dict().items()})
    case.potential.load_state_dict(single.potential.state_dict())
    double = Case(
        case.potential,
        *(t.detach().double().requires_grad_()
          for t in (single.x0, single.v0, single.eta, single.scale_v, single.scale_x, single.drift)),
    )  # fmt: skip
    cotangents = [torch.randn_like(single.x0) for _ in range(2)]

    def everything(c: Case, outputs) -> list[Tensor]:
        of = [g.to(outputs[0].dtype) for g in cotangents]
        return [*outputs[:2], *derivatives(list(outputs[:2]), c.leaves(options.kind), of)]

    truth = everything(double, double.expected(options))
    eager = everything(single, single.expected(options))
    ours = everything(single, single.fused(options))
    for i, (t, e, o) in enumerate(zip(truth, eager, ours, strict=True)):
        floor = 1e-7 * t.norm()  # an eager error below one rounding is luck
        assert (o.double() - t).norm() <= 2 * torch.maximum((e.double() - t).norm(), floor), i


# ------------------------------------------------------------------------------------------- exact reproducibility


def outputs_and_gradients(case: Case, options: Options) -> list[Tensor]:
    outputs = case.fused(options)
    grads = derivatives(list(outputs[:2]), case.leaves(options.kind), [torch.ones_like(outputs[0])] * 2)
    return [*outputs, *grads]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("hidden", [(32, 64), (64, 32, 32)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("batch", [100, 1000])
def test_result_does_not_depend_on_the_threads_nor_on_the_call(
    activation: str, batch: int, hidden: tuple[int, ...], threads: None
) -> None:
    case = Case.make(make_potential(activation, 2, hidden, dtype=torch.float32), batch, 2, 3, dtype=torch.float32)
    options = OPTIONS["generalized, norm and value clip, range"]
    results = []
    for count in (1, 2, 3, 7, 2):
        torch.set_num_threads(count)
        results.append(outputs_and_gradients(case, options))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("dim", "hidden"), [(3, (32, 64)), (2, (32, 64, 32))])
@every_activation
def test_a_sample_does_not_depend_on_its_batch(
    activation: str, dim: int, hidden: tuple[int, ...], dtype: torch.dtype
) -> None:
    case = Case.make(make_potential(activation, dim, hidden, dtype=dtype), 75, dim, 3, dtype=dtype)
    options = OPTIONS["damped, value and norm clip, range"]
    part = Case(case.potential, case.x0[31:40].detach().requires_grad_(), case.v0[31:40].detach().requires_grad_(),
                case.eta, case.scale_v, case.scale_x, case.drift)  # fmt: skip
    whole, alone = outputs_and_gradients(case, options), outputs_and_gradients(part, options)
    for i in (0, 1, 3, 4):  # x, v, dx0, dv0
        assert torch.equal(whole[i][31:40], alone[i]), i


@pytest.mark.parametrize("instructions", ["base", "avx2", "avx512"])
@every_activation
def test_every_instruction_set(activation: str, instructions: str, isa) -> None:
    if not isa(instructions):
        pytest.skip(f"this processor has no {instructions}")
    shapes = [
        (61, 2, (64, 32)),
        (17, 33, (32, 128, 32)),
        (3, 1, (32,)),
        (61, 2, (64, 32, 96)),
        (5, 1, (32, 64, 32, 32)),
    ]
    for option, (batch, dim, hidden) in zip(OPTIONS.values(), itertools.cycle(shapes), strict=False):
        check(Case.make(make_potential(activation, dim, hidden), batch, dim, steps=2), option)
        check(Case.make(make_potential(activation, dim, hidden, dtype=torch.float32), batch, dim, 2, torch.float32),
              option, tolerance=2e-3 if activation in ("relu", "leaky_relu") else 1e-4)  # fmt: skip


def test_kept_bits_do_not_depend_on_the_instruction_set(isa) -> None:
    """They may be kept by one call and read by another."""
    case = Case.make(make_potential("relu", 3), batch=19, dim=3, steps=2)
    field = MLPField.match(case.potential)
    found = []
    for name in ("base", "avx2", "avx512"):
        if isa(name):
            found.append(forward_op(field, case)[4])
    assert all(torch.equal(found[0], other) for other in found[1:])
    z = case.potential.linears[0](case.x0)
    unpacked = (found[0][0].unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    assert torch.equal(unpacked.flatten(1)[:, :32].bool(), z > 0)


# -------------------------------------------------------------------------------------------------- the operators


def forward_op(field: MLPField, case: Case, keep=(True, True, True), detach=True) -> tuple[Tensor, ...]:
    return torch.ops.ade_fast.mlp_unroll(*unroll_arguments(field, case, keep, detach))


def unroll_arguments(field: MLPField, case: Case, keep=(True, True, True), detach=False) -> list:
    options = OPTIONS["generalized, norm and value clip, range"]
    kick, log_decay = generalized_kicks(case.eta / 2, case.scale_v)
    stretch = case.scale_x.expand(case.eta.shape).contiguous()
    weights, biases = field.weights()
    tensors = [case.x0, case.v0, kick, case.eta, log_decay, stretch, weights, biases]
    if detach:
        tensors = [[t.detach() for t in ts] if isinstance(ts, list) else ts.detach() for ts in tensors]
    clips = (*clip_code(options.grad_clip), *clip_code(options.momentum_clip))
    return [*tensors, *field.spec.numbers, 1.0, *clips, -0.9, 1.0, False, *keep]


def leaf_copies(arguments: list) -> list:
    def leaf(value):
        if isinstance(value, list):
            return [leaf(v) for v in value]
        return value.detach().clone().requires_grad_() if isinstance(value, Tensor) else value

    return [leaf(value) for value in arguments]


@pytest.mark.parametrize("hidden", [(32, 32), (32, 32, 32)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_opcheck(activation: str, hidden: tuple[int, ...]) -> None:
    case = Case.make(make_potential(activation, 2, hidden, dtype=torch.float32), 5, 2, 2, torch.float32)
    field = MLPField.match(case.potential)
    ops = torch.ops.ade_fast
    for keep in ((True, True, True), (True, True, False), (False, False, False)):
        torch.library.opcheck(ops.mlp_unroll.default, tuple(leaf_copies(unroll_arguments(field, case, keep))))
    given = unroll_arguments(field, case, detach=True)
    x_end, v_end, x, v, bits, products, *_ = ops.mlp_unroll(*given)
    numbers, absent = given[8:-3], (None,) * 6
    for want, last in ((False, ()), (True, ()), (True, (None, *absent, True))):
        torch.library.opcheck(
            ops.mlp_unroll_backward.default,
            (x_end, v_end, given[1], *given[2:8], x, v, bits, products, *numbers, want, *last),
        )
    figures = tuple(leaf_copies(unroll_arguments(field, case, (True, True, False))))
    torch.library.opcheck(ops.mlp_unroll.default, (*figures, *absent, True))
    weights, biases = given[6:8]
    for want in ((True, True), (True, False), (False, True)):
        arguments = leaf_copies([given[0], weights, biases, *field.spec.numbers, *want])
        torch.library.opcheck(ops.mlp_field.default, tuple(arguments))
    for dvalue, dgrad in ((x_end[:, 0], None), (None, v_end), (x_end[:, 0], v_end)):
        arguments = (dvalue, dgrad, given[0], weights, biases, *field.spec.numbers, True)
        torch.library.opcheck(ops.mlp_field_backward.default, arguments)


def test_every_operator_is_tested_here() -> None:
    registered = {
        name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("ade_fast::mlp_")
    }
    # tests/test_mlp_chain.py, tests/test_mlp_contrast.py, tests/test_mlp_weighted.py
    elsewhere = {"mlp_chain", "mlp_contrast", "mlp_weighted_value"}
    assert registered == {*OPS, *elsewhere}


def test_differentiating_twice_raises() -> None:
    case = Case.make(make_potential("silu", 2), batch=4, dim=2, steps=2)
    x = case.fused(OPTIONS["leapfrog"])[0]
    for leaf in (case.x0, case.eta, case.potential.linears[1].weight):
        (grad,) = torch.autograd.grad(x.sum(), leaf, create_graph=True, retain_graph=True)
        with pytest.raises(RuntimeError, match="differentiable only once"):
            grad.sum().backward()
    field = MLPField.match(case.potential)
    (grad,) = torch.autograd.grad(field.grad(case.x0).sum(), case.x0, create_graph=True)
    with pytest.raises(RuntimeError, match="mlp_field_backward is differentiable only once"):
        grad.sum().backward()


def test_any_strides() -> None:
    case = Case.make(make_potential("relu", 3), batch=9, dim=3, steps=2)
    field = MLPField.match(case.potential)
    given = unroll_arguments(field, case, detach=True)

    def strided(value):
        if isinstance(value, list):
            return [strided(v) for v in value]
        return torch.stack([value, value + 1], -1)[..., 0] if isinstance(value, Tensor) else value

    for actual, wanted in zip(
        torch.ops.ade_fast.mlp_unroll(*map(strided, given)), torch.ops.ade_fast.mlp_unroll(*given), strict=True
    ):
        assert torch.equal(actual, wanted)


def test_changing_a_saved_tensor_in_place_raises() -> None:
    case = Case.make(make_potential("relu", 3), batch=4, dim=3, steps=2)
    x = case.fused(OPTIONS["leapfrog"])[0]
    with torch.no_grad():
        case.potential.linears[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("option", ["leapfrog", "leapfrog, norm clips", "leapfrog, value clips, range"])
def test_nan_reaches_the_result(activation: str, option: str) -> None:
    case = Case.make(make_potential(activation, 3), batch=60, dim=3, steps=2)
    for which in ("x0", "v0"):
        with torch.no_grad():
            state = getattr(case, which).clone()
            state[7, 1] = math.nan
        broken = Case(case.potential, *(state if name == which else getattr(case, name) for name in
                      ("x0", "v0", "eta", "scale_v", "scale_x", "drift")))  # fmt: skip
        x, v, _ = broken.fused(OPTIONS[option])
        assert x[7].isnan().any() or v[7].isnan().any()
        others = torch.arange(60) != 7
        assert x[others].isfinite().all() and v[others].isfinite().all()


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("layer", range(3))
def test_a_unit_that_minus_infinity_switches_off_stays_off(layer: int, dim: int) -> None:
    potential = make_potential("relu", dim, (32, 64, 32))
    case = Case.make(potential, batch=9, dim=dim, steps=2)
    with torch.no_grad():
        potential.linears[layer].bias[5] = -math.inf
    for actual, wanted in zip(case.fused(OPTIONS["leapfrog"]), case.expected(OPTIONS["leapfrog"]), strict=True):
        assert_close(actual, wanted, 1e-12, "end")


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("layer", range(4))
def test_nan_weights_reach_the_result(dim: int, name: str, layer: int) -> None:
    """Also where φ' of the unit that they belong to is 0; biases reach f, and its gradient by φ' alone."""
    case = Case.make(make_potential("relu", dim, (32, 64, 32)), batch=9, dim=dim, steps=2)
    with torch.no_grad():
        getattr(case.potential.linears[layer], name)[0] = math.nan
    assert MLPField.match(case.potential).value(case.x0).isnan().all()
    if name == "weight":
        for actual, wanted in zip(case.fused(OPTIONS["leapfrog"]), case.expected(OPTIONS["leapfrog"]), strict=True):
            assert (actual.isnan() | ~wanted.isnan()).all()


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("where", [0.0, 30.0, 1000.0, "one unit far away", "no weight to speak of"])
def test_no_place_of_data_and_kinks_loses_digits(dim: int, activation: str, where: float | str) -> None:
    """A piecewise-linear potential of few dimensions sums z_2 in other terms than W_2 h_1: they must not cancel."""
    offset = where if isinstance(where, float) else 0.0
    potential = make_potential(activation, dim, (64, 64, 64), dtype=torch.float32)
    with torch.no_grad():
        first = potential.linears[0]
        first.bias.copy_(0.3 * torch.randn(64) - first.weight.sum(1) * offset)
        if where == "one unit far away":
            first.bias[5] = -1e9
            potential.linears[1].weight[:, 5] *= 1e-9  # else its share of a leaky relu hides everybody's
        if where == "no weight to speak of":
            first.weight.mul_(1e-40)
    x = torch.randn(2000, dim) + offset
    exact = copy.deepcopy(potential).double()(x.double())
    eager, ours = potential(x), MLPField.match(potential).value(x)
    floor = 3e-7 * exact.norm()  # where all values are one number, a smaller eager error is luck
    assert (ours - exact).norm() <= 2 * torch.maximum((eager - exact).norm(), floor)


def changed(position: int, value):
    def change(arguments: list) -> list:
        arguments = list(arguments)
        arguments[position] = value(arguments[position])
        return arguments

    return change


MISUSES = {
    "x0 must be [B, D], got shape (3,)": changed(0, lambda t: t[:, 0]),
    "x0 must be float32, float64 or bfloat16, got int64": changed(0, lambda t: t.long()),
    "states must be float32 or float64, got bfloat16": changed(0, lambda t: t.bfloat16()),
    "v0 must have x0's shape shape (3, 2), got (2, 2)": changed(1, lambda t: t[:2]),
    "v0 must be float64 (x0 is float64), got float32": changed(1, lambda t: t.float()),
    "kick must have one row per kick, shape (3, 2), got (2, 2)": changed(2, lambda t: t[:2]),
    "drift must have one row per step and at least one": changed(3, lambda t: t[:0]),
    "drift must have one row per step, shape (2, 2), got (2, 1)": changed(3, lambda t: t[:, :1]),
    "log_decay must have one row per kick, shape (3, 2), got (1, 2)": changed(4, lambda t: t[:1]),
    "log_stretch must have one row per step, shape (2, 2), got (1, 2)": changed(5, lambda t: t[:1]),
    "weights and biases must be those of 1 to 4 hidden layers and the output, got 1 weights and 3 biases": changed(
        6, lambda ws: ws[:1]
    ),
    "weights[0] must have a multiple of 32 rows, got 31": changed(6, lambda ws: [ws[0][:31], *ws[1:]]),
    "weights[1] must have the network's layer, shape (32, 32), got (32, 31)": changed(
        6, lambda ws: [ws[0], ws[1][:, :31], ws[2]]
    ),
    "biases[2] must have the network's layer, shape (1,), got (2,)": changed(
        7, lambda bs: [*bs[:2], torch.cat([bs[2], bs[2]])]
    ),
    "activation must be 0 to 5, got 6": changed(8, lambda _: 6),
    "parameter must be finite, got nan": changed(9, lambda _: math.nan),
    "precision must be 1 (medium), 2 (high) or 3 (highest), got 0": changed(10, lambda _: 0),
    "damping must be finite, got inf": changed(11, lambda _: math.inf),
    "grad_clip must be 0 (none), 1 (value) or 2 (norm), got 3": changed(12, lambda _: 3),
    "momentum_clip's bound must be positive, got 0": changed(15, lambda _: 0.0),
    "lo must not exceed hi, got lo 2": changed(16, lambda _: 2.0),
}


@pytest.mark.parametrize("message", MISUSES)
def test_misuse_is_refused(message: str) -> None:
    case = Case.make(make_potential("relu", 2, (32, 32)), batch=3, dim=2, steps=2)
    arguments = MISUSES[message](unroll_arguments(MLPField.match(case.potential), case, detach=True))
    with pytest.raises(RuntimeError) as error:
        torch.ops.ade_fast.mlp_unroll(*arguments)
    assert f"mlp_unroll: {message.replace('shape shape', 'shape')}" in str(error.value)


# ----------------------------------------------------------------------------------------------------- recognition


def test_match_reads_the_spec() -> None:
    field = MLPField.match(ade.MLPPotential(5, (32, 96), "leaky_relu", negative_slope=0.25))
    assert (field.spec.dim, field.spec.hidden) == (5, (32, 96))
    assert (field.spec.activation, field.spec.parameter) == ("leaky_relu", 0.25)


class Subclass(ade.MLPPotential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked() -> nn.Module:
    potential = ade.MLPPotential(2, (32,))
    potential.layers[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    return potential


def patched() -> nn.Module:
    potential = ade.MLPPotential(2, (32,))
    potential.layers[1].forward = lambda x: x.abs()
    return potential


UNMATCHED = {
    "a function is no MLPPotential": lambda: lambda x: x.sum(1),
    "a Subclass is no MLPPotential": lambda: Subclass(2, (32,)),
    "hooks or a forward of its own": hooked,
    "a forward of its own": patched,
    "activation between each pair": lambda: nn.Sequential(nn.Linear(2, 32), nn.Linear(32, 1)),
    "not linear layers": lambda: nn.Sequential(nn.Linear(2, 32, bias=False), nn.ReLU(), nn.Linear(32, 1)),
    "(ReLU, SiLU) are not one of": lambda: nn.Sequential(
        nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1)
    ),
    "(Softplus) are not one of": lambda: nn.Sequential(nn.Linear(2, 32), nn.Softplus(2.0), nn.Linear(32, 1)),
    "(LeakyReLU) are not one of": lambda: nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(-0.1), nn.Linear(32, 1)),
    "do not lead from 2 numbers to one": lambda: nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2)),
    "x has 129 dimensions": lambda: ade.MLPPotential(129, (32,)),
    "it has 5 hidden layers": lambda: ade.MLPPotential(2, (32,) * 5),
    "(32, 48) are not multiples of 32": lambda: ade.MLPPotential(2, (32, 48)),
    "(512,) are not multiples of 32 up to 256": lambda: ade.MLPPotential(2, (512,)),
    "layers are not linear layers with": lambda: ade.MLPPotential(2, ()),
}


@pytest.mark.parametrize("reason", UNMATCHED)
def test_match_says_why_not(reason: str) -> None:
    found = MLPField.match(UNMATCHED[reason]())
    assert isinstance(found, str) and reason in found


def test_refuses_says_why_not() -> None:
    field = MLPField.match(ade.MLPPotential(2, (32,), spectral_norm=True))
    x = torch.zeros(3, 2)
    assert field.refuses(x) is None
    assert "the states are torch.bfloat16" in field.refuses(x.bfloat16())
    assert "the weights are torch.float32 on cpu, the states torch.float64" in field.refuses(x.double())
    assert "the states are on meta" in field.refuses(x.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast is on" in field.refuses(x)


@dataclass
class States:
    """What `refuses` asks of states on a GPU that is not there."""

    device: torch.device
    dtype: torch.dtype = torch.float32


def test_refuses_what_a_gpu_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    field = MLPField.match(ade.MLPPotential(2, (32,)))
    gpu, module = torch.device("cuda", 0), "ade_fast.fields.mlp"
    monkeypatch.setattr(f"{module}.build_info", lambda: {"cuda": False})
    assert "this build of ade_fast has no CUDA kernels" in field.refuses(States(gpu))
    monkeypatch.setattr(f"{module}.build_info", lambda: {"cuda": True})
    assert "the CUDA kernels take float32 alone" in field.refuses(States(gpu, torch.float64))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "cuda:0 has no bfloat16 tensor cores" in field.refuses(States(gpu))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert "the weights are torch.float32 on cpu, the states torch.float32 on cuda:0" in field.refuses(States(gpu))


def test_the_precision_is_torchs() -> None:
    """By either of torch's names for it; in a process of its own, since the newer one spoils the older."""
    code = """
import torch
from ade_fast.fields.mlp import _precision
for name, code in (("highest", 3), ("high", 2), ("medium", 1)):
    torch.set_float32_matmul_precision(name)
    assert _precision() == code, name
torch.set_float32_matmul_precision("highest")
for name, code in (("tf32", 2), ("ieee", 3)):
    torch.backends.cuda.matmul.fp32_precision = name
    assert _precision() == code, name
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_mlp_unroll_takes_weights_as_they_are() -> None:
    case = Case.make(make_potential("tanh", 2), batch=4, dim=2, steps=2)
    field = MLPField.match(case.potential)
    kick = merged_kicks(case.eta, len(case.eta))
    direct = mlp_unroll(field.spec, *field.weights(), case.x0, case.v0, kick, case.eta)[:3]
    assert all(torch.equal(a, b) for a, b in zip(direct, case.fused(OPTIONS["leapfrog"]), strict=True))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_generalized_kicks_is_the_two_half_kicks(n: int) -> None:
    half, scale = torch.rand(n, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    force, v = torch.randn(2, 3, dtype=torch.float64)
    kick, log_decay = generalized_kicks(half, scale)
    for t in range(n + 1):
        expected = v
        if t > 0:
            expected = expected * scale.exp() + half[t - 1] * force
        if t < n:
            expected = expected * scale.exp() + half[t] * force
        assert_close(v * log_decay[t].exp() + kick[t] * force, expected, 1e-14, f"kick {t}")
    assert generalized_kicks(half, None)[1] is None


def test_weights_beyond_shared_memory_are_a_slow_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU whose blocks have 227 KiB: three layers of 128 stay on the chip in every precision, four do not."""
    monkeypatch.setattr(_slow_paths, "_TAKEN", {})
    monkeypatch.setattr(mlp, "shared_memory", lambda device: 226 * 1024)
    mlp._beyond_shared_memory.cache_clear()
    three, four = (mlp.MLPSpec(2, (128,) * n, "silu", 0.0) for n in (3, 4))
    assert [three.weight_bytes(p) >> 10 for p in ("medium", "high", "highest")] == [68, 136, 204]
    device = torch.device("cuda", 0)
    mlp._note_weights(three, device)
    mlp._note_weights(four, torch.device("cpu"))
    assert ade.slow_paths() == ()
    with pytest.warns(_slow_paths.SlowPathWarning, match="'highest' takes 300 KiB for its weights"):
        mlp._note_weights(four, device)
    mlp._note_weights(four, device)
    assert len(ade.slow_paths()) == 1
    monkeypatch.setattr(mlp, "matmul_precision", lambda: "high")
    mlp._note_weights(four, device)
    assert len(ade.slow_paths()) == 1
    mlp._beyond_shared_memory.cache_clear()

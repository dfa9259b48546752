"""Misuses of the layers, each with its message: layer, argument, what was wanted, what came."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import DOUBLE, make_potential, mlp, normal
from torch import Tensor, nn

import ade_fast as ade

B, D = 4, 3


def x0() -> Tensor:
    return normal(B, D, seed=1)


def v0() -> Tensor:
    return normal(B, D, seed=2)


def silu() -> nn.Module:
    return make_potential("silu")


def step() -> Tensor:
    return torch.tensor(0.1, dtype=DOUBLE)


def leapfrog(**options: Any) -> nn.Module:
    return ade.Leapfrog(3, step(), **options)


def generalized(**options: Any) -> nn.Module:
    return ade.GeneralizedLeapfrog(3, step(), **options)


# Each misuse: what is done, the exception, and the parts of its message in order.
Misuse = tuple[Callable[[], Any], type[Exception], tuple[str, ...]]

CONSTRUCTION: dict[str, Misuse] = {
    "no_steps": (
        lambda: ade.Leapfrog(0),
        ValueError,
        ("Leapfrog: n_steps must be at least 1", "got 0"),
    ),
    "negative_steps": (
        lambda: ade.DampedLeapfrog(-3, 0.1),
        ValueError,
        ("DampedLeapfrog: n_steps must be at least 1", "got -3"),
    ),
    "fractional_steps": (
        lambda: ade.Leapfrog(2.5),
        TypeError,
        ("Leapfrog: n_steps must be an integer", "got float"),
    ),
    "boolean_steps": (lambda: ade.Leapfrog(True), TypeError, ("Leapfrog: n_steps", "integer", "got bool")),
    "negative_step_size": (
        lambda: ade.Leapfrog(3, -0.1),
        ValueError,
        ("Leapfrog: step_size must be positive", "got -0.1"),
    ),
    "zero_step_size": (
        lambda: ade.GeneralizedLeapfrog(3, 0.0),
        ValueError,
        ("GeneralizedLeapfrog: step_size must be positive", "got 0.0"),
    ),
    "one_negative_step_size": (
        lambda: ade.Leapfrog(3, torch.tensor([0.5, -0.25, 0.5])),
        ValueError,
        ("Leapfrog: step_size must be positive", "got -0.25"),
    ),
    "nan_step_size": (
        lambda: ade.Leapfrog(3, float("nan")),
        ValueError,
        ("Leapfrog: step_size must be finite", "got nan"),
    ),
    "infinite_step_size": (
        lambda: ade.DampedLeapfrog(3, float("inf")),
        ValueError,
        ("DampedLeapfrog: step_size must be finite", "got inf"),
    ),
    "textual_step_size": (
        lambda: ade.Leapfrog(3, "0.1"),
        TypeError,
        ("Leapfrog: step_size must be a number or a tensor", "got str"),
    ),
    "clip_as_a_number": (
        lambda: ade.Leapfrog(3, grad_clip=0.5),
        TypeError,
        ("Leapfrog: grad_clip must be", "ade.Clip.value(c)", "ade.Clip.norm(c)", "got float"),
    ),
    "clip_as_a_word": (
        lambda: ade.GeneralizedLeapfrog(3, momentum_clip="norm"),
        TypeError,
        ("GeneralizedLeapfrog: momentum_clip must be", "ade.Clip", "got str"),
    ),
    "clip_not_called": (
        lambda: ade.Leapfrog(3, grad_clip=ade.Clip.norm),
        TypeError,
        ("Leapfrog: grad_clip must be", "got method"),
    ),
    "negative_clip": (
        lambda: ade.Clip.value(-1.0),
        ValueError,
        ("Clip", "bound must be positive", "got -1.0"),
    ),
    "zero_clip": (lambda: ade.Clip.norm(0.0), ValueError, ("Clip", "bound must be positive", "got 0.0")),
    "nan_clip": (
        lambda: ade.Clip.norm(float("nan")),
        ValueError,
        ("Clip", "bound must be positive", "got nan"),
    ),
    "textual_clip": (lambda: ade.Clip.norm("1"), TypeError, ("Clip", "bound must be a number", "got str")),
    "unknown_clip": (
        lambda: ade.Clip("both", 1.0),
        ValueError,
        ("Clip: mode must be 'value' or 'norm'", "got 'both'"),
    ),
    "reversed_range": (
        lambda: ade.Leapfrog(3, sample_range=(1.0, -1.0)),
        ValueError,
        ("Leapfrog: sample_range must have lo < hi", "got (1.0, -1.0)"),
    ),
    "nan_range": (
        lambda: ade.Leapfrog(3, sample_range=(float("nan"), 1.0)),
        ValueError,
        ("Leapfrog: sample_range", "lo < hi", "nan"),
    ),
    "range_as_a_number": (
        lambda: ade.Leapfrog(3, sample_range=1.0),
        TypeError,
        ("Leapfrog: sample_range must be a pair of numbers (lo, hi)", "got 1.0"),
    ),
    "range_of_three": (
        lambda: ade.Leapfrog(3, sample_range=(0.0, 1.0, 2.0)),
        TypeError,
        ("Leapfrog: sample_range must be a pair", "got (0.0, 1.0, 2.0)"),
    ),
    "unknown_gradient": (
        lambda: ade.Leapfrog(3, gradient="half"),
        ValueError,
        ("Leapfrog: gradient must be one of", "'full', 'truncated', 'stopped', 'none'", "got 'half'"),
    ),
    "unknown_memory": (
        lambda: ade.DampedLeapfrog(3, 0.1, memory="disk"),
        ValueError,
        ("DampedLeapfrog: memory must be one of", "'states'", "got 'disk'"),
    ),
    "zero_damping": (
        lambda: ade.DampedLeapfrog(3, 0.1, 0.0),
        ValueError,
        ("DampedLeapfrog: damping must be in (0, 1]", "got 0.0"),
    ),
    "damping_that_drives": (
        lambda: ade.DampedLeapfrog(3, 0.1, 1.5),
        ValueError,
        ("DampedLeapfrog: damping must be in (0, 1]", "got 1.5"),
    ),
    "nan_damping": (
        lambda: ade.DampedLeapfrog(3, 0.1, float("nan")),
        ValueError,
        ("DampedLeapfrog: damping", "got nan"),
    ),
    "damping_as_a_word": (
        lambda: ade.DampedLeapfrog(3, 0.1, "half"),
        TypeError,
        ("DampedLeapfrog: damping must be a number", "got str"),
    ),
    "negative_drift": (
        lambda: ade.DampedLeapfrog(3, 0.1, drift_step=-1.0),
        ValueError,
        ("DampedLeapfrog: drift_step must be positive", "got -1.0"),
    ),
    "scale_as_a_word": (
        lambda: generalized(scale_v="logit"),
        TypeError,
        ("GeneralizedLeapfrog: scale_v must be", "got str"),
    ),
    "shift_as_a_number": (
        lambda: generalized(shift_x=0.5),
        TypeError,
        ("GeneralizedLeapfrog: shift_x must be None", "got float"),
    ),
    "empty_momentum": (
        lambda: generalized(momentum_shape=(0,)),
        ValueError,
        ("GeneralizedLeapfrog: momentum_shape must be", "got (0,)"),
    ),
    "negative_momentum_step": (
        lambda: generalized(momentum_step_size=-1.0),
        ValueError,
        ("GeneralizedLeapfrog: momentum_step_size must be positive", "got -1.0"),
    ),
    "complex_step_size": (
        lambda: ade.Leapfrog(3, torch.tensor(0.1 + 0.1j)),
        TypeError,
        ("Leapfrog: step_size must be real", "got torch.complex64"),
    ),
    "boolean_step_size": (
        lambda: ade.DampedLeapfrog(3, torch.ones(D, dtype=torch.bool)),
        TypeError,
        ("DampedLeapfrog: step_size must be real", "got torch.bool"),
    ),
    "nan_scale": (
        lambda: generalized(scale_v=float("nan")),
        ValueError,
        ("GeneralizedLeapfrog: scale_v must be finite", "got nan"),
    ),
    "infinite_scale": (
        lambda: generalized(scale_x=torch.tensor([0.0, float("inf")])),
        ValueError,
        ("GeneralizedLeapfrog: scale_x must be finite", "got inf"),
    ),
    "complex_scale": (
        lambda: generalized(scale_x=torch.zeros(D, dtype=torch.complex64)),
        TypeError,
        ("GeneralizedLeapfrog: scale_x must be real", "got torch.complex64"),
    ),
    "boolean_momentum": (
        lambda: generalized(momentum_shape=True),
        ValueError,
        ("GeneralizedLeapfrog: momentum_shape must be", "got True"),
    ),
    "check_finite_as_a_word": (
        lambda: ade.Leapfrog(3, check_finite="no"),
        TypeError,
        ("Leapfrog: check_finite must be True or False", "got 'no'"),
    ),
    "check_potential_as_a_number": (
        lambda: ade.Leapfrog(3, check_potential=1),
        TypeError,
        ("Leapfrog: check_potential must be True or False", "got 1"),
    ),
    "negative_budget": (
        lambda: ade.set_memory_budget(-1),
        ValueError,
        ("set_memory_budget: n_bytes must be", "got -1"),
    ),
}


class Batched(nn.Module):
    """A potential with one more layer that may be unfit."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, 8), layer, nn.SiLU(), nn.Linear(8, 1)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class OfX(nn.Module):
    """A network of (F, x) that looks at x alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, grad: Tensor, x: Tensor) -> Tensor:
        return self.net(x)


class Stateful(nn.Module):
    """A network that is another one at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=DOUBLE))

    def forward(self, v: Tensor) -> Tensor:
        self.calls += 1
        return v * self.calls


CALLS: dict[str, Misuse] = {
    "x_of_numpy": (
        lambda: leapfrog()(silu(), np.zeros((B, D)), v0()),
        TypeError,
        ("Leapfrog: x0 must be a tensor", "got ndarray"),
    ),
    "x_of_integers": (
        lambda: leapfrog()(silu(), torch.zeros(B, D, dtype=torch.int64)),
        TypeError,
        ("Leapfrog: x0 must be float32, float64", "got torch.int64"),
    ),
    "x_complex": (
        lambda: leapfrog()(silu(), torch.zeros(B, D, dtype=torch.complex64)),
        TypeError,
        ("Leapfrog: x0 must be float32, float64", "got torch.complex64"),
    ),
    "x_without_a_batch": (
        lambda: leapfrog()(silu(), torch.zeros(D)),
        ValueError,
        ("Leapfrog: x0 must have shape (B, *event)", f"got ({D},)"),
    ),
    "v_of_another_shape": (
        lambda: ade.Leapfrog(3)(mlp((2, 4, 1), nn.SiLU), torch.randn(64, 2), torch.randn(64, 3)),
        ValueError,
        ("Leapfrog: v0 must have x0's shape (64, 2), got (64, 3)",),
    ),
    "v_of_another_batch": (
        lambda: ade.DampedLeapfrog(3, step())(silu(), x0(), v0()[:2]),
        ValueError,
        (f"DampedLeapfrog: v0 must have x0's shape ({B}, {D})", f"got (2, {D})"),
    ),
    "v_of_another_dtype": (
        lambda: leapfrog()(silu(), x0(), v0().float()),
        TypeError,
        ("Leapfrog: v0 must have x0's dtype torch.float64", "got torch.float32"),
    ),
    "v_on_another_device": (
        lambda: leapfrog()(silu(), x0(), v0().to("meta")),
        ValueError,
        ("Leapfrog: v0 must be on x0's device cpu", "got meta"),
    ),
    "v_no_tensor": (
        lambda: leapfrog()(silu(), x0(), 0.0),
        TypeError,
        ("Leapfrog: v0 must be a tensor or None", "got float"),
    ),
    "v_of_the_wrong_latent_shape": (
        lambda: generalized(shift_v=silu(), shift_x=silu(), momentum_shape=(2,))(silu(), x0(), v0()),
        ValueError,
        (f"GeneralizedLeapfrog: v0 must have shape ({B}, 2)", f"got ({B}, {D})"),
    ),
    "latent_momentum_without_couplings": (
        lambda: generalized(momentum_shape=(2,))(silu(), x0(), normal(B, 2, seed=1)),
        ValueError,
        ("GeneralizedLeapfrog: shift_v must map between", f"({D},)", "(2,)"),
    ),
    "latent_momentum_without_its_step": (
        lambda: ade.GeneralizedLeapfrog(3, torch.full((D,), 0.1), shift_v=silu(), shift_x=silu(), momentum_shape=(2,))(
            silu(), x0(), normal(B, 2, seed=1)
        ),
        ValueError,
        ("GeneralizedLeapfrog: momentum_step_size must be given", "(2,)", f"({D},)"),
    ),
    "arguments_swapped": (
        lambda: leapfrog()(x0(), silu()),
        TypeError,
        ("Leapfrog:", "got"),
    ),
    "potential_missing": (
        lambda: leapfrog()(None, x0(), v0()),
        TypeError,
        ("Leapfrog: potential must be callable", "got NoneType"),
    ),
    "potential_of_two_values": (
        lambda: leapfrog()(lambda x: x[:, :2].square(), x0(), v0()),
        ValueError,
        ("Leapfrog: potential must map x", "one value per sample", f"({B},)", f"got ({B}, 2)"),
    ),
    "potential_averaged": (
        lambda: leapfrog()(lambda x: x.square().mean(), x0(), v0()),
        ValueError,
        ("Leapfrog: potential must map x", "one value per sample", f"({B},)", "got ()"),
    ),
    "potential_of_a_tuple": (
        lambda: leapfrog()(lambda x: (x.sum(1), x), x0(), v0()),
        TypeError,
        ("Leapfrog: potential must return a tensor", "got tuple"),
    ),
    "potential_detached": (
        lambda: leapfrog()(lambda x: x.detach().sum(1), x0(), v0()),
        ValueError,
        ("Leapfrog: potential", "does not depend on x", "differentiable"),
    ),
    "potential_under_no_grad": (
        lambda: leapfrog()(torch.no_grad()(silu().forward), x0(), v0()),
        ValueError,
        ("Leapfrog: potential", "does not depend on x", "no_grad"),
    ),
    "potential_detached_without_gradients": (
        lambda: torch.no_grad()(leapfrog())(lambda x: x.detach().sum(1), x0(), v0()),
        ValueError,
        ("Leapfrog: potential", "does not depend on x"),
    ),
    "potential_on_another_device": (
        lambda: leapfrog()(silu().to("meta"), x0(), v0()),
        ValueError,
        ("Leapfrog: potential's parameters are on meta", "x0 is on cpu", ".to("),
    ),
    "potential_of_another_dtype": (
        lambda: leapfrog()(silu().float(), x0(), v0()),
        (TypeError, ValueError),
        ("Leapfrog: potential", "torch.float32", "torch.float64"),
    ),
    "batch_norm_in_training": (
        lambda: leapfrog()(Batched(nn.BatchNorm1d(8)), x0(), v0()),
        ValueError,
        ("Leapfrog: potential mixes the samples", "BatchNorm1d in training mode", ".eval()"),
    ),
    "batch_norm_without_running_statistics": (
        lambda: leapfrog()(Batched(nn.BatchNorm1d(8, track_running_stats=False)).eval(), x0(), v0()),
        ValueError,
        ("Leapfrog: potential mixes the samples", "BatchNorm1d"),
    ),
    "dropout_in_training": (
        lambda: ade.DampedLeapfrog(3, step())(Batched(nn.Dropout(0.5)), x0(), v0()),
        ValueError,
        ("DampedLeapfrog: potential is random", "Dropout in training mode", ".eval()"),
    ),
    "dropout_behind_a_lambda": (
        lambda: (lambda f: leapfrog()(lambda x: f(x), x0(), v0()))(Batched(nn.Dropout(0.5))),
        ValueError,
        ("Leapfrog: potential is random", "Dropout"),
    ),
    "dropout_in_a_network": (
        lambda: generalized(scale_v=OfX(Batched(nn.Dropout(0.5))))(silu(), x0(), v0()),
        ValueError,
        ("GeneralizedLeapfrog: scale_v is random", "Dropout"),
    ),
    "random_function": (
        lambda: leapfrog(check_potential=True)(lambda x: (x * torch.randn_like(x)).sum(1), x0(), v0()),
        ValueError,
        ("Leapfrog: potential is random", "two evaluations at the same x differ"),
    ),
    "function_that_mixes_the_batch": (
        lambda: leapfrog(check_potential=True)(lambda x: ((x - x.mean(0)) ** 2).sum(1), x0(), v0()),
        ValueError,
        ("Leapfrog: potential mixes the samples of a batch", "half of the batch"),
    ),
    "legacy_spectral_norm": (
        lambda: leapfrog()(Batched(nn.utils.spectral_norm(nn.Linear(8, 8))), x0(), v0()),
        ValueError,
        ("Leapfrog: potential changes its own buffers", "parametrizations.spectral_norm"),
    ),
    "step_size_of_another_event": (
        lambda: ade.Leapfrog(3, torch.full((5,), 0.1))(silu(), x0(), v0()),
        ValueError,
        ("Leapfrog: step_size must be a number or broadcast to the event", f"({D},)", "got shape (5,)"),
    ),
    "step_size_of_another_number_of_steps": (
        lambda: ade.Leapfrog(3, torch.full((7, D), 0.1))(silu(), x0(), v0()),
        ValueError,
        ("Leapfrog: step_size with one row per step must have 3 rows", f"got shape (7, {D})"),
    ),
    "step_size_of_too_many_dimensions": (
        lambda: ade.Leapfrog(3, torch.full((1, 3, D), 0.1))(silu(), x0(), v0()),
        ValueError,
        ("Leapfrog: step_size must", f"({D},)", f"got shape (1, 3, {D})"),
    ),
    "layer_on_another_device": (
        lambda: ade.Leapfrog(3, torch.full((D,), 0.1)).to("meta")(silu(), x0(), v0()),
        ValueError,
        ("Leapfrog: step_size is on meta", "x0 is on cpu", ".to("),
    ),
    "scale_of_another_shape": (
        lambda: generalized(scale_v=torch.zeros(5))(silu(), x0(), v0()),
        ValueError,
        ("GeneralizedLeapfrog: scale_v must be a number or broadcast to", f"({D},)", "got shape (5,)"),
    ),
    "scale_network_of_another_shape": (
        lambda: generalized(scale_v=lambda grad, x: x[:, :2])(silu(), x0(), v0()),
        ValueError,
        ("GeneralizedLeapfrog: scale_v must return shape", f"({B}, {D})", f"got ({B}, 2)"),
    ),
    "shift_network_of_another_shape": (
        lambda: generalized(shift_x=lambda v: v.sum(1))(silu(), x0(), v0()),
        ValueError,
        ("GeneralizedLeapfrog: shift_x must return shape", f"({B}, {D})", f"got ({B},)"),
    ),
    "context_no_tensor": (
        lambda: leapfrog()(silu(), x0(), v0(), context="label"),
        TypeError,
        ("Leapfrog: context must be a tensor, a tuple of tensors or None", "got str"),
    ),
    "generator_no_generator": (
        lambda: leapfrog()(silu(), x0(), generator=3),
        TypeError,
        ("Leapfrog: generator must be a torch.Generator", "got int"),
    ),
    "state_that_blows_up": (
        lambda: ade.Leapfrog(6, torch.tensor(1e80, dtype=DOUBLE), check_finite=True)(
            lambda x: x.square().square().sum(1), x0(), v0()
        ),
        ade.NonFiniteError,
        ("Leapfrog:", "step"),
    ),
    "start_that_is_not_finite": (
        lambda: leapfrog(check_finite=True)(silu(), x0() * float("nan"), v0()),
        ade.NonFiniteError,
        ("Leapfrog:", "step 1"),
    ),
    "functional_negative_step": (
        lambda: ade.functional.leapfrog(silu(), x0(), v0(), -0.1, 3),
        ValueError,
        ("leapfrog: step_size must be positive", "got -0.1"),
    ),
    "x_sparse": (
        lambda: leapfrog()(silu(), x0().to_sparse()),
        TypeError,
        ("Leapfrog: x0 must be a dense tensor", "got layout torch.sparse_coo"),
    ),
    "event_of_another_width": (
        lambda: leapfrog()(silu(), normal(B, 5, seed=1)),
        RuntimeError,
        (f"Leapfrog: potential failed at x of shape ({B}, 5)", "mat1 and mat2"),
    ),
    "event_of_another_width_for_a_known_mlp": (
        lambda: leapfrog()(mlp((D, 32, 1), nn.SiLU).double(), normal(B, 5, seed=1)),
        RuntimeError,
        (f"Leapfrog: potential failed at x of shape ({B}, 5)", "mat1 and mat2"),
    ),
    "layers_of_several_dtypes": (
        lambda: leapfrog()(nn.Sequential(nn.Linear(D, 32).double(), nn.SiLU(), nn.Linear(32, 1)), x0()),
        RuntimeError,
        ("Leapfrog: potential's layers do not fit", "weights[1]"),
    ),
    "potential_complex": (
        lambda: leapfrog()(lambda x: torch.complex(x, x).sum(1), x0()),
        TypeError,
        ("Leapfrog: potential must return real numbers", "got torch.complex128"),
    ),
    "network_complex": (
        lambda: generalized(shift_x=lambda v: torch.complex(v, v))(silu(), x0(), v0()),
        TypeError,
        ("GeneralizedLeapfrog: shift_x must return real numbers", "got torch.complex128"),
    ),
    "functional_boolean_step": (
        lambda: ade.functional.leapfrog(silu(), x0(), v0(), torch.tensor(True), 3),
        TypeError,
        ("leapfrog: step_size must be real", "got torch.bool"),
    ),
    "network_that_changes_its_buffers": (
        lambda: generalized(shift_x=Stateful())(silu(), x0(), v0()),
        ValueError,
        ("GeneralizedLeapfrog: shift_x changes its own buffers",),
    ),
    "potential_that_changes_its_buffers_without_gradients": (
        lambda: leapfrog(gradient="none")(Batched(nn.utils.spectral_norm(nn.Linear(8, 8))), x0(), v0()),
        ValueError,
        ("Leapfrog: potential changes its own buffers",),
    ),
    "functional_no_steps": (
        lambda: ade.functional.generalized_leapfrog(silu(), x0(), v0(), 0.1, 0),
        ValueError,
        ("generalized_leapfrog: n_steps must be at least 1", "got 0"),
    ),
}


def assert_refused(misuse: Misuse) -> None:
    do, kind, parts = misuse
    with pytest.raises(kind, match=".*".join(re.escape(part) for part in parts)):
        do()


@pytest.mark.parametrize("name", list(CONSTRUCTION))
def test_refused_at_construction(name: str) -> None:
    assert_refused(CONSTRUCTION[name])


@pytest.mark.parametrize("name", list(CALLS))
def test_refused_at_the_call(name: str) -> None:
    assert_refused(CALLS[name])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch.cuda.is_available() is False")
def test_mixed_cpu_and_gpu_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Leapfrog: v0 must be on x0's device cuda:0, got cpu"):
        leapfrog()(silu().cuda(), x0().cuda(), v0())
    with pytest.raises(ValueError, match=r"Leapfrog: potential's parameters are on cpu, x0 is on cuda:0"):
        leapfrog()(silu(), x0().cuda(), v0().cuda())


def test_a_refused_call_leaves_the_layer_usable() -> None:
    layer, potential = leapfrog(), silu()
    expected = layer(potential, x0(), v0())
    with pytest.raises(ValueError, match="v0"):
        layer(potential, x0(), v0()[:1])
    assert torch.equal(layer(potential, x0(), v0()).x, expected.x)


def test_numbers_of_numpy_are_numbers() -> None:
    layer = ade.Leapfrog(np.int64(3), np.float32(0.5), grad_clip=ade.Clip.norm(np.float32(2.0)))
    assert layer.chain(nn.Flatten(0), torch.zeros(2, 1), np.int64(2)).x.shape == (2, 1)
    expected = ade.Leapfrog(3, 0.5, grad_clip=ade.Clip.norm(2.0))
    assert type(layer.n_steps) is int
    assert torch.equal(layer.double()(silu(), x0(), v0()).x, expected.double()(silu(), x0(), v0()).x)
    general = ade.GeneralizedLeapfrog(2, np.float64(0.1), scale_v=np.float32(0.5), momentum_shape=np.int64(3))
    assert general.scale_v.item() == 0.5 and general.momentum_shape((3,)) == (3,)
    assert ade.DampedLeapfrog(2, 0.1, np.float64(0.5)).damping == 0.5


def test_numbers_given_to_functional_forms_are_not_rounded() -> None:
    """0.1 is 0.1 in float64, whatever torch's default dtype."""
    for numbers, tensors in (
        ({"step_size": 0.1}, {"step_size": step()}),
        ({"step_size": step(), "scale_v": 0.1}, {"step_size": step(), "scale_v": step()}),
    ):
        form = ade.functional.generalized_leapfrog if "scale_v" in numbers else ade.functional.leapfrog
        one, other = (form(silu(), x0(), v0(), n_steps=3, **given) for given in (numbers, tensors))
        assert torch.equal(one.x, other.x) and torch.equal(one.log_det, other.log_det)


def test_the_plan_of_the_latest_differentiable_call_is_kept() -> None:
    for potential in (silu(), ade.MLPPotential(D, (32,)).double()):
        layer = leapfrog()
        layer(potential, x0(), v0())
        plan = layer.last_plan
        with torch.no_grad():
            layer(potential, x0(), v0())
        assert plan is not None and layer.last_plan is plan

"""The CUDA kernels of MLP potentials, run on the host (csrc/cuda/block.h, warp.h), against the CPU ops in float64.

Needs no GPU, but the module ade_fast_testing (see test_cuda_host.py).
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from host_mlp import (
    ACTIVATIONS,
    KINK_MARGIN,
    LARGE_MEMORY,
    NORM,
    OPTIONS,
    PRECISIONS,
    TOLERANCE,
    Data,
    Host,
    Problem,
    Results,
    error,
    errors,
    everything,
    everything_on_the_cpu,
    with_option,
)
from torch import Tensor

LAYERS = {1: (32,), 2: (32, 64), 3: (64, 32, 32), 4: (32, 64, 32, 32)}
OPTION = "generalized, norm and value clip, range"
EVERYTHING = "annealed, norm and value clip, range"
SMALL_MEMORY = 48 * 1024

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_precision = pytest.mark.parametrize("precision", PRECISIONS)


def check(testing: ModuleType, problem: Problem, precision: str, **host: object) -> None:
    """Every output of every op."""
    data = Data.draw(problem, margin=KINK_MARGIN)
    want = everything_on_the_cpu(data)
    got = everything(Host(testing, precision, **host), data, want)
    tolerance = TOLERANCE[precision][problem.kind]
    for op in want:
        for name, found in errors(got[op], want[op]).items():
            assert found <= tolerance, f"{op}: {name}: error {found:.2g} > {tolerance}"
        assert not any(t.isnan().any() for t in got[op].values()), op


@every_precision
@pytest.mark.parametrize("layers", LAYERS)
@every_activation
def test_every_depth(testing: ModuleType, activation: str, layers: int, precision: str) -> None:
    option = EVERYTHING if precision == "highest" else "leapfrog"
    check(testing, with_option(Problem(activation, LAYERS[layers]), option), precision)


@pytest.mark.parametrize("option", OPTIONS)
@every_activation
def test_every_option(testing: ModuleType, activation: str, option: str) -> None:
    check(testing, with_option(Problem(activation, (64, 32), rows=33, steps=3), option), "highest")


@pytest.mark.parametrize("rows", [1, 15, 17])
@pytest.mark.parametrize("dim", [1, 2, 3, 16, 33, 128])
@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_every_size(testing: ModuleType, activation: str, dim: int, rows: int) -> None:
    # Behind a norm clip, a single dimension has gradients of 0 and rounding errors.
    option = OPTION if dim > 1 else "damped, value clips, range"
    check(testing, with_option(Problem(activation, (32, 32), dim, rows, 1), option), "highest")
    check(testing, with_option(Problem(activation, (32, 32), dim, rows, 2), "Gaussian, value clip"), "highest")


@pytest.mark.parametrize("hidden", [(96, 160), (256, 32, 128), (128, 128, 128), (256, 256, 256, 256)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_every_width(testing: ModuleType, activation: str, hidden: tuple[int, ...]) -> None:
    check(testing, with_option(Problem(activation, hidden, 2, 20), "leapfrog, norm clips"), "highest")


@every_precision
@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_wide_blocks_and_more_rows_than_blocks(testing: ModuleType, activation: str, precision: str) -> None:
    option = EVERYTHING if precision == "highest" else "leapfrog"
    problem = with_option(Problem(activation, (32,), 2, 8500, 1), option)
    data = Data.draw(problem, margin=KINK_MARGIN)
    want, host = everything_on_the_cpu(data), Host(testing, precision)
    got = everything(host, data, want)
    tolerance = TOLERANCE[precision][problem.kind]
    for op in want:
        assert max(errors(got[op], want[op]).values()) <= tolerance, op
    few = part(data, 8491, 8500)
    alone = host.unroll(few)
    for name in ("x_end", "v_end"):  # a sample does not depend on its batch
        assert torch.equal(alone[name], got["unroll"][name][8491:8500])
    if precision == "highest":
        field = Problem("relu", (32,), 1, 17000)
        many = Data.draw(field)
        assert error(host.field(many)["grad"], everything_on_the_cpu(many)["field"]["grad"]) < 1e-5


@pytest.mark.parametrize(("rows", "steps"), [(3, 20), (37, 112)])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_many_steps_of_a_piecewise_linear_potential(
    testing: ModuleType, activation: str, rows: int, steps: int
) -> None:
    """The backward pass takes the states of all steps together: so many that its blocks are wide."""
    option = OPTION if rows == 3 else "Gaussian, value clip"
    data = Data.draw(with_option(Problem(activation, (32,), 2, rows, steps), option), margin=KINK_MARGIN)
    want = everything_on_the_cpu(data)
    got = Host(testing).unroll_backward(data, want["kept"])
    assert max(errors(got, want["unroll_backward"]).values()) <= TOLERANCE["highest"]["kinked"]


def part(data: Data, begin: int, end: int) -> Data:
    per_sample = {n: getattr(data, n)[begin:end].contiguous() for n in ("x0", "v0", "dx", "dv", "dvalue")}
    per_sample |= {n: t[:, begin:end].contiguous() for n in ("noise", "dv_all") if (t := getattr(data, n)) is not None}
    return replace(data, problem=replace(data.problem, rows=end - begin), **per_sample)


@every_precision
@every_activation
def test_neither_the_order_of_warps_nor_the_memory_matters(
    testing: ModuleType, activation: str, precision: str
) -> None:
    """A result that depends on the order is a race; buffers may lie in shared memory or in the workspace."""
    data = Data.draw(with_option(Problem(activation, (64, 32, 32), 18, 21), EVERYTHING))
    want = everything_on_the_cpu(data)
    first = everything(Host(testing, precision), data, want)
    for descending, memory in ((True, LARGE_MEMORY), (False, SMALL_MEMORY), (True, 5000), (False, 0)):
        other = everything(Host(testing, precision, descending, memory), data, want)
        for op in first:
            assert all(torch.equal(first[op][name], other[op][name]) for name in first[op]), (op, descending, memory)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_kept_bits(testing: ModuleType, activation: str) -> None:
    data = Data.draw(with_option(Problem(activation, (32, 96), 3, 19), OPTION))
    want, host = everything_on_the_cpu(data), Host(testing)
    kept = host.unroll(data)
    assert torch.equal(kept["bits"], want["unroll"]["bits"])
    with_bits = host.unroll_backward(data, kept)
    without = host.unroll_backward(data, {k: t for k, t in kept.items() if k != "bits"})
    assert all(torch.equal(with_bits[name], without[name]) for name in with_bits)
    ends = host.unroll(data, keep=False)
    assert torch.equal(ends["x_end"], kept["x_end"]) and torch.equal(ends["v_end"], kept["v_end"])


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_what_is_not_wanted_changes_nothing_else(testing: ModuleType, activation: str) -> None:
    data = Data.draw(with_option(Problem(activation, (32, 32)), EVERYTHING))
    host = Host(testing)
    kept = host.unroll(data)
    whole, without = host.unroll_backward(data, kept), host.unroll_backward(data, kept, weights=False)
    assert all(torch.equal(whole[name], without[name]) for name in without) and len(without) < len(whole)
    undiagnosed = host.unroll_backward(data, kept, adjoint=False)
    assert whole.keys() - undiagnosed.keys() == {"adjoint"}
    assert all(torch.equal(whole[name], undiagnosed[name]) for name in undiagnosed)
    both = host.field(data)
    assert torch.equal(host.field(data, grad=False)["value"], both["value"])
    assert torch.equal(host.field(data, value=False)["grad"], both["grad"])
    for wanted in ({"value": False}, {"grad": False}, {"value": False, "grad": False}):
        some = host.field_backward(data, **wanted)
        want = everything_on_the_cpu(data, **wanted)["field_backward"]
        assert max(errors(some, want).values()) < 1e-5, wanted
        bare = host.field_backward(data, **wanted, weights=False)
        assert torch.equal(bare["dx"], some["dx"])


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_stopped_gradient(testing: ModuleType, activation: str) -> None:
    data = Data.draw(replace(with_option(Problem(activation, (32, 32)), EVERYTHING), stopped=True))
    want = everything_on_the_cpu(data)
    got = Host(testing).unroll_backward(data, want["kept"], weights=False)
    assert max(errors(got, want["unroll_backward"]).values()) < 1e-5


@every_activation
def test_no_rows(testing: ModuleType, activation: str) -> None:
    data = Data.draw(with_option(Problem(activation, rows=0), EVERYTHING))
    host = Host(testing)
    assert host.unroll(data)["x_end"].shape == (0, 3)
    kept: Results = {"x": torch.empty(3, 0, 3), "v": torch.empty(3, 0, 3)}
    for results in (host.unroll_backward(data, kept), host.field_backward(data)):
        assert all((t == 0).all() for t in results.values())


@every_precision
@pytest.mark.parametrize("option", OPTIONS)
@every_activation
def test_nan_stays_in_its_sample(testing: ModuleType, activation: str, option: str, precision: str) -> None:
    data = Data.draw(with_option(Problem(activation), option))
    host, fine = Host(testing, precision), torch.arange(17) != 7
    whole = host.unroll(data)
    for name in ("x0", "v0"):
        state = getattr(data, name).clone()
        state[7, 1] = math.nan
        ends = host.unroll(replace(data, **{name: state}))
        assert ends["x_end"][7].isnan().any() or ends["v_end"][7].isnan().any()
        for end in ("x_end", "v_end"):
            assert torch.equal(ends[end][fine], whole[end][fine])


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_identities_are_absent(testing: ModuleType, activation: str, option: str) -> None:
    """A scale of 1, no pull and no noise change nothing."""
    problem = with_option(Problem(activation, (32, 32), 2), option)
    problem = replace(problem, bridge=True, gaussian=True, noise=True, momenta=False)
    data = Data.draw(problem)
    zero = {n: torch.zeros_like(getattr(data, n)) for n in ("pull", "noise_v", "noise_x")}
    data = replace(data, scale=torch.ones_like(data.scale), **zero)
    absent = replace(problem, bridge=False, gaussian=False, noise=False)
    plain = replace(data, problem=absent, **dict.fromkeys(data.bridge()))
    host = Host(testing)
    kept, kept_plain = host.unroll(data), host.unroll(plain)
    results = host.unroll_backward(data, kept), host.unroll_backward(plain, kept_plain)
    assert all(torch.equal(kept[name], kept_plain[name]) for name in kept_plain)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[1])


def test_activations_far_from_zero(testing: ModuleType) -> None:
    """Large arguments neither overflow nor differ from the CPU's."""
    points = torch.tensor([[-1000.0], [-80.0], [-19.9], [-1e-3], [0.3], [18.0], [21.0], [90.0], [700.0]])
    for activation in ACTIVATIONS:
        data = Data.draw(Problem(activation, (32,), 1, len(points)))
        data = replace(
            data, x0=points, weights=[torch.ones_like(w) for w in data.weights],
            biases=[torch.ones_like(b) for b in data.biases],
        )  # fmt: skip
        got, want = Host(testing).field(data), everything_on_the_cpu(data)["field"]
        for name in got:
            wrong = (got[name].double() - want[name]).abs() / (1 + want[name].abs())
            assert wrong.max() < 1e-5, (activation, name)


def test_norm_zero(testing: ModuleType) -> None:
    """A momentum of norm 0 under a norm clip."""
    data = Data.draw(Problem("silu", momentum_clip=(NORM, 1.0), grad_clip=(NORM, 1.0)))
    zero = torch.zeros_like(data.v0)
    data = replace(data, v0=zero, kick=torch.zeros_like(data.kick))
    want = everything_on_the_cpu(data)
    got = everything(Host(testing), data, want)
    for op in want:
        assert all(t.isfinite().all() for t in got[op].values() if isinstance(t, Tensor))
        assert max(errors(got[op], want[op]).values()) < 1e-5

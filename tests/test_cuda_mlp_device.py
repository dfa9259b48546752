"""The MLP ops and layers on a CUDA device: against the CPU in float64, run to run, on another stream.

Skipped without a GPU. The kernels also run on the host, in test_cuda_mlp_host.py; what only a device can show is here:
its matrix products, shared memory, launches, and that the layers find their way to the kernels.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from host_mlp import (
    ACTIVATIONS,
    KINK_MARGIN,
    OPTIONS,
    PRECISIONS,
    TOLERANCE,
    Data,
    Problem,
    Results,
    errors,
    everything_on_the_cpu,
    op_field,
    op_field_backward,
    op_unroll,
    op_unroll_backward,
    with_option,
)
from torch import nn

import ade_fast as ade

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch.cuda.is_available() is False"),
]

OPTION = "generalized, norm and value clip, range"
SHAPES = {  # hidden, dim, rows: weights that fit in shared memory and that do not, narrow and wide blocks
    "small": ((32, 64), 3, 17),
    "usual": ((128, 128), 2, 1000),
    "wide blocks": ((64, 64), 2, 9000),
    "large": ((256, 256, 256, 256), 128, 300),
    "odd": ((96, 32, 160), 33, 1),
}
# Tensor cores differ in how they truncate: a margin over what the host's emulation promises.
MARGIN = {"highest": 2, "high": 2, "medium": 1}

every_precision = pytest.mark.parametrize("precision", PRECISIONS)


@pytest.fixture(autouse=True)
def precision_as_before():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def on_device(data: Data, kept: Results, precision: str) -> dict[str, Results]:
    there = data.to(device="cuda")
    states = {name: t.cuda() for name, t in kept.items()}
    weights = not data.problem.stopped
    results = {
        "unroll": op_unroll(there, precision),
        "unroll_backward": op_unroll_backward(there, states, precision, weights),
        "field": op_field(there, precision),
        "field_backward": op_field_backward(there, precision),
    }
    return {op: {name: t.cpu() for name, t in found.items()} for op, found in results.items()}


def check(problem: Problem, precision: str) -> None:
    data = Data.draw(problem, margin=KINK_MARGIN)
    want = everything_on_the_cpu(data)
    got = on_device(data, want["kept"], precision)
    for op in got:
        for name, found in errors(got[op], want[op]).items():
            assert found <= MARGIN[precision] * TOLERANCE[precision][problem.kind], f"{op}: {name}: error {found:.2g}"


@every_precision
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_ops_agree_with_the_cpu(activation: str, shape: str, precision: str) -> None:
    hidden, dim, rows = SHAPES[shape]
    option = OPTION if precision == "highest" else "leapfrog"
    check(with_option(Problem(activation, hidden, dim, rows), option), precision)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_option(activation: str, option: str) -> None:
    check(with_option(Problem(activation, (64, 32), rows=33, steps=3), option), "highest")


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_stopped_gradient(activation: str) -> None:
    check(replace(with_option(Problem(activation, (32, 32)), OPTION), stopped=True), "highest")


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_no_rows(activation: str) -> None:
    data = Data.draw(Problem(activation, rows=0))
    got = on_device(data, everything_on_the_cpu(data)["kept"], "highest")
    assert got["unroll"]["x_end"].shape == (0, 3)
    assert all((t == 0).all() for t in got["unroll_backward"].values())


@every_precision
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_same_bits_on_every_run(activation: str, shape: str, precision: str) -> None:
    hidden, dim, rows = SHAPES[shape]
    data = Data.draw(with_option(Problem(activation, hidden, dim, rows), OPTION))
    kept = everything_on_the_cpu(data)["kept"]
    first = on_device(data, kept, precision)
    for _ in range(3):
        again = on_device(data, kept, precision)
        for op in first:
            assert all(torch.equal(first[op][name], again[op][name]) for name in first[op]), op


KERNELS = {  # a few rows and many, buffers in shared memory and beyond: every kernel once, for compute-sanitizer
    "narrow": ((32, 64), 3, 17),
    "wide blocks": ((32, 32), 2, 4100),
    "beyond shared memory": ((256, 224, 256), 33, 17),
}


@every_precision
@pytest.mark.parametrize("shape", KERNELS)
@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_every_kernel(activation: str, shape: str, precision: str) -> None:
    hidden, dim, rows = KERNELS[shape]
    data = Data.draw(Problem(activation, hidden, dim, rows, steps=1))
    unroll = op_unroll(data, precision)
    results = on_device(data, {name: unroll[name] for name in ("x", "v", "bits") if name in unroll}, precision)
    assert all(t.isfinite().all() for found in results.values() for t in found.values())


def test_in_a_cuda_graph() -> None:
    """Forward and backward of a layer, captured once and replayed on other numbers: those of an ordinary call."""
    torch.manual_seed(0)
    potential, layer = ade.MLPPotential(2, (64, 64), "silu").cuda(), ade.Leapfrog(5, 0.1).cuda()
    x, v = (torch.randn(100, 2, device="cuda").requires_grad_() for _ in range(2))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            gradients(layer, potential, x, v)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients(layer, potential, x, v)
    for _ in range(2):
        with torch.no_grad():
            x.copy_(torch.randn(100, 2))
            v.copy_(torch.randn(100, 2))
        graph.replay()
        torch.cuda.synchronize()
        replayed = [t.clone() for t in captured]
        for got, want in zip(replayed, gradients(layer, potential, x, v), strict=True):
            assert torch.equal(got, want)


def test_runs_on_the_current_stream() -> None:
    """Inputs that a slow side stream has yet to write: an op on any other stream would read zeros."""
    data = Data.draw(with_option(Problem("silu", rows=1000), OPTION)).to(device="cuda")
    want = op_unroll(data)
    late = replace(data, x0=torch.zeros_like(data.x0))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.x0.copy_(data.x0)
        got = op_unroll(late)
    stream.synchronize()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_float64_is_refused_by_the_op() -> None:
    data = Data.draw(Problem("relu")).to(device="cuda", dtype=torch.float64)
    with pytest.raises(RuntimeError, match="states must be float32 on CUDA, got float64"):
        op_field(data)


LAYERS = {
    "leapfrog": lambda: ade.Leapfrog(5, 0.1),
    "damped": lambda: ade.DampedLeapfrog(5, 0.1),
    "generalized": lambda: ade.GeneralizedLeapfrog(5, 0.1, scale_v=0.1, scale_x=-0.2),
}


def gradients(layer: nn.Module, potential: nn.Module, x: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
    out = layer(potential, x, v)
    loss = (out.x * out.x).sum() + (out.v * out.x).sum()
    leaves = [x, v, *layer.parameters(), *potential.parameters()]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    found = [torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=True)]
    return [out.x.detach(), out.v.detach(), *found]


@every_precision
@pytest.mark.parametrize("activation", ["softplus", "silu"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_take_the_kernels(name: str, activation: str, precision: str) -> None:
    """The layers on the device, in each of torch's precisions, against themselves on the CPU in float64."""
    potential, layer = ade.MLPPotential(2, (64, 64), activation), LAYERS[name]()
    states = [torch.randn(100, 2), torch.randn(100, 2)]
    results = []
    for to in ({"device": "cpu", "dtype": torch.float64}, {"device": "cuda", "dtype": torch.float32}):
        torch.set_float32_matmul_precision(precision)
        x, v = (s.to(**to).requires_grad_() for s in states)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            results.append(gradients(layer.to(**to), potential.to(**to), x, v))
            assert layer.last_plan.field == "mlp"
    for i, (want, got) in enumerate(zip(*results, strict=True)):
        found = (got.cpu().double() - want).norm() / want.norm().clamp_min(1e-3)
        assert found <= MARGIN[precision] * TOLERANCE[precision]["smooth"], f"result {i}: error {found:.2g}"


def test_float64_layers_say_that_they_take_the_general_path() -> None:
    potential = ade.MLPPotential(2, (32, 32), "silu").double().cuda()
    x, v = torch.randn(2, 4, 2, dtype=torch.float64, device="cuda")
    layer = ade.Leapfrog(3).double().cuda()
    layer(potential, x, v)
    assert any("the CUDA kernels take float32 alone" in message for message in ade.slow_paths())

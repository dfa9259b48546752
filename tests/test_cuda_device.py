"""The ops on a CUDA device: against the CPU ops, run to run, on another stream, under opcheck.

Skipped without a GPU. The kernels themselves also run on the host, in test_cuda_host.py; what only a device
can show is here.
"""

from __future__ import annotations

import pytest
import torch
from host_kernels import CLIP_NONE, CLIP_NORM, CLIP_VALUE, DTYPES, OPS, Case, arguments, cases
from torch import Tensor

import ade_fast  # noqa: F401  (registers the ops)

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch.cuda.is_available() is False"),
]

DEVICE = torch.device("cuda")
TOLERANCE = {torch.float64: (1e-11, 1e-11), torch.float32: (2e-5, 5e-4), torch.bfloat16: (1.6e-2, 8e-3)}
BIG = [(65536, 2), (4096, 136), (64, 3072), (3, 20000)]


def positional(name: str, fields: dict[str, object]) -> list[object]:
    """The op's arguments in the order of its schema; a clip is a mode and a bound there."""
    schema = getattr(torch.ops.ade_fast, name).default._schema
    values = []
    for argument in schema.arguments:
        if argument.name.endswith("bound"):
            values.append(float(fields[argument.name.removesuffix("bound") + "clip"][1]))
        elif argument.name.endswith("clip"):
            values.append(int(fields[argument.name][0]))
        else:
            values.append(fields[argument.name])
    return values


def on(device: torch.device, fields: dict[str, object]) -> dict[str, object]:
    """The same arguments on a device, tensors as leaves."""
    return {
        k: f.detach().to(device, copy=True).requires_grad_() if isinstance(f, Tensor) else f for k, f in fields.items()
    }


def forward(name: str, fields: dict[str, object]) -> tuple[Tensor, ...]:
    out = getattr(torch.ops.ade_fast, name)(*positional(name, fields))
    return out if isinstance(out, tuple) else (out,)


def forward_and_backward(name: str, fields: dict[str, object]) -> list[Tensor]:
    """Outputs, and the gradients of a fixed random loss for every tensor argument."""
    out = forward(name, fields)
    generator = torch.Generator().manual_seed(7)
    cotangents = [torch.randn(o.shape, generator=generator).to(o.dtype).to(o.device) for o in out]
    leaves = [f for f in fields.values() if isinstance(f, Tensor)]
    gradients = torch.autograd.grad(out, leaves, cotangents, materialize_grads=True)
    return [t.detach() for t in (*out, *gradients)]


def big_cases(name: str, dtype: torch.dtype, clip_mode: int) -> list[Case]:
    scales = ("none", "shared", "sample") if OPS[name].scales else ("none",)
    return [
        Case(*shape, dtype, clip_mode, scale, merged=OPS[name].merges, bounded=True, damping=0.9)
        for shape in BIG
        for scale in scales
    ]


@pytest.mark.parametrize("clip_mode", [CLIP_NONE, CLIP_VALUE, CLIP_NORM], ids=["noclip", "value", "norm"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_agrees_with_the_cpu(name: str, dtype: str, clip_mode: int) -> None:
    for case in [*cases(DTYPES[dtype], clip_mode, OPS[name]), *big_cases(name, DTYPES[dtype], clip_mode)]:
        fields = arguments(OPS[name], case)
        wanted = forward_and_backward(name, on(torch.device("cpu"), fields))
        got = forward_and_backward(name, on(DEVICE, fields))
        for i, (one, other) in enumerate(zip(got, wanted, strict=True)):
            relative, absolute = TOLERANCE[one.dtype]
            one, other = one.cpu().double(), other.double()
            # A rounding error may put an element on the other side of a bound: allow that to one in 10,000.
            wrong = (one - other).abs() > absolute + relative * other.abs()
            assert wrong.sum() <= wrong.numel() // 10_000, f"{case}: result {i}: {int(wrong.sum())} differ"
            assert not one.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_same_bits_on_every_run(name: str, dtype: str) -> None:
    for case in big_cases(name, DTYPES[dtype], CLIP_NORM):
        fields = on(DEVICE, arguments(OPS[name], case))
        first = forward_and_backward(name, fields)
        for _ in range(5):
            for one, other in zip(first, forward_and_backward(name, fields), strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("name", OPS)
def test_runs_on_the_current_stream(name: str) -> None:
    """Inputs that a slow side stream has yet to write: an op on any other stream would read zeros."""
    case = Case(4096, 136, torch.float32, CLIP_NORM, "sample" if OPS[name].scales else "none", damping=0.9)
    fields = on(DEVICE, arguments(OPS[name], case))
    wanted = [o.detach() for o in forward(name, fields)]
    late = {k: torch.zeros_like(f) if isinstance(f, Tensor) else f for k, f in fields.items()}
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        torch.cuda._sleep(50_000_000)
        for key, value in fields.items():
            if isinstance(value, Tensor):
                late[key].copy_(value)
        got = forward(name, late)
    stream.synchronize()
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", OPS)
def test_strided_and_misaligned_inputs(name: str) -> None:
    case = Case(33, 64, torch.float32, CLIP_NORM, "sample" if OPS[name].scales else "none", damping=0.9)
    fields = on(DEVICE, arguments(OPS[name], case))
    wanted = forward(name, fields)

    def shifted(value: Tensor) -> Tensor:
        room = torch.empty(value.numel() + 1, dtype=value.dtype, device=DEVICE)
        return room[1:].view(value.shape).copy_(value.detach())

    def transposed(value: Tensor) -> Tensor:
        return value.detach().t().contiguous().t()

    for change in (shifted, transposed):
        changed = {k: change(f) if isinstance(f, Tensor) and f.dim() == 2 else f for k, f in fields.items()}
        for one, other in zip(forward(name, changed), wanted, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name: str) -> None:
    for scale in ("none", "shared", "sample") if OPS[name].scales else ("none",):
        case = Case(5, 7, torch.float32, CLIP_NORM, scale, merged=OPS[name].merges, damping=0.9)
        fields = on(DEVICE, arguments(OPS[name], case))
        torch.library.opcheck(getattr(torch.ops.ade_fast, name).default, positional(name, fields))


def test_arguments_on_two_devices_are_refused() -> None:
    fields = on(DEVICE, arguments(OPS["leapfrog_kick"], Case(5, 7, torch.float32, CLIP_NONE)))
    fields["grad"] = fields["grad"].detach().cpu()
    with pytest.raises((RuntimeError, ValueError, TypeError), match="grad"):
        forward("leapfrog_kick", fields)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_the_device_of_its_arguments() -> None:
    case = Case(64, 136, torch.float32, CLIP_NORM, damping=0.9)
    fields = on(torch.device("cuda:1"), arguments(OPS["leapfrog_kick_drift"], case))
    wanted = forward_and_backward("leapfrog_kick_drift", on(torch.device("cpu"), fields))
    with torch.cuda.device(0):
        got = forward_and_backward("leapfrog_kick_drift", fields)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=2e-5, atol=5e-4)

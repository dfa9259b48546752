"""What ``ade-fast info`` says of the fast paths: asked of the build and of the fields, not written down."""

import pytest
import torch

import ade_fast as ade
from ade_fast import _info, _ops
from ade_fast.fields import MLPField, mlp


def line_after(lines: list[str], start: str, what: str) -> str:
    """The indented line about `what` below the line that begins with `start`."""
    (first,) = (i for i, line in enumerate(lines) if line.startswith(start))
    return next(line for line in lines[first + 1 :] if line.startswith(f"  {what}"))


def test_the_cpu_line_names_isa_family_and_dtypes() -> None:
    lines = _info.lines()
    assert f"fast path on CPU: on, {_ops.build_info()['isa']} kernels" in lines
    assert "float32, float64, bfloat16" in line_after(lines, "fast path on CPU", "steps")
    family = line_after(lines, "fast path on CPU", "whole unrolls")
    assert "float32, float64;" in family and "1 to 4 hidden layers" in family and "256 units" in family
    for name in ("relu", "leaky_relu", "softplus", "silu", "tanh", "elu"):
        assert name in family


def test_what_info_says_of_mlps_on_the_cpu_is_so() -> None:
    """An MLP at the family's edges takes the fused kernels, and one beyond each edge does not."""
    inside = ade.MLPPotential(mlp.MAX_DIM, (mlp.MAX_WIDTH,) * mlp.MAX_LAYERS)
    assert isinstance(MLPField.match(inside), MLPField)
    assert _info.mlp_dtypes("cpu")[0] == [torch.float32, torch.float64]
    for outside in (
        ade.MLPPotential(mlp.MAX_DIM + 1, (mlp.WIDTH_STEP,)),
        ade.MLPPotential(2, (mlp.MAX_WIDTH + mlp.WIDTH_STEP,)),
        ade.MLPPotential(2, (mlp.WIDTH_STEP + 1,)),
        ade.MLPPotential(2, (mlp.WIDTH_STEP,) * (mlp.MAX_LAYERS + 1)),
    ):
        assert isinstance(MLPField.match(outside), str)


def test_the_cuda_lines_follow_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_info, "has_kernel", lambda op, device: device == "cpu")
    assert line_after(_info.lines(), "fast path on CUDA", "whole").endswith(
        "not in this build; step kernels around autograd's ∇f instead"
    )
    assert line_after(_info.lines(), "fast path on CUDA", "steps").endswith("not in this build")
    monkeypatch.setattr(_info, "has_kernel", lambda op, device: True)
    monkeypatch.setattr(_info, "cuda_state", lambda build, driver: "off: no NVIDIA driver")
    assert "in this build; 1 to 4 hidden layers" in line_after(_info.lines(), "fast path on CUDA", "whole")


def test_a_device_where_no_dtype_is_taken_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MLPField, "refuses", lambda self, x: "the GPU is too old")
    assert _info._mlp_kernels("cpu", usable=True) == "none: the GPU is too old"


def test_info_does_not_touch_the_random_numbers() -> None:
    before = torch.get_rng_state()
    _info.lines()
    assert torch.equal(before, torch.get_rng_state())


def test_kernels_are_asked_of_the_dispatcher() -> None:
    assert _info.has_kernel("mlp_unroll", "cpu") and _info.has_kernel("leapfrog_kick_drift", "cpu")
    assert _info.has_kernel("leapfrog_kick_drift", "cuda") == _ops.build_info()["cuda"]


def test_the_last_line_says_how_to_see_what_a_run_took() -> None:
    """And what it names is there."""
    line = _info.lines()[-1]
    layer = ade.Leapfrog(2, 0.1)
    layer(ade.MLPPotential(2, (32,)), torch.randn(3, 2))
    assert "layer.last_plan" in line and (layer.last_plan.field, layer.last_plan.memory) == ("mlp", "graph")
    layer(torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)), torch.randn(3, 2))
    assert layer.last_plan.field == "autograd"
    assert "ade_fast.slow_paths()" in line and isinstance(ade.slow_paths(), tuple)

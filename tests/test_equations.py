"""EQUATIONS.md tells the truth: every name in it exists, and nothing that belongs in it is missing."""

import inspect
import re
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import pytest
import torch
from cases import DOUBLE, assert_close, make_potential, normal

import ade_fast as ade
from ade_fast import reference, reference_estimators, weights
from ade_fast.training import bounds

ROOT = Path(__file__).parent.parent
COLUMNS = ("paper", "what", "reference", "step", "operator", "public", "test")
REFERENCES = (reference, reference_estimators)
# Names of theirs that are notation, not equations.
NOTATION = {"sum_over_event", "value", "step_at", "mean", "at"}


def rows() -> list[dict[str, list[str]]]:
    """The table: for each row and column the names in backticks."""
    lines = [line for line in (ROOT / "EQUATIONS.md").read_text().splitlines() if line.startswith("|")]
    found = []
    for line in lines[2:]:
        cells = line.strip("|").split("|")
        assert len(cells) == len(COLUMNS), f"EQUATIONS.md: {len(cells)} columns in {line!r}"
        found.append({column: re.findall(r"`([^`]+)`", cell) for column, cell in zip(COLUMNS, cells, strict=True)})
    return found


def names(column: str) -> Iterator[str]:
    for row in rows():
        yield from row[column]


def test_the_table_is_read() -> None:
    assert len(rows()) > 15
    for row in rows():
        assert row["reference"] and row["public"] and row["test"], row
        # An equation has a kernel or it has none: a step without an operator, or the reverse, is a slip.
        assert bool(row["step"]) == bool(row["operator"]), row


@pytest.mark.parametrize("name", sorted(set(names("reference"))))
def test_reference_function_exists(name: str) -> None:
    path, _, own = name.rpartition(".")
    function = getattr(reference_estimators if path == "reference_estimators" else reference, own)
    assert inspect.isfunction(function) and function.__doc__


@pytest.mark.parametrize("name", sorted(set(names("step"))))
def test_step_exists_with_its_vjp(name: str) -> None:
    path, _, function = name.partition("::")
    text = (ROOT / path).read_text()
    assert re.search(rf"^ADE_HD .*\b{function}\(", text, re.MULTILINE), f"{function} is not defined in {path}"
    # norm_clip_scale and norm_clip_shrink are the row's part of one clip, whose vjp is norm_clip_vjp.
    vjp = "norm_clip_vjp" if function.startswith("norm_clip_") else f"{function}_vjp"
    assert re.search(rf"^ADE_HD .*\b{vjp}\(", text, re.MULTILINE), f"{vjp} is not defined in {path}"


@pytest.mark.parametrize("name", sorted(set(names("operator"))))
def test_operator_exists_with_its_backward(name: str) -> None:
    for op in (name, f"{name}_backward"):
        schema = getattr(torch.ops.ade_fast, op).default._schema
        assert schema.name == f"ade_fast::{op}"


@pytest.mark.parametrize("name", sorted(set(names("public"))))
def test_public_name_exists(name: str) -> None:
    assert callable(reduce(getattr, name.split("."), ade))


@pytest.mark.parametrize("name", sorted(set(names("test"))))
def test_test_exists(name: str) -> None:
    path, _, function = name.partition("::")
    assert re.search(rf"^def {function}\(", (ROOT / path).read_text(), re.MULTILINE), f"{name} does not exist"


def test_every_reference_function_is_listed() -> None:
    public = {
        name if module is reference else f"reference_estimators.{name}"
        for module in REFERENCES
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_") and name not in NOTATION
    }
    assert public == set(names("reference"))


def test_every_step_is_listed() -> None:
    steps = {
        f"csrc/steps/{path.name}::{function}"
        for path in (ROOT / "csrc/steps").glob("*.h")
        for function in re.findall(r"^ADE_HD \S+ (\w+)\(", path.read_text(), re.MULTILINE)
        if not function.endswith("_vjp")
    }
    assert steps <= set(names("step"))


def test_every_step_operator_is_listed() -> None:
    """Operators of the step kernels; a whole unroll in one kernel is an implementation of these equations."""
    registered = {
        schema.name.removeprefix("ade_fast::")
        for schema in torch._C._jit_get_all_schemas()
        if re.match(r"ade_fast::(\w*(kick|drift)\w*|planar_flow\w*|rational_quadratic_spline\w*)$", schema.name)
    }
    assert registered and {op for op in registered if not op.endswith("_backward")} == set(names("operator"))


def test_reference_imports_nothing_but_torch_and_the_standard_library() -> None:
    for module in REFERENCES:
        modules = re.findall(r"^\s*(?:import|from) ([\w.]+)", inspect.getsource(module), re.MULTILINE)
        assert set(modules) <= {"math", "itertools", "collections.abc", "typing", "torch", ".reference"}


# --- The rows whose public name is plain PyTorch ------------------------------------------------------------


def test_planar_flow_is_the_reference() -> None:
    flow = ade.initial.PlanarFlow(3, n_layers=4).double()
    with torch.no_grad():
        flow.u.mul_(10)  # strong enough for the constraint to matter
    z = normal(6, 3, seed=1)
    x, log_det = flow.transform(z)
    expected, expected_log_det = z, torch.zeros(6, dtype=DOUBLE)
    for u, w, b in zip(flow.u, flow.w, flow.b, strict=True):
        expected, one = reference.planar_flow(expected, u, w, b)
        expected_log_det = expected_log_det + one
    assert_close(x.detach(), expected.detach(), "x", 1e-12)
    assert_close(log_det.detach(), expected_log_det.detach(), "log_det", 1e-12)
    parameters = list(flow.parameters())
    actual = torch.autograd.grad(x.sin().sum() + log_det.sum(), parameters)
    wanted = torch.autograd.grad(expected.sin().sum() + expected_log_det.sum(), parameters)
    for a, e in zip(actual, wanted, strict=True):
        assert_close(a, e, "gradient", 1e-11)


@pytest.mark.parametrize("bandwidth", ["median", 0.7])
@pytest.mark.parametrize("sizes", [(20, 20), (20, 23)], ids=["even_pairs", "odd_pairs"])
def test_mmd2_is_the_reference(bandwidth: float | str, sizes: tuple[int, int]) -> None:
    x = normal(sizes[0], 2, seed=1).requires_grad_()
    y = normal(sizes[1], 2, seed=2) + 0.5
    actual, expected = ade.metrics.mmd2(x, y, bandwidth), reference.mmd2(x, y, bandwidth)
    assert_close(actual.detach(), expected.detach(), "mmd2", 1e-13)
    (da,), (de,) = torch.autograd.grad(actual, x), torch.autograd.grad(expected, x)
    assert_close(da, de, "gradient", 1e-13)


def test_dual_samplers_density_is_the_reference() -> None:
    potential = make_potential("silu")
    initial = ade.initial.Gaussian((3,)).double()
    scale = normal(3, seed=3, scale=0.3)
    dynamics = ade.GeneralizedLeapfrog(3, torch.tensor(0.2, dtype=DOUBLE), scale_v=scale, scale_x=-scale)
    sample = ade.DualSampler(initial, dynamics).sample(potential, 5, torch.Generator().manual_seed(1))
    x0, v0, log_q0 = initial.sample(5, momentum_shape=(3,), generator=torch.Generator().manual_seed(1))
    x, v, log_det = reference.generalized_leapfrog(
        potential, x0, v0, dynamics.step_size, 3, scale_v=scale, scale_x=-scale
    )
    assert torch.equal(sample.x0, x0) and log_det.abs().min() > 1e-3
    assert_close(sample.x.detach(), x.detach(), "x")
    assert_close(sample.v.detach(), v.detach(), "v")
    assert_close(sample.log_q.detach(), reference.log_density(log_q0, log_det).detach(), "log_q")


def test_with_base_is_the_reference() -> None:
    potential, x = make_potential("silu"), normal(5, 3, seed=1)
    mean, std = normal(3, seed=2), normal(3, seed=3).abs() + 0.5
    actual = ade.WithBase(potential, mean, std)(x)
    assert_close(actual.detach(), reference.with_base(potential, x, mean, std).detach(), "f", 1e-12)


@pytest.mark.parametrize(("bound", "order"), [("elbo", 1), ("renyi", 0.5), ("importance", 0)])
def test_weights_and_bounds_are_the_reference(bound: str, order: float) -> None:
    potential = make_potential("silu")
    sampler = ade.DualSampler(ade.initial.Gaussian((3,), 1.5).double(), ade.Leapfrog(2, 0.2))
    sample = sampler.sample(potential, 7, torch.Generator().manual_seed(1))
    expected = reference.log_weights(potential, sample.x, sample.v, sample.log_q, 0.8).detach()
    weight = torch.tensor(0.8, dtype=DOUBLE)
    actual = weights.log_weights("test", potential(sample.x).reshape(-1), sample.v, sample.log_q, weight).detach()
    assert_close(actual, expected, "log_w", 1e-12)
    power = 1 - bounds.ORDERS[bound]
    assert_close(bounds.renyi_bound(actual, power), reference.renyi_bound(expected, order), "bound", 1e-12)

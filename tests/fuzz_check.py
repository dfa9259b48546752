"""One fuzz case against the reference: how far outputs and gradients are off. No test lives here."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import torch
from cases import normal
from fuzz_cases import Case, Outputs, Problem, fast, laid_out, problem_of, specified
from torch import Tensor, nn

from ade_fast import _ops

LIMIT = {"float64": 1e-9, "float32": 2e-3}
# Below it a difference counts as if the tensor's largest element had this size: what has cancelled cannot be compared.
# States of memory="reversible" are multiples of 2^-44.
FLOOR = {"graph": 1e-3, "states": 1e-3, "auto": 1e-3, "reversible": 0.1}


def error_of(case: Case) -> float:
    """The largest |difference| of an output or a gradient over its largest element."""
    before = _ops.build_info()["isa"]
    try:
        _select(case.isa)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # slow paths warn, and are as exact
            return _error_of(case)
    finally:
        _ops.select_isa(before)


def _select(isa: str) -> None:
    try:
        _ops.select_isa(isa)
    except ValueError:  # this processor has not got it
        _ops.select_isa("base")


def _error_of(case: Case) -> float:
    dtype, floor = getattr(torch, case.dtype), FLOOR[case.memory]
    ours = problem_of(case)
    _cast(ours, dtype, case)
    theirs = copy.deepcopy(ours)
    _cast(theirs, torch.float64, replace(case, layout="plain"))
    actual, held = fast(case, ours)
    with nn.utils.parametrize.cached():  # one set of effective weights per unroll
        expected = specified(case, theirs)
    actual = tuple(out for out in actual if out is not None)
    worst = max(_difference(a.detach(), e.detach(), floor) for a, e in zip(actual, expected, strict=True))
    if case.gradient == "none":
        if any(out.requires_grad for out in actual):
            raise AssertionError("gradient='none' left an output that requires grad")
        return worst
    wanted = _wanted(held, ours) | _wanted_of_modules(ours)
    mirrored = {**_wanted(theirs.tensors, theirs), **_wanted_of_modules(theirs)}
    mine = _pulled(actual, wanted, case)
    right = _pulled(expected, {name: mirrored[name] for name in wanted}, case)
    return max([worst, *(_difference(mine[name], right[name], floor) for name in wanted)])


def _cast(problem: Problem, dtype: torch.dtype, case: Case) -> None:
    """Everything in `dtype`; fresh leaves, in the case's layout, that require grad where the case wishes it."""
    for name, tensor in problem.tensors.items():
        tensor = tensor.detach().to(dtype)
        if name in ("x0", "v0"):
            tensor = laid_out(tensor, case.layout)
        wish = name if name in ("x0", "v0") else "step_size"
        problem.tensors[name] = tensor.detach().requires_grad_(wish in case.wishes)
    for name, value in problem.constants.items():
        if isinstance(value, Tensor):
            problem.constants[name] = value.to(dtype)
    if case.sample_range == "per_dim" and problem.options.get("sample_range") is not None:
        # As the states see it: rounded to their precision.
        problem.options["sample_range"] = tuple(bound.to(dtype) for bound in problem.options["sample_range"])
    if problem.condition is not None:
        problem.condition = problem.condition.to(dtype)
    for module in (problem.potential, *problem.networks.values()):
        module.to(dtype).requires_grad_("f" in case.wishes)


def _wanted(tensors: dict[str, Tensor], problem: Problem) -> dict[str, Tensor]:
    return {name: tensors[name] for name in problem.tensors if tensors[name].requires_grad}


def _wanted_of_modules(problem: Problem) -> dict[str, Tensor]:
    parts = {"f": problem.potential, **problem.networks}
    return {f"{m}.{n}": p for m, part in parts.items() for n, p in part.named_parameters() if p.requires_grad}


def _pulled(outputs: Outputs, wanted: dict[str, Tensor], case: Case) -> dict[str, Tensor | None]:
    """Gradients of one functional of the outputs; None where an input is not reached."""
    if case.cotangents in ("x", "v") and len(outputs) > 2:
        outputs = outputs[:1] if case.cotangents == "x" else outputs[1:2]
    total = torch.zeros(())
    for i, out in enumerate(outputs):
        weight = torch.ones(()) if case.cotangents == "ones" else normal(*out.shape, seed=i)
        if out.requires_grad:
            total = total + (out * weight.to(out)).sum()
    if not (total.requires_grad and wanted):
        return dict.fromkeys(wanted)
    return dict(zip(wanted, torch.autograd.grad(total, list(wanted.values()), allow_unused=True), strict=True))


def _difference(actual: Tensor | None, expected: Tensor | None, floor: float) -> float:
    """None counts as zeros."""
    if actual is None or expected is None:
        actual = torch.zeros_like(expected) if actual is None and expected is not None else actual
        expected = torch.zeros_like(actual) if expected is None and actual is not None else expected
    if actual is None:
        return 0.0
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {tuple(actual.shape)} for {tuple(expected.shape)}")
    if expected.numel() == 0:
        return 0.0
    difference = (actual.double() - expected.double()).abs().max().item()
    size = max(expected.abs().max().item(), floor)
    if not difference / size < float("inf"):  # NaN too
        raise AssertionError(f"not finite: {difference} of {size}")
    return difference / size

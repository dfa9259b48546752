"""No public name without a docstring and types for all it takes and returns; tensors have shapes, errors are told."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from types import ModuleType

import pytest

import ade_fast as ade
import ade_fast.plots

MODULES = [ade, ade.data, ade.estimators, ade.functional, ade.initial, ade.metrics, ade.plots, ade.training]
# Whose meaning is torch's.
TORCHS_OWN = ("forward", "extra_repr", "train")
# "[B, *event]", "(n, d)", "(..., d)", "of n points [n]", "a scalar".
SHAPE = re.compile(r"[\[(](\*?\w+|\.\.\.)(, ?[^\])]*)?[\])]|scalar")
ERRORS = re.compile(r"[Rr]aises|[Ee]rrors? as in|errors as", re.S)


def public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Functions and classes of a module, and the methods that the classes define."""
    for name in module.__all__:
        found = getattr(module, name)
        if inspect.isfunction(found):
            yield name, found
        elif inspect.isclass(found):
            yield name, found
            for method, value in vars(found).items():
                if inspect.isfunction(value) and (method == "__init__" or not method.startswith("_")):
                    yield f"{name}.{method}", value


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_described_and_typed(module):
    seen = 0
    for name, found in public(module):
        method = name.rpartition(".")[2]
        owner = getattr(module, name.partition(".")[0])
        said = inspect.getdoc(getattr(owner, method)) if "." in name else inspect.getdoc(found)
        assert said or method in TORCHS_OWN, f"{module.__name__}.{name} has no docstring"
        if inspect.isfunction(found):
            signature = inspect.signature(found)
            untyped = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
            assert not untyped, f"{module.__name__}.{name}: no types of {untyped}"
            if method != "__init__":
                assert signature.return_annotation is not signature.empty, f"{module.__name__}.{name} returns what?"
        seen += 1
    assert seen >= 5


def described(owner: object, method: str) -> str:
    """What a reader finds: a method's own docstring or that of the base class; of a class also what its making says."""
    if method:
        return inspect.getdoc(getattr(owner, method)) or ""
    own = [owner] + [getattr(owner, name, None) for name in ("__init__", "forward", "loss")]
    return "\n".join(filter(None, map(inspect.getdoc, own if inspect.isclass(owner) else own[:1])))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_tells_shapes_and_errors(module):
    """Shapes, where tensors are taken or returned. Errors, of every function and of every class that is made by its
    user from arguments, and of a method that raises by itself."""
    silent = []
    for name, found in public(module):
        first, _, method = name.partition(".")
        if method in (*TORCHS_OWN, "__init__") or (inspect.isclass(found) and issubclass(found, Exception | Warning)):
            continue
        said = described(getattr(module, first), method)
        annotations = [str(p.annotation) for p in inspect.signature(found).parameters.values()]
        if inspect.isfunction(found):
            annotations.append(str(inspect.signature(found).return_annotation))
        if any("Tensor" in annotation for annotation in annotations) and not SHAPE.search(said):
            silent.append(f"{name}: no shape")
        if has_errors(found, bool(method)) and not ERRORS.search(said):
            silent.append(f"{name}: no errors")
    assert silent == []


def has_errors(found: object, is_method: bool) -> bool:
    if found is ade.training.Progress:  # which nobody makes but a run
        return False
    if inspect.isclass(found):
        own = vars(found).get("__post_init__" if dataclasses.is_dataclass(found) else "__init__")
        return own is not None and (dataclasses.is_dataclass(found) or len(inspect.signature(found).parameters) > 0)
    raises = re.search(r"^\s+raise \w", inspect.getsource(found), re.M) is not None
    return raises or (not is_method and len(inspect.signature(found).parameters) > 0)

"""No public name without a docstring and types for all it takes and returns."""

import inspect
from collections.abc import Iterator
from types import ModuleType

import pytest

import ade_fast as ade
import ade_fast.plots

MODULES = [ade, ade.data, ade.estimators, ade.functional, ade.initial, ade.metrics, ade.plots, ade.training]
# Whose meaning is torch's.
TORCHS_OWN = ("forward", "extra_repr", "train")


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

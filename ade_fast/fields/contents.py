"""What can be seen from a callable: the modules and the leaf tensors that it may use when it is called."""

from __future__ import annotations

import collections
import dis
import functools
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

# How far things are looked for behind objects, and in how large containers: a potential is not a data base.
_DEPTH, _LARGEST = 8, 100
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, types.BuiltinFunctionType)
_STDLIB = sysconfig.get_path("stdlib")
_MODULES_OWN = frozenset(nn.Module().__dict__)


class Contents(NamedTuple):
    """modules: with all their submodules. leaves: leaf tensors that require grad, outside of modules. Once each.

    compiled: ``torch.compile`` is among them, whose code may not look at a module again once it is made.
    """

    modules: list[nn.Module]
    leaves: list[Tensor]
    compiled: bool


def contents_of(*functions: Callable[..., Any] | None) -> Contents:
    """Looks into closures, default arguments, bound methods' owners, ``functools.partial``, attributes and slots of
    objects, lists and dictionaries; into classes, and into what functions call by a global name, where these are the
    user's own and not installed ones."""
    modules: dict[int, nn.Module] = {}
    leaves: dict[int, Tensor] = {}
    compiled = False
    seen: set[int] = set()
    # Nearest first: nothing is cut off that a detour reaches.
    queue: collections.deque[tuple[object, int]] = collections.deque((f, _DEPTH) for f in functions)
    while queue:
        thing, depth = queue.popleft()
        if isinstance(thing, _PLAIN) or id(thing) in seen:
            continue
        seen.add(id(thing))
        compiled = compiled or "_torchdynamo_orig_callable" in getattr(thing, "__dict__", ())
        if isinstance(thing, Tensor):
            if thing.is_leaf and thing.requires_grad:
                leaves[id(thing)] = thing
        elif isinstance(thing, nn.Module):  # as deep as they go
            modules[id(thing)] = thing
            queue.extendleft((part, depth) for part in reversed(thing._modules.values()))
            queue.extend((part, depth - 1) for part in _hidden(thing, seen))
        elif depth > 0:
            queue.extend((part, depth - 1) for part in _parts(thing))
    return Contents(list(modules.values()), list(leaves.values()), compiled)


def modules_of(*functions: Callable[..., Any] | None) -> list[nn.Module]:
    """Every module that can be seen from the functions, once each."""
    return contents_of(*functions).modules


def _hidden(module: nn.Module, seen: set[int]) -> list[object]:
    """What a module has beside its registered parts, and its class if that is met for the first time."""
    others = module.__dict__.keys() - _MODULES_OWN
    own = [value for name in others if not isinstance(value := module.__dict__[name], _PLAIN)]
    kind = type(module)
    if id(kind) in seen:
        return own
    seen.add(id(kind))
    return own + _of_class(kind)


def _parts(thing: object) -> list[object]:
    """What a callable, an object or a container may have modules in."""
    if isinstance(thing, types.MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, (list, tuple, set, frozenset, dict)):
        members: Iterable[object] = thing.values() if isinstance(thing, dict) else thing
        return list(members) if len(thing) <= _LARGEST else []
    if isinstance(thing, types.FunctionType):
        defaults = [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
        return [*map(_content, thing.__closure__ or ()), *defaults, *_globals(thing), *thing.__dict__.values()]
    if isinstance(thing, (staticmethod, classmethod)):
        return [thing.__func__]
    if isinstance(thing, property):
        return [thing.fget]
    slots = (name for kind in type(thing).__mro__ for name in _names(kind.__dict__.get("__slots__", ())))
    attributes = list(getattr(thing, "__dict__", {}).values())
    return attributes + [getattr(thing, name, None) for name in slots] + _of_class(type(thing))


def _names(slots: str | Iterable[str]) -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else slots


def _of_class(kind: type) -> list[object]:
    """Attributes and methods of a class of the user's and of its bases, what their code names included."""
    return [value for k in kind.__mro__ if not _is_library(k.__module__) for value in k.__dict__.values()]


@functools.lru_cache(maxsize=1024)
def _is_library(module_name: str | None) -> bool:
    """Whether a Python module is installed: its classes and functions name no networks of the user's, but a lot."""
    if module_name in (None, "__main__"):
        return False
    package = module_name.partition(".")[0]
    if package == "ade_fast" or package in sys.builtin_module_names:
        return True
    path = getattr(sys.modules.get(module_name), "__file__", None) or ""
    return path.startswith(_STDLIB) or "site-packages" in path or "dist-packages" in path


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _globals(function: types.FunctionType) -> list[object]:
    """The global values that a function names; those of a Python module's (``models.net``) where they are modules."""
    if _is_library(function.__module__):
        return []
    found, (global_names, attributes) = [], _named_by(function.__code__)
    for name in global_names:
        value = function.__globals__.get(name)
        if not isinstance(value, types.ModuleType):
            found.append(value)
        elif not _is_library(value.__name__):
            members = (vars(value).get(attribute) for attribute in attributes)
            found += [member for member in members if isinstance(member, nn.Module)]
    return found


@functools.lru_cache(maxsize=1024)
def _named_by(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """(global names, all names) in a function's code and in that of the functions inside it."""
    own = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = [_named_by(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return (
        frozenset(own).union(*(names for names, _ in inner)),
        frozenset(code.co_names).union(*(names for _, names in inner)),
    )

"""What a potential is made of: its modules, their effective weights, and what would make it unfit for an unroll."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

_MIXES_THE_BATCH = (nn.modules.batchnorm._BatchNorm,)
_RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU)


def modules_of(*functions: Callable | None) -> list[nn.Module]:
    """Every module that can be seen from the functions, once each: a module's own, a bound method's owner, a closure's
    cells, the arguments of a ``functools.partial``, an object's attributes, the members of lists and dictionaries."""
    seen: set[int] = set()
    found = {id(m): m for f in functions for root in _roots(f, _DEPTH, seen) for m in root.modules()}
    return list(found.values())


# How far modules are looked for behind objects, and in how large containers: a potential is not a data base.
_DEPTH, _LARGEST = 8, 100


def _roots(thing: object, depth: int, seen: set[int]) -> Iterator[nn.Module]:
    if isinstance(thing, nn.Module):
        yield thing
    elif depth > 0 and thing is not None and id(thing) not in seen:
        seen.add(id(thing))
        for part in _parts(thing):
            yield from _roots(part, depth - 1, seen)


def _parts(thing: object) -> Iterable[object]:
    """What a callable or a container may have modules in."""
    if isinstance(thing, types.MethodType):
        return [thing.__self__]
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, (list, tuple, set, frozenset)):
        return thing if len(thing) <= _LARGEST else ()
    if isinstance(thing, dict):
        return list(thing.values()) if len(thing) <= _LARGEST else ()
    if isinstance(thing, types.FunctionType):
        cells = [_content(cell) for cell in thing.__closure__ or ()]
        named = [thing.__globals__.get(name) for name in thing.__code__.co_names]
        return cells + [value for value in named if isinstance(value, nn.Module)]
    if isinstance(thing, (type, types.ModuleType, Tensor)):
        return ()
    return [getattr(thing, "__dict__", None)]


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def refuse_unfit_modules(layer: str, modules: Sequence[nn.Module], name: str = "potential") -> None:
    """Raises ValueError if one of a function's modules is random or mixes the samples of a batch in its present mode.

    The unroll evaluates the potential T + 1 times, and recomputes evaluations in the backward pass: both need f(x) to
    be a function of each sample alone.
    """
    for module in modules:
        kind = type(module).__name__
        if isinstance(module, _MIXES_THE_BATCH) and (module.training or not module.track_running_stats):
            raise ValueError(
                f"{layer}: {name} mixes the samples of a batch ({kind} in training mode): it must be a function "
                f"of each sample alone. Call .eval() on that module, or use GroupNorm, LayerNorm or spectral norm"
            )
        if isinstance(module, _RANDOM) and module.training and getattr(module, "p", 1.0) > 0:
            raise ValueError(
                f"{layer}: {name} is random ({kind} in training mode): every step of the unroll must see the same "
                f"function. Call .eval() on that module or remove it"
            )


Versions = list[tuple[Tensor, int]]


def buffer_versions(modules: Sequence[nn.Module]) -> Versions:
    """(buffer, version counter) of every buffer: changes between two evaluations make gradients wrong.

    Not those behind a parametrisation (spectral norm's vectors): its weight is computed once and pinned.
    """
    behind = {id(m) for owner in modules if is_parametrized(owner) for m in owner.parametrizations.modules()}
    return [(b, b._version) for m in modules if id(m) not in behind for b in m._buffers.values() if b is not None]


def frozen_versions(modules: Sequence[nn.Module]) -> Versions:
    """The same of every parameter that does not require grad: autograd does not watch those."""
    return [(p, p._version) for m in modules for p in m._parameters.values() if p is not None and not p.requires_grad]


def changed(versions: Versions) -> bool:
    """Whether one of the tensors was written to since."""
    return any(tensor._version != version for tensor, version in versions)


@contextmanager
def in_modes(modes: Sequence[tuple[nn.Module, bool]]) -> Iterator[None]:
    """Within this block, the modules are in these modes (``training``), each by itself."""
    other = [(module, module.training) for module, training in modes if module.training is not training]
    for module, training in other:
        module.training = not training
    try:
        yield
    finally:
        for module, training in other:
            module.training = training


@contextmanager
def pinned(*functions: Callable) -> Iterator[tuple[Tensor, ...]]:
    """Within this block, parametrised weights (spectral norm, weight norm, …) are computed once.

    A parametrisation such as ``torch.nn.utils.parametrizations.spectral_norm`` computes its weight anew whenever it
    is read, and in training mode runs a power iteration on the way: two evaluations then belong to two different
    functions. Here every effective weight is computed on entry and returned by all reads until exit. Yields these
    weights (differentiable functions of the originals; autograd carries gradients back through the parametrisation
    once). Blocks nest: the outermost one decides.
    """
    modules = modules_of(*functions)
    weights = effective_weights(modules)
    with pinned_to(modules, weights):
        yield weights


def effective_weights(modules: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """Every parametrised tensor of the modules, computed now."""
    return tuple(getattr(owner, name) for owner, name in _parametrized(modules))


@contextmanager
def pinned_to(modules: Sequence[nn.Module], weights: tuple[Tensor, ...]) -> Iterator[None]:
    """Within this block, the modules' parametrised tensors are these (from `effective_weights`)."""
    with ExitStack() as stack:
        for (owner, name), weight in zip(_parametrized(modules), weights, strict=True):
            stack.enter_context(_fixed(owner.parametrizations[name], weight))
        yield


def _parametrized(modules: Sequence[nn.Module]) -> list[tuple[nn.Module, str]]:
    return [(m, name) for m in modules if is_parametrized(m) for name in m.parametrizations]


def own_parameters(modules: Sequence[nn.Module]) -> list[Tensor]:
    """The modules' parameters that require grad, once each; not those behind a parametrisation."""
    behind = {id(p) for m in modules if is_parametrized(m) for p in m.parametrizations.parameters()}
    found = {id(p): p for m in modules for p in m._parameters.values() if p is not None and p.requires_grad}
    return [p for key, p in found.items() if key not in behind]


@contextmanager
def _fixed(parametrization: nn.Module, weight: Tensor) -> Iterator[None]:
    before = parametrization.__dict__.get("forward")
    originals = [id(p) for p in parametrization._parameters.values()]

    def pinned_weight() -> Tensor:
        if [id(p) for p in parametrization._parameters.values()] != originals:  # the pinned weight is not theirs
            raise RuntimeError(
                "the originals of a parametrised weight were swapped inside the potential "
                "(torch.func.functional_call): remove the parametrisation, or swap the effective weights"
            )
        return weight

    parametrization.__dict__["forward"] = pinned_weight
    try:
        yield
    finally:
        if before is None:
            del parametrization.__dict__["forward"]
        else:
            parametrization.__dict__["forward"] = before


def probe_potential(layer: str, potential: Callable, x: Tensor) -> None:
    """Evaluates a potential on x and on the two halves of x: raises ValueError if it is random or mixes samples.

    For plain callables, whose modules cannot be inspected (``check_potential=True``). Costs three evaluations.
    """
    if x.shape[0] < 2:
        return
    with torch.no_grad():
        first, second = potential(x).reshape(-1), potential(x).reshape(-1)
        half = x.shape[0] // 2
        parts = torch.cat([potential(x[:half]).reshape(-1), potential(x[half:]).reshape(-1)])
    if not torch.equal(first, second):
        raise ValueError(
            f"{layer}: potential is random: two evaluations at the same x differ by up to "
            f"{(first - second).abs().max().item():.3g}. Remove dropout and other noise (or call .eval())"
        )
    tolerance = 100 * torch.finfo(first.dtype).eps * first.abs().max().clamp_min(1.0)
    if (parts - first).abs().max() > tolerance:
        raise ValueError(
            f"{layer}: potential mixes the samples of a batch: on half of the batch it differs by up to "
            f"{(parts - first).abs().max().item():.3g}. f(x) must be a function of each sample alone"
        )

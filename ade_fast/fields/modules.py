"""What a potential is made of: its modules, their effective weights, and what would make it unfit for an unroll."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .contents import modules_of

_MIXES_THE_BATCH = (nn.modules.batchnorm._BatchNorm,)
_RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU)
_CALLED = ("forward", "_call_impl", "_wrapped_call_impl")


def unfit(modules: Sequence[nn.Module], name: str = "potential") -> Iterator[tuple[nn.Module, str]]:
    """The modules of a function that are random or mix the samples of a batch in their present mode, and what to say.

    The unroll evaluates the potential T + 1 times, and recomputes evaluations in the backward pass: both need f(x) to
    be a function of each sample alone.
    """
    for module in modules:
        kind = type(module).__name__
        if isinstance(module, _MIXES_THE_BATCH) and (module.training or not module.track_running_stats):
            yield (
                module,
                f"{name} mixes the samples of a batch ({kind} in training mode): it must be a function of each sample "
                f"alone. Call .eval() on that module, or use GroupNorm, LayerNorm or spectral norm",
            )
        if isinstance(module, _RANDOM) and module.training and getattr(module, "p", 1.0) > 0:
            yield (
                module,
                f"{name} is random ({kind} in training mode): every step of the unroll must see the same function. "
                f"Call .eval() on that module or remove it",
            )
        if any(base.__name__ == "FSDPModule" for base in type(module).__mro__):  # by name: its import takes a second
            yield (
                module,
                f"{name} is sharded ({kind}, by fully_shard): its weights are given away after the first derivative, "
                f"and there is no second one then. ade.shard(f) shares the weights between the processes exactly; or "
                f"keep f whole in each, and share the data: ade.ADE(f, sampler, data_parallel=True)",
            )


@contextmanager
def refusing(layer: str, refused: Sequence[tuple[nn.Module, str]]) -> Iterator[None]:
    """Within this block, calling one of these modules (from `unfit`) raises ValueError.

    Modules that can be seen from a function need not be used by it: a method's owner may have others.
    """
    with ExitStack() as stack:
        for module, why in refused:
            stack.enter_context(_forward_as(module, functools.partial(_refuse, f"{layer}: {why}")))
        yield


def _refuse(message: str, *args: object, **kwargs: object) -> None:
    raise ValueError(message)


@contextmanager
def _forward_as(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """Within this block, the module's forward is another."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


def is_tampered_with(module: nn.Module) -> bool:
    """Whether calling a module does more than its class says."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or not module.__dict__.keys().isdisjoint(_CALLED)
    )


def is_patched(*kinds: type[nn.Module]) -> bool:
    """Whether torch's module classes do something else than torch wrote: `forward` or `__call__` replaced for all."""
    return not all(_is_torchs_own(kind.forward, kind) for kind in kinds) or not _is_torchs_own(
        nn.Module.__call__, nn.Module
    )


def _is_torchs_own(function: Callable[..., object], kind: type) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename == sys.modules[kind.__module__].__file__


def parametrizations_of(owner: nn.Module) -> nn.ModuleDict:
    """Those of a module that `is_parametrized`."""
    return cast(nn.ModuleDict, owner.parametrizations)


Versions = list[tuple[Tensor, int]]


def buffer_versions(modules: Sequence[nn.Module]) -> Versions:
    """(buffer, version counter) of every buffer: changes between two evaluations make gradients wrong.

    Not those behind a parametrisation (spectral norm's vectors): its weight is computed once and pinned.
    """
    behind = {id(m) for owner in modules if is_parametrized(owner) for m in parametrizations_of(owner).modules()}
    return [(b, b._version) for m in modules if id(m) not in behind for b in m._buffers.values() if b is not None]


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
def pinned(*functions: Callable[..., object]) -> Iterator[tuple[Tensor, ...]]:
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
            stack.enter_context(_fixed(parametrizations_of(owner)[name], weight))
        yield


def _parametrized(modules: Sequence[nn.Module]) -> list[tuple[nn.Module, str]]:
    return [(m, name) for m in modules if is_parametrized(m) for name in parametrizations_of(m)]


def own_parameters(modules: Sequence[nn.Module]) -> list[Tensor]:
    """The modules' parameters that require grad, once each; not those behind a parametrisation."""
    behind = {id(p) for m in modules if is_parametrized(m) for p in parametrizations_of(m).parameters()}
    found = {id(p): p for m in modules for p in m._parameters.values() if p is not None and p.requires_grad}
    return [p for key, p in found.items() if key not in behind]


def _fixed(parametrization: nn.Module, weight: Tensor) -> AbstractContextManager[None]:
    originals = [id(p) for p in parametrization._parameters.values()]

    def pinned_weight() -> Tensor:
        if [id(p) for p in parametrization._parameters.values()] != originals:  # the pinned weight is not theirs
            raise RuntimeError(
                "the originals of a parametrised weight were swapped inside the potential "
                "(torch.func.functional_call): remove the parametrisation, or swap the effective weights"
            )
        return weight

    return _forward_as(parametrization, pinned_weight)


def _takes_any_rows(potential: Callable[..., Tensor]) -> bool:
    """False where rows after the first few alone would be taken for these (a condition's)."""
    return getattr(potential, "takes_any_rows", True)


def probe_potential(layer: str, potential: Callable[..., Tensor], x: Tensor) -> None:
    """Evaluates a potential on x and on the two halves of x: raises ValueError if it is random or mixes samples.

    For plain callables, whose modules cannot be inspected (``check_potential=True``). Costs three evaluations.
    """
    if x.shape[0] < 2:
        return

    def value(points: Tensor) -> Tensor:
        with torch.enable_grad():  # f may differentiate inside of itself
            return potential(points.detach().requires_grad_()).detach().reshape(-1)

    with torch.inference_mode(False), pinned(potential):
        x = x.clone() if x.is_inference() else x
        first, second = value(x), value(x)
        half = x.shape[0] // 2
        parts = torch.cat([value(x[:half]), value(x[half:]) if _takes_any_rows(potential) else first[half:]])
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

"""What the evaluations of one unroll have around them, the same in the forward and in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode

from .._slow_paths import note_slow_path
from .contents import contents_of
from .graph import Ancestry
from .modules import (
    buffer_versions,
    changed,
    effective_weights,
    in_modes,
    own_parameters,
    parametrizations_of,
    pinned_to,
    refusing,
    unfit,
)


class Surroundings:
    """Everything around the functions of an unroll, as of now: their modules' parts (the parameters and buffers that
    `functional_call` put there, say), effective weights and modes, autocast, torch's settings, function modes.

    Args:
        layer: name of the dynamics, for error messages.
        functions: the potential and the networks, by their names.
        device: of the states.
        context: tensors that the functions depend on, other than modules'.
        differentiable: whether second derivatives are taken (which compiled code does not have).

    Attributes:
        known: what requires grad and is known beforehand: the context, and weights that are no leaves (effective ones,
            computed here, and others that were put in the place of parameters). behind_known: what these were computed
            from. frozen: ids of visible parameters that get no gradient.
    """

    def __init__(
        self,
        layer: str,
        functions: dict[str, Callable[..., Tensor]],
        device: torch.device,
        context: Sequence[Tensor] = (),
        differentiable: bool = True,
    ) -> None:
        self._layer = layer
        self._contents = {name: contents_of(function) for name, function in functions.items()}
        modules = {id(m): m for contents in self._contents.values() for m in contents.modules}
        self._modules = list(modules.values())
        self._refused = [(m, why) for name, c in self._contents.items() for m, why in unfit(c.modules, name)]
        compiled = any(contents.compiled for contents in self._contents.values())
        if self._refused and compiled:
            raise ValueError(f"{layer}: {self._refused[0][1]}")
        self._uncompiled = compiled and differentiable
        if self._uncompiled:
            note_slow_path(
                f"{layer} compiled",
                f"{layer}: torch.compile's code has no second derivatives: what it was made of is called instead. Pass "
                f"the uncompiled function, and compile what is around the layer",
            )
        self._effective = effective_weights(self._modules)
        weights = (*self._effective, *_put_in(self._modules))
        self.known = tuple(t for t in (*weights, *context) if t.requires_grad)
        self.behind_known = Ancestry(self.known)
        self.frozen = {id(p) for m in self._modules for p in m._parameters.values() if p is not None and _is_frozen(p)}
        self._parts = [
            (part, dict(part))
            for m in self._modules
            if not isinstance(m, torch.jit.ScriptModule)
            for part in (m._parameters, m._buffers, m._modules)
            if part
        ]
        self._modes = [(m, m.training) for m in self._modules]
        self._buffers = {name: buffer_versions(c.modules) for name, c in self._contents.items()}
        kinds = dict.fromkeys((device.type, "cpu"))
        self._autocast = [(k, torch.get_autocast_dtype(k), torch.is_autocast_enabled(k)) for k in kinds]
        self._settings = torch_settings()
        self._function_modes = _get_current_function_mode_stack()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within this block, everything is as it was; calling a module that is unfit for an unroll raises."""
        with ExitStack() as stack:
            stack.enter_context(_with_parts(self._parts))
            stack.enter_context(pinned_to(self._modules, self._effective))
            stack.enter_context(in_modes(self._modes))
            stack.enter_context(refusing(self._layer, self._refused))
            for kind, dtype, enabled in self._autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            stack.enter_context(_put(_set, torch_settings(), self._settings))
            stack.enter_context(_put(_stack_up, _get_current_function_mode_stack(), self._function_modes))
            if self._uncompiled:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield

    def inputs(self, met: Sequence[Tensor], names: Iterable[str] | None = None) -> Inputs:
        """What these functions, or all, depend on: what their first evaluations met, and what a later one may meet:
        their own leaves and what is known. Not leaves behind that (a conditioning network's): these get their
        gradients through it."""
        contents = [self._contents[name] for name in names or self._contents]
        leaves = [t for c in contents for t in (*own_parameters(c.modules), *c.leaves) if t not in self.behind_known]
        there = {id(t) for t in met}
        return Inputs(met, list({id(t): t for t in (*self.known, *leaves) if id(t) not in there}.values()))

    def refuse_changed_buffers(self) -> None:
        """Raises ValueError if a function changed its own buffers."""
        for name, versions in self._buffers.items():
            if changed(versions):
                raise ValueError(
                    f"{self._layer}: {name} changes its own buffers when it is evaluated, so every step would see "
                    f"another function (legacy torch.nn.utils.spectral_norm? use "
                    f"torch.nn.utils.parametrizations.spectral_norm)"
                )


def _put_in(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Tensors in the place of parameters and buffers that were computed from others (`functional_call`)."""
    behind = {id(m) for owner in modules if is_parametrized(owner) for m in parametrizations_of(owner).modules()}
    parts = [part for m in modules if id(m) not in behind for part in (m._parameters, m._buffers)]
    tensors = {id(t): t for part in parts for t in part.values() if t is not None}
    return [t for t in tensors.values() if t.requires_grad and not t.is_leaf]


def _is_frozen(parameter: Tensor) -> bool:
    return not parameter.requires_grad


@contextmanager
def _with_parts(parts: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[None]:
    """Within this block, these dictionaries of modules have these contents."""
    other = [(part, dict(part), then) for part, then in parts if not _is_same(part, then)]
    try:
        for part, _, then in other:
            part.clear()
            part.update(then)
        yield
    finally:
        for part, now, _ in other:
            part.clear()
            part.update(now)


def _is_same(part: dict[str, Any], then: dict[str, Any]) -> bool:
    return len(part) == len(then) and all(part.get(name) is value for name, value in then.items())


def torch_settings() -> tuple[Any, ...]:
    """Torch's settings that decide what a function computes: attention's backends, the default dtype."""
    cuda = torch.backends.cuda
    return (
        cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled(),
        torch.get_default_dtype(),
    )  # fmt: skip


def _set(settings: Sequence[Any]) -> None:
    cuda = torch.backends.cuda
    flash, mem_efficient, math, cudnn, dtype = settings
    cuda.enable_flash_sdp(flash)
    cuda.enable_mem_efficient_sdp(mem_efficient)
    cuda.enable_math_sdp(math)
    cuda.enable_cudnn_sdp(cudnn)
    torch.set_default_dtype(dtype)


@contextmanager
def _put(put: Callable[[Sequence[Any]], None], now: Sequence[Any], then: Sequence[Any]) -> Iterator[None]:
    """Within this block it is as it was then, if it is not so anyway."""
    if len(now) == len(then) and all(a is b or a == b for a, b in zip(now, then, strict=True)):
        yield
        return
    put(then)
    try:
        yield
    finally:
        put(now)


def _stack_up(modes: Sequence[Any]) -> None:
    """Makes these torch's function modes (`with torch.device(...)` is one), and no others."""
    for _ in _get_current_function_mode_stack():
        _pop_mode()
    for mode in modes:
        _push_mode(mode)


class Draws:
    """What evaluations draw from torch's generators, so that they draw the same again, as `torch.utils.checkpoint` has
    it: the generators' states before each one that drew anything."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: dict[Hashable, tuple[Tensor, Tensor | None]] = {}

    def __bool__(self) -> bool:
        return bool(self._before)

    def _state(self) -> tuple[Tensor, Tensor | None]:
        on_gpu = self._device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
        return torch.get_rng_state(), torch.cuda.get_rng_state(self._device) if on_gpu else None

    def _restore(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], self._device)

    @contextmanager
    def undone(self) -> Iterator[Callable[[], None]]:
        """Within this block, a function that takes back what was drawn in it."""
        before = self._state()
        yield lambda: self._restore(before)

    @contextmanager
    def recorded(self, key: Hashable) -> Iterator[None]:
        before = self._state()
        yield
        after = self._state()
        pairs = zip(before, after, strict=True)
        # Not by an operator: who records those would see values decide.
        if any(a is not None and b is not None and a.numpy().tobytes() != b.numpy().tobytes() for a, b in pairs):
            self._before[key] = before
            torch.equal(before[0], after[0])  # here they do

    @contextmanager
    def repeated(self, key: Hashable) -> Iterator[None]:
        """Within this block, what was drawn under this key is drawn again."""
        if key not in self._before:
            yield
            return
        now = self._state()
        self._restore(self._before[key])
        try:
            yield
        finally:
            self._restore(now)


class Inputs:
    """Tensors whose derivatives an unroll returns.

    certain: those that the first evaluation met. possible: those that a later one may meet (control flow); they get no
    gradient, not even zeros, unless one does.
    """

    def __init__(self, certain: Sequence[Tensor] = (), possible: Sequence[Tensor] = ()) -> None:
        self.certain = list(certain)
        self.tensors = [*certain, *possible]
        self.possible = list(possible)
        self._versions = [t._version for t in possible]

    def derivatives(self, layer: str, totals: Sequence[Tensor | None]) -> list[Tensor | None]:
        """`totals`, with zeros for a certain input that nothing depends on after all."""
        n = len(self.tensors) - len(self.possible)
        for total, tensor, version in zip(totals[n:], self.possible, self._versions, strict=True):
            if total is not None and tensor._version != version:  # autograd does not watch these
                raise RuntimeError(
                    f"{layer}: a parameter of shape {tuple(tensor.shape)} was modified between the forward and the "
                    f"backward pass"
                )
        certain = zip(self.tensors[:n], totals[:n], strict=True)
        return [torch.zeros_like(t) if total is None else total for t, total in certain] + list(totals[n:])


def is_observed(tensor: Tensor) -> bool:
    """Whether something happens when autograd passes this tensor: it would, at every one of our evaluations."""
    return bool(tensor._backward_hooks) or tensor.retains_grad

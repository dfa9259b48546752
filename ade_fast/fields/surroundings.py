"""What the evaluations of one unroll have around them, the same in the forward and in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .contents import Contents, contents_of
from .graph import Ancestry
from .modules import buffer_versions, changed, effective_weights, in_modes, own_parameters, pinned_to, refusing, unfit


class Surroundings:
    """The modules behind the functions of an unroll, their effective weights and modes, and autocast, as of now.

    Args:
        layer: name of the dynamics, for error messages.
        functions: the potential and the networks, by their names.
        device: of the states.

    Attributes:
        contents: what can be seen from each function, by its name. weights: the effective ones, computed here.
    """

    def __init__(self, layer: str, functions: dict[str, Callable], device: torch.device) -> None:
        self._layer = layer
        self.contents = {name: contents_of(function) for name, function in functions.items()}
        modules = {id(m): m for contents in self.contents.values() for m in contents.modules}
        self._modules = list(modules.values())
        self._refused = [(m, why) for name, c in self.contents.items() for m, why in unfit(c.modules, name)]
        if self._refused and any(contents.compiled for contents in self.contents.values()):
            raise ValueError(f"{layer}: {self._refused[0][1]}")
        self.weights = effective_weights(self._modules)
        self._modes = [(m, m.training) for m in self._modules]
        self._buffers = {name: buffer_versions(c.modules) for name, c in self.contents.items()}
        kind = device.type
        self._autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within this block, everything is as it was; calling a module that is unfit for an unroll raises."""
        kind, dtype, enabled = self._autocast
        with (
            pinned_to(self._modules, self.weights),
            in_modes(self._modes),
            refusing(self._layer, self._refused),
            torch.autocast(kind, dtype=dtype, enabled=enabled),
        ):
            yield

    def constants(self) -> Iterator[Tensor]:
        """Tensors of scripted modules, which call functions unseen."""
        for module in self._modules:
            if isinstance(module, torch.jit.ScriptModule):
                yield from (*module.parameters(recurse=False), *module.buffers(recurse=False))

    def refuse_changed_buffers(self) -> None:
        """Raises ValueError if a function changed its own buffers."""
        for name, versions in self._buffers.items():
            if changed(versions):
                raise ValueError(
                    f"{self._layer}: {name} changes its own buffers when it is evaluated, so every step would see "
                    f"another function (legacy torch.nn.utils.spectral_norm? use "
                    f"torch.nn.utils.parametrizations.spectral_norm)"
                )


class Inputs:
    """Tensors whose derivatives an unroll returns.

    certain: those that the first evaluation met. possible: those that a later one may meet (control flow); they get no
    gradient, not even zeros, unless one does.
    """

    def __init__(self, certain: Sequence[Tensor] = (), possible: Sequence[Tensor] = ()) -> None:
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


def possible_inputs(
    contents: Contents, met: Sequence[Tensor], known: Sequence[Tensor], behind_known: Ancestry
) -> list[Tensor]:
    """What a function may depend on at a later step and did not meet at the first: its own leaves, known inputs.

    Not leaves behind a known input (a conditioning network's): these get their gradients through it.
    """
    there = {id(t) for t in met}
    leaves = [t for t in (*own_parameters(contents.modules), *contents.leaves) if t not in behind_known]
    return list({id(t): t for t in (*known, *leaves) if id(t) not in there}.values())


def is_observed(tensor: Tensor) -> bool:
    """Whether something happens when autograd passes this tensor: it would, at every one of our evaluations."""
    return bool(tensor._backward_hooks) or tensor.retains_grad

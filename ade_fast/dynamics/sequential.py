"""Dynamics one after another, as one dynamics (B.2's last sentence)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..fields import Plan, pinned
from . import base


class SequentialOutput(NamedTuple):
    """End of a sequence of dynamics.

    x: [B, *event]. v: [B, *momentum], or [sum of T, B, *momentum] where the layers draw their own momenta, or None.
    log_det, log_noise: the layers' sums, [B].
    """

    x: Tensor
    v: Tensor | None
    log_det: Tensor
    log_noise: Tensor


def layers_of(dynamics: nn.Module) -> Iterator[nn.Module]:
    """The dynamics that run one after another: those of a `Sequential`, or the dynamics itself."""
    if isinstance(dynamics, Sequential):
        for layer in dynamics.layers:
            yield from layers_of(layer)
    else:
        yield dynamics


def clips_samples(dynamics: nn.Module) -> bool:
    """Whether samples are clipped to a range, where their distribution has atoms."""
    options = (getattr(layer, "options", None) for layer in layers_of(dynamics))
    return any(getattr(option, "sample_range", None) is not None for option in options)


class Sequential(nn.Module):
    """Dynamics layers one after another, each from where the one before it ended, driven by one potential.

    Source: B.2's last sentence, which composes continuous and discrete dynamics. A composition of invertible maps:
    log-determinants add up. Momenta are handed on: layers with a momentum share one, of one shape, and a layer without
    any (`ContinuousLangevin`) moves x alone and leaves it as it is. Layers that draw a momentum per step instead
    (Langevin) may be followed by others of their kind, v is then all of their momenta, (9). Such a layer beside one
    whose momentum is handed on is refused: the joint density has momenta of two kinds, for which there is one v.

    Called as ``layer(potential, x0, v0=None, *, initial=None, generator=None, context=None, diagnostics=False) ->
    SequentialOutput(x, v, log_det, log_noise)``. v0=None draws N(0, I) where a layer has a momentum, before anything
    else. `initial`: the Gaussian that annealed layers among them start at (`AnnealedLeapfrog`); their weights are right
    wherever they stand in the sequence. `diagnostics`: whether each layer is to have those of this call. A parametrised
    potential (spectral norm) is one function along the whole sequence.

    Args:
        layers: dynamics layers, at least one; also sequences of them. Kept as ``layers``. One whose ``momentum_shape``
            is None draws its own momenta, unless it has a false attribute ``has_momentum``.

    Raises: TypeError, ValueError for wrong arguments; whatever the layers raise.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        if not layers:
            raise ValueError("Sequential: dynamics must be given, at least one, got none")
        for i, layer in enumerate(layers):
            if not isinstance(layer, nn.Module) or not callable(getattr(layer, "momentum_shape", None)):
                raise TypeError(
                    f"Sequential: layer {i} must be a dynamics layer with .momentum_shape(event), such as "
                    f"ade.Leapfrog, got {type(layer).__name__}"
                )
        self.layers = nn.ModuleList(layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> nn.Module:
        return self.layers[index]

    @property
    def has_momentum(self) -> bool:
        """Whether there are momenta at all, handed on or the layers' own."""
        return any(map(_has_momentum, self.layers))

    @property
    def anneals(self) -> bool:
        """Whether calls need `initial`."""
        return any(getattr(layer, "anneals", False) for layer in self.layers)

    @property
    def estimates_log_det(self) -> bool:
        """Whether a layer only estimates its log-determinant, so that there are no weights."""
        return any(getattr(layer, "estimates_log_det", False) for layer in self.layers)

    @property
    def diagnostics(self) -> tuple[object, ...]:
        """``diagnostics`` of each layer, in order; None where there are none."""
        return tuple(getattr(layer, "diagnostics", None) for layer in layers_of(self))

    @property
    def last_plans(self) -> tuple[Plan | None, ...]:
        """``last_plan`` of each layer, in order; None where it has none."""
        return tuple(getattr(layer, "last_plan", None) for layer in layers_of(self))

    def momentum_shape(self, event: tuple[int, ...]) -> tuple[int, ...] | None:
        """Shape of the momentum that is handed on, or None where no layer has one.

        Raises: ValueError if layers have momenta of different shapes, or of two kinds.
        """
        layers: Iterable[Any] = self.layers
        shapes = [(i, layer.momentum_shape(event)) for i, layer in enumerate(layers)]
        handed_on = [(i, tuple(shape)) for i, shape in shapes if shape is not None]
        if not handed_on:
            return None
        first, shape = handed_on[0]
        for i, other in handed_on:
            if other != shape:
                raise ValueError(
                    f"Sequential: the momentum is handed on and must have one shape, got {shape} for "
                    f"{self._name(first)} and {other} for {self._name(i)}"
                )
        for i, other in shapes:
            if other is None and _has_momentum(self.layers[i]):
                raise ValueError(
                    f"Sequential: {self._name(i)} draws a momentum per step, and {self._name(first)} has one that is "
                    f"handed on: the joint density has momenta of two kinds, for which there is one v. Use layers of "
                    f"one kind"
                )
        return shape

    def _name(self, i: int) -> str:
        return f"layer {i} ({type(self.layers[i]).__name__})"

    @base.conditional
    def forward(
        self,
        potential: Callable[..., Tensor],
        x0: Tensor,
        v0: Tensor | None = None,
        *,
        initial: object = None,
        generator: torch.Generator | None = None,
        context: Tensor | Sequence[Tensor] | None = None,
        diagnostics: bool = False,
    ) -> SequentialOutput:
        asked = {"diagnostics": diagnostics} if diagnostics else {}  # layers of others need not know of it
        return _run(self, potential, x0, v0, initial, generator=generator, context=context, **asked)


@base.outside_of_graphs
def _run(
    sequence: Sequential,
    potential: Callable[..., Tensor],
    x0: Tensor,
    v0: Tensor | None,
    initial: object,
    **options: Any,
) -> SequentialOutput:
    base.check_x0("Sequential", x0)
    momentum = sequence.momentum_shape(tuple(x0.shape[1:]))
    v: Tensor | None
    if momentum is not None:
        if v0 is None:
            v = base.draw_momentum("Sequential", x0, momentum, options["generator"])
        else:
            v = base.check_v0("Sequential", v0, x0, momentum)
    elif v0 is not None:
        raise ValueError("Sequential: v0 must be None: no layer takes a momentum from outside")
    x, log_det, log_noise = x0, base.zero_log_det(x0), base.zero_log_det(x0)
    drawn: list[Tensor] = []
    layers: Iterable[Any] = sequence.layers
    with pinned(potential):
        for layer in layers:
            takes = layer.momentum_shape(tuple(x0.shape[1:])) is not None
            annealed = {"initial": initial} if getattr(layer, "anneals", False) else {}
            out = layer(potential, x, v if takes else None, **annealed, **options)
            x, log_det = out.x, log_det + out.log_det
            if (noise := getattr(out, "log_noise", None)) is not None:
                log_noise = log_noise + noise
            if takes:
                v = out.v
            elif out.v is not None:
                drawn.append(out.v)
    if momentum is None:
        v = _all_momenta(drawn)
    return SequentialOutput(x, v, log_det, log_noise)


def _has_momentum(layer: nn.Module) -> bool:
    return getattr(layer, "has_momentum", True)


def _all_momenta(drawn: Sequence[Tensor]) -> Tensor | None:
    """The momenta that the layers drew, each [T, B, *momentum], as one."""
    shapes = {tuple(v.shape[2:]) for v in drawn}
    if len(shapes) > 1:
        raise ValueError(f"Sequential: the momenta that layers draw must have one shape, got {sorted(shapes)}")
    return torch.cat(list(drawn)) if drawn else None

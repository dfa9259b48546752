"""Does the backward pass differentiate the function that the forward pass saw?

Whatever is evaluated again is compared, by one rule, with what the forward pass found there: by the gradients where
they are kept, else by a checksum. On CUDA nobody waits for that: it is looked at when another unroll, forward
or backward, begins (`raise_pending`).
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .graph import dependence

if TYPE_CHECKING:
    from .surroundings import Inputs

_WHY = (
    "something that it depends on was modified between the forward and the backward pass, or it is random (with a "
    "generator of its own), or samples of a batch mix"
)
# Tolerances are these powers of the precision: 3e-4 in float32 and 1.5e-8 in float64 for what is evaluated again as it
# was; 2e-3 and 5e-7 for other operations on other batches, whose rounding turns kinks over. Far above rounding, far
# below another function.
_AS_IT_WAS, _OTHERWISE = 0.5, 0.4
# Of so many rows one may be far off (a unit whose kink rounding put on the other side), ...
_ROWS_PER_KINK = 50
# ... as long as all rows together are not.
_TOGETHER = 0.05


class OtherGradient(RuntimeError):
    """The backward pass found another function than the forward pass."""

    def __init__(self, layer: str, name: str = "potential's gradient", why: str = _WHY) -> None:
        super().__init__(
            f"{layer}: {name} at the same x is another in the backward pass than in the forward pass: {why}"
        )


class Dependence:
    """Whose tensors the backward pass's evaluations depend on: values do not tell. A clone in a weight's place would
    take its gradient away, and so would a constant.

    Args:
        layer, name: who asks and what is evaluated, for error messages.
        inputs: what the unroll has derivatives for.
        frozen: ids of leaves that had none, though they may have been made to require grad since.
    """

    def __init__(self, layer: str, name: str, inputs: Inputs, frozen: Collection[int]) -> None:
        self.inputs = inputs
        self._layer, self._name, self._frozen = layer, f"what {name} depends on", frozen
        self._met: set[int] = set()

    def note(self, outputs: Sequence[Tensor], *own: Tensor, used: Collection[int] = ()) -> None:
        """Notes what an evaluation depends on, beside its `own` leaves, by its graph, and by ids.

        Raises: OtherGradient if there is a leaf that requires grad and is no input.
        """
        met = dependence(outputs, [*own, *self.inputs.tensors])
        for key in met.keys() - {id(t) for t in (*own, *self.inputs.tensors)} - set(self._frozen):
            raise self._error(met[key], "that requires grad was not there at the first step")
        self._met |= met.keys() | set(used)

    def check(self, then: Dependence | None = None) -> None:
        """Raises OtherGradient if an input was not met again (of those that were met `then`)."""
        for tensor in self.inputs.certain:
            missing = tensor.requires_grad and id(tensor) not in self._met
            if missing and (then is None or id(tensor) in then._met):
                raise self._error(tensor, "was there at the first step, and is not met again")

    def _error(self, tensor: Tensor, what: str) -> OtherGradient:
        return OtherGradient(
            self._layer,
            self._name,
            f"a tensor of shape {tuple(tensor.shape)} {what}. Keep parameters in modules, and swap none in between",
        )


class Checksum:
    """Per sample, Σ_t w_t ⟨r, y_t⟩ and Σ_t ⟨r, y_t⟩² of rows y_t [B, D] (∇f(x_t), say): 16 bytes, whatever T.

    The weights w_t tell the steps apart, and r the dimensions; the squares tell the size.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._size: Tensor | None = None
        self._dtypes: set[torch.dtype] = set()

    def __bool__(self) -> bool:
        return self._sum is not None

    def add(self, t: int, *parts: Tensor | None, want_size: bool = True) -> None:
        """Notes what was found at step t. Sizes are wanted of one of two checksums to be compared."""
        for part in parts:
            if part is None:
                continue
            rows = part.detach()
            self._dtypes.add(rows.dtype)
            if rows.dtype not in (torch.float32, torch.float64):
                rows = rows.float()
            if self._sum is None:
                self._sum = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
                self._size = torch.zeros_like(self._sum) if want_size else None
            along = torch.mv(rows, _directions(rows.shape[1], rows.dtype, rows.device))
            self._sum.add_(along, alpha=_weight(t))
            if want_size:
                assert self._size is not None
                self._size.addcmul_(along, along)

    def compare(self, later: Checksum, error: OtherGradient) -> None:
        """Raises `error` if what was found later is something else; on CUDA, when the next unroll begins."""
        if self._sum is None or later._sum is None or len(self._sum) == 0:
            return
        device = self._sum.device
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return
        assert self._size is not None
        wrong = _differs(later._sum - self._sum, self._size.sqrt(), _precision(self._dtypes, device) ** _AS_IT_WAS)
        if device.type == "cuda":
            _PENDING.append(_Flag(wrong, error))
        elif bool(wrong):
            raise error


class _Flag:
    """A truth value on its way from a GPU."""

    def __init__(self, wrong: Tensor, error: OtherGradient) -> None:
        self._value = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(wrong, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record(torch.cuda.current_stream(wrong.device))
        self._error = error

    def has_arrived(self) -> bool:
        return self._arrived.query()

    def raise_if_set(self) -> None:
        if bool(self._value):
            raise self._error


_PENDING: list[_Flag] = []


def raise_pending() -> None:
    """Raises the error of a comparison on a GPU that has come to its end, if it has one."""
    while _PENDING and _PENDING[0].has_arrived():
        _PENDING.pop(0).raise_if_set()


def tolerance_of(tensors: Sequence[Tensor], device: torch.device) -> float:
    """For `agrees`, of an f with these constants. (Asking torch for its settings takes as long as three operators.)"""
    return _precision({t.dtype for t in tensors if t.is_floating_point()}, device) ** _OTHERWISE


def agrees(slope: Tensor, u: Tensor, grads: Tensor, tolerance: float) -> bool:
    """Whether `slope`, ⟨∇f(x), u⟩ as computed now, is that of the gradients of the forward pass.

    slope [N]; u, grads [N, D]; without graphs.
    """
    device = slope.device
    if len(slope) == 0 or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return True
    # (Products with a vector are sums along rows, for few columns in a quarter of the time.)
    ones = _ones(grads.shape[1], grads.dtype, device)
    difference = slope.to(grads.dtype) - torch.mv(grads * u, ones)
    # Of most calls no row is off, and then all of them together are not.
    squares = torch.mv(grads * grads, ones).mul_(torch.mv(u * u, ones))
    if float(torch.addcmul(squares, difference, difference, value=-(tolerance**-2)).amin()) > 0:
        return True
    size = torch.linalg.vector_norm(grads, dim=1).mul_(torch.linalg.vector_norm(u, dim=1))
    return not bool(_differs(difference, size, tolerance))


def _differs(difference: Tensor, size: Tensor, tolerance: float) -> Tensor:
    """Whether rows that should be equal are not: a truth value where they are. difference, size [N].

    A row is off where it differs by more than `tolerance` of its size (of the median size where it is smaller than
    that). One row of fifty may be, while all together differ by less than a twentieth. NaN agrees with everything.
    """
    scale = torch.maximum(size, size.median())
    off = (difference.abs() > tolerance * scale).sum() > len(size) // _ROWS_PER_KINK
    return off | (torch.linalg.vector_norm(difference) > max(_TOGETHER, tolerance) * torch.linalg.vector_norm(scale))


def _precision(dtypes: set[torch.dtype], device: torch.device) -> float:
    """The least of those that a function of tensors of these kinds is computed with."""
    dtypes = set(dtypes)
    if torch.is_autocast_enabled(device.type):
        dtypes.add(torch.get_autocast_dtype(device.type))
    if torch.float32 in dtypes and device.type == "cuda":  # convolutions run in TF32 unless told otherwise
        dtypes.add(torch.float16)
    if torch.float32 in dtypes and _reduced():
        dtypes.add(torch.bfloat16)
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def _reduced() -> bool:
    """Whether the user lets float32 matrix products be less precise than that."""
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # set by its newer name, which the older one refuses to tell
        return True


def _weight(t: int) -> float:
    """Between 1 and 2, another one for every step: the golden ratio's multiples, without their whole parts."""
    return 1.0 + (0.6180339887498949 * t) % 1.0


@functools.lru_cache(maxsize=64)
def _ones(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(n, dtype=dtype, device=device)


@functools.lru_cache(maxsize=64)
def _directions(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """n fixed numbers of either sign between 1/2 and 3/2 in size."""
    uniform = torch.rand(2, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.where(uniform[0] < 0.5, -0.5 - uniform[1], 0.5 + uniform[1]).to(device, dtype)

"""Gradients that have been computed, and how parameters come by them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

from torch import Tensor
from torch.autograd.graph import _engine_run_backward, get_gradient_edge

_HELD = "ade_fast.held"


class Gradients(NamedTuple):
    """Of parameters that have none yet.

    tensors: all parameters and buffers. learning: those that want a gradient, and these: tensors, or None. own: whether
    nobody else has a part in the gradients' memory, and nobody watches them come.
    """

    tensors: Sequence[Tensor]
    learning: Sequence[Tensor]
    gradients: Sequence[Tensor | None]
    own: bool = False

    def accumulate(self) -> None:
        """Adds them to the parameters' own as a backward pass does, so that what is hooked to it takes its part."""
        if self.own:
            for parameter, gradient in zip(self.learning, self.gradients, strict=True):
                parameter.grad = gradient
            return
        pairs = [(p, g) for p, g in zip(self.learning, self.gradients, strict=True) if g is not None]
        if pairs:
            # `torch.autograd.backward`, whose checks take as long again.
            _engine_run_backward(
                *zip(*pairs, strict=True), False, False, (), allow_unreachable=True, accumulate_grad=True
            )


class Accumulators:
    """Where autograd adds to the gradients of parameters on the CPU: nodes, which are kept so that what is hooked to
    them later is seen."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._seen = any(not p.is_cpu or _is_held(p) for p in parameters)
        self._nodes = [] if self._seen else [get_gradient_edge(p).node for p in parameters]
        self._hooks = []
        for node in self._nodes:
            for register in (node.register_hook, node.register_prehook):
                handle = register(_nothing)  # all that are hooked later come into its dictionary
                self._hooks.append(handle.hooks_dict_ref())
                handle.remove()

    def are_watched(self) -> bool:
        """Whether something is hooked to one, or may be."""
        after = (p._post_accumulate_grad_hooks for p in self._parameters)
        return self._seen or any(self._hooks) or any(after)


def _is_held(parameter: Tensor) -> bool:
    """Whether somebody holds this parameter's node, who may have hooked something to it: nodes that nobody holds are
    made anew."""
    _metadata(parameter)[_HELD] = True
    return _HELD in _metadata(parameter)


def _metadata(parameter: Tensor) -> dict[object, object]:
    return cast(
        dict[object, object], get_gradient_edge(parameter).node.metadata
    )  # a property, which torch's stub hides


def _nothing(*_: object) -> None:
    pass


def are_apart(gradients: Iterable[Tensor | None], parameters: Iterable[Tensor], others: Iterable[object]) -> bool:
    """Whether each gradient is laid out as its parameter, in memory that no other one has a part in, nor `others`."""
    spans = [(*_span(t), False) for t in others if isinstance(t, Tensor)]
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if gradient is None:
            continue
        if type(gradient) is not Tensor or gradient.stride() != parameter.stride() or gradient.dtype != parameter.dtype:
            return False
        spans.append((*_span(gradient), True))
    of_gradients = of_any = 0  # where those end that begin before
    for begin, end, is_gradient in sorted(spans):
        if begin < (of_any if is_gradient else of_gradients):
            return False
        of_any, of_gradients = max(of_any, end), max(of_gradients, end if is_gradient else 0)
    return True


def _span(tensor: Tensor) -> tuple[int, int]:
    """Addresses from its first element to behind its last."""
    if not tensor.numel():
        return tensor.data_ptr(), tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()

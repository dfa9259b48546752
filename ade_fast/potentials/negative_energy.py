"""An energy network as potential."""

from collections.abc import Callable

from torch import Tensor, nn

from ._checks import per_sample


class NegativeEnergy(nn.Module):
    """``f(x) = -E(x)`` for a network E with ``p(x) ∝ exp(-E(x))``.

    Args:
        module: E, a module (or any callable) from ``(B, *event)`` to ``(B,)`` or ``(B, 1)``.

    Attributes:
        module: E. Its parameters keep their names under ``module.`` in the ``state_dict``.

    Raises:
        TypeError: ``module`` is not callable.
        ValueError: at the call, its output is neither ``(B,)`` nor ``(B, 1)``.
    """

    def __init__(self, module: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not callable(module):
            raise TypeError(f"NegativeEnergy: module must be a module or a callable, got {type(module).__name__}")
        self.module = module

    def forward(self, x: Tensor, *condition: object) -> Tensor:
        return -per_sample("NegativeEnergy", "module", self.module(x, *condition), len(x))

"""Adam for a player, at the price of its kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, optim
from torch.optim import optimizer as of_torch

from .held import Held, Part

_RARER = ("amsgrad", "capturable", "differentiable", "decoupled_weight_decay")
_STATE = ("exp_avg", "exp_avg_sq", "step")


class Adam(optim.Adam):
    """torch's fused Adam, the same to the last bit and with the same state, for small models on the CPU.

    What `torch.optim.Adam.step` does around its kernel takes longer there than the kernel itself. Where nobody can see
    the difference (no hooks, no profiler, a gradient for each parameter, none of the rarer options) that is called at
    once.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, as torch's. closure: evaluates the loss again, and returns it."""
        if closure is not None or self._is_watched():
            return self._step_as_torch(closure)
        known: _Known | None = self.__dict__.get("_known")
        if known is None or not known.holds(self):
            known = self.__dict__["_known"] = _Known(self)
        gradients = []
        for group, dtype in zip(known.groups, known.dtypes, strict=True):
            if (found := _gradients(group, dtype)) is None:
                return self._step_as_torch(None)
            gradients.append(found)
        with torch.no_grad():
            for group, found, lists in zip(known.groups, gradients, known.lists, strict=True):
                _call(group, found, *lists)
        return None

    # torch wraps the step of each kind of optimizer in what calls hooks, when the first of its kind is made; not this.
    step.hooked = True  # type: ignore[attr-defined]

    def _step_as_torch(self, closure: Callable[[], Any] | None) -> Any:
        step: Callable[..., Any] = optim.Adam.step
        if not getattr(step, "hooked", False):
            step = optim.Optimizer.profile_hook_step(step)
        return step(self, closure)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_known"}

    def _is_watched(self) -> bool:
        hooks = (
            of_torch._global_optimizer_pre_hooks, of_torch._global_optimizer_post_hooks,
            self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks,
        )  # fmt: skip
        watched = torch._C._autograd._profiler_enabled() or torch.compiler.is_compiling()
        return bool(watched or any(hooks) or getattr(self, "grad_scale", None) or getattr(self, "found_inf", None))


class _Known:
    """The lists that the kernel takes of each group, which do not change but by somebody's hand.

    dtypes: of a group's parameters and states, on the CPU; None: they are not alike, or there is no state yet.
    """

    def __init__(self, optimizer: Adam) -> None:
        self._state, self.groups = optimizer.state, optimizer.param_groups
        parts = self.groups, self._state, *self._state.values(), *(group["params"] for group in self.groups)
        self._held = Held([(cast(Part, part), frozenset()) for part in parts])
        self.lists: list[tuple[list[Tensor], ...]] = []
        self.dtypes: list[torch.dtype | None] = []
        for group in self.groups:
            params: list[Tensor] = group["params"]
            own = [self._state[p] for p in params if p in self._state]
            lists = params, *([state[name] for state in own if name in state] for name in _STATE)
            self.lists.append(lists)
            whole = all(len(found) == len(params) for found in lists)
            kinds = {(t.dtype, t.is_cpu) for found in lists[:-1] for t in found}
            dtype, on_cpu = kinds.pop() if whole and len(kinds) == 1 else (None, False)
            self.dtypes.append(dtype if on_cpu else None)

    def holds(self, optimizer: Adam) -> bool:
        same = optimizer.state is self._state and optimizer.param_groups is self.groups
        lists = (group["params"] is of_group[0] for group, of_group in zip(self.groups, self.lists, strict=False))
        return same and all(lists) and self._held.is_there()


def _gradients(group: dict[str, Any], dtype: torch.dtype | None) -> list[Tensor] | None:
    """None: this group's step needs more than the kernel."""
    if not group["fused"] or any(group[option] for option in _RARER) or isinstance(group["lr"], Tensor):
        return None
    gradients = [p.grad for p in group["params"]]
    plain = all(type(g) is Tensor and g.dtype == dtype and g.layout is torch.strided for g in gradients)
    return gradients if plain else None


def _call(
    group: dict[str, Any],
    gradients: list[Tensor],
    params: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
) -> None:
    if not params:
        return
    beta1, beta2 = group["betas"]
    torch._foreach_add_(steps, 1)
    torch._fused_adam_(
        params, gradients, exp_avgs, exp_avg_sqs, [], steps, lr=group["lr"], beta1=beta1, beta2=beta2,
        weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=group["maximize"],
    )  # fmt: skip

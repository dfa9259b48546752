"""Standard normals that are a function of a seed and a place (schema: ``csrc/bind/philox.cpp``).

``philox_normal(x, seed, step) -> noise``: noise of shape, dtype and device of x ``[B, D]``, which is not read; seed
int64 ``[1]`` on x's device; step from 0. Row b of step t is the same whatever B is, and for any number of threads; CPU
and CUDA differ by rounding alone (csrc/common/philox.h). It has no derivative: there is nothing to differentiate by.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._ops import _library, below_autograd, ops

_normal = ops.philox_normal.default
_INT64_MIN = -(1 << 63)


def draw_seed(device: torch.device, generator: torch.Generator | None) -> Tensor:
    """A seed for `philox_normal`, int64 [1], uniform over all 64 bits: one draw, which stays on the device."""
    return torch.empty(1, dtype=torch.int64, device=device).random_(_INT64_MIN, None, generator=generator)


def philox_normal(x: Tensor, seed: Tensor, step: int) -> Tensor:
    """ξ ~ N(0, I) like x [B, D], that of `step` under `seed`."""
    with below_autograd():
        return _normal(x, seed, step)


def _register() -> None:
    @torch.library.register_fake("ade_fast::philox_normal")  # type: ignore[untyped-decorator]
    def fake(x: Tensor, seed: Tensor, step: int) -> Tensor:
        return x.new_empty(x.shape)

    _library.impl("philox_normal", philox_normal, "Autograd")


_register()

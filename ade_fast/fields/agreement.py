"""Does the backward pass differentiate the function that the forward pass saw?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def agrees(slope: Tensor, u: Tensor, grads: Tensor, involved: Sequence[Tensor]) -> bool:
    """Whether `slope`, ⟨∇f(x), u⟩ as computed now, is that of the gradients of the forward pass.

    slope [N]; u, grads [N, D]. involved: tensors whose dtypes say how precisely f is computed.

    The tolerance is the fourth root of the precision (2 % in float32): far above rounding, and above what a unit does
    whose kink rounding puts on the other side; far below what another function does. NaN agrees with everything.
    """
    expected = (grads * u).sum(1)
    error = torch.linalg.vector_norm(slope.detach().to(expected.dtype) - expected)
    size = torch.linalg.vector_norm(grads, dim=1).mul_(torch.linalg.vector_norm(u, dim=1)).square_().sum().sqrt_()
    return not bool(error > _precision([slope, grads, *involved]) ** 0.25 * size)


def _precision(involved: Sequence[Tensor]) -> float:
    device = involved[0].device.type
    dtypes = {t.dtype for t in involved}
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    if torch.float32 in dtypes and device == "cuda":  # convolutions run in TF32 unless told otherwise
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

"""Points as tensors, refused in one way wherever gradients go through them, with what to do about it.

`ade.fit`, `TrainedModel.log_prob` and `score`, which standardise, take rows of any kind instead (`data.as_table`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


def tensor(where: str, name: str, value: object, wanted: str = "a tensor") -> Tensor:
    """``value``, if it is a tensor.

    Raises:
        TypeError: it is not; the message says how it becomes one.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: {name} must be {wanted}, got {type(value).__name__}{_remedy(name, value)}")
    return value


def floating_tensor(where: str, name: str, value: object, wanted: str | None = None) -> Tensor:
    """``value``, if it is a tensor of floating point. Raises: TypeError, as :func:`tensor`."""
    value = tensor(where, name, value, wanted or "a tensor")
    if not value.is_floating_point():
        raise TypeError(
            f"{where}: {name} must be {wanted or 'floating point'}, got {value.dtype}: convert it with {name}.float()"
        )
    return value


def check_dtype(where: str, name: str, value: Tensor, whose: str, dtype: torch.dtype) -> None:
    """Raises TypeError unless ``value`` has the dtype of what it meets."""
    if value.dtype != dtype:
        raise TypeError(
            f"{where}: {name} must have {whose} dtype {dtype}, got {value.dtype}: convert it with {name}.to({dtype})"
        )


@contextmanager
def naming_dtypes(where: str, name: str, value: Tensor, potential: object) -> Iterator[None]:
    """Within this block, an error of torch's about dtypes names the potential's, where it differs from ``value``'s."""
    try:
        yield
    except RuntimeError as error:
        for parameter in potential.parameters() if isinstance(potential, nn.Module) else ():
            if parameter.dtype != value.dtype and "dtype" in str(error):
                raise TypeError(
                    f"{where}: potential's parameters are {parameter.dtype}, {name} is {value.dtype}: convert one of "
                    f"them with .to(...) ({error})"
                ) from error
        raise


def _remedy(name: str, value: object) -> str:
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
        return ": of a DataLoader's batch give the part that holds the points, batch[0]"
    if isinstance(value, (list, tuple, np.ndarray)) or hasattr(value, "to_numpy"):
        return f": convert it with torch.as_tensor({name}, dtype=torch.float32)"
    return ""

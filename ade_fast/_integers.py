"""What counts as an integer, for the checks of arguments: each says in its own words what it wanted."""

from __future__ import annotations

import operator
from typing import Any


def as_integer(value: Any) -> int:
    """`value`, of any type that counts as an integer (numpy's too), as an int.

    Raises: TypeError if it is anything else, a truth value included.
    """
    if isinstance(value, bool):
        raise TypeError("a truth value is no integer")
    return operator.index(value)

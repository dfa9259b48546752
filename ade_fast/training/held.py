"""What dictionaries, lists and mappings hold, at a moment: whether it is still the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from .. import _C

Part = Mapping[str, object] | list[object]


class Held:
    """The objects in some parts of modules. By identity: == of tensors is another thing, and equal numbers need not be
    the same parameter.

    parts: each with the names of what does not matter in it; of a list none.
    """

    def __init__(self, parts: Iterable[tuple[Part, Set[str]]]) -> None:
        parts = list(parts)
        self._parts = tuple(part for part, _ in parts)
        self._passing = tuple(frozenset(passing) or None for _, passing in parts)
        self._values = tuple(_values(part, passing) for part, passing in parts)

    def is_there(self) -> bool:
        """Whether each part holds these very objects, in this order, and no others."""
        return _C.same_values(self._parts, self._passing, self._values)


def _values(part: Part, passing: Set[str]) -> tuple[object, ...]:
    if isinstance(part, list):
        return tuple(part)
    return tuple(value for name, value in part.items() if name not in passing)

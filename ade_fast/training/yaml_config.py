"""Configuration files in YAML, read as YAML 1.2 has it: ``3e-3`` is a number, ``on`` is a word.

PyYAML is optional (``pip install 'ade_fast[yaml]'``): whoever writes JSON, which is what runs write, does not need it.
"""

from __future__ import annotations

import re
from typing import Any

SUFFIXES = (".yaml", ".yml")

# PyYAML's own are those of YAML 1.1: there 3e-3 is a text, and on, off, yes and no are truth values.
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INT = re.compile(r"[-+]?[0-9]+")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")


def parse(text: str) -> Any:
    """The value of a YAML document, with plain Python types only.

    Raises:
        ModuleNotFoundError: PyYAML is not installed.
        ValueError: the text is not YAML, has a tag that is not plain data, or a key twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # as in PyYAML, where it belongs to the class

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise ValueError(f"it has the key {key!r} twice")
            return super().construct_mapping(node, deep)

        def construct_decimal(self, node: Any) -> int:
            return int(self.construct_scalar(node), 10)  # 010 is ten, not eight

    for tag, pattern, first in (
        ("bool", _BOOL, "tTfF"),
        ("null", _NULL, ["~", "n", "N", ""]),
        ("int", _INT, "-+0123456789"),
        ("float", _FLOAT, "-+.0123456789"),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern.pattern})$"), list(first))
    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_decimal)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error

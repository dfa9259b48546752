"""Results files: where they are, how they are named, read and written. Needs nothing but Python."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
SCHEMA = 1
"""Version of the results files. `read_results` refuses another one."""


def slug(results: Mapping[str, Any]) -> str:
    """The processor that `results` belong to, as part of a file's name: ``"amd-epyc-7763"``."""
    name = results["machine"].get("gpu", results["machine"]["cpu"])
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((R|TM)\)", "", name).lower()).strip("-")


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """All or nothing: a run that is cut short leaves what it wrote last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    fresh.replace(path)


def read_results(path: Path) -> dict[str, Any]:
    results = json.loads(path.read_text())
    if results.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema must be {SCHEMA}, got {results.get('schema')}: run it again")
    return results

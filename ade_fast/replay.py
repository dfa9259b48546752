"""A logged call of the dynamics, made again: ``python -m ade_fast.replay FILE`` (files: ADE_FAST_LOG=3).

Says whether the outputs are those that were logged, and how far outputs and gradients are from those of the general
path with every graph kept. The file holds pickled Python objects, which can run any code: replay no file that you do
not trust.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._log import GeneratorState
from .dynamics.base import Options


class ReplayError(RuntimeError):
    """The file cannot be replayed; the message says why, and what is missing."""


def read(
    file: str, potential: Callable[..., Tensor] | None = None
) -> tuple[dict[str, Any], Callable[..., Any], dict[str, Any]]:
    """The record, the function that was called, and its arguments; `potential` stands in for one that is missing."""
    try:
        record = torch.load(file, weights_only=False)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ReplayError(f"{file}: {error}") from None
    if not isinstance(record, dict) or "arguments" not in record:
        raise ReplayError(f"{file}: not a file of ADE_FAST_LOG=3")
    arguments, missing = {}, dict(record["left_out"])
    for name, stored in record["arguments"].items():
        try:
            arguments[name] = torch.load(io.BytesIO(stored), weights_only=False)
        except Exception as error:  # its class may not be importable here, or raise whatever it likes
            missing[name] = f"{type(error).__name__}: {error}"
    if potential is not None:
        arguments["potential"] = potential
        missing.pop("potential", None)
    if missing:
        name, why = next(iter(missing.items()))
        hint = "; give it by --potential MODULE:NAME" if name == "potential" else ""
        raise ReplayError(f"{file}: {name} could not be stored or read ({why}){hint}")
    module, _, function = record["run"].partition(":")
    return record, getattr(importlib.import_module(module), function), arguments


def replayed(
    record: dict[str, Any], run: Callable[..., Any], arguments: dict[str, Any]
) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """Outputs and gradients of one functional of them, by name: of arguments, of parameters and of what they hold."""
    torch.set_rng_state(record["random_state"])
    arguments = {k: v.generator() if isinstance(v, GeneratorState) else v for k, v in arguments.items()}
    wanted = {name: v for name, v in arguments.items() if isinstance(v, Tensor) and v.requires_grad}
    for name, value in arguments.items():
        if isinstance(value, nn.Module):
            wanted |= {f"{name}.{n}": p for n, p in value.named_parameters() if p.requires_grad}
    with torch.set_grad_enabled(record["grad"]):
        outputs = [t for t in run(**arguments)[0] if t is not None]
    generator = torch.Generator().manual_seed(0)
    total = sum(
        (t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in outputs if t.requires_grad
    )  # fmt: skip
    if not (isinstance(total, Tensor) and wanted):
        return outputs, {}
    return outputs, dict(zip(wanted, torch.autograd.grad(total, list(wanted.values()), allow_unused=True), strict=True))


def in_general(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same call without fused kernels, which do not see through a function, and with every graph kept."""
    module = arguments["potential"]
    changed = arguments | {"potential": _Plain(module) if isinstance(module, nn.Module) else module}
    if isinstance(arguments.get("options"), Options):
        changed["options"] = Options(**{**vars(arguments["options"]), "memory": "graph"})
    return changed


class _Plain(nn.Module):
    """f, hidden from who would recognise it; its parameters are where they were, one name deeper."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def _off(a: Tensor | None, b: Tensor | None) -> str:
    if a is None or b is None:
        return "both None" if a is b else "one is None"
    if torch.equal(a, b):
        return "equal to the last bit"
    return f"off by {(a - b).abs().max().item():.2e} of {b.abs().max().item():.2e}"


def report(file: str, potential: Callable[..., Tensor] | None = None) -> list[str]:
    """The lines that are printed."""
    record, run, arguments = read(file, potential)
    lines = [record["shown"], f"logged with torch {record['torch']}, replayed with {torch.__version__}"]
    outputs, gradients = replayed(record, run, arguments)
    logged = record["outputs"]
    if logged is None:
        lines.append("outputs: none were logged: the call raised, or its process ended")
    else:
        there = [t for t in logged if t is not None]
        lines += [
            f"output {i} against the log: {_off(a, b)}" for i, (a, b) in enumerate(zip(outputs, there, strict=True))
        ]
    plain, right = replayed(record, run, in_general(arguments))
    lines += [
        f"output {i} against the general path: {_off(a, b)}"
        for i, (a, b) in enumerate(zip(outputs, plain, strict=True))
    ]
    right = {name.replace("potential.module.", "potential.", 1): grad for name, grad in right.items()}
    return lines + [f"gradient of {name} against it: {_off(grad, right[name])}" for name, grad in gradients.items()]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ade_fast.replay", description=__doc__)
    parser.add_argument("file", help="of ADE_FAST_LOG=3; only one that you trust")
    parser.add_argument("--potential", metavar="MODULE:NAME", help="f, where the file has not got it")
    args = parser.parse_args(argv)
    sys.path.insert(0, os.getcwd())
    try:
        potential = None
        if args.potential:
            module, _, name = args.potential.partition(":")
            potential = getattr(importlib.import_module(module), name)
        print("\n".join(report(args.file, potential)))
    except (ReplayError, ImportError, AttributeError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The command line: ``ade-fast demo | train | sample | info``.

A user's mistake ends in one line on standard error and exit code 1 (2 for a malformed command line);
``--debug`` shows the traceback instead.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import _info
from .dynamics import NonFiniteError
from .training import checkpoint, config, divergence, loop, trained

DEMO_DIRECTORY = "demo"


class UserError(Exception):
    """A mistake in how a command was used."""


# What ends in one line. Anything else is a bug of ours and shows its traceback.
_MISTAKES = (
    UserError,
    ValueError,
    checkpoint.CheckpointError,
    divergence.DivergenceError,
    NonFiniteError,
    OSError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        print("ade-fast: interrupted; the last checkpoint is kept, --resume goes on from it", file=sys.stderr)
        return 130
    except _MISTAKES as error:
        if arguments.debug:
            raise
        hint = ""
        if (
            isinstance(error, OSError)
            and getattr(arguments, "out", None)
            and (arguments.out / loop.CHECKPOINT).exists()
        ):
            hint = "; the last checkpoint is whole, --resume goes on from it once this is mended"
        print(f"ade-fast {arguments.command}: {_one_line(error)}{hint}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ade-fast",
        description="Adversarial dynamics embedding: train energy-based models by their own sampler.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="train on two moons on the CPU and show the result (a few minutes)")
    demo.add_argument("--out", type=Path, default=Path(DEMO_DIRECTORY), help="directory to write (default: demo)")
    _add_run_arguments(demo)
    demo.set_defaults(run=_train)

    train = commands.add_parser("train", help="train a model, or go on training it")
    train.add_argument("--out", type=Path, required=True, help="directory to write")
    _add_run_arguments(train)
    train.set_defaults(run=_train)

    sample = commands.add_parser("sample", help="draw samples from a trained model")
    sample.add_argument("directory", type=Path, help="the --out of a run")
    sample.add_argument("--n", type=int, default=1000, help="number of samples (default: 1000)")
    sample.add_argument("--seed", type=int, default=0, help="seed of the samples (default: 0)")
    sample.add_argument("--out", type=Path, required=True, help=".npy file to write, float32 (n, *event)")
    sample.set_defaults(run=_sample)

    info = commands.add_parser("info", help="version, build, devices, and which fast paths are on")
    info.set_defaults(run=_show_info)

    for command in (demo, train, sample, info):
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="JSON file of settings; flags override it")
    parser.add_argument("--resume", action="store_true", help="go on from the directory's checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="begin anew where the directory holds a run")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    config.add_arguments(parser)


def _train(arguments: argparse.Namespace) -> None:
    given = config.read_config(arguments.config) if arguments.config is not None else {}
    given.update(config.given_settings(arguments))
    if arguments.resume and (arguments.out / loop.CONFIG).exists():
        settings = loop.resolve_resumed(arguments.out, given)
    else:
        settings = config.Config.from_dict(given)
    # The demo's own directory is made to be made again.
    overwrite = arguments.overwrite or (
        arguments.command == "demo" and not arguments.resume and arguments.out == Path(DEMO_DIRECTORY)
    )
    summary = loop.train(
        settings,
        arguments.out,
        resume=arguments.resume,
        overwrite=overwrite,
        progress=not arguments.no_progress,
    )
    print("\n".join(summary.lines(arguments.out, settings)))


def _sample(arguments: argparse.Namespace) -> None:
    if arguments.out.suffix != ".npy":
        raise UserError(f"--out must name a .npy file, got {arguments.out}")
    model = trained.load(arguments.directory)
    samples = model.sample(arguments.n, arguments.seed).numpy()
    buffer = io.BytesIO()
    np.save(buffer, samples)
    checkpoint.write_atomically(arguments.out, buffer.getvalue())
    print(f"{arguments.out}: float32 {samples.shape}, players of update {model.update}")


def _show_info(arguments: argparse.Namespace) -> None:
    print("\n".join(_info.lines()))


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())

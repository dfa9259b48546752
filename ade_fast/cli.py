"""The command line: ``ade-fast demo | train | evaluate | compare | sample | complete | reproduce | info | completion``.

A user's mistake ends in one line on standard error and exit code 1 (2 for a malformed command line);
``--debug`` shows the traceback instead.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from . import __version__, _info
from .dynamics import NonFiniteError
from .training import (
    checkpoint,
    comparison,
    config,
    divergence,
    evaluation,
    files,
    image_pictures,
    loop,
    memory,
    trained,
)
from .training.directory import COMPLETION

DEMO_DIRECTORY = "demo"
IMAGES = ("figure3", "figure4", "figure6", "figure7")
REPRODUCED = ("table2", "table3", "table5", "figure1", "figure2", "figure5", *IMAGES, "deviations")


class UserError(Exception):
    """A mistake in how a command was used."""


# What ends in one line, beside a lack of memory. Anything else is a bug of ours and shows its traceback.
_MISTAKES = (
    UserError,
    ValueError,
    checkpoint.CheckpointError,
    files.BusyError,
    divergence.DivergenceError,
    NonFiniteError,
    OSError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    _take_any_terminal()
    arguments = _parsed(argv)
    try:
        with _plain_warnings():
            arguments.run(arguments)
    except KeyboardInterrupt as interrupt:
        if argv is None:  # a process of ours, which only has to leave: a second one would tear that
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print(f"ade-fast {arguments.command}: interrupted{_kept(interrupt)}", file=sys.stderr)
        return 130
    except Exception as error:
        line = None if arguments.debug else _one_line(error)
        if line is None:
            raise
        line = line.removeprefix(f"{arguments.command}: ")
        print(f"ade-fast {arguments.command}: {line}{_kept(error)}", file=sys.stderr)
        return 1
    return 0


def _take_any_terminal() -> None:
    """A terminal's encoding may not have our letters, and its environment may ask for a notebook's pictures: neither is
    worth a run. (Pictures go to files alone.)"""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if "matplotlib" not in sys.modules:
        os.environ["MPLBACKEND"] = "agg"


def _one_line(error: Exception) -> str | None:
    """What a user is told of an error; None if it is not theirs to mend."""
    if memory.ran_out(error):
        return "there is not enough memory; lower the batch size, the number of samples, or the widths"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) if isinstance(error, _MISTAKES) else None


def _kept(error: BaseException) -> str:
    """How to go on, where a run was stopped that has a checkpoint."""
    kept = getattr(error, "kept", None)
    after = "" if isinstance(error, KeyboardInterrupt) else " once this is mended"
    return f"; {kept} is whole, --resume goes on from it{after}" if kept else ""


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one line each, without the line of our source that gave them."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"ade-fast: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


class _Parser(argparse.ArgumentParser):
    """One line for a malformed command line; flags in full only, lest ``--over`` cost a run."""

    def __init__(self, **options: Any) -> None:
        # A command's page begins with what the list of commands says of it.
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if wrong:
            close = difflib.get_close_matches(wrong[1], re.findall(r"[\w-]+", wrong[2]), 1)
            message += f"; did you mean {close[0]}?" if close else ""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser, commands = _parsers()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        command = commands[arguments.command]
        close = difflib.get_close_matches(unknown[0].partition("=")[0], command._option_string_actions, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        command.error(f"unknown argument {unknown[0]}{hint}")
    return arguments


_FIRST = """\
to begin with:
  ade-fast train --data table.csv --out runs/mine   # or a set by name: --data moons
  ade-fast evaluate runs/mine                       # its log-likelihood on held-out rows
  ade-fast sample runs/mine --n 1000 --exact resample --out samples.csv
"""
_TRAIN = """\
Trains a model, or goes on training it (--resume). Every setting has a default that suits tables and two-dimensional
sets; --data and --out are what a first run needs:
  ade-fast train --data table.csv --out runs/mine
The directory gets checkpoint.pt, config.json, metrics.csv, summary.json and pictures.
"""


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(
        prog="ade-fast",
        description="Adversarial dynamics embedding: train energy-based models by their own sampler.",
        epilog=_FIRST,
    )
    parser.add_argument("--version", action="version", version=f"ade-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, what: str, **options: Any) -> _Parser:
        options.setdefault("description", f"{what[0].upper()}{what[1:]}.")
        return commands.add_parser(name, help=what, **options)

    demo = command("demo", "train on two moons on the CPU and show the result (a few minutes)")
    demo.add_argument("--out", type=Path, default=Path(DEMO_DIRECTORY), help="directory to write (default: demo)")
    _add_run_arguments(demo)
    demo.set_defaults(run=_train)

    train = command(
        "train",
        "train a model, or go on training it",
        description=_TRAIN,
        usage="ade-fast train --out OUT [--data DATA] [--updates UPDATES] [--resume | --overwrite] [SETTING ...]",
    )
    train.add_argument("--out", type=Path, required=True, help="directory to write")
    _add_run_arguments(train)
    train.set_defaults(run=_train)

    evaluate = command("evaluate", "score a trained model: held-out likelihood, log Z, samples")
    evaluate.add_argument("directory", type=Path, help="the --out of a run, or a file of ade.save")
    evaluate.add_argument("--data", help="file of held-out rows (default: the run's own test rows, or a fresh draw)")
    evaluate.add_argument("--seed", type=config.flag_type(int), default=0, help="seed of the evaluation (default: 0)")
    evaluate.set_defaults(run=_evaluate)

    compare = command("compare", "finished runs beside each other: scores, and settings that differ")
    compare.add_argument("directories", type=Path, nargs="+", metavar="RUN", help="the --out of a run")
    compare.add_argument("--out", type=Path, help=".png file to write: scores over the updates, and at the end")
    compare.set_defaults(run=_compare)

    sample = command("sample", "draw samples from a trained model")
    sample.add_argument("directory", type=Path, help="the --out of a run, or a file of ade.save")
    sample.add_argument("--n", type=config.flag_type(int), default=1000, help="number of samples (default: 1000)")
    sample.add_argument("--seed", type=config.flag_type(int), default=0, help="seed of the samples (default: 0)")
    sample.add_argument(
        "--exact",
        choices=trained.EXACT,
        default="none",
        help="samples of p_f itself, by resampling or Metropolis-Hastings, instead of the sampler's (default: none)",
    )
    sample.add_argument("--out", type=Path, required=True, help=".npy file to write, float32 (n, *event), or .csv")
    sample.set_defaults(run=_sample)

    complete = command("complete", "complete the lower halves of test images by a model of images")
    complete.add_argument("directory", type=Path, help="the --out of a run on images")
    complete.add_argument("--n", type=config.flag_type(int), default=12, help="number of images (default: 12)")
    complete.add_argument("--runs", type=config.flag_type(int), default=20, help="runs of the dynamics (default: 20)")
    complete.add_argument("--seed", type=config.flag_type(int), default=0, help="seed of the noise (default: 0)")
    complete.add_argument("--out", type=Path, help=".png file to write (default: completion.png in the run)")
    complete.set_defaults(run=_complete)

    reproduce = command("reproduce", "make the paper's tables and figures again, beside its numbers")
    reproduce.add_argument("target", choices=REPRODUCED, help="which one; deviations: one change at a time")
    reproduce.add_argument("--out", type=Path, required=True, help="directory to write, or to go on with")
    reproduce.add_argument(
        "--seeds", type=config.flag_type(int), help="runs of each (default: table5 5, full table2 3, the others 1)"
    )
    reproduce.add_argument(
        "--budget", choices=("quick", "full"), default="quick", help="minutes a set, or hours (default: quick)"
    )
    reproduce.add_argument("--jobs", type=config.flag_type(int), help="runs side by side (default: all CPUs)")
    reproduce.add_argument("--only", help="a part: sets, or dimensions of table5, separated by commas")
    reproduce.add_argument("--no-progress", action="store_true", help="do not say what has ended")
    reproduce.set_defaults(run=_reproduce)

    info = command("info", "version, build, devices, and which fast paths are on")
    info.set_defaults(run=_show_info)

    completion = command("completion", "print a completion script for the shell")
    completion.add_argument(
        "shell",
        choices=("bash", "zsh", "tcsh"),
        help="which shell; bash: save it where "
        "bash-completion looks, ~/.local/share/bash-completion/completions/ade-fast",
    )
    completion.set_defaults(run=_completion)

    for parsed in commands.choices.values():
        parsed.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser, commands.choices


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="JSON or YAML file of settings; flags override it")
    parser.add_argument("--resume", action="store_true", help="go on from the directory's checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="begin anew where the directory holds a run")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    config.add_arguments(parser)


def _train(arguments: argparse.Namespace) -> None:
    given = config.read_config(arguments.config) if arguments.config is not None else {}
    given.update(config.given_settings(arguments))
    settings = loop.resolve_resumed(arguments.out, given) if arguments.resume else config.Config.with_recipe(given)
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
    if os.environ.get("RANK", "0") == "0":  # torchrun's, of several processes
        print("\n".join(summary.lines(arguments.out, settings)))


def _evaluate(arguments: argparse.Namespace) -> None:
    model = trained.load(arguments.directory)
    found, source = evaluation.evaluate_run(model, arguments.data, arguments.seed)
    print("\n".join(found.lines(arguments.data or model.config.data, source)))


def _compare(arguments: argparse.Namespace) -> None:
    if arguments.out is not None and arguments.out.suffix != ".png":
        raise UserError(f"--out must name a .png file, got {arguments.out}")
    runs = comparison.read_runs(arguments.directories)
    print("\n".join(comparison.table(runs)))
    if arguments.out is not None:
        from .training import plots  # here: no other command waits for matplotlib unless it draws

        plots.save_comparison(
            arguments.out,
            {run.name: run.history for run in runs},
            {run.name: (run.summary.get("nll"), run.summary.get("nll_standard_error")) for run in runs},
        )
        print(f"\n{arguments.out}: scores over the updates, and at the end")


def _completion(arguments: argparse.Namespace) -> None:
    try:
        import shtab
    except ModuleNotFoundError:
        raise UserError("completion needs shtab, which is not installed: pip install 'ade_fast[completion]'") from None
    print(shtab.complete(_parsers()[0], shell=arguments.shell))


def _sample(arguments: argparse.Namespace) -> None:
    if arguments.out.suffix not in (".npy", ".csv"):
        raise UserError(f"--out must name a .npy or a .csv file, got {arguments.out}")
    files.remove_leftovers(arguments.out.parent, arguments.out.name)
    model = trained.load(arguments.directory)
    samples = model.sample(arguments.n, arguments.seed, arguments.exact).numpy()
    buffer = io.BytesIO()
    if arguments.out.suffix == ".npy":
        np.save(buffer, samples)
    else:  # nine digits tell float32 numbers apart
        np.savetxt(buffer, samples.reshape(len(samples), -1), fmt="%.9g", delimiter=",")
    files.write_atomically(arguments.out, buffer.getvalue())
    exact = "" if arguments.exact == "none" else f", exact by {arguments.exact}"
    print(f"{arguments.out}: float32 {samples.shape}{exact}, players of update {model.update}")


def _complete(arguments: argparse.Namespace) -> None:
    out = arguments.directory / COMPLETION if arguments.out is None else arguments.out
    if out.suffix != ".png":
        raise UserError(f"--out must name a .png file, got {out}")
    model = trained.load(arguments.directory)
    if not model.config.of_images:
        raise UserError(f"the run in {arguments.directory} learned no images, but {model.config.data}")
    image_pictures.draw_completion(model, out, n=arguments.n, runs=arguments.runs, seed=arguments.seed)
    print(f"{out}: test images, their upper halves, and {arguments.runs} runs of the dynamics on the rest, three times")


def _reproduce(arguments: argparse.Namespace) -> None:
    from . import reproduce  # here: no other command waits for matplotlib and zuko unless it needs them

    report = reproduce.reproduce(
        arguments.target,
        arguments.out,
        seeds=arguments.seeds,
        budget=arguments.budget,
        jobs=arguments.jobs,
        only=() if arguments.only is None else arguments.only.split(","),
        progress=not arguments.no_progress,
    )
    print(f"{report}: written, with its pictures beside it")


def _show_info(arguments: argparse.Namespace) -> None:
    print("\n".join(_info.lines()))


if __name__ == "__main__":
    sys.exit(main())

"""The training loop: updates, validation, checkpoints with exact resume, metrics, pictures, and the summary."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..data import TOY_NAMES
from ..dynamics import NonFiniteError
from .build import OWN, Given, check_given
from .callbacks import Progress, as_hooks
from .checkpoint import load_checkpoint, save_checkpoint, serialized, understanding
from .checks import findings
from .config import GIVEN, Config, ConfigError, read_config
from .directory import (
    CHECKPOINT,
    CONFIG,
    CONVERGENCE,
    EVENTS,
    FIGURE,
    METRICS,
    SUMMARY,
    begin,
    clear,
    goes_on,
)
from .divergence import DivergenceError
from .files import locked, remove_leftovers, write_atomically
from .metrics_log import MetricsLog, check_tensorboard
from .pictures import draw_progress, draw_result
from .source import Source
from .summary import Summary, to_dict
from .team import Team, started_by_torchrun
from .trainer import Trainer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # in a notebook without ipywidgets tqdm says so, and shows its bar as text
    from tqdm.auto import tqdm

__all__ = ["CHECKPOINT", "CONFIG", "CONVERGENCE", "EVENTS", "FIGURE", "METRICS", "SUMMARY", "train"]

# Not part of what is learned, so free to change from one part of a run to the next; or, of `updates` and `patience`,
# what says how long it is. (The schedules of the rates are functions of update / updates.)
_FREE_SETTINGS = (
    "updates",
    "patience",
    "threads",
    "test_samples",
    "test_likelihood_samples",
    "test_permutations",
    "tensorboard",
    "diagnostics",
    "pictures_every",
)
# Where in the run the pictures of Figure 2 are taken, as fractions of all updates.
_SNAPSHOT_FRACTIONS = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)


def train(
    config: Config,
    directory: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    source: Source | None = None,
    given: Given = OWN,
    pictures: bool = True,
    callbacks: Iterable[Any] | Callable[[Progress], Any] = (),
    kept: bool = True,
) -> Summary:
    """Trains to ``config.updates``; leaves settings, metrics, checkpoint, pictures, summary in a directory.

    A run that is gone on with, finished or not, may have another number of updates than before. Rates and penalties
    then follow the schedule of the run of that length from the update where it stands: those of a finished run are at
    their end, and rise again to what they are at that fraction of the longer run.

    In several processes (torchrun, or a group of torch.distributed) that share each batch, the first of them writes,
    and decides when to end and what to keep; any may stop the run. Where there is such a group, every process of it has
    to make this call. To resume on several machines takes a directory that all of them see.

    Args:
        config: the settings.
        directory: made if missing (not with ``resume``).
        resume: go on from the directory's checkpoint, bit for bit; from the start if nothing was trained there yet.
        overwrite: begin anew even though the directory holds a run.
        progress: show a progress bar on standard error.
        source: what to learn from; None: by ``config.data``.
        given: players in the place of the settings' own; see `ade.fit`.
        pictures: whether to draw any.
        callbacks: what is called on the way; see `ade.Callback`.
        kept: whether the directory is one that its user keeps, and callbacks are to know of.

    Raises:
        ConfigError: the directory holds a run (with neither ``resume`` nor ``overwrite``), or one of other
            settings or of more updates, or files that are not a run's; the settings ask for more memory than there is.
        TypeError: a callback is none.
        CheckpointError: the checkpoint cannot be read.
        BusyError: another process is training in the directory.
        NonFiniteError, DivergenceError: training diverged; the last checkpoint is kept.
        OSError: a file could not be written; what was there is kept.
    """
    with started_by_torchrun(config.device), _threads(config.threads):
        team = Team.now()
        first = team.rank == 0
        with team.directory(Path(directory), resume) as own:
            return _train(
                config, own, resume=resume, overwrite=overwrite, progress=progress and first, source=source,
                given=given, pictures=pictures and first, hooks=as_hooks(callbacks), kept=kept,
            )  # fmt: skip


def _train(
    config: Config,
    directory: Path,
    *,
    resume: bool,
    overwrite: bool,
    progress: bool,
    source: Source | None,
    given: Given,
    pictures: bool,
    hooks: Callable[[str, Progress], None],
    kept: bool,
) -> Summary:
    """`train`, by this process, in its own directory."""
    tensorboard = check_tensorboard(config.tensorboard)
    # All that may be refused, or go wrong, comes before the directory is touched.
    resumed = goes_on(directory, resume=resume, overwrite=overwrite)
    trainer = Trainer(config, source, given)
    if not resumed:
        trainer.validate()
        trainer.seconds, trainer.phases = trainer.stopwatch.total, dict(trainer.stopwatch.seconds)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        if goes_on(directory, resume=resume, overwrite=overwrite) is not resumed:
            raise ConfigError(f"another run has begun in {directory} meanwhile; choose another --out")
        _take_over(trainer, directory, resumed)
        seen = Progress(trainer, directory if kept else None)
        with _run_is_kept(directory):
            hooks("on_begin", seen)
            with MetricsLog(directory, trainer.update, tensorboard) as log:
                _run(trainer, directory, log, progress, pictures, seen, hooks)
            seen.summary = _finish(trainer, directory, pictures)
            hooks("on_end", seen)
            return seen.summary


def resolve_resumed(directory: str | Path, given: dict[str, Any]) -> Config:
    """The settings of the run in ``directory``, if there is one; settings that are given again must agree with it.

    Raises:
        ConfigError: a setting differs from the run's.
        CheckpointError: there is nothing but a checkpoint, and it cannot be read.
    """
    directory = Path(directory)
    try:
        saved = Config.from_dict(read_config(directory / CONFIG))
    except ConfigError:  # lost, or damaged: the checkpoint has them too
        if not os.path.isfile(directory / CHECKPOINT):
            return Config.with_recipe(given)
        state = load_checkpoint(directory / CHECKPOINT)
        with understanding(directory / CHECKPOINT):
            saved = Config.from_dict(state["config"])
    wanted = Config.from_dict({**saved.to_dict(), **given})
    for name in _differing(saved, wanted):
        raise ConfigError(
            f"--resume: the run in {directory} has {name} {getattr(saved, name)!r}, got {getattr(wanted, name)!r}; "
            "leave the flag out, or train in another directory"
        )
    return wanted


def _differing(one: Config, other: Config) -> list[str]:
    """The settings in which two parts of one run must not differ, and these do."""
    names = [field.name for field in dataclasses.fields(Config) if field.name not in _FREE_SETTINGS]
    if not {one.data, other.data} & {*TOY_NAMES, GIVEN}:  # a file may have moved: its rows have to be the same
        names.remove("data")
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def _take_over(trainer: Trainer, directory: Path, resumed: bool) -> None:
    """Brings trainer and directory together: the checkpoint's state into the one, or the trainer's into the other."""
    checkpoint = directory / CHECKPOINT
    remove_leftovers(directory)
    config = (json.dumps(trainer.config.to_dict(), indent=2) + "\n").encode()
    if resumed:
        state = load_checkpoint(checkpoint)
        with understanding(checkpoint):
            saved, data, given = Config.from_dict(state["config"]), state["data"], state["given"]
        if data != trainer.source.fingerprint:
            raise ConfigError(
                f"--resume: the run in {directory} learned from other rows than {trainer.config.data} has now; restore "
                "them, or train in another directory"
            )
        check_given("fit", trainer.given, given, directory)
        if differing := _differing(saved, trainer.config):
            raise ConfigError(
                f"{checkpoint} belongs to a run with other settings than {CONFIG} or the flags say: "
                f"{', '.join(differing)} differ; leave the flags out, and undo changes of {CONFIG} (or delete it)"
            )
        with understanding(checkpoint):
            trainer.load_state_dict(state)
        _check_length(trainer, saved, directory)
        write_atomically(directory / CONFIG, config)
    else:
        begin(directory, serialized(trainer.state_dict()), config)
    if trainer.update == 0:
        clear(directory)


def _check_length(trainer: Trainer, saved: Config, directory: Path) -> None:
    """Refuses to go on to fewer updates than have been made, or to more where patience is at its end anyway."""
    updates, made = trainer.config.updates, trainer.update
    if updates < made:
        raise ConfigError(
            f"--resume: the run in {directory} has made {made} updates, got updates {updates}; a longer one, or no "
            "number at all, goes on"
        )
    if updates > saved.updates and trainer.done and trainer.best is not None:
        raise ConfigError(
            f"--resume: the run in {directory} stopped at update {made}, as its patience of {trainer.config.patience} "
            f"validations was at its end at update {trainer.best.update}; more updates need more patience, or 0"
        )


@contextmanager
def _run_is_kept(directory: Path) -> Iterator[None]:
    """Whatever stops the block: its error says what is kept, for the user or (``kept``) for the command line."""
    checkpoint = directory / CHECKPOINT
    try:
        yield
    except (NonFiniteError, DivergenceError) as error:
        kept = load_checkpoint(checkpoint)["update"]
        raise type(error)(
            f"{error}; {checkpoint} keeps update {kept}, from where --resume would only come here again: begin anew "
            "with --overwrite and other settings"
        ) from error
    except (OSError, MemoryError, RuntimeError, KeyboardInterrupt) as error:
        vars(error)["kept"] = checkpoint
        raise


def _run(
    trainer: Trainer,
    directory: Path,
    log: MetricsLog,
    progress: bool,
    pictures: bool,
    seen: Progress,
    hooks: Callable[[str, Progress], None],
) -> None:
    config, phase = trainer.config, trainer.stopwatch.phase
    started = time.perf_counter() - trainer.seconds
    snapshot_at = {round(fraction * config.updates) for fraction in _SNAPSHOT_FRACTIONS}
    if trainer.update == 0 and not trainer.snapshots:
        trainer.snapshot()
    bar = tqdm(
        total=config.updates,
        initial=trainer.update,
        desc="fit" if config.data == GIVEN else Path(config.data).name,
        unit=" updates",
        disable=not progress,
        dynamic_ncols=True,
        mininterval=0.1 if _is_watched() else 10,  # a log file wants few lines
    )
    with bar:
        last, calm = _decided(trainer, seen)
        while not last:
            row: dict[str, Any] = trainer.step()
            update = trainer.update
            seen.metrics = dict(row)
            hooks("on_update", seen)
            last, calm = _decided(trainer, seen)
            if validated := (last or update % trainer.validate_every == 0):
                trainer.validate()
                row |= {f"validation_{name}": value for name, value in trainer.history[-1].items() if name != "update"}
                hooks("on_validate", seen)
                last, calm = _decided(trainer, seen)
            if update in snapshot_at or last:
                trainer.snapshot()
            if config.pictures_every and update % config.pictures_every == 0 and pictures:
                with phase("pictures"):
                    draw_progress(trainer, directory)
            trainer.seconds, trainer.phases = time.perf_counter() - started, dict(trainer.stopwatch.seconds)
            if update % config.log_every == 0 or validated or trainer.diagnosed(update):
                log.write(_row(trainer, row))
                bar.set_postfix(_shown(trainer, row), refresh=False)
            bar.update()
            if (update % config.checkpoint_every == 0 and calm) or last:
                with phase("checkpoints"):
                    log.flush()
                    save_checkpoint(directory / CHECKPOINT, trainer.state_dict())
    trainer.seconds = time.perf_counter() - started


def _decided(trainer: Trainer, seen: Progress) -> tuple[bool, bool]:
    """Whether this was the last update, and whether the state is worth keeping: the same in all processes."""
    device = trainer.device
    stopped, done, calm = trainer.team.decided(seen.stopped, trainer.done, trainer.calm, device=device)
    return stopped or done, calm


def _finish(trainer: Trainer, directory: Path, pictures: bool) -> Summary:
    """Scores the chosen players on held-out data, keeps their log Z, and draws the pictures."""
    config, phase = trainer.config, trainer.stopwatch.phase
    started = time.perf_counter()
    with phase("test"):
        trainer.settle()
        trainer.calibrate()
        test = trainer.test()
        warnings = findings(trainer.model(), test.evaluation, test.data, trainer.generator("tail_mass"))
        save_checkpoint(directory / CHECKPOINT, trainer.state_dict())
    if pictures:
        with phase("pictures"):
            draw_result(trainer, test, directory)
    best = trainer.best
    assert best is not None  # the last update was validated
    score = next(entry for entry in trainer.history if entry["update"] == best.update)
    summary = Summary(
        data=config.data,
        seed=config.seed,
        updates=trainer.update,
        chosen_update=best.update,
        scale=best.scale,
        validation_nll=score.get("nll"),
        validation_mmd2=score.get("mmd2"),
        permutations=config.test_permutations,
        field=trainer.kernels["field"],
        plan=trainer.kernels["memory"],
        seconds=trainer.seconds + time.perf_counter() - started,
        milliseconds_per_update=1e3 * trainer.seconds / trainer.update if trainer.update else 0.0,
        time=dict(trainer.stopwatch.seconds),
        entropy=trainer.source.entropy,
        entropy_exact=trainer.source.entropy_exact,
        **{name: value for name, value in vars(test.evaluation).items() if name not in ("points", "warnings")},
        warnings=warnings,
    )
    write_atomically(directory / SUMMARY, (json.dumps(to_dict(summary), indent=2) + "\n").encode())
    return summary


def _is_watched() -> bool:
    """Whether the progress bar is on a terminal, or in a notebook, whose standard error is none."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _row(trainer: Trainer, metrics: dict[str, Any]) -> dict[str, Any]:
    return {"update": trainer.update, "seconds": round(trainer.seconds, 2), **metrics}


def _shown(trainer: Trainer, metrics: dict[str, float]) -> dict[str, str]:
    """The progress bar's figures: the last validation, and how far f tells data from samples."""
    shown = {
        "gap": f"{metrics['f_data'] - metrics['f_samples']:+.2f}",
        "entropy": f"{metrics['entropy']:.2f}",
    }
    scores = {"nll": "{:.3f}", "ess": "{:.2f}", "mmd2": "{:.1e}"}
    latest = trainer.history[-1] if trainer.history else {}
    return {**{name: form.format(latest[name]) for name, form in scores.items() if name in latest}, **shown}


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Runs the block with n CPU threads, or with torch's own choice where n is 0."""
    before = torch.get_num_threads()
    try:
        if n:
            torch.set_num_threads(n)
        yield
    finally:
        torch.set_num_threads(before)

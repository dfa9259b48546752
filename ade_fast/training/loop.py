"""The training loop: updates, validation, checkpoints with exact resume, metrics, pictures, and the summary."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..dynamics import NonFiniteError
from ..metrics import mmd2
from .checkpoint import load_checkpoint, remove_leftovers, save_checkpoint, write_atomically
from .config import Config, ConfigError, read_config
from .divergence import DivergenceError
from .metrics_log import EVENTS, METRICS, MetricsLog, check_tensorboard
from .summary import CHECKPOINT, CONVERGENCE, FIGURE, FINE, SUMMARY, Summary, to_dict
from .trainer import SNAPSHOT_POINTS, Trainer

CONFIG = "config.json"
PICTURE = "figure-{:07d}.png"
"""Name of the picture after so many updates."""

# Not part of what is computed, so free to change from one part of a run to the next.
_FREE_SETTINGS = ("threads", "test_permutations", "tensorboard", "pictures_every")
_NULL_QUANTILES = (50, 95, 99)
# Where in the run the pictures of Figure 2 are taken, as fractions of all updates.
_SNAPSHOT_FRACTIONS = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)


def train(
    config: Config,
    directory: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Summary:
    """Trains to ``config.updates``; leaves settings, metrics, checkpoint, pictures, summary in a directory.

    Args:
        config: the settings.
        directory: made if missing.
        resume: go on from the directory's checkpoint, bit for bit; from the start if there is none yet.
        overwrite: begin anew even though the directory holds a run.
        progress: show a progress bar on standard error.

    Raises:
        ConfigError: the directory holds a run (with neither ``resume`` nor ``overwrite``), or one of other
            settings.
        CheckpointError: the checkpoint cannot be read.
        NonFiniteError, DivergenceError: training diverged; the last checkpoint is kept.
        OSError: a file could not be written; what was there is kept.
    """
    directory = Path(directory)
    tensorboard = check_tensorboard(config.tensorboard)
    with _threads(config.threads):
        trainer = _open_run(config, directory, resume, overwrite)
        with MetricsLog(directory, trainer.update, tensorboard) as log:
            try:
                _run(trainer, directory, log, progress)
            except (NonFiniteError, DivergenceError) as error:
                kept = load_checkpoint(directory / CHECKPOINT)["update"]
                raise type(error)(f"{error}; {directory / CHECKPOINT} keeps update {kept}") from error
        return _finish(trainer, directory)


def resolve_resumed(directory: str | Path, given: dict[str, Any]) -> Config:
    """The configuration of the run in ``directory``; settings that are given again must agree with it.

    Raises:
        ConfigError: there is no run, or a setting differs from the run's.
    """
    saved = Config.from_dict(read_config(Path(directory) / CONFIG))
    wanted = Config.from_dict({**saved.to_dict(), **given})
    for name in given:
        old, new = getattr(saved, name), getattr(wanted, name)
        if old != new and name not in _FREE_SETTINGS:
            raise ConfigError(
                f"--resume: the run in {directory} has {name} {old!r}, got {new!r}; leave the flag out, or "
                "train in another directory"
            )
    return wanted


def _open_run(config: Config, directory: Path, resume: bool, overwrite: bool) -> Trainer:
    checkpoint = directory / CHECKPOINT
    if resume and overwrite:
        raise ConfigError("train: --resume and --overwrite exclude each other")
    if not resume and not overwrite and (checkpoint.exists() or (directory / CONFIG).exists()):
        raise ConfigError(
            f"train: {directory} holds a run already; go on with --resume, replace it with --overwrite, or "
            "choose another --out"
        )
    state = load_checkpoint(checkpoint) if resume and checkpoint.exists() else None
    trainer = Trainer(config)  # before the directory is made: it may refuse the settings
    directory.mkdir(parents=True, exist_ok=True)
    remove_leftovers(directory)
    if state is None:
        _remove_run(directory)
        trainer.validate()
        trainer.seconds, trainer.phases = trainer.stopwatch.total, dict(trainer.stopwatch.seconds)
    else:
        _check_same_run(config, Config.from_dict(state["config"]), checkpoint)
        trainer.load_state_dict(state)
    write_atomically(directory / CONFIG, (json.dumps(config.to_dict(), indent=2) + "\n").encode())
    if state is None:  # from here on there is always a checkpoint to go back to
        save_checkpoint(checkpoint, trainer.state_dict())
    return trainer


def _remove_run(directory: Path) -> None:
    """Deletes what an earlier run left, and nothing else."""
    events = directory / EVENTS
    pictures = directory.glob(PICTURE.replace("{:07d}", "[0-9]" * 7))
    for path in (*(directory / name for name in (CHECKPOINT, METRICS, SUMMARY, FIGURE, CONVERGENCE)), *pictures):
        path.unlink(missing_ok=True)
    for path in events.glob("events.out.tfevents.*"):
        path.unlink()
    if events.is_dir() and not any(events.iterdir()):
        events.rmdir()


def _check_same_run(config: Config, saved: Config, checkpoint: Path) -> None:
    wanted = config.to_dict()
    differing = [k for k, v in saved.to_dict().items() if wanted[k] != v and k not in _FREE_SETTINGS]
    if differing:
        raise ConfigError(f"train: {checkpoint} belongs to a run with other settings: {', '.join(differing)} differ")


def _run(trainer: Trainer, directory: Path, log: MetricsLog, progress: bool) -> None:
    config, phase = trainer.config, trainer.stopwatch.phase
    started = time.perf_counter() - trainer.seconds
    snapshot_at = {round(fraction * config.updates) for fraction in _SNAPSHOT_FRACTIONS}
    if trainer.update == 0 and not trainer.snapshots:
        trainer.snapshot()
    bar = tqdm(
        total=config.updates,
        initial=trainer.update,
        desc=config.data,
        unit=" updates",
        disable=not progress,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 10,  # a log file wants few lines
    )
    with bar:
        while trainer.update < config.updates:
            row: dict[str, Any] = trainer.step()
            update, last = trainer.update, trainer.update == config.updates
            if update % config.validate_every == 0 or last:
                row["validation_mmd2"] = trainer.validate()
            if update in snapshot_at:
                trainer.snapshot()
            if config.pictures_every and update % config.pictures_every == 0:
                with phase("pictures"):
                    _draw(trainer, directory / PICTURE.format(update))
            trainer.seconds, trainer.phases = time.perf_counter() - started, dict(trainer.stopwatch.seconds)
            if update % config.log_every == 0 or "validation_mmd2" in row:
                log.write(_row(trainer, row))
                bar.set_postfix(_shown(trainer, row), refresh=False)
            bar.update()
            if update % config.checkpoint_every == 0 or last:
                with phase("checkpoints"):
                    log.flush()
                    save_checkpoint(directory / CHECKPOINT, trainer.state_dict())


def _draw(trainer: Trainer, path: Path) -> None:
    """The picture of the averaged players as they are now."""
    from . import plots  # here, not above: `import ade_fast` is not to load matplotlib

    data, samples = trainer.preview()
    potential = trainer.potential_average.module
    plots.save_learned(path, data, samples, potential, title=f"{trainer.config.data}, update {trainer.update},")


def _finish(trainer: Trainer, directory: Path) -> Summary:
    """Scores the chosen players on held-out data and draws the pictures."""
    from . import plots

    test, data, samples = trainer.test()
    potential, sampler = trainer.chosen_players()
    config = trainer.config
    plots.save_learned(directory / FIGURE, data, samples, potential, title=config.data)
    plots.save_convergence(
        directory / CONVERGENCE,
        data,
        trainer.snapshots,
        plots.stages(potential, sampler, SNAPSHOT_POINTS, trainer._generator("test_samples")),
        trainer.history,
        trainer.best.update,
    )
    quantiles = torch.quantile(test.null, torch.tensor(_NULL_QUANTILES, dtype=test.null.dtype).to(test.null) / 100)
    summary = Summary(
        data=config.data,
        seed=config.seed,
        updates=trainer.update,
        chosen_update=trainer.best.update,
        validation_mmd2=trainer.best.mmd2,
        mmd2=test.mmd2,
        p_value=test.p,
        null_mmd2=dict(zip(map(str, _NULL_QUANTILES), quantiles.tolist(), strict=True)),
        permutations=config.test_permutations,
        mmd2_fine=float(mmd2(samples, data, bandwidth=FINE * torch.pdist(data.flatten(1)).median().item())),
        field=trainer.kernels["field"],
        plan=trainer.kernels["memory"],
        seconds=trainer.seconds,
        milliseconds_per_update=1e3 * trainer.seconds / trainer.update,
        time=trainer.phases,
    )
    write_atomically(directory / SUMMARY, (json.dumps(to_dict(summary), indent=2) + "\n").encode())
    return summary


def _row(trainer: Trainer, metrics: dict[str, Any]) -> dict[str, Any]:
    # Its sign is of no account: backwards in time with the momentum reversed is forwards.
    step_size = trainer.sampler.dynamics.step_size.detach().abs().mean().item()
    return {"update": trainer.update, "seconds": round(trainer.seconds, 2), "step_size": step_size, **metrics}


def _shown(trainer: Trainer, metrics: dict[str, float]) -> dict[str, str]:
    """The progress bar's figures: the last validation, and how far f tells data from samples."""
    shown = {
        "gap": f"{metrics['f_data'] - metrics['f_samples']:+.2f}",
        "entropy": f"{metrics['entropy']:.2f}",
    }
    return {"mmd2": f"{trainer.history[-1][1]:.1e}", **shown} if trainer.history else shown


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

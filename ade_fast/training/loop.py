"""The training loop: updates, validation, averages, checkpoints with exact resume, metrics and pictures."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..metrics import mmd2, mmd_test
from .build import build_data, build_objective, build_players
from .checkpoint import CheckpointError, load_checkpoint, remove_leftovers, save_checkpoint, write_atomically
from .config import Config, ConfigError, read_config
from .ema import EMA

CHECKPOINT, CONFIG, METRICS, SUMMARY = "checkpoint.pt", "config.json", "metrics.csv", "summary.json"
FIGURE, CONVERGENCE = "figure.png", "convergence.png"

# One stream of random numbers for each purpose: how often one is used never shifts another.
_STREAMS = (
    "data",
    "samples",
    "validation_data",
    "validation_samples",
    "test_data",
    "test_samples",
    "permutations",
)
_STEP_METRICS = (
    "loss",
    "f_data",
    "f_samples",
    "kinetic",
    "entropy",
    "penalty",
    "potential_grad_norm",
    "sampler_grad_norm",
)
_COLUMNS = ("update", "seconds", *_STEP_METRICS, "step_size", "validation_mmd2")
_SNAPSHOT_POINTS = 1000
# Where in the run the pictures of Figure 2 are taken, as fractions of all updates.
_SNAPSHOT_FRACTIONS = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass
class Best:
    """The averaged players that did best on the validation draw."""

    update: int
    mmd2: float
    potential: dict[str, Tensor]
    sampler: dict[str, Tensor]


@dataclass(frozen=True)
class Summary:
    """What a finished run found. MMD^2 and p are of the chosen players on held-out data never seen before.

    mmd2, p_value: of ``test_samples`` samples against as many held-out points, and its permutation test.
    chosen_update: the update whose averaged players did best on the validation draw, at validation_mmd2.
    seconds: of training, validation included; milliseconds_per_update is their mean.
    """

    data: str
    seed: int
    updates: int
    chosen_update: int
    validation_mmd2: float
    mmd2: float
    p_value: float
    seconds: float
    milliseconds_per_update: float

    def lines(self, directory: Path) -> list[str]:
        """The summary as text."""
        verdict = "not rejected at 5 %" if self.p_value >= 0.05 else "rejected at 5 %"
        return [
            f"data {self.data}, seed {self.seed}: {self.updates} updates in {self.seconds:.0f} s "
            f"({self.milliseconds_per_update:.1f} ms per update)",
            f"chosen on a validation draw: update {self.chosen_update}, MMD^2 {self.validation_mmd2 * 1e3:.2f}e-3",
            f"held-out test: MMD^2 {self.mmd2 * 1e3:.2f}e-3, permutation p = {self.p_value:.3f} ({verdict})",
            f"pictures: {directory / FIGURE}, {directory / CONVERGENCE}",
            f"checkpoint: {directory / CHECKPOINT}",
        ]


class Trainer:
    """A run in memory: both players, their optimizers and averages, random states, the best players so far.

    ``state_dict`` holds all of it; a trainer that loads it continues bit for bit (on the CPU).

    Args:
        config: the settings.
    """

    def __init__(self, config: Config):
        self.config = config
        self.data = build_data(config)
        self.potential, self.sampler = build_players(config)
        self.ade = build_objective(config, self.potential, self.sampler)
        self.potential_average = EMA(self.potential, config.ema_decay)
        self.sampler_average = EMA(self.sampler, config.ema_decay)
        self.device = torch.device(config.device)
        seeds = torch.randint(2**62, (len(_STREAMS),), generator=torch.Generator().manual_seed(config.seed)).tolist()
        self._seeds = dict(zip(_STREAMS, seeds, strict=True))
        # CPU generators on every device: the random numbers do not depend on where the run is.
        self._generators = {name: self._generator(name) for name in ("data", "samples")}
        self._validation_data = self._draw_data(config.validation_samples, self._generator("validation_data"))
        # The median heuristic on the data alone: one kernel for all validations, and no sorting in each.
        self._bandwidth = torch.pdist(self._validation_data.flatten(1)).median().item()
        self.update = 0
        self.seconds = 0.0
        self.best: Best | None = None
        self.history: list[tuple[int, float]] = []  # (update, validation MMD^2) of the averaged players
        self.snapshots: list[tuple[int, Tensor]] = []

    def step(self) -> dict[str, float]:
        """One update of f and ``sampler_steps`` of the sampler, and of the averages; returns the metrics."""
        self._set_schedule()
        data = self._draw_data(self.config.batch_size, self._generators["data"])
        metrics = self.ade.step(data, generator=self._generators["samples"])
        self.potential_average.update(self.potential)
        self.sampler_average.update(self.sampler)
        self.update += 1
        return metrics

    def validate(self) -> float:
        """MMD^2 of the averaged players to the validation draw; keeps them when none before did better.

        MMD^2 between two draws of n points from one distribution scatters by about 1/n: scores that differ by less than
        half of that are ties, and the later players win them (they have seen more data, and are visibly sharper).
        """
        potential, sampler = self.potential_average.module, self.sampler_average.module
        samples = self._draw_samples(potential, sampler, self.config.validation_samples, "validation_samples")
        if not bool(torch.isfinite(samples).all()):
            score = math.inf
        else:
            score = float(mmd2(samples, self._validation_data, bandwidth=self._bandwidth))
        self.history.append((self.update, score))
        if score <= min(s for _, s in self.history) + 0.5 / self.config.validation_samples:
            self.best = Best(
                self.update,
                score,
                copy.deepcopy(potential.state_dict()),
                copy.deepcopy(sampler.state_dict()),
            )
        return score

    def snapshot(self) -> None:
        """Keeps samples of the averaged players as they are now, for the convergence picture."""
        potential, sampler = self.potential_average.module, self.sampler_average.module
        samples = self._draw_samples(potential, sampler, _SNAPSHOT_POINTS, "validation_samples")
        self.snapshots.append((self.update, samples.cpu()))

    def chosen_players(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        """Potential and sampler chosen on the validation draw, as new modules in evaluation mode."""
        if self.best is None:
            raise RuntimeError("Trainer: no players chosen yet; call validate() first")
        potential, sampler = build_players(self.config)
        potential.load_state_dict(self.best.potential)
        sampler.load_state_dict(self.best.sampler)
        return potential.eval().requires_grad_(False), sampler.eval().requires_grad_(False)

    def test(self) -> tuple[float, float, Tensor, Tensor]:
        """MMD^2 and p-value of the chosen players on held-out data; also the data and the samples used."""
        potential, sampler = self.chosen_players()
        n = self.config.test_samples
        data = self._draw_data(n, self._generator("test_data"))
        samples = self._draw_samples(potential, sampler, n, "test_samples")
        result = mmd_test(samples, data, self.config.test_permutations, generator=self._generator("permutations"))
        return result.mmd2, result.p, data, samples

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as tensors and plain values."""
        return {
            "config": self.config.to_dict(),
            "update": self.update,
            "seconds": self.seconds,
            "potential": self.potential.state_dict(),
            "sampler": self.sampler.state_dict(),
            "potential_optimizer": _optimizer_state(self.ade.potential_optimizer),
            "sampler_optimizer": _optimizer_state(self.ade.sampler_optimizer),
            "potential_average": self.potential_average.state_dict(),
            "sampler_average": self.sampler_average.state_dict(),
            "generators": {name: generator.get_state() for name, generator in self._generators.items()},
            "best": None if self.best is None else asdict(self.best),
            "history": self.history,
            "snapshots": self.snapshots,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the state of another trainer with the same configuration."""
        self.potential.load_state_dict(state["potential"])
        self.sampler.load_state_dict(state["sampler"])
        for name in ("potential_optimizer", "sampler_optimizer"):
            optimizer = getattr(self.ade, name)
            if optimizer is not None:
                optimizer.load_state_dict(state[name])
        self.potential_average.load_state_dict(state["potential_average"])
        self.sampler_average.load_state_dict(state["sampler_average"])
        for name, generator in self._generators.items():
            generator.set_state(state["generators"][name])
        self.update = state["update"]
        self.seconds = state["seconds"]
        self.best = None if state["best"] is None else Best(**state["best"])
        self.history = [tuple(entry) for entry in state["history"]]
        self.snapshots = [tuple(entry) for entry in state["snapshots"]]

    def _generator(self, stream: str) -> torch.Generator:
        return torch.Generator().manual_seed(self._seeds[stream])

    def _draw_data(self, n: int, generator: torch.Generator) -> Tensor:
        return self.data.sample(n, generator).to(self.device)

    def _draw_samples(self, potential, sampler, n: int, stream: str) -> Tensor:
        with torch.no_grad():
            return sampler.sample(potential, n, self._generator(stream)).x

    def _set_schedule(self) -> None:
        """Rates and penalties: constant at first, then a half cosine down; functions of the update alone."""
        config = self.config
        decayed = self._decayed_fraction()

        def scheduled(value: float, decay_to: float) -> float:
            return value * (1 - (1 - decay_to) * decayed)

        for optimizer, rate in (
            (self.ade.potential_optimizer, config.potential_lr),
            (self.ade.sampler_optimizer, config.sampler_lr),
        ):
            for group in optimizer.param_groups if optimizer is not None else ():
                group["lr"] = scheduled(rate, config.lr_decay_to)
        self.ade.gradient_penalty = scheduled(config.gradient_penalty, config.penalty_decay_to)
        self.ade.value_penalty = scheduled(config.value_penalty, config.penalty_decay_to)

    def _decayed_fraction(self) -> float:
        """0 until ``lr_decay_from``, then half a cosine up to 1 at the end of the run."""
        start, progress = self.config.lr_decay_from, self.update / self.config.updates
        if progress <= start:
            return 0.0
        return 0.5 * (1 - math.cos(math.pi * min((progress - start) / (1 - start), 1.0)))


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
        NonFiniteError: training diverged; the last checkpoint is kept.
    """
    directory = Path(directory)
    trainer = _open_run(config, directory, resume, overwrite)
    with _threads(config.threads):
        _run(trainer, directory, progress)
        return _finish(trainer, directory)


def resolve_resumed(directory: str | Path, given: dict[str, Any]) -> Config:
    """The configuration of the run in ``directory``; settings that are given again must agree with it.

    Raises:
        ConfigError: there is no run, or a setting differs from the run's.
    """
    saved = Config.from_dict(read_config(Path(directory) / CONFIG))
    # Not part of what is computed, so free to change from one part of a run to the next.
    free = ("threads", "test_permutations")
    wanted = Config.from_dict({**saved.to_dict(), **given})
    for name in given:
        old, new = getattr(saved, name), getattr(wanted, name)
        if old != new and name not in free:
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
        for name in (CHECKPOINT, METRICS, SUMMARY, FIGURE, CONVERGENCE):
            (directory / name).unlink(missing_ok=True)
        trainer.validate()
    else:
        _check_same_run(config, Config.from_dict(state["config"]), checkpoint)
        trainer.load_state_dict(state)
    write_atomically(directory / CONFIG, (json.dumps(config.to_dict(), indent=2) + "\n").encode())
    _start_metrics(directory / METRICS, trainer.update)
    return trainer


def _check_same_run(config: Config, saved: Config, checkpoint: Path) -> None:
    ignored = ("threads", "test_permutations")
    differing = [k for k, v in saved.to_dict().items() if config.to_dict()[k] != v and k not in ignored]
    if differing:
        raise ConfigError(f"train: {checkpoint} belongs to a run with other settings: {', '.join(differing)} differ")


def _run(trainer: Trainer, directory: Path, progress: bool) -> None:
    config = trainer.config
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
    with bar, open(directory / METRICS, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        started = time.perf_counter() - trainer.seconds
        while trainer.update < config.updates:
            row: dict[str, Any] = trainer.step()
            last = trainer.update == config.updates
            if trainer.update % config.validate_every == 0 or last:
                row["validation_mmd2"] = trainer.validate()
            if trainer.update in snapshot_at:
                trainer.snapshot()
            trainer.seconds = time.perf_counter() - started
            if trainer.update % config.log_every == 0 or "validation_mmd2" in row:
                writer.writerow(_row(trainer, row))
                bar.set_postfix(_shown(trainer, row), refresh=False)
            bar.update()
            if trainer.update % config.checkpoint_every == 0 or last:
                file.flush()
                save_checkpoint(directory / CHECKPOINT, trainer.state_dict())


def _finish(trainer: Trainer, directory: Path) -> Summary:
    """Scores the chosen players on held-out data and draws the pictures."""
    from . import plots  # here, not above: `import ade_fast` is not to load matplotlib

    score, p, data, samples = trainer.test()
    potential, sampler = trainer.chosen_players()
    config = trainer.config
    plots.save_learned(directory / FIGURE, data, samples, potential, title=config.data)
    plots.save_convergence(
        directory / CONVERGENCE,
        data,
        trainer.snapshots,
        plots.stages(potential, sampler, _SNAPSHOT_POINTS, trainer._generator("test_samples")),
        trainer.history,
        trainer.best.update,
    )
    summary = Summary(
        data=config.data,
        seed=config.seed,
        updates=trainer.update,
        chosen_update=trainer.best.update,
        validation_mmd2=trainer.best.mmd2,
        mmd2=score,
        p_value=p,
        seconds=trainer.seconds,
        milliseconds_per_update=1e3 * trainer.seconds / trainer.update,
    )
    write_atomically(directory / SUMMARY, (json.dumps(asdict(summary), indent=2) + "\n").encode())
    return summary


def _row(trainer: Trainer, metrics: dict[str, Any]) -> dict[str, Any]:
    # Its sign is of no account: backwards in time with the momentum reversed is forwards.
    step_size = trainer.sampler.dynamics.step_size.detach().abs().mean().item()
    row = {
        "update": trainer.update,
        "seconds": f"{trainer.seconds:.2f}",
        "step_size": step_size,
        **metrics,
    }
    return {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}


def _shown(trainer: Trainer, metrics: dict[str, float]) -> dict[str, str]:
    """The progress bar's figures: the last validation, and how far f tells data from samples."""
    shown = {
        "gap": f"{metrics['f_data'] - metrics['f_samples']:+.2f}",
        "entropy": f"{metrics['entropy']:.2f}",
    }
    return {"mmd2": f"{trainer.history[-1][1]:.1e}", **shown} if trainer.history else shown


def _start_metrics(path: Path, update: int) -> None:
    """Leaves metrics.csv with its header and the rows up to ``update``: later rows will be written again."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, _COLUMNS, extrasaction="ignore")
    writer.writeheader()
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            writer.writerows(row for row in csv.DictReader(file) if _is_row_until(row, update))
    write_atomically(path, buffer.getvalue().encode())


def _is_row_until(row: dict[str, str | None], update: int) -> bool:
    """Whether a row is whole (a killed run may have left half of one) and not past ``update``."""
    return (
        all(row.get(key) is not None for key in _COLUMNS) and row["update"].isdigit() and int(row["update"]) <= update
    )


def _optimizer_state(optimizer: torch.optim.Optimizer | None) -> dict[str, Any] | None:
    return None if optimizer is None else optimizer.state_dict()


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


__all__ = ["CheckpointError", "Summary", "Trainer", "resolve_resumed", "train"]

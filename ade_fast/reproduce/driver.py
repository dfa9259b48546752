"""Makes the runs of a table or figure, several side by side, keeps each row as it comes, and writes the report."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from ..training._arguments import integer
from ..training.files import write_atomically
from . import deviations, figures, flow, gaussians, images, scoring, table2, table3, table5, trainings
from .jobs import Job, Row, finished, keep, opened
from .targets import Options, Target, named

TARGETS: dict[str, Target] = {
    "table2": table2.TARGET,
    "table3": table3.TARGET,
    "table5": table5.TARGET,
    "figure1": figures.FIGURE1,
    "figure2": figures.FIGURE2,
    "figure5": figures.FIGURE5,
    "figure3": images.FIGURE3,
    "figure4": images.FIGURE4,
    "figure6": images.FIGURE6,
    "figure7": images.FIGURE7,
    "deviations": deviations.TARGET,
}
BUDGETS = ("quick", "full")
KINDS = {
    "training": trainings.row,
    "flow": flow.row,
    "null": scoring.null_row,
    "gaussian": gaussians.row,
    "images": images.row,
    "inception": table3.row,
}
"""What makes the row of a job: (arguments, directory, stem of its files) -> row."""
REPORT = "{}.md"
# What part of all costs tells how long the rest takes: before, it is the processes' own start that is seen.
_TELLING = 0.03


def reproduce(
    target: str,
    directory: str | Path,
    *,
    seeds: int | None = None,
    budget: str = "quick",
    jobs: int | None = None,
    only: Sequence[str] = (),
    progress: bool = True,
) -> Path:
    """Makes what is missing of a table or figure; returns the path of its report.

    Every row is in the directory as soon as its run has ended, and a training's checkpoints on the way: a call that was
    killed is made again, and goes on where it was. Tables and figures share a directory, and the runs they have in
    common.

    Args:
        target: a key of `TARGETS`.
        directory: made if missing.
        seeds: how many runs of each, from seed 0 on; None: as the target has it.
        budget: "quick" or "full".
        jobs: runs side by side, each on one thread; None: as many as there are CPUs.
        only: a part of the target's names: sets, or dimensions.
        progress: say on standard error what has ended, and about how long the rest takes.

    Raises:
        ValueError: a name or a number that cannot be meant; DirectoryError: the directory is not ours, or damaged.
        OSError: a file could not be written; rows that were kept before stay.
    """
    if target not in TARGETS:
        raise ValueError(f"reproduce: target must be one of {', '.join(TARGETS)}, got {target!r}")
    if budget not in BUDGETS:
        raise ValueError(f"reproduce: budget must be one of {', '.join(BUDGETS)}, got {budget!r}")
    chosen = TARGETS[target]
    for name in only:
        if name not in chosen.names:
            raise ValueError(f"reproduce: only must be of {', '.join(chosen.names)}, got {name!r}")
    seeds = chosen.seeds[budget] if seeds is None else integer("reproduce", "seeds", seeds, low=1, high=1000)
    cores = len(os.sched_getaffinity(0))
    jobs = cores if jobs is None else integer("reproduce", "jobs", jobs, low=1, high=1000)
    options = Options(seeds, budget, tuple(name for name in chosen.names if name in only) or _default(chosen))
    directory = Path(directory)
    wanted = chosen.jobs(options)  # before anything is written: data may be missing
    with opened(directory), _going_on():
        rows = finished(directory, wanted)
        report = _Report(target, chosen, options, directory, rows, len(wanted))
        report.write()
        todo = [job for job in wanted if job.file not in rows]
        say = _Progress(todo, len(wanted), jobs, enabled=progress)
        for job, row in _made(todo, directory, jobs):
            rows[job.file] = row
            report.write()
            say.ended(job, row)
        report.finish()
    return report.path


def _default(target: Target) -> tuple[str, ...]:
    return target.names if target.default is None else target.default


@contextmanager
def _going_on() -> Iterator[None]:
    """What stops the block was not of one training: the same call goes on with all."""
    try:
        yield
    except BaseException as error:
        vars(error)["kept"] = None
        raise


class _Report:
    """The Markdown beside the rows, whole after each of them."""

    def __init__(self, name: str, target: Target, options: Options, directory: Path, rows: dict[str, Row], count: int):
        self.path = directory / REPORT.format(name)
        self._name, self._target, self._options = name, target, options
        self._directory, self._rows, self._count = directory, rows, count

    def write(self, pictures: dict[str, str] | None = None) -> None:
        options, rows = self._options, self._rows
        missing = self._count - len(rows)
        part = "" if options.only == _default(self._target) else f" --only {','.join(options.only)}"
        command = f"ade-fast reproduce {self._name} --seeds {options.seeds} --budget {options.budget}{part}"
        lines = [
            f"# {self._target.title}",
            "",
            *([f"**Partial: {missing} of {self._count} runs are missing.**", ""] if missing else []),
            *self._target.lines(options, rows),
            "",
            f"`{command}`; {self._count - missing} runs, "
            f"{sum(row['cpu_seconds'] for row in rows.values()) / 60:.1f} minutes of one CPU. " + " ".join(named(rows)),
        ]
        for file, caption in (pictures or {}).items():
            lines += ["", f"![{caption}]({file})", "", caption]
        write_atomically(self.path, ("\n".join(lines) + "\n").encode())

    def finish(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of models that are opened again: their rows have what was said
            self.write(self._target.draw(self._options, self._directory, self._rows))


class _Progress:
    """One line a run, with the time left by what the runs so far took for their cost."""

    def __init__(self, todo: Sequence[Job], count: int, jobs: int, *, enabled: bool):
        self._left, self._done = sum(job.cost for job in todo), 0.0
        self._ended, self._count, self._enabled = count - len(todo), count, enabled
        self._started = time.perf_counter()
        if enabled:
            self._say(f"{len(todo)} of {count} runs to make, {min(jobs, max(len(todo), 1))} side by side")

    def ended(self, job: Job, row: Row) -> None:
        self._left, self._done, self._ended = self._left - job.cost, self._done + job.cost, self._ended + 1
        if not self._enabled:
            return
        known = self._done >= _TELLING * (self._done + self._left)
        left = _duration((time.perf_counter() - self._started) * self._left / self._done)
        what = "diverged" if "diverged" in row else f"{row['seconds']:.0f} s"
        so_far = f"{self._ended} of {self._count} runs" + (f", about {left} left" if known else "")
        self._say(f"{so_far}; {', '.join(job.name)}: {what}")

    def _say(self, text: str) -> None:
        print(f"ade-fast reproduce: {text}", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _made(todo: Sequence[Job], directory: Path, jobs: int) -> Iterator[tuple[Job, Row]]:
    """Each job with its row, in the order in which they end; in this process where one runs at a time."""
    if min(jobs, len(todo)) <= 1:
        for job in todo:
            yield job, _run(job, directory)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with _one_thread_each(), _pool(context, min(jobs, len(todo))) as pool:
        running = {pool.submit(_run, job, directory): job for job in todo}
        for done in concurrent.futures.as_completed(running):
            try:
                row = done.result()
            except BrokenProcessPool:
                raise ChildProcessError(
                    "a run's process was ended from outside (for want of memory?); fewer --jobs need less; the same "
                    "command goes on"
                ) from None
            yield running[done], row


def _run(job: Job, directory: Path) -> Row:
    started, busy, threads = time.perf_counter(), time.process_time(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            row = KINDS[job.kind](job.identity["arguments"], directory, job.file)
    finally:
        torch.set_num_threads(threads)
    said = sorted({" ".join(str(warning.message).split()) for warning in caught})
    seconds = {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - busy, 1),  # what it takes where nothing else runs
    }
    return keep(directory, job, {**row, "warnings": said, **seconds})


@contextmanager
def _pool(context: Any, count: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Processes that leave at once when the block is left by an error, or when this process is gone."""
    stop = context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(count, context, initializer=_watch_parent, initargs=(stop,))
    try:
        yield pool
    except BaseException:
        stop.set()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _watch_parent(stop: Event) -> None:
    """Ctrl-C is the parent's to hear; what a process was writing is whole without it (`files.write_atomically`)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        while not stop.wait(0.5) and parent is not None and parent.is_alive():
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """The processes to come begin with one thread: they see the environment before torch."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before

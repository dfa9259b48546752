"""A run in several processes, as torchrun starts them: who there is, and where each of them writes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from .config import Config, ConfigError
from .directory import CHECKPOINT, CONFIG


@dataclass(frozen=True)
class Team:
    """The processes of torch.distributed's default group, or this one alone."""

    rank: int = 0
    count: int = 1

    @classmethod
    def now(cls) -> Team:
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def check(self, config: Config) -> None:
        """Raises ConfigError where these processes cannot share the run."""
        if self.count == 1:
            return
        if config.objective != "ade":
            raise ConfigError(f"objective {config.objective!r} is trained by one process, got {self.count}")
        if config.batch_size % self.count:
            raise ConfigError(
                f"batch_size must be a multiple of the {self.count} processes, which share it, got {config.batch_size}"
            )

    def purpose(self, name: str) -> str:
        """The name of this process's own stream of random numbers; the first has a lone one's."""
        return name if self.rank == 0 else f"{name}, process {self.rank}"

    def decided(self, stopped: bool, *others: bool, device: torch.device) -> list[bool]:
        """Whether any process has `stopped`, and what the first one says of all else. A call of all ranks: where one
        went on, or kept a checkpoint, and another did not, they would wait for each other for good."""
        if self.count == 1:
            return [stopped, *others]
        said = torch.tensor(
            [stopped, *(self.rank == 0 and other for other in others)], dtype=torch.int32, device=device
        )
        distributed.all_reduce(said, distributed.ReduceOp.MAX)
        return [bool(value) for value in said.tolist()]

    def gathered(self, states: Mapping[str, Any]) -> Any:
        """What the checkpoint keeps of all processes' random states: a list of them, by rank. A call of all ranks."""
        if self.count == 1:
            return dict(states)
        everyones: list[Any] = [None] * self.count
        distributed.all_gather_object(everyones, dict(states))
        return everyones

    def own(self, states: Any) -> Mapping[str, Any]:
        """This process's part of what `gathered` made.

        Raises: ConfigError: there were others.
        """
        there = len(states) if isinstance(states, list) else 1
        if there != self.count:
            raise ConfigError(f"--resume: the run was trained by {there} process(es), got {self.count}: start as many")
        return states[self.rank] if isinstance(states, list) else states

    @contextmanager
    def directory(self, wanted: Path, resume: bool) -> Iterator[Path]:
        """Where this process writes: the first where it is wanted, the others where nobody looks, beginning with
        copies of what a run is resumed from. All leave when the first one has written everything.

        Raises: ConfigError: not all processes see what a run is resumed from.
        """
        if self.count == 1:
            yield wanted
            return
        if resume:
            self._see_alike([name for name in (CHECKPOINT, CONFIG) if (wanted / name).exists()], wanted)
        if self.rank == 0:
            distributed.barrier()
            yield wanted
        else:
            with tempfile.TemporaryDirectory(prefix="ade_fast_rank_") as folder:
                own = Path(folder) / "run"
                if resume and wanted.exists():
                    own.mkdir()
                    for name in (CHECKPOINT, CONFIG):
                        if (wanted / name).exists():
                            shutil.copyfile(wanted / name, own / name)
                distributed.barrier()
                yield own
        distributed.barrier()

    def _see_alike(self, names: list[str], wanted: Path) -> None:
        everyones: list[Any] = [None] * self.count
        distributed.all_gather_object(everyones, names)
        for rank, seen in enumerate(everyones):
            if seen != everyones[0]:
                there, here = (" and ".join(of) or "nothing" for of in (everyones[0], seen))
                raise ConfigError(
                    f"--resume: process 0 sees {there} in {wanted}, process {rank} sees {here}: processes on several "
                    "machines resume from a directory that all of them share"
                )


@contextmanager
def started_by_torchrun(device: str) -> Iterator[None]:
    """Joins the processes that torchrun started, if it did and nobody has yet; each takes its own GPU."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "TORCHELASTIC_RUN_ID" in os.environ
    if not several or distributed.is_initialized():
        yield
        return
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # A restart finds the store of the processes before it, with the addresses that those had.
    store, rank, count = next(distributed.rendezvous("env://"))  # type: ignore[attr-defined]
    start = f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    store = distributed.PrefixStore(start, store)  # type: ignore[attr-defined]
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count)
    try:
        yield
    finally:
        distributed.destroy_process_group()

"""TensorBoard's event files, written as they come: the package's own writer has a thread that fails on its own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from .files import naming


class EventFile:
    """A new event file in ``directory``, of a run that begins or goes on after ``update`` updates."""

    def __init__(self, directory: Path, update: int):
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = directory / name
        with naming(directory):
            directory.mkdir(parents=True, exist_ok=True)
        with naming(self._path):
            self._records = RecordWriter(open(self._path, "wb"))  # noqa: SIM115
        self._write(Event(file_version="brain.Event:2"))
        # TensorBoard shows nothing of an earlier part of the run that lies at or past the step of a session's start.
        self._write(Event(step=update + 1, session_log=SessionLog(status=SessionLog.START)))
        self.flush()

    def write(self, update: int, scalars: Mapping[str, float]) -> None:
        """The scalars of one update."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(Event(step=update, summary=Summary(value=values)))

    def flush(self) -> None:
        with naming(self._path):
            self._records.flush()

    def close(self) -> None:
        with naming(self._path):
            self._records.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with naming(self._path):
            self._records.write(event.SerializeToString())

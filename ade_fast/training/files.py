"""Files: written whole or not at all, named in every error, and one writer at a time in a directory."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
_TEMPORARY = ".ade_fast.tmp"


class BusyError(RuntimeError):
    """Another process is at work in a directory; the message is one line and says which."""


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """An ``OSError`` of the block names ``path``: not a temporary file, and not nothing, as a full disk's does."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def staged(path: str | Path, content: bytes) -> Iterator[Callable[[], None]]:
    """Writes ``content`` beside ``path``; the function it yields puts it in ``path``'s place, at once and whole.

    Whatever can fail for want of space has then happened before anything is replaced. A link stays a link: the file
    it points to is replaced.
    """
    target = Path(os.path.realpath(path))
    with naming(path):
        temporary = _write_temporary(target, content)

    def put() -> None:
        with naming(path):
            os.replace(temporary, target)
            _sync_directory(target.parent)  # the rename itself survives a power cut

    try:
        yield put
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: bytes) -> None:
    """Replaces ``path`` by ``content``; a crash or a full disk leaves the old file or the new one, whole."""
    with staged(path, content) as put:
        put()


def remove_leftovers(directory: str | Path, name: str | None = None) -> None:
    """Deletes what a killed process left of files it was writing: of the file ``name``, or of all."""
    of = ".*" if name is None else f".{glob.escape(name)}.*"
    for path in Path(directory).glob(of + _TEMPORARY):
        path.unlink(missing_ok=True)


@contextmanager
def locked(directory: str | Path) -> Iterator[None]:
    """Keeps other processes that ask for it out of an existing directory; the system lets go for a killed one.

    Raises:
        BusyError: another process is in.
    """
    path = Path(directory) / LOCK
    with naming(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.pread(handle, 20, 0).decode(errors="replace").strip() or "unknown"
            raise BusyError(
                f"another ade-fast (pid {pid}) is training in {directory}; wait for it, or choose another --out"
            ) from error
        except OSError:
            pass  # a file system without locks: nothing to go by
        with naming(path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _write_temporary(target: Path, content: bytes) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=_TEMPORARY, dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would hide results from the user's group
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Checkpoints: whole or not at all, and one clear line for a damaged one."""

import io
import pickle

import pytest
import torch

from ade_fast.training import (
    CheckpointError,
    checkpoint,
    files,
)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    state = {"weights": torch.randn(3), "n": 3, "best": None, "list": [(1, 0.5)], "name": "x"}
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_checkpoint(path, state)
    loaded = checkpoint.load_checkpoint(path)
    assert torch.equal(loaded.pop("weights"), state.pop("weights")) and loaded == state
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]  # no temporary file is left


class Bomb:
    def __reduce__(self):
        return (exec, ("raise AssertionError('a checkpoint ran code')",))


def damaged_files() -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(
        {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "state": {"weights": torch.randn(1000)}}, buffer
    )
    whole = buffer.getvalue()
    foreign, future, past, bomb = (io.BytesIO() for _ in range(4))
    torch.save({"weights": torch.zeros(2)}, foreign)
    torch.save({"format": checkpoint.FORMAT, "version": 99, "state": {}}, future)
    torch.save({"format": checkpoint.FORMAT, "version": 1, "state": {}}, past)
    torch.save(Bomb(), bomb)
    return {
        "empty": b"",
        "text": b"not a checkpoint\n",
        "truncated": whole[: len(whole) // 2],
        "truncated late": whole[:-10],
        "zeroed": whole[:200] + bytes(200) + whole[400:],
        "one bit": whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:],
        "plain pickle": pickle.dumps({"state": 1}),
        "code": bomb.getvalue(),
        "foreign": foreign.getvalue(),
        "future": future.getvalue(),
        "past": past.getvalue(),
    }


@pytest.mark.parametrize("kind", damaged_files())
def test_a_damaged_or_foreign_checkpoint_gets_one_clear_line(tmp_path, kind):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(damaged_files()[kind])
    wanted = {"foreign": "was not written by ade_fast", "future": "has version 99", "past": "has version 1"}.get(
        kind, "damaged or not a checkpoint"
    )
    with pytest.raises(CheckpointError, match=wanted) as caught:
        checkpoint.load_checkpoint(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.pt does not exist"):
        checkpoint.load_checkpoint(tmp_path / "nothing.pt")


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_checkpoint(path, {"n": 1})

    def full_disk(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoint.save_checkpoint(path, {"n": 2})
    assert caught.value.filename == str(path)
    assert checkpoint.load_checkpoint(path) == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]

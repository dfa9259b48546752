"""metrics.csv and TensorBoard's event files, through interruptions; pictures at intervals."""

import dataclasses
import os

import pytest
from training_cases import TINY

import ade_fast as ade
from ade_fast.training import Trainer, loop, metrics_log, plots

tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(directory) -> dict[str, list[tuple[int, float]]]:
    events = tensorboard.EventAccumulator(str(directory / metrics_log.EVENTS)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def stop_at(monkeypatch, update: int) -> None:
    step = Trainer.step

    def interrupted(self):
        if self.update == update:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "step", interrupted)


def test_tensorboard_shows_every_row_once_and_in_order_through_an_interruption(tmp_path, monkeypatch, no_pictures):
    settings = dataclasses.replace(TINY, tensorboard="on", checkpoint_every=3, validate_by="mmd2")
    ade.training.train(settings, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)  # the last checkpoint is of update 3: 4 and 5 are logged twice
        with pytest.raises(KeyboardInterrupt):
            ade.training.train(settings, tmp_path / "parts", progress=False)
    ade.training.train(settings, tmp_path / "parts", resume=True, progress=False)
    whole, parts = scalars(tmp_path / "whole"), scalars(tmp_path / "parts")
    assert set(metrics_log.STEP_METRICS) | {"step_size", "validation_mmd2"} <= whole.keys()
    assert [step for step, _ in whole["loss"]] == list(range(1, 9))
    del whole["seconds"], parts["seconds"]
    assert parts == whole


def test_event_files_are_left_out_when_asked(tmp_path, no_pictures):
    ade.training.train(TINY, tmp_path, progress=False)
    assert not (tmp_path / metrics_log.EVENTS).exists()
    ade.training.train(dataclasses.replace(TINY, tensorboard="on"), tmp_path, overwrite=True, progress=False)
    assert len(list((tmp_path / metrics_log.EVENTS).iterdir())) == 1
    ade.training.train(TINY, tmp_path, overwrite=True, progress=False)
    assert not (tmp_path / metrics_log.EVENTS).exists()  # those of the run that was replaced


def test_pictures_come_at_intervals_and_go_with_the_run(tmp_path, monkeypatch):
    seen, save = [], plots.save_convergence

    def save_convergence(path, data, snapshots, stages, history, chosen, **heading):
        assert path == tmp_path / loop.CONVERGENCE
        seen.append([entry["update"] for entry in history])
        save(path, data, snapshots, stages, history, chosen, **heading)

    monkeypatch.setattr(plots, "save_convergence", save_convergence)
    settings = dataclasses.replace(TINY, updates=4, pictures_every=2)
    ade.training.train(settings, tmp_path, progress=False)
    assert seen.pop() == [0, 2, 4]  # at the end
    pictures = sorted(p.name for p in tmp_path.glob("figure*.png"))
    assert seen == [[0, 2], [0, 2, 4]]  # how it converged so far, in the same picture
    assert pictures == ["figure-0000002.png", "figure-0000004.png", loop.FIGURE]
    assert (tmp_path / pictures[0]).read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / pictures[0]).read_bytes() != (tmp_path / pictures[1]).read_bytes()
    ade.training.train(dataclasses.replace(settings, pictures_every=0), tmp_path, overwrite=True, progress=False)
    assert [p.name for p in tmp_path.glob("figure*.png")] == [loop.FIGURE]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("flushed_by", ["flush", "exit"])
def test_a_full_disk_under_the_event_files_is_one_error_that_names_them(tmp_path, flushed_by, capfd):
    """No thread of a library fails on its own, with a traceback that nobody can catch."""
    log = metrics_log.MetricsLog(tmp_path, 0, tensorboard=True)
    (events,) = (tmp_path / metrics_log.EVENTS).iterdir()
    os.dup2(os.open("/dev/full", os.O_WRONLY), log._events._records._writer.fileno())
    with pytest.raises(OSError, match="No space left") as caught, log:
        log.write({"update": 1, "loss": 0.5})
        if flushed_by == "flush":
            log.flush()
    assert caught.value.filename == str(events)
    assert capfd.readouterr().err == ""


def test_what_torchs_own_writer_makes_of_it_is_the_same(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    (tmp_path / "a").mkdir()
    with metrics_log.MetricsLog(tmp_path / "a", 4, tensorboard=True) as log:
        log.write({"update": 5, "loss": 0.5})
    with SummaryWriter(str(tmp_path / "b" / metrics_log.EVENTS), purge_step=5) as writer:
        writer.add_scalar("loss", 0.5, 5)
    assert scalars(tmp_path / "a") == scalars(tmp_path / "b") == {"loss": [(5, 0.5)]}

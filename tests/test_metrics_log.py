"""metrics.csv and TensorBoard's event files, through interruptions; pictures at intervals."""

import dataclasses

import pytest
from training_cases import TINY

import ade_fast as ade
from ade_fast.training import Trainer, loop, metrics_log

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
    settings = dataclasses.replace(TINY, tensorboard="on", checkpoint_every=3)
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


def test_pictures_come_at_intervals_and_go_with_the_run(tmp_path):
    settings = dataclasses.replace(TINY, updates=4, pictures_every=2)
    ade.training.train(settings, tmp_path, progress=False)
    pictures = sorted(p.name for p in tmp_path.glob("figure*.png"))
    assert pictures == ["figure-0000002.png", "figure-0000004.png", loop.FIGURE]
    assert (tmp_path / pictures[0]).read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / pictures[0]).read_bytes() != (tmp_path / pictures[1]).read_bytes()
    ade.training.train(dataclasses.replace(settings, pictures_every=0), tmp_path, overwrite=True, progress=False)
    assert [p.name for p in tmp_path.glob("figure*.png")] == [loop.FIGURE]

"""Callbacks of a run: which hooks are called when, with what, and what they may do; longer runs from finished ones."""

import dataclasses
import json
import math

import pytest
import torch
from training_cases import TINY, generator

import ade_fast as ade
from ade_fast.cli import main
from ade_fast.training import ConfigError, Progress, Trainer, loop

QUICK = {k: v for k, v in TINY.to_dict().items() if k not in ("data", "seed")} | {"pictures_every": 0}
QUICK |= {"test_permutations": 5}


def rows(n: int = 200) -> torch.Tensor:
    return torch.randn(n, 2, generator=generator(1))


class Recorder(ade.Callback):
    def __init__(self) -> None:
        self.seen: list[tuple] = []

    def on_begin(self, progress: Progress) -> None:
        self.seen.append(("begin", progress.update, progress.metrics == {}, progress.summary))

    def on_update(self, progress: Progress) -> None:
        self.seen.append(("update", progress.update, math.isfinite(progress.metrics["loss"])))

    def on_validate(self, progress: Progress) -> None:
        assert progress.scores["update"] == progress.update and math.isfinite(progress.scores["nll"])
        assert progress.history[0]["update"] == 0 and 0 <= progress.best_update <= progress.update
        self.seen.append(("validate", progress.update))

    def on_end(self, progress: Progress) -> None:
        self.seen.append(("end", progress.update, progress.summary.chosen_update == progress.best_update))


def test_hooks_are_called_in_order_and_change_nothing():
    plain = ade.fit(rows(), progress=False, **QUICK)
    recorder, updates, directories = Recorder(), [], []

    def function(progress):
        torch.randn(3)  # torch's own generator is not the run's
        updates.append(progress.update)
        directories.append(progress.directory)
        assert progress.model().log_prob(rows(5)).shape == (5,)

    watched = ade.fit(rows(), progress=False, callbacks=[recorder, function], **QUICK)
    assert watched.log_prob(rows(9)).equal(plain.log_prob(rows(9)))
    wanted = [("begin", 0, True, None)]
    for update in range(1, 9):
        wanted += [("update", update, True)] + [("validate", update)] * (update % 2 == 0)
    assert recorder.seen == [*wanted, ("end", 8, True)]
    assert updates == [2, 4, 6, 8] and set(directories) == {None}


def test_a_single_function_or_any_object_with_a_hook_will_do():
    class Own:
        count = 0

        def on_update(self, progress):
            self.count += 1

    own, called = Own(), []
    ade.fit(rows(), progress=False, callbacks=own, **QUICK)
    ade.fit(rows(), progress=False, callbacks=called.append, **QUICK)
    assert own.count == 8 and len(called) == 4 and isinstance(called[0], Progress)


def test_a_run_that_is_stopped_is_scored_and_goes_on(tmp_path, no_pictures):
    def stop(progress):
        assert progress.directory == tmp_path
        if progress.update == 4:
            progress.stop()

    stopped = ade.fit(rows(), out=tmp_path, progress=False, callbacks=stop, **QUICK)
    assert stopped.density is not None
    assert json.loads((tmp_path / loop.SUMMARY).read_text())["updates"] == 4
    whole = ade.fit(rows(), progress=False, **QUICK)
    assert ade.fit(rows(), out=tmp_path, resume=True, progress=False).log_prob(rows()).equal(whole.log_prob(rows()))


def test_stopped_after_any_update_or_before_the_first_it_is_validated_and_scored(tmp_path, no_pictures):
    class Stops:
        def __init__(self, at):
            self.at, self.validated = at, []

        def on_begin(self, progress):
            if self.at == 0:
                progress.stop()

        def on_update(self, progress):
            if progress.update == self.at:
                progress.stop()

        def on_validate(self, progress):
            self.validated.append(progress.update)

    for at, validated in ((3, [2, 3]), (0, [])):
        stops = Stops(at)
        out = tmp_path / str(at)
        assert ade.fit(rows(), out=out, progress=False, callbacks=stops, **QUICK).density is not None
        found = json.loads((out / loop.SUMMARY).read_text())
        assert stops.validated == validated and found["updates"] == at and math.isfinite(found["nll"])
    assert found["milliseconds_per_update"] == 0


class Misspelt:
    def on_validation(self, progress): ...


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (3, "must be functions or objects with one of on_begin, on_update, on_validate, on_end, got 3"),
        ([print, None], "must be functions or objects with one of .*, got None"),
        (Misspelt(), r"got Misspelt\.on_validation; did you mean on_validate\?"),
        ([Recorder], "must be functions or objects, got the class Recorder"),
    ],
)
def test_what_is_no_callback_is_refused_before_anything_is_touched(callbacks, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        ade.fit(rows(), out=tmp_path / "out", progress=False, callbacks=callbacks, **QUICK)
    assert not (tmp_path / "out").exists()


def test_what_a_callback_raises_ends_the_run_and_the_checkpoint_is_kept(tmp_path, no_pictures):
    def fail(progress):
        if progress.update == 6:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        ade.fit(rows(), out=tmp_path, progress=False, callbacks=fail, **QUICK)
    resumed = ade.fit(rows(), out=tmp_path, resume=True, progress=False)
    assert resumed.log_prob(rows()).equal(ade.fit(rows(), progress=False, **QUICK).log_prob(rows()))


# --- longer runs


def test_a_finished_run_goes_on_by_the_schedule_of_the_longer_one(tmp_path, no_pictures):
    ade.fit(rows(), out=tmp_path, progress=False, **QUICK)
    rates: list[float] = []

    class Rates:
        def on_update(self, progress):
            rates.append(progress._trainer.ade.potential_optimizer.param_groups[0]["lr"])

    model = ade.fit(rows(), out=tmp_path, resume=True, progress=False, updates=12, callbacks=Rates())
    config = dataclasses.replace(model.config, data="moons")
    trainer = Trainer(config)
    wanted = []
    for trainer.update in range(8, 12):
        trainer._set_schedule()
        wanted.append(trainer.ade.potential_optimizer.param_groups[0]["lr"])
    assert rates == wanted and len(rates) == 4 and wanted[0] > wanted[-1]
    assert model.config.updates == 12
    lines = (tmp_path / loop.METRICS).read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [str(n) for n in range(1, 13)]


def test_the_density_of_a_longer_run_is_that_of_its_own_best(tmp_path, no_pictures):
    """A finished run keeps log Z of its calibrated f; players that win later have their own."""
    ade.fit(rows(), out=tmp_path, progress=False, **QUICK)
    found = []

    class Seen:
        def on_validate(self, progress):
            model = progress.model()
            best = progress._trainer.best
            found.append(best.scale is not None or model.density == best.score.density)

    ade.fit(rows(), out=tmp_path, resume=True, progress=False, updates=60, callbacks=Seen())
    assert found and all(found)


def test_the_command_line_lengthens_a_run_and_refuses_a_shorter_one(tmp_path, capsys, no_pictures):
    out = tmp_path / "out"
    ade.training.train(TINY, out, progress=False)
    command = ["train", "--out", str(out), "--resume", "--no-progress"]
    assert main([*command, "--updates", "6"]) == 1
    assert "has made 8 updates, got updates 6" in capsys.readouterr().err
    assert main([*command, "--updates", "10"]) == 0
    assert json.loads((out / "config.json").read_text())["updates"] == 10
    assert json.loads((out / loop.SUMMARY).read_text())["updates"] == 10
    assert main(command) == 0 and ade.load(out).config.updates == 10  # without a number: the run's own


def test_more_updates_where_patience_is_at_its_end_need_more_patience(tmp_path, monkeypatch, no_pictures):
    def done(self):
        return self.update >= min(self.config.updates, 4 + self.config.patience)

    monkeypatch.setattr(Trainer, "done", property(done))
    ade.fit(rows(), out=tmp_path, progress=False, **QUICK | {"patience": 2})
    with pytest.raises(ConfigError, match="stopped at update 6, as its patience of 2 validations was at its end"):
        ade.fit(rows(), out=tmp_path, resume=True, progress=False, updates=20)
    model = ade.fit(rows(), out=tmp_path, resume=True, progress=False, updates=10, patience=9)
    assert model.config.updates == 10 and json.loads((tmp_path / loop.SUMMARY).read_text())["updates"] == 10

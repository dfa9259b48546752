"""Runs on images: the source, the recipe, a run with its pictures, resume, completion, and mistakes."""

import gzip
import struct

import numpy as np
import pytest
import torch
from training_cases import generator, without_clock

import ade_fast as ade
from ade_fast._philox_op import draw_seed, philox_normal
from ade_fast.cli import main
from ade_fast.data.image_sets import ImageSet, image_set, is_image_set
from ade_fast.training import Config, ConfigError, loop
from ade_fast.training.completion import complete
from ade_fast.training.image_source import ImageSource
from ade_fast.training.summary import _settings
from ade_fast.training.trainer import Trainer

SMALL = {
    "data": "digits",
    "hidden": (2, 2, 2, 2, 2),
    "n_steps": 2,
    "batch_size": 16,
    "buffer_size": 24,
    "updates": 4,
    "validate_every": 2,
    "checkpoint_every": 2,
    "test_samples": 32,
    "test_permutations": 20,
    "log_every": 1,
    "pictures_every": 0,
    "tensorboard": "off",
}


def config(**changes) -> Config:
    return Config.with_recipe({**SMALL, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with its pictures."""
    directory = tmp_path_factory.mktemp("runs") / "digits"
    loop.train(config(pictures_every=4), directory, progress=False)
    return directory


def tiny_set(n: int = 40, test: int = 6) -> ImageSet:
    levels = torch.randint(0, 17, (n + test, 1, 8, 8), generator=generator(), dtype=torch.uint8)
    labels = torch.arange(n + test) % 10
    return ImageSet(levels[:n], labels[:n], levels[n:], labels[n:], 17)


def test_every_level_is_spread_over_its_own_interval():
    images = tiny_set()
    source = ImageSource("digits", validation_fraction=0.1, test_fraction=0.1, seed=0, images=images)
    z = source.continuous(images.train, generator())
    assert z.dtype == torch.float32 and z.min() >= -1 and z.max() <= 1
    assert torch.equal(((z + 1) / 2 * 17).floor().clamp(max=16).byte(), images.train)
    assert not torch.equal(z, source.continuous(images.train, generator(8)))
    assert source.space.to_data(torch.full((1, 1, 8, 8), 1.5)).max() == 1  # no pixel is whiter than white
    assert source.images.dtype == torch.uint8


@pytest.mark.parametrize("test", [6, 0])
def test_the_parts_share_no_image_and_are_the_seeds(test):
    images = tiny_set(test=test)

    def parts(seed):
        source = ImageSource("digits", validation_fraction=0.1, test_fraction=0.2, seed=seed, images=images)
        return source.images, source._validation, source.test_images

    first = parts(0)
    assert [len(part) for part in first] == ([36, 4, 6] if test else [28, 4, 8])
    rows = torch.cat(first).flatten(1).tolist()
    assert len({tuple(row) for row in rows}) == 40 + test
    assert all(map(torch.equal, first, parts(0))) and not torch.equal(first[0], parts(1)[0])


def test_nearest_finds_the_training_image_a_sample_was_made_from():
    source = ImageSource("digits", validation_fraction=0.1, test_fraction=0.1, seed=0, images=tiny_set())
    pixels = source.pixels(source.images[[3, 0]])
    moved = pixels.clone()
    moved[0, 0, 0, 0] += 0.25
    distance, nearest = source.nearest(moved)
    torch.testing.assert_close(distance, torch.tensor([0.25, 0.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(nearest, pixels)


def _write_idx(path, array):
    with gzip.open(path, "wb") as file:
        file.write(bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def test_a_folder_of_idx_files_is_a_set_and_keeps_its_bytes(tmp_path, monkeypatch):
    pixels = np.arange(5 * 81, dtype=np.uint8).reshape(5, 9, 9)
    for part, rows in (("train", pixels), ("t10k", pixels[:2])):
        _write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", rows)
        _write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(len(rows), dtype=np.uint8))
    assert is_image_set(str(tmp_path)) and not is_image_set(str(tmp_path.parent))
    found = image_set(str(tmp_path))
    assert found.levels == 256 and np.array_equal(found.train[:, 0].numpy(), pixels) and len(found.test) == 2
    monkeypatch.setenv("ADE_FAST_DATA", str(tmp_path.parent / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"files of cifar10 are in none of .*nowhere/cifar10, data/cifar10"):
        image_set("cifar10")


def test_what_is_not_given_is_the_recipe_for_images():
    given = config(n_steps=5)
    assert (given.network, given.dynamics, given.initial, given.n_steps) == ("conv", "langevin", "replay", 5)
    assert Config.with_recipe({"data": "moons"}) == Config() and not Config().of_images and given.of_images
    assert Config.from_dict(given.to_dict()) == given


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "mlp"}, r"network must be conv or residual where data are images, got mlp"),
        ({"initial": "spline"}, r"initial must be replay or gaussian where data are images, got spline"),
        ({"dynamics": "generalized"}, r"dynamics must be leapfrog or damped or langevin .*, got generalized"),
        ({"bound": "importance"}, r"bound must be elbo where data are images"),
        ({"hidden": (4, 4)}, r"hidden must be the channels of 5 convolutions .*, got 4,4"),
        ({"data": "moons", "network": "conv"}, r"network must be mlp where data are no images, got conv"),
        ({"data": "moons", "initial": "replay"}, r"initial must be another where data are no images, got replay"),
        ({"data": "digit"}, r"did you mean 'digits'\?"),
    ],
)
def test_settings_that_images_do_not_take(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes) if changes.get("data") is None else Config.with_recipe(changes)


def test_the_summary_marks_what_is_not_the_recipe_for_images():
    given = config(potential_lr=2e-3)
    marked = [word for line in _settings(given) for word in line.split() if word.endswith("*")]
    assert "potential_lr=0.002*" in marked and "hidden=2,2,2,2,2*" in marked
    assert not {"potential=conv*", "dynamics=langevin*", "momentum_weight=0.0*"} & set(marked)


def test_a_run_leaves_its_pictures_and_can_be_opened(run):
    for name in ("figure.png", "convergence.png", "energies.png", "figure-0000004.png", "summary.json"):
        assert (run / name).stat().st_size > 1000
    model = ade.load(run)
    samples = model.sample(30)
    assert samples.shape == (30, 1, 8, 8) and samples.min() >= 0 and samples.max() <= 1
    assert torch.equal(samples, model.sample(30))
    with pytest.raises(ValueError, match="no density"):
        model.log_prob(samples)


def test_resume_is_bit_for_bit_with_the_replay_buffer(tmp_path):
    whole, parts = config(), tmp_path / "parts"
    wanted = loop.train(whole, tmp_path / "whole", progress=False, pictures=False)

    class Stop(Exception):
        pass

    step = Trainer.step

    def stopping(self):
        if self.update == 3:
            raise Stop
        return step(self)

    Trainer.step = stopping
    try:
        with pytest.raises(Stop):
            loop.train(whole, parts, progress=False, pictures=False)
    finally:
        Trainer.step = step
    found = loop.train(whole, parts, resume=True, progress=False, pictures=False)
    assert without_clock(found) == without_clock(wanted)
    again = loop.train(whole, parts, resume=True, progress=False, pictures=False)  # settled once
    assert without_clock(again) == without_clock(wanted)
    assert torch.equal(ade.load(parts).sample(20), ade.load(tmp_path / "whole").sample(20))


@pytest.mark.parametrize("changes", [{"dynamics": "damped", "step_size_per": "dimension"}, {"dynamics": "leapfrog"}])
def test_other_dynamics_move_with_small_momenta_and_complete(changes, tmp_path):
    trainer = Trainer(config(**changes, learn_step_size=True))
    trainer.step()
    trainer.validate()
    assert trainer.sampler.momenta(500, generator()).std().item() == pytest.approx(trainer.config.noise_std, rel=0.05)
    assert int(trainer.sampler_average.module.initial.filled) == 16
    images = trainer.space.to_data(trainer.source.test(3, generator()))
    assert complete(trainer.model(), images, runs=1).shape == images.shape


def test_the_lower_half_is_completed_by_the_conditional_dynamics(run):
    model = ade.load(run)
    images = torch.rand(3, 1, 8, 8, generator=generator())
    completed = complete(model, images, runs=2, seed=5)
    assert torch.equal(completed[:, :, :4], images[:, :, :4]) and not torch.equal(completed, images)
    # The same by steps of the whole image whose upper rows are put back after each.
    one = ade.Langevin(1, 0.2, noise_std=model.config.noise_std, learn_step_size=False)
    g = generator(5)
    x = model.space.to_z(images)
    x[:, :, 4:] = -1 + 2 * torch.rand(3, 1, 4, 8, generator=g)
    with torch.no_grad():
        for _ in range(2):
            noise = torch.zeros(2, 3, 1, 8, 8)
            seed = draw_seed(x.device, g)
            for t in range(2):
                noise[t, :, :, 4:] = philox_normal(torch.empty(3, 32), seed, t).reshape(3, 1, 4, 8)
                moved = one(model.potential, x, noise=noise[t : t + 1]).x
                x[:, :, 4:] = moved[:, :, 4:]
    torch.testing.assert_close(completed[:, :, 4:], model.space.to_data(x)[:, :, 4:], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (torch.zeros(2, 1, 9, 8), {}, ValueError, r"images must have the shape \(n, 1, 8, 8\), got \(2, 1, 9, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), {}, TypeError, r"a floating-point tensor, got torch.uint8"),
        (torch.zeros(2, 1, 8, 8), {"given_rows": 8}, ValueError, r"given_rows must be less than the 8 rows .*, got 8"),
        (torch.zeros(2, 1, 8, 8), {"runs": 0}, ValueError, r"complete: runs must be"),
    ],
)
def test_mistakes_in_completing(images, options, error, message, run):
    with pytest.raises(error, match=message):
        complete(ade.load(run), images, **options)


def test_the_commands(run, tmp_path, capsys):
    assert main(["complete", str(run), "--n", "3", "--runs", "1", "--out", str(tmp_path / "c.png")]) == 0
    assert (tmp_path / "c.png").stat().st_size > 1000
    assert main(["evaluate", str(run)]) == 0
    assert "log-likelihood  not known" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--data", "rows.csv"]) == 1
    assert "--data must be digits" in capsys.readouterr().err
    assert main(["complete", str(tmp_path)]) == 1 and main(["complete", str(run), "--out", "c.jpg"]) == 1


def test_in_evaluation_no_chain_is_restarted_and_none_comes_twice():
    start = ade.initial.Empirical(torch.full((5, 2), 9.0), 8, reinit=1.0)
    start.eval()
    assert bool((start.sample(3).x == 9).all())  # an empty buffer has nothing
    start.update(torch.arange(12.0).reshape(6, 2))
    assert sorted(start.sample(6, generator=generator()).x[:, 0].tolist()) == [0, 2, 4, 6, 8, 10]
    rows = start.sample(15, generator=generator()).x[:, 0].tolist()
    assert len(rows) == 15 and {rows.count(value) for value in set(rows)} <= {2, 3}
    assert start.sample(0).x.shape == (0, 2)
    start.train()
    assert bool((start.sample(6).x == 9).all())


def test_auroc_is_the_probability_of_the_right_order():
    f = lambda x: x[:, 0]  # noqa: E731
    sets = {"a": torch.tensor([[1.0], [2.0], [3.0]]), "b": torch.tensor([[0.0], [2.0]]), "c": torch.tensor([[-1.0]])}
    histogram = ade.metrics.energy_histogram(f, sets)
    assert histogram.auroc("a", "b") == pytest.approx((3 + 1 + 0.5) / 6)
    assert histogram.auroc("a", "c") == 1.0 and histogram.auroc("c", "a") == 0.0


@pytest.mark.parametrize("step_size", [0.02, 0.01])
def test_at_lambda_1_the_exact_gradient_is_that_at_the_chains_start(step_size):
    """Leapfrog conserves f - |v|²/2 up to η²: what (20) teaches f, its sampler fixed, is to tell data from x⁰."""
    torch.manual_seed(0)
    f = ade.MLPPotential(3, (32, 32), "silu", input_gain=2.0).double()
    x, v = torch.randn(2, 50, 3, dtype=torch.float64)

    def gradient(value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, [*f.parameters()])])

    end = ade.functional.leapfrog(f, x, v, step_size, 20)
    exact = gradient(f(end.x).mean() - 0.5 * end.v.square().sum(1).mean())
    start, samples = gradient(f(x).mean()), gradient(f(end.x.detach()).mean())
    assert (exact - start).norm() < 0.05 * step_size**2 * start.norm()
    assert (samples - start).norm() > 1000 * (exact - start).norm()


def test_the_residual_potential_and_the_exact_gradient_train():
    trainer = Trainer(config(network="residual", hidden=(4, 8), gradient="full"))
    before = [p.detach().clone() for p in trainer.potential.parameters()]
    assert isinstance(trainer.potential, ade.ResidualPotential)
    metrics = trainer.step()
    assert metrics["kinetic"] == 0  # momentum_weight 0
    moved = [not torch.equal(p, q) for p, q in zip(trainer.potential.parameters(), before, strict=True)]
    assert all(moved[:-1])  # a constant of f, its last bias, is no one's to choose

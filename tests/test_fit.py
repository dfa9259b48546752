"""`ade.fit`: rows of any kind in, a normalised density in their own units out; what is kept, resumed and refused."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training_cases import TINY, generator

import ade_fast as ade
from ade_fast.cli import main
from ade_fast.training import Config, ConfigError, NoDensityError, Trainer, checkpoint, directory

QUICK = {k: v for k, v in TINY.to_dict().items() if k not in ("data", "seed")} | {"pictures_every": 0}
OFFSET, SPREAD = torch.tensor([1000.0, -50.0], dtype=torch.float64), 100.0


def rows(n: int = 300, seed: int = 0) -> torch.Tensor:
    """Correlated and Gaussian, at a scale and an offset of their own; float64."""
    noise = torch.randn(n, 2, dtype=torch.float64, generator=generator(seed))
    return OFFSET + SPREAD * (noise @ torch.tensor([[1.0, 0.8], [0.0, 0.6]], dtype=torch.float64))


def true_log_prob(x: torch.Tensor) -> torch.Tensor:
    covariance = SPREAD**2 * torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    return torch.distributions.MultivariateNormal(OFFSET, covariance).log_prob(x)


@pytest.fixture(scope="module")
def model() -> ade.TrainedModel:
    settings = {
        "n_steps": 2,
        "momentum_weight": 0.5,
        "updates": 400,
        "batch_size": 256,
        "validate_every": 100,
        "potential_lr": 3e-3,
    }
    few = {"likelihood_samples": 5000, "test_likelihood_samples": 20_000, "test_permutations": 20, "threads": 1}
    return ade.fit(rows(4000), progress=False, hidden=(32, 32), initial="planar", **settings, **few)


# --- the model


def test_it_comes_close_to_the_truth_in_the_datas_own_units(model):
    held_out = rows(5000, seed=9)
    truth = true_log_prob(held_out).mean().item()
    assert truth - 0.1 < model.score(held_out) <= truth + 0.02
    assert model.log_z_standard_error < 0.02 and 0.2 < model.ess <= 1


@pytest.mark.parametrize("reach", [4, 40])
def test_its_density_integrates_to_one(model, reach):
    axes = [torch.linspace(-reach, reach, 601, dtype=torch.float64) * SPREAD + mean for mean in OFFSET]
    cell = math.prod((axis[1] - axis[0]).item() for axis in axes)
    assert model.log_prob(torch.cartesian_prod(*axes)).exp().sum().item() * cell == pytest.approx(1, abs=0.02)


def test_log_prob_is_f_less_log_z_and_the_units(model):
    x = rows(50, seed=3)
    state = model.space.state_dict()
    z = ((x - state["mean"]) / state["std"]).float()
    f = (
        model.potential.potential(z).double()
        + torch.distributions.Normal(0, float(model.potential.std)).log_prob(z).sum(1).double()
    )
    wanted = f - model.log_z - state["std"].log().sum()
    torch.testing.assert_close(model.log_prob(x), wanted, rtol=0, atol=1e-5)
    assert model.log_prob(x.numpy()).equal(model.log_prob(x)) and model.log_prob(x[:1].tolist()).shape == (1,)
    assert model.score(x) == pytest.approx(wanted.mean().item(), abs=1e-5)


def test_log_prob_is_differentiable_in_the_points(model):
    x = rows(4).requires_grad_()
    (grad,) = torch.autograd.grad(model.log_prob(x).sum(), x)
    h = 0.5 * torch.tensor([1.0, 0.0], dtype=torch.float64)
    slope = (model.log_prob(x.detach() + h) - model.log_prob(x.detach() - h)) / 1.0
    torch.testing.assert_close(grad[:, 0], slope, rtol=0.2, atol=2e-3)


@pytest.mark.parametrize("exact", ["none", "resample", "metropolis"])
def test_samples_are_in_the_datas_units(model, exact):
    samples = model.sample(1000, seed=1, exact=exact)
    assert samples.dtype == torch.float32 and samples.equal(model.sample(1000, seed=1, exact=exact))
    assert ((samples.mean(0) - OFFSET).abs() < 0.2 * SPREAD).all()
    assert (samples.std(0) / SPREAD - 1).abs().max() < 0.2
    correlation = torch.corrcoef(samples.T)[0, 1].item()
    assert correlation == pytest.approx(0.8, abs=0.05 if exact != "none" else 0.2)


# --- what may be given


def test_every_kind_of_rows_gives_the_same_model():
    x = rows().float()
    kinds = [x, x.numpy(), x.tolist(), TensorDataset(x, torch.zeros(len(x))), DataLoader(TensorDataset(x), 70)]
    models = [ade.fit(kind, progress=False, **QUICK) for kind in kinds]
    probs = [m.log_prob(x[:5]) for m in models]
    assert all(torch.equal(p, probs[0]) for p in probs[1:])
    assert models[0].config.data == "given"


def test_a_file_and_a_toy_set_are_named_by_text(tmp_path):
    np.save(tmp_path / "rows.npy", rows().numpy())
    from_file = ade.fit(tmp_path / "rows.npy", progress=False, **QUICK)
    torch.testing.assert_close(
        from_file.log_prob(rows()[:5]), ade.fit(rows(), progress=False, **QUICK).log_prob(rows()[:5])
    )
    assert from_file.config.data == str(tmp_path / "rows.npy")
    assert ade.fit("circles", progress=False, **QUICK).config.data == "circles"


def test_validation_rows_of_ones_own_are_what_the_choice_is_made_on():
    own = rows(40, seed=5)
    source = ade.training.build.build_source(Config(data="given"), rows(), own)
    chosen_on = source.space.to_data(source.validation(3, generator())).double()
    torch.testing.assert_close(chosen_on, own, rtol=1e-6, atol=1e-4)
    assert len(source.test(3, generator())) == 30 and len(source._train) == 270


def test_without_test_rows_the_result_is_scored_on_the_validation_rows():
    source = ade.training.build.build_source(Config(data="given", test_fraction=0), rows())
    assert source.test(3, generator()).equal(source.validation(3, generator()))


class Quadratic(nn.Module):
    """f of one's own."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return -(self.log_scale.exp() * x**2).sum(1)


def test_players_of_ones_own_are_copied_and_needed_again(tmp_path, no_pictures):
    potential = Quadratic()
    sampler = ade.DualSampler(ade.initial.Gaussian(2, learnable=True), ade.Leapfrog(2, 0.1))
    model = ade.fit(rows(), potential, sampler, out=tmp_path, progress=False, **QUICK)
    assert isinstance(model.potential, Quadratic) and potential.log_scale.equal(torch.zeros(2))
    assert not model.potential.log_scale.equal(potential.log_scale)
    again = ade.load(tmp_path, potential=Quadratic(), sampler=sampler)
    assert again.log_prob(rows()).equal(model.log_prob(rows()))
    with pytest.raises(ValueError, match=r"load: .* was given its potential; pass potential="):
        ade.load(tmp_path, sampler=sampler)
    with pytest.raises(ValueError, match=r"fit: .* was given its sampler; pass sampler="):
        ade.fit(rows(), potential, out=tmp_path, resume=True, progress=False, **QUICK)


def test_a_run_of_the_settings_own_players_needs_none(tmp_path, no_pictures):
    ade.fit(rows(), out=tmp_path, progress=False, **QUICK)
    with pytest.raises(ValueError, match=r"has the settings' own potential; leave out potential="):
        ade.load(tmp_path, potential=Quadratic())


# --- directories


def test_an_interrupted_fit_goes_on_to_the_same_model(tmp_path, monkeypatch, no_pictures):
    whole = ade.fit(rows(), progress=False, **QUICK)
    step = Trainer.step

    def interrupted(self):
        if self.update == 5:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ade.fit(rows(), out=tmp_path, progress=False, **QUICK)
    with pytest.raises(ConfigError, match="learned from other rows than given has now; restore them"):
        ade.fit(rows(seed=1), out=tmp_path, resume=True, progress=False, **QUICK)
    assert checkpoint.load_checkpoint(tmp_path / directory.CHECKPOINT)["update"] == 4
    parts = ade.fit(rows(), out=tmp_path, resume=True, progress=False, **QUICK)
    assert parts.log_prob(rows()).equal(whole.log_prob(rows())) and parts.density == whole.density


def test_a_model_of_given_rows_is_evaluated_on_rows_that_are_given(tmp_path, capsys, no_pictures):
    ade.fit(rows(), out=tmp_path, progress=False, **QUICK)
    np.save(tmp_path / "held_out.npy", rows(30, seed=8).numpy())
    assert main(["evaluate", str(tmp_path)]) == 1
    assert "the run learned from rows given to ade.fit; give held-out ones by --data" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path), "--data", str(tmp_path / "held_out.npy")]) == 0
    assert "held_out.npy, 30 held-out points" in capsys.readouterr().out


def test_nothing_is_left_behind_where_no_directory_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ade.fit(rows(), progress=False, **QUICK)
    assert not list(tmp_path.iterdir())


def test_a_table_is_not_trained_on_past_its_best(monkeypatch, tmp_path, no_pictures):
    """Patience, counted from the chosen update; and a finished run that stopped early stays finished."""
    settings = QUICK | {"updates": 100, "validate_every": 1, "checkpoint_every": 7, "patience": 5}
    validate = Trainer._likelihood

    def worse_after_3(self, *players):
        score = validate(self, *players)
        return dataclasses.replace(score, value=score.value + 100 * max(0, self.update - 3))

    monkeypatch.setattr(Trainer, "_likelihood", worse_after_3)
    model = ade.fit(rows(), out=tmp_path, progress=False, **settings)
    state = checkpoint.load_checkpoint(tmp_path / directory.CHECKPOINT)
    assert model.update == 3 and state["update"] == 8
    again = ade.fit(rows(), out=tmp_path, resume=True, progress=False, **settings)
    assert again.density == model.density
    endless = Trainer(dataclasses.replace(TINY, updates=100, patience=5))
    endless.validate()
    endless.history += [{"update": n} for n in range(1, 50)]
    assert not endless.done  # fresh points for ever: there is nothing to overfit


# --- mistakes


MISTAKES = {
    "text": ([["a", "b"], ["c", "d"]], {}, "must hold real numbers"),
    "nan": ([[1.0, math.nan], [0.0, 1.0]] * 9, {}, "NaN or infinite"),
    "constant column": ([[1.0, 2.0], [1.0, 3.0]] * 9, {}, "column 1 is constant"),
    "one row": ([[1.0, 2.0]], {}, "at least 2 rows"),
    "few rows": ([[1.0, 2.0], [3.0, 4.0], [5.0, 3.0]], {}, "need 6 rows, got 3"),
    "a vector": (torch.randn(30), {}, "must be a table of vectors"),
    "images": (torch.randn(30, 1, 4, 4), {}, "must be a table of vectors"),
    "nothing of the kind": (3, {}, "must be a tensor, an array"),
    "no such set": ("moon", {}, "did you mean 'moons'"),
    "no such file": ("nowhere/rows.csv", {}, "no such file"),
    "columns of validation": (rows(), {"validation": torch.randn(9, 3)}, "must have 2 columns, got 3"),
    "validation of a toy set": ("moons", {"validation": rows()}, "moons is a set of fresh points"),
    "a setting": (rows(), {"potentiel_lr": 1.0}, "unknown key 'potentiel_lr'; did you mean 'potential_lr'"),
    "resume nothing": (rows(), {"resume": True}, "resume needs out"),
    "overwrite nothing": (rows(), {"overwrite": True}, "overwrite needs out"),
    "two sources": (rows(), {"data": "moons"}, "what to learn from is X"),
    "a function": (rows(), {"potential": torch.sin}, "potential must be a torch.nn.Module"),
    "no sampler": (rows(), {"sampler": nn.Linear(2, 2)}, "sampler must be an ade.DualSampler"),
    "another event": (
        rows(),
        {"sampler": ade.DualSampler(ade.initial.Gaussian(3), ade.Leapfrog(1))},
        r"sampler must have the data's event \(2,\), got \(3,\)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_touched(mistake, tmp_path):
    X, arguments, message = MISTAKES[mistake]
    out = {} if mistake in ("resume nothing", "overwrite nothing") else {"out": tmp_path / "out"}
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        ade.fit(X, progress=False, **(QUICK | arguments | out))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_points_of_another_shape_are_refused(model):
    for x in (torch.randn(3, 3), torch.randn(2), [["a", "b"]]):
        with pytest.raises(ValueError, match=r"2 columns, got 3|\(n, d\)|real numbers"):
            model.log_prob(x)
    with pytest.raises(ValueError, match=r"log_prob: x must be \(B, 2\), got \(4, 3\)"):
        model.log_prob(torch.randn(4, 3, requires_grad=True))
    with pytest.raises(ValueError, match="sample: exact must be one of none, resample, metropolis, got 'yes'"):
        model.sample(3, exact="yes")


def test_a_model_without_density_says_so_in_one_line(tmp_path, no_pictures):
    settings = QUICK | {"bound": "elbo", "sampler_bound": "elbo", "momentum_weight": 0.0}
    model = ade.fit(rows(), out=tmp_path, progress=False, **settings)
    for ask in (lambda: model.log_prob(rows()), lambda: model.log_z, lambda: model.sample(2, exact="resample")):
        with pytest.raises(NoDensityError, match=r"this model has no density: .* momentum_weight 0") as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert model.sample(3).shape == (3, 2)
    history = checkpoint.load_checkpoint(tmp_path / directory.CHECKPOINT)["history"]
    assert all(entry.keys() == {"update", "mmd2"} for entry in history)

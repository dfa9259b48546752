"""`ade.save` and `ade.restore`: hand-written training goes on bit for bit."""

import pytest
import torch
from torch import nn
from training_cases import TINY

import ade_fast as ade
from ade_fast.training import CheckpointError


def model(seed: int = 0, width: int = 32, **options) -> ade.ADE:
    torch.manual_seed(seed)
    dynamics = ade.Leapfrog(2, 0.1, step_size_positive=True)
    sampler = ade.DualSampler(ade.initial.PlanarFlow(2, 2), dynamics)
    return ade.ADE(ade.WithBase(ade.MLPPotential(2, (width,)), 0.0, 2.0), sampler, **options)


def go_on(trained: ade.ADE, n: int) -> list[dict[str, float]]:
    data, generator = ade.data.toy("moons"), torch.Generator().manual_seed(1)
    return [trained.step(data.sample(16, generator), generator=generator) for _ in range(n)]


def test_training_goes_on_bit_for_bit(tmp_path) -> None:
    first = model()
    go_on(first, 3)
    ade.save(first, tmp_path / "model.pt")
    second = ade.restore(model(seed=7), tmp_path / "model.pt")
    assert second.updates == 3
    assert go_on(first, 3) == go_on(second, 3)
    for (name, a), (_, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_mistakes_are_one_line(tmp_path) -> None:
    path = tmp_path / "model.pt"
    ade.save(model(), path)
    with pytest.raises(CheckpointError, match=r"has the wrong content .*size mismatch"):
        ade.restore(model(width=64), path)
    frozen = model()
    frozen.sampler_optimizer = None
    with pytest.raises(CheckpointError, match="sampler_optimizer is there in one of model and file alone"):
        ade.restore(frozen, path)
    with pytest.raises(CheckpointError, match="does not exist"):
        ade.restore(model(), tmp_path / "other.pt")
    ade.training.checkpoint.save_checkpoint(path, {"potential": {}})
    with pytest.raises(CheckpointError, match=r"has no ADE of ade\.save"):
        ade.restore(model(), path)
    with pytest.raises(TypeError, match=r"save: model must be an ade\.ADE or what ade\.fit returns, got Linear"):
        ade.save(nn.Linear(2, 2), path)
    f = nn.Linear(2, 1)
    plain = ade.ADE(
        lambda x: f(x), model().sampler, potential_optimizer=torch.optim.Adam(f.parameters(), maximize=True)
    )
    with pytest.raises(ValueError, match=r"save: potential must be an nn\.Module"):
        ade.save(plain, path)


SHORT = {key: value for key, value in TINY.to_dict().items() if key not in ("data", "seed")} | {"progress": False}
NO_DENSITY = {"bound": "elbo", "sampler_bound": "elbo", "momentum_weight": 0.0}


@pytest.mark.parametrize("settings", [{}, NO_DENSITY], ids=["density", "no density"])
def test_a_trained_model_comes_back_from_one_file(settings, tmp_path) -> None:
    """With a density and without; `ade.load` needs neither the rows nor a directory."""
    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 100.0, 1e-4])
    first = ade.fit(rows, **SHORT | settings)
    ade.save(first, tmp_path / "model.pt")
    second = ade.load(tmp_path / "model.pt")
    assert repr(second) == repr(first) and "\n" not in repr(first) and len(repr(first)) < 200
    assert second.density == first.density and (first.density is None) == (settings is NO_DENSITY)
    assert second.sample(20, seed=5).equal(first.sample(20, seed=5))
    assert second.config == first.config and second.fingerprint == first.fingerprint
    if first.density is not None:
        assert second.log_prob(rows).equal(first.log_prob(rows))
    with pytest.raises(CheckpointError, match=r"has no ADE of ade\.save; ade\.load reads trained models"):
        ade.restore(model(), tmp_path / "model.pt")


def test_a_trained_model_of_ones_own_potential_asks_for_it(tmp_path) -> None:
    f = ade.MLPPotential(2, (32,))
    rows = torch.randn(200, 2, generator=torch.Generator().manual_seed(3))
    first = ade.fit(rows, f, **SHORT)
    first.save(tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"load: .*model\.pt was given its potential; pass potential="):
        ade.load(tmp_path / "model.pt")
    second = ade.load(tmp_path / "model.pt", potential=ade.MLPPotential(2, (32,)))
    assert second.log_prob(rows).equal(first.log_prob(rows)) and second.given == (True, False)

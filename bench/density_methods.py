"""Methods that `bench/density.py` compares: each takes a split and a seed, and says what the test rows get.

All see the same rows in the same coordinates. What is tuned or stopped is so on the validation rows alone.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from density_data import Split
from density_mixture import Mixture, Tilted
from torch import Tensor, nn

import ade_fast as ade
from ade_fast.weights import effective_sample_size, log_mean_exp


class Fit(NamedTuple):
    """log_prob: log-density of each test row [n]. chosen: what was selected. log_z_se, ess: the standard error of the
    normaliser and the effective sample size of its weights, None where the density is normalised by construction."""

    log_prob: Tensor
    chosen: str
    log_z_se: float | None = None
    ess: float | None = None


# --- Gaussian mixture

_COMPONENTS, _COVARIANCES = range(1, 21), ("full", "diag", "tied")


def gaussian_mixture(split: Split, seed: int) -> Fit:
    """Components and kind of covariance by BIC on the training rows."""
    best = _best_mixture(split, seed)
    log_prob = torch.from_numpy(best.score_samples(split.test.double().numpy()))
    return Fit(log_prob, f"{best.n_components} {best.covariance_type}")


def _best_mixture(split: Split, seed: int):
    from sklearn.mixture import GaussianMixture

    rows = split.train.double().numpy()
    fits = []
    for kind in _COVARIANCES:
        for count in _COMPONENTS:
            mixture = GaussianMixture(count, covariance_type=kind, reg_covar=1e-4, n_init=2, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # more components than the rows bear: BIC leaves those out
                fits.append(mixture.fit(rows))
    return min(fits, key=lambda mixture: mixture.bic(rows))


# --- Neural spline flow

_FLOW_GRID = [(transforms, noise) for transforms in (1, 3) for noise in (0.0, 0.2)]
_FLOW_EPOCHS, _FLOW_PATIENCE, _FLOW_BATCH = 400, 30, 128


def spline_flow(split: Split, seed: int) -> Fit:
    """zuko's NSF by maximum likelihood; number of transforms and noise on the training rows by validation."""
    import zuko

    def fitted(transforms: int, noise: float) -> tuple[float, nn.Module, str]:
        torch.manual_seed(seed)
        flow = zuko.flows.NSF(split.dim, transforms=transforms, hidden_features=(64, 64))
        optimizer = torch.optim.AdamW(flow.parameters(), lr=1e-3, weight_decay=0.1)
        best = _Best()
        for epoch in range(_FLOW_EPOCHS):
            for rows in split.train[torch.randperm(len(split.train))].split(_FLOW_BATCH):
                loss = -flow().log_prob(rows + noise * torch.randn_like(rows)).mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
                optimizer.step()
            with torch.no_grad():
                best.offer(-flow().log_prob(split.validation).mean().item(), epoch, flow)
            if epoch - best.at >= _FLOW_PATIENCE:
                break
        flow.load_state_dict(best.state)
        return best.score, flow, f"{transforms} transforms, noise {noise:g}, epoch {best.at}"

    _, flow, chosen = min((fitted(*settings) for settings in _FLOW_GRID), key=lambda found: found[0])
    with torch.no_grad():
        return Fit(flow().log_prob(split.test), chosen)


class _Best:
    """The state with the lowest score so far."""

    def __init__(self) -> None:
        self.score, self.at, self.state = math.inf, 0, {}

    def offer(self, score: float, at: int, module: nn.Module) -> None:
        if score < self.score:
            self.score, self.at, self.state = score, at, copy.deepcopy(module.state_dict())


# --- Persistent contrastive divergence

_CD_UPDATES, _CD_EVERY, _CD_PATIENCE, _CD_BATCH = 3000, 200, 5, 128
_CD_STEP = 0.01
_CD_CHAINS, _CD_STEPS = 2000, 500
_BASE_SHARE = 0.1


def persistent_cd(split: Split, seed: int) -> Fit:
    """torchebm's PersistentContrastiveDivergence with its Langevin sampler, on a potential as ADE's.

    Its log Z is estimated by importance sampling from a Gaussian mixture fitted to Langevin samples, at every
    validation too; better than it is used, as persistent CD itself has no likelihood to stop by.
    """
    from torchebm.core import BaseModel
    from torchebm.losses import PersistentContrastiveDivergence
    from torchebm.samplers import LangevinDynamics

    class Energy(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.potential = ade.WithBase(ade.MLPPotential(split.dim, (64, 64), "silu"), 0.0, 1.5)

        def forward(self, x: Tensor) -> Tensor:
            return -self.potential(x)

    torch.manual_seed(seed)
    energy = Energy()
    langevin = LangevinDynamics(energy, step_size=_CD_STEP)
    loss = PersistentContrastiveDivergence(
        energy, langevin, k_steps=10, buffer_size=2048, init_steps=0, energy_reg_weight=0.0
    )
    loss.initialize_buffer((split.dim,), init_noise_scale=1.0)
    optimizer = torch.optim.AdamW(energy.parameters(), lr=1e-3, weight_decay=1e-2)
    best = _Best()
    for update in range(1, _CD_UPDATES + 1):
        rows = split.train[torch.randint(len(split.train), (_CD_BATCH,))]
        optimizer.zero_grad()
        loss(rows)[0].backward()
        optimizer.step()
        if update % _CD_EVERY == 0:
            log_w = _log_weights(energy.potential, loss.replay_buffer, 10_000, seed)
            with torch.no_grad():
                score = log_mean_exp(log_w).item() - energy.potential(split.validation).double().mean().item()
            best.offer(score, update, energy)
            if update - best.at >= _CD_PATIENCE * _CD_EVERY:
                break
    energy.load_state_dict(best.state)
    chains = langevin.sample(loss.replay_buffer[:_CD_CHAINS].clone(), n_steps=_CD_STEPS)
    log_w = _log_weights(energy.potential, chains, 100_000, seed)
    return _weighted(energy.potential, split, log_w, f"update {best.at}")


def _log_weights(potential: ade.WithBase, samples: Tensor, n: int, seed: int) -> Tensor:
    """log(exp f / proposal) [n] at draws from a Gaussian mixture fitted to `samples`, with `_BASE_SHARE` of f's base
    measure mixed in for the tails."""
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(8, reg_covar=1e-3, random_state=seed).fit(samples.double().numpy())
    mixture.random_state = seed + 1
    n_base = round(_BASE_SHARE * n)
    x = torch.cat(
        [torch.from_numpy(mixture.sample(n - n_base)[0]).float(), potential.sample_base(n_base, samples[0].shape)]
    )
    shares = torch.tensor([1 - _BASE_SHARE, _BASE_SHARE], dtype=torch.float64).log()
    with torch.no_grad():
        parts = torch.stack(
            [torch.from_numpy(mixture.score_samples(x.double().numpy())), potential.log_base(x).double()]
        )
        return potential(x).double() - torch.logsumexp(parts + shares[:, None], 0)


def _weighted(potential: nn.Module, split: Split, log_w: Tensor, chosen: str) -> Fit:
    ess = effective_sample_size(log_w).item()
    with torch.no_grad():
        log_prob = potential(split.test).double() - log_mean_exp(log_w)
    return Fit(log_prob, chosen, math.sqrt((1 / ess - 1) / len(log_w)), ess)


# --- Adversarial dynamics embedding

_TILT: dict[str, Any] = {
    "hidden": (64, 64), "activation": "silu", "n_steps": 2, "sampler_lr": 3e-3, "updates": 1500, "patience": 5,
    "test_fraction": 0.0, "checkpoint_every": 1000, "standardise": False, "beta1": 0.9, "potential_lr": 2e-3,
    "ema_decay": 0.98, "validate_every": 50, "likelihood_samples": 20_000, "min_ess": 0.2,
}  # fmt: skip
"""Of the tilted mixture: its f starts good, overfits early, and its weights thin out as it goes."""


def adversarial_dynamics(split: Split, seed: int) -> Fit:
    """`ade.fit` as it is: an MLP on a Gaussian base measure, a spline flow and leapfrog as the sampler."""
    fitted = ade.fit(split.train, validation=split.validation, test_fraction=0.0, seed=seed, progress=False)
    return _trained(fitted, split)


def tilted_mixture(split: Split, seed: int) -> Fit:
    """`ade.fit` with the mixture above as f's base measure, and as where the sampler starts to learn."""
    torch.manual_seed(seed)
    fitted = _best_mixture(split, seed)
    potential = Tilted(ade.MLPPotential(split.dim, _TILT["hidden"], _TILT["activation"]), Mixture.of(fitted))
    steps = torch.full((_TILT["n_steps"], split.dim), 0.05)
    sampler = ade.DualSampler(Mixture.of(fitted), ade.Leapfrog(len(steps), steps))
    model = ade.fit(split.train, potential, sampler, validation=split.validation, seed=seed, progress=False, **_TILT)
    return _trained(model, split)


def _trained(model: ade.TrainedModel, split: Split) -> Fit:
    with torch.no_grad():
        log_prob = model.log_prob(split.test)
    return Fit(log_prob, f"update {model.update}", model.log_z_standard_error, model.ess)


METHODS: dict[str, Callable[[Split, int], Fit]] = {
    "gaussian mixture": gaussian_mixture,
    "neural spline flow": spline_flow,
    "persistent CD": persistent_cd,
    "ADE": adversarial_dynamics,
    "ADE on the mixture": tilted_mixture,
}

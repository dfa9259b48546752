"""The posterior of Bayesian logistic regression: a known density, sampled by a sampler whose step sizes are learned.

Annealed leapfrog from a Gaussian, trained on the evidence's lower bound through its unroll; its importance weights give
the evidence, and resampling them the posterior. Beside it, a long run of plain Hamiltonian Monte Carlo, and blackjax's
NUTS where that is installed.
"""

import importlib.util
import sys

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import ade_fast as ade


class Posterior(nn.Module):
    """log p(y, θ | X): weights and offset, θ ~ N(0, I). (B, d) -> (B,)."""

    def __init__(self, X: Tensor, y: Tensor) -> None:
        super().__init__()
        rows = torch.cat([X, torch.ones(len(X), 1)], 1)
        self.register_buffer("signed", rows * (2 * y - 1).unsqueeze(1))

    def forward(self, theta: Tensor) -> Tensor:
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(theta).sum(1)
        return prior + nn.functional.logsigmoid(theta @ self.signed.T).sum(1)


def hmc(f: nn.Module, dim: int, n_chains: int, n_draws: int, burn_in: int) -> Tensor:
    """Plain Hamiltonian Monte Carlo, Metropolis-corrected, by the same layer: (n_draws, n_chains, dim)."""
    move = ade.Leapfrog(10, 0.06, learn_step_size=False, gradient="none")
    x, draws = torch.zeros(n_chains, dim), []
    with torch.no_grad():
        for step in range(burn_in + n_draws):
            v = torch.randn_like(x)
            x_new, v_new, _ = move(f, x, v)
            log_ratio = f(x_new) - f(x) - 0.5 * (v_new.square() - v.square()).sum(1)
            x = torch.where((torch.rand(n_chains).log() < log_ratio).unsqueeze(1), x_new, x)
            if step >= burn_in:
                draws.append(x)
    return torch.stack(draws)


def nuts(f: Posterior, n_draws: int, warm_up: int) -> Tensor:
    """One chain of blackjax's NUTS, its step size and mass matrix adapted: (n_draws, dim)."""
    import blackjax
    import jax
    import jax.numpy as jnp

    signed = jnp.asarray(f.signed.numpy())

    def log_density(theta: jax.Array) -> jax.Array:
        return -0.5 * (theta**2).sum() + jax.nn.log_sigmoid(signed @ theta).sum()

    keys = jax.random.split(jax.random.key(0), n_draws + 1)
    adapted, _ = blackjax.window_adaptation(blackjax.nuts, log_density).run(
        keys[0], jnp.zeros(signed.shape[1]), warm_up
    )
    step = blackjax.nuts(log_density, **adapted.parameters).step
    _, draws = jax.lax.scan(lambda state, key: (step(key, state)[0], state.position), adapted.state, keys[1:])
    return torch.tensor(draws.tolist())


def main(smoke: bool = False) -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    updates, n_samples, n_draws = (3, 1000, 20) if smoke else (150, 10_000, 200)
    table = load_breast_cancer()
    X = torch.from_numpy(table.data[:, :4]).float()
    f = Posterior((X - X.mean(0)) / X.std(0), torch.from_numpy(table.target).float())

    initial = ade.initial.Gaussian(5, 0.5, learnable=True)
    sampler = ade.DualSampler(
        initial, ade.AnnealedLeapfrog(10, torch.full((10, 5), 0.05))
    )  # a step size per step and θ
    optimizer = torch.optim.Adam(sampler.parameters(), 1e-2)
    for _ in range(updates):
        sample = sampler.sample(f, 128)
        loss = (sample.log_q - f(sample.x) + 0.5 * sample.v.square().sum(1)).mean()  # minus the bound, up to a constant
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sampler.parameters(), 10.0)
        optimizer.step()

    evidence = ade.metrics.log_z(f, sampler, n_samples)
    draws = sampler.resample(f, n_samples // 10, n_proposals=n_samples).x
    chain = hmc(f, 5, 64, n_draws, burn_in=n_draws // 2).flatten(0, 1)
    error = ((draws.mean(0) - chain.mean(0)) / chain.std(0)).abs().max().item()
    print(f"log evidence {evidence.log_z:.3f} ± {evidence.standard_error:.3f}, ESS {evidence.ess:.2f}")
    print(f"posterior mean {draws.mean(0).tolist()}\nHMC's          {chain.mean(0).tolist()}")
    print(f"posterior std  {draws.std(0).tolist()}\nHMC's          {chain.std(0).tolist()}")
    print(f"largest difference of the means: {error:.3f} posterior standard deviations")
    if importlib.util.find_spec("blackjax") is None:
        print("blackjax is not installed: no comparison with NUTS")
    else:
        other = nuts(f, 100 if smoke else 20_000, 50 if smoke else 1000)
        apart = ((other.mean(0) - draws.mean(0)) / other.std(0)).abs().max().item()
        print(f"largest difference from the means of NUTS: {apart:.3f} posterior standard deviations")
    return {"error": error, "ess": evidence.ess, "spread": float((draws.std(0) / chain.std(0)).log().abs().max())}


if __name__ == "__main__":
    main("--smoke" in sys.argv)

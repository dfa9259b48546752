"""Your own nn.Module as the potential, in a plain training loop with your own optimizers."""

import sys

import torch
from torch import nn

import ade_fast as ade


class Potential(nn.Module):
    """A linear reading of a small network's features less a quadratic one: any module from (B, 2) to (B,) will do."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
        self.up, self.down = nn.Linear(64, 1), nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.features(x)
        return self.up(features).squeeze(1) - 0.05 * self.down(features).square().sum(1)


def main(smoke: bool = False) -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    updates, n_samples = (5, 2000) if smoke else (1000, 20_000)
    data = ade.data.toy("moons")

    potential = ade.WithBase(Potential(), 0.0, 3.0)  # times N(x; 0, 3²): exp f has an integral, whatever f learns
    sampler = ade.DualSampler(ade.initial.SplineFlow(2), ade.Leapfrog(2, 0.1, grad_clip=ade.Clip.norm(10.0)))
    model = ade.recipe(potential, sampler)  # here for its loss; `model.step(x)` would do all of the loop's body
    ascent = torch.optim.Adam(potential.parameters(), 2e-3, betas=(0.5, 0.999), maximize=True)
    descent = torch.optim.Adam(sampler.parameters(), 2e-3, betas=(0.5, 0.999))
    for _ in range(updates):
        x = data.sample(256) / 2
        ascent.zero_grad()
        descent.zero_grad()
        model.loss(x).backward()  # the gradients of both players, through the sampler's steps, from one unroll
        nn.utils.clip_grad_norm_(potential.parameters(), 1.0)
        nn.utils.clip_grad_norm_(sampler.parameters(), 1.0)
        ascent.step()
        descent.step()

    found = ade.metrics.log_likelihood(potential, sampler, data.sample(2000) / 2, n_samples=n_samples)
    print(found)
    return {"log_likelihood": found.mean, "ess": found.ess}


if __name__ == "__main__":
    main("--smoke" in sys.argv)

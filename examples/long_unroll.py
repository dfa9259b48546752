"""A long unroll with a step size for each step, learned through all of it, keeping only the states."""

import sys

import torch

import ade_fast as ade


def main(smoke: bool = False) -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    steps, updates = (20, 2) if smoke else (200, 60)
    # A fixed, ill-conditioned density, N(0, diag(1, 0.1²)): how far should Hamiltonian Monte Carlo step, and when?
    std = torch.tensor([1.0, 0.1])
    potential = ade.GaussianPotential(2).requires_grad_(False)
    potential.log_std.copy_(std.log())
    layer = ade.Leapfrog(steps, torch.full((steps, 2), 0.002), memory="states")  # a size per step and dimension
    optimizer = torch.optim.Adam(layer.parameters(), 5e-4)
    jumps = []
    for _ in range(updates):
        x0, v0 = std * torch.randn(256, 2), torch.randn(256, 2)
        x, v, _ = layer(potential, x0, v0)
        log_ratio = potential(x) - potential(x0) - 0.5 * (v.square() - v0.square()).sum(1)
        accepted = log_ratio.clamp(max=0).exp()
        # The expected squared jump, in standard deviations: 0 where nothing moves, 2 per dimension for a fresh sample.
        jump = (accepted * ((x - x0) / std).square().sum(1)).mean()
        optimizer.zero_grad()
        (-jump).backward()  # exact, through every step
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()
        jumps.append(jump.item())
    kept = ade.memory_forecast(potential, layer, (256, 2))
    print(f"bytes for the backward pass: {', '.join(f'{plan} {size:,}' for plan, size in kept.items())}")
    eta = layer.step_size.detach()
    print(f"squared jump {jumps[0]:.2f} -> {jumps[-1]:.2f}, accepted {accepted.mean():.2f}")
    print(f"step sizes, mean of each dimension: {eta.mean(0).tolist()}; plan: {layer.last_plan}")
    return {"first": jumps[0], "last": jumps[-1]}


if __name__ == "__main__":
    main("--smoke" in sys.argv)

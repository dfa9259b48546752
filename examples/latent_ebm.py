"""An energy-based model of a frozen encoder's features: digits, encoded to 8 numbers, drawn by decoding samples."""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import ade_fast as ade

SMOKE = {"updates": 10, "test_samples": 50, "test_permutations": 20}
SMOKE |= {"likelihood_samples": 500, "test_likelihood_samples": 500}


def autoencoder(images: torch.Tensor, n_latent: int, updates: int) -> tuple[nn.Module, nn.Module]:
    """Trained, then frozen: stands for whatever encoder you have."""
    encoder = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, n_latent))
    decoder = nn.Sequential(nn.Linear(n_latent, 128), nn.SiLU(), nn.Linear(128, 64))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 2e-3)
    for _ in range(updates):
        batch = images[torch.randint(len(images), (256,))]
        loss = (decoder(encoder(batch)) - batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder.requires_grad_(False), decoder.requires_grad_(False)


def main(smoke: bool = False) -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = torch.from_numpy(load_digits().data / 16).float()
    images = images[torch.randperm(len(images))]
    encoder, decoder = autoencoder(images[:1500], 8, updates=20 if smoke else 1500)

    settings = SMOKE if smoke else {"updates": 1500}
    features = encoder(images)
    model = ade.fit(features[:1500], **settings, progress=not smoke)
    score = model.score(features[1500:])
    mean, covariance = features[:1500].mean(0), torch.cov(features[:1500].T)
    gaussian = torch.distributions.MultivariateNormal(mean, covariance).log_prob(features[1500:]).mean().item()
    drawn = decoder(model.sample(16, exact="none")).clamp(0, 1).view(-1, 8, 8)
    print(f"held-out log-likelihood of features {score:.2f} nats (a Gaussian: {gaussian:.2f}), ESS {model.ess:.2f}")
    for row in drawn[0]:
        print("".join(" .:-=+*#%@"[round(9 * value)] for value in row.tolist()))
    return {"score": score, "gaussian": gaussian}


if __name__ == "__main__":
    main("--smoke" in sys.argv)

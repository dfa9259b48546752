"""A density of your own two-dimensional points, in ten lines: fit, score, sample."""

import sys

import numpy as np

import ade_fast as ade

SMOKE = {"updates": 10, "test_samples": 50, "test_permutations": 20, "progress": False}
SMOKE |= {"likelihood_samples": 500, "test_likelihood_samples": 500}


def main(smoke: bool = False) -> dict[str, float]:
    settings = SMOKE if smoke else {"updates": 1500}
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 5000)  # your own points here: any array (n, d)
    points = np.stack([50 + 10 * np.cos(angle), 3 * np.sin(angle)], 1) + rng.normal(0, 0.4, (5000, 2))

    model = ade.fit(points[:4500], **settings)
    score = model.score(points[4500:])  # mean log-likelihood of new points, in nats
    samples = model.sample(1000, exact="resample")
    print(f"log-likelihood {score:.3f}, ESS {model.ess:.2f}, mean of samples {samples.mean(0).tolist()}")
    return {"score": score, "ess": model.ess, "mean": float(samples[:, 0].mean())}


if __name__ == "__main__":
    main("--smoke" in sys.argv)

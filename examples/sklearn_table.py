"""The scikit-learn estimator on a table: the density of five columns, beside a Gaussian; unlikely rows are outliers."""

import sys

import numpy as np
from scipy.stats import multivariate_normal
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import ade_fast as ade

SMOKE = {"test_samples": 50, "test_permutations": 20, "likelihood_samples": 500, "test_likelihood_samples": 500}


def main(smoke: bool = False) -> dict[str, float]:
    table = load_breast_cancer()
    benign = table.data[table.target == 1][:, :5]
    malignant = table.data[table.target == 0][:, :5]
    train, test = train_test_split(benign, random_state=0, test_size=0.3)
    settings = SMOKE if smoke else {}
    model = make_pipeline(
        StandardScaler(), ade.EnergyEstimator(updates=10 if smoke else 1000, random_state=0, settings=settings)
    )
    model.fit(train)

    scaler, energy = model[0], model[-1]
    score = energy.score(scaler.transform(test))
    rows = scaler.transform(train)
    gaussian = multivariate_normal(rows.mean(0), np.cov(rows.T)).logpdf(scaler.transform(test)).mean()
    odd = energy.score(scaler.transform(malignant))
    print(f"mean log-likelihood of held-out rows {score:.2f} (a Gaussian: {gaussian:.2f}), of malignant ones {odd:.2f}")
    return {"score": score, "gaussian": gaussian, "odd": odd}


if __name__ == "__main__":
    main("--smoke" in sys.argv)

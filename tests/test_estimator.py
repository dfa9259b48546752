"""`ade.EnergyEstimator`: scikit-learn's own checks, and that it says what `ade.fit` says."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from training_cases import generator

import ade_fast as ade

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

QUICK = {
    "validate_every": 2,
    "likelihood_samples": 20,
    "test_likelihood_samples": 20,
    "test_samples": 2,
    "test_permutations": 1,
    "tensorboard": "off",
}


def estimator(**changes) -> ade.EnergyEstimator:
    sizes = {"updates": 2, "batch_size": 8, "hidden": (8,), "initial": "gaussian", "n_steps": 1}
    return ade.EnergyEstimator(**sizes, settings=QUICK, **{"random_state": 0, **changes})


ROUNDING = "f is evaluated in float32: a row's log-density depends on the rest of its batch by rounding, seen below"


def checks_that_do_not_apply(estimator) -> dict[str, str]:
    return {"check_methods_subset_invariance": ROUNDING}  # which wants seven digits


@pytest.mark.filterwarnings("ignore")  # of a model of two updates: that its weights say little
@parametrize_with_checks([estimator()], expected_failed_checks=checks_that_do_not_apply)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore")
def test_it_is_the_fitted_model():
    X = torch.randn(100, 3, generator=generator()).numpy().astype(np.float64)
    fitted = estimator().fit(X)
    log_prob = fitted.model_.log_prob(X)
    assert fitted.n_features_in_ == 3 and fitted.score_samples(X).dtype == np.float64
    np.testing.assert_array_equal(fitted.score_samples(X), log_prob.numpy())
    assert fitted.score(X) == pytest.approx(log_prob.mean().item())
    samples = fitted.sample(50, random_state=1)
    assert samples.shape == (50, 3) and (samples == fitted.sample(50, random_state=1)).all()
    assert not (samples == fitted.sample(50, random_state=2)).any()
    np.testing.assert_allclose([fitted.score_samples(x[None]).item() for x in X], log_prob.numpy(), atol=1e-4)
    again = clone(fitted).fit(X)
    np.testing.assert_array_equal(again.score_samples(X), fitted.score_samples(X))


def test_defaults_are_the_recipes():
    config = ade.training.Config()
    for name, value in ade.EnergyEstimator().get_params().items():
        if name not in ("settings", "random_state", "verbose"):
            assert value == getattr(config, name)


def test_without_scikit_learn_it_is_one_line_and_the_rest_works():
    code = "import sys; sys.modules['sklearn'] = sys.modules['sklearn.base'] = None; import ade_fast as ade; ade.ADE; "
    done = subprocess.run([sys.executable, "-c", code + "ade.EnergyEstimator"], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ImportError: ade.EnergyEstimator needs scikit-learn")

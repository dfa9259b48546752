"""Metrics: log-likelihood and log Z of a potential, and of sample quality two-sample tests and the inception score."""

from .bracket import LogZBracket, log_z_bracket
from .chains import ChainDiagnostics, chain_diagnostics
from .energies import EnergyHistogram, energy_histogram
from .inception import InceptionScore, inception_score
from .likelihood import LogLikelihood, LogZ, log_likelihood, log_z
from .mmd import FINE, MMDTest, mmd2, mmd_test
from .stein import KSDTest, ksd_test
from .two_sample import ClassifierTest, classifier_two_sample_test

__all__ = [
    "FINE",
    "ChainDiagnostics",
    "ClassifierTest",
    "EnergyHistogram",
    "InceptionScore",
    "KSDTest",
    "LogLikelihood",
    "LogZ",
    "LogZBracket",
    "MMDTest",
    "chain_diagnostics",
    "classifier_two_sample_test",
    "energy_histogram",
    "inception_score",
    "ksd_test",
    "log_likelihood",
    "log_z",
    "log_z_bracket",
    "mmd2",
    "mmd_test",
]

"""Metrics: log-likelihood and log Z of a potential, and of sample quality two-sample tests and the inception score."""

from .bracket import LogZBracket, log_z_bracket
from .inception import InceptionScore, inception_score
from .likelihood import LogLikelihood, LogZ, log_likelihood, log_z
from .mmd import FINE, MMDTest, mmd2, mmd_test
from .two_sample import ClassifierTest, classifier_two_sample_test

__all__ = [
    "FINE",
    "ClassifierTest",
    "InceptionScore",
    "LogLikelihood",
    "LogZ",
    "LogZBracket",
    "MMDTest",
    "classifier_two_sample_test",
    "inception_score",
    "log_likelihood",
    "log_z",
    "log_z_bracket",
    "mmd2",
    "mmd_test",
]

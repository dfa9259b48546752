"""Metrics of sample quality: maximum mean discrepancy with its permutation test, and the inception score."""

from .inception import InceptionScore, inception_score
from .mmd import MMDTest, mmd2, mmd_test

__all__ = ["InceptionScore", "MMDTest", "inception_score", "mmd2", "mmd_test"]

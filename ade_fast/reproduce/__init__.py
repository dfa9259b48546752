"""The paper's two-dimensional and Gaussian experiments: tables and figures, made again beside the printed numbers.

``ade-fast reproduce`` on the command line; `reproduce` here. `profile` has the settings of the paper and of its
released code.
"""

from .driver import BUDGETS, TARGETS, reproduce
from .jobs import DirectoryError
from .profiles import Profile, profile

__all__ = ["BUDGETS", "TARGETS", "DirectoryError", "Profile", "profile", "reproduce"]

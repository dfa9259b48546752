"""The paper's two-dimensional, Gaussian and image experiments: tables and figures beside the printed ones.

``ade-fast reproduce`` on the command line; `reproduce` here. `profile` has the settings of the paper and of its
released code.
"""

from .driver import BUDGETS, TARGETS, reproduce
from .jobs import DirectoryError
from .profiles import Profile, profile

__all__ = ["BUDGETS", "TARGETS", "DirectoryError", "Profile", "profile", "reproduce"]

"""Piecewise-linear potentials as lists of linear steps and kinks, followed through whatever functions they call."""

from .program import Kept, Program, Watch

__all__ = ["Kept", "Program", "Watch"]

"""Pictures of data, samples and densities, in the manner of matplotlib.

``import ade_fast.plots`` (it loads matplotlib). Plain tensors in the data's own units go in, and normalised
log-densities as callables; nothing here knows how a model was trained.

- On one axis, given as ``ax`` or pyplot's current one; the axis is returned: :func:`points` (samples over the data),
  :func:`density` (a log-density on a grid), :func:`curve` (a score over the updates), :func:`energies` (values of f),
  :func:`diagnostics` (some figures of an unroll by its steps), :func:`images` (a grid of them).
- Whole figures, which do not touch pyplot's state: :func:`learned` (what a model has learned), :func:`convergence`
  (how its sampler got there), :func:`unroll` (all diagnostics of an unroll), :func:`comparison` (runs side by side),
  :func:`with_neighbours` (sampled images and the training images nearest to them), :func:`stages_of` (rows of images).
"""

from .axes import window
from .comparison import comparison
from .convergence import convergence, curve
from .density import density
from .diagnostics import diagnostics, unroll
from .energies import energies
from .images import images, stages_of, with_neighbours
from .learned import learned
from .points import points

__all__ = [
    "comparison",
    "convergence",
    "curve",
    "density",
    "diagnostics",
    "energies",
    "images",
    "learned",
    "points",
    "stages_of",
    "unroll",
    "window",
    "with_neighbours",
]

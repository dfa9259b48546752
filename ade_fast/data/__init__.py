"""Data: the two-dimensional sets of Table 2 and readers of published image sets, all as torch tensors."""

from .images import LabelledImages, cifar10, digits, mnist
from .toy import TOY_NAMES, Toy, toy
from .toy_density import Entropy

__all__ = ["TOY_NAMES", "Entropy", "LabelledImages", "Toy", "cifar10", "digits", "mnist", "toy"]

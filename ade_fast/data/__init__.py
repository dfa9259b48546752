"""Data: the two-dimensional sets of Table 2, own tables, and readers of published image sets, as torch tensors."""

from .images import LabelledImages, cifar10, digits, mnist
from .standardizer import Standardizer
from .table_files import load_table
from .tables import DataError, as_table
from .toy import TOY_NAMES, Toy, toy
from .toy_density import Entropy
from .training_rows import Split, Table, split

__all__ = [
    "TOY_NAMES",
    "DataError",
    "Entropy",
    "LabelledImages",
    "Split",
    "Standardizer",
    "Table",
    "Toy",
    "as_table",
    "cifar10",
    "digits",
    "load_table",
    "mnist",
    "split",
    "toy",
]

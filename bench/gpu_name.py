"""Prints the GPU's name as results files are named after it; fails where torch can use none."""

import sys

import records
import torch

if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} has no GPU that it can use")
print(records.slug({"machine": {"gpu": torch.cuda.get_device_name(), "cpu": ""}}))

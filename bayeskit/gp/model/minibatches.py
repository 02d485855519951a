"""What the mini-batch phases of sparse methods share where their settings leave it open."""

import torch

from bayeskit.core import checks
from bayeskit.core.optimize import Training

TYPES = {"single": torch.float32, "double": torch.float64}

PRECISIONS = ("auto", *TYPES)

SINGLE_ROWS = 8192
"""Rows from which products are in float32: fewer cost little, and then weights equal repeated rows to rounding."""

DEFAULT_STEPS = 400
DEFAULT_BATCH = 1024


def product_type(precision: str, num_rows: int) -> torch.dtype:
    """The type of the products of mini-batch steps over so many rows, from "single", "double" or "auto".

    Raises:
        ValueError: `precision` is none of the three.

    Examples:
        >>> product_type("auto", 100), product_type("auto", 10_000)
        (torch.float64, torch.float32)
    """
    checks.choice(precision, name="precision", options=PRECISIONS)
    if precision == "auto":
        precision = "single" if num_rows >= SINGLE_ROWS else "double"
    return TYPES[precision]


def default_training(num_rows: int) -> Training:
    """About `DEFAULT_STEPS` steps of Adam in batches of `DEFAULT_BATCH`, whatever the number of rows.

    Examples:
        >>> default_training(100_000).max_epochs
        5
    """
    return Training.of_steps(DEFAULT_STEPS, num_rows, lr=0.05, batch_size=DEFAULT_BATCH)

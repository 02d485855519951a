"""Defaults of the mini-batch phases of sparse methods: number type and training settings."""

import torch

from bayeskit.core import checks
from bayeskit.core.optimize import Training

TYPES = {"single": torch.float32, "double": torch.float64}

PRECISIONS = ("auto", *TYPES)

SINGLE_ROWS = 8192
"""Number of data from which products are in float32; with fewer, weights equal repeated data to float64 rounding."""

DEFAULT_STEPS = 400
"""Optimizer steps whatever the number of data, so that the cost does not grow with it."""

DEFAULT_BATCH = 1024
"""Data per mini-batch."""


def product_type(precision: str, num_rows: int) -> torch.dtype:
    """The number type of matrix products in mini-batch steps, from "single", "double" or "auto".

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
    """About `DEFAULT_STEPS` steps of Adam in batches of `DEFAULT_BATCH`, for any number of data.

    Examples:
        >>> default_training(100_000).max_epochs
        5
    """
    return Training.of_steps(DEFAULT_STEPS, num_rows, lr=0.05, batch_size=DEFAULT_BATCH)

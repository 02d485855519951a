"""Mean functions of a prior, by name."""

import copy
from typing import Any

import torch
from gpytorch.means import ConstantMean, LinearMean, Mean, ZeroMean
from torch import nn

from bayeskit.core import checks

MEANS = ("constant", "linear", "zero")


def mean_function(mean: Any, num_features: int, num_functions: int) -> Mean:
    """A mean function for each of several functions.

    Args:
        mean: "constant" (learned), "linear" (learned slopes and constant, zero at first), "zero", or any
            `gpytorch.means.Mean`, which is copied and shared unless it has a batch shape.
        num_features: d.
        num_functions: k.

    Raises:
        ValueError: Another name.
        TypeError: Neither a name nor a mean.

    Examples:
        >>> mean_function("linear", 2, 3)(torch.ones(4, 2)).shape
        torch.Size([3, 4])
    """
    batch = torch.Size([num_functions])
    if isinstance(mean, Mean):
        return copy.deepcopy(mean)
    if not isinstance(mean, str):
        raise TypeError(f"`mean` must be one of {list(MEANS)} or a gpytorch.means.Mean; got {type(mean).__name__}")
    checks.choice(mean, name="mean", options=MEANS)
    if mean == "linear":
        linear = LinearMean(num_features, batch_shape=batch)
        for parameter in linear.parameters():
            nn.init.zeros_(parameter)
        return linear
    return ZeroMean() if mean == "zero" else ConstantMean(batch_shape=batch)

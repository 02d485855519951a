"""The model that every method of the table is given: network, prior, noise and rows.

A network of one hidden layer of 16 tanh units, weights `W ~ N(0, 1 / fan-in)` and biases `N(0, 1)`, Gaussian noise of a
variance that is known, and split 0 of a UCI table with inputs and target standardized by the training rows. The prior
says of itself that its scale is known, and the noise that it is not learnt, so that no method chooses either.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bayeskit import bnn
from bayeskit.bnn.weights.weight_posterior import GaussianWeights
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data

NOISE = {"concrete": 0.1, "energy": 0.01}
"""Noise variances in units of the target's: about the squared test error that networks reach, and less on no table."""

HIDDEN = 16


@dataclass(frozen=True, eq=False)
class Problem:
    """A posterior and the test inputs.

    Args:
        name: Of the table.
        prior: With a Gaussian distribution of known scale over the p weights.
        likelihood: Gaussian noise that is not learnt.
        data: The training rows.
        x: Test inputs (t, d).
        y: Test targets (t,).
    """

    name: str
    prior: bnn.BayesNet
    likelihood: Gaussian
    data: Data
    x: Tensor
    y: Tensor


def load(name: str) -> Problem:
    """A table of the folder `uci` of `BAYESKIT_DATA`."""
    table = np.load(Path(os.environ["BAYESKIT_DATA"]) / "uci" / f"{name}.npz")
    train, test = table["train_idx"][0], table["test_idx"][0]
    x, y = (standardized(table[key], train) for key in ("X", "y"))
    torch.manual_seed(0)
    network = bnn.MLP(x.shape[1], 1, hidden=(HIDDEN,), activation=nn.Tanh, dtype=torch.float64)
    data = Data(x[train], y[train, None])
    return Problem(name, known(network), Gaussian(NOISE[name], learn=False), data, x[test], y[test])


def known(network: nn.Module) -> bnn.BayesNet:
    """The library's prior of a network, to be taken as it is."""
    prior = bnn.gaussian_prior(network)
    assert isinstance(prior.weights, GaussianWeights)
    return replace(prior, weights=replace(prior.weights, scale_known=True))


def standardized(values: np.ndarray, train: np.ndarray) -> Tensor:
    return torch.from_numpy((values - values[train].mean(0)) / values[train].std(0))

"""The default prior over a network, or over an MLP that is built here."""

from typing import Any

import torch

from bayeskit.bnn.networks.builders import build
from bayeskit.bnn.networks.functional import call, parameters, size
from bayeskit.bnn.pushforward.bayes_net import BayesNet, gaussian_prior
from bayeskit.core.inputs import Inputs, as_inputs
from bayeskit.core.modules import cannot_take

SMALL = 50_000
"""Weights up to which a network built here runs in float64 on a CPU, as scikit-learn's invariance checks need."""


def default_prior(
    network: Any,
    x: Inputs,
    num_outputs: int,
    *,
    dtype: torch.dtype | None = None,
    generator: torch.Generator,
) -> BayesNet:
    """A Gaussian prior over a user's network, or over an `MLP` with two hidden layers of 50.

    Args:
        network: A module (copied), a callable `(in_features, out_features) -> Module`, or None.
        x: Inputs (n, *input_shape), of which the number of features and the device are used.
        num_outputs: Outputs k that the likelihood needs.
        dtype: Floating type of the weights; None keeps that of a user's network; for an `MLP` it is float64 if
            small and on a CPU, else float32.
        generator: Seeds the initial values.

    Raises:
        ValueError: The network cannot take the inputs, or does not return k outputs.

    >>> prior = default_prior(None, torch.zeros(5, 3), 2, generator=torch.Generator().manual_seed(0))
    >>> prior(torch.zeros(5, 3)).mean.shape
    torch.Size([5, 2])
    """
    x = as_inputs(x)
    built = build(network, x.shape[1:].numel(), num_outputs, generator=generator)
    if network is None:
        small = size(parameters(built)) <= SMALL and x.device.type == "cpu"
        dtype = dtype or (torch.float64 if small else torch.float32)
    built = built.to(device=x.device, dtype=dtype)
    prior = gaussian_prior(built)
    row = x[:1]
    try:
        outputs = call(built, parameters(built), row).shape[-1]
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise cannot_take(row, error) from error
    if outputs != num_outputs:
        raise ValueError(
            f"The network returns {outputs} outputs, and the likelihood needs {num_outputs}; change its last layer."
        )
    return prior

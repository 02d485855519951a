"""Data as Gaussian-process inference wants it: checked, in float64, in an order of its own."""

import numpy as np
import torch

from bayeskit.core import checks
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.types import Data
from bayeskit.gp.process import GaussianProcess


def training_set(prior: GaussianProcess, likelihood: Likelihood, data: Data) -> Data:
    """The rows that count, sorted, in float64 (class codes stay integers), weights dropped where all are one.

    A row of weight zero is left out. Sorting rows by their content makes every later step, down to the shuffling of
    mini-batches, independent of the order in which the data came.

    Raises:
        ValueError: A shape is wrong, a value is not finite, a weight is negative, or the prior has another number of
            outputs than the likelihood needs.
    """
    x = checks.tensor(data.x[:], name="data.x").double()
    y = data.y.double() if data.y.is_floating_point() else data.y
    if x.dim() != 2:
        raise ValueError(f"Gaussian processes take inputs of shape (n, d); got `data.x` of shape {tuple(x.shape)}")
    if len(y) and prior.num_outputs != likelihood.num_latents(y):
        raise ValueError(
            f"{type(likelihood).__name__} on these targets needs {likelihood.num_latents(y)} latent functions; "
            f"the prior has `num_outputs={prior.num_outputs}`. Build it with `default_prior(x, num_outputs=...)`."
        )
    checks.finite(x, name="data.x")
    checks.finite(y, name="data.y")
    weights = None if data.weights is None else data.weights.to(x)
    if weights is not None:
        checks.finite(weights, name="data.weights")
        if (weights < 0).any():
            raise ValueError(f"`data.weights` must not be negative; got a smallest weight of {weights.min().item():g}")
        counted = weights > 0
        x, y, weights = x[counted], y[counted], weights[counted]
    rows = Data(x, y, weights).rows(_order(x, y, weights))
    return Data(rows.x, rows.y, None if weights is None or bool((weights == 1).all()) else rows.weights)


def inputs(data: Data) -> torch.Tensor:
    """The inputs of a training set or of a batch of it, (n, d)."""
    assert isinstance(data.x, torch.Tensor)
    return data.x


def _order(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Row numbers in lexicographic order of (x, y, weight)."""
    columns = [x, (y if y.dim() > 1 else y.unsqueeze(-1)).double()] + (
        [] if weights is None else [weights.unsqueeze(-1)]
    )
    keys = torch.cat(columns, dim=-1).cpu().numpy()
    return torch.from_numpy(np.lexsort(keys.T[::-1])).to(x.device)

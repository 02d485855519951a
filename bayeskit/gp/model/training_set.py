"""Training sets of Gaussian processes: checked, in float64, deduplicated and sorted."""

import torch

from bayeskit.core import checks
from bayeskit.core.inputs import one_tensor
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.likelihood.support import check_outputs, check_support
from bayeskit.core.types import Data
from bayeskit.gp.process.cg_kernel import IterativelyConditioned
from bayeskit.gp.process.conditioned_kernel import Conditioned
from bayeskit.gp.process.gaussian_process import GaussianProcess


def training_set(prior: GaussianProcess, likelihood: Likelihood, data: Data) -> Data:
    """The distinct data points, sorted, in float64 (class codes stay integers), weights dropped where all are one.

    Points of weight zero or without any observed target (all NaN) are removed, and equal points become one with their
    summed weight: a weight is a number of copies. As points are sorted, every later step, including the shuffling of
    mini-batches, is independent of the order and the repetitions of the data.

    Raises:
        ValueError: A shape is wrong, a value is infinite, an input or a weight is NaN, a weight is negative, a target
            lies outside the support of the likelihood, the prior has another number of outputs than the likelihood
            needs, or an output has no observation at all and the prior was not conditioned on data before.
    """
    x = checks.tensor(one_tensor(data.x), name="data.x").double()
    y = data.y.double() if data.y.is_floating_point() else data.y
    if x.dim() != 2:
        raise ValueError(f"Gaussian processes take inputs of shape (n, d); got `data.x` of shape {tuple(x.shape)}")
    checks.same_length(x, y, names=("data.x", "data.y"))
    if data.weights is not None:
        checks.same_length(x, data.weights, names=("data.x", "data.weights"))
    check_outputs(likelihood, y, prior.num_outputs)
    checks.finite(x, name="data.x")
    check_support(likelihood, y, name="data.y")
    weights = None if data.weights is None else data.weights.to(x)
    if weights is not None:
        checks.finite(weights, name="data.weights")
        if (weights < 0).any():
            raise ValueError(f"`data.weights` must not be negative; got a smallest weight of {weights.min().item():g}")
        counted = weights > 0
        x, y, weights = x[counted], y[counted], weights[counted]
    if y.is_floating_point():
        if not isinstance(prior.kernel, Conditioned | IterativelyConditioned):
            checks.observed(y, name="data.y")
        seen = ~y.isnan() if y.dim() == 1 else ~y.isnan().all(-1)
        x, y, weights = x[seen], y[seen], None if weights is None else weights[seen]
    return _merged(x, y, weights)


def inputs(data: Data) -> torch.Tensor:
    """The inputs of a training set or of a batch of it, (n, d)."""
    assert isinstance(data.x, torch.Tensor)
    return data.x


def _merged(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | None) -> Data:
    """The distinct points (x, y) in lexicographic order, each with the summed weight of its copies."""
    targets = y if y.dim() > 1 else y.unsqueeze(-1)
    if not len(x):
        return Data(x, y)
    columns = [x, targets.double()]
    if bool(targets.isnan().any()):  # NaN is neither equal nor ordered: use a number and a flag
        columns = [x, targets.nan_to_num(nan=0.0), targets.isnan().double()]
    table, position, copies = torch.unique(torch.cat(columns, dim=-1), dim=0, return_inverse=True, return_counts=True)
    total = copies.to(x) if weights is None else torch.zeros_like(table[:, 0]).index_add(0, position, weights)
    d, t = x.shape[-1], targets.shape[-1]
    x, targets = table[:, :d].contiguous(), table[:, d : d + t].to(y.dtype)
    if table.shape[-1] > d + t:
        targets = targets.masked_fill(table[:, d + t :] > 0, torch.nan)
    y = targets.contiguous() if y.dim() > 1 else targets.squeeze(-1)
    return Data(x, y, None if bool((total == 1).all()) else total)

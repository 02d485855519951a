"""Simulation-based calibration of a sampler on data drawn from its own model."""

from typing import Any

import torch
from scipy import stats
from torch import Tensor

from bayeskit.core import checks


def calibration_ranks(draws: Any, truth: Any) -> Tensor:
    """The rank of the true parameter among the draws of its chain: uniform on 0 to n for exact posterior draws.

    Draw parameters from the prior and data from the model given these, c times, and give each chain its own data: one
    run of c chains on a log density of c data sets then calibrates a sampler. Ranks
    concentrated at both ends indicate under-dispersed draws, in the middle over-dispersed draws, at one end biased
    draws. Autocorrelated draws concentrate ranks at the ends, too: thin them.

    Args:
        draws: (c, n, *shape), one chain for each simulated data set.
        truth: The parameters that generated the data sets, (c, *shape).

    Returns:
        The number of draws below the truth, (c, *shape), integers from 0 to n.

    References:
        Talts, Betancourt, Simpson, Vehtari and Gelman (2018), Validating Bayesian inference algorithms with
        simulation-based calibration, section 3.

    Examples:
        >>> calibration_ranks(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([2.5, 7.0]))
        tensor([2, 3])
    """
    values, true = checks.tensor(draws, name="draws").detach(), checks.tensor(truth, name="truth").detach()
    if values.ndim < 2 or true.shape != values.shape[:1] + values.shape[2:]:
        raise ValueError(
            "`draws` must have shape (c, n, *shape) and `truth` (c, *shape), a data set for each chain; "
            f"got {tuple(values.shape)} and {tuple(true.shape)}"
        )
    return (values < true.unsqueeze(1)).sum(1)


def calibration_test(ranks: Any, num_draws: int, *, num_bins: int = 20) -> Tensor:
    """The p-value of the chi-square test that ranks are uniform.

    Args:
        ranks: (c, *shape), integers from 0 to `num_draws`, as `calibration_ranks` returns them.
        num_draws: Number of draws n of each chain.
        num_bins: Number of bins of about equal size; about ten ranks or more should fall into each.

    Returns:
        A p-value for each quantity, (*shape,) in float64.

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> even, low = torch.randint(100, (1000,), generator=g), torch.randint(90, (1000,), generator=g)
        >>> bool(calibration_test(even, 99) > 0.01), bool(calibration_test(low, 99) < 1e-6)
        (True, True)
    """
    values = checks.tensor(ranks, name="ranks").detach().long()
    checks.positive(num_draws, name="num_draws", integer=True)
    checks.positive(num_bins, name="num_bins", integer=True)
    if len(values) == 0 or values.min() < 0 or values.max() > num_draws:
        raise ValueError(f"`ranks` must be integers of 0 to `num_draws`, {num_draws}")
    bins = min(num_bins, num_draws + 1)
    share = (torch.arange(num_draws + 1) * bins // (num_draws + 1)).bincount() / (num_draws + 1)
    flat = (values.cpu() * bins // (num_draws + 1)).reshape(len(values), -1)  # (c, m)
    counts = torch.stack([column.bincount(minlength=bins) for column in flat.unbind(1)])  # (m, bins)
    expected = len(values) * share.double()
    score = ((counts - expected).square() / expected).sum(-1)
    return torch.from_numpy(stats.chi2.sf(score.numpy(), bins - 1)).reshape(values.shape[1:])

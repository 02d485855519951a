"""The kernel Stein discrepancy between draws and a density, from gradients, without reference draws."""

import torch
from torch import Tensor

from bayeskit.mcmc.base.log_density import LogDensity, Position, ravel, value_and_gradient

BLOCK = 500
"""Number of draws whose pairs with all others are in memory at a time."""


def ksd(log_density: LogDensity, samples: Position, *, units: Tensor | None = None) -> Tensor:
    """The kernel Stein discrepancy between draws and the distribution of a log density; 0 only if they agree.

    `KSD^2 = mean of k0(x_i, x_j) over all pairs`, where with `d = x - y`, scores s and `k = (1 + |d|^2)^(-1/2)`

        k0(x, y) = s(x)' s(y) k + (s(x) - s(y))' d k^3 + p k^3 - 3 |d|^2 k^5

    It detects bias, which autocorrelations and R-hat do not. With n draws from the distribution itself it is about
    `sqrt(E|s|^2 + p) / sqrt(n)`; a value well above that indicates bias.

    Args:
        log_density: Maps leaves (c, *shape) to (c,).
        samples: Leaves (s, *shape): chains and draws on one axis (`leaf.flatten(0, 1)`). All pairs are visited.
        units: (p,), such as standard deviations, by which distances are scaled; None for ones. Compare values with the
            same scaling only.

    Returns:
        A number, ().

    References:
        Gorham and Mackey (2017), Measuring sample quality with kernels, section 3, for this kernel.

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(500, 2, generator=g)
        >>> density = lambda q: -0.5 * q["x"].square().sum(-1)
        >>> bool(ksd(density, {"x": x}) < 0.2), bool(ksd(density, {"x": 1.5 * x}) > 0.3)
        (True, True)
    """
    points, gradients = ravel(samples).double(), ravel(value_and_gradient(log_density, samples)[1]).double()
    if units is not None:
        points, gradients = points / units, gradients * units
    total = points.new_zeros(())
    for x, s in zip(points.split(BLOCK), gradients.split(BLOCK), strict=True):
        total += stein_kernel(x, s, points, gradients).sum()
    return (total / len(points) ** 2).clamp_min(0).sqrt()


def stein_kernel(x: Tensor, score_x: Tensor, y: Tensor, score_y: Tensor) -> Tensor:
    """`k0` for all pairs: points (a, p) and (b, p) with their scores give (a, b).

    Examples:
        >>> x = torch.zeros(1, 3)
        >>> stein_kernel(x, x, x, x)  # the dimension, at zero scores
        tensor([[3.]])
    """
    squared = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    k = (1 + squared).rsqrt()
    # (s(x) - s(y))' (x - y), without forming all differences
    across = (x * score_x).sum(-1, keepdim=True) + (y * score_y).sum(-1) - x @ score_y.mT - score_x @ y.mT
    return score_x @ score_y.mT * k + across * k**3 + x.shape[-1] * k**3 - 3 * squared * k**5

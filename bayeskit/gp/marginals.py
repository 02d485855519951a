"""What inducing values say of the function at some inputs, one input at a time.

With f(Z) = L v, v ~ N(q, R R') and A = L^-1 k(Z, x):

    E f(x) - m(x) = A' q,        var f(x) = k(x, x) - |A|^2 + |R' A|^2.
"""

import torch
from torch import Tensor

from bayeskit.gp.conditioned import floored


def marginals(tril: Tensor, cross: Tensor, before: Tensor, mean: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """Shifts of the mean and variances at n inputs, for k outputs, differentiable in every argument.

    Args:
        tril: L, (m, m) or (k, m, m).
        cross: k(Z, x), (m, n) or (k, m, n).
        before: k(x, x), (n,) or (k, n).
        mean: q, (k, m).
        root: R, (k, m, r).

    Returns:
        A' q and the variances, each (k, n).

    Examples:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> shift, variance = marginals(one, one / 2, one[0], one, one.unsqueeze(0))  # v ~ N(1, 1)
        >>> shift.item(), variance.item()
        (0.5, 1.0)
    """
    projection = torch.linalg.solve_triangular(tril, cross, upper=False)
    left = floored(before - projection.square().sum(-2), before)
    return projected(projection, mean), left + (root.mT @ projection).square().sum(-2)


def projected(projection: Tensor, mean: Tensor) -> Tensor:
    """A' q for each output: (k, n) from A of shape (m, n) or (k, m, n) and q (k, m)."""
    if projection.dim() == 2:
        return mean @ projection
    return (mean.unsqueeze(-2) @ projection).squeeze(-2)

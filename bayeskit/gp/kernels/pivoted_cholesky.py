"""Partial Cholesky factor of a kernel matrix, pivoting on the largest remaining variance."""

from collections.abc import Callable

import torch
from torch import Tensor


def pivoted_cholesky(
    diagonal: Tensor, row: Callable[[int], Tensor], rank: int, *, tolerance: float = 1e-12
) -> tuple[Tensor, Tensor]:
    """A factor F with K ~ F F' from few rows of K.

    Step j takes the row with the largest K_ii - |F_i|^2, the variance of f(x_i) given the values at earlier pivots, so
    the pivots are also a greedy choice of inducing points. Ties go to the first.

    Args:
        diagonal: K_ii, (n,).
        row: Returns row i of K, (n,).
        rank: Rows to take at most, r.
        tolerance: Stop when no remaining variance exceeds this share of the largest one.

    Returns:
        F of shape (n, r) and the rows taken, (r,), in order; r is smaller than `rank` where the tolerance stopped.

    References:
        Harbrecht, Peters and Schneider (2012), "On the Low-Rank Approximation by the Pivoted Cholesky Decomposition",
        Algorithm 1.

    Examples:
        >>> k = torch.tensor([[4.0, 2.0], [2.0, 2.0]], dtype=torch.float64)
        >>> factor, pivots = pivoted_cholesky(k.diagonal(), lambda i: k[i], rank=2)
        >>> torch.allclose(factor @ factor.mT, k), pivots.tolist()
        (True, [0, 1])
    """
    remaining = diagonal.double().clone()
    floor = tolerance * float(remaining.max())
    factor = remaining.new_zeros(rank, len(remaining))
    pivots: list[int] = []
    while len(pivots) < rank:
        i, j = int(remaining.argmax()), len(pivots)
        variance = float(remaining[i])
        if variance <= floor:
            break
        factor[j] = (row(i) - factor[:j, i] @ factor[:j]) / variance**0.5
        remaining -= factor[j].square()
        remaining[i] = -torch.inf
        pivots.append(i)
    return factor[: len(pivots)].mT.contiguous(), torch.tensor(pivots, device=diagonal.device, dtype=torch.long)

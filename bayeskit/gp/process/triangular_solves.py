"""Triangular solves of many vectors, one factor for all outputs or one for each."""

import torch
from torch import Tensor


def half_solve(tril: Tensor, values: Tensor) -> Tensor:
    """L^-1 v for v of shape (..., k, m) and L of shape (m, m) or (k, m, m).

    Examples:
        >>> half_solve(2 * torch.eye(3), torch.ones(4, 1, 3)).unique().item()
        0.5
    """
    return _solve(tril, values, upper=False)


def transposed_solve(tril: Tensor, values: Tensor) -> Tensor:
    """L^-T v for v of shape (..., k, m) and L of shape (m, m) or (k, m, m).

    Examples:
        >>> transposed_solve(2 * torch.eye(3), torch.ones(4, 1, 3)).unique().item()
        0.5
    """
    return _solve(tril.mT, values, upper=True)


def _solve(triangle: Tensor, values: Tensor, *, upper: bool) -> Tensor:
    """Solve for the vectors that share a factor as columns of one system, without a copy of the factor for each."""
    if triangle.dim() == 2:
        solution = torch.linalg.solve_triangular(triangle, values.flatten(0, -2).mT, upper=upper).mT
    else:
        columns = values.reshape(-1, *values.shape[-2:]).permute(1, 2, 0)  # (k, m, s)
        solution = torch.linalg.solve_triangular(triangle, columns, upper=upper).permute(2, 0, 1)
    return solution.reshape(values.shape).contiguous()

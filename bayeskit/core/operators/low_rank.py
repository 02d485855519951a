"""Covariances of low rank, alone or on top of a diagonal."""

import torch
from linear_operator import LinearOperator
from linear_operator.operators import (
    AddedDiagLinearOperator,
    DiagLinearOperator,
    LowRankRootAddedDiagLinearOperator,
    LowRankRootLinearOperator,
    RootLinearOperator,
)
from torch import Tensor

from bayeskit.core.operators.algebra import dense_factor, logdet_rule, solve_rule
from bayeskit.core.operators.factor import Factor, factorize


def from_samples(draws: Tensor) -> RootLinearOperator:
    """The covariance of the uniform distribution over stored draws, `1/s sum_i (f_i - mean)(f_i - mean)'`.

    Args:
        draws: (s, *b, N).

    Returns:
        Operator (*b, N, N) of rank at most s - 1; the divisor is s, not s - 1.

    Examples:
        >>> from_samples(torch.tensor([[1.0, 0.0], [5.0, 0.0]] * 2)).to_dense().tolist()
        [[4.0, 0.0], [0.0, 0.0]]
    """
    centered = (draws - draws.mean(0)) / len(draws) ** 0.5
    return RootLinearOperator(centered.movedim(0, -1))


def low_rank_plus_diagonal(root: Tensor, diagonal: Tensor) -> LowRankRootAddedDiagLinearOperator:
    """The covariance `R R' + diag(d)`, solved by Woodbury's identity at a cost linear in N.

    With the capacitance matrix `C = I + R' D^-1 R` of size r, factorized in float64,
    `(R R' + D)^-1 = D^-1 - D^-1 R C^-1 R' D^-1` and `log det (R R' + D) = log det C + log det D`.

    Args:
        root: R, (*b, N, r).
        diagonal: d, (*b, N), not negative; positive where the operator is solved for.

    Returns:
        Operator (*b, N, N).

    References:
        Golub & Van Loan, Matrix Computations, 4th edition, section 2.1.4.

    Examples:
        >>> low_rank_plus_diagonal(torch.ones(2, 1), torch.tensor([1.0, 2.0])).to_dense().tolist()
        [[2.0, 1.0], [1.0, 3.0]]
    """
    terms = (LowRankRootLinearOperator(root), DiagLinearOperator(diagonal))
    return LowRankRootAddedDiagLinearOperator(*terms)  # pyright: ignore[reportArgumentType]: typed as if one pair


@solve_rule.register
def _(op: AddedDiagLinearOperator, rhs: Tensor) -> Tensor:
    parts = _low_rank_parts(op)
    if parts is None:
        return dense_factor(op).solve(rhs).to(rhs.dtype)
    root, diagonal = parts
    scaled, rhs64 = root / diagonal.unsqueeze(-1), rhs.to(torch.float64)
    inner = _capacitance(root, diagonal).solve(scaled.mT @ rhs64)  # (*b, r, c)
    return (rhs64 / diagonal.unsqueeze(-1) - scaled @ inner).to(rhs.dtype)


@logdet_rule.register
def _(op: AddedDiagLinearOperator) -> Tensor:
    parts = _low_rank_parts(op)
    if parts is None:
        return dense_factor(op).logdet().to(op.dtype)
    root, diagonal = parts
    return (_capacitance(root, diagonal).logdet() + diagonal.log().sum(-1)).to(op.dtype)


def _low_rank_parts(op: AddedDiagLinearOperator) -> tuple[Tensor, Tensor] | None:
    """R (*b, N, r) and d (*b, N) in float64, if the operator is R R' + diag(d) with r < N and d > 0."""
    diagonals = [term for term in op.linear_ops if isinstance(term, DiagLinearOperator)]
    roots: list[LinearOperator] = [term for term in op.linear_ops if isinstance(term, RootLinearOperator)]
    if len(diagonals) != 1 or len(roots) != 1:
        return None
    root, diagonal = roots[0].root.to_dense(), diagonals[0].diagonal()  # type: ignore[union-attr]
    if root.shape[-1] >= root.shape[-2] or not (diagonal > 0).all():
        return None
    return root.to(torch.float64), diagonal.to(torch.float64)


def _capacitance(root: Tensor, diagonal: Tensor) -> Factor:
    """The factor of `I + R' D^-1 R`, (*b, r, r), whose eigenvalues are at least one."""
    whitened = root / diagonal.sqrt().unsqueeze(-1)
    identity = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    return factorize(identity + whitened.mT @ whitened, name="the capacitance matrix of a low rank + diagonal")

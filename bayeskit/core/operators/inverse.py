"""A covariance given by its precision: `S = P^-1`."""

import torch
from linear_operator import LinearOperator, to_linear_operator
from linear_operator.operators import DenseLinearOperator, DiagLinearOperator
from torch import Tensor

from bayeskit.core import generators
from bayeskit.core.operators.algebra import (
    block_rule,
    dense_blocks,
    draw_rule,
    half_rule,
    logdet_rule,
    product,
    solve_rule,
)
from bayeskit.core.operators.factor import LinAlgError, factorize


class Inverse(LinearOperator):
    """The inverse `S = P^-1 = L^-T L^-1` of a positive definite precision `P = L L'`, factorized once in float64.

    Products solve with L; `solve` multiplies by `L L'`, `draw` is `L^-T z`, `logdet` reads the diagonal of L.

    Args:
        precision: P, (*b, p, p): a tensor, or an operator (a diagonal one stays diagonal).
        factored: Whether `precision` is already the lower factor L, as when the operator rebuilds itself.

    Attributes:
        tril: L as an operator, in the dtype of the precision.

    Examples:
        >>> covariance = Inverse(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
        >>> (covariance @ torch.ones(2, 1)).flatten().tolist()
        [0.5, 0.25]
    """

    semidefinite = True

    def __init__(self, precision: Tensor | LinearOperator, factored: bool = False):
        tril = to_linear_operator(precision) if factored else _lower(precision)
        super().__init__(tril, factored=True)
        self.tril = tril

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() == 1:
            return self._matmul(rhs.unsqueeze(-1)).squeeze(-1)
        return back_solve(self.tril, forward_solve(self.tril, rhs))

    def _size(self) -> torch.Size:
        return self.tril.shape

    def _transpose_nonbatch(self) -> "Inverse":
        return self

    def _diagonal(self) -> Tensor:
        return self._inverse_tril().square().sum(-2)

    def to_dense(self) -> Tensor:
        """The matrix S, (*b, p, p)."""
        half = self._inverse_tril()
        return half.mT @ half

    def _inverse_tril(self) -> Tensor:
        identity = torch.eye(self.shape[-1], dtype=self.dtype, device=self.device)
        return forward_solve(self.tril, identity.expand(self.shape))

    def _expand_batch(self, batch_shape: torch.Size | list[int]) -> "Inverse":
        return Inverse(self.tril.expand(*batch_shape, *self.matrix_shape), factored=True)


@solve_rule.register
def _(op: Inverse, rhs: Tensor) -> Tensor:
    return product(op.tril, product(op.tril.mT, rhs))


@logdet_rule.register
def _(op: Inverse) -> Tensor:
    return -2 * op.tril.diagonal(dim1=-1, dim2=-2).log().sum(-1)


@draw_rule.register
def _(op: Inverse, num_samples: int, generator: torch.Generator) -> Tensor:
    noise = generators.normal((num_samples, *op.shape[:-1]), like=op.tril.diagonal(), generator=generator)
    return back_solve(op.tril, noise.movedim(0, -1)).movedim(-1, 0)


@half_rule.register
def _(op: Inverse, rhs: Tensor) -> Tensor:
    return forward_solve(op.tril, rhs)


@block_rule.register
def _(op: Inverse, k: int) -> Tensor:
    if isinstance(op.tril, DiagLinearOperator):
        return torch.diag_embed(op.diagonal(dim1=-1, dim2=-2).unflatten(-1, (-1, k)))
    return dense_blocks(op.to_dense(), k)


def forward_solve(tril: LinearOperator, rhs: Tensor) -> Tensor:
    """`L^-1 rhs` for L dense or diagonal."""
    if isinstance(tril, DiagLinearOperator):
        return rhs / tril.diagonal().unsqueeze(-1)
    return torch.linalg.solve_triangular(tril.to_dense(), rhs, upper=False)


def back_solve(tril: LinearOperator, rhs: Tensor) -> Tensor:
    """`L^-T rhs` for L dense or diagonal."""
    if isinstance(tril, DiagLinearOperator):
        return rhs / tril.diagonal().unsqueeze(-1)
    return torch.linalg.solve_triangular(tril.to_dense().mT, rhs, upper=True)


def _lower(precision: Tensor | LinearOperator) -> LinearOperator:
    if isinstance(precision, DiagLinearOperator):
        diagonal = precision.diagonal()
        if not (diagonal > 0).all():
            count = int((~(diagonal > 0)).sum())
            raise LinAlgError(f"a diagonal precision must be positive; got {count} entries that are not")
        return DiagLinearOperator(diagonal.sqrt())
    matrix = precision if isinstance(precision, Tensor) else precision.to_dense()
    return DenseLinearOperator(factorize(matrix, name="the precision").tril.to(matrix.dtype))

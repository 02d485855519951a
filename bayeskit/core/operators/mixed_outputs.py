"""Outputs that are mixtures of independent functions: the covariance of `W g(x)` at many inputs at once."""

import torch
from linear_operator import LinearOperator, to_linear_operator
from torch import Tensor

from bayeskit.core.operators.algebra import block_rule, draw_rule, half_rule, product


class Mixed(LinearOperator):
    """The operator `(I_n (x) W) S (I_n (x) W')` for S the covariance of q independent functions at n inputs.

    Both are point-major: S has row i q + p for function p at input i, this operator row i k + j for output j. Functions
    p != r must be uncorrelated in S (as in a `BlockInterleavedLinearOperator`, or a Kronecker product with a diagonal),
    so that the diagonal costs n k q: var f_ij = sum_p W_jp^2 S_(ip)(ip).

    Args:
        mixing: W, (k, q).
        inner: S, (n*q, n*q); a tensor or an operator.

    Examples:
        >>> op = Mixed(torch.tensor([[1.0], [2.0]]), torch.eye(2))  # two outputs of one function, at two inputs
        >>> op.diagonal().tolist()
        [1.0, 4.0, 1.0, 4.0]
    """

    def __init__(self, mixing: Tensor, inner: LinearOperator | Tensor):
        inner = to_linear_operator(inner)
        super().__init__(mixing, inner)
        self.mixing, self.inner = mixing, inner

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() == 1:
            return self._matmul(rhs.unsqueeze(-1)).squeeze(-1)
        return _apart(self.mixing, product(self.inner, _together(self.mixing, rhs)))

    def _size(self) -> torch.Size:
        k, q = self.mixing.shape[-2:]
        size = self.inner.shape[-1] // q * k
        return torch.Size((*torch.broadcast_shapes(self.mixing.shape[:-2], self.inner.shape[:-2]), size, size))

    def _transpose_nonbatch(self) -> "Mixed":
        return Mixed(self.mixing, self.inner.mT)

    def _diagonal(self) -> Tensor:
        variances = self.inner.diagonal(dim1=-1, dim2=-2)  # (*b, n*q)
        variances = variances.unflatten(-1, (-1, self.mixing.shape[-1]))
        return (variances @ self.mixing.square().mT).flatten(-2)

    def to_dense(self) -> Tensor:
        """The matrix, by mixing rows and columns of S."""
        return _apart(self.mixing, _apart(self.mixing, self.inner.to_dense()).mT).mT


@draw_rule.register
def _(op: Mixed, num_samples: int, generator: torch.Generator) -> Tensor:
    draws = draw_rule(op.inner, num_samples, generator)  # (s, *b, n*q)
    return (draws.unflatten(-1, (-1, op.mixing.shape[-1])) @ op.mixing.mT).flatten(-2)


@block_rule.register
def _(op: Mixed, k: int) -> Tensor:
    outputs, q = op.mixing.shape[-2:]
    if k != outputs:
        return block_rule.dispatch(LinearOperator)(op, k)
    variances = op.inner.diagonal(dim1=-1, dim2=-2).unflatten(-1, (-1, q))  # (*b, n, q)
    mixing = op.mixing.unsqueeze(-3)
    return (mixing * variances.unsqueeze(-2)) @ mixing.mT


@half_rule.register
def _(op: Mixed, rhs: Tensor) -> Tensor:
    return half_rule(op.inner, _together(op.mixing, rhs))


def _apart(mixing: Tensor, rows: Tensor) -> Tensor:
    """(I_n (x) W) v for v of shape (*b, n*q, c): (*b, n*k, c)."""
    return (mixing.unsqueeze(-3) @ rows.unflatten(-2, (-1, mixing.shape[-1]))).flatten(-3, -2)


def _together(mixing: Tensor, rows: Tensor) -> Tensor:
    """(I_n (x) W') v for v of shape (*b, n*k, c): (*b, n*q, c)."""
    return _apart(mixing.mT, rows)

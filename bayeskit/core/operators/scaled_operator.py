"""A change of units: the covariance of `d * f` for f with covariance S."""

import torch
from linear_operator import LinearOperator, to_linear_operator
from torch import Tensor

from bayeskit.core.operators.algebra import block_rule, draw_rule, half_rule, logdet_rule, product, solve_rule


class Scaled(LinearOperator):
    """The operator `D S D` with D = diag(d), in the dtype of d whatever that of S.

    Args:
        scale: d, (N,) or (*b, N).
        inner: S, (*b, N, N); a tensor or an operator.

    Examples:
        >>> op = Scaled(torch.tensor([1.0, 10.0]), torch.ones(2, 2))
        >>> op.to_dense().tolist()
        [[1.0, 10.0], [10.0, 100.0]]
    """

    def __init__(self, scale: Tensor, inner: LinearOperator | Tensor):
        inner = to_linear_operator(inner)
        if scale.shape != inner.shape[:-1]:  # the base class treats the batch axes of all arguments alike
            scale = scale.expand(inner.shape[:-1]).requires_grad_(scale.requires_grad)
        super().__init__(scale, inner)
        self.scale, self.inner = scale, inner

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() == 1:
            return self._matmul(rhs.unsqueeze(-1)).squeeze(-1)
        scale = self.scale.unsqueeze(-1)
        return scale * product(self.inner, (scale * rhs).to(self.inner.dtype)).to(self.scale.dtype)

    def _size(self) -> torch.Size:
        return self.inner.shape

    def _transpose_nonbatch(self) -> "Scaled":
        return Scaled(self.scale, self.inner.mT)

    def _diagonal(self) -> Tensor:
        return self.scale**2 * self.inner.diagonal(dim1=-1, dim2=-2).to(self.scale.dtype)

    def to_dense(self) -> Tensor:
        """The matrix, by scaling that of S."""
        return self.scale.unsqueeze(-1) * self.inner.to_dense().to(self.scale.dtype) * self.scale.unsqueeze(-2)


@solve_rule.register
def _(op: Scaled, rhs: Tensor) -> Tensor:
    scale = op.scale.unsqueeze(-1)
    return solve_rule(op.inner, (rhs / scale).to(op.inner.dtype)).to(rhs.dtype) / scale


@logdet_rule.register
def _(op: Scaled) -> Tensor:
    return logdet_rule(op.inner).to(op.scale.dtype) + 2 * op.scale.abs().log().sum(-1)


@draw_rule.register
def _(op: Scaled, num_samples: int, generator: torch.Generator) -> Tensor:
    return op.scale * draw_rule(op.inner, num_samples, generator).to(op.scale.dtype)


@block_rule.register
def _(op: Scaled, k: int) -> Tensor:
    scale = op.scale.unflatten(-1, (-1, k))  # (n, k)
    return scale[..., :, None] * block_rule(op.inner, k).to(scale.dtype) * scale[..., None, :]


@half_rule.register
def _(op: Scaled, rhs: Tensor) -> Tensor:
    scaled = op.scale.unsqueeze(-1) * rhs
    return half_rule(op.inner, scaled.to(op.inner.dtype)).to(rhs.dtype)

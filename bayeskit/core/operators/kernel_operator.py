"""A covariance given by a GPyTorch kernel, evaluated a few rows at a time."""

from typing import TYPE_CHECKING, Any, cast

import torch
from linear_operator import LinearOperator
from linear_operator.operators import DenseLinearOperator
from torch import Tensor

from bayeskit.core.operators.algebra import block_rule, describe, root_rule
from bayeskit.core.operators.chunking import chunks
from bayeskit.core.operators.factor import JITTERS, semidefinite_root

if TYPE_CHECKING:
    from gpytorch.kernels import Kernel

ROUNDING = torch.finfo(torch.float64).eps / JITTERS[1] ** 0.5
"""Rounding of a covariance after data, as a share of the variance before them, for each row of the matrix.

It grows with the condition of the Cholesky factor solved with, 1e5 where the smallest jitter was needed.
"""

DIAGONAL_ROWS = 2048
"""Rows of the diagonal evaluated at a time: a kernel conditioned on data holds rows x data numbers meanwhile."""


class KernelOperator(LinearOperator):
    """The matrix `k(x1, x2)`, in float64 and never formed unless asked.

    Products evaluate the kernel by chunks of rows, the diagonal by the kernel's own diagonal. While a parameter of
    the kernel requires a gradient the matrix is formed, so that gradients reach it from wherever the operator is used.

    Args:
        x1: Row inputs, (*b, n, d).
        x2: Column inputs, (*b, m, d).
        kernel: Covariance function; its `batch_shape` broadcasts with *b.
        before: Where `kernel` is a small difference of large numbers, as after data, the covariance function before
            them: rounding errors of the matrix are in proportion to its variances. None where nothing cancels.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> x = torch.zeros(3, 1)
        >>> (KernelOperator(x, x, kernel=RBFKernel().requires_grad_(False)) @ torch.ones(3, 1).double()).tolist()
        [[3.0], [3.0], [3.0]]
    """

    def __init__(self, x1: Tensor, x2: Tensor, *, kernel: "Kernel", before: "Kernel | None" = None):
        x1, x2 = x1.double(), x2.double()
        super().__init__(x1, x2, kernel=kernel, before=before)
        self.x1, self.x2, self.kernel, self.before = x1, x2, kernel, before

    def _size(self) -> torch.Size:
        batch = torch.broadcast_shapes(self.x1.shape[:-2], self.x2.shape[:-2], self.kernel.batch_shape)
        return torch.Size((*batch, self.x1.shape[-2], self.x2.shape[-2]))

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() == 1:
            return self._matmul(rhs.unsqueeze(-1)).squeeze(-1)
        row = self.batch_shape.numel() * self.shape[-1]
        return torch.cat([self._rows(rows) @ rhs for rows in chunks(self.shape[-2], row)], -2)

    def _rows(self, rows: slice) -> Tensor:
        matrix = self.kernel(self.x1[..., rows, :], self.x2).to_dense()
        return matrix.expand(*self.batch_shape, *matrix.shape[-2:])

    def _transpose_nonbatch(self) -> "KernelOperator":
        return KernelOperator(self.x2, self.x1, kernel=self.kernel, before=self.before)

    def _diagonal(self) -> Tensor:
        starts = range(0, self.shape[-1], DIAGONAL_ROWS)
        pieces = [slice(start, start + DIAGONAL_ROWS) for start in starts] or [slice(0, 0)]
        values = [self._pairs(self.x1[..., rows, :], self.x2[..., rows, :]) for rows in pieces]
        return torch.cat([piece.expand(*self.batch_shape, -1) for piece in values], -1)

    def _pairs(self, x1: Tensor, x2: Tensor) -> Tensor:
        """`k(x1_i, x2_i)`, (*b, n)."""
        return cast(Tensor, self.kernel(x1, x2, diag=True))

    def to_dense(self) -> Tensor:
        """The matrix, (*b, n, m)."""
        return self._rows(slice(None))

    def evaluate_kernel(self) -> LinearOperator:
        """The matrix, formed."""
        return DenseLinearOperator(self.to_dense())

    def representation(self) -> tuple[Tensor, ...]:
        """The tensors that autograd follows through linear_operator's own functions."""
        return self.evaluate_kernel().representation() if self._learning() else super().representation()

    def representation_tree(self):  # noqa: D102
        return self.evaluate_kernel().representation_tree() if self._learning() else super().representation_tree()

    def _learning(self) -> bool:
        return torch.is_grad_enabled() and any(p.requires_grad for p in self.kernel.parameters())

    def _getitem(self, row_index: Any, col_index: Any, *batch_indices: Any) -> LinearOperator:
        if any(index != slice(None) if isinstance(index, slice) else True for index in batch_indices):
            return self.evaluate_kernel()._getitem(row_index, col_index, *batch_indices)
        x1, x2 = self.x1[..., row_index, :], self.x2[..., col_index, :]
        return KernelOperator(x1, x2, kernel=self.kernel, before=self.before)

    def _get_indices(self, row_index: Any, col_index: Any, *batch_indices: Any) -> Tensor:
        if batch_indices:
            return self.evaluate_kernel()._get_indices(row_index, col_index, *batch_indices)
        rows, cols = torch.broadcast_tensors(row_index, col_index)
        return self._pairs(self.x1[rows.flatten()], self.x2[cols.flatten()]).reshape(rows.shape)

    def _expand_batch(self, batch_shape: torch.Size | list[int]) -> "KernelOperator":
        x1 = self.x1.expand(*batch_shape, *self.x1.shape[-2:])
        return KernelOperator(x1, self.x2, kernel=self.kernel, before=self.before)


@root_rule.register
def _(op: KernelOperator) -> Tensor:
    rounding: Tensor | float = 0.0
    if op.before is not None and op.shape[-1]:
        variance = KernelOperator(op.x1, op.x2, kernel=op.before).diagonal(dim1=-1, dim2=-2)
        rounding = ROUNDING * op.shape[-1] * variance.detach().amax(-1)
    return semidefinite_root(op.to_dense(), name=describe(op), rounding=rounding)


@block_rule.register
def _(op: KernelOperator, k: int) -> Tensor:
    """Entry (j, l) of every block by one evaluation on pairs of inputs: k^2 diagonals in place of the matrix."""
    parts = [(op.x1[..., j::k, :], op.x2[..., j::k, :]) for j in range(k)]
    rows = [
        torch.stack([KernelOperator(x1, x2, kernel=op.kernel).diagonal(dim1=-1, dim2=-2) for _, x2 in parts], -1)
        for x1, _ in parts
    ]
    return torch.stack(rows, -2)

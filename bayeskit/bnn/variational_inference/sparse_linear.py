"""Sparse products for a linear layer whose weight has few nonzero entries."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

CROSSOVER = 0.15
"""Density up to which sparse products are used, as they were measured faster (docs/decisions/sparse-crossover.md)."""

MIN_SIZE = 2**16
"""Entries of a weight from which they are used: products with smaller ones take microseconds either way."""

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns once that sparse CSR tensors are in beta
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))


def is_faster(positions: Tensor, shape: torch.Size) -> bool:
    """Whether sparse products with a weight of this shape are faster than dense ones: few terms, and on a CPU."""
    size = shape.numel()
    return positions.device.type == "cpu" and size >= MIN_SIZE and len(positions) <= CROSSOVER * size


class Pattern:
    """The sparsity pattern of a weight (o, i), in compressed rows and compressed columns.

    Args:
        positions: Sorted positions in the flattened weight, (a,).
        shape: (o, i).

    >>> pattern = Pattern(torch.tensor([1, 5]), torch.Size((2, 3)))
    >>> pattern.linear(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([10.0, 1.0]), None)
    tensor([[20.,  3.]])
    """

    def __init__(self, positions: Tensor, shape: torch.Size):
        self.shape = shape
        rows, columns = positions // shape[1], positions % shape[1]
        self.columns, self.row_starts = columns.int(), _pointers(rows, shape[0])
        order = columns.argsort(stable=True)
        self.order, self.rows, self.column_starts = order.int(), rows[order].int(), _pointers(columns, shape[1])

    def linear(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """`x W' + b` for the weight W with these active entries (a,): (*b, i) to (*b, o)."""
        out = _Product.apply(values, x.reshape(-1, x.shape[-1]), self).reshape(*x.shape[:-1], self.shape[0])
        return out if bias is None else out + bias

    def matrix(self, values: Tensor) -> Tensor:
        """W, (o, i), as a CSR tensor."""
        return _csr(self.row_starts, self.columns, values, self.shape)

    def transposed(self, values: Tensor) -> Tensor:
        """W', (i, o), as a CSR tensor."""
        return _csr(self.column_starts, self.rows, values[self.order], self.shape[::-1])


class _Product(Function):
    """`x W'` (n, o) as a function of the active entries of W and of x (n, i)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values, x)
        ctx.pattern = pattern
        return torch.sparse.mm(pattern.matrix(values), x.mT.contiguous(), reduce="sum").mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, x = ctx.saved_tensors
        outer = grad_outputs[0].mT.contiguous()  # (o, n)
        of_values = of_x = None
        if ctx.needs_input_grad[0]:  # entries of the product `gradient' x` at the active positions
            empty = ctx.pattern.matrix(torch.zeros_like(values))
            of_values = torch.sparse.sampled_addmm(empty, outer, x, beta=0.0).values()
        if ctx.needs_input_grad[1]:
            of_x = torch.sparse.mm(ctx.pattern.transposed(values), outer, reduce="sum").mT
        return of_values, of_x, None


def _pointers(groups: Tensor, number: int) -> Tensor:
    """The CSR pointers of entries in these groups: where each group begins, (number + 1,)."""
    ends = torch.bincount(groups, minlength=number).cumsum(0)
    return torch.cat([ends.new_zeros(1), ends]).int()


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: Any) -> Tensor:
    return torch.sparse_csr_tensor(starts, columns, values, tuple(shape), check_invariants=False)

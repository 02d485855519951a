"""Covariances of vectors of which few entries are uncertain."""

from typing import Any

import torch
from linear_operator import LinearOperator
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from bayeskit.core.operators.algebra import block_rule, draw_rule, half_rule, logdet_rule, product, solve_rule
from bayeskit.core.operators.factor import LinAlgError


class MaskedDiagonal(LinearOperator):
    """`E diag(v) E'`, where the columns of E select the active entries: only those are stored.

    It is the covariance of a vector whose other entries are known, so unless all are active it has no inverse. Its
    root has a column for each active entry, and everything but a diagonal or a dense matrix costs no more than that.

    Args:
        values: v, (*b, a).
        index: Which entries are active, (a,) integers, each once.
        size: N.

    Examples:
        >>> op = MaskedDiagonal(torch.tensor([2.0, 3.0]), torch.tensor([3, 1]), size=4)
        >>> op.diagonal().tolist(), (op @ torch.ones(4)).tolist()
        ([0.0, 3.0, 0.0, 2.0], [0.0, 3.0, 0.0, 2.0])
    """

    semidefinite = True

    def __init__(self, values: Tensor, index: Tensor, size: int):
        super().__init__(values, index=index, size=size)
        self.values, self.index, self.length = values, index, size

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() == 1:
            return self._matmul(rhs.unsqueeze(-1)).squeeze(-1)
        active = self.values.unsqueeze(-1) * rhs[..., self.index, :]
        zeros = active.new_zeros(*active.shape[:-2], self.length, active.shape[-1])
        return zeros.index_copy(-2, self.index, active)

    def _size(self) -> torch.Size:
        return torch.Size((*self.values.shape[:-1], self.length, self.length))

    def _transpose_nonbatch(self) -> "MaskedDiagonal":
        return self

    def _diagonal(self) -> Tensor:
        return self.values.new_zeros(self._size()[:-1]).index_copy(-1, self.index, self.values)

    def _expand_batch(self, batch_shape: torch.Size | list[int]) -> "MaskedDiagonal":
        return MaskedDiagonal(self.values.expand(*batch_shape, -1), self.index, size=self.length)

    def to(self, *args: Any, **kwargs: Any) -> "MaskedDiagonal":
        """The same operator of another dtype or on another device; positions stay integers."""
        values = self.values.to(*args, **kwargs)
        return MaskedDiagonal(values, self.index.to(values.device), size=self.length)

    def whole(self) -> DiagLinearOperator:
        """The same matrix as a diagonal one.

        Raises:
            torch.linalg.LinAlgError: Some entry is not active, so there is no inverse.
        """
        idle = self.length - len(self.index)
        if idle:
            raise LinAlgError(
                f"a diagonal covariance with {idle} entries that are not positive has no inverse; restrict it to the "
                "active entries, or add a diagonal"
            )
        return DiagLinearOperator(self._diagonal())


def masked_diagonal(values: Tensor, index: Tensor, size: int) -> MaskedDiagonal:
    """A diagonal covariance (*b, N, N) that is zero outside the active entries `index` (a,), with variances (*b, a).

    Examples:
        >>> masked_diagonal(torch.tensor([2.0, 3.0]), torch.tensor([3, 1]), 4).diagonal().tolist()
        [0.0, 3.0, 0.0, 2.0]
    """
    return MaskedDiagonal(values, index, size=size)


class Masked(LinearOperator):
    """`E S E'`, where the columns of E select the active entries: their covariance S, and zero for the others.

    Args:
        active: S, (a, a).
        index: Which entries are active, (a,) integers, each once.
        size: N.

    Examples:
        >>> op = Masked(DiagLinearOperator(torch.tensor([2.0, 3.0])), torch.tensor([3, 1]), size=4)
        >>> op.diagonal().tolist(), (op @ torch.ones(4)).tolist()
        ([0.0, 3.0, 0.0, 2.0], [0.0, 3.0, 0.0, 2.0])
    """

    semidefinite = True

    def __init__(self, active: LinearOperator, index: Tensor, size: int):
        super().__init__(active, index=index, size=size)
        self.active, self.index, self.length = active, index, size

    def _matmul(self, rhs: Tensor) -> Tensor:
        if rhs.dim() == 1:
            return self._matmul(rhs.unsqueeze(-1)).squeeze(-1)
        values = product(self.active, rhs[..., self.index, :])
        return values.new_zeros(*values.shape[:-2], self.length, values.shape[-1]).index_copy(-2, self.index, values)

    def _size(self) -> torch.Size:
        return torch.Size((self.length, self.length))

    def _transpose_nonbatch(self) -> "Masked":
        return self

    def _diagonal(self) -> Tensor:
        values = self.active.diagonal(dim1=-1, dim2=-2)
        return values.new_zeros(self.length).index_copy(0, self.index, values)

    def to(self, *args: Any, **kwargs: Any) -> "Masked":
        """The same operator of another dtype or on another device; positions stay integers."""
        active = self.active.to(*args, **kwargs)
        return Masked(active, self.index.to(active.device), size=self.length)


@draw_rule.register
def _(op: Masked, num_samples: int, generator: torch.Generator) -> Tensor:
    values = draw_rule(op.active, num_samples, generator)  # (s, a)
    return values.new_zeros(num_samples, op.length).index_copy(-1, op.index, values)


@half_rule.register
def _(op: Masked, rhs: Tensor) -> Tensor:
    return half_rule(op.active, rhs[..., op.index, :])


@solve_rule.register
def _(op: Masked, rhs: Tensor) -> Tensor:
    raise LinAlgError(_singular(op.length - len(op.index)))


@logdet_rule.register
def _(op: Masked) -> Tensor:
    raise LinAlgError(_singular(op.length - len(op.index)))


def _singular(idle: int) -> str:
    return (
        f"a covariance of which {idle} entries are not active has no inverse; restrict it to the active entries, or "
        "add a diagonal"
    )


@solve_rule.register
def _(op: MaskedDiagonal, rhs: Tensor) -> Tensor:
    return solve_rule(op.whole(), rhs)


@logdet_rule.register
def _(op: MaskedDiagonal) -> Tensor:
    return logdet_rule(op.whole())


@draw_rule.register
def _(op: MaskedDiagonal, num_samples: int, generator: torch.Generator) -> Tensor:
    active = draw_rule(DiagLinearOperator(op.values), num_samples, generator)  # (s, *b, a)
    return active.new_zeros(*active.shape[:-1], op.length).index_copy(-1, op.index, active)


@half_rule.register
def _(op: MaskedDiagonal, rhs: Tensor) -> Tensor:
    return half_rule(DiagLinearOperator(op.values), rhs[..., op.index, :])


@block_rule.register
def _(op: MaskedDiagonal, k: int) -> Tensor:
    return torch.diag_embed(op.diagonal(dim1=-1, dim2=-2).unflatten(-1, (-1, k)))

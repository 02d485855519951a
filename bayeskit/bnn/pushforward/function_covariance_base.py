"""Base of the covariances of a linearized network's functions that are computed in function space."""

from abc import abstractmethod
from typing import Self

import torch
from linear_operator import LinearOperator
from torch import Tensor

from bayeskit.core import operators
from bayeskit.core.operators.algebra import block_rule, draw_rule, half_rule, product


class FunctionCovariance(LinearOperator):
    """`J S J'` with entries computed in function space; products, draws and halves go through the weights.

    A subclass forms the covariance at each input (`blocks`) and the matrix (`to_dense`).

    Args:
        values: The same covariance in weight space.
    """

    semidefinite = True

    def __init__(self, values: operators.Linearized):
        super().__init__(values)
        self.values = values

    @abstractmethod
    def blocks(self) -> Tensor:
        """The covariance of the outputs at each input, (n, k, k)."""

    def _size(self) -> torch.Size:
        return self.values.shape

    def _matmul(self, rhs: Tensor) -> Tensor:
        return product(self.values, rhs)

    def _transpose_nonbatch(self) -> Self:
        return self

    def _diagonal(self) -> Tensor:
        return self.blocks().diagonal(dim1=-2, dim2=-1).flatten()


@block_rule.register
def _(op: FunctionCovariance, k: int) -> Tensor:
    return op.blocks() if k == op.values.num_outputs else block_rule.dispatch(LinearOperator)(op, k)


@half_rule.register
def _(op: FunctionCovariance, rhs: Tensor) -> Tensor:
    return half_rule(op.values, rhs)


@draw_rule.register
def _(op: FunctionCovariance, num_samples: int, generator: torch.Generator) -> Tensor:
    return draw_rule(op.values, num_samples, generator)

"""A covariance of weights that is block diagonal by layer."""

import torch
from linear_operator import LinearOperator
from linear_operator.operators import BlockDiagLinearOperator, DiagLinearOperator
from torch import Tensor

from bayeskit.core.operators import KroneckerInverse
from bayeskit.core.operators.algebra import (
    draw_rule,
    half_product,
    half_rule,
    logdet,
    logdet_rule,
    quadratic_rule,
    solve,
    solve_rule,
)


class LayerBlocks(LinearOperator):
    """Independent blocks of weights: block b holds the entries `index_b` of the vector, with covariance `D_b K_b D_b`.

    The blocks may have different sizes, and their entries need not be adjacent: a layer's weights and biases are stored
    apart. `D_b = diag(scale_b)` holds the prior's scales around a Kronecker-factored middle.

    Args:
        *parts: In turn, for every block: the operator K_b (q, q), the positions index_b (q,), the scales (q,). The
            positions of all blocks together are 0 ... p - 1, each once.

    >>> from linear_operator.operators import DiagLinearOperator
    >>> block = DiagLinearOperator(torch.tensor([1.0, 4.0]))
    >>> LayerBlocks(block, torch.tensor([1, 0]), torch.tensor([1.0, 0.5])).diagonal()
    tensor([1., 1.])
    """

    def __init__(self, *parts: LinearOperator | Tensor):
        super().__init__(*parts)
        self.parts = parts

    @property
    def blocks(self) -> list[tuple[LinearOperator, Tensor, Tensor]]:
        """The blocks as (operator, positions, scales)."""
        return list(zip(self.parts[0::3], self.parts[1::3], self.parts[2::3], strict=True))  # type: ignore[arg-type]

    def _size(self) -> torch.Size:
        size = sum(len(index) for _, index, _ in self.blocks)
        return torch.Size((size, size))

    def _matmul(self, rhs: Tensor) -> Tensor:
        columns = rhs.unsqueeze(-1) if rhs.ndim == 1 else rhs
        out = columns.new_zeros(columns.shape)
        for block, index, scale in self.blocks:
            product: Tensor = block @ (scale[:, None] * columns[..., index, :])  # type: ignore[assignment]
            out[..., index, :] = scale[:, None] * product
        return out.squeeze(-1) if rhs.ndim == 1 else out

    def _transpose_nonbatch(self) -> "LayerBlocks":
        return self

    def _diagonal(self) -> Tensor:
        out = self.parts[2].new_zeros(len(self))  # type: ignore[union-attr, operator]
        for block, index, scale in self.blocks:
            out[index] = scale.square() * block.diagonal(dim1=-1, dim2=-2)
        return out

    def __len__(self) -> int:
        return self._size()[0]


def independent_rows(covariances: LinearOperator, index: Tensor) -> LayerBlocks:
    """The covariance of a layer whose outputs have independent weights.

    Args:
        covariances: Of the weights of each output, (k, d, d).
        index: Positions (k, d) of those weights in the flat vector.
    """
    ones = torch.ones(index.numel(), dtype=covariances.dtype, device=index.device)
    return LayerBlocks(BlockDiagLinearOperator(covariances), index.flatten(), ones)


def rows_of(op: LinearOperator, index: Tensor) -> LinearOperator | None:
    """The covariances (k, d, d) that `independent_rows` was made of, or None if these are not such rows."""
    if not isinstance(op, LayerBlocks) or len(op.blocks) != 1:
        return None
    block, own, _ = op.blocks[0]
    if not torch.equal(own, index.flatten().to(own.device)):
        return None
    if isinstance(block, DiagLinearOperator):  # what linear_operator makes of diagonal blocks
        return DiagLinearOperator(block.diagonal().reshape(index.shape))
    rows = block.base_linear_op if isinstance(block, BlockDiagLinearOperator) else None
    return rows if rows is not None and rows.shape[:-1] == index.shape else None


def has_factors(covariance: LinearOperator) -> bool:
    """Whether these are layers with Kronecker factors."""
    return isinstance(covariance, LayerBlocks) and all(
        isinstance(block, KroneckerInverse) for block, _, _ in covariance.blocks
    )


def factored_blocks(covariance: LinearOperator) -> list[tuple[KroneckerInverse, Tensor, Tensor]]:
    """The blocks of layers with Kronecker factors: (operator, positions, scales)."""
    assert has_factors(covariance)
    return covariance.blocks  # type: ignore[union-attr, return-value]


@solve_rule.register
def _(op: LayerBlocks, rhs: Tensor) -> Tensor:
    out = torch.zeros_like(rhs)
    for block, index, scale in op.blocks:
        out[..., index, :] = solve(block, rhs[..., index, :] / scale[:, None]) / scale[:, None]
    return out


@quadratic_rule.register
def _(op: LayerBlocks, columns: Tensor) -> Tensor:
    parts = [quadratic_rule(block, columns[..., index, :] / scale[:, None]) for block, index, scale in op.blocks]
    return torch.stack(parts).sum(0)


@logdet_rule.register
def _(op: LayerBlocks) -> Tensor:
    return torch.stack([logdet(block) + 2 * scale.log().sum() for block, _, scale in op.blocks]).sum()


@draw_rule.register
def _(op: LayerBlocks, num_samples: int, generator: torch.Generator) -> Tensor:
    out = torch.zeros(num_samples, op.shape[-1], dtype=op.dtype, device=op.device)
    for block, index, scale in op.blocks:
        out[:, index] = scale * draw_rule(block, num_samples, generator)
    return out


@half_rule.register
def _(op: LayerBlocks, rhs: Tensor) -> Tensor:
    halves = [half_product(block, scale[:, None] * rhs[..., index, :]) for block, index, scale in op.blocks]
    return torch.cat(halves, -2)

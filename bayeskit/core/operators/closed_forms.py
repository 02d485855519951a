"""Closed forms for linear_operator's own types: diagonal, root, sum, multiple, Kronecker product, blocks."""

from collections.abc import Callable
from math import prod

import torch
from linear_operator import LinearOperator
from linear_operator.operators import (
    BlockDiagLinearOperator,
    BlockInterleavedLinearOperator,
    ConstantMulLinearOperator,
    DiagLinearOperator,
    KroneckerProductLinearOperator,
    RootLinearOperator,
    SumLinearOperator,
)
from linear_operator.operators.block_linear_operator import BlockLinearOperator
from torch import Tensor

from bayeskit.core import generators
from bayeskit.core.operators.algebra import (
    block_rule,
    dense_factor,
    draw_rule,
    half_rule,
    logdet_rule,
    root_rule,
    solve_rule,
)
from bayeskit.core.operators.factor import LinAlgError
from bayeskit.core.operators.mixed_outputs import Mixed
from bayeskit.core.operators.scaled_operator import Scaled

# --- diagonal: D = diag(d) ---


@solve_rule.register
def _(op: DiagLinearOperator, rhs: Tensor) -> Tensor:
    return rhs / _positive(op).unsqueeze(-1)


@logdet_rule.register
def _(op: DiagLinearOperator) -> Tensor:
    return _positive(op).log().sum(-1)


@draw_rule.register
def _(op: DiagLinearOperator, num_samples: int, generator: torch.Generator) -> Tensor:
    diagonal = _nonnegative(op)
    return diagonal.sqrt() * generators.normal((num_samples, *diagonal.shape), like=diagonal, generator=generator)


@block_rule.register
def _(op: DiagLinearOperator, k: int) -> Tensor:
    return torch.diag_embed(op.diagonal().unflatten(-1, (-1, k)))


@half_rule.register
def _(op: DiagLinearOperator, rhs: Tensor) -> Tensor:
    return _nonnegative(op).sqrt().unsqueeze(-1) * rhs


def _positive(op: DiagLinearOperator) -> Tensor:
    diagonal = op.diagonal()
    if not (diagonal > 0).all():
        raise LinAlgError(
            f"a diagonal covariance with {int((~(diagonal > 0)).sum())} entries that are not positive has no inverse; "
            "restrict it to the active entries, or add a diagonal"
        )
    return diagonal


def _nonnegative(op: DiagLinearOperator) -> Tensor:
    diagonal = op.diagonal()
    if not (diagonal >= 0).all():
        raise LinAlgError(
            f"a diagonal covariance must not have negative or NaN entries; got {int((~(diagonal >= 0)).sum())}"
        )
    return diagonal


# --- root: R R' ---


@solve_rule.register
def _(op: RootLinearOperator, rhs: Tensor) -> Tensor:
    return dense_factor(_full_rank(op)).solve(rhs).to(rhs.dtype)


@logdet_rule.register
def _(op: RootLinearOperator) -> Tensor:
    return dense_factor(_full_rank(op)).logdet().to(op.dtype)


@draw_rule.register
def _(op: RootLinearOperator, num_samples: int, generator: torch.Generator) -> Tensor:
    root = op.root.to_dense()  # (*b, N, r)
    shape = (num_samples, *root.shape[:-2], root.shape[-1])
    noise = generators.normal(shape, like=root, generator=generator)
    return (root @ noise.movedim(0, -1)).movedim(-1, 0)


@block_rule.register
def _(op: RootLinearOperator, k: int) -> Tensor:
    rows = op.root.to_dense().unflatten(-2, (-1, k))  # (*b, n, k, r)
    return rows @ rows.mT


@half_rule.register
def _(op: RootLinearOperator, rhs: Tensor) -> Tensor:
    return op.root.to_dense().mT @ rhs


def _full_rank(op: RootLinearOperator) -> RootLinearOperator:
    size, rank = op.root.shape[-2:]
    if rank < size:
        raise LinAlgError(
            f"a covariance of size {size} and rank at most {rank} has no inverse; add a diagonal (observation noise)"
        )
    return op


# --- sum ---


@draw_rule.register
def _(op: SumLinearOperator, num_samples: int, generator: torch.Generator) -> Tensor:
    if not all(evidently_semidefinite(term) for term in op.linear_ops):  # a difference, or a dense addend
        return draw_rule.dispatch(LinearOperator)(op, num_samples, generator)
    draws = [draw_rule(term, num_samples, generator) for term in op.linear_ops]
    return torch.stack([values.expand(num_samples, *op.shape[:-1]) for values in draws]).sum(0)


@block_rule.register
def _(op: SumLinearOperator, k: int) -> Tensor:
    blocks = [block_rule(term, k) for term in op.linear_ops]
    return torch.stack([block.expand(*op.batch_shape, -1, k, k) for block in blocks]).sum(0)


@half_rule.register
def _(op: SumLinearOperator, rhs: Tensor) -> Tensor:
    if not all(evidently_semidefinite(term) for term in op.linear_ops):
        return half_rule.dispatch(LinearOperator)(op, rhs)
    halves = [half_rule(term, rhs) for term in op.linear_ops]
    batch = torch.broadcast_shapes(*(half.shape[:-2] for half in halves))
    return torch.cat([half.expand(*batch, -1, -1) for half in halves], -2)


def evidently_semidefinite(op: LinearOperator) -> bool:
    """Whether the structure alone says that all eigenvalues are at least zero."""
    if isinstance(op, DiagLinearOperator):
        return bool((op.diagonal() >= 0).all())
    if isinstance(op, ConstantMulLinearOperator):
        return bool((op.expanded_constant >= 0).all()) and evidently_semidefinite(op.base_linear_op)
    if isinstance(op, SumLinearOperator | KroneckerProductLinearOperator):
        return all(evidently_semidefinite(part) for part in op.linear_ops)
    if isinstance(op, BlockLinearOperator):
        return evidently_semidefinite(op.base_linear_op)
    if isinstance(op, Scaled | Mixed):
        return evidently_semidefinite(op.inner)
    return isinstance(op, RootLinearOperator) or getattr(op, "semidefinite", False)


# --- multiple: c A ---


@solve_rule.register
def _(op: ConstantMulLinearOperator, rhs: Tensor) -> Tensor:
    return solve_rule(op.base_linear_op, rhs) / op.expanded_constant


@logdet_rule.register
def _(op: ConstantMulLinearOperator) -> Tensor:
    return logdet_rule(op.base_linear_op) + op.shape[-1] * op.expanded_constant[..., 0, 0].log()


@draw_rule.register
def _(op: ConstantMulLinearOperator, num_samples: int, generator: torch.Generator) -> Tensor:
    return op.expanded_constant[..., 0].sqrt() * draw_rule(op.base_linear_op, num_samples, generator)


@block_rule.register
def _(op: ConstantMulLinearOperator, k: int) -> Tensor:
    return op.expanded_constant.unsqueeze(-1) * block_rule(op.base_linear_op, k)


@half_rule.register
def _(op: ConstantMulLinearOperator, rhs: Tensor) -> Tensor:
    return op.expanded_constant.sqrt() * half_rule(op.base_linear_op, rhs)


# --- Kronecker product: A (x) B (x) ... ---


@solve_rule.register
def _(op: KroneckerProductLinearOperator, rhs: Tensor) -> Tensor:
    return _factor_by_factor(op, rhs, solve_rule)


@logdet_rule.register
def _(op: KroneckerProductLinearOperator) -> Tensor:
    terms = [logdet_rule(part) * (op.shape[-1] // part.shape[-1]) for part in op.linear_ops]
    return torch.stack(torch.broadcast_tensors(*terms)).sum(0)


@draw_rule.register
def _(op: KroneckerProductLinearOperator, num_samples: int, generator: torch.Generator) -> Tensor:
    """Columns of G are draws from A and R R' = B (x) ...: the rows of `G R'`, stacked, have covariance A (x) B."""
    first, *others = op.linear_ops
    size = prod(part.shape[-1] for part in others)
    draws = draw_rule(first, num_samples * size, generator)  # (s * size, *b, n)
    columns = draws.unflatten(0, (num_samples, size)).movedim(1, -1)  # (s, *b, n, size)
    for position, part in enumerate(others):
        right = prod(other.shape[-1] for other in others[position + 1 :])
        root = root_rule(part).to(op.dtype)
        split = columns.unflatten(-1, (-1, root.shape[-1], right))  # (s, *b, n, left, k, right)
        columns = (root[..., None, None, :, :] @ split).flatten(-3)
    return columns.flatten(-2)


@block_rule.register
def _(op: KroneckerProductLinearOperator, k: int) -> Tensor:
    *_, last = op.linear_ops
    if last.shape[-1] != k:
        return block_rule.dispatch(LinearOperator)(op, k)
    diagonal = op.linear_ops[0].diagonal()
    for part in op.linear_ops[1:-1]:
        diagonal = (diagonal.unsqueeze(-1) * part.diagonal().unsqueeze(-2)).flatten(-2)
    return diagonal[..., None, None] * last.to_dense().unsqueeze(-3)


@half_rule.register
def _(op: KroneckerProductLinearOperator, rhs: Tensor) -> Tensor:
    return _factor_by_factor(op, rhs, half_rule)


def _factor_by_factor(
    op: KroneckerProductLinearOperator, rhs: Tensor, rule: Callable[[LinearOperator, Tensor], Tensor]
) -> Tensor:
    """Apply a rule of each factor along its own axis of `rhs` (*b, N, c), whose rows are unflattened."""
    batch = torch.broadcast_shapes(op.batch_shape, rhs.shape[:-2])
    sizes = [part.shape[-1] for part in op.linear_ops]
    values = rhs.expand(*batch, *rhs.shape[-2:]).reshape(*batch, *sizes, rhs.shape[-1])
    for position, part in enumerate(op.linear_ops):
        moved = values.movedim(len(batch) + position, len(batch))
        flat = rule(part, moved.flatten(len(batch) + 1))
        values = flat.unflatten(-1, moved.shape[len(batch) + 1 :]).movedim(len(batch), len(batch) + position)
    return values.flatten(len(batch), -2)


# --- blocks of equal size: one after the other, or interleaved (outputs independent, point-major) ---


@solve_rule.register
def _(op: BlockDiagLinearOperator | BlockInterleavedLinearOperator, rhs: Tensor) -> Tensor:
    return op._remove_batch_dim(solve_rule(op.base_linear_op, op._add_batch_dim(rhs)))


@logdet_rule.register
def _(op: BlockDiagLinearOperator | BlockInterleavedLinearOperator) -> Tensor:
    return logdet_rule(op.base_linear_op).sum(-1)


@draw_rule.register
def _(
    op: BlockDiagLinearOperator | BlockInterleavedLinearOperator, num_samples: int, generator: torch.Generator
) -> Tensor:
    draws = draw_rule(op.base_linear_op, num_samples, generator)  # (s, *b, blocks, n)
    return (draws.mT if isinstance(op, BlockInterleavedLinearOperator) else draws).flatten(-2)


@half_rule.register
def _(op: BlockDiagLinearOperator | BlockInterleavedLinearOperator, rhs: Tensor) -> Tensor:
    return half_rule(op.base_linear_op, op._add_batch_dim(rhs)).flatten(-3, -2)


@block_rule.register
def _(op: BlockInterleavedLinearOperator, k: int) -> Tensor:
    if op.base_linear_op.shape[-3] != k:
        return block_rule.dispatch(LinearOperator)(op, k)
    return torch.diag_embed(op.base_linear_op.diagonal(dim1=-1, dim2=-2).mT)


@block_rule.register
def _(op: BlockDiagLinearOperator, k: int) -> Tensor:
    if op.base_linear_op.shape[-1] != k:
        return block_rule.dispatch(LinearOperator)(op, k)
    return op.base_linear_op.to_dense()

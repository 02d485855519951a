"""Algebra of covariance operators: solve, log determinant, quadratic form, draws, diagonal blocks.

linear_operator's own `solve`, `logdet` and sampling use conjugate gradients, Lanczos and the global random
generator beyond a few hundred rows. These functions never do: they use the closed form of the operator's type, and
where there is none they form the matrix and factorize it in float64.

Each function looks its closed form up in a rule by the type of the operator (`functools.singledispatch`). An operator
adds its own with one decorated function, `@draw_rule.register`; the fallback is the dense matrix.
"""

from functools import singledispatch
from typing import cast

import torch
from linear_operator import LinearOperator
from linear_operator.operators import RootLinearOperator
from torch import Tensor

from bayeskit.core import generators
from bayeskit.core.operators.chunking import chunks, fits
from bayeskit.core.operators.factor import Factor, factorize, semidefinite_root


def solve(op: LinearOperator, rhs: Tensor) -> Tensor:
    """`op^-1 rhs`, exact up to rounding at any size.

    Args:
        op: Positive definite, (*b, N, N).
        rhs: (*b, N, c), or (N,) where there is no batch.

    Returns:
        The solution, of the shape of `rhs` (broadcast over *b).

    Raises:
        torch.linalg.LinAlgError: The operator is singular.

    Examples:
        >>> from linear_operator.operators import DiagLinearOperator
        >>> solve(DiagLinearOperator(torch.tensor([2.0, 4.0])), torch.tensor([2.0, 2.0])).tolist()
        [1.0, 0.5]
    """
    if rhs.dim() == 1:
        return solve_rule(op, rhs.unsqueeze(-1)).squeeze(-1)
    return solve_rule(op, rhs)


def logdet(op: LinearOperator) -> Tensor:
    """`log det op`, exact up to rounding at any size.

    Args:
        op: Positive definite, (*b, N, N).

    Returns:
        (*b,).

    Raises:
        torch.linalg.LinAlgError: The operator is singular.

    Examples:
        >>> from linear_operator.operators import DiagLinearOperator
        >>> round(float(logdet(DiagLinearOperator(torch.tensor([2.0, 0.5])))), 6)
        0.0
    """
    return logdet_rule(op)


def quadratic(op: LinearOperator, v: Tensor) -> Tensor:
    """The quadratic form `v' op^-1 v` of a Gaussian log density.

    Args:
        op: Positive definite, (*b, N, N).
        v: (*c, N) for an operator without batch, else (*b, N).

    Returns:
        (*c,) or (*b,).

    Examples:
        >>> from linear_operator.operators import DiagLinearOperator
        >>> quadratic(DiagLinearOperator(torch.tensor([2.0, 4.0])), torch.tensor([[2.0, 2.0], [0.0, 2.0]])).tolist()
        [3.0, 1.0]
    """
    if op.dim() == 2:  # one solve for all the vectors
        return quadratic_rule(op, v.reshape(-1, v.shape[-1]).mT).reshape(v.shape[:-1])
    return quadratic_rule(op, v.unsqueeze(-1)).squeeze(-1)


def draw(op: LinearOperator, num_samples: int, *, generator: torch.Generator) -> Tensor:
    """Draws of a zero-mean Gaussian with covariance `op`, which may be singular.

    Args:
        op: Positive semi-definite, (*b, N, N).
        num_samples: s.
        generator: Source of the randomness; the global generator is never touched.

    Returns:
        (s, *b, N), differentiable with respect to the operator.

    Raises:
        torch.linalg.LinAlgError: The operator has a negative eigenvalue beyond rounding.

    Examples:
        >>> from linear_operator.operators import DiagLinearOperator
        >>> op = DiagLinearOperator(torch.tensor([1.0, 0.0]))
        >>> noise = draw(op, 3, generator=torch.Generator().manual_seed(0))
        >>> noise.shape, float(noise[:, 1].abs().max())
        (torch.Size([3, 2]), 0.0)
    """
    return draw_rule(op, num_samples, generator)


def block_diagonal(op: LinearOperator, k: int) -> Tensor:
    """The k x k blocks on the diagonal: for a point-major covariance, that of the k outputs at each input.

    Args:
        op: (*b, n*k, n*k).
        k: Size of the blocks.

    Returns:
        (*b, n, k, k), without forming the matrix where that would be large.

    Examples:
        >>> from linear_operator.operators import DiagLinearOperator
        >>> block_diagonal(DiagLinearOperator(torch.tensor([1.0, 2.0, 3.0, 4.0])), 2)[1].tolist()
        [[3.0, 0.0], [0.0, 4.0]]
    """
    if op.shape[-1] % k:
        raise ValueError(f"`k` must divide the size of the operator, {op.shape[-1]}; got {k}")
    if k == 1:
        return op.diagonal(dim1=-1, dim2=-2)[..., None, None]
    return block_rule(op, k)


def half_product(op: LinearOperator, rhs: Tensor) -> Tensor:
    """`R' rhs` for some root `R R' = op`, so that `rhs' op rhs` is a sum of squares and never negative.

    Args:
        op: Positive semi-definite, (*b, N, N).
        rhs: (*b, N, c).

    Returns:
        (*b, r, c), where r is the number of columns of the root that is cheapest for this operator.

    Examples:
        >>> from linear_operator.operators import DiagLinearOperator
        >>> half_product(DiagLinearOperator(torch.tensor([4.0, 9.0])), torch.ones(2, 1)).flatten().tolist()
        [2.0, 3.0]
    """
    return half_rule(op, rhs)


@singledispatch
def solve_rule(op: LinearOperator, rhs: Tensor) -> Tensor:
    """How an operator of this type solves for `rhs` (*b, N, c)."""
    return dense_factor(op).solve(rhs).to(rhs.dtype)


@singledispatch
def quadratic_rule(op: LinearOperator, columns: Tensor) -> Tensor:
    """How an operator of this type forms `v' op^-1 v` for columns (*b, N, c): (*b, c)."""
    return (columns * solve_rule(op, columns)).sum(-2)


@singledispatch
def logdet_rule(op: LinearOperator) -> Tensor:
    """The log determinant of an operator of this type."""
    return dense_factor(op).logdet().to(op.dtype)


@singledispatch
def draw_rule(op: LinearOperator, num_samples: int, generator: torch.Generator) -> Tensor:
    """How an operator of this type draws (s, *b, N)."""
    root = root_rule(op).to(op.dtype)
    noise = generators.normal((num_samples, *op.shape[:-1]), like=root, generator=generator)  # (s, *b, N)
    return (root @ noise.movedim(0, -1)).movedim(-1, 0)


@singledispatch
def block_rule(op: LinearOperator, k: int) -> Tensor:
    """The diagonal blocks (*b, n, k, k) of an operator of this type, k > 1."""
    n, batch = op.shape[-1] // k, op.batch_shape
    if fits(op.shape.numel()):
        return dense_blocks(op.to_dense(), k)
    blocks = []
    for points in chunks(n, batch.numel() * op.shape[-1] * k):  # columns of some points at a time
        rows = torch.arange(points.start * k, points.stop * k, device=op.device)
        selection = torch.zeros(op.shape[-1], len(rows), dtype=op.dtype, device=op.device)
        selection[rows, torch.arange(len(rows), device=op.device)] = 1
        blocks.append(dense_blocks(product(op, selection.expand(*batch, -1, -1))[..., rows, :], k))
    return torch.cat(blocks, -3)


@singledispatch
def half_rule(op: LinearOperator, rhs: Tensor) -> Tensor:
    """How an operator of this type forms `R' rhs`."""
    return root_rule(op).to(rhs.dtype).mT @ rhs


@singledispatch
def root_rule(op: LinearOperator) -> Tensor:
    """The dense root R with `R R' = op` of an operator of this type, float64, for rules that have no closed form."""
    return semidefinite_root(op.to_dense(), name=describe(op))


def dense_blocks(matrix: Tensor, k: int) -> Tensor:
    """The diagonal blocks (*b, n, k, k) of a tensor (*b, n*k, n*k)."""
    n = matrix.shape[-1] // k
    blocks = matrix.reshape(*matrix.shape[:-2], n, k, n, k).diagonal(dim1=-4, dim2=-2)  # (*b, k, k, n)
    return blocks.movedim(-1, -3)


def rooted(op: LinearOperator) -> LinearOperator:
    """The same operator with a root at hand, for types whose every draw or half product would factorize it anew."""
    if half_rule.dispatch(type(op)) is not half_rule.dispatch(LinearOperator):
        return op
    return RootLinearOperator(root_rule(op).to(op.dtype))


def product(op: LinearOperator, rhs: Tensor) -> Tensor:
    """`op @ rhs`, which is a tensor because `rhs` is one."""
    return cast(Tensor, op @ rhs)


def dense_factor(op: LinearOperator) -> Factor:
    """The Cholesky factor of the matrix itself, for types without a closed form."""
    return factorize(op.to_dense(), name=describe(op))


def describe(op: LinearOperator) -> str:
    """The operator as notes and errors name it."""
    return f"a {type(op).__name__}"

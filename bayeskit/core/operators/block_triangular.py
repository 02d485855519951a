"""Products and inverses of triangular and symmetric matrices that skip the blocks known to be zero or mirrored.

`torch` multiplies triangular and symmetric matrices as if they were full. Cut into blocks, half of the work goes away;
what is left runs at the speed of a product, which a triangular solve does not reach. For use inside derivatives written
by hand: automatic differentiation does not follow these functions.
"""

from itertools import pairwise

import torch
from torch import Tensor

BLOCK = 128
"""Rows of a block; smaller ones lose more speed in the product than they save in work."""


def lower_inverse(tril: Tensor) -> Tensor:
    """The inverse of a lower-triangular matrix, by halves: [[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]].

    Args:
        tril: (*b, m, m), with a diagonal that is not zero.

    Returns:
        (*b, m, m).

    Examples:
        >>> lower_inverse(torch.tensor([[2.0, 0.0], [1.0, 1.0]])).tolist()
        [[0.5, 0.0], [-0.5, 1.0]]
    """
    inverse = torch.zeros(tril.shape, dtype=tril.dtype, device=tril.device)
    _invert(tril, inverse)
    return inverse


def lower_matmul(tril: Tensor, right: Tensor) -> Tensor:
    """`tril @ right` without the blocks above the diagonal of a lower-triangular matrix.

    Args:
        tril: (*b, m, m), lower-triangular.
        right: (*b, m, n), with the same batch.

    Examples:
        >>> lower_matmul(torch.eye(2), torch.ones(2, 1)).tolist()
        [[1.0], [1.0]]
    """
    product = _empty(tril, right.shape[-1])
    for a, b in _cut(tril.shape[-1]):
        _write(product[..., a:b, :], tril[..., a:b, :b], right[..., :b, :])
    return product


def upper_matmul(triu: Tensor, right: Tensor) -> Tensor:
    """`triu @ right` without the blocks below the diagonal of an upper-triangular matrix.

    Args:
        triu: (*b, m, m), upper-triangular.
        right: (*b, m, n), with the same batch.

    Examples:
        >>> upper_matmul(torch.eye(2), torch.ones(2, 1)).tolist()
        [[1.0], [1.0]]
    """
    product = _empty(triu, right.shape[-1])
    for a, b in _cut(triu.shape[-1]):
        _write(product[..., a:b, :], triu[..., a:b, a:], right[..., a:, :])
    return product


def lower_product(left: Tensor, right: Tensor) -> Tensor:
    """The lower triangle of `left @ right.mT`, zero above it.

    Args:
        left: (*b, m, n).
        right: (*b, m, n), with the same batch.

    Examples:
        >>> lower_product(torch.ones(2, 1), torch.ones(2, 1)).tolist()
        [[1.0, 0.0], [1.0, 1.0]]
    """
    product = _empty(left, left.shape[-2])
    for a, b in _cut(left.shape[-2]):
        _write(product[..., a:b, :b], left[..., a:b, :], right[..., :b, :].mT)
    return product.tril_()


def symmetric_product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right.mT` where that is known to be symmetric.

    Args:
        left: (*b, m, n).
        right: (*b, m, n), with the same batch.

    Returns:
        (*b, m, m), symmetric to rounding.

    Examples:
        >>> symmetric_product(torch.ones(2, 1), torch.ones(2, 1)).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    product = _empty(left, left.shape[-2])
    for a, b in _cut(left.shape[-2]):
        _write(product[..., a:b, :b], left[..., a:b, :], right[..., :b, :].mT)
        product[..., :a, a:b] = product[..., a:b, :a].mT
    return product


def upper_square(triu: Tensor) -> Tensor:
    """`triu @ triu.mT` for an upper-triangular matrix.

    Args:
        triu: (*b, m, m), upper-triangular.

    Examples:
        >>> upper_square(torch.tensor([[1.0, 2.0], [0.0, 3.0]])).tolist()
        [[5.0, 6.0], [6.0, 9.0]]
    """
    product = _empty(triu, triu.shape[-1])
    for a, b in _cut(triu.shape[-1]):
        _write(product[..., a:b, :b], triu[..., a:b, a:], triu[..., :b, a:].mT)
        product[..., :a, a:b] = product[..., a:b, :a].mT
    return product


def upper_part(left: Tensor, triu: Tensor) -> Tensor:
    """The upper triangle of `left @ triu` for an upper-triangular second factor, zero below it.

    Args:
        left: (*b, m, m).
        triu: (*b, m, m), upper-triangular, with the same batch.

    Examples:
        >>> upper_part(torch.ones(2, 2), torch.eye(2)).tolist()
        [[1.0, 1.0], [0.0, 1.0]]
    """
    product = _empty(triu, triu.shape[-1])
    for a, b in _cut(triu.shape[-1]):
        _write(product[..., :b, a:b], left[..., :b, :b], triu[..., :b, a:b])
    return product.triu_()


def _empty(like: Tensor, columns: int) -> Tensor:
    return torch.empty(*like.shape[:-1], columns, dtype=like.dtype, device=like.device)


def _write(part: Tensor, left: Tensor, right: Tensor) -> None:
    """`part[:] = left @ right`, without a copy where there is one matrix."""
    if part.dim() == 2:
        torch.mm(left, right, out=part)
    elif part.shape[:-2].numel() == 1:
        torch.mm(left.reshape(left.shape[-2:]), right.reshape(right.shape[-2:]), out=part.view(part.shape[-2:]))
    else:
        part.copy_(left @ right)


def _cut(size: int) -> list[tuple[int, int]]:
    number = max(1, round(size / BLOCK))
    edges = [size * i // number for i in range(number + 1)]
    return list(pairwise(edges))


def _invert(tril: Tensor, inverse: Tensor) -> None:
    """Write the inverse of `tril` into the lower triangle of `inverse`."""
    m = tril.shape[-1]
    if m <= BLOCK // 2:
        eye = torch.eye(m, dtype=tril.dtype, device=tril.device)
        inverse.copy_(torch.linalg.solve_triangular(tril, eye.expand(tril.shape), upper=False))
        return
    h = m // 2
    _invert(tril[..., :h, :h], inverse[..., :h, :h])
    _invert(tril[..., h:, h:], inverse[..., h:, h:])
    inverse[..., h:, :h] = -(inverse[..., h:, h:] @ (tril[..., h:, :h] @ inverse[..., :h, :h]))

"""Cholesky factorization with jitter.

Every Cholesky factor of the library is made by `factorize`: in float64 whatever the input, first without jitter, then
with as little as succeeds, recorded in the diagnostics; an error says which matrix, its size, and what to do.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.core.operators.diagnostics_log import note

LinAlgError = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]

JITTERS = (0.0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
"""What is added to the diagonal, in units of its mean, one after the other until the factorization succeeds."""


PADDING = 8
"""Rows by which a matrix of a size that caches badly is made larger: 64 bytes, a line of the cache, for each row."""


@dataclass(frozen=True, eq=False)
class Factor:
    """Lower Cholesky factor of a positive definite matrix: `tril @ tril.mT == matrix + jitter * mean diagonal * I`.

    Args:
        tril: L, (*b, n, n), float64.
        jitter: Largest multiple of the mean diagonal that was added, 0 where none was needed.
    """

    tril: Tensor
    jitter: float

    def half_solve(self, rhs: Tensor) -> Tensor:
        """`L^-1 rhs` for rhs (*b, n, c), or (n,) where there is no batch."""
        if rhs.dim() == 1:
            return self.half_solve(rhs.unsqueeze(-1)).squeeze(-1)
        return torch.linalg.solve_triangular(self.tril, rhs.to(self.tril.dtype), upper=False)

    def solve(self, rhs: Tensor) -> Tensor:
        """`matrix^-1 rhs` for rhs (*b, n, c), or (n,) where there is no batch."""
        if rhs.dim() == 1:
            return self.solve(rhs.unsqueeze(-1)).squeeze(-1)
        return torch.linalg.solve_triangular(self.tril.mT, self.half_solve(rhs), upper=True)

    def logdet(self) -> Tensor:
        """`log det matrix`, (*b,)."""
        return 2 * self.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def factorize(matrix: Tensor, *, name: str, least: float = 0.0, scale: Tensor | None = None) -> Factor:
    """The Cholesky factor `L L' = matrix + jitter`, differentiable, in float64.

    Jitter starts at zero and rises from 1e-10 to 1e-4 of the mean diagonal, tenfold a step and only for those
    matrices of a batch that need it. What was used is noted as "jitter of <name>" (see `recording`).

    Args:
        matrix: Symmetric positive definite, (*b, n, n), any floating type; only its lower triangle is read.
        name: What the matrix is, for notes and errors, such as "K_zz".
        least: Where jitter starts, for a factor that will meet numbers which are rounded more coarsely than its own.
        scale: What jitter is in units of, (*b,); None for the mean diagonal.

    Returns:
        The factor; its `tril` is float64.

    Raises:
        ValueError: The matrix is not square.
        torch.linalg.LinAlgError: It has NaN or infinite entries, or is not positive definite at the largest jitter.

    Examples:
        >>> factor = factorize(torch.tensor([[4.0, 2.0], [2.0, 2.0]]), name="K")
        >>> factor.tril.tolist(), factor.jitter
        ([[2.0, 0.0], [1.0, 1.0]], 0.0)
    """
    matrix = _checked(matrix, name=name)
    if matrix.shape[-1] == 0:
        return Factor(matrix, 0.0)
    scale = matrix.detach().diagonal(dim1=-2, dim2=-1).mean(-1) if scale is None else scale  # (*b,)
    jitter = torch.zeros_like(scale)
    failed = torch.ones_like(scale, dtype=torch.bool)
    for level in (least, *(level for level in JITTERS if level > least)):
        jitter = torch.where(failed, level, jitter)
        shifted = matrix
        if level > 0:
            shifted = matrix.clone()
            shifted.diagonal(dim1=-2, dim2=-1).add_((jitter * scale).unsqueeze(-1))
        tril, info = _cholesky(shifted)
        failed = info > 0
        if not failed.any():
            used = float(jitter.max())
            note(f"jitter of {name}", used)
            return Factor(tril, used)
    raise LinAlgError(
        f"Cholesky of {name} ({_size(matrix)}) failed at jitter {JITTERS[-1]:g} of its mean diagonal "
        f"{float(scale.mean()):.3g}: the matrix is not positive definite. Increase the noise, remove duplicate "
        "inputs, or scale the inputs."
    )


def semidefinite_root(matrix: Tensor, *, name: str, rounding: Tensor | float = 0.0) -> Tensor:
    """A square root `R R' = matrix` of a positive *semi*-definite matrix, in float64 and without jitter.

    The Cholesky factor where there is one, else `V sqrt(D)` of the eigendecomposition. Eigenvalues below zero down to
    -1e-4 of the mean diagonal (the largest jitter of `factorize`), or to -`rounding`, are rounding: they are set to
    zero and noted as "negative eigenvalues of <name> floored".

    Args:
        matrix: Symmetric positive semi-definite, (*b, n, n), any floating type.
        name: What the matrix is, for notes and errors.
        rounding: Size (*b,) of the rounding errors in `matrix` where they are not in proportion to its own diagonal,
            as in a small difference of large matrices.

    Returns:
        R, (*b, n, n), float64. The eigendecomposition has no gradient where eigenvalues coincide.

    Raises:
        torch.linalg.LinAlgError: NaN or infinite entries, or an eigenvalue too negative to be rounding.

    Examples:
        >>> root = semidefinite_root(torch.ones(2, 2), name="K")
        >>> torch.allclose(root @ root.mT, torch.ones(2, 2, dtype=torch.float64))
        True
    """
    matrix = _checked(matrix, name=name)
    if matrix.shape[-1] == 0:
        return matrix
    tril, info = torch.linalg.cholesky_ex(matrix)
    if not (info > 0).any():
        return tril
    values, vectors = torch.linalg.eigh(matrix)
    scale = matrix.detach().diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).clamp_min(0)  # (*b, 1)
    allowed = torch.maximum(JITTERS[-1] * scale, torch.as_tensor(rounding).to(scale).unsqueeze(-1))
    if (values < -allowed).any():
        raise LinAlgError(
            f"{name} ({_size(matrix)}) is not a covariance: its smallest eigenvalue is {float(values.min()):.3g} "
            f"at a mean diagonal of {float(scale.mean()):.3g}. Check that it is symmetric and positive semi-definite."
        )
    note(f"negative eigenvalues of {name} floored", float((-values).clamp_min(0).max()))
    return vectors * values.clamp_min(0).sqrt().unsqueeze(-2)


def _cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.cholesky_ex`; with rows 2^k numbers apart, which processors cache badly, a few numbers further."""
    n = matrix.shape[-1]
    if n % 256 or n > 1024 or matrix.dim() > 2 or matrix.device.type != "cpu" or matrix.requires_grad:
        return torch.linalg.cholesky_ex(matrix)
    padded = torch.eye(n + PADDING, dtype=matrix.dtype)
    padded[:n, :n] = matrix
    tril, info = torch.linalg.cholesky_ex(padded)
    return tril[:n, :n], info


def _checked(matrix: Tensor, *, name: str) -> Tensor:
    """The matrix in float64, refused if it is not square or not finite."""
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"{name} must be a square matrix (*b, n, n); got shape {tuple(matrix.shape)}")
    # One number tells of all of them, unless their sum overflows.
    if not torch.isfinite(matrix.detach().sum()) and not torch.isfinite(matrix).all():
        raise LinAlgError(
            f"{name} ({_size(matrix)}) has NaN or infinite entries. Check the inputs and the kernel or network "
            "parameters for them; in training, lower the learning rate."
        )
    return matrix.to(torch.float64)


def _size(matrix: Tensor) -> str:
    return " x ".join(str(size) for size in matrix.shape)

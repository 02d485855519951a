r"""Transfer of sites from one set of inducing points to another.

Before the data f(Z_old) - m(Z_old) = L_old v_old, and given the values L_new v_new at the new points

    v_old | v_new  ~  N(F v_new, D),        F = L_old^-1 k(Z_old, Z_new) L_new^-T,        D = I - F F'.

A site (l, P) on v_old becomes one on v_new in two ways, which agree where D = 0: where the new values determine the
old ones, as they do when the old points are among the new.

- "site": as if D were 0, l <- F' l and P <- F' P F. It applies the whole site to the part of f(Z_old) that the new
  values determine: over-confident, the covariance at Z_new is nowhere larger than under the old process.
- "marginal": v_old is integrated out. With C C' = P and W = I + C' D C,

      P <- F' C W^-1 C' F,        l <- F' (l - C W^-1 C' D l),

  which gives f(Z_new) exactly its distribution under the old process, and elsewhere a wider one. (The same as taking
  the old mean and covariance S at Z_new, without inverting a nearly singular S.)
"""

from typing import Literal

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from bayeskit.core.operators import factorize
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.variational.whitened_gaussian import Sites

Transfer = Literal["site", "marginal"]

TRANSFERS: tuple[Transfer, ...] = ("site", "marginal")


@torch.no_grad()
def transferred(
    sites: Sites, kernel: Kernel, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], how: Transfer
) -> Sites:
    """The sites at other inducing points, at the same hyperparameters; themselves if the points are the same.

    Args:
        sites: Sites on v_old, shift (k, m_old) and precision (k, m_old, m_old).
        kernel: The kernel.
        old: Z_old (m_old, d), and L_old, (m_old, m_old) or (k, m_old, m_old).
        new: Z_new (m_new, d), and L_new.
        how: "site" or "marginal".

    References:
        Chang, Verma, John, Solin and Khan (2023), "Memory-Based Dual Gaussian Processes for Sequential Learning",
        section 4, for "site".

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> z = torch.tensor([[0.0], [0.5]], dtype=torch.float64)
        >>> tril = factorize(gram(RBFKernel(), z, z), name="K_zz").tril
        >>> known = Sites(torch.ones(1, 1).double(), 100 * torch.ones(1, 1, 1).double())  # precision 100 at 0
        >>> old, new = (z[:1], tril[:1, :1]), (z[1:], tril[:1, :1])
        >>> [round(transferred(known, RBFKernel(), old, new, how).precision.item(), 2) for how in TRANSFERS]
        [59.43, 1.43]
    """
    if torch.equal(old[0], new[0]) and torch.equal(old[1], new[1]):
        return sites
    left = torch.linalg.solve_triangular(old[1], gram(kernel, old[0], new[0]), upper=False)
    forward = torch.linalg.solve_triangular(new[1], left.mT, upper=False).mT  # F
    shift, precision = sites.shift.unsqueeze(-1), sites.precision
    if how == "site":
        return Sites((forward.mT @ shift).squeeze(-1), _symmetric(forward.mT @ precision @ forward))
    eye = torch.eye(forward.shape[-2], dtype=forward.dtype, device=forward.device)
    residual = eye - forward @ forward.mT  # D
    values, vectors = torch.linalg.eigh(precision)
    half = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)  # C
    factor = factorize(eye + half.mT @ residual @ half, name="transferred sites")
    root = factor.half_solve(half.mT @ forward)
    shift = shift - half @ factor.solve(half.mT @ (residual @ shift))
    return Sites((forward.mT @ shift).squeeze(-1), root.mT @ root)


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2

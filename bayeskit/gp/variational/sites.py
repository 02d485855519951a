"""Gaussian sites on whitened inducing values: what data say about them, kept apart from the prior.

With f_j(Z) - m_j(Z) = L v_j and v_j ~ N(0, I) before the data, sites make

    q(v_j)  proportional to  N(v_j; 0, I) exp(l_j' v_j - v_j' P_j v_j / 2),        so q(v_j) = N(S_j l_j, S_j),
    S_j = (I + P_j)^-1.

Sites of several data sets at the same L and Z add. At rows x_i with A_i = L^-1 k(Z, x_i) and per-row sites (a_i, b_i)
they are l = sum_i a_i A_i and P = sum_i b_i A_i A_i'.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.core.operators import factorize


@dataclass(frozen=True, eq=False)
class Sites:
    """exp(l_j' v_j - v_j' P_j v_j / 2) for outputs j = 1 .. k.

    Args:
        shift: l, (k, m).
        precision: P, symmetric and positive semi-definite, (k, m, m).

    References:
        Adam, Chang, Khan and Solin (2021), "Dual Parameterization of Sparse Variational Gaussian Processes", section 3:
        their sites on u are l and P with L^-T from the left and L^-1 from the right.

    Examples:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> mean, root = (Sites(one, one.unsqueeze(0)) + Sites(one, 2 * one.unsqueeze(0))).moments()
        >>> mean.item(), root.square().item()
        (0.5, 0.25)
    """

    shift: Tensor
    precision: Tensor

    @classmethod
    def none(cls, num_outputs: int, z: Tensor) -> "Sites":
        """Those of no data, at m inducing points of z's type."""
        return cls(z.new_zeros(num_outputs, len(z)), z.new_zeros(num_outputs, len(z), len(z)))

    @classmethod
    def of(cls, mean: Tensor, root: Tensor) -> "Sites":
        """Those that give N(mean, R R'), with R upper triangular: mean (k, m), root (k, m, m)."""
        inverse = torch.linalg.solve_triangular(root, _eye(root), upper=True)
        precision = inverse.mT @ inverse
        return cls((precision @ mean.unsqueeze(-1)).squeeze(-1), precision - _eye(root))

    def __add__(self, other: "Sites") -> "Sites":
        return Sites(self.shift + other.shift, self.precision + other.precision)

    def toward(self, other: "Sites", length: float) -> "Sites":
        """A step of this length on the way to `other`: these at 0, those at 1."""
        return Sites(torch.lerp(self.shift, other.shift, length), torch.lerp(self.precision, other.precision, length))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (k, m) and upper-triangular root (k, m, m) of q(v): S^-1 = T T' gives R = T^-T."""
        factor = factorize(_eye(self.precision) + self.precision, name="precision of q(v)")
        root = torch.linalg.solve_triangular(factor.tril.mT, _eye(self.precision), upper=True)
        return factor.solve(self.shift.unsqueeze(-1)).squeeze(-1), root


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)

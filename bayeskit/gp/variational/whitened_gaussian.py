"""A Gaussian over whitened inducing values, by mean and root or by natural parameters (sites).

With f_j(Z) - m_j(Z) = L v_j and the prior v_j ~ N(0, I), a Gaussian q is the prior times sites,

    q(v_j)  proportional to  N(v_j; 0, I) exp(l_j' v_j - v_j' P_j v_j / 2),        so q(v_j) = N(S_j l_j, S_j),
    S_j = (I + P_j)^-1.

Sites of several data sets at the same L and Z add. Data points x_i with A_i = L^-1 k(Z, x_i) and a site (a_i, b_i) each
give l = sum_i a_i A_i and P = sum_i b_i A_i A_i'.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeskit.core.operators import factorize
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.process.gaussian_process import GaussianProcess


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
        """Sites of no data, at m inducing points of z's type."""
        return cls(z.new_zeros(num_outputs, len(z)), z.new_zeros(num_outputs, len(z), len(z)))

    @classmethod
    def of(cls, mean: Tensor, root: Tensor) -> "Sites":
        """The sites whose q is N(mean, R R'), with R upper triangular: mean (k, m), root (k, m, m)."""
        inverse = torch.linalg.solve_triangular(root, _eye(root), upper=True)
        precision = inverse.mT @ inverse
        return cls((precision @ mean.unsqueeze(-1)).squeeze(-1), precision - _eye(root))

    @classmethod
    def of_points(cls, projection: Tensor, pull: Tensor, precision: Tensor) -> "Sites":
        """The product of the sites (a_i, b_i) of data points: A (m, n) or (k, m, n), a and b (k, n)."""
        shift = (projection @ pull.unsqueeze(-1)).squeeze(-1)
        return cls(shift, (projection * precision.unsqueeze(-2)) @ projection.mT)

    def __add__(self, other: "Sites") -> "Sites":
        return Sites(self.shift + other.shift, self.precision + other.precision)

    def toward(self, other: "Sites", length: float) -> "Sites":
        """A step of this length in the direction of `other`: these at 0, `other` at 1."""
        return Sites(torch.lerp(self.shift, other.shift, length), torch.lerp(self.precision, other.precision, length))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (k, m) and upper-triangular root (k, m, m) of q(v): S^-1 = T T' gives R = T^-T."""
        factor = factorize(_eye(self.precision) + self.precision, name="precision of q(v)")
        root = torch.linalg.solve_triangular(factor.tril.mT, _eye(self.precision), upper=True)
        return factor.solve(self.shift.unsqueeze(-1)).squeeze(-1), root


@dataclass(frozen=True, eq=False)
class WhitenedGaussian:
    """q(v_j) = N(q_j, R_j R_j') for outputs j = 1 .. k.

    Args:
        mean: q, (k, m).
        root: R, upper triangular, (k, m, m).
    """

    mean: Tensor
    root: Tensor

    @classmethod
    def prior(cls, num_outputs: int, z: Tensor) -> "WhitenedGaussian":
        """q(v) = N(0, I)."""
        mean = z.new_zeros(num_outputs, len(z))
        return cls(mean, torch.diag_embed(torch.ones_like(mean)))

    @classmethod
    def from_sites(cls, sites: Sites) -> "WhitenedGaussian":
        """q(v) proportional to N(v; 0, I) times the sites."""
        return cls(*sites.moments())

    def leaves(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Free copies to optimize, q and R; gradients keep R upper-triangular."""
        return [t.detach().to(dtype, copy=True).requires_grad_(True) for t in (self.mean, self.root)]

    def divergence(self, other: "WhitenedGaussian | None" = None) -> Tensor:
        """sum_j KL[q(v_j) || N(0, I)], or the divergence from another Gaussian; a scalar."""
        mean, root = self.mean, self.root
        if other is not None:  # in coordinates in which the other one is standard normal
            joint = torch.cat([(mean - other.mean).unsqueeze(-1), root], dim=-1)
            joint = torch.linalg.solve_triangular(other.root, joint, upper=True)
            mean, root = joint[..., 0], joint[..., 1:]
        return _Divergence.apply(mean, root)  # type: ignore[return-value]

    def posterior(self, model: Model, z: Tensor) -> GaussianProcess:
        """The process whose inducing values have this distribution."""
        tril = factorize(gram(model.kernel, z, z), name="K_zz").tril
        return model.process().conditioned(z, tril, self.mean, root=self.root)


def dense_moments(precision: Tensor, shift: Tensor, *, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance of q(v) from S^-1 and S^-1 q, and sum_j KL[q(v_j) || N(0, I)].

    Args:
        precision: S^-1, (k, m, m), in float64.
        shift: S^-1 q, (k, m).
        dtype: Of the covariance.

    Returns:
        q (k, m) in float64, S (k, m, m), and the divergence, a scalar in float64.

    Examples:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> [value.item() for value in dense_moments(one.unsqueeze(0), one, dtype=torch.float32)]
        [1.0, 1.0, 0.5]
    """
    factor = factorize(precision, name="precision of q(v)")
    mean = torch.cholesky_solve(shift.unsqueeze(-1), factor.tril).squeeze(-1)
    covariance = torch.cholesky_inverse(factor.tril.to(dtype))
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum().double()
    return mean, covariance, 0.5 * (trace + mean.square().sum() - mean.numel() + factor.logdet().sum())


class _Divergence(torch.autograd.Function):
    """(tr R R' + |q|^2 - m - log |R R'|) / 2, summed over outputs."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, root: Tensor) -> Tensor:
        """A scalar, in float64, from q (k, m) and an upper-triangular R (k, m, m)."""
        ctx.save_for_backward(mean, root)
        pivots = root.diagonal(dim1=-2, dim2=-1).double()
        squares = torch.linalg.vector_norm(root, dtype=torch.float64).square() + mean.double().square().sum()
        return 0.5 * (squares - mean.numel()) - pivots.abs().log().sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """(q, R - diag(R)^-1)."""
        mean, root = ctx.saved_tensors
        scale = grads[0].to(root)
        slope = root * scale
        slope.diagonal(dim1=-2, dim2=-1).sub_(scale / root.diagonal(dim1=-2, dim2=-1))
        return mean * scale, slope


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)

"""Expectations over Gaussian latents: Gauss-Hermite, adaptive panels about the integrand's peaks, fixed Sobol draws.

Gauss-Hermite suits a smooth function such as a log-likelihood. A *density* p(y) = E[p(y | f)] is another matter: with
little noise its integrand is a needle that falls between the nodes (the mixture of nodes is a comb), so `mesh` finds
the peaks of the integrand and of p(y | f) first and then bisects panels until Gauss-Kronrod is content.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from bayeskit.core.operators import note

NUM_NODES = 32
"""Gauss-Hermite nodes for expectations of log-likelihoods."""

NUM_DRAWS = 512
"""Sobol draws where the distribution of y depends on several latents."""


@lru_cache
def gauss_hermite(num_nodes: int = NUM_NODES) -> tuple[Tensor, Tensor]:
    """Nodes and weights in float64 with `E[g(z)] = sum_q w_q g(z_q)` for z ~ N(0, 1), exact to degree 2 num_nodes - 1.

    Examples:
        >>> z, w = gauss_hermite(4)
        >>> round(float((w * z**6).sum()), 12)
        15.0
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return torch.as_tensor(nodes), torch.as_tensor(weights / math.sqrt(2 * math.pi))


def hermite_nodes(mean: Tensor, variance: Tensor, num_nodes: int = 2 * NUM_NODES) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes f (q, *shape) and weights (q, 1, ..., 1) for f ~ N(mean, variance), element by element."""
    z, weights = (t.to(mean).reshape(-1, *(1 for _ in mean.shape)) for t in gauss_hermite(num_nodes))
    return mean + variance.sqrt() * z, weights


@lru_cache
def sobol_normals(num_draws: int, dim: int) -> Tensor:
    """Fixed standard normal points (num_draws, dim) in float64: scrambled Sobol with seed 0, mirrored and whitened.

    Their mean is zero and (when num_draws > 2 dim) their covariance the identity, so averages of quadratics are exact.

    References:
        Owen (1998), Scrambling Sobol' and Niederreiter-Xing points, Journal of Complexity 14.

    Examples:
        >>> z = sobol_normals(64, 3)
        >>> bool(torch.allclose(z.T @ z / 64, torch.eye(3, dtype=z.dtype)))
        True
    """
    half = (num_draws + 1) // 2
    u = torch.quasirandom.SobolEngine(dim, scramble=True, seed=0).draw(half, dtype=torch.float64)
    z = torch.special.ndtri(u.clamp(2.0**-32, 1 - 2.0**-32))
    z = torch.cat([z, -z])[:num_draws]
    if half <= 2 * dim or num_draws % 2:
        return z
    factor = torch.linalg.cholesky(z.T @ z / num_draws)
    return torch.linalg.solve_triangular(factor, z.T, upper=False).T.contiguous()


def latent_draws(mean: Tensor, covariance: Tensor, num_draws: int = NUM_DRAWS) -> Tensor:
    """Fixed Sobol draws of k Gaussian latents at each input, (s, *b, n, k).

    Args:
        mean: (*b, n, k).
        covariance: Covariance of the latents at each input, (*b, n, k, k); it may be singular.
        num_draws: s.
    """
    z = sobol_normals(num_draws, mean.shape[-1]).to(mean)  # (s, k)
    root = square_root(covariance)
    return mean + torch.einsum("...ij,sj->s...i", root, z)


def square_root(covariance: Tensor) -> Tensor:
    """The symmetric square root of positive semi-definite matrices (*b, k, k), singular ones too.

    It is unique, so that draws made with it do not depend on which other inputs are in the batch (a Cholesky factor
    that falls back to an eigendecomposition for some would).
    """
    values, vectors = torch.linalg.eigh(covariance)
    note("negative eigenvalues of the covariance of the outputs floored", float((-values).clamp(min=0).max()))
    return (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.mT

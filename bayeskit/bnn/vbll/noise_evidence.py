"""The Gaussian noise of the largest evidence of a last layer, for fixed features.

In coordinates u of a row's weights in which its prior precision is the identity and `Phi'Phi` is diag(l), with
`c = Phi'(y - Phi m0)` there, the posterior mean at noise s is `c / (l + s)`, and the evidence is stationary where

    s (N - sum_j l_j / (l_j + s)) = |y - Phi m|^2.

Iterated, that is one eigendecomposition and then sums of d numbers.

References:
    MacKay. Bayesian interpolation. Neural Computation 1992, equation 32.
"""

import torch
from torch import Tensor

from bayeskit.bnn.curvature.eigenbasis import whitened_eigh
from bayeskit.bnn.vbll.row_prior import RowPrior, weighted_grams
from bayeskit.core.inputs import one_tensor
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.likelihood.gaussian import outputs
from bayeskit.core.types import Data

ROUNDS = 1000
"""Rounds at most; each costs some ten operations on (k, d) numbers."""

TOLERANCE = 1e-10
"""Relative change of all noises that ends the rounds."""


def set_best_noise(
    likelihood: Likelihood, prior: RowPrior, data: Data, *, offset: Tensor | None, kl_weight: float
) -> None:
    """Set the noise variances of a Gaussian likelihood, one for all outputs or one each, in place.

    Args:
        likelihood: Its noise is changed.
        prior: Of the rows.
        data: Features (n, d), targets with NaN where not observed, case weights; float64.
        offset: Constants of the outputs, (k,), or None for zeros.
        kl_weight: Factor on the divergence: the posterior is that of the prior with its precision multiplied by it.
    """
    start, features = likelihood.noise_variance, one_tensor(data.x)
    assert start is not None
    center = features @ prior.mean.mT if offset is None else features @ prior.mean.mT + offset
    target = outputs(data.y, center)
    seen = (~target.isnan()).to(center.dtype)
    if data.weights is not None:
        seen = seen * data.weights[:, None]
    residual = torch.where(target.isnan(), 0.0, target - center)
    values, projected = _coordinates(prior, features, seen, residual)
    total, count = (seen * residual.square()).sum(0), seen.sum(0)
    noise = start.detach().to(center.dtype).expand_as(total).clone()
    for _ in range(ROUNDS):
        s = kl_weight * noise.unsqueeze(-1)
        weights = projected / (values + s)
        squares = total - (2 * projected * weights - values * weights.square()).sum(-1)
        left = count - kl_weight * (values / (values + s)).sum(-1)
        if len(start) == 1:
            squares, left = squares.sum().expand_as(total), left.sum().expand_as(total)
        new = torch.where(count > 0, squares / left.clamp_min(1), noise).clamp_min(likelihood.noise_floor)
        converged = bool(((new / noise).log().abs() <= TOLERANCE).all())
        noise = new
        if converged:
            break
    likelihood.set_noise_variance(noise[:1] if len(start) == 1 else noise)


def _coordinates(prior: RowPrior, features: Tensor, seen: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues l and the projected targets c of each output, each (k, d)."""
    grams, matrices = weighted_grams(features, seen), prior.matrices()
    if len(grams) == 1 and bool((prior.precision == prior.precision[:1]).all()):
        matrices = matrices[:1]  # one decomposition for all outputs
    values, vectors, tril = whitened_eigh(grams.expand(matrices.shape), matrices)
    projected = ((seen * residual).mT @ features).unsqueeze(-1)  # (k, d, 1)
    tril = tril.expand(len(projected), -1, -1)
    projected = vectors.mT @ torch.linalg.solve_triangular(tril, projected, upper=False)
    return values.expand(len(projected), -1), projected.squeeze(-1)

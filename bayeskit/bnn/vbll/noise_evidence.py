"""The Gaussian noise of the largest evidence of a last layer, for fixed features.

In coordinates u of a row's weights in which its prior precision is the identity and `Phi'Phi` is diag(l), with
`c = Phi'(y - Phi m0)` there, the posterior mean at noise s is `c / (l + s)`, and the evidence is stationary where

    s (N - sum_j l_j / (l_j + s)) = |y - Phi m|^2.

Iterated, that is one eigendecomposition and then sums of d numbers.

References:
    MacKay. Bayesian interpolation. Neural Computation 1992, equation 32.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayeskit.bnn.laplace_approximation.evidence_refit import set_noise
from bayeskit.core import operators
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.likelihood.gaussian import outputs
from bayeskit.core.types import Data

if TYPE_CHECKING:
    from bayeskit.bnn.vbll.likelihood_layer import LikelihoodLayer

ROUNDS = 1000
"""Rounds at most; each costs some ten operations on (k, d) numbers."""

SETTLED = 1e-10
"""Relative change of all noises that ends the rounds."""


def set_best_noise(layer: "LikelihoodLayer", data: Data) -> None:
    """Set the noise variances of a layer with a Gaussian likelihood, one for all outputs or one each.

    Args:
        layer: In float64; only its noise is changed. With a `kl_weight` the posterior is that of the prior sharpened.
        data: Features (n, d), targets with NaN where not observed, case weights.
    """
    likelihood, prior, features = layer.likelihood, layer.prior, data.x
    assert isinstance(likelihood, Gaussian) and isinstance(features, Tensor)
    center = features @ prior.mean.mT if layer.offset is None else features @ prior.mean.mT + layer.offset
    target = outputs(data.y, center)
    seen = (~target.isnan()).to(center.dtype)
    if data.weights is not None:
        seen = seen * data.weights[:, None]
    residual = torch.where(target.isnan(), 0.0, target - center)
    values, pulled = _coordinates(layer, features, seen, residual)
    total, count = (seen * residual.square()).sum(0), seen.sum(0)
    shared = len(likelihood.noise) == 1
    noise = likelihood.noise.detach().to(center.dtype).expand_as(total).clone()
    for _ in range(ROUNDS):
        s = noise.unsqueeze(-1)
        weights = pulled / (values + layer.kl_weight * s)
        squares = total - (2 * pulled * weights - values * weights.square()).sum(-1)
        left = count - layer.kl_weight * (values / (values + layer.kl_weight * s)).sum(-1)
        if shared:
            squares, left = squares.sum().expand_as(total), left.sum().expand_as(total)
        new = torch.where(count > 0, squares / left.clamp_min(1), noise).clamp_min(likelihood.floor)
        settled = bool(((new / noise).log().abs() <= SETTLED).all())
        noise = new
        if settled:
            break
    set_noise(likelihood, noise[:1] if shared else noise)


def _coordinates(layer: "LikelihoodLayer", features: Tensor, seen: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues l and the pulls c of each output, each (k, d)."""
    gram = (
        (features * seen[:, :1]).mT @ features
        if bool((seen == seen[:, :1]).all())
        else torch.stack([(features * column.unsqueeze(-1)).mT @ features for column in seen.unbind(-1)])
    )
    precision = layer.prior.precision
    alike = gram.ndim == 2 and bool((precision == precision[:1]).all())
    matrices = layer.prior.matrices()[:1] if alike else layer.prior.matrices()
    tril = operators.factorize(matrices, name="the prior precision").tril
    half = torch.linalg.solve_triangular(tril, gram.expand(tril.shape), upper=False)
    white = torch.linalg.solve_triangular(tril, half.mT, upper=False)
    values, vectors = torch.linalg.eigh((white + white.mT) / 2)
    pulls = ((seen * residual).mT @ features).unsqueeze(-1)  # (k, d, 1)
    pulls = vectors.mT @ torch.linalg.solve_triangular(tril.expand(len(pulls), -1, -1), pulls, upper=False)
    return values.clamp_min(0).expand(len(pulls), -1), pulls.squeeze(-1)

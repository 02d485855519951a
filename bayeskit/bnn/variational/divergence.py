"""The divergence of a mean-field Gaussian from a Gaussian prior.

KL = 1/2 [tr(P diag(s^2)) + (m - m0)' P (m - m0) - log det P - p] - sum_j log s_j,   P the prior's precision
"""

import torch
from torch import Tensor

from bayeskit.bnn.problem import prior_precision
from bayeskit.bnn.weights import GaussianWeights


class Divergence:
    """`KL(N(m, diag(s^2)) || N(m0, P^-1))` as a function of m and log s, for a prior that is fixed.

    Independent weights cost one pass over them. The posterior of earlier data may be correlated (a Laplace law): its
    precision is then formed once, (p, p).

    Args:
        prior: Law of p weights, of any covariance that can be inverted.

    Raises:
        ValueError: The prior is correlated and too large to invert.

    >>> from bayeskit.bnn.posterior import gaussian_prior
    >>> prior = gaussian_prior(torch.nn.Linear(1, 1)).weights
    >>> float(Divergence(prior)(torch.zeros(2), torch.zeros(2)))  # the prior itself: variances 1
    0.0
    """

    def __init__(self, prior: GaussianWeights):
        precision = prior_precision(prior, list(prior.mean), "full")  # (p,) or (p, p), float64
        self.center = prior.flat_mean
        self.precision = precision.to(self.center.dtype)
        diagonal = precision if precision.ndim == 1 else precision.diagonal()
        self.diagonal = diagonal.to(self.center.dtype)
        self.half_log = 0.5 * (diagonal.log().sum() if precision.ndim == 1 else torch.logdet(precision))

    @property
    def independent(self) -> bool:
        """Whether the prior's weights are independent of each other."""
        return self.precision.ndim == 1

    def __call__(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        """KL for means and log standard deviations (p,), a scalar; sums over weights are accumulated in pairs."""
        offset = mean - self.center
        pulled = offset * self.precision if self.independent else offset @ self.precision
        quadratic = (pulled * offset + (2 * log_scale).exp() * self.diagonal).sum()
        constant = self.half_log + 0.5 * len(mean)
        return 0.5 * quadratic - log_scale.sum() - constant.to(mean.dtype)

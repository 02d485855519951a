"""KL divergence of a mean-field Gaussian from a Gaussian prior.

KL = 1/2 [tr(P diag(s^2)) + (m - m0)' P (m - m0) - log det P - p] - sum_j log s_j,   P the prior's precision
"""

from typing import Self

import torch
from torch import Tensor

from bayeskit.bnn.curvature.prior_precision import base_precision
from bayeskit.bnn.variational_inference.sparse_support import Support
from bayeskit.bnn.variational_inference.sparse_weights import SparseWeights
from bayeskit.bnn.weights.weight_posterior import GaussianWeights

MeanFieldPrior = GaussianWeights | SparseWeights


class Divergence:
    """`KL(N(m, diag(s^2)) || N(m0, P^-1))` as a function of m and log s.

    A posterior of earlier data as prior may be correlated (Laplace): its precision is then formed once, (s, s).

    Args:
        center: m0, (s,).
        precision: P, (s,) for independent weights or (s, s), float64.

    >>> zeros = torch.zeros(2)
    >>> float(Divergence(zeros, torch.ones(2, dtype=torch.float64))(zeros, zeros))  # the prior itself: variances 1
    0.0
    """

    def __init__(self, center: Tensor, precision: Tensor):
        self.center, self.precision = center, precision.to(center.dtype)
        self.independent = precision.ndim == 1
        self.diagonal = self.precision if self.independent else self.precision.diagonal()
        logdet = precision.log().sum() if self.independent else torch.logdet(precision)
        self.constant = (0.5 * (logdet + len(center))).to(center.dtype)

    @classmethod
    def build(cls, prior: MeanFieldPrior, support: Support, factor: float = 1.0) -> Self:
        """The divergence of the active weights from their prior.

        The precision of a prior of unknown scale (`scale_known=False`) is multiplied by `factor`, and by the density of
        each tensor: with a tenth of the weights, ten times the variance gives the same variance of the outputs.

        Raises:
            ValueError: The prior is correlated, and too large to invert or over more weights than the active ones.
        """
        if isinstance(prior, SparseWeights):
            return cls(prior.values, 1 / prior.variances.double())
        precision = base_precision(prior, list(prior.mean), "full")  # (p,) or (p, p), float64
        if precision.ndim == 2 and support.sparse:
            raise ValueError(
                f"A sparse q needs independent weights in the prior; got a {type(prior.covariance).__name__}, the "
                "posterior of earlier data. Use `MeanFieldVI`, or start from `bnn.gaussian_prior(network)`."
            )
        if precision.ndim == 1:
            precision = support.take(precision)
        if not prior.scale_known:
            precision = precision * factor * support.spread(support.densities).to(precision)
        return cls(support.take(prior.flat_mean), precision)

    def scales(self, prior: MeanFieldPrior) -> Tensor:
        """Standard deviations of the weights under the prior, (s,)."""
        if self.independent:
            return self.diagonal.rsqrt()
        return prior.covariance.diagonal(dim1=-1, dim2=-2).detach().to(self.center).sqrt()

    def __call__(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        """KL for means and log standard deviations (s,), a scalar."""
        offset = mean - self.center
        pulled = offset * self.precision if self.independent else offset @ self.precision
        quadratic = (pulled * offset + (2 * log_scale).exp() * self.diagonal).sum()
        return 0.5 * quadratic - log_scale.sum() - self.constant

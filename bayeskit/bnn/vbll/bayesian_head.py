"""The base of all Bayesian last layers: modules with a distribution over their weights.

features (n, d) --forward--> mean (n, k), root (n, k, r)      tensors alone: it exports
                --values---> GaussianValues                   joint over inputs and outputs, lazy
                --predictive-> Predictive                     the posterior predictive distribution
features, y     --loss-----> the objective per data point     for a user's own training loop
                --fit------> the optimum for fixed features   closed form or natural gradients
                --partial_fit> the same, with the present distribution for a prior: the posterior of all data
"""

import math
from abc import ABC, abstractmethod

import torch
from linear_operator.operators import BlockInterleavedLinearOperator, RootLinearOperator
from torch import Tensor, nn

from bayeskit.bnn.vbll.row_gaussians import Rows, build
from bayeskit.bnn.vbll.row_prior import RowPrior
from bayeskit.core import checks
from bayeskit.core.posterior import GaussianValues
from bayeskit.core.predictive import Predictive


class LastLayer(nn.Module, ABC):
    """A Bayesian last layer: `f_o(x) = w_o' phi(x)` for features phi and uncertain weights.

    Args:
        num_data: Size N of the whole data set, which the divergence from the prior is divided by.
        kl_weight: Factor on that divergence; 1 for the evidence lower bound.
    """

    def __init__(self, num_data: int, kl_weight: float):
        super().__init__()
        checks.positive(num_data, name="num_data", integer=True)
        checks.positive(kl_weight, name="kl_weight")
        self.num_data, self.kl_weight = num_data, kl_weight

    @abstractmethod
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The mean (n, k) of the outputs, and R (n, k, r) with `cov(f_io, f_jo) = R_io . R_jo`."""

    @abstractmethod
    def expected_log_prob(self, features: Tensor, y: Tensor) -> Tensor:
        """`E log p(y_i | f(x_i))` under the distribution of the weights, or its lower bound, (n,)."""

    @abstractmethod
    def penalty(self) -> Tensor:
        """The divergence of the weights' distribution from the prior, minus log priors of the noise, ()."""

    @abstractmethod
    def predictive(self, features: Tensor) -> Predictive:
        """The posterior predictive distribution at features (n, d)."""

    @abstractmethod
    def fit(self, features: Tensor, y: Tensor) -> float:
        """Set the distribution to its optimum for these features (n, d) and targets, once the body is trained.

        Returns:
            The log evidence, or its lower bound.
        """

    @abstractmethod
    def partial_fit(self, features: Tensor, y: Tensor) -> float:
        """As `fit`, but with the present distribution for a prior, which the layer keeps; the noise is fixed.

        For a family that conditioning preserves (Gaussian noise; "dense" or "dense_precision") the result is that of
        all data at once.
        """

    def values(self, features: Tensor) -> GaussianValues:
        """The joint Gaussian of the outputs at n inputs, with a covariance operator (n*k, n*k), point-major."""
        mean, root = self(features)
        return GaussianValues(mean, BlockInterleavedLinearOperator(RootLinearOperator(root.movedim(1, 0))))

    def loss(self, features: Tensor, y: Tensor) -> Tensor:
        """`-mean_i E log p(y_i | f(x_i)) + kl_weight / num_data penalty`: minus the ELBO per data point.

        Args:
            features: (n, d), a mini-batch.
            y: Its targets.
        """
        return -self.expected_log_prob(features, y).mean() + self.kl_weight / self.num_data * self.penalty()


def start(
    in_features: int, outputs: int, covariance: str, *, prior_scale: float, rank: int, dtype: torch.dtype | None = None
) -> tuple[Rows, RowPrior]:
    """Rows near zero with small scales, and a prior of independent weights with variance `prior_scale / in_features`.

    Means start as `N(0, 2 / d)`, as layers of networks do; standard deviations at those of the prior over sqrt(d), so
    that the variance of the outputs does not dominate the first steps.
    """
    checks.positive(in_features, name="in_features", integer=True)
    checks.positive(outputs, name="out_features", integer=True)
    checks.positive(prior_scale, name="prior_scale")
    variance = prior_scale / in_features
    mean = math.sqrt(2 / in_features) * torch.randn(outputs, in_features, dtype=dtype)
    prior = RowPrior(torch.zeros_like(mean), torch.full_like(mean, 1 / variance))
    scale = torch.full_like(mean, math.sqrt(variance / in_features))
    return build(covariance, mean, scale, rank=rank), prior

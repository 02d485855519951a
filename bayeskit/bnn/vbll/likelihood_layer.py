"""A last layer under any likelihood: rows, a prior, and the expectation of the log-likelihood."""

import torch
from torch import Tensor

from bayeskit.bnn.vbll import natural_gradient_refit
from bayeskit.bnn.vbll.bayesian_head import LastLayer
from bayeskit.bnn.vbll.inverse_wishart import InverseWishart
from bayeskit.bnn.vbll.row_gaussians import Rows, precision_of
from bayeskit.bnn.vbll.row_prior import RowPrior
from bayeskit.bnn.vbll.softmax_bounds import Expectation
from bayeskit.core.likelihood import Gaussian, Likelihood
from bayeskit.core.predictive import Predictive
from bayeskit.core.types import Data


class LikelihoodLayer(LastLayer):
    """`y_i ~ p(y | f(x_i))`, `f_o(x) = c_o + w_o' phi(x)`, with Gaussian laws of the rows w_o.

    Args:
        rows: The law of the weights.
        prior: Theirs before the data.
        likelihood: The law of y given f; its parameters are parameters of the layer.
        num_data: Number of rows of the whole data set.
        kl_weight: Factor on the divergence from the prior.
        bound: See `Expectation`.
        offset: Constants c, (k,), or None for zeros.
        noise_prior: Of the variances of a Gaussian likelihood, or None.
    """

    offset: Tensor | None

    def __init__(
        self,
        rows: Rows,
        prior: RowPrior,
        likelihood: Likelihood,
        *,
        num_data: int,
        kl_weight: float = 1.0,
        bound: str = "expectation",
        offset: Tensor | None = None,
        noise_prior: InverseWishart | None = None,
    ):
        super().__init__(num_data, kl_weight)
        self.rows, self.prior, self.likelihood, self.noise_prior = rows, prior, likelihood, noise_prior
        self.expectation = Expectation(likelihood, bound)
        self.register_buffer("offset", None if offset is None else offset.detach().clone())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The mean (n, k), and R (n, k, r)."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.rows.mean.dtype)
            return self._mean(features), self.rows.root(features)

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances of the outputs, each (n, k)."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.rows.mean.dtype)
            return self._mean(features), self.rows.variance(features)

    def expected_log_prob(self, features: Tensor, y: Tensor) -> Tensor:
        """`E log p(y_i | f(x_i))`, or the chosen bound, (n,)."""
        return self.expectation.value(*self.moments(features), y)

    def divergence(self) -> Tensor:
        """`KL(q || p)` of all the rows, ()."""
        return self.prior.divergence(self.rows).sum()

    def penalty(self) -> Tensor:
        """The divergence minus the log prior of the noise, ()."""
        if self.noise_prior is None:
            return self.divergence()
        assert isinstance(self.likelihood, Gaussian)
        variances = self.likelihood.noise.expand(len(self.rows.mean))
        return self.divergence() - self.noise_prior.log_density(variances).to(self.rows.mean.dtype)

    @torch.no_grad()
    def predictive(self, features: Tensor) -> Predictive:
        """The law of the observations: deterministic, by the likelihood's own closed form or quadrature."""
        return self.likelihood.predictive(self.values(features))

    @torch.no_grad()
    def fit(self, features: Tensor, y: Tensor) -> float:
        """The optimum for these features, the noise of a Gaussian likelihood included if it is learnt."""
        return natural_gradient_refit.settle(self, Data(features, y), learn_noise=True).elbo

    @torch.no_grad()
    def partial_fit(self, features: Tensor, y: Tensor) -> float:
        """Condition the present law on further rows."""
        self.prior = RowPrior(self.rows.mean, precision_of(self.rows.operator()))
        return natural_gradient_refit.settle(self, Data(features, y), learn_noise=False).elbo

    def _mean(self, features: Tensor) -> Tensor:
        mean = features @ self.rows.mean.mT
        return mean if self.offset is None else mean + self.offset

"""A last layer under any likelihood: rows, a prior, and the expectation of the log-likelihood."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.bnn.vbll.bayesian_head import LastLayer
from bayeskit.bnn.vbll.inverse_wishart import InverseWishart
from bayeskit.bnn.vbll.natural_gradient_refit import Layer, optimize
from bayeskit.bnn.vbll.noise_evidence import set_best_noise
from bayeskit.bnn.vbll.row_gaussians import Rows, precision_of
from bayeskit.bnn.vbll.row_prior import RowPrior
from bayeskit.bnn.vbll.softmax_bounds import Expectation
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.predictive import Predictive
from bayeskit.core.types import Data


@dataclass(frozen=True)
class Optimum:
    """The result of `LikelihoodLayer.optimize`.

    Args:
        elbo: The evidence lower bound, at KL weight 1.
        steps: Number of natural-gradient steps.
    """

    elbo: float
    steps: int


class LikelihoodLayer(LastLayer):
    """`y_i ~ p(y | f(x_i))`, `f_o(x) = c_o + w_o' phi(x)`, with Gaussian distributions of the rows w_o.

    Args:
        rows: The distribution of the weights.
        prior: Their prior.
        likelihood: Of y given f; its parameters are parameters of the layer.
        num_data: Size of the whole data set.
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
            return self.rows.means(features, self.offset), self.rows.root(features)

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances of the outputs, each (n, k)."""
        with torch.autocast(features.device.type, enabled=False):
            return self.rows.moments(features.to(self.rows.mean.dtype), self.offset)

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
        noise = self.likelihood.noise_variance
        assert noise is not None
        log_prior = self.noise_prior.log_density(noise.expand(len(self.rows.mean)))
        return self.divergence() - log_prior.to(self.rows.mean.dtype)

    @torch.no_grad()
    def predictive(self, features: Tensor) -> Predictive:
        """The posterior predictive distribution: deterministic, by the likelihood's closed form or quadrature."""
        return self.likelihood.predictive(self.values(features))

    @torch.no_grad()
    def fit(self, features: Tensor, y: Tensor) -> float:
        """The optimum for these features, the noise of a Gaussian likelihood included if it is learnt."""
        return self.optimize(Data(features, y), learn_noise=True).elbo

    @torch.no_grad()
    def partial_fit(self, features: Tensor, y: Tensor) -> float:
        """Condition the present distribution on further data."""
        self.prior = RowPrior(self.rows.mean, precision_of(self.rows.operator()))
        return self.optimize(Data(features, y), learn_noise=False).elbo

    def elbo(self, data: Data) -> Tensor:
        """The evidence lower bound on features (n, d) and targets, ()."""
        assert isinstance(data.x, Tensor)
        return data.total(self.expected_log_prob(data.x, data.y)) - self.divergence()

    @torch.no_grad()
    def optimize(self, data: Data, *, learn_noise: bool) -> Optimum:
        """Set the rows, and the noise if asked, to their optimum for these features; the work is done in float64.

        Args:
            data: Features (n, d), targets, case weights.
            learn_noise: Whether the likelihood's own parameters are learnt, those that can be.
        """
        work = copy.deepcopy(self).double()
        layer = Layer(work.prior, work.expectation, work.offset, work.kl_weight, data.to(dtype=torch.float64))
        learnt = [value for value in work.likelihood.parameters() if value.requires_grad] if learn_noise else []
        if learnt and work.likelihood.noise_variance is not None:
            set_best_noise(layer)
        state, steps = optimize(layer, work.rows, learnt)
        work.rows = state.rows
        self.load_state_dict(work.state_dict())
        return Optimum(float(state.expected()) - state.divergence, steps)

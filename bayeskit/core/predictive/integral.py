"""The predictive of any likelihood with one Gaussian latent per output."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from bayeskit.core import generators, operators
from bayeskit.core.posterior import FunctionValues
from bayeskit.core.predictive import adaptive_quadrature, distribution_cdfs
from bayeskit.core.predictive.arguments import targets, thresholds
from bayeskit.core.predictive.predictive import ContinuousPredictive
from bayeskit.core.predictive.quadrature import hermite_nodes


@dataclass(frozen=True, eq=False)
class IntegralPredictive(ContinuousPredictive):
    """p(y) = integral of p(y | f) N(f; m, v) df for each output, by quadrature about the peaks of the integrand.

    The density is accurate however little noise there is (see `adaptive_quadrature`). With several outputs
    `log_prob` adds up the outputs, that is, it takes their latents as independent given the input.

    Args:
        values: Gaussian function values (*b, n, k).
        likelihood: Maps latents (q, *b, n, k) to the distribution of each output, of that batch shape and event ().
        rule: How the distribution was formed.
        discrete: Whether y is a count.

    Examples:
        >>> from linear_operator import to_linear_operator
        >>> from bayeskit.core.posterior import GaussianValues
        >>> values = GaussianValues(torch.zeros(2, 1), to_linear_operator(torch.eye(2)))
        >>> predictive = IntegralPredictive(values, lambda f: td.Laplace(f, 0.001))
        >>> predictive.log_prob([0.0, 2.0])  # hardly any noise: the density of f
        tensor([-0.9189, -2.9189])
    """

    values: FunctionValues
    likelihood: Callable[[Tensor], td.Distribution]
    rule: str = "quadrature"
    discrete: bool = False

    @cached_property
    def mean(self) -> Tensor:  # type: ignore[override]
        """Expectation of the conditional mean by Gauss-Hermite, (*b, n, k)."""
        return self._by_rows(_location, self.values.mean)

    @property
    def aleatoric(self) -> Tensor:
        """Expectation of the conditional variance by Gauss-Hermite, (*b, n, k)."""
        return self._by_rows(_noise, self.values.mean)

    @property
    def epistemic(self) -> Tensor:
        """Variance of the conditional mean by Gauss-Hermite, (*b, n, k)."""
        return self._by_rows(_spread, self.mean)

    def log_prob(self, y: Any) -> Tensor:
        """Log density summed over outputs, (*b, n)."""
        return self._by_rows(_log_density, targets(y, like=self.values.mean)).sum(-1)

    def _sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws (s, *b, n, k): latents, then y given them."""
        mean, variance = self.values.moments
        z = generators.normal((num_samples, *mean.shape), like=mean, generator=generator)
        with generators.seeded(generator):
            return self.likelihood(mean + variance.sqrt() * z).sample()

    def cdf(self, y: Any) -> Tensor:
        """P(Y <= y), (*b, n, k)."""
        return self._by_rows(_cumulative, thresholds(y, like=self.values.mean))

    def _by_rows(self, function: "RowFunction", y: Tensor) -> Tensor:
        """A `RowFunction` over chunks of inputs, in float64, of the shape of `y` (*j, *b, n, k)."""
        mean, variance = (t.double().expand(y.shape) for t in self.values.moments)
        parts = [
            function(self.likelihood, mean[..., rows, :], variance[..., rows, :], y[..., rows, :].double())
            for rows in operators.chunks(y.shape[-2], adaptive_quadrature.COST * y[..., 0, :].numel())
        ]
        return torch.cat(parts, dim=-2).to(self.values.mean.dtype)


Conditional = Callable[[Tensor], td.Distribution]
RowFunction = Callable[[Conditional, Tensor, Tensor, Tensor], Tensor]


def _location(likelihood: Conditional, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
    f, weights = hermite_nodes(mean, variance)
    return (weights * likelihood(f).mean).sum(0)


def _noise(likelihood: Conditional, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
    f, weights = hermite_nodes(mean, variance)
    return (weights * likelihood(f).variance).sum(0)


def _spread(likelihood: Conditional, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
    f, weights = hermite_nodes(mean, variance)
    return (weights * (likelihood(f).mean - y) ** 2).sum(0)


def _log_density(likelihood: Conditional, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
    return adaptive_quadrature.log_expectation(lambda f: distribution_cdfs.log_prob(likelihood(f), y), mean, variance)


def _cumulative(likelihood: Conditional, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
    # P(Y <= y | f) changes where p(y | f) peaks, so the nodes for the density serve the cdf
    f, log_weights = adaptive_quadrature.mesh(lambda f: distribution_cdfs.log_prob(likelihood(f), y), mean, variance)
    return (log_weights.exp() * distribution_cdfs.cdf(likelihood(f), y)).sum(0).clamp(0, 1)

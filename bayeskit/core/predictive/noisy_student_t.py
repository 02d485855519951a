"""A Gaussian function value plus Student-t noise."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from bayeskit.core.posterior import FunctionValues
from bayeskit.core.predictive import quantiles
from bayeskit.core.predictive.arguments import levels
from bayeskit.core.predictive.mixture_predictive import MixturePredictive
from bayeskit.core.predictive.predictive import ContinuousPredictive

_STEP = 0.3
"""Step of the trapezoidal rule in log tau. Without uncertainty of f, log densities up to 100 scales away are accurate
to 1e-11 for df of at most 4, to 3e-9 for 10, to 2e-5 for 30 and to 0.03 for 100."""

_HIGHEST = 5.0
"""Upper end of log tau: the weight there is below exp(-72) for every df of at least 1."""


@dataclass(frozen=True, eq=False)
class NoisyStudentTPredictive(ContinuousPredictive):
    """y = f + scale * t_df with Gaussian f, as a scale mixture of Gaussians.

    A Student-t is a Gaussian whose precision tau is Gamma(df / 2, df / 2) distributed, so
    p(y) = E_tau N(y; m, v + scale^2 / tau). The expectation over tau is a trapezoidal sum in log tau, which
    converges geometrically; all components are centered at m, so the density is smooth however little noise there is.
    Residuals up to 1e8 scales are resolved. Outputs are taken as independent given the input.

    Args:
        values: Gaussian function values (*b, n, k).
        scale: Scale of the noise, broadcasting against (*b, n, k).
        df: Degrees of freedom.
        rule: How the distribution was formed.

    References:
        Lange, Little & Taylor (1989), Robust statistical modeling using the t distribution, JASA 84, section 2.

    Examples:
        >>> from linear_operator import to_linear_operator
        >>> from bayeskit.core.posterior import GaussianValues
        >>> values = GaussianValues(torch.zeros(1, 1), to_linear_operator(torch.eye(1)))
        >>> NoisyStudentTPredictive(values, torch.tensor(0.5), 4.0).variance
        tensor([[1.5000]])
    """

    values: FunctionValues
    scale: Tensor
    df: float
    rule: str = "quadrature"
    discrete: bool = False

    @property
    def mean(self) -> Tensor:
        """The mean of the function, (*b, n, k)."""
        return self.values.mean

    @property
    def aleatoric(self) -> Tensor:
        """scale^2 df / (df - 2), infinite for df <= 2, (*b, n, k)."""
        factor = self.df / (self.df - 2) if self.df > 2 else math.inf
        return (self.scale.to(self.mean) ** 2 * factor).expand(self.mean.shape)

    @property
    def epistemic(self) -> Tensor:
        """The variance of the function, (*b, n, k)."""
        return self.values.variance

    def log_prob(self, y: Any) -> Tensor:
        """Log density summed over outputs, (*b, n)."""
        return self._mixture.log_prob(y)

    def _sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws (s, *b, n, k)."""
        return self._mixture.sample(num_samples, generator=generator)

    def cdf(self, y: Any) -> Tensor:
        """P(Y <= y), (*b, n, k)."""
        return self._mixture.cdf(y)

    def quantile(self, q: Any) -> Tensor:
        """Roots of the cdf, (*b, n, k); `q` of shape (j,) gives (j, *b, n, k)."""
        width = (self.epistemic + self.scale.to(self.mean) ** 2).sqrt()
        return quantiles.invert(self.cdf, levels(q, like=self.mean), self.mean, width)

    @cached_property
    def _mixture(self) -> MixturePredictive:
        log_tau, log_weights = _log_precision_rule(self.df)
        mean, variance = self.values.moments
        column = (-1, *(1 for _ in mean.shape))
        noise = self.scale.to(mean) ** 2 * (-log_tau).exp().to(mean).reshape(column)
        components = td.Normal(mean, (variance + noise).sqrt(), validate_args=False)
        return MixturePredictive(components, log_weights.to(mean), rule=self.rule)


def _log_precision_rule(df: float) -> tuple[Tensor, Tensor]:
    """Nodes and normalized log weights of log tau, tau ~ Gamma(df / 2, df / 2), dense where a large df is narrow."""
    lowest = -max(42.0, 74 / df)  # where the weight, about tau^(df / 2), is below 1e-16
    x = torch.arange(lowest, _HIGHEST, _STEP, dtype=torch.float64)
    narrow = min(1.0, math.sqrt(2 / df))  # standard deviation of log tau for large df
    log_tau = x - (1 - narrow) * x.tanh()
    slope = 1 - (1 - narrow) / x.cosh() ** 2
    log_density = df / 2 * (log_tau - log_tau.exp())
    return log_tau, (log_density + slope.log()).log_softmax(0)

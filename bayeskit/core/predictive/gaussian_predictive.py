"""The exact Gaussian predictive."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bayeskit.core import generators, operators
from bayeskit.core.posterior import FunctionValues
from bayeskit.core.predictive.arguments import levels, targets, thresholds
from bayeskit.core.predictive.predictive import ContinuousPredictive


@dataclass(frozen=True, eq=False)
class GaussianPredictive(ContinuousPredictive):
    """y = f + noise with Gaussian function values and independent Gaussian noise.

    p(y_i) = N(y_i; m_i, V_i + diag(noise)), with V_i the k x k covariance of the outputs at input i: `log_prob` uses
    all of V_i, `cdf` and `quantile` treat each output by itself.

    Args:
        values: Gaussian function values (*b, n, k).
        noise: Noise *variance*, broadcasting against (*b, n, k): (1,), (k,) or (n, k).
        rule: How the distribution was formed.

    Examples:
        >>> from linear_operator import to_linear_operator
        >>> from bayeskit.core.posterior import GaussianValues
        >>> values = GaussianValues(torch.zeros(3, 1), to_linear_operator(torch.eye(3)))
        >>> GaussianPredictive(values, torch.tensor([3.0])).std.squeeze(-1)
        tensor([2., 2., 2.])
    """

    values: FunctionValues
    noise: Tensor
    rule: str = "exact"
    discrete: bool = False

    @property
    def mean(self) -> Tensor:
        """The mean of the function, (*b, n, k)."""
        return self.values.mean

    @property
    def aleatoric(self) -> Tensor:
        """The noise variance, (*b, n, k)."""
        return self.noise.to(self.mean).expand(self.mean.shape)

    @property
    def epistemic(self) -> Tensor:
        """The variance of the function, (*b, n, k)."""
        return self.values.variance

    def log_prob(self, y: Any) -> Tensor:
        """Log N(y; m, V + noise), jointly over the outputs, (*b, n)."""
        residual = targets(y, like=self.mean) - self.mean  # (*s, n, k)
        if residual.shape[-1] == 1:
            return -0.5 * (residual**2 / self.total + (2 * torch.pi * self.total).log()).squeeze(-1)
        factor = self._factor
        white = factor.half_solve(residual.unsqueeze(-1).to(factor.tril.dtype)).squeeze(-1)
        constant = residual.shape[-1] * torch.log(torch.tensor(2 * torch.pi, dtype=white.dtype))
        return (-0.5 * ((white**2).sum(-1) + factor.logdet() + constant)).to(residual.dtype)

    def _sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws (s, *b, n, k), independent between inputs and correlated between outputs."""
        z = generators.normal((num_samples, *self.mean.shape), like=self.mean, generator=generator)
        if self.mean.shape[-1] == 1:
            return self.mean + self.std * z
        return self.mean + (self._factor.tril.to(z.dtype) @ z.unsqueeze(-1)).squeeze(-1)

    def cdf(self, y: Any) -> Tensor:
        """Phi((y - m) / std), (*b, n, k)."""
        std = self.std  # first: it computes the mean too
        return torch.special.ndtr((thresholds(y, like=self.mean) - self.mean) / std)

    def quantile(self, q: Any) -> Tensor:
        """`mean + std Phi^-1(q)`, (*b, n, k); `q` of shape (j,) gives (j, *b, n, k)."""
        std = self.std  # first: it computes the mean too
        z = torch.special.ndtri(levels(q, like=std))  # (*j, 1, ..., 1)
        return self.mean + std * z.to(std.dtype)

    @cached_property
    def _factor(self) -> operators.Factor:
        joint = self.values.output_covariance() + torch.diag_embed(self.aleatoric)  # (*b, n, k, k)
        return operators.factorize(joint, name="the covariance of the outputs, noise included")

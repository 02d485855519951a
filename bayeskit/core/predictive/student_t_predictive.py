"""The exact Student-t predictive."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeskit.core import generators
from bayeskit.core.predictive import distribution_cdfs
from bayeskit.core.predictive.arguments import levels, targets, thresholds
from bayeskit.core.predictive.predictive import ContinuousPredictive


@dataclass(frozen=True, eq=False)
class StudentTPredictive(ContinuousPredictive):
    """A Student-t distribution of each output: `loc + scale * t_df`.

    It arises where the noise variance has been integrated out (a Normal-Gamma posterior, say).

    Args:
        loc: (*b, n, k).
        scale: Scale (not standard deviation), broadcasting against `loc`.
        df: Degrees of freedom, broadcasting against `loc`.
        latent_variance: The part of the variance that is due to uncertainty about the function, broadcasting against
            `loc`; None means none.
        rule: How the distribution was formed.

    Examples:
        >>> predictive = StudentTPredictive(torch.zeros(2, 1), torch.tensor(2.0), torch.tensor(4.0))
        >>> predictive.variance.squeeze(-1)
        tensor([8., 8.])
    """

    loc: Tensor
    scale: Tensor
    df: Tensor
    latent_variance: Tensor | None = None
    rule: str = "exact"
    discrete: bool = False

    @property
    def mean(self) -> Tensor:
        """`loc` where df > 1, NaN elsewhere, (*b, n, k)."""
        return self._distribution.mean

    @property
    def total(self) -> Tensor:
        """scale^2 df / (df - 2) where df > 2, infinite below, (*b, n, k)."""
        return self._distribution.variance

    @property
    def aleatoric(self) -> Tensor:
        """`total` without `latent_variance`, (*b, n, k)."""
        return self.total - self.epistemic

    @property
    def epistemic(self) -> Tensor:
        """`latent_variance`, (*b, n, k)."""
        return torch.zeros_like(self.loc) if self.latent_variance is None else self.latent_variance.expand_as(self.loc)

    def log_prob(self, y: Any) -> Tensor:
        """Log density summed over outputs, (*b, n)."""
        return self._distribution.log_prob(targets(y, like=self.loc)).sum(-1)

    def _sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws (s, *b, n, k)."""
        with generators.seeded(generator):
            return self._distribution.sample((num_samples,))

    def cdf(self, y: Any) -> Tensor:
        """Student-t cdf, (*b, n, k)."""
        return distribution_cdfs.cdf(self._distribution, thresholds(y, like=self.loc))

    def quantile(self, q: Any) -> Tensor:
        """Student-t quantiles, (*b, n, k); `q` of shape (j,) gives (j, *b, n, k)."""
        from scipy.special import stdtrit

        z = stdtrit(self._distribution.df.double().cpu().numpy(), levels(q, like=self.loc).cpu().numpy())
        return self.loc + self.scale * torch.as_tensor(z).to(self.loc)

    @property
    def _distribution(self) -> torch.distributions.StudentT:
        df, loc, scale = torch.broadcast_tensors(self.df, self.loc, self.scale)
        return torch.distributions.StudentT(df, loc, scale, validate_args=False)

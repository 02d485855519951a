"""Counts."""

import torch
from torch import Tensor
from torch import distributions as td

from bayeskit.core.likelihood.gaussian import outputs
from bayeskit.core.likelihood.likelihood import SMALLEST_PRECISION, Likelihood


class Poisson(Likelihood):
    """Counts with a log link, y ~ Poisson(exp(f)).

    Examples:
        >>> Poisson().distribution(torch.zeros(2, 1)).mean.squeeze(-1)
        tensor([1., 1.])
    """

    target = "count"

    def distribution(self, f: Tensor) -> td.Distribution:
        """Poisson(exp(f)) of each output; f is kept where exp(f) does not overflow."""
        limit = 80.0 if f.dtype == torch.float32 else 700.0
        rate = f.clamp(-limit, limit).exp()
        return td.Independent(td.Poisson(rate, validate_args=False), 1, validate_args=False)

    def log_prob_terms(self, f: Tensor, y: Tensor) -> Tensor:
        """The closed form y f - exp(f) - log y!, (*b, n, k)."""
        y = outputs(y, f)
        return y * f - f.exp() - (y + 1).lgamma()

    def expected_log_prob_terms(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """The closed form y mean - exp(mean + variance / 2) - log y!, (*b, n, k)."""
        y = outputs(y, mean)
        return y * mean - (mean + variance / 2).exp() - (y + 1).lgamma()

    def site_terms(self, mean: Tensor, variance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha = y - rate and beta = rate with rate = exp(mean + variance / 2), each (n, k)."""
        rate = (mean + variance / 2).exp()
        return outputs(y, mean) - rate, rate.clamp(min=SMALLEST_PRECISION)

    def curvature_terms(self, f: Tensor, y: Tensor) -> Tensor:
        """diag(exp(f)), (n, k, k)."""
        return torch.diag_embed(f.exp())

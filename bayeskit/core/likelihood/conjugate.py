"""Likelihoods conjugate to a Gaussian process."""

from abc import abstractmethod

import torch
from torch import Tensor

from bayeskit.core.likelihood.likelihood import Likelihood
from bayeskit.core.normals import LOG_2PI


class Conjugate(Likelihood):
    """Observations that are Gaussian given f: values v_j with v_j = f_j + N(0, s_j), for every data point and latent.

    A Gaussian process has a closed posterior under such a likelihood. A subclass defines `observations` (and, as any
    likelihood, `distribution`, for predictions of y); expectations and derivatives follow:

        E log N(v; f, s) = log N(v; mean, s) - variance / (2 s),    alpha = (v - mean) / s,    beta = 1 / s.

    Examples:
        >>> from torch import distributions as td
        >>> class Thermometer(Conjugate):  # of a resolution that gets worse above 100 degrees
        ...     def distribution(self, f):
        ...         return td.Independent(td.Normal(f, 0.1), 1)
        ...     def observations(self, y):
        ...         return y, torch.where(y > 100, 0.25, 0.01)
        >>> alpha, beta = Thermometer().site_gradients(torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1))
        >>> alpha.item(), beta.item()
        (100.0, 100.0)
    """

    is_conjugate = True

    @abstractmethod
    def observations(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gaussian observations of the latents, from the targets.

        Args:
            y: (*b, n, t) or (n,) targets.

        Returns:
            Values (*b, n, k), NaN where `y` is, and noise variances of that shape, or (k,) or (1,) where they are the
            same for all data points.
        """

    def log_prob_terms(self, f: Tensor, y: Tensor) -> Tensor:
        """Log N(v; f, s), (*b, n, k)."""
        return self.expected_log_prob_terms(f, torch.zeros_like(f), y)

    def expected_log_prob_terms(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """Log N(v; mean, s) - variance / (2 s), (*b, n, k)."""
        values, noise = self._observations(y, mean)
        return -0.5 * (((values - mean) ** 2 + variance) / noise + noise.log() + LOG_2PI)

    def site_terms(self, mean: Tensor, variance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha = (v - mean) / s and beta = 1 / s, each (n, k)."""
        values, noise = self._observations(y, mean)
        precision = (1 / noise).detach()
        return (values - mean) * precision, precision.expand(mean.shape)

    def curvature_terms(self, f: Tensor, y: Tensor) -> Tensor:
        """diag(1 / s), (n, k, k)."""
        _, noise = self._observations(y, f)
        return torch.diag_embed((1 / noise).detach().expand(f.shape))

    def _observations(self, y: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        values, noise = self.observations(y)
        return values.to(like), noise.to(like)

"""Mixtures of any torch distribution."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from bayeskit.core import generators
from bayeskit.core.predictive import distribution_cdfs
from bayeskit.core.predictive.arguments import targets, thresholds
from bayeskit.core.predictive.predictive import ContinuousPredictive


@dataclass(frozen=True, eq=False)
class MixturePredictive(ContinuousPredictive):
    """The mixture over the leading axis of a batch of distributions, sum_s w_s p_s(y).

    Density and cdf are the mixture's own, never those of a moment match; quantiles are roots of the cdf, accurate to
    1e-14 in probability or to rounding in y. The uncertainty is split by the law of total variance.

    Args:
        components: Batch (s, *b, n) and event (k,), where one s is chosen for all the outputs together; or batch
            (s, *b, n, k) and event (), where it is chosen for each output.
        log_weights: Logarithms of the weights (they sum to one over the leading axis), (s,) or broadcasting against
            (s, *b, n) or (s, *b, n, k) respectively; None for equal weights.
        rule: How the distribution was formed.
        discrete: Whether y is a count.
        noise: The expected variance of y given the function, (*b, n, k), where a component is wider than that because
            the function is uncertain within it; None where a component is the distribution of y given one function.

    Examples:
        >>> predictive = MixturePredictive(torch.distributions.Normal(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1), 0.1))
        >>> predictive.epistemic
        tensor([[1.]])
        >>> predictive.cdf(0.0)
        tensor([[0.5000]])
    """

    components: td.Distribution
    log_weights: Tensor | None = None
    rule: str = "mixture"
    discrete: bool = False
    noise: Tensor | None = None

    @cached_property
    def mean(self) -> Tensor:  # type: ignore[override]
        """The weighted average of the component means, (*b, n, k)."""
        return self._average(self.components.mean)

    @property
    def aleatoric(self) -> Tensor:
        """The expected variance of the noise: the average of the component variances unless given, (*b, n, k)."""
        return self._average(self.components.variance) if self.noise is None else self.noise

    @property
    def epistemic(self) -> Tensor:
        """The variance due to the function: that of the component means unless `noise` is given, (*b, n, k)."""
        between = self._average((self.components.mean - self.mean) ** 2)
        if self.noise is None:
            return between
        return between + (self._average(self.components.variance) - self.noise).clamp(min=0)  # rounding

    def log_prob(self, y: Any) -> Tensor:
        """Log sum_s w_s p_s(y), (*b, n)."""
        y = targets(y, like=self._like)
        parts = self.components.log_prob(y.unsqueeze(self._axis))  # (*j, s, *b, n) or (*j, s, *b, n, k)
        if self.components.event_shape:
            return (parts + self._log_weights).logsumexp(self._axis + 1)
        return (parts + self._log_weights).logsumexp(self._axis).sum(-1)

    def _sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws (s, *b, n, k): a component for each input (and output), then a draw of it."""
        cumulative = self._log_weights.exp().cumsum(0)
        with generators.seeded(generator):
            return torch.stack([self._draw(cumulative) for _ in range(num_samples)])

    def cdf(self, y: Any) -> Tensor:
        """sum_s w_s P_s(Y <= y), (*b, n, k)."""
        y = thresholds(y, like=self._like)
        parts = distribution_cdfs.cdf(
            distribution_cdfs.marginals(self.components), y.unsqueeze(self._axis)
        )  # (*j, s, *b, n, k)
        return (self._output_weights * parts).sum(self._axis)

    @cached_property
    def _like(self) -> Tensor:
        """A tensor of the shape (*b, n, k), type and device of y."""
        try:
            return self.components.mean[0]
        except NotImplementedError:  # transformed distributions have no mean
            with generators.seeded(torch.Generator().manual_seed(0)):
                return self.components.sample()[0]

    @property
    def _axis(self) -> int:
        """The axis of the components in something of shape (*j, s, *b, n, k)."""
        return -self._like.ndim - 1

    @cached_property
    def _log_weights(self) -> Tensor:
        """Log weights against a batch of component log densities, at least (s, 1, ..., 1)."""
        size, batch = self.components.batch_shape[0], len(self.components.batch_shape)
        if self.log_weights is None:
            shape = (size, *(1 for _ in range(batch - 1)))
            return torch.full(shape, -math.log(size), dtype=self._like.dtype, device=self._like.device)
        return self.log_weights.reshape(*self.log_weights.shape, *(1 for _ in range(batch - self.log_weights.ndim)))

    @property
    def _output_weights(self) -> Tensor:
        """Weights against (s, *b, n, k)."""
        weights = self._log_weights.exp()
        return weights.unsqueeze(-1) if self.components.event_shape else weights

    def _average(self, values: Tensor) -> Tensor:
        return (self._output_weights * values).sum(0)

    def _draw(self, cumulative: Tensor) -> Tensor:
        """One draw of y at every input, (*b, n, k)."""
        shape = self.components.batch_shape[1:]
        level = torch.rand(shape, dtype=cumulative.dtype, device=cumulative.device)
        index = (level > cumulative[:-1]).sum(0).expand(shape)  # (*b, n) or (*b, n, k)
        if self.components.event_shape:
            index = index.unsqueeze(-1).expand(self._like.shape)
        return self.components.sample().gather(0, index.unsqueeze(0)).squeeze(0)

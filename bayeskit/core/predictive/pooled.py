"""The mixture of several predictives."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bayeskit.core import generators
from bayeskit.core.predictive.arguments import thresholds
from bayeskit.core.predictive.categorical_predictive import CategoricalPredictive
from bayeskit.core.predictive.predictive import ContinuousPredictive, Predictive


def pool(parts: Sequence[Predictive], weights: Tensor) -> Predictive:
    """The mixture sum_s w_s p_s(y) of predictives of one kind; class probabilities are averaged.

    Args:
        parts: The s predictives, all at the same inputs.
        weights: w, (s,), or (s, n) where every input has its own; they sum to one over s.

    Examples:
        >>> halves = [CategoricalPredictive(torch.tensor([[p, 1 - p]]).log(), torch.zeros(1)) for p in (0.0, 1.0)]
        >>> pool(halves, torch.tensor([0.25, 0.75])).probs
        tensor([[0.7500, 0.2500]])
    """
    rule = f"mixture of {len(parts)}, each {parts[0].rule}"
    if not isinstance(parts[0], CategoricalPredictive):
        return PooledPredictive(tuple(parts), weights, rule=rule, discrete=parts[0].discrete)  # type: ignore[arg-type]
    tables = torch.stack([part.log_probs for part in parts])  # type: ignore[attr-defined]  # (s, *b, n, c)
    entropies = torch.stack([part.expected_entropy for part in parts])  # type: ignore[attr-defined]
    weights = _against(weights.to(tables), entropies)
    log_probs = (tables + weights.log().unsqueeze(-1)).logsumexp(0)
    return CategoricalPredictive(log_probs, (weights * entropies).sum(0), classes=parts[0].classes, rule=rule)


@dataclass(frozen=True, eq=False)
class PooledPredictive(ContinuousPredictive):
    """The mixture of predictives of any kind, sum_s w_s p_s(y), one component for all the outputs of an input.

    Density and cdf are the mixture's own, never those of a moment match; quantiles are roots of the cdf. Disagreement
    between components counts as uncertainty about the function.

    Args:
        components: The s predictives, all at the same inputs.
        weights: w, (s,), or (s, n) where every input has its own; they sum to one over s.
        rule: How the distribution was formed.
        discrete: Whether y is a count.

    Examples:
        >>> from bayeskit.core.predictive import MixturePredictive
        >>> parts = [MixturePredictive(torch.distributions.Normal(torch.full((1, 1, 1), m), 0.1)) for m in (-1.0, 1.0)]
        >>> predictive = PooledPredictive(tuple(parts), torch.tensor([0.5, 0.5]))
        >>> predictive.epistemic, predictive.cdf(0.0)
        (tensor([[1.]]), tensor([[0.5000]]))
    """

    components: tuple[ContinuousPredictive, ...]
    weights: Tensor
    rule: str = "mixture"
    discrete: bool = False

    @cached_property
    def mean(self) -> Tensor:  # type: ignore[override]
        """The weighted average of the means, (*b, n, k)."""
        return self._average([part.mean for part in self.components])

    @property
    def aleatoric(self) -> Tensor:
        """The average of the noise variances, (*b, n, k)."""
        return self._average([part.aleatoric for part in self.components])

    @property
    def epistemic(self) -> Tensor:
        """The average variance due to the function plus the variance of the means, (*b, n, k)."""
        return self._average([part.epistemic + (part.mean - self.mean).square() for part in self.components])

    def log_prob(self, y: Any) -> Tensor:
        """Log sum_s w_s p_s(y), (*b, n)."""
        parts = torch.stack([part.log_prob(y) for part in self.components])  # (s, *j, *b, n)
        return (parts + _against(self.weights.to(parts), parts).log()).logsumexp(0)

    def _sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws (s, *b, n, k): a component for each input, then a draw of it."""
        shape = (num_samples, *self.mean.shape[:-1])
        level = torch.rand(shape, dtype=torch.float64, device=generator.device, generator=generator)
        upper = _against(self.weights.to(level), level.unsqueeze(0)).cumsum(0)  # (s, 1, ..., n or 1)
        index = (level > upper[:-1]).sum(0).to(self.mean.device).unsqueeze(-1)  # (num_samples, *b, n, 1)
        drawn = torch.empty(num_samples, *self.mean.shape, dtype=self.mean.dtype, device=self.mean.device)
        for s, part in enumerate(self.components):
            drawn = torch.where(index == s, part.sample(num_samples, generator=generators.spawn(generator)), drawn)
        return drawn

    def cdf(self, y: Any) -> Tensor:
        """sum_s w_s P_s(Y <= y), (*b, n, k)."""
        y = thresholds(y, like=self.mean)
        return self._average([part.cdf(y) for part in self.components])

    def _average(self, values: list[Tensor]) -> Tensor:
        """The weighted sum of values (*j, *b, n, k)."""
        stacked = torch.stack(values)
        return (_against(self.weights.to(stacked), stacked[..., 0]).unsqueeze(-1) * stacked).sum(0)


def _against(weights: Tensor, values: Tensor) -> Tensor:
    """Weights (s,) or (s, n) with axes to broadcast against values (s, ..., n)."""
    rows = weights.shape[1:]
    return weights.reshape(len(weights), *(1 for _ in values.shape[1 + len(rows) :]), *rows)

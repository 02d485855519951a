"""The same law in other units, or without its output axis."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeskit.core import checks
from bayeskit.core.predictive.predictive import ContinuousPredictive, columns


@dataclass(frozen=True, eq=False)
class AffinePredictive(ContinuousPredictive):
    """The law of `shift + scale * y`; made by `ContinuousPredictive.affine`.

    Args:
        base: Law of y.
        shift: A number, (k,), or (*b, n, k) where every input has its own.
        scale: A positive number or (k,).
        rule: How the law was formed.
        discrete: Whether `base` is a law of counts, whose masses need no change of variables.

    Examples:
        >>> from bayeskit.core.predictive import MixturePredictive
        >>> law = MixturePredictive(torch.distributions.Normal(torch.zeros(1, 2, 1), 1.0))
        >>> celsius = law.affine(20.0, 5.0).squeeze()
        >>> celsius.mean, celsius.std
        (tensor([20., 20.]), tensor([5., 5.]))
    """

    base: ContinuousPredictive
    shift: Tensor
    scale: Tensor
    rule: str = "exact"
    discrete: bool = False

    def log_prob(self, y: Any) -> Tensor:
        """Log density by the change of variables, (*b, n)."""
        value = self.base.log_prob(self._standard(y))
        if self.discrete:
            return value
        return value - self.scale.to(value.device).log().expand(self.base.mean.shape[-1:]).sum()

    def _sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws (s, *b, n, k)."""
        return self._restored(self.base.sample(num_samples, generator=generator))

    @property
    def mean(self) -> Tensor:
        """Expectation, (*b, n, k)."""
        return self._restored(self.base.mean)

    @property
    def total(self) -> Tensor:
        """Variance, (*b, n, k)."""
        return self._squared(self.base.total)

    @property
    def aleatoric(self) -> Tensor:
        """Expected noise variance, (*b, n, k)."""
        return self._squared(self.base.aleatoric)

    @property
    def epistemic(self) -> Tensor:
        """Variance of the conditional mean, (*b, n, k)."""
        return self._squared(self.base.epistemic)

    def cdf(self, y: Any) -> Tensor:
        """P(Y <= y), (*b, n, k)."""
        return self.base.cdf(self._standard(y))

    def quantile(self, q: Any) -> Tensor:
        """Quantiles, (*b, n, k)."""
        return self._restored(self.base.quantile(q))

    def _standard(self, y: Any) -> Tensor:
        y = checks.tensor(y, name="y") if self.shift.ndim < 2 else columns(y, like=self.shift)
        return (y - self.shift.to(y.device)) / self.scale.to(y.device)

    def _restored(self, values: Tensor) -> Tensor:
        return self.shift.to(values.device) + self.scale.to(values.device) * values

    def _squared(self, values: Tensor) -> Tensor:
        return self.scale.to(values.device) ** 2 * values


@dataclass(frozen=True, eq=False)
class SqueezedPredictive(ContinuousPredictive):
    """A law of one output without the output axis; made by `ContinuousPredictive.squeeze`.

    Args:
        base: Law of y with a single output.
        rule: How the law was formed.
        discrete: Whether `base` is a law of counts.
    """

    base: ContinuousPredictive
    rule: str = "exact"
    discrete: bool = False

    def log_prob(self, y: Any) -> Tensor:
        """Log density, (*b, n)."""
        return self.base.log_prob(checks.tensor(y, name="y").unsqueeze(-1))

    def _sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws (s, *b, n)."""
        return self.base.sample(num_samples, generator=generator).squeeze(-1)

    @property
    def mean(self) -> Tensor:
        """Expectation, (*b, n)."""
        return self.base.mean.squeeze(-1)

    @property
    def total(self) -> Tensor:
        """Variance, (*b, n)."""
        return self.base.total.squeeze(-1)

    @property
    def aleatoric(self) -> Tensor:
        """Expected noise variance, (*b, n)."""
        return self.base.aleatoric.squeeze(-1)

    @property
    def epistemic(self) -> Tensor:
        """Variance of the conditional mean, (*b, n)."""
        return self.base.epistemic.squeeze(-1)

    def cdf(self, y: Any) -> Tensor:
        """P(Y <= y), (*b, n); `y` broadcasts against (*b, n)."""
        return self.base.cdf(checks.tensor(y, name="y").unsqueeze(-1)).squeeze(-1)

    def quantile(self, q: Any) -> Tensor:
        """Quantiles, (*b, n); `q` of shape (j,) gives (j, *b, n)."""
        return self.base.quantile(q).squeeze(-1)

    def affine(self, shift: Any, scale: Any) -> ContinuousPredictive:
        """The law of `shift + scale * y`, still without the output axis."""
        return self.base.affine(shift, scale).squeeze()

    def squeeze(self) -> ContinuousPredictive:
        """The law itself: it has no output axis to lose."""
        return self

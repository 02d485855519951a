"""Predictive distributions of the observations.

A `Predictive` is the distribution of y at each input, marginal over inputs. Shapes: n inputs, k outputs, s draws, any
batch axes *b in front; real-valued targets are (*b, n, k), class labels (n,).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeskit.core import checks, generators
from bayeskit.core.predictive import quantiles
from bayeskit.core.predictive.arguments import columns, levels


class Predictive(ABC):
    """The predictive distribution of y at each input.

    Invariant: `total == aleatoric + epistemic`. Everything is computed when asked for; a mean never pays for a
    variance.

    Attributes:
        rule: How the distribution was formed: "exact", "quadrature", "mixture of 32 draws" ...
    """

    rule: str

    @abstractmethod
    def log_prob(self, y: Any) -> Tensor:
        """Log density (or log probability) of the targets, (*b, n), summed over outputs."""

    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Any:
        """Draws of y with `num_samples` as leading axis, independent between inputs.

        Args:
            num_samples: s.
            generator: Source of randomness; None starts one at seed 0 every time, so that the same call returns the
                same draws. The global generator is never used.
        """
        checks.positive(num_samples, name="num_samples", integer=True)
        return self._sample(num_samples, generators.given_or_fixed(generator))

    @abstractmethod
    def _sample(self, num_samples: int, generator: torch.Generator) -> Any:
        """Draws (s, *b, n, k), or (s, n) labels."""

    @property
    def total(self) -> Tensor:
        """Uncertainty of y: variance (*b, n, k), or entropy in nats (n,) for classes."""
        epistemic = self.epistemic  # first: where a variance is computed, the mean comes with it
        return epistemic + self.aleatoric

    @property
    @abstractmethod
    def aleatoric(self) -> Tensor:
        """The part of `total` that remains when the function is known: the expectation of the noise."""

    @property
    @abstractmethod
    def epistemic(self) -> Tensor:
        """The part of `total` due to uncertainty about the function."""


class ContinuousPredictive(Predictive):
    """The predictive distribution of a real-valued (or counted) target at each input.

    Arguments may be pandas objects, NumPy arrays, lists or tensors; results are tensors. Where there is one output,
    targets of shape (n,) are read as (n, 1).

    Invariants: `cdf(quantile(q)) == q`; `variance == total`.

    Attributes:
        discrete: Whether y is a count: `log_prob` is then the log of a mass, `quantile(q)` the smallest count whose
            cdf reaches `q`.
    """

    discrete: bool

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Expectation of y, (*b, n, k)."""

    @abstractmethod
    def cdf(self, y: Any) -> Tensor:
        """P(Y <= y) of each output by itself, (*b, n, k); `y` as in `log_prob`, or broadcast against (*b, n, k)."""

    def quantile(self, q: Any) -> Tensor:
        """Where the cdf of each output reaches `q` in (0, 1); `q` of shape (j,) gives (j, *b, n, k)."""
        mean = self.mean
        invert = quantiles.invert_counts if self.discrete else quantiles.invert
        return invert(self.cdf, levels(q, like=mean), mean, self.std)

    @property
    def variance(self) -> Tensor:
        """Variance of y, noise included, (*b, n, k)."""
        return self.total

    @property
    def std(self) -> Tensor:
        """Standard deviation of y, noise included, (*b, n, k)."""
        return self.total.sqrt()

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """The central interval that holds y with probability `level`, each end (*b, n, k).

        Raises:
            ValueError: `level` is not strictly between 0 and 1.
        """
        checks.fraction(level, name="level")
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def affine(self, shift: Any, scale: Any) -> "ContinuousPredictive":
        """The distribution of `shift + scale * y`, both numbers or (k,); `scale > 0`, and `shift` may be (*b, n, k)."""
        shift, scale = checks.tensor(shift, name="shift"), checks.tensor(scale, name="scale")
        if not bool((scale > 0).all()):
            raise ValueError(f"`scale` must be positive; got {scale.tolist()}")
        return AffinePredictive(self, shift, scale)

    def squeeze(self) -> "ContinuousPredictive":
        """The same distribution of one output without the output axis: every (n, 1) becomes (n,)."""
        return SqueezedPredictive(self)


@dataclass(frozen=True, eq=False)
class TransformedPredictive(ContinuousPredictive):
    """Another distribution in other units or of another shape.

    Args:
        base: The distribution of y.
    """

    base: ContinuousPredictive

    @property
    def rule(self) -> str:  # type: ignore[override]
        """That of the base."""
        return self.base.rule

    @property
    def discrete(self) -> bool:  # type: ignore[override]
        """Whether the base is a distribution of counts."""
        return self.base.discrete

    @abstractmethod
    def _to_base(self, y: Any) -> Tensor:
        """Targets as the base takes them."""

    @abstractmethod
    def _from_base(self, values: Tensor) -> Tensor:
        """Values of y as the base gives them, transformed."""

    @abstractmethod
    def _variance(self, values: Tensor) -> Tensor:
        """A variance as the base gives it, transformed."""

    def _sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws (s, *b, n, k)."""
        return self._from_base(self.base.sample(num_samples, generator=generator))

    @property
    def mean(self) -> Tensor:
        """Expectation of y."""
        return self._from_base(self.base.mean)

    @property
    def total(self) -> Tensor:
        """Variance of y."""
        return self._variance(self.base.total)

    @property
    def aleatoric(self) -> Tensor:
        """Expected noise variance."""
        return self._variance(self.base.aleatoric)

    @property
    def epistemic(self) -> Tensor:
        """Variance of the conditional mean."""
        return self._variance(self.base.epistemic)

    def quantile(self, q: Any) -> Tensor:
        """Quantiles; `q` of shape (j,) gives j of them."""
        return self._from_base(self.base.quantile(q))


@dataclass(frozen=True, eq=False)
class AffinePredictive(TransformedPredictive):
    """The distribution of `shift + scale * y`; made by `ContinuousPredictive.affine`.

    Args:
        base: The distribution of y.
        shift: A number, (k,), or (*b, n, k) where every input has its own.
        scale: A positive number or (k,).

    Examples:
        >>> from bayeskit.core.predictive import MixturePredictive
        >>> predictive = MixturePredictive(torch.distributions.Normal(torch.zeros(1, 2, 1), 1.0))
        >>> celsius = predictive.affine(20.0, 5.0).squeeze()
        >>> celsius.mean, celsius.std
        (tensor([20., 20.]), tensor([5., 5.]))
    """

    shift: Tensor
    scale: Tensor

    def log_prob(self, y: Any) -> Tensor:
        """Log density by the change of variables, (*b, n); masses of counts need none."""
        value = self.base.log_prob(self._to_base(y))
        if self.discrete:
            return value
        return value - self.scale.to(value.device).log().expand(self.base.mean.shape[-1:]).sum()

    def cdf(self, y: Any) -> Tensor:
        """P(Y <= y), (*b, n, k)."""
        return self.base.cdf(self._to_base(y))

    def _to_base(self, y: Any) -> Tensor:
        y = checks.tensor(y, name="y") if self.shift.ndim < 2 else columns(y, like=self.shift)
        return (y - self.shift.to(y.device)) / self.scale.to(y.device)

    def _from_base(self, values: Tensor) -> Tensor:
        return self.shift.to(values.device) + self.scale.to(values.device) * values

    def _variance(self, values: Tensor) -> Tensor:
        return self.scale.to(values.device) ** 2 * values


@dataclass(frozen=True, eq=False)
class SqueezedPredictive(TransformedPredictive):
    """The distribution of one output without the output axis, (*b, n); made by `ContinuousPredictive.squeeze`."""

    def log_prob(self, y: Any) -> Tensor:
        """Log density, (*b, n)."""
        return self.base.log_prob(self._to_base(y))

    def cdf(self, y: Any) -> Tensor:
        """P(Y <= y), (*b, n); `y` broadcasts against (*b, n)."""
        return self.base.cdf(self._to_base(y)).squeeze(-1)

    def affine(self, shift: Any, scale: Any) -> ContinuousPredictive:
        """The distribution of `shift + scale * y`, still without the output axis."""
        return self.base.affine(shift, scale).squeeze()

    def squeeze(self) -> ContinuousPredictive:
        """The distribution itself: it has no output axis to lose."""
        return self

    def _to_base(self, y: Any) -> Tensor:
        return checks.tensor(y, name="y").unsqueeze(-1)

    def _from_base(self, values: Tensor) -> Tensor:
        return values.squeeze(-1)

    _variance = _from_base

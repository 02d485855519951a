"""Laws of the observations: what every predictive can answer.

A `Predictive` is the law of y at each input, one input at a time. Shapes: n inputs, k outputs, s draws, any batch axes
*b in front; targets of real-valued laws are (*b, n, k), labels of categorical laws (n,).
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from bayeskit.core import checks, generators


class Predictive(ABC):
    """The law of y at each input, marginal over inputs.

    Law: `total == aleatoric + epistemic`. Everything is computed when asked for; a mean never pays for a variance.

    Attributes:
        rule: How the law was formed: "exact", "quadrature", "mixture of 32 draws" ...
    """

    rule: str

    @abstractmethod
    def log_prob(self, y: Any) -> Tensor:
        """Log density (or log probability) of the targets, (*b, n), summed over outputs."""

    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Any:
        """Draws of y with `num_samples` as leading axis, independent between inputs.

        Args:
            num_samples: s.
            generator: Source of randomness; None starts one at seed 0 every time, so that the same question has the
                same answer. The global generator is never used.
        """
        checks.positive(num_samples, name="num_samples", integer=True)
        return self._sample(num_samples, generators.given_or_fixed(generator))

    @abstractmethod
    def _sample(self, num_samples: int, generator: torch.Generator) -> Any:
        """Draws (s, *b, n, k), or (s, n) labels."""

    @property
    @abstractmethod
    def total(self) -> Tensor:
        """Uncertainty of y: variance (*b, n, k), or entropy in nats (n,) for classes."""

    @property
    @abstractmethod
    def aleatoric(self) -> Tensor:
        """The part of `total` that stays when the function is known: the expectation of the noise."""

    @property
    @abstractmethod
    def epistemic(self) -> Tensor:
        """The part of `total` due to not knowing the function."""


class ContinuousPredictive(Predictive):
    """The law of a real-valued (or counted) target at each input.

    Arguments may be pandas objects, NumPy arrays, lists or tensors; results are tensors. Where there is one output,
    targets of shape (n,) are read as (n, 1).

    Laws: `cdf(quantile(q)) == q`; `variance == total`.

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

    @abstractmethod
    def quantile(self, q: Any) -> Tensor:
        """Where the cdf of each output reaches `q` in (0, 1); `q` of shape (j,) gives (j, *b, n, k)."""

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
        """The law of `shift + scale * y`, both numbers or (k,); `scale > 0`, and `shift` may be (*b, n, k)."""
        from bayeskit.core.predictive.transformed import AffinePredictive

        shift, scale = checks.tensor(shift, name="shift"), checks.tensor(scale, name="scale")
        if not bool((scale > 0).all()):
            raise ValueError(f"`scale` must be positive; got {scale.tolist()}")
        return AffinePredictive(self, shift, scale, rule=self.rule, discrete=self.discrete)

    def squeeze(self) -> "ContinuousPredictive":
        """The same law of one output without the output axis: every (n, 1) becomes (n,)."""
        from bayeskit.core.predictive.transformed import SqueezedPredictive

        return SqueezedPredictive(self, rule=self.rule, discrete=self.discrete)


def targets(y: Any, *, like: Tensor) -> Tensor:
    """Targets (*s, n, k) with the type and device of `like` (*b, n, k), read from any array; (n,) becomes (n, 1).

    Raises:
        ValueError: The last two axes are not (n, k).
    """
    values = columns(y, like=like)
    n, k = like.shape[-2:]
    if values.shape[-2:] != (n, k):
        raise ValueError(f"`y` must have shape (n, k) = ({n}, {k}) like the predictions; got {tuple(values.shape)}")
    return values


def thresholds(y: Any, *, like: Tensor) -> Tensor:
    """Where a cdf is asked for: read like `targets` or broadcast against `like`, (*s, n, k)."""
    values = columns(y, like=like)
    return values.expand(torch.broadcast_shapes(values.shape, like.shape))


def columns(y: Any, *, like: Tensor) -> Tensor:
    """Numbers with the type and device of `like` (*b, n, k); with one output, (*s, n) becomes (*s, n, 1)."""
    values = checks.tensor(y, name="y", like=like)
    n, k = like.shape[-2:]
    short = k == 1 and values.ndim and values.shape[-1] == n and values.shape[-2:] != (n, 1)
    return values.unsqueeze(-1) if short else values


def levels(q: Any, *, like: Tensor) -> Tensor:
    """Probability levels (*j,) in float64, shaped to broadcast in front of `like`: (*j, 1, ..., 1).

    Raises:
        ValueError: A level is not strictly between 0 and 1.
    """
    q = checks.tensor(q, name="q").to(device=like.device, dtype=torch.float64)
    if not bool(((q > 0) & (q < 1)).all()):
        raise ValueError(f"`q` must lie strictly between 0 and 1; got {q.tolist()}")
    return q.reshape(*q.shape, *(1 for _ in like.shape))

"""Distributions over a network's weights.

A `WeightPosterior` is a distribution over p named weights, all the parameters of a network or some. Its covariance is
a linear operator over the flat vector of them, in the order of `mean`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from linear_operator import LinearOperator
from linear_operator.operators import DiagLinearOperator
from torch import Tensor, nn

from bayeskit.bnn.networks.functional import flatten, size, unflatten
from bayeskit.core import operators
from bayeskit.core.normals import LOG_2PI
from bayeskit.core.types import Params


class WeightPosterior(ABC):
    """A distribution over p named weights.

    Invariant: the moments of `sample`, flattened, converge to `mean` and `covariance`.
    """

    mean: Params

    @property
    @abstractmethod
    def covariance(self) -> LinearOperator:
        """Covariance of the flat weight vector, (p, p)."""

    @abstractmethod
    def sample(self, num_samples: int, *, generator: torch.Generator) -> Params:
        """Draws with leaves (s, *shape)."""

    @property
    def flat_mean(self) -> Tensor:
        """The mean as one vector (p,)."""
        return flatten(self.mean, self.mean)


@dataclass(frozen=True, eq=False)
class GaussianWeights(WeightPosterior):
    """`w ~ N(mean, S)` with an operator as covariance: diagonal, the inverse of a precision, Kronecker blocks ...

    Args:
        mean: Leaves (*shape).
        operator: Covariance S over the flat vector, (p, p).
        scale_known: Whether the scale of S is fixed. For a default prior (`gaussian_prior`) it is not, and an evidence
            may rescale it; the posterior of earlier data is never rescaled.

    >>> weights = GaussianWeights({"w": torch.zeros(2)}, DiagLinearOperator(torch.ones(2)))
    >>> round(float(weights.log_prob({"w": torch.zeros(2)})), 4)
    -1.8379
    """

    mean: Params
    operator: LinearOperator
    scale_known: bool = True

    @property
    def covariance(self) -> LinearOperator:
        """The covariance operator, (p, p)."""
        return self.operator

    def sample(self, num_samples: int, *, generator: torch.Generator) -> Params:
        """The mean plus zero-mean Gaussian draws, leaves (s, *shape)."""
        noise = operators.draw(self.operator, num_samples, generator=generator)  # (s, p)
        mean = self.flat_mean
        return unflatten(mean + noise.to(mean.dtype), self.mean)

    def log_prob(self, params: Params) -> Tensor:
        """Log density `-1/2 [(w - m)' S^-1 (w - m) + log|S| + p log 2 pi]`.

        Args:
            params: Leaves (*c, *shape).

        Returns:
            (*c,).
        """
        return self.log_density(flatten(params, self.mean))

    def log_density(self, flat: Tensor) -> Tensor:
        """`log_prob` of weights laid out as vectors: (*c, p) to (*c,)."""
        difference = flat - self._center
        if self._variances is None:
            quadratic = operators.quadratic(self.operator, difference).to(flat.dtype)
        else:
            quadratic = (difference.square() / self._variances).sum(-1)
        return -0.5 * (quadratic + self._log_normalizer.to(flat.dtype))

    def to(self, device: torch.device) -> "GaussianWeights":
        """The same Gaussian on another device; itself if it is there already."""
        if self.flat_mean.device == device:
            return self
        mean = {name: value.to(device) for name, value in self.mean.items()}
        return GaussianWeights(mean, self.operator.to(device), self.scale_known)

    def sharpened(self, factor: float) -> "GaussianWeights":
        """The same Gaussian with its precision multiplied by `factor`; itself if its scale is known."""
        if self.scale_known:
            return self
        return GaussianWeights(self.mean, self.operator * (1 / factor), scale_known=False)

    @cached_property
    def _center(self) -> Tensor:
        return self.flat_mean

    @cached_property
    def _variances(self) -> Tensor | None:
        return self.operator.diagonal() if isinstance(self.operator, DiagLinearOperator) else None

    @cached_property
    def _log_normalizer(self) -> Tensor:
        return operators.logdet(self.operator) + size(self.mean) * LOG_2PI


def named(weights: WeightPosterior, network: nn.Module) -> WeightPosterior:
    """The distribution with the network's names, if its weights are named by position ("0", "1", ...); itself if not.

    Positions count the parameters that require a gradient, or all of them in a network that is frozen.

    Raises:
        ValueError: Those parameters differ in number or shape.

    >>> weights = GaussianWeights({"0": torch.zeros(1, 2), "1": torch.zeros(1)}, DiagLinearOperator(torch.ones(3)))
    >>> list(named(weights, nn.Linear(2, 1)).mean)
    ['weight', 'bias']
    """
    given = dict(network.named_parameters())
    by_position = list(weights.mean) == [str(i) for i in range(len(weights.mean))]
    if not isinstance(weights, GaussianWeights) or not by_position or weights.mean.keys() <= given.keys():
        return weights
    chosen = {name: value for name, value in given.items() if value.requires_grad} or given
    if [value.shape for value in chosen.values()] != [value.shape for value in weights.mean.values()]:
        raise ValueError(
            "The weights are named by position and do not fit the parameters of the network that require a gradient, "
            f"{list(chosen)}. Give the optimizer `network.named_parameters()`."
        )
    return replace(weights, mean=dict(zip(chosen, weights.mean.values(), strict=True)))


@dataclass(frozen=True, eq=False)
class SampledWeights(WeightPosterior):
    """The uniform distribution over s stored draws, such as the members of an ensemble or the states of a Markov chain.

    Args:
        draws: Leaves (s, *shape).
        buffers: State of the network that belongs to each draw (BatchNorm statistics), leaves (s, *shape).

    >>> SampledWeights({"w": torch.tensor([[0.0], [2.0]])}).mean
    {'w': tensor([1.])}
    """

    draws: Params
    buffers: Params = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Memory of its own for each leaf: views of one long vector would not be reproduced to the bit through a file.
        own = {name: value.clone(memory_format=torch.contiguous_format) for name, value in self.draws.items()}
        object.__setattr__(self, "draws", own)

    @cached_property
    def mean(self) -> Params:  # type: ignore[override]
        """The average draw."""
        return {name: value.mean(0) for name, value in self.draws.items()}

    @property
    def covariance(self) -> LinearOperator:
        """Covariance over the draws (divided by s), of rank at most s - 1."""
        return operators.from_samples(flatten(self.draws, self.mean))

    def sample(self, num_samples: int, *, generator: torch.Generator) -> Params:
        """Stored draws picked uniformly with replacement, leaves (s, *shape)."""
        index = self.choose(num_samples, generator=generator)
        return {name: value[index.to(value.device)] for name, value in self.draws.items()}

    def choose(self, num_samples: int, *, generator: torch.Generator) -> Tensor:
        """Positions of draws picked uniformly with replacement, (s,)."""
        num_draws = len(next(iter(self.draws.values())))
        return torch.randint(num_draws, (num_samples,), generator=generator, device=generator.device)


@dataclass(frozen=True, eq=False)
class PointWeights(WeightPosterior):
    """A point mass at one value of the weights: no epistemic uncertainty.

    Args:
        mean: Leaves (*shape).

    >>> PointWeights({"w": torch.ones(3)}).covariance.shape
    torch.Size([3, 3])
    """

    mean: Params

    @property
    def covariance(self) -> LinearOperator:
        """Zero, (p, p)."""
        return DiagLinearOperator(torch.zeros_like(self.flat_mean))

    def sample(self, num_samples: int, *, generator: torch.Generator) -> Params:
        """The value, s times, leaves (s, *shape)."""
        return {name: value.expand(num_samples, *value.shape) for name, value in self.mean.items()}

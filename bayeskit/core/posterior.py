"""Posteriors: distributions over functions, and joint distributions of function values.

`posterior(x)` is the joint distribution of the function at the inputs `x`, a `FunctionValues`: mean, lazy covariance,
samples.
Shapes: n inputs, k outputs, s draws, any batch axes *b in front. Joint covariances are point-major: row `i * k + j` is
output j at input i.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from linear_operator import LinearOperator
from linear_operator.operators import ConstantMulLinearOperator, RootLinearOperator, SumLinearOperator
from torch import Tensor

from bayeskit.core import generators, operators
from bayeskit.core.types import Inputs

if TYPE_CHECKING:
    from gpytorch.distributions import MultivariateNormal

Functions = Callable[[Any], Tensor]
"""s fixed functions: maps inputs (n, *input_shape) to values (s, n, k), the same in every call."""


class FunctionValues(ABC):
    """The joint distribution of f(x_1), ..., f(x_n): `GaussianValues`, `SampledValues` or a `MixtureValues` of such.

    Invariants: `variance == covariance.diagonal()` reshaped to (n, k); the moments of `sample` converge to `mean` and
    `covariance`.
    """

    mean: Tensor  # (*b, n, k)

    @property
    @abstractmethod
    def covariance(self) -> LinearOperator:
        """Joint covariance across inputs and outputs, (*b, n*k, n*k), point-major and never formed unless asked."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """Marginal variances (*b, n, k), never negative, without the cost of the whole covariance."""

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, (*b, n, k) each: together they share their computation."""
        variance = self.variance  # first: computing the variance also computes the mean, but not the reverse
        return self.mean, variance

    @abstractmethod
    def output_covariance(self) -> Tensor:
        """Covariance among the outputs at each input, (*b, n, k, k)."""

    @abstractmethod
    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Joint draws (s, *b, n, k); without a generator the same ones every time (one started at seed 0)."""

    @abstractmethod
    def affine(self, shift: Tensor, scale: Tensor) -> "FunctionValues":
        """The distribution of `shift + scale * f`, with `shift` and `scale` of shape (k,): a change of units."""


@dataclass(frozen=True, eq=False)
class GaussianValues(FunctionValues):
    """A joint Gaussian with an operator as covariance.

    Args:
        mean: (*b, n, k).
        joint: Covariance operator (*b, n*k, n*k), point-major.

    Examples:
        >>> from linear_operator.operators import DiagLinearOperator
        >>> values = GaussianValues(torch.zeros(2, 1), DiagLinearOperator(torch.tensor([1.0, 4.0])))
        >>> values.variance.tolist(), values.sample(3, generator=torch.Generator()).shape
        ([[1.0], [4.0]], torch.Size([3, 2, 1]))
    """

    mean: Tensor
    joint: LinearOperator

    @property
    def covariance(self) -> LinearOperator:
        """The covariance operator, (*b, n*k, n*k)."""
        return self.joint

    @cached_property
    def variance(self) -> Tensor:  # type: ignore[override]
        """Marginal variances (*b, n, k)."""
        return self.joint.diagonal(dim1=-1, dim2=-2).reshape(self.mean.shape)

    def output_covariance(self) -> Tensor:
        """Covariance among the outputs at each input, (*b, n, k, k)."""
        return operators.block_diagonal(self.joint, self.mean.shape[-1])

    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """The mean plus zero-mean draws with this covariance, (s, *b, n, k)."""
        noise = operators.draw(self.joint, num_samples, generator=generators.given_or_fixed(generator))  # (s, *b, n*k)
        return self.mean + noise.reshape(num_samples, *self.mean.shape)

    def affine(self, shift: Tensor, scale: Tensor) -> "GaussianValues":
        """Mean `shift + scale m`, covariance `D S D` with D the repeated scales."""
        repeated = scale.repeat(self.mean.shape[-2])
        return GaussianValues(shift + scale * self.mean, operators.Scaled(repeated, self.joint))

    def to_gpytorch(self) -> "MultivariateNormal":
        """The same distribution as a gpytorch `MultivariateNormal`, for k > 1 outputs a `MultitaskMultivariateNormal`.

        The covariance stays an operator. What gpytorch then computes with it follows gpytorch's own settings: beyond
        `max_cholesky_size` rows, 800 unless set, its log densities and samples are approximate.

        Examples:
            >>> from linear_operator.operators import DiagLinearOperator
            >>> GaussianValues(torch.zeros(2, 1), DiagLinearOperator(torch.tensor([1.0, 4.0]))).to_gpytorch().variance
            tensor([1., 4.])
        """
        from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal

        if self.mean.shape[-1] == 1:
            return MultivariateNormal(self.mean.squeeze(-1), self.joint)
        return MultitaskMultivariateNormal(self.mean, self.joint)


@dataclass(frozen=True, eq=False)
class SampledValues(FunctionValues):
    """The uniform distribution over s stored draws of the whole vector of values.

    Args:
        draws: (s, *b, n, k); draw s is one function at all the inputs.

    Examples:
        >>> values = SampledValues(torch.tensor([[[0.0]], [[2.0]]]))
        >>> values.mean.tolist(), values.variance.tolist()
        ([[1.0]], [[1.0]])
    """

    draws: Tensor

    @cached_property
    def mean(self) -> Tensor:  # type: ignore[override]
        """The average draw, (*b, n, k)."""
        return self.draws.mean(0)

    @cached_property
    def variance(self) -> Tensor:  # type: ignore[override]
        """Variance over the draws (divided by s, not s - 1), (*b, n, k)."""
        return self.draws.var(0, correction=0)

    @property
    def covariance(self) -> LinearOperator:
        """Covariance over the draws, (*b, n*k, n*k), of rank at most s - 1."""
        return operators.from_samples(self.draws.flatten(-2))

    def output_covariance(self) -> Tensor:
        """Covariance among the outputs at each input, (*b, n, k, k)."""
        centered = self.draws - self.mean  # (s, *b, n, k)
        return torch.einsum("s...i,s...j->...ij", centered, centered) / len(centered)

    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Whole stored draws picked uniformly with replacement, (s, *b, n, k)."""
        generator = generators.given_or_fixed(generator)
        index = torch.randint(len(self.draws), (num_samples,), generator=generator, device=generator.device)
        return self.draws[index.to(self.draws.device)]

    def affine(self, shift: Tensor, scale: Tensor) -> "SampledValues":
        """Every draw in the new units."""
        return SampledValues(shift + scale * self.draws)


@dataclass(frozen=True, eq=False)
class MixtureValues(FunctionValues):
    """A mixture of joint distributions, sum_s w_s p_s(f), as from several draws of hyperparameters.

    Args:
        components: The s joint distributions, all over the same inputs and outputs.
        weights: w, (s,), summing to one.

    Examples:
        >>> from linear_operator.operators import DiagLinearOperator
        >>> zero = DiagLinearOperator(torch.zeros(1))
        >>> parts = GaussianValues(-torch.ones(1, 1), zero), GaussianValues(torch.ones(1, 1), zero)
        >>> values = MixtureValues(parts, torch.tensor([0.5, 0.5]))
        >>> values.mean, values.variance
        (tensor([[0.]]), tensor([[1.0000]]))
    """

    components: tuple[FunctionValues, ...]
    weights: Tensor

    @cached_property
    def mean(self) -> Tensor:  # type: ignore[override]
        """The weighted average of the means, (*b, n, k)."""
        return self._average([part.mean for part in self.components])

    @cached_property
    def variance(self) -> Tensor:  # type: ignore[override]
        """The average variance plus the variance of the means, (*b, n, k)."""
        within = self._average([part.variance for part in self.components])
        return within + self._centered.square().sum(0)

    @property
    def covariance(self) -> LinearOperator:
        """The average covariance plus the covariance of the means, (*b, n*k, n*k), a lazy sum."""
        weighted = [
            ConstantMulLinearOperator(part.covariance, w.to(part.mean))
            for part, w in zip(self.components, self.weights, strict=True)
        ]
        return SumLinearOperator(*weighted, RootLinearOperator(self._centered.flatten(-2).movedim(0, -1)))

    def output_covariance(self) -> Tensor:
        """Covariance among the outputs at each input, (*b, n, k, k)."""
        within = self._average([part.output_covariance() for part in self.components])
        return within + torch.einsum("s...i,s...j->...ij", self._centered, self._centered)

    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """A component for each draw, then a joint draw of it, (s, *b, n, k)."""
        generator = generators.given_or_fixed(generator)
        return by_component(
            generators.categorical(self.weights, num_samples, generator=generator),
            lambda s, count: self.components[s].sample(count, generator=generator),
        )

    def affine(self, shift: Tensor, scale: Tensor) -> "MixtureValues":
        """Every component in the new units."""
        return MixtureValues(tuple(part.affine(shift, scale) for part in self.components), self.weights)

    @cached_property
    def _centered(self) -> Tensor:
        """sqrt(w_s) (m_s - m), (s, *b, n, k)."""
        means = torch.stack([part.mean for part in self.components])
        return self._weights(means).sqrt() * (means - self.mean)

    def _average(self, values: list[Tensor]) -> Tensor:
        stacked = torch.stack(values)
        return (self._weights(stacked) * stacked).sum(0)

    def _weights(self, like: Tensor) -> Tensor:
        return self.weights.to(like).reshape(-1, *(1 for _ in like.shape[1:]))


def by_component(index: Tensor, draw: Callable[[int, int], Tensor]) -> Tensor:
    """Draws of a mixture whose components are chosen: draw i comes from component `index[i]`.

    Args:
        index: (s,) integers.
        draw: Maps a component and a number c to c draws of it, (c, *shape); asked once a component.

    Returns:
        (s, *shape).

    Examples:
        >>> by_component(torch.tensor([1, 0, 1]), lambda s, count: torch.full((count, 1), float(s))).flatten()
        tensor([1., 0., 1.])
    """
    parts, places = [], []
    for s in index.unique().tolist():
        place = (index == s).nonzero().squeeze(-1)
        parts.append(draw(s, len(place)))
        places.append(place)
    return torch.cat(parts)[torch.cat(places).argsort().to(parts[0].device)]


class Posterior(ABC):
    """A distribution over functions; a prior is a posterior given no data.

    Invariant: for fixed functions `f = p.sample_functions(s, generator=g)`, `f(x)` is distributed as `p(x)`.
    """

    @abstractmethod
    def __call__(self, x: Inputs) -> FunctionValues:
        """Joint distribution of the function values at `x`, inputs of shape (n, *input_shape)."""

    @abstractmethod
    def sample_functions(self, num_samples: int, *, generator: torch.Generator) -> Functions:
        """Draw s fixed functions: `f(x)` is (s, n, k) and agrees between calls and batches, in whatever order asked."""

    def num_outputs_at(self, x: Inputs) -> int:
        """Number of outputs k of the functions, from an evaluation at the first two of the inputs (n, *input_shape)."""
        return self(x[:2]).mean.shape[-1]

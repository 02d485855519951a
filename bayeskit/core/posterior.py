"""The library's first idea: a posterior is a distribution over functions.

`posterior(x)` is the joint law of the function at the inputs `x`, a `FunctionValues`: mean, lazy covariance, samples.
Shapes: n inputs, k outputs, s draws, any batch axes *b in front. Joint covariances are point-major: row `i * k + j` is
output j at input i.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from linear_operator import LinearOperator
from torch import Tensor

from bayeskit.core import operators, random
from bayeskit.core.types import Inputs

if TYPE_CHECKING:
    from gpytorch.distributions import MultivariateNormal

Functions = Callable[[Tensor], Tensor]
"""s fixed functions: maps inputs (n, *input_shape) to values (s, n, k), the same whenever and however often asked."""


class FunctionValues(ABC):
    """The joint law of f(x_1), ..., f(x_n): `GaussianValues` or `SampledValues`.

    Laws: `variance == covariance.diagonal()` reshaped to (n, k); moments of `sample` tend to `mean` and `covariance`.
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

    @abstractmethod
    def output_covariance(self) -> Tensor:
        """Covariance among the outputs at each input, (*b, n, k, k)."""

    @abstractmethod
    def sample(self, num_samples: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Joint draws (s, *b, n, k); without a generator the same ones every time (one started at seed 0)."""

    @abstractmethod
    def affine(self, shift: Tensor, scale: Tensor) -> "FunctionValues":
        """The law of `shift + scale * f`, with `shift` and `scale` of shape (k,): a change of units."""


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
        noise = operators.draw(self.joint, num_samples, generator=random.given_or_fixed(generator))  # (s, *b, n*k)
        return self.mean + noise.reshape(num_samples, *self.mean.shape)

    def affine(self, shift: Tensor, scale: Tensor) -> "GaussianValues":
        """Mean `shift + scale m`, covariance `D S D` with D the repeated scales."""
        repeated = scale.repeat(self.mean.shape[-2])
        return GaussianValues(shift + scale * self.mean, operators.Scaled(repeated, self.joint))

    def to_gpytorch(self) -> "MultivariateNormal":
        """The same law as a gpytorch `MultivariateNormal`, for k > 1 outputs a `MultitaskMultivariateNormal`.

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
    """The uniform law over s stored draws of the whole vector of values.

    Args:
        draws: (s, *b, n, k); row s is one function at all the inputs.

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
        """Variance over the draws (divided by s: the law *is* the s draws), (*b, n, k)."""
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
        generator = random.given_or_fixed(generator)
        index = torch.randint(len(self.draws), (num_samples,), generator=generator, device=generator.device)
        return self.draws[index.to(self.draws.device)]

    def affine(self, shift: Tensor, scale: Tensor) -> "SampledValues":
        """Every draw in the new units."""
        return SampledValues(shift + scale * self.draws)


class Posterior(ABC):
    """A distribution over functions; a prior is a posterior given no data.

    Law: for fixed functions `f = p.sample_functions(s, generator=g)`, the law of `f(x)` is the law of `p(x)`.
    """

    @abstractmethod
    def __call__(self, x: Inputs) -> FunctionValues:
        """Joint law of the function values at `x`, inputs of shape (n, *input_shape)."""

    @abstractmethod
    def sample_functions(self, num_samples: int, *, generator: torch.Generator) -> Functions:
        """Draw s fixed functions: `f(x)` is (s, n, k) and agrees between calls and batches, in whatever order asked."""

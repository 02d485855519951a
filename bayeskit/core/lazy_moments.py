"""Gaussian function values with lazily computed mean and variance: both in one pass, or the mean alone.

Where mean and variance need the same large matrix, such as k(Z, x), one pass for both saves most of the cost of the
mean, and the mean alone does not pay for the variance.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

from linear_operator import LinearOperator
from torch import Tensor

from bayeskit.core import operators
from bayeskit.core.posterior import GaussianValues


class Moments(ABC):
    """How a mean and a variance are computed.

    Invariant: `both()[0] == mean()` to rounding.
    """

    @abstractmethod
    def mean(self) -> Tensor:
        """The mean alone, (*b, n, k)."""

    @abstractmethod
    def both(self) -> tuple[Tensor, Tensor]:
        """Mean and marginal variances, (*b, n, k) each, from one pass."""


class DeferredValues(GaussianValues):
    """A joint Gaussian whose variance is computed along with the mean; each once.

    Args:
        source: How mean and variance are computed.
        joint: Covariance operator (*b, n*k, n*k), point-major, with these variances on its diagonal.

    Examples:
        >>> import torch
        >>> from linear_operator.operators import DiagLinearOperator
        >>> class Standard(Moments):
        ...     def mean(self):
        ...         return torch.zeros(2, 1)
        ...     def both(self):
        ...         return self.mean(), torch.ones(2, 1)
        >>> values = DeferredValues(Standard(), DiagLinearOperator(torch.ones(2)))
        >>> [moment.flatten().tolist() for moment in values.affine(torch.tensor([1.0]), torch.tensor([2.0])).moments]
        [[1.0, 1.0], [4.0, 4.0]]
    """

    source: Moments

    def __init__(self, source: Moments, joint: LinearOperator):
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "joint", joint)

    @cached_property
    def mean(self) -> Tensor:  # type: ignore[override]
        """The mean, (*b, n, k): that of the pass for the variance if there was one."""
        return self._both[0] if "_both" in vars(self) else self.source.mean()

    @cached_property
    def variance(self) -> Tensor:  # type: ignore[override]
        """Marginal variances (*b, n, k)."""
        return self._both[1]

    def affine(self, shift: Tensor, scale: Tensor) -> "DeferredValues":
        """Mean `shift + scale m`, covariance `D S D` with D the repeated scales."""
        inputs = self.joint.shape[-1] // len(scale)
        return DeferredValues(_InUnits(self, shift, scale), operators.Scaled(scale.repeat(inputs), self.joint))

    @cached_property
    def _both(self) -> tuple[Tensor, Tensor]:
        return self.source.both()


@dataclass(frozen=True, eq=False)
class _InUnits(Moments):
    """Those of `shift + scale * f`."""

    values: GaussianValues
    shift: Tensor
    scale: Tensor

    def mean(self) -> Tensor:
        return self.shift + self.scale * self.values.mean

    def both(self) -> tuple[Tensor, Tensor]:
        mean, variance = self.values.moments
        return self.shift + self.scale * mean, self.scale.square() * variance

"""A Gaussian over a few weights of a network, where the others are zero."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bayeskit.bnn.variational_inference.sparse_support import Support
from bayeskit.bnn.weights.weight_posterior import WeightPosterior
from bayeskit.core import generators, operators
from bayeskit.core.types import Params


@dataclass(frozen=True, eq=False)
class SparseWeights(WeightPosterior):
    """Independent Gaussians over the s active weights; the rest of the p are zero and not stored.

    `mean` and `sample` return dense tensors, as every `WeightPosterior` does; `values` and `draw` the active entries.

    Args:
        values: Means of the active weights, tensor after tensor, (s,).
        variances: Their variances, (s,).
        shapes: Shape of each tensor, by name.
        positions: For each sparse tensor its active positions, sorted.

    >>> weights = SparseWeights(torch.ones(2), torch.ones(2), {"w": torch.Size((2, 3))}, {"w": torch.tensor([1, 5])})
    >>> weights.mean
    {'w': tensor([[0., 1., 0.],
            [0., 0., 1.]])}
    """

    values: Tensor
    variances: Tensor
    shapes: dict[str, torch.Size]
    positions: Params
    scale_known: ClassVar[bool] = True  # as a prior it is the posterior of earlier data, used unchanged

    @property
    def support(self) -> Support:
        """Which weights are active."""
        return Support(self.shapes, self.positions)

    @property
    def mean(self) -> Params:  # type: ignore[override]
        """The mean, computed at each call."""
        return self.support.leaves(self.values)

    @property
    def covariance(self) -> operators.MaskedDiagonal:
        """Zero outside the active weights, (p, p), of which the active ones are stored."""
        support = self.support
        index = support.index()
        assert index is not None
        return operators.MaskedDiagonal(self.variances, index.to(self.values.device), size=support.size)

    def draw(self, num_samples: int, *, generator: torch.Generator) -> Tensor:
        """Draws of the active weights, (num_samples, s)."""
        noise = generators.normal((num_samples, len(self.values)), like=self.values, generator=generator)
        return self.values + self.variances.sqrt() * noise

    def sample(self, num_samples: int, *, generator: torch.Generator) -> Params:
        """Draws of all the weights, leaves (num_samples, *shape)."""
        return self.support.leaves(self.draw(num_samples, generator=generator))

    def to(self, device: torch.device) -> "SparseWeights":
        """The same distribution on another device."""
        positions = {name: value.to(device) for name, value in self.positions.items()}
        return SparseWeights(self.values.to(device), self.variances.to(device), self.shapes, positions)

"""Mixtures of Gaussian processes, as from hyperparameters sampled from their posterior."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bayeskit.core import generators
from bayeskit.core.inputs import one_tensor
from bayeskit.core.posterior import Functions, MixtureValues, Posterior, by_component
from bayeskit.core.types import Inputs
from bayeskit.gp.process.gaussian_process import GaussianProcess


@dataclass(frozen=True, eq=False)
class ProcessMixture(Posterior):
    """One of s Gaussian processes, f ~ sum_s w_s GP(m_s, k_s).

    Args:
        components: The s processes, frozen, over the same inputs and outputs.
        weights: w, (s,), summing to one.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> from gpytorch.means import ZeroMean
        >>> parts = tuple(GaussianProcess(ZeroMean(), RBFKernel()) for _ in range(2))
        >>> ProcessMixture(parts, torch.tensor([0.5, 0.5]))(torch.zeros(3, 1)).variance.shape
        torch.Size([3, 1])
    """

    components: tuple[GaussianProcess, ...]
    weights: Tensor

    @property
    def num_outputs(self) -> int:
        """The number of outputs, k."""
        return self.components[0].num_outputs

    def __call__(self, x: Inputs) -> MixtureValues:
        """Joint distribution of the function at inputs (n, d): the mixture over components."""
        x = one_tensor(x).double()
        return MixtureValues(tuple(part(x) for part in self.components), self.weights)

    def sample_functions(self, num_samples: int, *, generator: torch.Generator) -> Functions:
        """Sample a component for each of s functions, then a function from it; see `GaussianProcess`."""
        index = generators.categorical(self.weights, num_samples, generator=generator)
        drawn = {
            s: self.components[s].sample_functions(int((index == s).sum()), generator=generator)
            for s in index.unique().tolist()
        }
        return partial(_of_components, index, drawn)


def _of_components(index: Tensor, functions: dict[int, Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    """Values of the functions of several components, in the order of the samples."""
    return by_component(index, lambda s, count: functions[s](x))

"""A process whose outputs are correlated."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeskit.core.posterior import Functions, GaussianValues, Posterior
from bayeskit.core.types import Inputs
from bayeskit.gp.pairs import paired
from bayeskit.gp.process import GaussianProcess


@dataclass(frozen=True, eq=False)
class CorrelatedProcess(Posterior):
    """Functions with k outputs that are jointly normal across inputs and outputs.

    Args:
        process: A process of one output over rows (x, i) that end in the number i of an output.
        num_outputs: k.

    Examples:
        >>> from gpytorch.kernels import MultitaskKernel, RBFKernel
        >>> from gpytorch.means import MultitaskMean, ZeroMean
        >>> from bayeskit.gp.pairs import PairKernel, PairMean
        >>> kernel, mean = MultitaskKernel(RBFKernel(), num_tasks=2), MultitaskMean(ZeroMean(), 2)
        >>> prior = CorrelatedProcess(GaussianProcess(PairMean(mean), PairKernel(kernel, 2)), 2)
        >>> values = prior(torch.zeros(3, 1))
        >>> values.mean.shape, values.covariance.shape
        (torch.Size([3, 2]), torch.Size([6, 6]))
    """

    process: GaussianProcess
    num_outputs: int

    def __call__(self, x: Inputs) -> GaussianValues:
        """Joint law of the function at inputs (n, d), as GaussianValues over n inputs and k outputs."""
        values = self.process(paired(x[:], self.num_outputs))
        return GaussianValues(values.mean.reshape(-1, self.num_outputs), values.covariance)

    def sample_functions(self, num_samples: int, *, generator: torch.Generator) -> Functions:
        """S fixed functions by Matheron's rule; see `gp.pathwise.draws`.

        Args:
            num_samples: s.
            generator: Source of randomness.

        Returns:
            A function from inputs (n, d) to values (s, n, k).
        """
        return _Paths(self.process.sample_functions(num_samples, generator=generator), self.num_outputs)


class _Paths:
    """Values (s, n, k) of functions over pairs."""

    def __init__(self, functions: Functions, num_outputs: int):
        self.functions, self.num_outputs = functions, num_outputs

    def __call__(self, x: Tensor) -> Tensor:
        values = self.functions(paired(x, self.num_outputs))  # (s, n*k, 1)
        return values.reshape(len(values), len(x), self.num_outputs)

"""Outputs that are linear combinations of independent processes."""

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import cast

import torch
from linear_operator import LinearOperator
from linear_operator.operators import KroneckerProductLinearOperator, RootLinearOperator
from torch import Tensor

from bayeskit.core.operators import KernelOperator
from bayeskit.core.posterior import Functions, GaussianValues, Posterior
from bayeskit.core.types import Inputs
from bayeskit.gp.conditioned import Conditioned
from bayeskit.gp.gram import Evaluated
from bayeskit.gp.process import GaussianProcess


@dataclass(frozen=True, eq=False)
class Coregionalized(Posterior):
    """f = W' g: k outputs from l independent latent processes, cov(f(x), f(x')) = sum_l k_l(x, x') w_l w_l'.

    Args:
        latents: Processes with l outputs together.
        weights: W, (l, k), in float64.

    References:
        Alvarez, Rosasco and Lawrence (2012), "Kernels for Vector-Valued Functions: a Review", section 4.2.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> from gpytorch.means import ZeroMean
        >>> weights = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        >>> values = Coregionalized((GaussianProcess(ZeroMean(), RBFKernel()),), weights)(torch.zeros(1, 1))
        >>> values.covariance.to_dense().tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """

    latents: tuple[GaussianProcess, ...]
    weights: Tensor

    def __call__(self, x: Inputs) -> GaussianValues:
        """Joint law of the function at inputs (n, d), as GaussianValues over n inputs and k outputs."""
        x = x[:].double()
        processes = [latent.frozen() for latent in self.latents]
        parts = self.weights.split([process.num_outputs for process in processes])
        means = torch.cat([process.mean_rows(x) for process in processes])  # (l, n)
        terms = [_term(process, x, rows) for process, rows in zip(processes, parts, strict=True)]
        return GaussianValues(means.mT @ self.weights, reduce(add, terms))

    def sample_functions(self, num_samples: int, *, generator: torch.Generator) -> Functions:
        """S fixed functions, combinations of those of the latent processes.

        Args:
            num_samples: s.
            generator: Source of randomness.

        Returns:
            A function from inputs (n, d) to values (s, n, k).
        """
        drawn = [latent.sample_functions(num_samples, generator=generator) for latent in self.latents]
        return _Paths(drawn, self.weights)


def _term(process: GaussianProcess, x: Tensor, weights: Tensor) -> LinearOperator:
    """sum_l K_l kron w_l w_l' over the outputs of one process, (n*k, n*k)."""
    each = x.expand(process.num_outputs, *x.shape)
    before = process.kernel.base if isinstance(process.kernel, Conditioned) else None
    covariances = KernelOperator(each, each, kernel=Evaluated(process.kernel), before=before)  # (l, n, n)
    joint = KroneckerProductLinearOperator(covariances, RootLinearOperator(weights.unsqueeze(-1)))
    return cast(LinearOperator, joint.sum(-3))


class _Paths:
    """W' g(x), (s, n, k)."""

    def __init__(self, latents: list[Functions], weights: Tensor):
        self.latents, self.weights = latents, weights

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([latent(x) for latent in self.latents], dim=-1) @ self.weights

"""Posterior function samples: prior samples updated by the data (Matheron's rule)."""

import torch
from torch import Tensor

from bayeskit.core import generators, operators
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.process.cg_kernel import IterativelyConditioned
from bayeskit.gp.process.conditioned_kernel import Conditioned
from bayeskit.gp.process.nearest_neighbor_kernel import Nearest
from bayeskit.gp.process.random_features import Draws, weighted
from bayeskit.gp.process.triangular_solves import half_solve, transposed_solve


class Updated:
    """f0(x) + k(x, z) v with v = L^-T (R e - L^-1 (f0(z) + noise)).

    Args:
        prior: f0, samples under the kernel before conditioning.
        kernel: The conditioned kernel.
        shape: Draws and outputs, (s, k).
        generator: Source of randomness.

    References:
        Wilson et al. (2020), "Efficiently Sampling Functions from Gaussian Process Posteriors", equations 11 to 13.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> known = Conditioned(RBFKernel().requires_grad_(False), one, one)
        >>> f = Updated(lambda x: x.mT.unsqueeze(0), known, (1, 1), torch.Generator())
        >>> f(one).tolist()
        [[[0.0]]]
    """

    def __init__(
        self,
        prior: Draws,
        kernel: Conditioned | IterativelyConditioned,
        shape: tuple[int, int],
        generator: torch.Generator,
    ):
        self.prior, self.base, self.z = prior, kernel.base, kernel.z
        self.weights = _update(kernel, prior, shape, generator)

    def __call__(self, x: Tensor) -> Tensor:
        """Values (s, k, n) at inputs (n, d)."""
        return self.prior(x) + weighted(self.base, self.z, x, self.weights)


class Neighbors:
    """w(x)' u + sqrt(r(x) / k(x, x)) f0(x) for u ~ N(0, diag(s)), with w, r, s of `Nearest`.

    Args:
        prior: f0, samples under the kernel before conditioning.
        kernel: The kernel of a process given by nearest inducing values.
        values: u, (s, k, m).
    """

    def __init__(self, prior: Draws, kernel: Nearest, values: Tensor):
        self.prior, self.kernel, self.values = prior, kernel, values

    def __call__(self, x: Tensor) -> Tensor:
        """Values (s, k, n) at inputs (n, d)."""
        parts = []
        for part in operators.pieces(x, self.kernel.variance.numel()):
            weights, share = self.kernel.parts(part)  # (n, m) and (n,), or with an axis of kernels in front
            parts.append((weights @ self.values.unsqueeze(-1)).squeeze(-1) + share * self.prior(part))
        return torch.cat(parts, dim=-1)


def _update(
    kernel: Conditioned | IterativelyConditioned, prior: Draws, shape: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """The weights v of Matheron's rule, (s, k, m), one conditioning after the other."""
    values = prior(kernel.z)  # (s, k, m)
    noise = torch.zeros_like(values)
    if kernel.noise is not None:
        noise = kernel.noise.sqrt() * generators.normal(tuple(values.shape), like=values, generator=generator)
    if isinstance(kernel, IterativelyConditioned):
        return -kernel.solve((values + noise).flatten(0, -2).mT).mT.reshape(values.shape)
    target = torch.zeros_like(values)
    if kernel.root is not None:
        draw = generators.normal((*shape, kernel.root.shape[-1]), like=values, generator=generator)
        target = (kernel.root @ draw.unsqueeze(-1)).squeeze(-1)  # R e
    whitened = torch.zeros_like(values)  # R e - L^-1 (f(z) + noise) of the blocks done
    start = 0
    for size in kernel.blocks:
        end = start + size
        moved = values[..., start:end]
        if start:
            cross = gram(kernel.base, kernel.z[:start], kernel.z[start:end])
            weights = transposed_solve(kernel.tril[..., :start, :start], whitened[..., :start])
            moved = moved + torch.einsum("skm,mn->skn" if cross.dim() == 2 else "skm,kmn->skn", weights, cross)
        factor = kernel.tril[..., start:end, start:end]
        whitened[..., start:end] = target[..., start:end] - half_solve(factor, moved + noise[..., start:end])
        start = end
    return transposed_solve(kernel.tril, whitened)

"""Zero-mean random functions of a kernel before any data, as sums of waves or of the kernel at fixed inputs."""

import math
from collections.abc import Callable
from typing import Any

import torch
from gpytorch.kernels import Kernel, MaternKernel
from torch import Tensor

from bayeskit.core import generators
from bayeskit.gp.kernels.evaluate import gram
from bayeskit.gp.process.conditioned_kernel import chunks

NUM_WAVES = 512
"""Frequencies in one draw of a stationary process; each carries a sine and a cosine."""

NUM_ANCHORS = 512
"""Inputs at which a kernel without known frequencies is expanded."""

Draws = Callable[[Tensor], Tensor]
"""s zero-mean functions for each of k outputs: maps (n, d) to (s, k, n)."""


class Waves:
    """sum_j (u_j cos(w_j' x) + v_j sin(w_j' x)) / sqrt(NUM_WAVES) with w_j from the kernel's spectral density.

    Args:
        kernel: An RBF or Matern kernel of batch shape () or (k,).
        shape: Draws and outputs, (s, k).
        like: A tensor on the device to draw for, of the dtype to draw in.
        generator: Source of randomness.

    References:
        Rahimi and Recht (2007), "Random Features for Large-Scale Kernel Machines".

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> like, g = torch.zeros((), dtype=torch.float64), torch.Generator().manual_seed(0)
        >>> Waves(RBFKernel(), (3, 1), like=like, generator=g)(torch.zeros(5, 2, dtype=torch.float64)).shape
        torch.Size([3, 1, 5])
    """

    def __init__(self, kernel: Kernel, shape: tuple[int, int], *, like: Tensor, generator: torch.Generator):
        lengthscale = kernel.lengthscale.detach().to(like)  # (1, d), (1, 1) or (k, 1, d)
        self.dims: Any = kernel.active_dims
        self.kernel, self.shape, self.like = kernel, shape, like
        self.lengthscale = lengthscale
        self.weights = generators.normal((2, *shape, NUM_WAVES), like=like, generator=generator)
        self.seed = generators.seed(generator)
        self.frequencies: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Values (s, k, n) at inputs (n, d)."""
        if self.dims is not None:
            x = x.index_select(-1, self.dims)
        if self.frequencies is None:
            self.frequencies = self._draw(x.shape[-1])
        parts = []
        for part in chunks(x, self.weights[0].numel()):
            phase = torch.einsum("skjd,nd->skjn", self.frequencies, part)
            wave = torch.einsum("skj,skjn->skn", self.weights[0], phase.cos())
            parts.append(wave + torch.einsum("skj,skjn->skn", self.weights[1], phase.sin()))
        return torch.cat(parts, dim=-1) / math.sqrt(NUM_WAVES)

    def _draw(self, d: int) -> Tensor:
        """Normal frequencies for RBF; for Matern-nu, Student-t ones with 2 nu degrees of freedom, (s, k, j, d).

        The number of features is known when the first inputs come; a seed kept until then makes the draw the same
        whatever they are.
        """
        generator = torch.Generator(self.like.device).manual_seed(self.seed)
        frequencies = generators.normal((*self.shape, NUM_WAVES, d), like=self.like, generator=generator)
        if isinstance(self.kernel, MaternKernel):
            freedom = round(2 * self.kernel.nu)
            normals = generators.normal((*self.shape, NUM_WAVES, freedom), like=self.like, generator=generator)
            frequencies = frequencies / normals.square().mean(-1, keepdim=True).sqrt()
        return frequencies / self.lengthscale


class Anchored:
    """k(x, a) k(a, a)^-1/2 e for fixed standard normal inputs a.

    Args:
        kernel: Any kernel of batch shape () or (k,).
        shape: Draws and outputs, (s, k).
        like: A tensor on the device to draw for, of the dtype to draw in.
        seed: What a and e are drawn from, once the number of features is known.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> like = torch.zeros((), dtype=torch.float64)
        >>> Anchored(RBFKernel(), (3, 1), like=like, seed=0)(torch.zeros(5, 2, dtype=torch.float64)).shape
        torch.Size([3, 1, 5])
    """

    def __init__(self, kernel: Kernel, shape: tuple[int, int], *, like: Tensor, seed: int):
        self.kernel, self.shape, self.like, self.seed = kernel, shape, like, seed
        self.weights: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Values (s, k, n) at inputs (n, d)."""
        if self.weights is None:
            self._expand(x.shape[-1])
        return weighted(self.kernel, self.anchors, x, self.weights)  # type: ignore[arg-type]

    def _expand(self, d: int) -> None:
        generator = torch.Generator(self.like.device).manual_seed(self.seed)
        self.anchors = generators.normal((NUM_ANCHORS, d), like=self.like, generator=generator)
        matrix = gram(self.kernel, self.anchors, self.anchors).detach()
        values, vectors = torch.linalg.eigh(matrix)
        keep = values > 1e-10 * values.max()
        root = torch.where(keep, values, torch.inf).rsqrt()  # directions at rounding level carry no function
        noise = generators.normal((*self.shape, NUM_ANCHORS), like=self.like, generator=generator)
        self.weights = torch.einsum(
            "...ij,skj->ski" if matrix.dim() == 2 else "kij,skj->ski", vectors * root.unsqueeze(-2), noise
        )


def weighted(kernel: Kernel, z: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """k(x, z) v for v of shape (s, k, m): (s, k, n).

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> weighted(RBFKernel().requires_grad_(False), one, one, 2 * one.unsqueeze(0)).tolist()
        [[[2.0]]]
    """
    width = max(weights[..., 0].numel(), len(z) * max(1, kernel.batch_shape.numel()))
    parts = []
    for part in chunks(x, width):
        cross = gram(kernel, z, part)  # (m, n) or (k, m, n)
        parts.append(torch.einsum("skm,mn->skn" if cross.dim() == 2 else "skm,kmn->skn", weights, cross))
    return torch.cat(parts, dim=-1)

"""Zero-mean random functions of a kernel before any data, as sums of waves."""

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from gpytorch.kernels import (
    ConstantKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    ProductKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from torch import Tensor

from bayeskit.core import generators, operators
from bayeskit.gp.kernels.evaluate import gram

NUM_WAVES = 512
"""Frequencies in one draw of a stationary process; each carries a sine and a cosine."""

Draws = Callable[[Tensor], Tensor]
"""s zero-mean functions for each of k outputs: maps (n, d) to (s, k, n)."""

Shape = tuple[int, ...]


class NoFeatures(TypeError):
    """A kernel, or a part of it, has no random features here."""


class Waves:
    """sqrt(k(x, x) / NUM_WAVES) sum_j (u_j cos(w_j' x) + v_j sin(w_j' x)), w_j from the kernel's spectral density.

    The frequencies of a product of kernels are sums of independent frequencies of its factors.

    Args:
        kernel: A kernel of `SPECTRA`, or a product of such kernels, scaled or not, of batch shape () or (k,).
        shape: Numbers of samples and outputs, (s, k).
        like: A tensor of the device and dtype of the samples.
        generator: Source of randomness.

    Raises:
        NoFeatures: The kernel has a factor of another type.

    References:
        Rahimi and Recht (2007), "Random Features for Large-Scale Kernel Machines".

    Examples:
        >>> like, g = torch.zeros((), dtype=torch.float64), torch.Generator().manual_seed(0)
        >>> Waves(RBFKernel(), (3, 1), like=like, generator=g)(torch.zeros(5, 2, dtype=torch.float64)).shape
        torch.Size([3, 1, 5])
    """

    def __init__(self, kernel: Kernel, shape: tuple[int, int], *, like: Tensor, generator: torch.Generator):
        self.factors = list(_factors(kernel))
        self.columns = _columns(self.factors)
        self.scale = _variance(kernel).detach().to(like).sqrt()
        self.shape, self.like = shape, like
        self.weights = generators.normal((2, *shape, NUM_WAVES), like=like, generator=generator)
        self.seed = generators.seed(generator)
        self.frequencies: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Values (s, k, n) at inputs (n, d)."""
        if self.columns is not None:
            x = x.index_select(-1, self.columns)
        if self.frequencies is None:
            self.frequencies = self._draw(x.shape[-1])
        parts = []
        for rows in operators.pieces(x, self.weights[0].numel()):
            phase = torch.einsum("skjd,nd->skjn", self.frequencies, rows)
            wave = torch.einsum("skj,skjn->skn", self.weights[0], phase.cos())
            parts.append(wave + torch.einsum("skj,skjn->skn", self.weights[1], phase.sin()))
        return torch.cat(parts, dim=-1) / math.sqrt(NUM_WAVES) * self.scale.unsqueeze(-1)

    def _draw(self, d: int) -> Tensor:
        """Frequencies (s, k, j, d).

        The number of features is known when the first inputs come; a seed kept until then makes the draw the same
        whatever they are.
        """
        generator = torch.Generator(self.like.device).manual_seed(self.seed)
        total = self.like.new_zeros(*self.shape, NUM_WAVES, d)
        for kernel, dims in self.factors:
            place = slice(None) if dims is None else dims
            if dims is not None and self.columns is not None:
                place = torch.searchsorted(self.columns, dims)
            shape = (*self.shape, NUM_WAVES, d if dims is None else len(dims))
            total[..., place] += SPECTRA[type(kernel)](kernel, shape, self.like, generator)
        return total


class LinearDraws:
    """w' x with independent w_j ~ N(0, v_j), v the variances of a linear kernel.

    Args:
        kernel: A linear kernel of batch shape () or (k,).
        shape: Numbers of samples and outputs, (s, k).
        like: A tensor of the device and dtype of the samples.
        generator: Source of randomness.

    Examples:
        >>> like, g = torch.zeros((), dtype=torch.float64), torch.Generator().manual_seed(0)
        >>> LinearDraws(LinearKernel(), (3, 1), like=like, generator=g)(torch.zeros(5, 2, dtype=torch.float64)).shape
        torch.Size([3, 1, 5])
    """

    def __init__(self, kernel: LinearKernel, shape: tuple[int, int], *, like: Tensor, generator: torch.Generator):
        variance = cast(Tensor, kernel.variance)  # (1, 1), (1, d) or with k in front
        self.dims: Any = kernel.active_dims
        self.scale = variance.detach().to(like).sqrt()
        self.shape, self.like, self.seed = shape, like, generators.seed(generator)

    def __call__(self, x: Tensor) -> Tensor:
        """Values (s, k, n) at inputs (n, d)."""
        if self.dims is not None:
            x = x.index_select(-1, self.dims)
        generator = torch.Generator(self.like.device).manual_seed(self.seed)
        weights = generators.normal((*self.shape, x.shape[-1]), like=self.like, generator=generator)
        return (weights * self.scale.squeeze(-2)) @ x.mT


def weighted(kernel: Kernel, z: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """k(x, z) v for v of shape (s, k, m): (s, k, n).

    Examples:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> weighted(RBFKernel().requires_grad_(False), one, one, 2 * one.unsqueeze(0)).tolist()
        [[[2.0]]]
    """
    width = max(weights[..., 0].numel(), len(z) * kernel.batch_shape.numel())
    parts = []
    for rows in operators.pieces(x, width):
        cross = gram(kernel, z, rows)  # (m, n) or (k, m, n)
        parts.append(torch.einsum("skm,mn->skn" if cross.dim() == 2 else "skm,kmn->skn", weights, cross))
    return torch.cat(parts, dim=-1)


def _factors(kernel: Kernel, dims: Tensor | None = None, *, select: bool = True) -> Iterator[tuple[Kernel, Any]]:
    """The stationary factors of a kernel, each with the columns of x that it sees (None for all)."""
    if select and isinstance(kernel.active_dims, Tensor):
        dims = kernel.active_dims if dims is None else dims[kernel.active_dims]
    if type(kernel) is ProductKernel:
        for part in cast(Any, kernel.kernels):
            yield from _factors(part, dims)
    elif type(kernel) is ScaleKernel:  # it selects the columns for its base
        yield from _factors(kernel.base_kernel, dims, select=False)
    elif type(kernel) in SPECTRA:
        yield kernel, dims
    else:
        raise NoFeatures(type(kernel).__name__)


def _columns(factors: list[tuple[Kernel, Any]]) -> Tensor | None:
    """All columns of x that any factor sees, in order; None for all."""
    seen = [dims for _, dims in factors]
    return None if any(dims is None for dims in seen) else torch.cat(seen).unique()


def _variance(kernel: Any) -> Tensor:
    """k(x, x), the same at all x: () or (k,)."""
    if type(kernel) is ProductKernel:
        return math.prod((_variance(part) for part in cast(Any, kernel.kernels)), start=torch.ones(()))
    if type(kernel) is ScaleKernel:
        return kernel.outputscale * _variance(kernel.base_kernel)
    return kernel.constant.squeeze(-1) if type(kernel) is ConstantKernel else torch.ones(())


def _of_rbf(kernel: Kernel, shape: Shape, like: Tensor, generator: torch.Generator) -> Tensor:
    return generators.normal(shape, like=like, generator=generator) / kernel.lengthscale.detach().to(like)


def _of_matern(kernel: MaternKernel, shape: Shape, like: Tensor, generator: torch.Generator) -> Tensor:
    """Student-t frequencies with 2 nu degrees of freedom."""
    frequencies = generators.normal(shape, like=like, generator=generator)
    normals = generators.normal((*shape[:-1], round(2 * kernel.nu)), like=like, generator=generator)
    return frequencies / normals.square().mean(-1, keepdim=True).sqrt() / kernel.lengthscale.detach().to(like)


def _of_rational_quadratic(kernel: RQKernel, shape: Shape, like: Tensor, generator: torch.Generator) -> Tensor:
    """A mixture of RBF kernels: (1 + r^2 / (2 alpha))^-alpha = E exp(-t r^2 / 2) for t ~ Gamma(alpha, alpha)."""
    alpha = cast(Tensor, kernel.alpha).detach().to(like).unsqueeze(-1).expand(*shape[:-1], 1)
    rate = torch._standard_gamma(alpha.contiguous(), generator=generator) / alpha  # pyright: ignore[reportPrivateImportUsage]
    return _of_rbf(kernel, shape, like, generator) * rate.sqrt()


def _of_periodic(kernel: PeriodicKernel, shape: Shape, like: Tensor, generator: torch.Generator) -> Tensor:
    """Multiples of 2 pi / p: exp(-2 sin^2(pi r / p) / l) = E cos(2 pi m r / p), m a difference of two Poisson counts.

    Both have the mean 1 / (2 l), since exp(z cos t) = sum_m I_m(z) cos(m t) and P(m) = exp(-1/l) I_m(1/l).
    """
    rate = (0.5 / kernel.lengthscale.detach().to(like)).expand(shape).contiguous()
    multiple = torch.poisson(rate, generator) - torch.poisson(rate, generator)
    return multiple * (2 * math.pi / cast(Tensor, kernel.period_length).detach().to(like))


def _of_constant(kernel: ConstantKernel, shape: Shape, like: Tensor, generator: torch.Generator) -> Tensor:
    return like.new_zeros(shape)


SPECTRA: dict[type[Kernel], Callable[[Any, Shape, Tensor, torch.Generator], Tensor]] = {
    RBFKernel: _of_rbf,
    MaternKernel: _of_matern,
    RQKernel: _of_rational_quadratic,
    PeriodicKernel: _of_periodic,
    ConstantKernel: _of_constant,
}
"""How to draw frequencies (s, k, j, d) from the spectral density of each kernel."""

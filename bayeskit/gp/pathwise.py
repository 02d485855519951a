"""Draws of whole functions from a Gaussian process: f(x) can be asked anywhere, any time, in any order.

A draw from the process before any data is a random sum of waves; conditioning moves it (Matheron's rule):

    f(x) = f0(x) + k(x, z) L^-T (R e - L^-1 (f0(z) + noise)),      e ~ N(0, I),

with z, L, R of `Conditioned`. The update is exact: f has the posterior's law when f0 has the prior's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, MaternKernel, RBFKernel, ScaleKernel
from torch import Tensor

from bayeskit.core import random
from bayeskit.gp.cg import IterativelyConditioned
from bayeskit.gp.conditioned import Conditioned, chunks
from bayeskit.gp.deep_kernel import DeepKernel
from bayeskit.gp.gram import gram, outer_dims
from bayeskit.gp.neighbors import Nearest
from bayeskit.gp.output_kernel import OutputKernel, apart
from bayeskit.gp.pairs import PairKernel, mixed, multitask_terms

NUM_WAVES = 512
"""Frequencies in one draw of a stationary process; each carries a sine and a cosine."""

NUM_ANCHORS = 512
"""Inputs at which a kernel without known frequencies is expanded."""

Draws = Callable[[Tensor], Tensor]
"""s zero-mean functions for each of k outputs: maps (n, d) to (s, k, n)."""


def draws(kernel: Kernel, num_samples: int, num_outputs: int, *, like: Tensor, generator: torch.Generator) -> Draws:
    """Zero-mean functions whose covariance is a kernel, independent between draws and outputs.

    - RBF and Matern kernels, scaled or added: random Fourier features. Every draw has its own frequencies, so mean and
      covariance over draws are those of the kernel exactly; each draw is a sum of `NUM_WAVES` waves, hence Gaussian
      only nearly (the kurtosis of f(x) exceeds that of a normal by a share of 1 / NUM_WAVES).
    - A conditioned kernel: Matheron's rule on draws of its base, exact.
    - A deep kernel: draws of its base, at the features.
    - gpytorch's multitask kernels over pairs (input, output): draws of the data kernel, mixed by a root of the
      covariance of the outputs.
    - `Nearest`: inducing values, and the rest from a draw of its base, exact.
    - A kernel over inputs and outputs: draws of the latent functions, mixed.
    - Any other kernel: f(x) = k(x, a) k(a, a)^-1/2 e at `NUM_ANCHORS` fixed standard normal inputs a, right where the
      anchors determine the function and too small in variance far from them. It supposes standardized inputs.

    Args:
        kernel: A kernel of batch shape () or (k,).
        num_samples: s.
        num_outputs: k.
        like: A tensor on the device to draw for, of the dtype to draw in.
        generator: Source of randomness.

    Returns:
        A function from inputs (n, d) to values (s, k, n).

    References:
        Rahimi and Recht (2007), "Random Features for Large-Scale Kernel Machines".
        Wilson et al. (2020), "Efficiently Sampling Functions from Gaussian Process Posteriors", equations 11 to 13.

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> f = draws(RBFKernel(), 3, 1, like=torch.zeros(1, dtype=torch.float64), generator=g)
        >>> x = torch.linspace(0, 1, 5, dtype=torch.float64).unsqueeze(-1)
        >>> bool((f(x)[..., 2:] == f(x[2:])).all())
        True
    """
    return _Asked(num_samples, num_outputs, like, generator).of(kernel)


@dataclass(frozen=True)
class _Asked:
    """How many draws, of which kind, and what makes them."""

    num_samples: int
    num_outputs: int
    like: Tensor
    generator: torch.Generator

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_samples, self.num_outputs

    def of(self, kernel: Kernel) -> Draws:
        """By the rule of the kernel's type; a subclass may compute anything, so it has no rule of its parent's."""
        return _RULES.get(type(kernel), _anchored)(kernel, self)


def _conditioned(kernel: Any, asked: _Asked) -> Draws:
    prior = asked.of(kernel.base)
    return _Updated(prior, kernel.base, kernel.z, _update(kernel, prior, asked.shape, asked.generator))


def _nearest(kernel: Nearest, asked: _Asked) -> Draws:
    prior = asked.of(kernel.base)
    noise = random.normal((*asked.shape, len(kernel.z)), like=asked.like, generator=asked.generator)
    return _Neighbors(prior, kernel, kernel.variance.sqrt() * noise)


def _of_outputs(kernel: OutputKernel, asked: _Asked) -> Draws:
    q = kernel.mixing.shape[-1]
    latents = replace(asked, num_samples=asked.num_samples * asked.num_outputs, num_outputs=q).of(kernel.base)
    return _Mixtures(latents, kernel.mixing.detach(), asked.num_outputs)


def _of_pairs(kernel: PairKernel, asked: _Asked) -> Draws:
    latents = replace(asked, num_outputs=kernel.num_outputs)
    return _Sum([mixed(latents.of(data), kernel, term) for data, term in multitask_terms(kernel.base)])


def _of_features(kernel: DeepKernel, asked: _Asked) -> Draws:
    return _OfFeatures(asked.of(kernel.base_kernel), kernel)


def _scaled(kernel: ScaleKernel, asked: _Asked) -> Draws:
    base, dims = asked.of(kernel.base_kernel), outer_dims(kernel)
    base = base if dims is None else _Columns(base, dims)
    return _Scaled(base, kernel.outputscale.detach().to(asked.like).sqrt())


def _added(kernel: AdditiveKernel, asked: _Asked) -> Draws:
    if kernel.active_dims is not None:
        return _anchored(kernel, asked)
    return _Sum([asked.of(part) for part in cast(Any, kernel.kernels)])


def _stationary(kernel: Kernel, asked: _Asked) -> Draws:
    return _Waves(kernel, asked.shape, like=asked.like, generator=asked.generator)


def _anchored(kernel: Kernel, asked: _Asked) -> Draws:
    return _Anchored(kernel, asked.shape, like=asked.like, seed=random.seed(asked.generator))


_RULES: dict[type[Kernel], Callable[[Any, _Asked], Draws]] = {
    Conditioned: _conditioned,
    IterativelyConditioned: _conditioned,
    Nearest: _nearest,
    OutputKernel: _of_outputs,
    PairKernel: _of_pairs,
    DeepKernel: _of_features,
    ScaleKernel: _scaled,
    AdditiveKernel: _added,
    RBFKernel: _stationary,
    MaternKernel: _stationary,
}


class _Waves:
    """sum_j (u_j cos(w_j' x) + v_j sin(w_j' x)) / sqrt(NUM_WAVES) with w_j from the kernel's spectral density."""

    def __init__(self, kernel: Kernel, shape: tuple[int, int], *, like: Tensor, generator: torch.Generator):
        lengthscale = kernel.lengthscale.detach().to(like)  # (1, d), (1, 1) or (k, 1, d)
        self.dims: Any = kernel.active_dims
        self.kernel, self.shape, self.like = kernel, shape, like
        self.lengthscale = lengthscale
        self.weights = random.normal((2, *shape, NUM_WAVES), like=like, generator=generator)
        self.seed = random.seed(generator)
        self.frequencies: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
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
        frequencies = random.normal((*self.shape, NUM_WAVES, d), like=self.like, generator=generator)
        if isinstance(self.kernel, MaternKernel):
            freedom = round(2 * self.kernel.nu)
            normals = random.normal((*self.shape, NUM_WAVES, freedom), like=self.like, generator=generator)
            frequencies = frequencies / normals.square().mean(-1, keepdim=True).sqrt()
        return frequencies / self.lengthscale


class _Anchored:
    """k(x, a) k(a, a)^-1/2 e for fixed inputs a."""

    def __init__(self, kernel: Kernel, shape: tuple[int, int], *, like: Tensor, seed: int):
        self.kernel, self.shape, self.like, self.seed = kernel, shape, like, seed
        self.weights: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.weights is None:
            self._expand(x.shape[-1])
        return _weighted(self.kernel, self.anchors, x, self.weights)  # type: ignore[arg-type]

    def _expand(self, d: int) -> None:
        generator = torch.Generator(self.like.device).manual_seed(self.seed)
        self.anchors = random.normal((NUM_ANCHORS, d), like=self.like, generator=generator)
        matrix = gram(self.kernel, self.anchors, self.anchors).detach()
        values, vectors = torch.linalg.eigh(matrix)
        keep = values > 1e-10 * values.max()
        root = torch.where(keep, values, torch.inf).rsqrt()  # directions at rounding level carry no function
        noise = random.normal((*self.shape, NUM_ANCHORS), like=self.like, generator=generator)
        self.weights = torch.einsum(
            "...ij,skj->ski" if matrix.dim() == 2 else "kij,skj->ski", vectors * root.unsqueeze(-2), noise
        )


class _Scaled:
    """sqrt(s) f."""

    def __init__(self, base: Draws, factor: Tensor):
        self.base, self.factor = base, factor

    def __call__(self, x: Tensor) -> Tensor:
        return self.base(x) * self.factor.to(x).unsqueeze(-1)


class _OfFeatures:
    """f(h(x))."""

    def __init__(self, base: Draws, kernel: DeepKernel):
        self.base, self.kernel = base, kernel

    def __call__(self, x: Tensor) -> Tensor:
        return self.base(self.kernel.features(x))


class _Columns:
    """f of some columns of x."""

    def __init__(self, base: Draws, dims: Tensor):
        self.base, self.dims = base, dims

    def __call__(self, x: Tensor) -> Tensor:
        return self.base(x.index_select(-1, self.dims))


class _Mixtures:
    """W_j g(x) at inputs [x, j]."""

    def __init__(self, latents: Draws, mixing: Tensor, num_outputs: int):
        self.latents, self.mixing, self.num_outputs = latents, mixing, num_outputs

    def __call__(self, x: Tensor) -> Tensor:
        inputs, weights = apart(x, self.mixing)
        return torch.einsum("spn,np->sn", self.latents(inputs), weights).unflatten(0, (-1, self.num_outputs))


class _Sum:
    """f1 + f2 + ..."""

    def __init__(self, parts: list[Draws]):
        self.parts = parts

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack([part(x) for part in self.parts]).sum(0)


class _Updated:
    """f0(x) + k(x, z) v."""

    def __init__(self, prior: Draws, kernel: Kernel, z: Tensor, weights: Tensor):
        self.prior, self.kernel, self.z, self.weights = prior, kernel, z, weights

    def __call__(self, x: Tensor) -> Tensor:
        return self.prior(x) + _weighted(self.kernel, self.z, x, self.weights)


class _Neighbors:
    """w(x)' u + sqrt(r(x) / k(x, x)) f0(x)."""

    def __init__(self, prior: Draws, kernel: Nearest, values: Tensor):
        self.prior, self.kernel, self.values = prior, kernel, values

    def __call__(self, x: Tensor) -> Tensor:
        parts = []
        for part in chunks(x, self.kernel.variance.numel()):
            weights, share = self.kernel.parts(part)  # (n, m) and (n,), or with an axis of kernels in front
            parts.append((weights @ self.values.unsqueeze(-1)).squeeze(-1) + share * self.prior(part))
        return torch.cat(parts, dim=-1)


def _weighted(kernel: Kernel, z: Tensor, x: Tensor, weights: Tensor) -> Tensor:
    """k(x, z) v for v of shape (s, k, m): (s, k, n)."""
    width = max(weights[..., 0].numel(), len(z) * max(1, kernel.batch_shape.numel()))
    parts = []
    for part in chunks(x, width):
        cross = gram(kernel, z, part)  # (m, n) or (k, m, n)
        parts.append(torch.einsum("skm,mn->skn" if cross.dim() == 2 else "skm,kmn->skn", weights, cross))
    return torch.cat(parts, dim=-1)


def _update(
    kernel: Conditioned | IterativelyConditioned, prior: Draws, shape: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """The weights v of Matheron's rule, (s, k, m), one conditioning after the other."""
    values = prior(kernel.z)  # (s, k, m)
    noise = torch.zeros_like(values)
    if kernel.noise is not None:
        noise = kernel.noise.sqrt() * random.normal(tuple(values.shape), like=values, generator=generator)
    if isinstance(kernel, IterativelyConditioned):
        return -kernel.solve((values + noise).flatten(0, -2).mT).mT.reshape(values.shape)
    target = torch.zeros_like(values)
    if kernel.root is not None:
        draw = random.normal((*shape, kernel.root.shape[-1]), like=values, generator=generator)
        target = (kernel.root @ draw.unsqueeze(-1)).squeeze(-1)  # R e
    whitened = torch.zeros_like(values)  # R e - L^-1 (f(z) + noise) of the blocks done
    start = 0
    for size in kernel.blocks:
        end = start + size
        moved = values[..., start:end]
        if start:
            cross = gram(kernel.base, kernel.z[:start], kernel.z[start:end])
            weights = _transposed_solve(kernel.tril[..., :start, :start], whitened[..., :start])
            moved = moved + torch.einsum("skm,mn->skn" if cross.dim() == 2 else "skm,kmn->skn", weights, cross)
        factor = kernel.tril[..., start:end, start:end]
        half = torch.linalg.solve_triangular(factor, (moved + noise[..., start:end]).unsqueeze(-1), upper=False)
        whitened[..., start:end] = target[..., start:end] - half.squeeze(-1)
        start = end
    return _transposed_solve(kernel.tril, whitened)


def _transposed_solve(tril: Tensor, values: Tensor) -> Tensor:
    """L^-T v for v of shape (s, k, m)."""
    return torch.linalg.solve_triangular(tril.mT, values.unsqueeze(-1), upper=True).squeeze(-1)

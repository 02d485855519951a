"""Samples of whole functions from a Gaussian process, which can be evaluated anywhere, at any time, in any order.

A sample of the prior is a random sum of waves where the kernel has random features, and conditioning moves it
(Matheron's rule):

    f(x) = f0(x) + k(x, z) L^-T (R e - L^-1 (f0(z) + noise)),      e ~ N(0, I),

with z, L, R of `Conditioned`. The update is exact: f is distributed as the posterior when f0 is as the prior. Where a
kernel has no random features, values are drawn one after the other, each given those drawn before.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, LinearKernel, ScaleKernel
from torch import Tensor

from bayeskit.core import generators
from bayeskit.gp.kernels.coregionalization import OutputKernel, split_output_index
from bayeskit.gp.kernels.deep import DeepKernel
from bayeskit.gp.kernels.evaluate import outer_dims
from bayeskit.gp.process.cg_kernel import IterativelyConditioned
from bayeskit.gp.process.conditioned_kernel import Conditioned
from bayeskit.gp.process.matheron import Neighbors, Updated
from bayeskit.gp.process.nearest_neighbor_kernel import Nearest
from bayeskit.gp.process.random_features import Draws, LinearDraws, NoFeatures, Waves
from bayeskit.gp.process.remembered_draws import Remembered


def draws(kernel: Kernel, num_samples: int, num_outputs: int, *, like: Tensor, generator: torch.Generator) -> Draws:
    """Sample zero-mean functions whose covariance is a kernel, independent between samples and outputs.

    - RBF, Matern, rational quadratic, periodic and constant kernels and their products: random Fourier features. Every
      draw has its own frequencies, so mean and covariance over draws are those of the kernel exactly; each draw is a
      sum of `NUM_WAVES` waves, hence Gaussian only nearly (the kurtosis of f(x) exceeds that of a normal by a share of
      1 / NUM_WAVES). A linear kernel has its own features, and is exact.
    - Scaled kernels and sums: draws of their parts.
    - A conditioned kernel: Matheron's rule on draws of its base, exact.
    - A deep kernel: draws of its base, at the features.
    - `Nearest`: inducing values, and the rest from a draw of its base, exact.
    - A kernel over inputs and outputs: draws of the latent functions, mixed.
    - Any other kernel, a user's own or one with such a part: `Remembered` draws of the whole kernel, each value given
      all those drawn before; exact for the first 4096 inputs asked, with a stated error beyond.

    Args:
        kernel: A kernel of batch shape () or (k,).
        num_samples: s.
        num_outputs: k.
        like: A tensor of the device and dtype of the samples.
        generator: Source of randomness.

    Returns:
        A function from inputs (n, d) to values (s, k, n), which can be pickled.

    References:
        Rahimi and Recht (2007), "Random Features for Large-Scale Kernel Machines".
        Wilson et al. (2020), "Efficiently Sampling Functions from Gaussian Process Posteriors", equations 11 to 13.

    Examples:
        >>> from gpytorch.kernels import RBFKernel
        >>> g = torch.Generator().manual_seed(0)
        >>> f = draws(RBFKernel(), 3, 1, like=torch.zeros(1, dtype=torch.float64), generator=g)
        >>> x = torch.linspace(0, 1, 5, dtype=torch.float64).unsqueeze(-1)
        >>> bool((f(x)[..., 2:] == f(x[2:])).all())
        True
    """
    asked = _Asked(num_samples, num_outputs, like, generator)
    try:
        return asked.of(kernel)
    except NoFeatures:
        return Remembered(kernel, asked.shape, before=before_data(kernel), like=like, generator=generator)


def before_data(kernel: Kernel) -> Kernel:
    """The kernel before any data were conditioned on; `kernel` itself where none were.

    Examples:
        >>> kernel = LinearKernel()
        >>> before_data(kernel) is kernel
        True
    """
    return kernel.base if isinstance(kernel, Conditioned | IterativelyConditioned | Nearest) else kernel


@dataclass(frozen=True)
class _Asked:
    """The settings of a sample of functions."""

    num_samples: int
    num_outputs: int
    like: Tensor
    generator: torch.Generator

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_samples, self.num_outputs

    def of(self, kernel: Kernel) -> Draws:
        """By the rule of the kernel's type; a subclass may compute anything, so it has no rule of its parent's.

        Raises:
            NoFeatures: The kernel, or a part of it, has no rule.
        """
        return _RULES.get(type(kernel), _waves)(kernel, self)


def _conditioned(kernel: Any, asked: _Asked) -> Draws:
    return Updated(asked.of(kernel.base), kernel, asked.shape, asked.generator)


def _nearest(kernel: Nearest, asked: _Asked) -> Draws:
    prior = asked.of(kernel.base)
    noise = generators.normal((*asked.shape, len(kernel.z)), like=asked.like, generator=asked.generator)
    return Neighbors(prior, kernel, kernel.variance.sqrt() * noise)


def _of_outputs(kernel: OutputKernel, asked: _Asked) -> Draws:
    q = kernel.mixing.shape[-1]
    latents = replace(asked, num_samples=asked.num_samples * asked.num_outputs, num_outputs=q).of(kernel.base)
    return partial(_mixed, latents, kernel.mixing.detach(), asked.num_outputs)


def _of_features(kernel: DeepKernel, asked: _Asked) -> Draws:
    return partial(_at_features, asked.of(kernel.base_kernel), kernel)


def _scaled(kernel: ScaleKernel, asked: _Asked) -> Draws:
    base, dims = asked.of(kernel.base_kernel), outer_dims(kernel)
    base = base if dims is None else partial(_on_columns, base, dims)
    return partial(_multiplied, base, kernel.outputscale.detach().to(asked.like).sqrt())


def _added(kernel: AdditiveKernel, asked: _Asked) -> Draws:
    total = partial(_summed, [asked.of(part) for part in cast(Any, kernel.kernels)])
    return partial(_on_columns, total, kernel.active_dims) if isinstance(kernel.active_dims, Tensor) else total


def _linear(kernel: LinearKernel, asked: _Asked) -> Draws:
    return LinearDraws(kernel, asked.shape, like=asked.like, generator=asked.generator)


def _waves(kernel: Kernel, asked: _Asked) -> Draws:
    return Waves(kernel, asked.shape, like=asked.like, generator=asked.generator)


_RULES: dict[type[Kernel], Callable[[Any, _Asked], Draws]] = {
    Conditioned: _conditioned,
    IterativelyConditioned: _conditioned,
    Nearest: _nearest,
    OutputKernel: _of_outputs,
    DeepKernel: _of_features,
    ScaleKernel: _scaled,
    AdditiveKernel: _added,
    LinearKernel: _linear,
}


def _mixed(latents: Draws, mixing: Tensor, num_outputs: int, x: Tensor) -> Tensor:
    """W_j g(x) at inputs [x, j]."""
    inputs, weights = split_output_index(x, mixing)
    return torch.einsum("spn,np->sn", latents(inputs), weights).unflatten(0, (-1, num_outputs))


def _at_features(base: Draws, kernel: DeepKernel, x: Tensor) -> Tensor:
    """f(h(x))."""
    return base(kernel.features(x))


def _on_columns(base: Draws, dims: Tensor, x: Tensor) -> Tensor:
    """F of some columns of x."""
    return base(x.index_select(-1, dims))


def _multiplied(base: Draws, factor: Tensor, x: Tensor) -> Tensor:
    """sqrt(s) f(x)."""
    return base(x) * factor.to(x).unsqueeze(-1)


def _summed(parts: list[Draws], x: Tensor) -> Tensor:
    """f1(x) + f2(x) + ..."""
    return torch.stack([part(x) for part in parts]).sum(0)

"""Zero-mean random functions of any kernel: each value is drawn given all the values that were drawn before.

With Z the inputs asked so far, L the Cholesky factor of k(Z, Z) and f(Z) = L e, the values at further inputs X are

    f(X) = A' e + M e',    A = L^-1 k(Z, X),    M M' = k(X, X) - A' A,    e' ~ N(0, I),

and X joins Z. The joint distribution of all values asked is that of the kernel.
"""

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from bayeskit.core import generators, operators
from bayeskit.core.operators.chunking import fits
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal
from bayeskit.gp.process.conditioned_kernel import places

BLOCK = 1024
"""Inputs whose values are drawn jointly, 8 MiB of covariances."""

JITTER = 1e-12
"""Share of the variance that is added to it, so that the factor exists for inputs close to each other."""

RESIDUAL = "sampled functions: largest neglected correlation"
"""The key under which diagnostics state the error of the approximation beyond the memory."""


class Remembered:
    """Draws that keep what was asked, exact while the factor L of the inputs fits into `CHUNK_ELEMENTS` numbers.

    That is for 4096 inputs of a kernel without batch. Values at further inputs are drawn given those, in blocks of
    `BLOCK`: their variances stay exact, and they agree between calls. Correlations between two blocks that the memory
    does not explain are neglected; they are at most the largest share of variance that it leaves unexplained, which is
    noted as `RESIDUAL`.

    Args:
        kernel: Any kernel of batch shape () or (k,).
        shape: Numbers of samples and outputs, (s, k).
        before: The kernel before data, where `kernel` is one after data: rounding is in proportion to its variances.
        like: A tensor of the device and dtype of the samples.
        generator: Source of randomness.

    Examples:
        >>> from gpytorch.kernels import PolynomialKernel
        >>> like, g = torch.zeros((), dtype=torch.float64), torch.Generator().manual_seed(0)
        >>> kernel = PolynomialKernel(2).double().requires_grad_(False)
        >>> f = Remembered(kernel, (3, 1), before=kernel, like=like, generator=g)
        >>> x = torch.ones(5, 2, dtype=torch.float64).cumsum(0)
        >>> bool((f(x)[..., 2:] == f(x[2:])).all())
        True
    """

    def __init__(
        self, kernel: Kernel, shape: tuple[int, int], *, before: Kernel, like: Tensor, generator: torch.Generator
    ):
        self.kernel, self.before, self.shape = kernel, before, shape
        self.seed = generators.seed(generator)
        self.asked: Tensor | None = None  # all inputs so far, (n, d)
        self.values = like.new_zeros(*shape, 0)  # at these, (s, k, n)
        self.memory: Tensor | None = None  # Z, (m, d)
        self.tril = like.new_zeros(1, 0, 0)  # L, (b, m, m) with b = 1 or k
        self.white = like.new_zeros(shape[1], shape[0], 0)  # e, (k, s, m)

    def __call__(self, x: Tensor) -> Tensor:
        """Values (s, k, n) at inputs (n, d). Their gradients in x are those of the mean given all values drawn."""
        place = self._places(x.detach())
        values = self.values[..., place]
        if not x.requires_grad:
            return values
        mean = (self.white @ self._half(x)).transpose(0, 1) * self._scale(x)
        return values + (mean - mean.detach())

    def _places(self, x: Tensor) -> Tensor:
        """Where the inputs are among those asked, (n,); those that are not are drawn first."""
        if self.asked is None:
            self.asked = x[:0]
        place, known = places(self.asked, x)
        if not bool(known.all()):
            with torch.no_grad():
                self._extend(self.asked, torch.unique(x[~known], dim=0))
            place, _ = places(self.asked, x)
        return place

    def _extend(self, asked: Tensor, x: Tensor) -> None:
        """Draw values at new inputs, in random order, so that the memory spreads over all of them."""
        seed = self.seed + self.values.shape[-1]
        generator = torch.Generator(self.values.device).manual_seed(seed)
        x = x[torch.randperm(len(x), generator=generator, device=generator.device)]
        values = [self.values, *(self._draw(part, generator) for part in x.split(BLOCK))]
        self.values = torch.cat(values, dim=-1)
        self.asked = torch.cat([asked, x])

    def _draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Values (s, k, p) at new inputs (p, d), which join the memory while it has room."""
        half = self._half(x)  # (b, m, p)
        residual = self._correlations(x, x) - half.mT @ half
        one = torch.ones_like(residual[..., 0, 0])
        name = "k(x, x) given the values drawn before"
        tril = operators.factorize(residual, name=name, least=JITTER, scale=one).tril
        noise = generators.normal((*self.white.shape[:2], len(x)), like=self.white, generator=generator)
        values = self.white @ half + noise @ tril.mT  # (k, s, p)
        m = self.tril.shape[-1]
        if fits(tril.shape[0] * (m + len(x)) ** 2):
            grown = tril.new_zeros(tril.shape[0], m + len(x), m + len(x))
            grown[:, :m, :m], grown[:, m:, :m], grown[:, m:, m:] = self.tril, half.mT, tril
            self.tril, self.white = grown, torch.cat([self.white, noise], dim=-1)
            self.memory = x if self.memory is None else torch.cat([self.memory, x])
        else:
            operators.note(RESIDUAL, float(residual.diagonal(dim1=-2, dim2=-1).max()))
        return values.transpose(0, 1) * self._scale(x)

    def _half(self, x: Tensor) -> Tensor:
        """L^-1 k(Z, x), (b, m, n), of correlations."""
        if self.memory is None:
            return x.new_zeros(1, 0, len(x))
        return torch.linalg.solve_triangular(self.tril, self._correlations(self.memory, x), upper=False)

    def _correlations(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Covariances (b, n1, n2) in units of the standard deviations before data."""
        covariance = gram(self.kernel, x1, x2)
        scaled = covariance / self._scale(x1).unsqueeze(-1) / self._scale(x2).unsqueeze(-2)
        return scaled if scaled.dim() == 3 else scaled.unsqueeze(0)

    def _scale(self, x: Tensor) -> Tensor:
        """Standard deviations before data, (n,) or (k, n); one where the function is known to be zero."""
        deviation = gram_diagonal(self.before, x).sqrt()
        return torch.where(deviation > 0, deviation, 1.0)

"""A predictive distribution whose cdf is recalibrated by a monotone map."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayeskit.core.predictive import quantiles
from bayeskit.core.predictive.predictive import ContinuousPredictive

_NODES = 32
"""Gauss-Legendre nodes for each piece of the map, in standard Gaussian units."""


@dataclass(frozen=True, eq=False)
class RecalibratedPredictive(ContinuousPredictive):
    """The distribution with cdf R(F(y)), with F the cdf of `base` and R piecewise linear from (0, 0) to (1, 1).

    Its density is f(y) R'(F(y)) and its quantiles are F^-1(R^-1(q)). Mean and variance are integrals of the quantiles;
    the variance is split into aleatoric and epistemic in the proportion of `base`.

    Args:
        base: Continuous distribution of one output, (n, 1).
        stated: Probabilities u_0 = 0 < u_1 < ... < u_m = 1 under `base`, (m + 1,).
        observed: R(u), (m + 1,), from 0 to 1 and increasing.
        rule: How the distribution was formed.

    References:
        Kuleshov, Fenner and Ermon (2018), Accurate uncertainties for deep learning using calibrated regression,
        section 3.

    Examples:
        >>> from bayeskit.core.predictive import MixturePredictive
        >>> base = MixturePredictive(torch.distributions.Normal(torch.zeros(1, 1, 1).double(), 1.0))
        >>> ends = torch.tensor([0.0, 0.5, 1.0]).double()
        >>> predictive = RecalibratedPredictive(base, ends, torch.tensor([0.0, 0.2, 1.0]).double())
        >>> round(float(predictive.cdf([[0.0]])), 6), round(float(predictive.quantile(0.6)), 6)  # Phi^-1(0.75)
        (0.2, 0.67449)
    """

    base: ContinuousPredictive
    stated: Tensor
    observed: Tensor
    rule: str = "exact"
    discrete: bool = False

    def log_prob(self, y: Any) -> Tensor:
        """Log density, (*b, n)."""
        u = self.base.cdf(y)
        piece = (torch.bucketize(u, self._u, right=True) - 1).clamp(0, len(self._u) - 2)
        return self.base.log_prob(y) + self._slope.log()[piece].squeeze(-1).to(u)

    def _sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws (s, *b, n, 1), by inverting the cdf at uniform numbers."""
        mean = self.base.mean
        shape = (num_samples, *mean.shape)
        uniform = torch.rand(shape, dtype=torch.float64, device=generator.device, generator=generator).to(mean.device)
        return quantiles.invert(self.base.cdf, self._inverse(uniform), mean, self.base.std)

    @property
    def mean(self) -> Tensor:
        """Expectation, (*b, n, 1)."""
        return self._moments[0]

    @property
    def total(self) -> Tensor:
        """Variance, (*b, n, 1)."""
        return self._moments[1]

    @property
    def aleatoric(self) -> Tensor:
        """The part of the variance that is noise in `base`, (*b, n, 1)."""
        return self.total * (self.base.aleatoric / self.base.total)

    @property
    def epistemic(self) -> Tensor:
        """The rest of the variance, (*b, n, 1)."""
        return self.total - self.aleatoric

    def cdf(self, y: Any) -> Tensor:
        """R(F(y)), (*b, n, 1)."""
        u = self.base.cdf(y)
        return _interpolate(u.double(), self._u, self._p).to(u)

    def quantile(self, q: Any) -> Tensor:
        """F^-1(R^-1(q)), (*b, n, 1); `q` of shape (j,) gives (j, *b, n, 1)."""
        return self.base.quantile(self._inverse(torch.as_tensor(q, dtype=torch.float64, device=self._u.device)))

    def _inverse(self, q: Tensor) -> Tensor:
        """R^-1(q), kept off 0 and 1 by rounding error alone where `q` is."""
        u = _interpolate(q, self._p, self._u)
        inside = (q > 0) & (q < 1)
        return torch.where(inside, u.clamp(torch.finfo(u.dtype).tiny, 1 - 2**-53), u)

    @property
    def _u(self) -> Tensor:
        return self.stated.to(self.base.mean.device)

    @property
    def _p(self) -> Tensor:
        return self.observed.to(self.base.mean.device)

    @property
    def _slope(self) -> Tensor:
        return self._p.diff() / self._u.diff()

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance: the integral of F^-1(u) R'(u) du in z = Phi^-1(u), piece by piece."""
        z = torch.special.ndtri(self._u)
        first, last = z[1] if len(z) > 2 else z.new_zeros(()), z[-2] if len(z) > 2 else z.new_zeros(())
        # Beyond these ends the Gaussian density has fallen by a factor exp(-28) from where the last piece begins.
        z = torch.cat([-(first**2 + 56).sqrt()[None], z[1:-1], (last**2 + 56).sqrt()[None]])
        nodes, weights = (torch.as_tensor(a).to(z) for a in np.polynomial.legendre.leggauss(_NODES))
        half, center = z.diff() / 2, (z[1:] + z[:-1]) / 2
        at = center[:, None] + half[:, None] * nodes  # (m, nodes)
        mass = self._slope[:, None] * half[:, None] * weights * torch.exp(-(at**2) / 2)
        mass = (mass / mass.sum()).flatten()
        levels = torch.special.log_ndtr(at).exp().flatten().clamp(torch.finfo(z.dtype).tiny, 1 - 2**-53)
        y = self.base.quantile(levels)  # (m * nodes, *b, n, 1)
        mass = mass.to(y).reshape(-1, *(1 for _ in y.shape[1:]))
        mean = (mass * y).sum(0)
        return mean, (mass * (y - mean) ** 2).sum(0)


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Linear interpolation of `(knots, values)` at `x`, in float64."""
    piece = (torch.bucketize(x, knots, right=True) - 1).clamp(0, len(knots) - 2)
    slope = values.diff() / knots.diff()
    return values[piece] + slope[piece] * (x - knots[piece])

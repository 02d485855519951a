"""Noise with heavy tails."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributions as td

from bayeskit.core import checks
from bayeskit.core.likelihood.likelihood import SMALLEST_PRECISION, Likelihood
from bayeskit.core.posterior import FunctionValues
from bayeskit.core.predictive import NoisyStudentTPredictive

NUM_NODES = 96
"""Nodes of the integral over log t: for squares and variances up to 1e8 times c the error is below 1e-8."""


class StudentT(Likelihood):
    """y = f + scale * t_df: a regression that is robust to outliers.

    With c = df scale^2 and f ~ N(m, v), the expected log density needs

        E log(1 + (y - f)^2 / c) = int_0^inf (1 - M(t)) e^-t / t dt,
        M(t) = E exp(-t (y - f)^2 / c) = (1 + 2 t v / c)^-1/2 exp(-t (y - m)^2 / (c + 2 t v)),

    Frullani's integral of the logarithm, whose integrand is smooth in log t however narrow the noise is.

    Args:
        df: Degrees of freedom, above zero, fixed.
        scale: Scale of the noise (its variance is scale^2 df / (df - 2)): a number or one per output (k,).
        learn: Whether the scale is a parameter to learn.

    References:
        Vanhatalo, Jylanki & Vehtari (2009), Gaussian process regression with Student-t likelihood, NeurIPS 22.

    Examples:
        >>> likelihood = StudentT(df=4.0, scale=0.5, learn=False)
        >>> likelihood.distribution(torch.zeros(2, 1)).variance.squeeze(-1)
        tensor([0.5000, 0.5000])
    """

    def __init__(self, df: float = 4.0, scale: Any = 0.3, *, learn: bool = True):
        super().__init__()
        checks.positive(df, name="df")
        scale = checks.tensor(scale, name="scale").detach().double().reshape(-1)
        if not bool((scale > 0).all()):
            raise ValueError(f"`scale` must be positive; got {scale.tolist()}")
        self.df = float(df)
        self.raw_scale = nn.Parameter(scale.log(), requires_grad=learn)

    @property
    def scale(self) -> Tensor:
        """Scale of the noise, (1,) or (k,)."""
        return self.raw_scale.exp()

    def distribution(self, f: Tensor) -> td.Distribution:
        """StudentT(df, f, scale) of each output."""
        base = td.StudentT(torch.full_like(f, self.df), f, self.scale.to(f).expand(f.shape), validate_args=False)
        return td.Independent(base, 1, validate_args=False)

    def expected_log_prob_terms(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """The integral above by the trapezoidal rule in log t."""
        df, scale = self.df, self.scale.to(mean)
        spread, squares = df * scale**2, (y.to(mean).reshape(mean.shape[-2:]) - mean) ** 2
        constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
        return constant - scale.log() - (df + 1) / 2 * _expected_log1p(squares / spread, variance / spread)

    def site_terms(self, mean: Tensor, variance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives of that integral."""
        with torch.enable_grad():
            m, v = (value.detach().double().requires_grad_() for value in (mean, variance))
            total = self.expected_log_prob_terms(m, v, y).sum()
            alpha, slope = torch.autograd.grad(total, (m, v))
        return alpha.to(mean.dtype), (-2 * slope).clamp(min=SMALLEST_PRECISION).to(mean.dtype)

    def curvature_terms(self, f: Tensor, y: Tensor) -> Tensor:
        """The Fisher information (df + 1) / ((df + 3) scale^2), (n, k, k): it is not log-concave in f."""
        information = (self.df + 1) / (self.df + 3) / self.scale.detach().to(f) ** 2
        return torch.diag_embed(information.expand(f.shape))

    def gaussian_predictive(self, values: FunctionValues) -> NoisyStudentTPredictive:
        """A Gaussian plus a Student-t, as a fine scale mixture of Gaussians."""
        return NoisyStudentTPredictive(values, self.scale, self.df)

    def extra_repr(self) -> str:
        """Degrees of freedom and scale, for printing."""
        scale = [round(v, 6) for v in self.scale.detach().tolist()]
        return f"df={self.df}, scale={scale}, learn={self.raw_scale.requires_grad}"


def _expected_log1p(squares: Tensor, variance: Tensor) -> Tensor:
    """E log(1 + x^2) for x with E[x]^2 = `squares` and Var x = `variance`, element by element.

    Below the lowest node the integrand is t E[x^2], which leaves 1e-10 out; above the highest, exp(-40).

    Examples:
        >>> x = torch.zeros(1).double()
        >>> abs(_expected_log1p(x + 4, x).item() - math.log(5)) < 1e-9
        True
    """
    with torch.no_grad():
        low = -23 - (squares + variance).log1p()
        step = (math.log(40) - low) / (NUM_NODES - 1)
        index = torch.arange(NUM_NODES, dtype=squares.dtype, device=squares.device)
        t = (low + step * index.reshape(-1, *(1 for _ in squares.shape))).exp()
    widened = 1 + 2 * t * variance
    log_m = -0.5 * widened.log() - t * squares / widened
    return (-torch.expm1(log_m) * (-t).exp()).sum(0) * step

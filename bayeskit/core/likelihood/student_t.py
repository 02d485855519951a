"""Noise with heavy tails."""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributions as td

from bayeskit.core import checks
from bayeskit.core.likelihood.likelihood import Likelihood
from bayeskit.core.posterior import FunctionValues
from bayeskit.core.predictive import NoisyStudentTPredictive


class StudentT(Likelihood):
    """y = f + scale * t_df: a regression that is robust to outliers.

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

    def curvature_terms(self, f: Tensor, y: Tensor) -> Tensor:
        """The Fisher information (df + 1) / ((df + 3) scale^2), (n, k, k): it is not log-concave in f."""
        information = (self.df + 1) / (self.df + 3) / self.scale.detach().to(f) ** 2
        return torch.diag_embed(information.expand(f.shape))

    def gaussian_predictive(self, values: FunctionValues) -> NoisyStudentTPredictive:
        """A Gaussian plus a Student-t, as a fine scale mixture of Gaussians."""
        return NoisyStudentTPredictive(values, self.scale, self.df)

    def extra_repr(self) -> str:
        """Degrees of freedom and scale, for printing."""
        return f"df={self.df}, scale={[round(v, 6) for v in self.scale.tolist()]}, learn={self.raw_scale.requires_grad}"

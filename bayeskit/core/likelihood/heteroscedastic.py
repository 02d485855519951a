"""Gaussian noise whose variance is itself a function of the input."""

import torch
from torch import Tensor
from torch import distributions as td

from bayeskit.core.likelihood.gaussian import outputs
from bayeskit.core.likelihood.likelihood import SMALLEST_PRECISION, Likelihood
from bayeskit.core.normals import LOG_2PI
from bayeskit.core.posterior import FunctionValues
from bayeskit.core.predictive import MixturePredictive

_STEP = 0.125
"""Step of the trapezoidal rule over the standardized log variance; its error is about exp(-pi^2 / (step std[g]))."""


class Heteroscedastic(Likelihood):
    """Gaussian noise with a latent log variance, y ~ N(f, exp(g)).

    The 2 t latents of t outputs are f_1 .. f_t followed by g_1 .. g_t.

    Examples:
        >>> Heteroscedastic().distribution(torch.tensor([[1.0, 0.0]])).variance
        tensor([[1.]])
    """

    def num_latents(self, y: Tensor) -> int:
        """A mean and a log variance for each output."""
        return 2 * (y.shape[-1] if y.ndim > 1 else 1)

    def latent_units(self, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Means change with the target; log variances g become g + 2 log scale."""
        return torch.cat([shift, 2 * scale.log()]), torch.cat([scale, torch.ones_like(scale)])

    def distribution(self, f: Tensor) -> td.Distribution:
        """N(f, exp(g)) of each output."""
        location, log_variance = f.chunk(2, dim=-1)
        return td.Independent(
            td.Normal(location, (log_variance / 2).exp(), validate_args=False), 1, validate_args=False
        )

    def expected_log_prob_terms(self, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
        """-(log 2 pi + E g + ((y - E f)^2 + Var f) exp(-E g + Var g / 2)) / 2, (*b, n, t)."""
        squares, precision, log_variance = self._moments(mean, variance, y)
        return -0.5 * (squares * precision + log_variance + LOG_2PI)

    def site_terms(self, mean: Tensor, variance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of the closed form, each (n, 2 t).

        With r = (y - E f)^2 + Var f and e = exp(-E g + Var g / 2): alpha = ((y - E f) e, (r e - 1) / 2) and
        beta = (e, r e / 2).
        """
        squares, precision, _ = self._moments(mean, variance, y)
        residual = outputs(y, mean) - mean.chunk(2, dim=-1)[0]
        alpha = torch.cat([residual * precision, (squares * precision - 1) / 2], dim=-1)
        beta = torch.cat([precision, squares * precision / 2], dim=-1)
        return alpha, beta.clamp(min=SMALLEST_PRECISION)

    def curvature_terms(self, f: Tensor, y: Tensor) -> Tensor:
        """The Fisher information diag(exp(-g), 1 / 2), (n, 2 t, 2 t): the Hessian is indefinite for small residuals."""
        log_variance = f.chunk(2, dim=-1)[1]
        return torch.diag_embed(torch.cat([(-log_variance).exp(), torch.full_like(log_variance, 0.5)], dim=-1))

    def gaussian_predictive(self, values: FunctionValues) -> MixturePredictive:
        """A fine mixture over the log variance; given that, y is Gaussian exactly.

        With f and g correlated at an input, f given g is Gaussian with mean m_f + c / v_g (g - m_g) and variance
        v_f - c^2 / v_g, so p(y) = integral of N(y; E[f | g], Var[f | g] + exp(g)) N(g; m_g, v_g) dg.
        """
        t = values.mean.shape[-1] // 2
        covariance = values.output_covariance()  # (*b, n, 2t, 2t)
        diagonal = covariance.diagonal(dim1=-2, dim2=-1)
        cross = covariance[..., :t, t:].diagonal(dim1=-2, dim2=-1)  # (*b, n, t)
        v_f, v_g = diagonal[..., :t], diagonal[..., t:]
        m_f, m_g = values.mean.chunk(2, dim=-1)
        z = torch.arange(-8.0, 8.0 + _STEP / 2, _STEP).to(values.mean).reshape(-1, *(1 for _ in m_f.shape))
        slope = torch.where(v_g > 0, cross / v_g.sqrt(), 0.0)  # per standard deviation of g
        noise = (m_g + v_g.sqrt() * z).exp()
        variance = (v_f - slope**2).clamp(min=0) + noise
        components = td.Normal(m_f + slope * z, variance.sqrt(), validate_args=False)
        log_weights = (-0.5 * z**2).log_softmax(0)
        expected = (log_weights.exp() * noise).sum(0)  # what is left of the spread is due to f
        return MixturePredictive(components, log_weights, rule="quadrature", noise=expected)

    def _moments(self, mean: Tensor, variance: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E (y - f)^2, E exp(-g) and E g, each (*b, n, t)."""
        (m_f, m_g), (v_f, v_g) = mean.chunk(2, dim=-1), variance.chunk(2, dim=-1)
        return (outputs(y, mean) - m_f) ** 2 + v_f, (-m_g + v_g / 2).exp(), m_g

"""Expected log likelihoods of correlated outputs f(x) = W g(x), g a vector of q independent latent functions.

With g_ip ~ N(m_ip, v_ip) independent, output j at input i has mean (W m_i)_j and variance sum_p W_jp^2 v_ip. Where
targets are independent given f, one per output, only these marginals matter, and the chain rule gives the derivatives
of E log p(y_i | W g_i) in the moments of g:

    alpha_g = W' alpha_f,        beta_g = (W * W)' beta_f.

Where a target depends on several outputs (softmax, input-dependent noise), their correlations matter, and the
expectation is over g itself, by quasi-Monte Carlo at fixed Sobol points.

References:
    Alvarez, Rosasco and Lawrence (2012), "Kernels for Vector-Valued Functions: a Review", section 4.
"""

import math

import torch
from torch import Tensor

from bayeskit.core.likelihood import Likelihood, expectations
from bayeskit.core.likelihood.likelihood import SMALLEST_PRECISION
from bayeskit.core.predictive import distribution_cdfs

MIXING_SPREAD = 1.0
"""Standard deviation of the normal prior, around zero, on every entry of a learned W."""


def starting_mixing(num_outputs: int, num_latents: int) -> Tensor:
    """Initial W, whose outputs have unit variance and whose columns all differ.

    The first column is constant, a function common to all outputs; the others are cosines of increasing frequency over
    the outputs, contrasts between them. For q = k the outputs are uncorrelated before learning.

    Args:
        num_outputs: k.
        num_latents: q.

    Returns:
        (k, q), rows of unit length, float64.

    Examples:
        >>> starting_mixing(2, 1).tolist()
        [[1.0], [1.0]]
        >>> w = starting_mixing(3, 3)
        >>> (w @ w.mT).round(decimals=6).abs().tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    size = max(num_outputs, num_latents)
    position = torch.arange(num_outputs, dtype=torch.float64).unsqueeze(-1) + 0.5
    waves = torch.cos(math.pi / size * position * torch.arange(num_latents, dtype=torch.float64))
    waves[:, 0] *= math.sqrt(0.5)
    return waves / waves.norm(dim=-1, keepdim=True)


def expected_log_prob(likelihood: Likelihood, mixing: Tensor, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
    """E log p(y_i | W g_i), (n,), for independent g_ip ~ N(mean_ip, variance_ip), each (n, q).

    Examples:
        >>> from bayeskit.core.likelihood import Gaussian
        >>> w, m, v = torch.ones(2, 1), torch.zeros(1, 1), torch.ones(1, 1)
        >>> expected_log_prob(Gaussian(1.0), w, m, v, torch.zeros(1, 2)).round(decimals=2)
        tensor([-2.8400], grad_fn=<RoundBackward1>)
    """
    outputs = mean @ mixing.mT
    if _factorizes(likelihood, outputs):
        return likelihood.expected_log_prob(outputs, variance @ mixing.square().mT, y)
    return _expected_over_latents(likelihood, mixing, mean, variance, y)


def site_gradients(
    likelihood: Likelihood, mixing: Tensor, mean: Tensor, variance: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Derivatives of `expected_log_prob` in the means of g, and -2 times those in its variances, each (n, q)."""
    mixing = mixing.detach()
    outputs = mean @ mixing.mT
    if _factorizes(likelihood, outputs):
        alpha, beta = likelihood.site_gradients(outputs, variance @ mixing.square().mT, y)
        return alpha @ mixing, beta @ mixing.square()
    return _sites_over_latents(likelihood, mixing, mean, variance, y)


def couplings(likelihood: Likelihood, mixing: Tensor, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
    """Expected negative second derivatives of log p(y_i | W g) among the q latent functions, (n, q, q).

    The diagonal is beta_g. Where targets are independent given f the matrix is W' diag(beta_f) W; elsewhere it has the
    correlations of W' C W, C the curvature at the mean of f.
    """
    mixing = mixing.detach()
    outputs = mean @ mixing.mT
    if _factorizes(likelihood, outputs):
        _, beta = likelihood.site_gradients(outputs, variance @ mixing.square().mT, y)
        return (mixing.mT * beta.unsqueeze(-2)) @ mixing
    _, beta = _sites_over_latents(likelihood, mixing, mean, variance, y)
    curvature = mixing.mT @ likelihood.curvature(outputs, y) @ mixing
    scale = curvature.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(curvature.dtype).tiny).rsqrt() * beta.sqrt()
    matrix = scale.unsqueeze(-1) * curvature * scale.unsqueeze(-2)
    matrix.diagonal(dim1=-2, dim2=-1).copy_(beta)
    return matrix


def _factorizes(likelihood: Likelihood, f: Tensor) -> bool:
    """Whether targets are independent given f, one per output, so that only the marginals of f matter."""
    with distribution_cdfs.unvalidated():
        return distribution_cdfs.per_output(likelihood.distribution(f), f.shape) is not None


def _points(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draws of g (s, n, q) at fixed Sobol points, the points, and the standard deviations."""
    points, _ = expectations.points(mean, shared=False)  # (s, 1, q)
    std = variance.clamp(min=1e-10).sqrt()
    return mean + std * points, points, std


def _expected_over_latents(likelihood: Likelihood, mixing: Tensor, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
    """E log p(y_i | W g_i) by draws of g, (n,)."""
    draws, _, _ = _points(mean, variance)
    with distribution_cdfs.unvalidated():
        return likelihood.log_prob(draws @ mixing.mT, y).mean(0)


def _sites_over_latents(
    likelihood: Likelihood, mixing: Tensor, mean: Tensor, variance: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """E l'(g) and -E z l'(m + std z) / std (Stein's identity) for l = log p(y | W g), by draws of g, each (n, q)."""
    draws, points, std = _points(mean.detach(), variance.detach())
    with torch.enable_grad(), distribution_cdfs.unvalidated():
        g = draws.requires_grad_()
        (slope,) = torch.autograd.grad(likelihood.log_prob(g @ mixing.mT, y).sum(), g)
    beta = -(slope * points).mean(0) / std
    return slope.mean(0), beta.clamp(min=SMALLEST_PRECISION)

r"""Output scale and noise of a sparse process by leave-one-out, from statistics of one pass over the data.

At fixed lengthscales and inducing points, with B = I + A A' / s0 = U diag(b) U' at the noise s0 of that pass, the
posterior at any other output scale t (a multiple of that of the pass) and noise s is diagonal in the basis U. With
lambda = s0 (b - 1), c = s0 b U' q and a_i = U' L^-1 k(Z, x_i) it gives, at data point i of weight w_i,

    mean_i = sum_j a_ij t c_j / (s + t lambda_j),    h_i = w_i / s sum_j t a_ij^2 s / (s + t lambda_j),

and without point i the error (y_i - mean_i) / (1 - h_i) and the variance

    t (k(x_i, x_i) - |a_i|^2) + h_i s / (w_i (1 - h_i)) + s

of an observation there. So the leave-one-out predictive density is a function of two numbers that costs m per point.
The maximum of the bound is different: its trace term attributes the variance that m points leave unexplained to the
noise, although the predictive variance already contains it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.kernels import ScaleKernel
from torch import Tensor

from bayeskit.core.likelihood import Likelihood
from bayeskit.core.operators import factorize, note
from bayeskit.core.optimize import minimize_lbfgs
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram, gram_diagonal
from bayeskit.gp.model.gaussian_observations import Observations
from bayeskit.gp.model.hyperparameters import Model
from bayeskit.gp.model.training_set import inputs
from bayeskit.gp.variational.collapsed_bound import Collapsed

NOISE_STARTS = (1.0, 10.0, 100.0, 1e3, 1e4)
"""The search starts from the best of these multiples of the present noise, which may be overfitted."""

LARGEST_LEVERAGE = 1 - 1e-9

LEVEL, HALF_WIDTH = 0.95, 1.959964
"""Level of the intervals to be calibrated, and their half-width in standard deviations of a normal distribution."""


def calibrated(model: Model, z: Tensor, rows: Data, result: Collapsed, left_out: Tensor) -> Collapsed:
    """Set output scale and noise by leave-one-out, and update the collapsed result.

    Maximizes the leave-one-out log predictive density of some data points, in proportion to all of them, plus the log
    priors. Errors with heavier tails than a normal distribution can leave its intervals too narrow at that optimum:
    then scale and noise grow by one factor, which changes no mean, until 95 % intervals cover 95 % of these points.

    Leave out data that neither placed z nor determined the lengthscales: the others have too small errors. Where
    outputs have different kernels, noise levels or missing entries, or the noise is not learned, nothing is changed.

    Args:
        model: The model, changed in place; its present values are those of `result`.
        z: Inducing points (m, d).
        rows: All data.
        result: The collapsed bound there.
        left_out: Index of the data points that are left out, one at a time, (r,).

    Returns:
        The bound and the posterior at the new values.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, section 5.4.2, for the criterion.
    """
    raw = model.likelihood.noise_parameter
    shared = result.tril.dim() == 2 and Observations.build(model, rows).shared
    if not shared or raw is None or not raw.requires_grad or model.likelihood.noise_variance is None:
        return result
    spectrum = Spectrum.build(model, z, rows, result, left_out)

    def loss() -> Tensor:
        return -(spectrum.log_density(*spectrum.settings()) + model.log_prior())

    start, trials = raw.detach().clone(), []
    with torch.no_grad():
        for factor in NOISE_STARTS:
            raw.copy_(start + torch.tensor(factor).log())
            trials.append(float(loss()))
        raw.copy_(start + torch.tensor(NOISE_STARTS[trials.index(min(trials))]).log())
    free = [raw, *([spectrum.kernel.raw_outputscale] if isinstance(spectrum.kernel, ScaleKernel) else [])]
    minimize_lbfgs(loss, free, max_iter=50, description="scale and noise")
    with torch.no_grad():
        if spectrum.kernel is not None:
            _widen(spectrum.kernel, model.likelihood, spectrum.widening(*spectrum.settings()))
        note("log density of a row left out", float(spectrum.log_density(*spectrum.settings()) / spectrum.total))
        return spectrum.collapsed(result, *spectrum.settings())


def _widen(kernel: ScaleKernel, likelihood: Likelihood, factor: Tensor) -> None:
    """Multiply output scale and noise by the same factor: variances change by it, means do not."""
    kernel.outputscale = kernel.outputscale * factor
    noise = likelihood.noise_variance
    assert noise is not None
    likelihood.set_noise_variance(noise * factor)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Statistics of the collapsed bound and leave-one-out densities at fixed lengthscales and inducing points.

    Args:
        model: The model; output scale and noise are read from it.
        noise: s0, the noise of the pass.
        outputscale: The output scale of the pass, a scalar; one if the kernel has none.
        eigenvalues: lambda, (m,).
        target: c, (m, k).
        basis: a of the points left out, (r, m).
        squares: Its entries squared.
        unexplained: k(x_i, x_i) - |a_i|^2 of these points, (r,).
        residual: y - m(x) of these points, (k, r).
        weights: Their weights, (r,).
        misfit: sum_i w_i |y_i - m(x_i)|^2 over all data.
        lost: sum_i w_i (k(x_i, x_i) - |a_i|^2) over all data.
        total: sum_i w_i over all data.
        kernel: The kernel whose output scale is learned; None if it has none.
    """

    model: Model
    noise: Tensor
    outputscale: Tensor
    eigenvalues: Tensor
    target: Tensor
    basis: Tensor
    squares: Tensor
    unexplained: Tensor
    residual: Tensor
    weights: Tensor
    misfit: Tensor
    lost: Tensor
    total: Tensor
    kernel: ScaleKernel | None

    @classmethod
    @torch.no_grad()
    def build(cls, model: Model, z: Tensor, rows: Data, result: Collapsed, left_out: Tensor) -> "Spectrum":
        """From the result of a pass over all data, and the kernel between z and the points to be left out."""
        noise = _noise(model).clone()
        values, vectors = torch.linalg.eigh(result.tril_b[0] @ result.tril_b[0].mT)
        eigenvalues = noise * (values - 1).clamp_min(0)  # B is at least the identity, to rounding
        target = noise * values.unsqueeze(-1) * (vectors.mT @ result.whitened.mT)
        residual = model.residual(inputs(rows), rows.y)
        weights = torch.ones_like(residual[0]) if rows.weights is None else rows.weights
        variance = gram_diagonal(model.kernel, inputs(rows))
        cross = gram(model.kernel, z, inputs(rows)[left_out])
        basis = (vectors.mT @ torch.linalg.solve_triangular(result.tril, cross, upper=False)).mT.contiguous()
        kernel = model.kernel
        learned = isinstance(kernel, ScaleKernel) and kernel.raw_outputscale.requires_grad
        scale: Any = kernel.outputscale if learned else torch.ones_like(noise)
        return cls(
            model,
            noise,
            scale.detach().clone(),
            eigenvalues,
            target,
            basis,
            squares := basis.square(),
            (variance[left_out] - squares.sum(-1)).clamp_min(0),  # a criterion of learning: floored at rounding
            residual[:, left_out],
            weights[left_out],
            (weights * residual.square()).sum(),
            (weights * variance).sum() - eigenvalues.sum(),
            weights.sum(),
            kernel if learned else None,  # type: ignore[arg-type]
        )

    def settings(self) -> tuple[Tensor, Tensor]:
        """The model's present output scale over that of the pass, t, and its noise, s; scalars."""
        scale = torch.ones_like(self.noise) if self.kernel is None else self.kernel.outputscale / self.outputscale
        return scale, _noise(self.model)

    def log_density(self, scale: Tensor, noise: Tensor) -> Tensor:
        """Leave-one-out log predictive density, scaled up from these points to all data, summed over outputs."""
        error, variance = self._left_out(scale, noise)
        density = -0.5 * (error.square() / variance + (2 * torch.pi * variance).log())
        return (self.weights * density).sum() * (self.total / self.weights.sum())

    def widening(self, scale: Tensor, noise: Tensor) -> Tensor:
        """The factor on all variances, at least one, at which 95 % intervals cover 95 % of the points left out."""
        error, variance = self._left_out(scale, noise)
        ratios, order = (error.abs() / variance.sqrt()).flatten().sort()
        held = self.weights.expand_as(error).flatten()[order].cumsum(0)
        quantile = ratios[torch.searchsorted(held, LEVEL * held[-1]).clamp_max(len(ratios) - 1)]
        return (quantile / HALF_WIDTH).square().clamp_min(1)

    def _left_out(self, scale: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Leave-one-out errors (k, r), and the variances (r,) of observations there."""
        shrunk = scale / (noise + scale * self.eigenvalues)
        mean = (self.basis @ (self.target * shrunk.unsqueeze(-1))).mT
        leverage = (self.weights * (self.squares @ shrunk)).clamp_max(LARGEST_LEVERAGE)
        variance = scale * self.unexplained + noise + noise * leverage / (self.weights * (1 - leverage))
        return (self.residual - mean) / (1 - leverage), variance

    def collapsed(self, before: Collapsed, scale: Tensor, noise: Tensor) -> Collapsed:
        """Bound and posterior at another output scale and noise."""
        old, root = before.tril_b[0], scale.sqrt()
        eye = torch.eye(len(old), dtype=old.dtype, device=old.device)
        ratio = scale * self.noise / noise
        tril_b = factorize(eye + ratio * (old @ old.mT - eye), name="I + A A' / noise").tril
        rhs = root * self.noise / noise * (old @ (old.mT @ before.whitened.mT))
        half = torch.linalg.solve_triangular(tril_b, rhs, upper=False)
        whitened = torch.linalg.solve_triangular(tril_b.mT, half, upper=True).mT
        k = len(self.residual)
        logdet = 2 * tril_b.diagonal().log().sum()
        terms = k * (self.total * (2 * torch.pi * noise).log() + logdet + scale * self.lost / noise)
        bound = 0.5 * (half.square().sum() - terms - self.misfit / noise)
        return Collapsed(bound, root * before.tril, tril_b.unsqueeze(0), whitened.contiguous())


def _noise(model: Model) -> Tensor:
    """The noise variance of the first output, which all outputs share; a scalar."""
    noise = model.likelihood.noise_variance
    assert noise is not None
    return noise[0]

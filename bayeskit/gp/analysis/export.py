"""A fitted predictive distribution as a module that `torch.export` can trace."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bayeskit.core.likelihood import Bernoulli, Categorical, Gaussian, Heteroscedastic, Likelihood, StudentT
from bayeskit.core.predictive.quadrature import NUM_DRAWS, sobol_normals
from bayeskit.gp.analysis.export_kernels import traced
from bayeskit.gp.kernels.evaluate import mean_rows
from bayeskit.gp.process.conditioned_kernel import Conditioned, ConditionedMean
from bayeskit.gp.process.gaussian_process import GaussianProcess


def predictive_module(estimator: Any) -> nn.Module:
    """A fitted `GPRegressor` or `GPClassifier` as a module of plain tensor operations, from raw inputs to predictions.

    `torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))` makes a program of it that runs
    where bayeskit is not installed. A prediction costs one matrix k(z, x) and one triangular solve.

    Args:
        estimator: Fitted by any inference whose posterior is a conditioned `GaussianProcess`: exact (by Cholesky
            factors), SGPR, SVGP. See `export_kernels.traced` for the kernels.

    Returns:
        A module. A regressor's maps inputs (n, d), in their own units, to means and variances of an observation, each
        (n,), or (n, k) for several outputs; a classifier's to the probabilities (n, c) in the order of `classes_`.

    Raises:
        TypeError: `estimator` is not a fitted one, or its posterior, a kernel or the likelihood is not one that can be
            exported; the message names it.

    Examples:
        >>> from bayeskit import GPRegressor
        >>> model = GPRegressor(random_state=0).fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 0.5])
        >>> mean, variance = predictive_module(model)(torch.tensor([[0.5]]))
        >>> bool(abs(mean - model.predict([[0.5]])[0]) < 1e-9)
        True
    """
    posterior = getattr(estimator, "posterior_", None)
    if posterior is None:
        what = f"a {type(estimator).__name__}" + (" that is not fitted" if hasattr(estimator, "fit") else "")
        raise TypeError(f"`estimator` must be a fitted GPRegressor or GPClassifier; got {what}")
    if not (isinstance(posterior, GaussianProcess) and isinstance(posterior.kernel, Conditioned)):
        kernel = getattr(posterior, "kernel", None)
        what = (
            type(posterior).__name__ if kernel is None else f"{type(posterior).__name__} with {type(kernel).__name__}"
        )
        raise TypeError(
            f"the posterior of `estimator` must be a GaussianProcess with a Conditioned kernel; got {what}. Fit with "
            '`inference=gp.Exact(solver="cholesky")`, `gp.SGPR()` or `gp.SVGP()`'
        )
    latents, likelihood = _Latents(posterior), estimator.likelihood_
    if isinstance(likelihood, Categorical) and posterior.mixing is not None:
        raise TypeError("a Categorical likelihood of correlated latents (`num_latents`) cannot be exported")
    build = next((build for kind, build in _OBSERVATIONS.items() if isinstance(likelihood, kind)), None)
    if build is None:
        raise TypeError(
            f"a {type(likelihood).__name__} likelihood cannot be exported; those that can are "
            f"{', '.join(kind.__name__ for kind in _OBSERVATIONS)}"
        )
    return _Predictive(estimator.input_scaler_, latents, build(likelihood, estimator.target_scaler_)).eval()


class _Predictive(nn.Module):
    """Raw inputs, standardized inputs, latents, observations."""

    def __init__(self, scaler: Any, latents: nn.Module, observation: nn.Module):
        super().__init__()
        self.shift: Tensor
        self.scale: Tensor
        one = torch.ones(1, dtype=torch.float64)
        self.register_buffer("shift", 0 * one if scaler is None else scaler.shift.clone())
        self.register_buffer("scale", one if scaler is None else scaler.scale.clone())
        self.latents, self.observation = latents, observation

    def forward(self, x: Tensor) -> Any:
        return self.observation(*self.latents((x.double() - self.shift) / self.scale))


class _Latents(nn.Module):
    """Means and variances (n, k) of a conditioned process; equations in `conditioned_kernel.py`.

    With a mixing W of independent latent functions, the outputs have means W m and variances (W * W) v.
    """

    def __init__(self, posterior: GaussianProcess):
        super().__init__()
        kernel, mean = posterior.kernel, posterior.mean
        assert isinstance(kernel, Conditioned) and isinstance(mean, ConditionedMean)
        if mean.z is not kernel.z and not torch.equal(mean.z, kernel.z):
            raise TypeError("a posterior whose mean and covariance have different inputs cannot be exported")
        self.kernel: Any = traced(kernel.base, kernel.z)
        self.mean, self.num_latents = mean.base_mean, posterior.num_latents
        self.mixing: Tensor | None
        self.register_buffer("mixing", None if posterior.mixing is None else posterior.mixing.detach().double().clone())
        self.tril: Tensor
        self.weights: Tensor
        self.root: Tensor | None
        self.register_buffer("tril", kernel.tril.clone())
        self.register_buffer("weights", mean.weights.clone())
        self.register_buffer("root", None if kernel.root is None else kernel.root.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cross, before = self.kernel(x), self.kernel.variance(x)
        shift = self.weights @ cross if cross.dim() == 2 else (self.weights.unsqueeze(-2) @ cross).squeeze(-2)
        projection = torch.linalg.solve_triangular(self.tril, cross, upper=False)
        variance = before - projection.square().sum(-2)
        if self.root is not None:
            variance = variance + (self.root.mT @ projection).square().sum(-2)
        variance = torch.maximum(variance, 64 * torch.finfo(torch.float64).eps * before)  # a difference, at rounding
        mean = (mean_rows(self.mean, x, self.num_latents) + shift).mT
        variance = variance.expand(self.num_latents, x.shape[0]).mT
        return (mean, variance) if self.mixing is None else (mean @ self.mixing.mT, variance @ self.mixing.square().mT)


class _Numbers(nn.Module):
    """Mean and variance of y in the target's units, under additive noise of the given variance."""

    def __init__(self, noise: Tensor | None, scaler: Any):
        super().__init__()
        self.shift: Tensor
        self.scale: Tensor
        self.noise: Tensor | None
        self.register_buffer("shift", scaler.shift.clone())
        self.register_buffer("scale", scaler.scale.clone())
        self.register_buffer("noise", noise)  # None where the second half of the latents are log variances

    def forward(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        if self.noise is not None:
            variance = variance + self.noise
        else:  # E exp(g) = exp(E g + Var g / 2)
            (mean, log_mean), (variance, log_variance) = mean.chunk(2, dim=-1), variance.chunk(2, dim=-1)
            variance = variance + (log_mean + log_variance / 2).exp()
        mean, variance = self.shift + self.scale * mean, self.scale.square() * variance
        return (mean.squeeze(-1), variance.squeeze(-1)) if len(self.scale) == 1 else (mean, variance)


class _Two(nn.Module):
    """Probabilities of two classes: E Phi(f) in closed form, E sigmoid(f) by quadrature.

    With f ~ N(m, s^2), the trapezoidal rule in (f - m) / s is used for s <= 4. Beyond, sigmoid(f) = Phi(c f) + g(f), g
    zero outside [-40, 40]: E Phi(c f) has a closed form, and E g is a sum over f, in which the density is smooth.
    """

    def __init__(self, likelihood: Bernoulli):
        super().__init__()
        self.probit = likelihood.link == "probit"
        self.nodes: Tensor
        self.far: Tensor
        self.register_buffer("nodes", torch.linspace(-12, 12, 145, dtype=torch.float64))
        self.register_buffer("far", torch.linspace(-40, 40, 641, dtype=torch.float64))

    def forward(self, mean: Tensor, variance: Tensor) -> Tensor:
        positive = torch.special.ndtr(mean / (1 + variance).sqrt()) if self.probit else self._logit(mean, variance)
        return torch.cat([1 - positive, positive], dim=-1)

    def _logit(self, mean: Tensor, variance: Tensor) -> Tensor:
        near = (mean + variance.clamp_max(16).sqrt() * self.nodes).sigmoid()  # (n, q)
        narrow = (near * (-self.nodes.square() / 2).softmax(0)).sum(-1, keepdim=True)
        slope = 1 / 1.7
        rest = self.far.sigmoid() - torch.special.ndtr(slope * self.far)
        wide = variance.clamp_min(16)
        density = (-((self.far - mean) ** 2) / (2 * wide)).exp() / (2 * math.pi * wide).sqrt()
        step = self.far[1] - self.far[0]
        closed = torch.special.ndtr(slope * mean / (1 + slope**2 * wide).sqrt())
        return torch.where(variance <= 16, narrow, closed + step * (rest * density).sum(-1, keepdim=True))


class _Several(nn.Module):
    """Probabilities of several classes: the softmax averaged over the same quasi-Monte Carlo points as elsewhere."""

    def __init__(self, likelihood: Categorical):
        super().__init__()
        self.draws: Tensor
        self.register_buffer("draws", sobol_normals(NUM_DRAWS, likelihood.num_classes).clone())

    def forward(self, mean: Tensor, variance: Tensor) -> Tensor:
        f = mean + variance.sqrt() * self.draws.unsqueeze(-2)  # (s, n, c)
        return f.softmax(-1).mean(0)


def _student_t_variance(likelihood: StudentT) -> Tensor:
    return likelihood.scale.detach().square() * (likelihood.df / (likelihood.df - 2) if likelihood.df > 2 else math.inf)


_OBSERVATIONS: dict[type[Likelihood], Callable[[Any, Any], nn.Module]] = {
    Gaussian: lambda likelihood, scaler: _Numbers(likelihood.noise.detach(), scaler),
    StudentT: lambda likelihood, scaler: _Numbers(_student_t_variance(likelihood), scaler),
    Heteroscedastic: lambda likelihood, scaler: _Numbers(None, scaler),
    Bernoulli: lambda likelihood, scaler: _Two(likelihood),
    Categorical: lambda likelihood, scaler: _Several(likelihood),
}
"""The module from moments of the latents to predictions, from a likelihood and the scaler of the targets."""

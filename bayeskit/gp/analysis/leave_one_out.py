r"""Leave-one-out cross-validation of a fitted Gaussian process in closed form.

The posterior is the prior times one Gaussian site for each data point, a function of g_i: f(x_i) itself in an exact
process, A_i' v with f(Z) = L v and A_i = L^-1 k(Z, x_i) where there are inducing points. With g_i ~ N(c_i, h_i) under
the posterior, and point i of weight w_i having derivatives (a_i, b_i) of its expected log likelihood,

    h_i'  =  h_i / (1 - w_i b_i h_i),        c_i'  =  c_i - w_i a_i h_i / (1 - w_i b_i h_i)

are variance and mean without it: a rank-one downdate of the posterior precision. The remaining variance of f(x_i),
k(x_i, x_i) - |A_i|^2, does not depend on the data. In an exact process 1 - w_i b_i h_i = D_i [C^-1]_ii, and the two
lines are Rasmussen and Williams (2006), equation 5.12, without the noise.
"""

from dataclasses import dataclass

import torch
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from bayeskit.core import checks, operators
from bayeskit.core.inference import Fit
from bayeskit.core.inputs import one_tensor
from bayeskit.core.likelihood import KnownNoise, Likelihood
from bayeskit.core.posterior import GaussianValues, Posterior
from bayeskit.core.predictive import GaussianPredictive, Predictive, pool
from bayeskit.core.types import Data
from bayeskit.gp.kernels.evaluate import gram_diagonal
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.model.multitask import StackedProcess
from bayeskit.gp.process.conditioned_kernel import Conditioned, floored, places
from bayeskit.gp.process.gaussian_process import GaussianProcess
from bayeskit.gp.process.nearest_neighbor_kernel import Nearest
from bayeskit.gp.process.process_mixture import ProcessMixture

CORRELATED = (
    "correlated outputs (`num_latents`, a prior with a `mixing`) have no leave-one-out here, since a target depends on "
    "several functions: fit without `num_latents`"
)


def leave_one_out(fit: Fit, data: Data) -> Predictive:
    """The predictive distribution of each training target given all other data, at the fitted hyperparameters.

    - Exact for Gaussian noise: with an exact process, and with `SGPR`, `SVGP` or `DualSVGP`, that of a fit without the
      data point at the same inducing points and hyperparameters. `OrthogonalSVGP` has no optimal Gaussian at its
      points, so there it is an approximation.
    - For any other likelihood the Gaussian site of the point is removed and the other sites are kept, where a new fit
      would change them: an approximation, good where no single point has a large influence.
    - A mixture over hyperparameters is reweighted: sample s has weight in proportion to w_s / p_s(y_i | other data).

    Hyperparameters are not learned again, so they still depend on each point. Of a repeated point one copy is removed,
    of a weighted point all its weight; the distribution returned is that of an observation of weight one.

    Args:
        fit: Of `gp.Exact` (by Cholesky), `gp.SGPR`, `gp.SVGP`, `gp.DualSVGP`, `gp.OrthogonalSVGP` or
            `gp.FullyBayesian`.
        data: What it was fitted to: inputs (n, d), targets, weights.

    Returns:
        n predictive distributions, one for each data point.

    Raises:
        TypeError: The fit is of another kind.
        ValueError: A point of positive weight and observed target is not among those that an exact process was fitted
            to, or several conditionings at inducing points are merged into one.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, section 5.4.2.
        Sundararajan and Keerthi (2001), "Predictive Approaches for Choosing Hyperparameters in Gaussian Processes".
        Opper and Winther (2000), "Gaussian Processes for Classification: Mean-Field Algorithms", for cavities.

    Examples:
        >>> from bayeskit.core.likelihood import Gaussian
        >>> from bayeskit.gp import Exact, default_prior
        >>> x = torch.linspace(0, 6, 30, dtype=torch.float64).unsqueeze(-1)
        >>> y = x.sin()
        >>> y[10] += 1.0
        >>> data = Data(x, y)
        >>> fit = Exact().infer(default_prior(x), Gaussian(), data, generator=torch.Generator())
        >>> int(leave_one_out(fit, data).log_prob(y).argmin())  # the outlier
        10
    """
    checks.same_length(data.x, data.y, names=("data.x", "data.y"))
    if isinstance(fit.posterior, ProcessMixture) and fit.likelihood.components:
        return _mixed(fit.posterior, fit.likelihood.components, data)
    if not isinstance(fit.posterior, GaussianProcess) or not isinstance(fit.posterior.kernel, Conditioned):
        raise TypeError(_refusal(fit.posterior))
    if fit.posterior.mixing is not None:
        raise TypeError(CORRELATED)
    with torch.no_grad():
        values = _without(fit, fit.posterior.kernel, data)
        if isinstance(fit.likelihood, KnownNoise):
            return GaussianPredictive(values, fit.likelihood.observations(data.y.double())[1])
        return fit.likelihood.predictive(values)


def _refusal(posterior: Posterior) -> str:
    """Why there is no closed form, and which inferences have one."""
    kernel = posterior.kernel if isinstance(posterior, GaussianProcess) else None
    if isinstance(kernel, Nearest):
        return (
            "the posterior of `gp.SWSGP`, in which every input depends on its nearest inducing values only, has no "
            "leave-one-out in closed form: fit with `gp.SVGP` or `gp.SGPR`"
        )
    if isinstance(posterior, StackedProcess):
        return CORRELATED
    what = type(posterior).__name__ + ("" if kernel is None else f" with the kernel {type(kernel).__name__}")
    return (
        "`fit` must hold a Gaussian process conditioned by a Cholesky factorization or at inducing points; got a "
        f'{what}. Fit with `gp.Exact(solver="cholesky")`, `gp.SGPR` or `gp.SVGP`'
    )


def _mixed(posterior: ProcessMixture, likelihoods: tuple[Likelihood, ...], data: Data) -> Predictive:
    """p(y_i | rest) = sum_s u_is p_s(y_i | rest) with u_is in proportion to w_s / p_s(y_i | rest)^weight."""
    pairs = zip(posterior.components, likelihoods, strict=True)
    parts = [leave_one_out(Fit(process, member), data) for process, member in pairs]
    y = likelihoods[0].observations(data.y)[0] if likelihoods[0].is_conjugate else data.y
    scores = torch.stack([_scores(part, y) for part in parts])  # (s, n)
    scores = scores if data.weights is None else scores * data.weights
    return pool(parts, (posterior.weights.log().unsqueeze(-1) - scores).softmax(0))


def _scores(predictive: Predictive, y: Tensor) -> Tensor:
    """Log densities (n,) of the observed targets; where some are missing, of independent normal outputs."""
    missing = y.isnan()
    if not bool(missing.any()):
        return predictive.log_prob(y)
    mean, std = (value.reshape(y.shape) for value in (predictive.mean, predictive.std))  # type: ignore[attr-defined]
    each = torch.distributions.Normal(mean, std).log_prob(torch.where(missing, mean, y))
    return torch.where(missing, 0.0, each).reshape(len(y), -1).sum(-1)


def _without(fit: Fit, kernel: Conditioned, data: Data) -> GaussianValues:
    """The distribution of each f(x_i) given the other data, independent between points."""
    process = fit.posterior
    assert isinstance(process, GaussianProcess)
    model = learnable(process, fit.likelihood, learn=False)
    x = one_tensor(data.x).double()
    y = data.y.double() if data.y.is_floating_point() else data.y
    weights = torch.ones_like(x[:, 0]) if data.weights is None else data.weights.to(x)
    mean = process.mean_rows(x)  # (k, n)
    seen = ~y.isnan().reshape(len(y), -1).all(-1)
    parts = _noisy(kernel, x, (weights > 0) & seen) if kernel.root is None else _inducing(kernel, x)
    spread = (parts.total - parts.lost).expand(mean.shape)
    slope, curvature = model.site_gradients(mean.mT, (parts.rest + spread).mT, y)  # (n, k) each
    taken = weights * curvature.mT  # w b
    left = 1 - taken * parts.total + taken * parts.lost  # 1 - w b h
    # Where the sites are not exactly those of this posterior, the variance must not exceed the prior's.
    left = torch.maximum(left, spread / parts.before)
    variance = parts.rest + spread / left
    mean = mean - weights * slope.mT * spread / left
    return GaussianValues(mean.mT.contiguous(), DiagLinearOperator(variance.mT.reshape(-1)))


@dataclass(frozen=True, eq=False)
class _Variances:
    """The terms of the variance of f(x_i), each (n,) or (k, n).

    Args:
        total: The posterior variance of g_i, plus `lost`.
        lost: A term kept separate because 1 - w b (total - lost) would cancel.
        rest: The variance of f(x_i) given g_i, which does not depend on the data.
        before: The prior variance of g_i.
    """

    total: Tensor
    lost: Tensor
    rest: Tensor
    before: Tensor


def _inducing(kernel: Conditioned, x: Tensor) -> _Variances:
    """With g = A'v: |R'A|^2, and beside it k - |A|^2."""
    if len(kernel.blocks) > 1:
        raise ValueError(
            f"`fit` merges {len(kernel.blocks)} conditionings at inducing points into one, from which single data "
            "points cannot be removed; fit all data at once"
        )
    assert kernel.root is not None
    found = []
    for part in operators.pieces(x, kernel.width):
        projection, before = kernel.projection(part), gram_diagonal(kernel.base, part)
        total = (kernel.root.mT @ projection).square().sum(-2)
        explained = projection.square().sum(-2)
        found.append((total, floored(before - explained, before), explained))
    total, rest, explained = (torch.cat(columns, dim=-1) for columns in zip(*found, strict=True))
    return _Variances(total, torch.zeros_like(total), rest, explained)


def _noisy(kernel: Conditioned, x: Tensor, counted: Tensor) -> _Variances:
    """With g = f(x_i) and C = k(X, X) + D: D_i - D_i^2 [C^-1]_ii; `counted` (n,) are the points that must be known."""
    if kernel.noise is None:
        raise TypeError("`fit` must hold a process conditioned on noisy values or at inducing points")
    place, known = places(kernel.z, x)
    unknown = int((~known & counted).sum())
    if unknown and not bool(known.any()):
        raise ValueError(
            "no row of `data` is one that `fit` is conditioned on. A coreset (`gp.CoresetGP`) has no leave-one-out, as "
            "it is conditioned on pseudo observations: use `gp.SGPR`; for `gp.Exact`, pass the data it was fitted to"
        )
    if unknown:
        raise ValueError(
            f"{unknown} rows of `data` are not among those that the process was fitted to (a coreset, `gp.CoresetGP`, "
            "has no leave-one-out: use `gp.SGPR`)"
        )
    identity = torch.eye(len(kernel.z), dtype=x.dtype, device=x.device)
    inverse = torch.linalg.solve_triangular(kernel.tril, identity, upper=False).square().sum(-2)  # [C^-1]_ii
    total, lost = (part[..., place] for part in torch.broadcast_tensors(kernel.noise, kernel.noise**2 * inverse))
    silent = ~known | ~lost.isfinite()  # points of weight zero and missing entries, of which nothing is removed
    if bool(silent.any()):
        total = torch.where(silent, gram_diagonal(kernel, x), total)
        lost = torch.where(silent, 0.0, lost)
    before = gram_diagonal(kernel.base, x)
    total = torch.maximum(total, lost + 64 * torch.finfo(x.dtype).eps * before)  # a variance at rounding level
    return _Variances(total, lost, torch.zeros_like(total), before)

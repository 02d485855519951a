"""Scores of predictions against observations: proper scoring rules, accuracy and root mean squared error.

A rule is proper if the expected score is best for the distribution that the observations are drawn from.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributions as td

from bayeskit.core import checks
from bayeskit.core.predictive import ContinuousPredictive, GaussianPredictive, MixturePredictive, Predictive
from bayeskit.core.predictive.predictive import AffinePredictive, SqueezedPredictive
from bayeskit.metrics import arrays

# Quantiles at which the panels of the quadrature meet: dense in the middle, reaching 1e-6 into both tails.
_TAIL = np.array([1e-6, 1e-5, 1e-4, 1e-3, 5e-3, 0.02])
_BORDERS = np.concatenate([_TAIL, np.linspace(0.05, 0.95, 19), 1 - _TAIL[::-1]])
_MAX_COMPONENTS = 512  # of a normal mixture, whose closed form costs the square of their number


def negative_log_likelihood(predictive: Any, y: Any) -> float:
    """The mean over points of -log p(y_i | x_i), in nats: the marginal, never the joint.

    A `Predictive` is scored by its own density (a mixture as a mixture), with y in its units. An array is read as class
    probabilities; an observed class of probability zero costs infinity.

    Args:
        predictive: A `Predictive`, or class probabilities (n, c) or (n,).
        y: Targets: numbers (n,) or (n, k), labels for a classifier's `Predictive`, integer codes (n,) for an array.

    References:
        Good (1952), Rational decisions; Gneiting and Raftery (2007), Strictly proper scoring rules, section 4.1.

    >>> round(negative_log_likelihood([[0.5, 0.5], [0.25, 0.75]], [0, 1]), 4)
    0.4904
    """
    if isinstance(predictive, ContinuousPredictive):
        y = arrays.like_predictive(y, predictive)
    if isinstance(predictive, Predictive):
        return float(-predictive.log_prob(y).double().mean())
    p = arrays.probabilities(predictive)
    codes = arrays.labels(y, num_classes=p.shape[1], num_rows=len(p), name="y")
    with np.errstate(divide="ignore"):  # log 0 is the infinity of the docstring
        return float(-np.log(p[np.arange(len(p)), codes]).mean())


def brier(p: Any, labels: Any) -> float:
    """The mean squared distance between the class probabilities and the outcome, between 0 and 2.

    BS = (1 / n) sum_i sum_j (p_ij - [y_i = j])^2, Brier's own definition for any number of classes; for two classes
    it is twice the one-column version.

    Args:
        p: Class probabilities (n, c), or (n,) for the probability of class 1 of two.
        labels: Integer codes (n,).

    References:
        Brier (1950), Verification of forecasts expressed in terms of probability, equation 2.

    >>> brier([[1.0, 0.0], [0.5, 0.5]], [0, 1])
    0.25
    """
    p = arrays.probabilities(p)
    codes = arrays.labels(labels, num_classes=p.shape[1], num_rows=len(p))
    return float(((p - np.eye(p.shape[1])[codes]) ** 2).sum(1).mean())


def accuracy(p: Any, labels: Any) -> float:
    """The fraction of points whose most probable class is their label.

    Args:
        p: Class probabilities (n, c), or (n,) for the probability of class 1 of two.
        labels: Integer codes (n,).

    >>> accuracy([[0.9, 0.1], [0.4, 0.6]], [0, 0])
    0.5
    """
    from sklearn.metrics import accuracy_score

    p = arrays.probabilities(p)
    return float(accuracy_score(arrays.labels(labels, num_classes=p.shape[1], num_rows=len(p)), p.argmax(1)))


def rmse(mean: Any, y: Any) -> float:
    """Root mean squared error sqrt(mean_i (mean_i - y_i)^2), in the units of y.

    Args:
        mean: Predicted means (n,) or (n, k).
        y: Observations of the same shape.

    >>> rmse([1.0, 2.0], [1.0, 4.0]) == 2**0.5
    True
    """
    from sklearn.metrics import root_mean_squared_error

    mean, y = arrays.paired(mean, y, names=("mean", "y"))
    return float(root_mean_squared_error(y.ravel(), mean.ravel()))


def crps(predictive: ContinuousPredictive, y: Any) -> float:
    """Continuous ranked probability score, averaged over points (and outputs); in the units of y, lower is better.

    CRPS(F, y) = integral of (F(x) - [x >= y])^2 dx. For N(m, s^2) and z = (y - m) / s it is
    s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), and mixtures of normals are a double sum of such terms. Any other
    distribution is integrated numerically: Gauss-Legendre panels whose borders are its quantiles and y itself, so that
    narrow components of a mixture are resolved; the probability left outside the outermost quantiles is 2e-6.

    Args:
        predictive: Continuous predictive distribution of y.
        y: Observations (n,) or (n, k).

    References:
        Gneiting and Raftery (2007), Strictly proper scoring rules, prediction and estimation, equations 20 and
            21; mixtures: Grimit, Gneiting, Berrocal and Johnson (2006), The continuous ranked probability score for
            circular variables, equation 5.

    >>> import torch
    >>> from bayeskit.core.predictive import MixturePredictive
    >>> predictive = MixturePredictive(torch.distributions.Normal(torch.zeros(1, 1, 1), torch.ones(1, 1, 1)))
    >>> round(crps(predictive, [0.0]), 4)
    0.2337
    """
    score = _crps(predictive, arrays.like_predictive(y, predictive))
    return float(arrays.numbers(score, name="predictive").mean())


def interval_score(low: Any, high: Any, y: Any, *, level: float = 0.9) -> float:
    """Width of the interval plus a penalty for observations outside, averaged over points; lower is better.

    S = (high - low) + (2 / a) max(low - y, 0) + (2 / a) max(y - high, 0) with a = 1 - level.

    Args:
        low: Lower ends (n,) or (n, k).
        high: Upper ends, the same shape.
        y: Observations, the same shape.
        level: Nominal coverage of the interval.

    References:
        Gneiting and Raftery (2007), Strictly proper scoring rules, prediction and estimation, equation 43.

    >>> round(interval_score([0.0, 0.0], [1.0, 1.0], [0.5, 1.1], level=0.9), 12)
    2.0
    """
    checks.fraction(level, name="level")
    low, y = arrays.paired(low, y, names=("low", "y"))
    high, y = arrays.paired(high, y, names=("high", "y"))
    if (high < low).any():
        raise ValueError("`low` must not exceed `high`; swap the arguments")
    misses = np.maximum(low - y, 0) + np.maximum(y - high, 0)
    return float((high - low + 2 / (1 - level) * misses).mean())


def _crps(predictive: ContinuousPredictive, y: Tensor) -> Tensor:
    """The score of each observation, in closed form where there is one."""
    if isinstance(predictive, SqueezedPredictive):
        return _crps(predictive.base, y.unsqueeze(-1)).squeeze(-1)
    if isinstance(predictive, AffinePredictive):  # the score scales like y
        shift, scale = predictive.shift.to(y), predictive.scale.to(y)
        return scale * _crps(predictive.base, (y - shift) / scale)
    if isinstance(predictive, GaussianPredictive):
        mean, std = predictive.mean, predictive.std
        return _expected_distance(y - mean, std) - std / math.sqrt(math.pi)
    if isinstance(predictive, MixturePredictive):
        normal = _normal_components(predictive)
        if normal is not None:
            return _normal_mixture_crps(*normal, y)
    return _quadrature_crps(predictive, y)


def _expected_distance(offset: Tensor, std: Tensor) -> Tensor:
    """E|Z + offset| for Z ~ N(0, std^2); a point mass gives the absolute offset."""
    z = offset / std.clamp(min=torch.finfo(std.dtype).tiny)
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return 2 * std * density + offset * torch.erf(z / math.sqrt(2))


def _normal_components(mixture: MixturePredictive) -> tuple[Tensor, Tensor, Tensor] | None:
    """Means and standard deviations (s, n, k) and weights of equal rank, if every component is normal."""
    base = mixture.components
    if isinstance(base, td.Independent) and base.reinterpreted_batch_ndims == 1:
        base = base.base_dist
    if not isinstance(base, td.Normal) or len(base.loc) > _MAX_COMPONENTS:
        return None
    equal = torch.full_like(base.loc.flatten(1)[:, 0], 1 / len(base.loc))
    weights = equal if mixture.log_weights is None else mixture.log_weights.exp()
    return base.loc, base.scale, weights.reshape(*weights.shape, *[1] * (base.loc.ndim - weights.ndim)).to(base.loc)


def _normal_mixture_crps(means: Tensor, stds: Tensor, weights: Tensor, y: Tensor) -> Tensor:
    """E|Y - y| - E|Y - Y'| / 2, each expectation a sum over components or pairs of components."""
    first = (weights * _expected_distance(y - means, stds)).sum(0)
    second = torch.zeros_like(first)
    for mean, std, weight in zip(means, stds, weights.expand(len(means), *weights.shape[1:]), strict=True):
        pairs = _expected_distance(means - mean, (stds**2 + std**2).sqrt())
        second = second + weight * (weights * pairs).sum(0)
    return first - second / 2


def _quadrature_crps(predictive: ContinuousPredictive, y: Tensor) -> Tensor:
    quantiles = torch.stack([predictive.quantile(float(q)) for q in _BORDERS])
    edges = torch.cat([quantiles, y[None]]).sort(0).values  # (b, n) or (b, n, k)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    center, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    total = torch.zeros_like(y)
    for node, weight in zip(nodes, weights, strict=True):
        x = center + half * float(node)
        cdf = torch.stack([predictive.cdf(row) for row in x])
        total = total + (half * float(weight) * (cdf - (x >= y).to(cdf)) ** 2).sum(0)
    return total

"""Acquisition functions: the value of one label at each input, from the posterior over f and p(y | f).

Each takes the joint distribution of the function at n inputs and the likelihood, in the same units
(`estimator.standardized(X)` and `estimator.likelihood_`), and returns n scores; the largest is queried first.
"""

import math

import torch
from torch import Tensor

from bayeskit.active import function_draws
from bayeskit.core import generators, operators
from bayeskit.core.likelihood import Likelihood
from bayeskit.core.posterior import FunctionValues, GaussianValues
from bayeskit.core.predictive import CategoricalPredictive, quadrature

NUM_REPEATS = 8
"""Observations drawn for each function where an expectation over y has no closed form."""


def variance(values: FunctionValues, likelihood: Likelihood) -> Tensor:
    """The epistemic variance of y, summed over outputs or over classes.

    For numbers Var_f E[y | f], for labels sum_c Var_f p(y = c | f).

    Args:
        values: Joint distribution of the function at n inputs.
        likelihood: p(y | f).

    Returns:
        (n,).

    Examples:
        >>> from linear_operator.operators import DiagLinearOperator
        >>> from bayeskit.core.likelihood import Gaussian
        >>> values = GaussianValues(torch.zeros(2, 1), DiagLinearOperator(torch.tensor([1.0, 4.0])))
        >>> variance(values, Gaussian(0.1))
        tensor([1., 4.])
    """
    if not likelihood.has_labels:
        return likelihood.predictive(values).epistemic.sum(-1)
    functions = function_draws.marginal(values, likelihood, num_points=quadrature.NUM_DRAWS)
    return functions.class_log_probs().exp().var(0, correction=0).sum(-1)


def entropy(values: FunctionValues, likelihood: Likelihood) -> Tensor:
    """The entropy of y in nats, noise included: of a label, or the differential entropy of numbers.

    Closed form for Gaussian values under Gaussian noise, log det(2 pi e (V + noise)) / 2; the predictive's own for
    labels. Otherwise -E log p(y) over fixed points, with p the mixture over the stored draws or over 128 Sobol points.

    Args:
        values: Joint distribution of the function at n inputs.
        likelihood: p(y | f).

    Returns:
        (n,).

    Examples:
        >>> from linear_operator.operators import DiagLinearOperator
        >>> from bayeskit.core.likelihood import Bernoulli
        >>> values = GaussianValues(torch.zeros(1, 1), DiagLinearOperator(torch.ones(1)))
        >>> entropy(values, Bernoulli()) / math.log(2)
        tensor([1.])
    """
    if likelihood.has_labels:
        return likelihood.predictive(values).total
    if likelihood.noise_variance is not None and isinstance(values, GaussianValues):
        constant = values.mean.shape[-1] * math.log(2 * math.pi * math.e)
        noise = _noise(likelihood.noise_variance, values)
        return (_logdet_ratio(values, noise) + noise.log().sum() + constant) / 2
    _, log_marginal, weights = _observations(values, likelihood)
    return -(weights * log_marginal).sum(0)


def margin(values: FunctionValues, likelihood: Likelihood) -> Tensor:
    """One minus the margin between the two most probable labels, for classification only.

    Args:
        values: Joint distribution of the function at n inputs.
        likelihood: p(y | f) of a label.

    Returns:
        (n,), between 0 and 1.

    Raises:
        ValueError: y is a number.

    Examples:
        >>> from linear_operator.operators import DiagLinearOperator
        >>> from bayeskit.core.likelihood import Bernoulli
        >>> values = GaussianValues(torch.zeros(1, 1), DiagLinearOperator(torch.ones(1)))
        >>> margin(values, Bernoulli())
        tensor([1.])
    """
    predictive = likelihood.predictive(values)
    if not isinstance(predictive, CategoricalPredictive):
        raise ValueError("'margin' compares the probabilities of labels, and y is a number: use 'variance' or 'bald'")
    first, second = predictive.probs.topk(2, dim=-1).values.unbind(-1)
    return 1 - (first - second)


def bald(values: FunctionValues, likelihood: Likelihood) -> Tensor:
    """The mutual information I(y; f) of a label and the function, in nats.

    Closed form for Gaussian values under Gaussian noise, log det(I + V / noise) / 2. For labels the epistemic part of
    the predictive's entropy: by quadrature for one Gaussian latent, by fixed Sobol draws for several, over the stored
    draws where there are such. Otherwise E log p(y | f) / p(y) over fixed points, with p the mixture over the stored
    draws or over 128 Sobol points.

    Args:
        values: Joint distribution of the function at n inputs.
        likelihood: p(y | f).

    Returns:
        (n,); never negative but for rounding and the error of a quadrature.

    References:
        Houlsby, Huszar, Ghahramani and Lengyel (2011), Bayesian active learning for classification and preference
        learning, eq. 2.

    Examples:
        >>> from linear_operator.operators import DiagLinearOperator
        >>> from bayeskit.core.likelihood import Gaussian
        >>> values = GaussianValues(torch.zeros(2, 1), DiagLinearOperator(torch.tensor([3.0, 0.0])))
        >>> bald(values, Gaussian(1.0)) / math.log(2)
        tensor([1., 0.])
    """
    if likelihood.has_labels:
        return likelihood.predictive(values).epistemic
    if likelihood.noise_variance is not None and isinstance(values, GaussianValues):
        return _logdet_ratio(values, _noise(likelihood.noise_variance, values)) / 2
    log_given, log_marginal, weights = _observations(values, likelihood)
    return (weights * (log_given - log_marginal)).sum(0)


def uniform(values: FunctionValues, likelihood: Likelihood, *, generator: torch.Generator | None = None) -> Tensor:
    """Uniform random scores between 0 and 1: the baseline of random acquisition.

    Args:
        values: Joint distribution of the function at n inputs.
        likelihood: Not used.
        generator: Source of randomness; None starts one at seed 0.

    Returns:
        (n,).
    """
    generator = generators.given_or_fixed(generator)
    return torch.rand(values.mean.shape[-2], generator=generator, dtype=torch.float64, device=generator.device)


def _noise(variance: Tensor, values: FunctionValues) -> Tensor:
    """Noise variances in the type of the values, (k,)."""
    return variance.detach().to(values.mean).expand(values.mean.shape[-1])


def _logdet_ratio(values: GaussianValues, noise: Tensor) -> Tensor:
    """Log det(I + V / noise) with V the covariance of the outputs at each input, (n,)."""
    if values.mean.shape[-1] == 1:
        return (values.variance / noise).squeeze(-1).log1p()
    scale = noise.rsqrt()
    scaled = scale.unsqueeze(-1) * values.output_covariance() * scale
    identity = torch.eye(len(noise), dtype=scaled.dtype, device=scaled.device)
    name = "the covariance of the outputs over the noise"
    return operators.factorize(scaled + identity, name=name).logdet().to(values.mean)


def _observations(values: FunctionValues, likelihood: Likelihood) -> tuple[Tensor, Tensor, Tensor]:
    """Log p(y | f) and log p(y), (q, n) each, at q pairs of f and y with their weights, (q, 1)."""
    functions = function_draws.marginal(values, likelihood)
    y, log_given, weights = functions.observations(NUM_REPEATS)
    log_marginal = torch.empty_like(log_given)
    for rows in operators.chunks(len(y), 2 * functions.num_functions * functions.num_inputs, cached=True):
        log_marginal[rows] = functions.log_prob(y[rows]).logsumexp(1) - math.log(functions.num_functions)
    return log_given, log_marginal, weights

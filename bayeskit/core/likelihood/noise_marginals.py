"""From p(y | f) to the predictive distribution of y: over stored draws of f, or over Gaussian f."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributions as td

from bayeskit.core import operators
from bayeskit.core.posterior import FunctionValues
from bayeskit.core.predictive import (
    CategoricalPredictive,
    IntegralPredictive,
    MixturePredictive,
    Predictive,
    adaptive_quadrature,
    distribution_cdfs,
    quadrature,
)

Conditional = Callable[[Tensor], td.Distribution]
"""The distribution of y given latents (*b, n, k)."""

LogProbs = Callable[[Tensor], Tensor]
"""Log class probabilities (*b, n, c) given latents (*b, n, k)."""


def over_draws(distribution: td.Distribution, f: Tensor, *, rule: str) -> Predictive:
    """The mixture over draws of the latents.

    Args:
        distribution: That of y given `f`.
        f: Draws (s, *b, n, k).
        rule: How the draws were made.
    """
    if is_label(distribution):
        return CategoricalPredictive.from_draws(label_log_probs(distribution), rule=rule)
    components = distribution_cdfs.with_output_axis(distribution, f)
    return MixturePredictive(components, rule=rule, discrete=distribution_cdfs.is_discrete(components))


def over_gaussian(likelihood: Conditional, values: FunctionValues) -> Predictive:
    """Quadrature where there is one latent (per output), fixed Sobol draws of the latents otherwise."""
    at_mean = likelihood(values.mean)
    if is_label(at_mean):
        integrate = label_quadrature if values.mean.shape[-1] == 1 else label_draws
        return integrate(_Labels(likelihood), values)
    if distribution_cdfs.per_output(at_mean, values.mean.shape) is not None:
        rule = "quadrature" if values.mean.shape[-1] == 1 else "quadrature, outputs independent"
        discrete = distribution_cdfs.is_discrete(at_mean)
        return IntegralPredictive(values, _PerOutput(likelihood), rule=rule, discrete=discrete)
    f = quadrature.latent_draws(values.mean, values.output_covariance())
    return over_draws(likelihood(f), f, rule=f"mixture of {len(f)} Sobol draws")


def is_label(distribution: td.Distribution) -> bool:
    """Whether y is one class code an input."""
    return not distribution.event_shape and isinstance(distribution, td.Categorical | td.Bernoulli)


def label_log_probs(distribution: td.Distribution) -> Tensor:
    """Log probabilities of the classes, (*b, n, c)."""
    if isinstance(distribution, td.Bernoulli):
        return torch.nn.functional.logsigmoid(torch.stack([-distribution.logits, distribution.logits], dim=-1))
    assert isinstance(distribution, td.Categorical)
    return distribution.logits


def label_quadrature(log_probs: LogProbs, values: FunctionValues, *, smooth: bool = False) -> CategoricalPredictive:
    """Class probabilities and expected entropy with one Gaussian latent, by quadrature in log space.

    Args:
        log_probs: Log class probabilities given latents (*b, n, 1).
        values: Gaussian values (*b, n, 1).
        smooth: Whether `log_probs` varies over distances of one or more in f (as the logit and probit links do). The
            trapezoidal rule then serves inputs with a latent standard deviation below 4; all others get panels about
            the peaks of each integrand.
    """
    flat_mean, flat_variance = (moment.reshape(-1, 1).double() for moment in values.moments)
    easy = (flat_variance.squeeze(-1) <= 16) & smooth
    num_classes = log_probs(values.mean).shape[-1]
    table = flat_mean.new_empty(len(flat_mean), num_classes)
    entropies = flat_mean.new_empty(len(flat_mean))
    for chosen, method in ((easy, _label_sums), (~easy, _label_integrals)):
        index = chosen.nonzero().squeeze(-1)
        for rows in operators.chunks(len(index), adaptive_quadrature.COST):
            i = index[rows]
            table[i], entropies[i] = method(log_probs, flat_mean[i], flat_variance[i])
    shape = values.mean.shape[:-1]
    table, entropies = table.reshape(*shape, num_classes), entropies.reshape(shape)
    return CategoricalPredictive(table.to(values.mean), entropies.to(values.mean), rule="quadrature")


def _label_sums(log_probs: LogProbs, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Log class probabilities (n, c) and expected entropy (n,) by the trapezoidal rule, 12 standard deviations wide."""
    z = torch.linspace(-12, 12, 145, dtype=mean.dtype, device=mean.device).reshape(-1, 1, 1)
    log_weights = (-(z**2) / 2).log_softmax(0)
    parts = log_probs(mean + variance.sqrt() * z)  # (q, n, c)
    entropies = (log_weights.squeeze(-1) + _log_entropy(parts)).logsumexp(0).exp()
    return (parts + log_weights).logsumexp(0).log_softmax(-1), entropies


def _label_integrals(log_probs: LogProbs, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Log class probabilities (n, c) and expected entropy (n,) by panels."""
    num_classes = log_probs(mean).shape[-1]
    columns = [
        adaptive_quadrature.log_expectation(lambda f, c=c: log_probs(f)[..., c : c + 1], mean, variance)
        for c in range(num_classes)
    ]
    entropies = adaptive_quadrature.log_expectation(lambda f: _log_entropy(log_probs(f)).unsqueeze(-1), mean, variance)
    return torch.cat(columns, -1).log_softmax(-1), entropies.exp().squeeze(-1)


def _log_entropy(log_probs: Tensor) -> Tensor:
    terms = log_probs + (-log_probs).log()  # log(-p log p); NaN where p = 0, which adds nothing
    return torch.where(terms.isnan(), -torch.inf, terms).logsumexp(-1)


def label_draws(log_probs: LogProbs, values: FunctionValues) -> CategoricalPredictive:
    """Class probabilities and expected entropy with several Gaussian latents, by fixed Sobol draws of them.

    Args:
        log_probs: Log class probabilities given latents (*b, n, k).
        values: Gaussian values (*b, n, k), correlated among the k or not.
    """
    mean, covariance = values.mean, values.output_covariance()
    parts = []
    for rows in operators.chunks(mean.shape[-2], 8 * quadrature.NUM_DRAWS * mean[..., 0, :].numel()):
        f = quadrature.latent_draws(mean[..., rows, :], covariance[..., rows, :, :])  # (s, *b, rows, k)
        parts.append(CategoricalPredictive.from_draws(log_probs(f)))
    table = torch.cat([part.log_probs for part in parts], -2)
    entropies = torch.cat([part.expected_entropy for part in parts], -1)
    return CategoricalPredictive(table, entropies, rule=f"{quadrature.NUM_DRAWS} Sobol draws")


@dataclass(frozen=True)
class _PerOutput:
    """The distribution of each output given its own latent; a class so that a predictive can be pickled."""

    likelihood: Conditional

    def __call__(self, f: Tensor) -> td.Distribution:
        with distribution_cdfs.unvalidated():
            distribution = distribution_cdfs.per_output(self.likelihood(f), f.shape)
        assert distribution is not None
        return distribution


@dataclass(frozen=True)
class _Labels:
    """Log class probabilities given the latents."""

    likelihood: Conditional

    def __call__(self, f: Tensor) -> Tensor:
        with distribution_cdfs.unvalidated():
            return label_log_probs(self.likelihood(f))

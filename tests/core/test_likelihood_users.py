import itertools

import numpy as np
import torch
from linear_operator import to_linear_operator
from scipy import integrate, stats
from scipy.special import expit
from torch import distributions as td
from torch import nn

from bayeskit.core.likelihood import (
    Categorical,
    Likelihood,
)
from bayeskit.core.posterior import GaussianValues, SampledValues
from bayeskit.core.predictive import CategoricalPredictive, ContinuousPredictive

DOUBLE = torch.float64


class LaplaceNoise(Likelihood):
    def __init__(self, scale=0.3):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale, dtype=DOUBLE).log())

    def distribution(self, f):
        return td.Independent(td.Laplace(f, self.log_scale.exp().to(f)), 1)


class Waiting(Likelihood):
    """An event-less law: one exponential waiting time an input."""

    def distribution(self, f):
        return td.Exponential(torch.exp(-f.squeeze(-1)))


class Ordinal(Likelihood):
    """Three ordered classes on one latent."""

    target = "classes"

    def distribution(self, f):
        cuts = torch.sigmoid(torch.tensor([-1.0, 1.0], dtype=f.dtype) - f)
        cuts = torch.cat([torch.zeros_like(f), cuts, torch.ones_like(f)], -1)
        return td.Categorical(probs=cuts.diff(dim=-1).clamp(min=1e-300))


class Softmax(Likelihood):
    """Categorical again, by the generic path."""

    target = "classes"

    def num_latents(self, y):
        return 3

    def distribution(self, f):
        return td.Categorical(logits=f)


def draw_case(likelihood, n=5, seed=0, dtype=DOUBLE):
    """Latent means, variances (n, k) and targets for a likelihood."""
    g = torch.Generator().manual_seed(seed)
    y = {
        "continuous": torch.randn(n, 2, generator=g, dtype=dtype),
        "count": torch.randint(0, 6, (n, 2), generator=g).to(dtype),
        "binary": torch.randint(0, 2, (n,), generator=g),
        "classes": torch.randint(0, 3, (n,), generator=g),
    }[likelihood.target]
    if isinstance(likelihood, Waiting):
        y = y[:, 0].abs() + 0.1
    k = likelihood.num_latents(y)
    return torch.randn(n, k, generator=g, dtype=dtype), torch.rand(n, k, generator=g, dtype=dtype) + 0.1, y


def values(mean, variance):
    return GaussianValues(mean, to_linear_operator(torch.diag(variance.reshape(-1))))


def brute_force(function, mean, variance, cuts=()):
    """E[function(f)] for scalar f ~ N(mean, variance) by scipy's adaptive quadrature."""
    std = variance**0.5
    points = sorted({mean, *(c for c in cuts if abs(c - mean) < 12 * std)})
    edges = [mean - 12 * std, *points, mean + 12 * std]
    weight = stats.norm(mean, std).pdf
    return sum(
        integrate.quad(lambda f: function(f) * weight(f), a, b, epsabs=1e-12, epsrel=1e-10, limit=500)[0]
        for a, b in itertools.pairwise(edges)
    )


def test_five_lines_are_enough(generator):
    class Noise(Likelihood):
        def distribution(self, f):
            return td.Independent(td.Laplace(f, 0.5), 1)

    mean, variance, y = draw_case(Noise())
    for law in (
        Noise().predictive(values(mean, variance)),
        Noise().predictive(SampledValues(mean + variance.sqrt() * torch.randn(8, 5, 2, generator=generator))),
    ):
        assert isinstance(law, ContinuousPredictive)
        low, high = law.interval(0.9)
        assert (low < high).all() and law.sample(3, generator=generator).shape == (3, 5, 2)
        assert law.log_prob(y).shape == (5,)


def test_one_number_an_input_without_event(generator):
    mean, variance, y = draw_case(Waiting())
    for law in (
        Waiting().predictive(values(mean, variance)),
        Waiting().predictive(SampledValues(mean + variance.sqrt() * torch.randn(8, 5, 1, generator=generator))),
    ):
        assert isinstance(law, ContinuousPredictive)
        torch.testing.assert_close(law.log_prob(y), law.log_prob(y[:, None]))
        torch.testing.assert_close(
            law.cdf(law.quantile(0.01)), torch.full((5, 1), 0.01, dtype=DOUBLE), rtol=1e-6, atol=0
        )
        assert (law.cdf(-1.0) == 0).all() and law.sample(3, generator=generator).shape == (3, 5, 1)


def test_nodes_where_a_users_parameters_overflow_carry_no_mass():
    law = Waiting().predictive(values(torch.zeros(1, 1, dtype=DOUBLE), torch.full((1, 1), 1e4, dtype=DOUBLE)))
    # with a spread of 100 nats the rate is log-normal and y, on the log scale, that normal: p(y) = N(log y; 0, 1e4) / y
    np.testing.assert_allclose(law.log_prob([1.0]).item(), stats.norm.logpdf(0, 0, 100), atol=1e-2)


def test_users_labels_on_one_latent_and_on_several():
    mean, variance, _ = draw_case(Ordinal())
    law = Ordinal().predictive(values(mean, variance))
    assert isinstance(law, CategoricalPredictive) and law.probs.shape == (5, 3) and law.rule == "quadrature"
    above = brute_force(lambda f: 1 - expit(1 - f), mean[0].item(), variance[0].item())
    torch.testing.assert_close(law.probs[0, 2].item(), above, rtol=1e-9, atol=0)
    mean, variance, y = draw_case(Softmax())
    torch.testing.assert_close(
        Softmax().predictive(values(mean, variance)).probs, Categorical(3).predictive(values(mean, variance)).probs
    )
    torch.testing.assert_close(
        Softmax().curvature(mean, y).diagonal(dim1=1, dim2=2),
        mean.softmax(-1) * (1 - mean.softmax(-1)),
        rtol=0,
        atol=0.2,
    )


def test_curvature_of_a_users_likelihood_without_curvature_is_its_fisher_information():
    likelihood = LaplaceNoise(0.5)
    curvature = likelihood.curvature(torch.zeros(3, 2, dtype=DOUBLE), torch.ones(3, 2, dtype=DOUBLE))
    torch.testing.assert_close(curvature.diagonal(dim1=-2, dim2=-1), torch.full((3, 2), 4.0, dtype=DOUBLE))
    # off the diagonal the average of 256 signs over scale^2: standard error 4 / 16
    assert curvature[:, 0, 1].abs().max() < 1.25

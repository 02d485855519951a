import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import expit
from torch import distributions as td

from bayeskit.core.likelihood import (
    Categorical,
    Likelihood,
)
from bayeskit.core.posterior import SampledValues
from bayeskit.core.predictive import CategoricalPredictive, ContinuousPredictive

from .likelihoods import LaplaceNoise, Ordinal, Softmax, Waiting, brute_force, draw_case, values

DOUBLE = torch.float64


def test_five_lines_are_enough(generator):
    class Noise(Likelihood):
        def distribution(self, f):
            return td.Independent(td.Laplace(f, 0.5), 1)

    mean, variance, y = draw_case(Noise())
    for predictive in (
        Noise().predictive(values(mean, variance)),
        Noise().predictive(SampledValues(mean + variance.sqrt() * torch.randn(8, 5, 2, generator=generator))),
    ):
        assert isinstance(predictive, ContinuousPredictive)
        low, high = predictive.interval(0.9)
        assert (low < high).all() and predictive.sample(3, generator=generator).shape == (3, 5, 2)
        assert predictive.log_prob(y).shape == (5,)


def test_one_number_an_input_without_event(generator):
    mean, variance, y = draw_case(Waiting())
    for predictive in (
        Waiting().predictive(values(mean, variance)),
        Waiting().predictive(SampledValues(mean + variance.sqrt() * torch.randn(8, 5, 1, generator=generator))),
    ):
        assert isinstance(predictive, ContinuousPredictive)
        torch.testing.assert_close(predictive.log_prob(y), predictive.log_prob(y[:, None]))
        torch.testing.assert_close(
            predictive.cdf(predictive.quantile(0.01)), torch.full((5, 1), 0.01, dtype=DOUBLE), rtol=1e-6, atol=0
        )
        assert (predictive.cdf(-1.0) == 0).all() and predictive.sample(3, generator=generator).shape == (3, 5, 1)


def test_nodes_where_a_users_parameters_overflow_carry_no_mass():
    predictive = Waiting().predictive(values(torch.zeros(1, 1, dtype=DOUBLE), torch.full((1, 1), 1e4, dtype=DOUBLE)))
    # with a spread of 100 nats the rate is log-normal and y, on the log scale, that normal: p(y) = N(log y; 0, 1e4) / y
    np.testing.assert_allclose(predictive.log_prob([1.0]).item(), stats.norm.logpdf(0, 0, 100), atol=1e-2)


def test_users_labels_on_one_latent_and_on_several():
    mean, variance, _ = draw_case(Ordinal())
    predictive = Ordinal().predictive(values(mean, variance))
    assert (
        isinstance(predictive, CategoricalPredictive)
        and predictive.probs.shape == (5, 3)
        and predictive.rule == "quadrature"
    )
    above = brute_force(lambda f: 1 - expit(1 - f), mean[0].item(), variance[0].item())
    torch.testing.assert_close(predictive.probs[0, 2].item(), above, rtol=1e-9, atol=0)
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


@pytest.mark.monte_carlo
def test_curvature_of_a_users_likelihood_without_curvature_is_its_fisher_information():
    likelihood = LaplaceNoise(0.5)
    curvature = likelihood.curvature(torch.zeros(3, 2, dtype=DOUBLE), torch.ones(3, 2, dtype=DOUBLE))
    torch.testing.assert_close(curvature.diagonal(dim1=-2, dim2=-1), torch.full((3, 2), 4.0, dtype=DOUBLE))
    # off the diagonal the average of 256 signs over scale^2: standard error 4 / 16
    assert curvature[:, 0, 1].abs().max() < 1.25

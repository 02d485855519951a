import numpy as np
import pytest
import torch
from linear_operator import to_linear_operator
from scipy import integrate, stats
from scipy.special import expit, log_expit, log_ndtr
from torch import distributions as td

from bayeskit.core.likelihood import (
    Bernoulli,
    Categorical,
    Gaussian,
    Heteroscedastic,
    Likelihood,
    Poisson,
    StudentT,
)
from bayeskit.core.posterior import GaussianValues, SampledValues

from .likelihoods import LaplaceNoise, Waiting, brute_force, draw_case, values

DOUBLE = torch.float64


SCALAR = {  # likelihood, log p(y | f) by scipy, y
    "logit": (Bernoulli("logit"), lambda y, f: log_expit(f), 1.0),
    "probit": (Bernoulli("probit"), lambda y, f: log_ndtr(-f), 0.0),
    "student_t": (StudentT(3.0, 0.4), lambda y, f: stats.t(3, f, 0.4).logpdf(y), 1.7),
    "poisson": (Poisson(), lambda y, f: y * f - np.exp(f) - np.log(6.0), 3.0),
    "laplace": (LaplaceNoise(0.3), lambda y, f: stats.laplace(f, 0.3).logpdf(y), -0.4),
    "waiting": (Waiting(), lambda y, f: -f - y * np.exp(-f), 0.8),
}


@pytest.mark.parametrize("name", SCALAR)
@pytest.mark.parametrize(("mean", "variance"), [(0.3, 0.5), (-1.0, 4.0)])
def test_predictive_density_agrees_with_brute_force(name, mean, variance):
    likelihood, log_density, y = SCALAR[name]
    expected = brute_force(lambda f: float(np.exp(log_density(y, f))), mean, variance, cuts=(y,))
    predictive = likelihood.predictive(
        values(torch.tensor([[mean]], dtype=DOUBLE), torch.tensor([[variance]], dtype=DOUBLE))
    )
    np.testing.assert_allclose(
        predictive.log_prob(torch.tensor([y], dtype=DOUBLE)).item(), np.log(expected), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("name", ["logit", "probit", "student_t", "poisson", "waiting"])
def test_expected_log_prob_agrees_with_brute_force(name):
    likelihood, log_density, y = SCALAR[name]
    expected = brute_force(lambda f: float(log_density(y, f)), 0.3, 0.5)
    mean, variance = torch.tensor([[0.3]], dtype=DOUBLE), torch.tensor([[0.5]], dtype=DOUBLE)
    # 32 Gauss-Hermite nodes; the logarithm of a Student-t has branch points at distance sqrt(df) scale
    tolerance = 1e-3 if name == "student_t" else 1e-8
    result = likelihood.expected_log_prob(mean, variance, torch.tensor([y], dtype=DOUBLE))
    np.testing.assert_allclose(result.item(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("ratio", [1e-3, 0.03, 1.0])
@pytest.mark.parametrize("offset", [0.0, 0.37, -2.9, 6.0])
def test_no_comb_however_little_noise(ratio, offset):
    """A user's Gaussian by the generic path has the exact convolution, far below the spacing of any fixed nodes."""

    class Plain(Likelihood):
        def distribution(self, f):
            return td.Independent(td.Normal(f, ratio), 1)

    mean = torch.full((1, 1), 3.0, dtype=DOUBLE)
    predictive, exact = (
        likelihood.predictive(values(mean, mean / mean)) for likelihood in (Plain(), Gaussian(ratio**2, learn=False))
    )
    y = mean + offset
    torch.testing.assert_close(predictive.log_prob(y), exact.log_prob(y), rtol=0, atol=1e-9)
    torch.testing.assert_close(predictive.cdf(y), exact.cdf(y), rtol=0, atol=1e-8)
    torch.testing.assert_close(predictive.mean, exact.mean)
    torch.testing.assert_close(predictive.total, exact.total)


@pytest.mark.parametrize("ratio", [1e-3, 1.0])
def test_student_t_with_little_noise(ratio):
    """Against a convolution whose noise is resolved: the integral over the noise instead of over the function."""
    predictive = StudentT(4.0, ratio).predictive(
        values(torch.zeros(1, 1, dtype=DOUBLE), torch.ones(1, 1, dtype=DOUBLE))
    )
    for y in (0.0, 1.3, 6.0):
        expected = sum(
            integrate.quad(
                lambda e, y=y: stats.norm.pdf(y - ratio * e) * stats.t.pdf(e, 4),
                a,
                b,
                epsabs=0,
                epsrel=1e-12,
                limit=500,
            )[0]
            for a, b in ((-np.inf, 0), (0, y / ratio), (y / ratio, np.inf))
            if a != b
        )
        np.testing.assert_allclose(predictive.log_prob([y]).item(), np.log(expected), atol=1e-8)


def test_student_t_moments_are_exact():
    predictive = StudentT(2.5, 1.0).predictive(values(torch.zeros(2, 1), torch.ones(2, 1)))
    torch.testing.assert_close(predictive.total, torch.full((2, 1), 6.0))
    heavy = StudentT(1.5, 1.0).predictive(values(torch.zeros(2, 1), torch.ones(2, 1)))
    assert heavy.total.isinf().all() and heavy.interval(0.5)[0].isfinite().all()


def test_student_t_tends_to_gaussian():
    mean, variance, y = draw_case(Gaussian())
    predictive, limit = (
        StudentT(1e8, 0.5).predictive(values(mean, variance)),
        Gaussian(0.25).predictive(values(mean, variance)),
    )
    torch.testing.assert_close(predictive.log_prob(y), limit.log_prob(y), rtol=0, atol=1e-6)


def test_heteroscedastic_predictive_agrees_with_sampling_and_handles_correlation(generator):
    mean = torch.tensor([[0.5, -0.3]], dtype=DOUBLE)
    covariance = torch.tensor([[0.4, 0.3], [0.3, 0.6]], dtype=DOUBLE)
    predictive = Heteroscedastic().predictive(GaussianValues(mean, to_linear_operator(covariance)))
    y = torch.tensor([[1.2]], dtype=DOUBLE)

    def given_g(g):
        m, v = 0.5 + 0.3 / 0.6 * (g + 0.3), 0.4 - 0.09 / 0.6 + np.exp(g)
        return stats.norm(m, np.sqrt(v)).pdf(1.2)

    np.testing.assert_allclose(predictive.log_prob(y).item(), np.log(brute_force(given_g, -0.3, 0.6)), atol=1e-10)
    torch.testing.assert_close(predictive.mean.item(), 0.5)
    torch.testing.assert_close(predictive.total.item(), 0.4 + np.exp(-0.3 + 0.3))


def test_bernoulli_probit_is_exact_and_tails_hold():
    mean, variance = torch.tensor([[0.4], [-1e3], [1e3]], dtype=DOUBLE), torch.ones(3, 1, dtype=DOUBLE)
    predictive = Bernoulli("probit").predictive(values(mean, variance))
    expected = stats.norm.logcdf(mean.numpy() / 2**0.5)[:, 0]
    np.testing.assert_allclose(predictive.log_prob(torch.ones(3)), expected, rtol=1e-10)
    assert predictive.rule == "exact" and (predictive.aleatoric[1:] == 0).all()
    tail = Bernoulli("logit").predictive(values(mean, variance))
    # far in the tail the logistic function is exp(f): E exp(f) = exp(m + v / 2)
    np.testing.assert_allclose(tail.log_prob([1, 1, 0]), [tail.log_prob([1, 1, 1])[0], -999.5, -999.5], rtol=1e-9)


@pytest.mark.parametrize("link", ["logit", "probit"])
def test_bernoulli_entropies_agree_with_brute_force_for_any_latent_spread(link):
    cdf = {"logit": expit, "probit": stats.norm.cdf}[link]
    mean = torch.tensor([[0.7], [0.7], [2.0]], dtype=DOUBLE)
    variance = torch.tensor([[0.5], [15.0], [400.0]], dtype=DOUBLE)
    predictive = Bernoulli(link).predictive(values(mean, variance))
    for i in range(3):
        m, v = mean[i].item(), variance[i].item()
        cuts = (-30.0, -10.0, 0.0, 10.0, 30.0)
        entropy = brute_force(lambda f: float(stats.bernoulli(cdf(f)).entropy()), m, v, cuts)
        np.testing.assert_allclose(predictive.aleatoric[i], entropy, rtol=1e-6)
        np.testing.assert_allclose(predictive.probs[i, 1], brute_force(lambda f: float(cdf(f)), m, v, cuts), rtol=1e-9)
    torch.testing.assert_close(predictive.probs.sum(-1), torch.ones(3, dtype=DOUBLE))


@pytest.mark.monte_carlo
def test_categorical_on_correlated_logits_agrees_with_sampling(generator):
    mean = torch.randn(4, 3, generator=generator, dtype=DOUBLE)
    root = torch.randn(12, 12, generator=generator, dtype=DOUBLE) / 3
    gaussian = GaussianValues(mean, to_linear_operator(root @ root.mT))
    predictive = Categorical(3).predictive(gaussian)
    draws = gaussian.sample(50000, generator=generator).softmax(-1)
    error = 5 * draws.std(0) / 50000**0.5 + 2e-3  # 5 standard errors, and that of 512 Sobol draws
    assert ((draws.mean(0) - predictive.probs).abs() < error).all()
    entropy = td.Categorical(probs=draws).entropy()
    assert ((entropy.mean(0) - predictive.aleatoric).abs() < 5 * entropy.std(0) / 50000**0.5 + 3e-3).all()
    torch.testing.assert_close(predictive.probs.sum(-1), torch.ones(4, dtype=DOUBLE))


def test_two_class_categorical_is_bernoulli_on_the_difference():
    mean, variance = torch.tensor([[0.2, 1.0]], dtype=DOUBLE), torch.tensor([[0.3, 0.5]], dtype=DOUBLE)
    two = Categorical(2).predictive(values(mean, variance))
    one = Bernoulli("logit").predictive(values(mean[:, 1:] - mean[:, :1], variance.sum(-1, keepdim=True)))
    torch.testing.assert_close(two.probs, one.probs, rtol=0, atol=1e-3)  # 512 Sobol draws
    torch.testing.assert_close(two.aleatoric, one.aleatoric, rtol=0, atol=1e-3)


@pytest.mark.monte_carlo
def test_poisson_predictive_is_a_distribution_of_counts(generator):
    predictive = Poisson().predictive(values(torch.tensor([[1.0]], dtype=DOUBLE), torch.tensor([[0.4]], dtype=DOUBLE)))
    counts = torch.arange(400, dtype=DOUBLE)[:, None, None]
    mass = predictive.log_prob(counts).exp()
    torch.testing.assert_close(mass.sum().item(), 1.0, rtol=0, atol=1e-9)
    torch.testing.assert_close(predictive.cdf(counts[7]).item(), mass[:8].sum().item(), rtol=0, atol=1e-9)
    torch.testing.assert_close(predictive.cdf(7.5), predictive.cdf(7.0))
    torch.testing.assert_close(predictive.mean.item(), np.exp(1.2))
    torch.testing.assert_close(predictive.total.item(), np.exp(1.2) + np.exp(2.4) * np.expm1(0.4))
    median = predictive.quantile(0.5)
    assert predictive.cdf(median) >= 0.5 and predictive.cdf(median - 1) < 0.5 and median == median.round()
    draws = predictive.sample(4000, generator=generator)
    assert abs(draws.mean() - predictive.mean) < 5 * predictive.std / 4000**0.5
    torch.testing.assert_close(predictive.affine(0.0, 2.0).log_prob(2 * counts[3]), predictive.log_prob(counts[3]))


def test_draws_give_the_mixture():
    draws = torch.tensor([0.0, 3.0], dtype=DOUBLE).reshape(2, 1, 1)
    predictive = Gaussian(0.04).predictive(SampledValues(draws))
    np.testing.assert_allclose(predictive.log_prob([3.0]), [np.log(0.5 * stats.norm.pdf(0, 0, 0.2))], rtol=1e-9)
    np.testing.assert_allclose(
        [predictive.total.item(), predictive.aleatoric.item(), predictive.epistemic.item()],
        [2.29, 0.04, 2.25],
        rtol=1e-6,
    )
    assert predictive.rule == "mixture of 2 draws"
    labels = Bernoulli().predictive(SampledValues(draws))
    np.testing.assert_allclose(labels.probs[0, 1], (0.5 + expit(3.0)) / 2)


def test_noise_that_varies_is_not_blamed_for_what_the_function_does_not_know():
    mean = torch.tensor([[1.0, -2.0], [0.0, 0.5]], dtype=DOUBLE)
    variance = torch.tensor([[0.7, 0.3], [2.0, 0.1]], dtype=DOUBLE)
    predictive = Heteroscedastic().predictive(GaussianValues(mean, to_linear_operator(torch.diag(variance.flatten()))))
    noise = (mean[:, 1:] + variance[:, 1:] / 2).exp()  # the mean of a log-normal
    assert torch.allclose(predictive.aleatoric, noise, rtol=1e-10)
    assert torch.allclose(predictive.epistemic, variance[:, :1], rtol=1e-10)
    assert torch.allclose(predictive.total, predictive.variance)

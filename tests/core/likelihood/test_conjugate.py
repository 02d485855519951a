"""Likelihoods that are Gaussian in f: what follows from their observations, and the Dirichlet one."""

import copy
import pickle

import pytest
import torch
from torch import distributions as td

from bayeskit.core.likelihood import Categorical, Conjugate, Dirichlet, Gaussian, expectations
from bayeskit.core.posterior import SampledValues
from bayeskit.core.predictive import CategoricalPredictive
from bayeskit.core.predictive.quadrature import sobol_normals

from .likelihoods import draw_case, values

DOUBLE = torch.float64


def case(n=5, c=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, c, (n,), generator=g)
    mean = torch.randn(n, c, generator=g, dtype=DOUBLE)
    return mean, torch.rand(n, c, generator=g, dtype=DOUBLE) + 0.1, y


def test_values_match_the_first_two_moments_of_the_gamma_variables():
    """exp of N(value, noise) has the mean alpha and the variance alpha of a Gamma(alpha, 1) variable."""
    likelihood = Dirichlet(3, concentration=0.2)
    v, noise = likelihood.observations(torch.tensor([0, 2]))
    alpha = 0.2 + torch.tensor([[1.0, 0, 0], [0, 0, 1]], dtype=DOUBLE)
    torch.testing.assert_close((v + noise / 2).exp(), alpha)
    torch.testing.assert_close((2 * v + noise).exp() * noise.expm1(), alpha)


@pytest.mark.parametrize("likelihood", [Gaussian([0.2, 0.5]), Dirichlet(3)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_everything_follows_from_the_observations(likelihood, dtype):
    mean, variance, y = draw_case(likelihood, dtype=dtype)
    v, noise = (t.to(dtype) for t in likelihood.observations(y))
    predictive = td.Normal(v, noise.expand(v.shape).sqrt())
    torch.testing.assert_close(likelihood.log_prob(mean, y), predictive.log_prob(mean).sum(-1))
    expected = (predictive.log_prob(mean) - variance / (2 * noise)).sum(-1)
    torch.testing.assert_close(likelihood.expected_log_prob(mean, variance, y), expected)
    mean.requires_grad_()
    variance.requires_grad_()
    total = likelihood.expected_log_prob(mean, variance, y).sum()
    by_mean, by_variance = torch.autograd.grad(total, (mean, variance))
    alpha, beta = likelihood.site_gradients(mean, variance, y)
    torch.testing.assert_close(alpha, by_mean)
    torch.testing.assert_close(beta, -2 * by_variance)
    torch.testing.assert_close(likelihood.curvature(mean, y), torch.diag_embed(beta))
    assert alpha.dtype == beta.dtype == dtype


def test_predictions_are_those_of_the_softmax():
    mean, variance, y = case()
    likelihood, softmax = Dirichlet(3), Categorical(3)
    predictive = likelihood.predictive(values(mean, variance))
    assert isinstance(predictive, CategoricalPredictive)
    torch.testing.assert_close(predictive.probs, softmax.predictive(values(mean, variance)).probs)
    draws = SampledValues(mean.expand(3, 5, 3))
    torch.testing.assert_close(likelihood.predictive(draws).log_prob(y), softmax.predictive(draws).log_prob(y))


def test_copies_pickles_and_settings():
    mean, _, y = case()
    likelihood = Dirichlet(3, concentration=0.1)
    for again in (copy.deepcopy(likelihood), pickle.loads(pickle.dumps(likelihood))):
        assert torch.equal(again.log_prob(mean, y), likelihood.log_prob(mean, y))
    assert repr(likelihood) == "Dirichlet(3, concentration=0.1)"
    with pytest.raises(ValueError, match="`num_classes`"):
        Dirichlet(0)
    with pytest.raises(ValueError, match="`concentration`"):
        Dirichlet(2, concentration=0.0)


def test_a_users_own_needs_its_observations():
    class Incomplete(Conjugate):
        def distribution(self, f):
            return td.Independent(td.Normal(f, 1.0), 1)

    with pytest.raises(TypeError, match="observations"):
        Incomplete()


@pytest.mark.parametrize("c", [3, 10])
def test_expected_softmax_has_the_derivatives_of_its_sum_over_draws(c):
    """The derivatives by hand are those of automatic differentiation through the same draws."""
    mean, variance, y = case(c=c)
    variance[0] = 1e-6
    z, _ = expectations.points(mean, shared=False)
    slopes = []
    for by_hand in (True, False):
        m, v = mean.clone().requires_grad_(), variance.clone().requires_grad_()
        if by_hand:
            value = Categorical(c).expected_log_prob(m, v, y)
        else:
            value = m.gather(-1, y[:, None])[:, 0] - (m + v.sqrt() * z).logsumexp(-1).mean(0)
        slopes.append((value.detach(), *torch.autograd.grad((value * torch.arange(1, 6)).sum(), (m, v))))
    for one, two in zip(*slopes, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_expected_softmax_without_variance_is_finite():
    mean, variance, y = case()
    m, v = mean.requires_grad_(), torch.zeros_like(variance).requires_grad_()
    value = Categorical(3).expected_log_prob(m, v, y)
    torch.testing.assert_close(value, Categorical(3).log_prob(mean, y))
    by_mean, by_variance = torch.autograd.grad(value.sum(), (m, v))
    p = mean.detach().softmax(-1)
    torch.testing.assert_close(by_variance, -p * (1 - p) / 2)
    torch.testing.assert_close(by_mean, torch.nn.functional.one_hot(y, 3) - p)


@pytest.mark.monte_carlo
def test_expected_softmax_is_accurate():
    """512 Sobol draws against 2^16: a few 1e-3 nats for ten latents of unit variance."""
    mean, variance, y = case(n=20, c=10)
    z = sobol_normals(2**16, 10)
    truth = mean.gather(-1, y[:, None])[:, 0] - (mean + variance.sqrt() * z[:, None]).logsumexp(-1).mean(0)
    assert (Categorical(10).expected_log_prob(mean, variance, y) - truth).abs().max() < 3e-3

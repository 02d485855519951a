"""The divergence from a prior: torch.distributions is the reference, independent and correlated."""

import torch
from linear_operator import to_linear_operator
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from bayeskit.bnn import GaussianWeights, gaussian_prior
from bayeskit.bnn.variational_inference.kl import Divergence
from bayeskit.bnn.variational_inference.sparse_support import Support
from bayeskit.core import operators


def mean_field(generator, p=6):
    mean = torch.randn(p, generator=generator, dtype=torch.float64)
    return mean, torch.randn(p, generator=generator, dtype=torch.float64)


def test_from_the_librarys_prior(generator):
    prior = gaussian_prior(torch.nn.Linear(5, 1, dtype=torch.float64)).weights
    mean, log_scale = mean_field(generator)
    reference = Normal(prior.flat_mean, prior.covariance.diagonal().sqrt())
    exact = kl_divergence(Independent(Normal(mean, log_scale.exp()), 1), Independent(reference, 1))
    assert torch.allclose(Divergence.build(prior, Support(prior.mean))(mean, log_scale), exact, rtol=1e-12)


def test_from_a_previous_correlated_posterior(generator):
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    covariance = root @ root.mT + torch.eye(6, dtype=torch.float64)
    center = torch.randn(6, generator=generator, dtype=torch.float64)
    mean, log_scale = mean_field(generator)
    exact = kl_divergence(
        MultivariateNormal(mean, torch.diag((2 * log_scale).exp())), MultivariateNormal(center, covariance)
    )
    for operator in (to_linear_operator(covariance), operators.Inverse(torch.linalg.inv(covariance))):
        divergence = Divergence.build(GaussianWeights({"w": center}, operator), Support({"w": center}))
        assert not divergence.independent
        assert torch.allclose(divergence(mean, log_scale), exact, rtol=1e-9)


def test_scales_close_to_zero_in_float32():
    prior = gaussian_prior(torch.nn.Linear(1, 1)).weights
    value = Divergence.build(prior, Support(prior.mean))(torch.zeros(2), torch.full((2,), -200.0))
    assert torch.isfinite(value) and abs(float(value) - 399.0) < 1e-3  # two times 200 - 1/2

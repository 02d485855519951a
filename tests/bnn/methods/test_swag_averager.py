"""SWAG's Gaussian: moments of the collected weights against plain sums."""

import io

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.bnn.networks.functional import flatten
from bayeskit.core import operators


def path(generator, steps, p=5):
    return torch.randn(steps, p, generator=generator, dtype=torch.float64).cumsum(0)


def averaged(weights, num_deviations):
    network = nn.Linear(weights.shape[1], 1, bias=False, dtype=torch.float64)
    averager = bnn.SWAGAverager(network, num_deviations)
    for w in weights:
        network.weight.data.copy_(w)
        averager.collect(network)
    return averager


def test_moments_are_plain_sums(generator):
    weights = path(generator, 12)
    posterior = averaged(weights, 4).posterior()
    running = weights.cumsum(0) / torch.arange(1, 13)[:, None]
    last = (weights - running)[-4:]
    dense = torch.diag(weights.var(0, unbiased=False)) / 2 + last.mT @ last / (2 * 3)
    assert torch.allclose(posterior.flat_mean, weights.mean(0), atol=1e-12)
    assert torch.allclose(posterior.covariance.to_dense(), dense, atol=1e-12)


@pytest.mark.parametrize(("steps", "num_deviations"), [(6, 0), (6, 1), (1, 20)])
def test_fewer_than_two_deviations_leave_the_diagonal(steps, num_deviations, generator):
    weights = path(generator, steps)
    covariance = averaged(weights, num_deviations).covariance
    assert torch.allclose(covariance.to_dense(), torch.diag(weights.var(0, unbiased=False)), atol=1e-12)


@pytest.mark.monte_carlo
def test_draws_have_the_covariance(generator):
    """Five standard errors of a covariance of s Gaussian draws: sqrt((S_ii S_jj + S_ij^2) / s)."""
    posterior, s = averaged(path(generator, 9), 5).posterior(), 40_000
    draws = flatten(posterior.sample(s, generator=generator), posterior.mean)
    dense = posterior.covariance.to_dense()
    variances = dense.diagonal()
    error = ((variances[:, None] * variances + dense.square()) / s).sqrt()
    assert ((torch.cov(draws.mT) - dense).abs() < 5 * error).all()
    assert ((draws.mean(0) - posterior.flat_mean).abs() < 5 * (variances / s).sqrt()).all()


def test_constant_weights_have_variance_zero(generator):
    posterior = averaged(torch.ones(7, 3, dtype=torch.float64), 4).posterior()
    draws = posterior.sample(5, generator=generator)["weight"]
    assert torch.equal(draws, torch.ones(5, 1, 3, dtype=torch.float64))


def test_second_moments_far_from_zero_are_accurate():
    """Single precision at 1,000 with steps of 0.01: the difference of the raw moments would be off by a thousand."""
    weights = 1000 + 0.0078125 * torch.tensor([[-1.0], [1.0]] * 20)
    network = nn.Linear(1, 1, bias=False)
    averager = bnn.SWAGAverager(network, 0)
    for w in weights:
        network.weight.data.fill_(float(w))
        averager.collect(network)
    assert float(averager.covariance.diagonal()) == pytest.approx(0.0078125**2, rel=1e-2)


def test_state_is_saved_and_loaded(generator):
    weights, file = path(generator, 7), io.BytesIO()
    first = averaged(weights[:4], 3)
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = bnn.SWAGAverager(nn.Linear(5, 1, bias=False, dtype=torch.float64), 3)
    second.load_state_dict(torch.load(file))
    for w in weights[4:]:
        second.add(w)
    whole = averaged(weights, 3)
    assert torch.equal(second.covariance.to_dense(), whole.covariance.to_dense())


def test_log_density_by_the_low_rank_form(generator):
    posterior = averaged(path(generator, 9), 3).posterior()
    reference = torch.distributions.MultivariateNormal(posterior.flat_mean, posterior.covariance.to_dense())
    w = torch.randn(5, generator=generator, dtype=torch.float64)
    assert torch.allclose(posterior.log_density(w), reference.log_prob(w), rtol=1e-8)
    assert torch.allclose(operators.logdet(posterior.covariance), reference.covariance_matrix.logdet(), rtol=1e-8)


def test_half_precision_is_summed_in_single():
    network = nn.Linear(3, 1, dtype=torch.bfloat16)
    averager = bnn.SWAGAverager(network)
    averager.collect(network)
    assert averager.mean.dtype == torch.float32
    assert averager.posterior().mean["weight"].dtype == torch.bfloat16


def test_nothing_collected_is_an_error():
    with pytest.raises(RuntimeError, match="call `collect"):
        bnn.SWAGAverager(nn.Linear(1, 1)).posterior()

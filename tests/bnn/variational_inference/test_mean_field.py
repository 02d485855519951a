"""Mean-field variational inference: closed forms, and refused settings."""

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.core.likelihood import Bernoulli, Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

from .test_variational_module import exact_bound, gradient, regression

NOISE = 0.25


def known_noise():
    return Gaussian(noise=NOISE).double().requires_grad_(False)


def precision_and_mean(data):
    """The exact posterior of Bayesian regression under the library's prior: precision (p, p) and mean (p,)."""
    inputs = torch.cat([data.x, torch.ones(len(data), 1, dtype=torch.float64)], -1)
    d = data.x.shape[1]
    prior = torch.diag(torch.tensor([float(d)] * d + [1.0], dtype=torch.float64))
    precision = prior + inputs.mT @ inputs / NOISE
    return precision, torch.linalg.solve(precision, inputs.mT @ data.y[:, 0] / NOISE)


def test_the_bound_of_linear_regression_is_stationary_at_the_exact_means_and_inverse_precisions(generator):
    data = regression(generator)
    precision, mean = precision_and_mean(data)
    q = bnn.variational(nn.Linear(3, 1, dtype=torch.float64))
    with torch.no_grad():
        q.mean.copy_(mean)
        q.log_scale.copy_(-0.5 * precision.diagonal().log())
    slope = gradient(exact_bound(q, known_noise(), data), q)
    assert slope.abs().max() < 1e-10 * precision.diagonal().max()


@pytest.mark.monte_carlo
@pytest.mark.parametrize("estimator", ["weight", "local", "flipout"])
def test_the_optimum_of_linear_regression(estimator, generator):
    data = regression(generator)
    training = Training(lr=0.05, max_epochs=250, batch_size=None, schedule="cosine")
    method = bnn.MeanFieldVI(estimator=estimator, num_samples=4, prior_precision=1.0, training=training)
    prior = bnn.gaussian_prior(nn.Linear(3, 1, dtype=torch.float64))
    fit = method.infer(prior, known_noise(), data, generator=generator)
    precision, mean = precision_and_mean(data)
    variance = fit.posterior.weights.covariance.diagonal()
    # What is left of the noise of the gradients after a cosine schedule of 250 steps with 4 draws each.
    assert torch.allclose(variance, 1 / precision.diagonal(), rtol=0.35)
    assert ((fit.posterior.weights.flat_mean - mean).abs() < 0.25 * variance.sqrt()).all()
    evidence = torch.distributions.MultivariateNormal(
        torch.zeros(20, dtype=torch.float64),
        NOISE * torch.eye(20) + data.x @ data.x.mT / 3 + 1,
    ).log_prob(data.y[:, 0])
    # The bound at the optimum is below the evidence by the correlations that independence cannot express.
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    assert fit.log_evidence.kind == "lower bound"
    assert float(fit.log_evidence) == pytest.approx(float(evidence - gap), abs=1.0)  # 32 draws
    assert isinstance(fit.posterior.push_forward, bnn.Linearize)


@pytest.mark.monte_carlo
def test_a_previous_posterior_is_used_unchanged(generator):
    data = regression(generator, n=40)
    training = Training(lr=0.05, max_epochs=250, batch_size=None, schedule="cosine")
    method = bnn.MeanFieldVI(num_samples=4, training=training)
    laplace = bnn.Laplace(prior_precision=1.0, pretrained=True)
    prior = bnn.gaussian_prior(nn.Linear(3, 1, dtype=torch.float64))
    yesterday = laplace.infer(prior, known_noise(), data.rows(slice(0, 20)), generator=generator)
    fit = method.infer(yesterday.posterior, known_noise(), data.rows(slice(20, 40)), generator=generator)
    precision, mean = precision_and_mean(data)
    variance = fit.posterior.weights.covariance.diagonal()
    assert torch.allclose(variance, 1 / precision.diagonal(), rtol=0.35)
    assert ((fit.posterior.weights.flat_mean - mean).abs() < 0.25 * variance.sqrt()).all()
    assert fit.diagnostics["prior precision"] == 1.0


def test_a_deep_network_uses_monte_carlo_with_the_draws_given(generator):
    data = regression(generator, n=40)
    method = bnn.MeanFieldVI(num_draws=5, training=Training(max_epochs=3, validation_fraction=0.15))
    prior = bnn.default_prior(None, data.x, 1, generator=generator)
    fit = method.infer(prior, Gaussian(), data, generator=generator)
    assert fit.posterior(data.x).draws.shape == (5, 40, 1)
    assert len(fit.history["loss"]) == 3 * 3 and fit.diagnostics["held-out data"] == 6


def test_networks_with_batch_norm_and_dropout(generator):
    x = torch.randn(60, 4, generator=generator)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
    prior = bnn.gaussian_prior(net)
    data = Data(x, (x[:, 0] > 0).long())
    again = [bnn.MeanFieldVI.quickly().infer(prior, Bernoulli(), data, generator=torch.Generator()) for _ in range(2)]
    means = [fit.posterior(x).mean for fit in again]
    assert torch.equal(*means) and torch.isfinite(means[0]).all()
    assert again[0].posterior.network[1].num_batches_tracked > 0 and net[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"estimator": "locale"}, "`estimator` must be one of .*did you mean 'local'"),
        ({"num_samples": 0}, "`num_samples` must be a positive integer"),
        ({"num_draws": -1}, "`num_draws` must be a positive integer"),
        ({"kl_weight": 0.0}, "`kl_weight` must be a positive number"),
        ({"initial_scale": -1.0}, "`initial_scale` must be a positive number"),
        ({"prior_precision": "evidence"}, "`prior_precision` must be one of"),
    ],
)
def test_settings_out_of_range(settings, words, generator):
    data = regression(generator)
    prior = bnn.gaussian_prior(nn.Linear(3, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=words):
        bnn.MeanFieldVI(**settings).infer(prior, Gaussian(), data, generator=generator)


@pytest.mark.monte_carlo
@pytest.mark.parametrize("method", [bnn.MeanFieldVI, bnn.SSVI])
@pytest.mark.parametrize("count", [20, 3000])
def test_the_bound_states_its_monte_carlo_error(method, count, generator):
    """Within five standard errors of the bound in closed form, which is below the evidence; from two draws up."""
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + NOISE**0.5 * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    data, network = Data(x, y), nn.Linear(3, 1, dtype=torch.float64)
    training = Training(lr=0.02, max_epochs=20, batch_size=None)
    settings = {"prior_precision": 1.0, "training": training}
    fit = method(**settings).infer(bnn.gaussian_prior(network), known_noise(), data, generator=generator)
    weights = fit.posterior.weights
    mean, variance = weights.flat_mean, weights.covariance.diagonal()
    inputs = torch.cat([x, torch.ones(count, 1, dtype=torch.float64)], -1)
    squares = (y[:, 0] - inputs @ mean).square() + inputs.square() @ variance
    prior = torch.tensor([3.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    divergence = 0.5 * (prior * (variance + mean.square()) - 1 - (prior * variance).log()).sum()
    normal = -0.5 * (squares / NOISE + torch.tensor(2 * torch.pi * NOISE).log())
    error = fit.log_evidence.standard_error
    assert error > 0
    assert abs(fit.log_evidence.value - float(normal.sum() - divergence)) < 5 * error * (1 if count == 20 else 4)
    assert fit.log_evidence.shifted(1.0).standard_error == error

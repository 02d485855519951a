"""SWAG as an inference: the collected Gaussian, and its push-forward."""

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.bnn.networks.functional import flatten
from bayeskit.core.likelihood import Categorical, Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

from ..example_networks import Convolutional, Recursive, images, lines, seeded

QUICK = Training(lr=1e-2, max_epochs=6, batch_size=16, patience=5, validation_fraction=0.2)


def fit(data, network, likelihood=None, **settings):
    inference = bnn.SWAG(**{"num_collected": 6, "training": QUICK, **settings})
    prior = bnn.gaussian_prior(network)
    return inference.infer(prior, likelihood or Gaussian(), data, generator=torch.Generator().manual_seed(1))


@pytest.mark.monte_carlo
def test_sgd_iterates_have_the_stationary_variance():
    """One weight, y = w x with unit noise: SGD is an autoregression whose variance is known in closed form.

    Loss per row (w - y)^2 / 2 + w^2 / (2 n): `w' = w - lr (w (1 + 1/n) - mean of the batch)`, a contraction by
    a = 1 - lr (1 + 1/n). An epoch sees every row once, so the means of its ten batches are exchangeable with a sum that
    stays: the noise of an epoch is `lr^2 var sum_i (a^i - average)^2 10 / 9`, and weights taken once an epoch have that
    variance over `1 - a^20`.
    """
    n, size, lr = 200, 20, 0.2
    y = torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = Data(torch.ones(n, 1, dtype=torch.float64), y)
    network = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    training = Training(lr=lr, optimizer="sgd", momentum=0.0, max_epochs=20, batch_size=size)
    s = 3000
    likelihood = Gaussian(1.0, learn=False)
    result = fit(data, network, likelihood, training=training, num_collected=s, num_deviations=0, prior_precision=1.0)
    a = 1 - lr * (1 + 1 / n)
    steps = a ** torch.arange(n // size - 1, -1, -1, dtype=torch.float64)  # weights of the batches of one epoch
    spread = y.var() / size  # of one batch's mean; the means of all batches of an epoch add up to a constant
    epoch = lr**2 * spread * (steps - steps.mean()).square().sum() * (1 + 1 / (n / size - 1)) * (1 - size / n)
    expected = epoch / (1 - a ** (2 * n // size))
    # Standard error of a variance of s draws, with the autocorrelation a^10 of 0.1: 5 sqrt(2 / s) * 1.02.
    assert float(result.posterior.weights.covariance.diagonal()) == pytest.approx(float(expected), rel=0.14)


def test_the_gaussian_is_linearized(generator):
    result = fit(lines(generator), bnn.MLP(2, 1, hidden=(5,), dtype=torch.float64))
    posterior = result.posterior
    assert isinstance(posterior.weights, bnn.GaussianWeights) and isinstance(posterior.push_forward, bnn.Linearize)
    assert len(result.history["collecting"]) == 6
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    assert torch.allclose(posterior(x).mean, posterior.network(x))
    held = dict(posterior.network.named_parameters())
    assert all(torch.equal(held[name], value) for name, value in posterior.weights.mean.items())


def test_every_draw_has_its_own_batch_statistics(generator):
    x, labels = images(generator)
    posterior = fit(Data(x, labels), seeded(Convolutional), Categorical(3), num_samples=4).posterior
    buffers = posterior.weights.buffers
    assert buffers["norm.running_mean"].shape == (4, 4)
    assert (buffers["norm.running_var"].std(0) > 0).all()
    assert posterior(x).draws.shape == (4, 60, 3)
    assert torch.allclose(posterior(x[:7]).draws, posterior(x).draws[:, :7], atol=1e-5)


def test_a_last_batch_of_one_sample_through_batch_norm():
    """51 observations hold out 10; the other 41 are collected in batches of 10 and one of 1."""
    g = torch.Generator().manual_seed(0)
    network = seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).double())
    data = lines(g, n=51)
    posterior = fit(data, network).posterior
    assert posterior(data.x).draws.isfinite().all()


def test_statistics_of_draws_are_those_of_torch(generator):
    network = seeded(Convolutional)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = images(generator)[0]
    draws = {name: torch.stack([value, 2 * value]).detach() for name, value in network.named_parameters()}
    batches = [x[:20], x[20:40], x[40:]]
    found = bnn.statistics_of_draws(network, draws, batches)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.load_state_dict({**before, **{name: value[1] for name, value in draws.items()}})
    network.drop.p = 0.0
    torch.optim.swa_utils.update_bn(batches, network)
    assert torch.allclose(found["norm.running_mean"][1], network.norm.running_mean, atol=1e-6)
    assert torch.allclose(found["norm.running_var"][1], network.norm.running_var, atol=1e-5)


def test_control_flow_on_values_uses_stored_draws(generator):
    data = lines(generator, dtype=torch.float32)
    posterior = fit(data, seeded(Recursive), num_samples=5).posterior
    assert posterior(data.x).draws.shape == (5, 60, 1)


def test_a_posterior_is_the_next_prior(generator):
    first = fit(lines(generator), bnn.MLP(2, 1, hidden=(3,), dtype=torch.float64))
    inference = bnn.SWAG(num_collected=4, training=QUICK)
    second = inference.infer(first.posterior, first.likelihood, lines(generator), generator=generator)
    before, after = (f.posterior.weights for f in (first, second))
    assert not torch.equal(flatten(before.mean, before.mean), flatten(after.mean, after.mean))


def test_one_observation_gives_finite_variances(generator):
    posterior = fit(lines(generator, n=1), nn.Linear(2, 1, dtype=torch.float64), num_deviations=0).posterior
    assert torch.isfinite(posterior(torch.ones(1, 2, dtype=torch.float64)).variance).all()


@pytest.mark.parametrize(
    "settings",
    [{"num_collected": 0}, {"num_deviations": -1}, {"lr": 0.0}, {"prior_precision": "evidence"}, {"num_samples": 0}],
)
def test_settings_are_checked_by_name(settings, generator):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must be"):
        fit(lines(generator), nn.Linear(2, 1).double(), **settings)

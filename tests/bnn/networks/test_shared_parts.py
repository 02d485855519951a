"""Networks in which a module runs twice, two modules share a weight, or the last layer is shared."""

import copy

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.bnn.networks.functional import call, parameters
from bayeskit.bnn.networks.last_layer import find_head
from bayeskit.bnn.networks.layers import aliases
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

from ..example_networks import seeded

QUICK = Training(lr=1e-2, max_epochs=4, batch_size=32, validation_fraction=0.2)
METHODS = {
    "map": bnn.MAP(training=QUICK),
    "laplace": bnn.Laplace(subset="all", training=QUICK),
    "ensemble": bnn.DeepEnsemble(num_members=2, training=QUICK),
    "mcmc": bnn.MCMC(num_chains=1, num_samples=4, burn_in=4, start_steps=5),
}


def twice(last=1):
    """One module at two places."""
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(3, last))


def tied():
    """Two modules with one weight."""
    network = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    network[2].weight = network[0].weight
    return network


def rows(generator, n=40):
    x = torch.randn(n, 3, generator=generator)
    return Data(x, x.sum(-1, keepdim=True))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("build", [twice, tied])
def test_every_method_on_shared_weights(name, build, generator):
    network, data = seeded(build), rows(generator)
    before = copy.deepcopy(network)
    prior = bnn.gaussian_prior(network)
    fit = METHODS[name].infer(prior, Gaussian(), data, generator=generator)
    values = [fit.posterior(data.x) for _ in range(2)]
    assert torch.isfinite(values[0].mean).all() and torch.equal(values[0].mean, values[1].mean)
    for now, then in zip(network.parameters(), before.parameters(), strict=True):
        assert isinstance(now, nn.Parameter) and torch.equal(now, then)
    assert torch.equal(network(data.x), before(data.x))
    assert len(list(fit.posterior.network.parameters())) == len(list(before.parameters()))


@pytest.mark.parametrize("build", [twice, tied])
def test_shared_values_are_replaced_everywhere_and_restored(build, generator):
    network, x = seeded(build), rows(generator).x
    other = seeded(build, seed=1)
    before = network(x)
    assert torch.allclose(call(network, parameters(other), x), other(x))
    assert torch.equal(network(x), before)
    assert aliases(network) == ({"0.weight": ["2.weight"]} if build is tied else {})


def test_factors_of_shared_weights_are_refused_by_name(generator):
    inference = bnn.Laplace(subset="all", structure="kronecker", pretrained=True)
    with pytest.raises(ValueError, match=r"'0.weight' is also '2.weight'.*structure='diagonal'"):
        inference.infer(bnn.gaussian_prior(seeded(tied)), Gaussian(), rows(generator), generator=generator)


def test_a_last_layer_used_elsewhere_too_is_no_head(generator):
    x = rows(generator).x
    layer = nn.Linear(3, 3)
    repeated = nn.Sequential(layer, nn.Tanh(), layer)
    sharing = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    sharing[2].weight = sharing[0].weight
    assert find_head(repeated, x) is None and find_head(sharing, x) is None
    assert find_head(seeded(twice), x).name == "4"


class FirstOutput(nn.Module):
    """Returns a column of its last layer."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x)[:, 0]


def test_a_slice_of_the_last_layer_is_no_head(generator):
    data = rows(generator)
    assert find_head(FirstOutput(), data.x) is None
    inference = bnn.Laplace(subset="all", pretrained=True)
    fit = inference.infer(bnn.gaussian_prior(seeded(FirstOutput)), Gaussian(), data, generator=generator)
    assert fit.posterior(data.x).covariance.shape == (40, 40)


def test_a_last_layer_frozen_in_part(generator):
    network, data = seeded(twice), rows(generator)
    network[4].bias.requires_grad_(False)
    fit = bnn.Laplace(training=QUICK).infer(bnn.gaussian_prior(network), Gaussian(), data, generator=generator)
    assert list(fit.posterior.weights.mean) == ["4.weight"]


@pytest.mark.parametrize("width", [1, 3])
def test_the_bias_of_the_last_layer_alone(width, generator):
    """Its variance is `1 / (1 + n / noise)` for any features."""
    data = rows(generator)
    network = seeded(lambda: nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1)))
    inference = bnn.Laplace(subset=["2.bias"], prior_precision=1.0, pretrained=True)
    likelihood = Gaussian(0.1, learn=False)
    fit = inference.infer(bnn.gaussian_prior(network), likelihood, data, generator=generator)
    expected = torch.full((40, 1), 1 / (1 + 40 / 0.1))
    assert torch.allclose(fit.posterior(data.x).variance, expected, rtol=1e-4)

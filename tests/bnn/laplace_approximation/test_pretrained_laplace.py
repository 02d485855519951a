"""What Laplace may change of a network that is trained already, and the noise it finds."""

import pytest
import torch

from bayeskit import bnn
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training, minimize_lbfgs
from bayeskit.core.types import Data

from ..example_networks import seeded


def rows(generator, n=60):
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    noise = 0.2 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return Data(x, torch.sin(2 * x[:, :1]) * x[:, 1:] + noise)


def trained(data):
    """A network with more weights than data points, fitted to them."""
    network = seeded(lambda: bnn.MLP(2, 1, hidden=(10, 10), dtype=torch.float64))
    weights = list(network.parameters())

    def loss():
        penalty = sum(value.square().sum() for value in weights)
        return (network(data.x) - data.y).square().mean() + 1e-3 * penalty

    minimize_lbfgs(loss, weights, max_iter=60, tolerance=1e-9, description="network")
    return network


@pytest.mark.parametrize("structure", ["full", "kronecker", "diagonal"])
def test_trained_weights_are_kept(structure, generator):
    data = rows(generator)
    network = trained(data)
    inference = bnn.Laplace(subset="all", structure=structure, pretrained=True)
    fit = inference.infer(bnn.gaussian_prior(network), Gaussian(), data, generator=generator)
    assert torch.equal(fit.posterior(data.x).mean, network(data.x).detach())
    assert fit.diagnostics["rounds"] == 1
    mean_square = (network(data.x) - data.y).square().mean().detach()
    if structure != "full":
        assert torch.allclose(fit.likelihood.noise.double(), mean_square)


@pytest.mark.parametrize("structure", ["kronecker", "diagonal"])
def test_a_curvature_that_neglects_terms_keeps_the_noise_of_the_validation_data(structure, generator):
    data, training = rows(generator), Training(lr=2e-2, max_epochs=40, batch_size=32, validation_fraction=0.2)
    prior = bnn.gaussian_prior(seeded(lambda: bnn.MLP(2, 1, hidden=(10, 10), dtype=torch.float64)))
    inferences = [
        bnn.MAP(training=training, prior_precision=1.0),
        bnn.Laplace(subset="all", structure=structure, prior_precision=1.0, training=training),
    ]
    noises = [
        inference.infer(prior, Gaussian(), data, generator=torch.Generator().manual_seed(1)).likelihood.noise
        for inference in inferences
    ]
    assert torch.allclose(noises[0], noises[1])

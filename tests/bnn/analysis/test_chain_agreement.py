import pytest
import torch
from torch import nn

from bayeskit import bnn, mcmc


def posterior(generator, chains=3, number=40, swap=False):
    """Chains about one function; with `swap` the hidden units of the last chain are permuted."""
    network = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    centre = {"0.weight": [[2.0], [-1.0]], "0.bias": [0.5, -0.3], "2.weight": [[1.0, 3.0]], "2.bias": [0.1]}
    draws = {}
    for name, numbers in centre.items():
        value = torch.tensor(numbers, dtype=torch.float64)
        noise = torch.randn(chains * number, *value.shape, generator=generator, dtype=torch.float64)
        draws[name] = value + 0.1 * noise
    if swap:
        for name, axis in (("0.weight", 1), ("0.bias", 1), ("2.weight", 2)):
            draws[name][-number:] = draws[name][-number:].flip(axis)
    return bnn.BayesNet(network, bnn.SampledWeights(draws), bnn.MonteCarlo())


X = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]


def test_permuted_units_agree_about_the_function_and_not_about_the_weights(generator):
    swapped = posterior(generator, swap=True)
    assert (bnn.mixing(swapped, X, num_chains=3)["R-hat"] < 1.1).all()
    assert mcmc.rhat(swapped.weights.draws["0.bias"].unflatten(0, (3, 40))).min() > 1.5


def test_it_measures_what_the_posterior_says(generator):
    net = posterior(generator)
    found, draws = bnn.mixing(net, X, num_chains=3), net(X).draws.unflatten(0, (3, 40))
    assert all(value.shape == (7, 1) for value in found.values())
    assert torch.equal(found["tail ESS"], mcmc.tail_ess(draws)) and torch.equal(found["MCSE"], mcmc.mcse(draws))


def test_draws_that_are_no_chains_are_refused(generator):
    with pytest.raises(ValueError, match="120 draws are not 7 chains"):
        bnn.mixing(posterior(generator), X, num_chains=7)
    gaussian = bnn.gaussian_prior(nn.Linear(1, 1).double())
    linearized = bnn.BayesNet(gaussian.network, gaussian.weights, bnn.Linearize())
    with pytest.raises(ValueError, match="holds a Gaussian"):
        bnn.mixing(linearized, X, num_chains=2)

"""MC dropout: closed-form moments under its masks, and consistent functions."""

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.bnn.methods.dropout_masks import bernoulli_mask, linear_layers
from bayeskit.core.likelihood import Categorical, Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

from ..example_networks import Convolutional, images, lines, seeded

QUICK = Training(lr=1e-2, max_epochs=6, batch_size=16, patience=5, validation_fraction=0.2)


def fit(data, network, likelihood=None, **settings):
    inference = bnn.MCDropout(**{"num_samples": 8, "training": QUICK, **settings})
    prior = bnn.gaussian_prior(network)
    return inference.infer(prior, likelihood or Gaussian(), data, generator=torch.Generator().manual_seed(1))


def weights_of(network):
    return {name: value.detach() for name, value in network.named_parameters()}


def assert_dropout_moments(draws, network, x, rate):
    """Mean `x w + b` and variance `rate / (1 - rate) sum_j (w_j x_j)^2`; five standard errors of s draws.

    The excess kurtosis of a sum of scaled Bernoulli variables is at most that of one, 1 / (q (1 - q)) - 6.
    """
    s, w = len(draws), network.weight.detach()
    variance = rate / (1 - rate) * (x * w).square().sum(-1, keepdim=True)
    kurtosis = 1 / (rate * (1 - rate)) - 6
    assert ((draws.mean(0) - network(x).detach()).abs() < 5 * (variance / s).sqrt()).all()
    assert ((draws.var(0) / variance - 1).abs() < 5 * ((2 + max(kurtosis, 0)) / s) ** 0.5).all()


@pytest.mark.monte_carlo
def test_moments_of_a_linear_network(generator):
    data = lines(generator)
    posterior = fit(data, nn.Linear(2, 1, dtype=torch.float64), rate=0.2, num_samples=20_000).posterior
    assert_dropout_moments(posterior(data.x[:9]).draws, posterior.network, data.x[:9], 0.2)


@pytest.mark.monte_carlo
def test_moments_of_a_dropout_layer(generator):
    network = nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 1, dtype=torch.float64))
    x = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    draws = bnn.draw_dropout(network, x, num_samples=20_000, generator=generator)(x).draws
    assert_dropout_moments(draws, network[1], x, 0.2)


def test_masked_weights_equal_dropped_units(generator):
    """Weights `W diag(z)` give the same outputs as masks on the hidden units."""
    data = lines(generator)
    posterior = fit(data, bnn.MLP(2, 1, hidden=(6, 5), dtype=torch.float64), rate=0.5).posterior
    network, draws = posterior.network, posterior.weights.draws
    for s, values in enumerate(posterior(data.x).draws):
        hidden = data.x
        for layer, number in (("1", 1), ("3", 3), ("5", 5)):
            mask = draws[f"{layer}.weight"][s] / network[number].weight
            assert (mask == mask[:1]).all() and set(mask.flatten().tolist()) <= {0.0, 1.0, 2.0}
            hidden = network[number]((hidden if number == 1 else network[number - 1](hidden)) * mask[0])
        assert torch.allclose(hidden, values, atol=1e-12)
    assert torch.equal(draws["1.weight"], network[1].weight.expand(8, -1, -1))  # inputs are kept


def test_functions_are_consistent_and_among_the_draws(generator):
    network = seeded(Convolutional)
    x = images(generator)[0]
    posterior = bnn.draw_dropout(network, x, num_samples=6, generator=generator)
    stored = posterior(x).draws
    assert torch.equal(posterior(x).draws, stored)
    functions = posterior.sample_functions(4, generator=generator)
    assert torch.allclose(functions(x[:5]), functions(x)[:, :5], atol=1e-5)
    assert all((stored - f).abs().amax((1, 2)).min() < 1e-5 for f in functions(x))
    assert (stored.std(0) > 0).any()


def test_whole_channels_are_dropped(generator):
    network = nn.Sequential(nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(4 * 9, 1))
    x = torch.ones(2, 4, 3, 3)
    masks = bnn.draw_dropout(network, x, num_samples=200, generator=generator).push_forward.masks["0"]
    assert masks.shape == (200, 1, 4, 1, 1)
    assert set(masks.flatten().tolist()) == {0.0, 2.0}


@pytest.mark.monte_carlo
def test_masks_have_mean_one(generator):
    mask = bernoulli_mask((40_000,), 0.3, like=torch.ones(1), generator=generator)
    assert abs(float(mask.mean()) - 1) < 5 * (0.3 / 0.7 / 40_000) ** 0.5
    assert not bernoulli_mask((5,), 1.0, like=torch.ones(1), generator=generator).any()


def test_batch_norm_predicts_in_evaluation_mode(generator):
    x, labels = images(generator)
    result = fit(Data(x, labels), seeded(Convolutional), Categorical(3))
    network, masks = result.posterior.network, result.posterior.push_forward.masks
    assert not network.norm.training and (network.norm.running_mean != 0).all()  # learnt in training
    before = network.norm.running_mean.clone()
    draws = result.posterior(x).draws
    assert torch.equal(network.norm.running_mean, before)
    hidden = network.act(network.second(network.act(network.norm(network.first(x))))).flatten(1)
    assert torch.allclose(draws[0], network.head(hidden * masks["drop"][0]), atol=1e-5)


def test_no_dropout_is_an_error_with_the_remedy(generator):
    network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    with pytest.raises(ValueError, match=r"Sequential has no dropout layer.*`nn.Dropout` layers.*set `rate`"):
        fit(lines(generator), network)
    assert fit(lines(generator), network, rate=0.1).diagnostics["dropped"] == ["2"]
    with pytest.raises(ValueError, match="no dropout layer"):
        bnn.draw_dropout(network, torch.zeros(1, 2))


def test_dropped_inputs_are_hidden_units():
    assert linear_layers(bnn.MLP(2, 1, hidden=(4, 4))) == ["3", "5"]
    assert linear_layers(nn.Linear(2, 1)) == [""]
    convolutional = seeded(Convolutional)
    assert linear_layers(convolutional) == ["head"]


def test_a_layer_used_twice_is_named(generator):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.head = nn.Dropout(0.1), nn.Linear(2, 1)

        def forward(self, x):
            return self.head(self.drop(self.drop(x)))

    with pytest.raises(ValueError, match=r"`drop` is used 2 times.*layer of its own"):
        bnn.draw_dropout(Twice(), torch.zeros(1, 2))


def test_other_kinds_of_dropout_are_refused_by_name():
    with pytest.raises(ValueError, match="`0` is AlphaDropout"):
        bnn.draw_dropout(nn.Sequential(nn.AlphaDropout(0.1), nn.Linear(2, 1)), torch.zeros(1, 2))


@pytest.mark.parametrize("settings", [{"num_samples": 0}, {"rate": 1.5}, {"prior_precision": "evidence"}])
def test_settings_are_checked_by_name(settings, generator):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must"):
        fit(lines(generator), nn.Linear(2, 1).double(), **settings)

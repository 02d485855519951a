"""Every method on networks, dtypes and likelihoods that the library did not choose."""

import copy
import pickle

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.core.likelihood import Bernoulli, Categorical, Gaussian, Heteroscedastic, Likelihood, Poisson, StudentT
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

from ..example_networks import Convolutional, Recursive, images, seeded

QUICK = Training(lr=1e-2, max_epochs=6, batch_size=16, patience=5, validation_fraction=0.2)
METHODS = {
    "map": bnn.MAP(training=QUICK),
    "last layer": bnn.Laplace(training=QUICK),
    "kronecker": bnn.Laplace(subset="all", structure="kronecker", training=QUICK),
    "diagonal": bnn.Laplace(subset="all", structure="diagonal", training=QUICK),
    "ensemble": bnn.DeepEnsemble(num_members=2, training=QUICK),
}


class Asymmetric(Likelihood):
    """A user's own likelihood, in as few lines as the interface requires."""

    def distribution(self, f):
        return torch.distributions.Independent(torch.distributions.Gumbel(f, 0.5), 1)


@pytest.mark.parametrize("name", METHODS)
def test_images_through_convolutions(name, generator):
    x, labels = images(generator)
    network = seeded(Convolutional)
    if name == "kronecker":  # BatchNorm has no Kronecker factors
        network = seeded(lambda: Convolutional(normalize=False))
    prior = bnn.gaussian_prior(network)
    fit = METHODS[name].infer(prior, Categorical(3), Data(x, labels), generator=generator)
    values = fit.posterior(x)
    assert values.mean.shape == (60, 3) and values.mean.dtype == torch.float32
    assert values.variance.shape == (60, 3) and (values.variance >= 0).all()
    assert torch.allclose(values.variance.flatten(), values.covariance.diagonal(), rtol=1e-3, atol=1e-6)
    probs = fit.likelihood.predictive(values).probs
    assert torch.allclose(probs.sum(-1).double(), torch.ones(60, dtype=torch.float64), atol=1e-5)
    halves = torch.cat([fit.posterior(x[:25]).mean, fit.posterior(x[25:]).mean])
    assert torch.allclose(halves, values.mean, atol=1e-5)
    again = pickle.loads(pickle.dumps(fit.posterior))
    assert torch.equal(again(x).mean, values.mean)
    assert torch.equal(again(x).variance, values.variance)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "likelihood", [Bernoulli(), Poisson(), StudentT(), Heteroscedastic(), Asymmetric()], ids=lambda v: type(v).__name__
)
def test_any_likelihood(name, likelihood, generator):
    x = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    y = x.sum(-1, keepdim=True) + 0.3 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    y = {"binary": (y[:, 0] > 0).long(), "count": y.exp().round()}.get(likelihood.target, y)
    prior = bnn.gaussian_prior(bnn.MLP(2, likelihood.num_latents(y), hidden=(5,), dtype=torch.float64))
    fit = METHODS[name].infer(prior, likelihood, Data(x, y), generator=generator)
    log_prob = fit.likelihood.predictive(fit.posterior(x)).log_prob(y)
    assert log_prob.shape == (40,) and torch.isfinite(log_prob).all()


@pytest.mark.parametrize("name", METHODS)
def test_one_row(name, generator):
    x, y = torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    prior = bnn.gaussian_prior(bnn.MLP(2, 1, hidden=(4,), dtype=torch.float64))
    fit = METHODS[name].infer(prior, Gaussian(), Data(x, y), generator=generator)
    assert torch.isfinite(fit.posterior(x).mean).all() and torch.isfinite(fit.posterior(x).variance).all()


@pytest.mark.parametrize("name", ["map", "last layer", "ensemble"])
def test_one_row_through_batch_normalization(name, generator):
    x, labels = images(generator, n=1)
    fit = METHODS[name].infer(
        bnn.gaussian_prior(seeded(Convolutional)), Categorical(3), Data(x, labels), generator=generator
    )
    assert torch.isfinite(fit.posterior(x).mean).all()


@pytest.mark.parametrize("name", METHODS)
def test_same_generator_same_answer(name, generator):
    x, labels = images(generator, n=30)
    prior = bnn.gaussian_prior(seeded(lambda: Convolutional(normalize=name != "kronecker")))
    means = [
        METHODS[name].infer(prior, Categorical(3), Data(x, labels), generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    assert torch.equal(means[0].posterior(x).mean, means[1].posterior(x).mean)
    state = torch.get_rng_state()
    METHODS[name].infer(prior, Categorical(3), Data(x, labels), generator=generator)
    assert torch.equal(state, torch.get_rng_state())  # dropout and re-initialization left the global generator alone


def test_control_flow_on_values_is_trained_in_a_loop_or_refused(generator):
    x = torch.randn(30, 2, generator=generator)
    data, prior = Data(x, x.sum(-1, keepdim=True)), bnn.gaussian_prior(seeded(Recursive))
    fit = METHODS["ensemble"].infer(prior, Gaussian(), data, generator=generator)
    assert fit.diagnostics["trained together"] is False
    assert torch.isfinite(
        METHODS["last layer"].infer(prior, Gaussian(), data, generator=generator).posterior(x).mean
    ).all()
    with pytest.raises(ValueError, match="torch.func cannot differentiate Recursive.*last_layer"):
        METHODS["diagonal"].infer(prior, Gaussian(), data, generator=generator)
    with pytest.raises(RuntimeError, match="vmap"):  # not the answer of another batch
        bnn.BayesNet(prior.network, prior.weights, bnn.Linearize())(x).variance


def test_statistics_of_the_batch_are_refused_by_name(generator):
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 1))
    x = torch.randn(30, 2, generator=generator)
    with pytest.raises(ValueError, match=r"`1` \(BatchNorm1d\) keeps no running statistics.*GroupNorm"):
        METHODS["last layer"].infer(bnn.gaussian_prior(network), Gaussian(), Data(x, x[:, :1]), generator=generator)


def test_layers_without_factors_are_refused_by_name(generator):
    x, labels = images(generator)
    with pytest.raises(ValueError, match=r"'norm.weight' belongs to BatchNorm2d.*structure='diagonal'"):
        METHODS["kronecker"].infer(
            bnn.gaussian_prior(seeded(Convolutional)), Categorical(3), Data(x, labels), generator=generator
        )


@pytest.mark.parametrize("name", ["map", "last layer", "ensemble"])
def test_a_point_or_stored_draws_cannot_be_a_prior(name, generator):
    x = torch.randn(30, 2, generator=generator)
    data = Data(x, x[:, :1])
    prior = bnn.gaussian_prior(bnn.MLP(2, 1, hidden=(4,)))
    fit = METHODS["map"].infer(prior, Gaussian(), data, generator=generator)
    with pytest.raises(TypeError, match="must have Gaussian weights; got PointWeights"):
        METHODS[name].infer(fit.posterior, Gaussian(), data, generator=generator)


def test_parameters_without_gradient_are_kept(generator):
    network = seeded(lambda: bnn.MLP(2, 1, hidden=(4,)))
    network[1].requires_grad_(False)
    x = torch.randn(30, 2, generator=generator)
    prior = bnn.gaussian_prior(copy.deepcopy(network))
    for name in ("map", "ensemble"):
        fit = METHODS[name].infer(prior, Gaussian(), Data(x, x[:, :1]), generator=generator)
        assert torch.equal(fit.posterior.network[1].weight, network[1].weight)
        assert "1.weight" not in fit.posterior.weights.mean


class Dropping(nn.Module):
    """Dropout without a dropout layer."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(2, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(nn.functional.dropout(self.body(x).tanh(), 0.3, self.training))


@pytest.mark.parametrize("name", ["map", "ensemble"])
def test_dropout_of_any_form_draws_from_the_generator_given(name, generator):
    x = torch.randn(40, 2, generator=generator)
    prior, data = bnn.gaussian_prior(seeded(Dropping)), Data(x, x[:, :1])
    state = torch.get_rng_state()
    means = []
    for _ in range(2):
        fit = METHODS[name].infer(prior, Gaussian(), data, generator=torch.Generator().manual_seed(3))
        means.append(fit.posterior(x).mean)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*means)

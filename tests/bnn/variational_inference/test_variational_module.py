"""The bound on a linear model in closed form: gradients, optimum, and a training loop."""

import copy

import pytest
import torch
from torch import nn

from bayeskit import bnn
from bayeskit.bnn.variational_inference.sparse_support import Support
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data


def regression(generator, n=20, d=3):
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return Data(x, x.sum(-1, keepdim=True) + 0.3 * torch.randn(n, 1, generator=generator, dtype=torch.float64))


def linear(estimator, d=3):
    q = bnn.variational(nn.Linear(d, 1, dtype=torch.float64), estimator=estimator)
    with torch.no_grad():
        q.log_scale.copy_(torch.linspace(-1.5, -0.5, d + 1))
    return q


def exact_bound(q, likelihood, data):
    """The negative bound in closed form: a linear function of Gaussian weights is Gaussian."""
    inputs = torch.cat([data.x, torch.ones(len(data), 1, dtype=torch.float64)], -1)
    mean, variance = inputs @ q.mean, inputs.square() @ (2 * q.log_scale).exp()
    terms = likelihood.expected_log_prob(mean[:, None], variance[:, None], data.y)
    return q.kl() - data.total(terms)


def gradient(value, q):
    return torch.cat(torch.autograd.grad(value, [q.mean, q.log_scale]))


@pytest.mark.monte_carlo
@pytest.mark.parametrize("estimator", ["weight", "local", "flipout"])
def test_gradients_are_unbiased(estimator, generator):
    data, likelihood, q = regression(generator), Gaussian().double(), linear(estimator)
    exact = gradient(exact_bound(q, likelihood, data), q)
    draws = torch.stack([gradient(q.loss(likelihood, data, num_samples=20, generator=generator), q) for _ in range(60)])
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact).abs() < 5 * error).all()


@pytest.mark.monte_carlo
def test_independent_noise_between_inputs_reduces_gradient_variance(generator):
    data, likelihood = regression(generator, n=64), Gaussian().double()
    spread = {}
    for estimator in ("weight", "local", "flipout"):
        q = linear(estimator)
        draws = torch.stack([gradient(q.loss(likelihood, data, generator=generator), q) for _ in range(150)])
        spread[estimator] = float(draws.var(0)[:4].sum())  # of the means
    # One draw of the weights for all inputs has 12 to 15 times the variance of either (3 seeds of 1,500 draws), which
    # differ from each other by 2 to 6 %; a variance of 150 draws has a relative standard error of about 10 %.
    assert max(spread["local"], spread["flipout"]) < 0.25 * spread["weight"]
    assert 0.5 < spread["local"] / spread["flipout"] < 2


@pytest.mark.monte_carlo
def test_mini_batches_and_samples_estimate_one_number(generator):
    data, likelihood, q = regression(generator), Gaussian().double(), linear("local")
    exact = float(exact_bound(q, likelihood, data).detach())
    with torch.no_grad():
        losses = torch.stack(
            [
                q.loss(likelihood, batch, num_samples=8, generator=generator)
                for _ in range(40)
                for batch in data.batches(5, generator=generator)
            ]
        )
    assert abs(float(losses.mean()) - exact) < 5 * float(losses.std()) / len(losses) ** 0.5


def test_the_kl_weight_is_a_factor_on_the_divergence(generator):
    data, likelihood, q = regression(generator), Gaussian().double(), linear("weight")
    state = generator.get_state()
    losses = []
    for weight in (0.0, 1.0, 3.0):
        generator.set_state(state)
        losses.append(float(q.loss(likelihood, data, kl_weight=weight, generator=generator).detach()))
    assert losses[1] - losses[0] == pytest.approx(float(q.kl().detach()))
    assert losses[2] - losses[0] == pytest.approx(3 * float(q.kl().detach()))


def test_only_means_and_scales_are_trained(generator):
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    net[0].bias.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    q = bnn.variational(net)
    assert [name for name, value in q.named_parameters() if value.requires_grad] == ["mean", "log_scale"]
    assert "0.bias" not in q.support.shapes
    optimizer = torch.optim.Adam(q.parameters(), lr=0.1)
    (q(torch.randn(6, 2, generator=generator), generator=generator).square().mean() + q.kl() / 6).backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    posterior = q.posterior()
    assert torch.equal(posterior.network[0].bias, net[0].bias)
    assert torch.equal(posterior.network[2].weight, posterior.weights.mean["2.weight"])


def test_a_posterior_is_the_next_prior(generator):
    data, likelihood, q = regression(generator), Gaussian().double(), linear("local")
    following = bnn.variational(q.posterior(), initial_scale=1.0)
    assert abs(float(following.kl().detach())) < 1e-12
    assert following.loss(likelihood, data, generator=generator).isfinite()


def test_weights_without_a_density_are_no_prior():
    network = nn.Linear(1, 1)
    draws = {name: value.detach()[None] for name, value in network.named_parameters()}
    prior = bnn.BayesNet(network, bnn.SampledWeights(draws), bnn.MonteCarlo())
    with pytest.raises(TypeError, match="Gaussian weights to be a prior; got SampledWeights"):
        bnn.variational(prior)


def test_a_support_knows_its_coordinates(generator):
    like = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(3, 2)}
    support = Support(like, {"a": torch.tensor([0, 4]), "c": torch.tensor([1])})
    dense = torch.randn(16, generator=generator)
    taken = support.take(dense)
    assert support.size == 16 and support.counts == {"a": 2, "b": 4, "c": 1} and len(taken) == 7
    leaves = support.leaves(taken)
    flat = torch.cat([value.flatten() for value in leaves.values()])
    assert torch.equal(flat[support.index()], taken) and int((flat != 0).sum()) == 7
    assert Support(like).index() is None and torch.equal(Support(like).take(dense), dense)

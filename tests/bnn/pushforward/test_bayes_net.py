"""Push-forwards of a distribution over weights to functions."""

import pytest
import torch
from linear_operator.operators import DiagLinearOperator
from torch import nn
from torch.func import functional_call

from bayeskit import bnn
from bayeskit.bnn.networks.functional import flatten, unflatten
from bayeskit.core.operators import Inverse

from ..example_networks import Convolutional, images, seeded


def gaussian(network, generator, names=None):
    """A Gaussian over the named parameters with a dense, correlated covariance."""
    own = {n: v.detach() for n, v in network.named_parameters() if names is None or n in names}
    p = sum(v.numel() for v in own.values())
    root = torch.randn(p, p, generator=generator, dtype=torch.float64)
    return bnn.GaussianWeights(own, Inverse(root @ root.mT / p + torch.eye(p, dtype=torch.float64)))


def dense_jacobian(network, mean, x):
    """J (n * k, p) by plain autograd."""
    jacobian = torch.autograd.functional.jacobian(
        lambda w: functional_call(network, unflatten(w, mean), (x,)), flatten(mean, mean)
    )
    return jacobian.reshape(-1, jacobian.shape[-1])


@pytest.mark.parametrize("names", [None, ["head.weight", "head.bias"], ["second.bias", "head.weight"]])
def test_function_covariance_is_the_dense_product(names, generator):
    network = seeded(Convolutional).double().eval()
    x = images(generator, n=5)[0].double()
    weights = gaussian(network, generator, names or ["first.weight", "norm.weight", "norm.bias", "head.bias"])
    values = bnn.linearize(network, weights, x)
    jacobian = dense_jacobian(network, weights.mean, x)
    dense = jacobian @ weights.covariance.to_dense() @ jacobian.mT
    assert torch.allclose(values.mean, network(x), atol=1e-12)
    assert torch.allclose(values.covariance.to_dense(), dense, atol=1e-10)
    assert torch.allclose(values.variance.flatten(), dense.diagonal(), atol=1e-10)
    blocks = torch.stack([dense[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] for i in range(5)])
    assert torch.allclose(values.output_covariance(), blocks, atol=1e-10)


@pytest.mark.monte_carlo
def test_weight_samples_through_a_last_layer_have_the_distribution_of_the_function(generator):
    """Four standard errors: s / sqrt(n) of a mean, v sqrt(2 / n) of a variance."""
    network = bnn.MLP(3, 2, hidden=(5,), dtype=torch.float64)
    weights = gaussian(network, generator, ["3.weight", "3.bias"])
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    values = bnn.linearize(network, weights, x)
    s = 4000
    pushed = bnn.monte_carlo(network, weights, x, num_samples=s, generator=generator)
    functions = bnn.BayesNet(network, weights, bnn.Linearize()).sample_functions(s, generator=generator)
    for draws in (pushed.draws, functions(x), values.sample(s, generator=generator)):
        assert ((draws.mean(0) - values.mean).abs() < 5 * (values.variance / s).sqrt()).all()
        assert ((draws.var(0) - values.variance).abs() < 5 * values.variance * (2 / s) ** 0.5).all()


@pytest.mark.monte_carlo
def test_linearized_functions_agree_between_calls_and_have_the_linearized_distribution(generator):
    network = seeded(Convolutional).double()
    weights = gaussian(network, generator, ["first.weight", "head.weight"])
    posterior = bnn.BayesNet(network, weights, bnn.Linearize())
    x = images(generator, n=6)[0].double()
    functions = posterior.sample_functions(3000, generator=generator)
    draws, values = functions(x), posterior(x)
    assert torch.allclose(torch.cat([functions(x[:2]), functions(x[2:])], dim=1), draws, atol=1e-12)
    assert ((draws.mean(0) - values.mean).abs() < 5 * (values.variance / 3000).sqrt()).all()
    assert ((draws.var(0) / values.variance - 1).abs() < 5 * (2 / 3000) ** 0.5).all()


def test_monte_carlo_is_a_function_of_the_inputs(generator):
    prior = bnn.gaussian_prior(bnn.MLP(2, 1, hidden=(4,)))
    x = torch.randn(7, 2, generator=generator)
    assert torch.equal(prior(x).draws, prior(x).draws)
    assert torch.allclose(prior(x[3:]).draws, prior(x).draws[:, 3:], atol=1e-6)
    functions = prior.sample_functions(4, generator=generator)
    assert functions(x).shape == (4, 7, 1)
    stored = prior(x).draws
    assert all((stored - f).abs().amax((1, 2)).min() < 1e-6 for f in functions(x))  # each is one of the draws


def test_stored_draws_are_all_used_or_picked(generator):
    draws = {"weight": torch.tensor([[[1.0]], [[2.0]], [[3.0]]]), "bias": torch.zeros(3, 1)}
    network, weights = nn.Linear(1, 1), bnn.SampledWeights(draws)
    assert bnn.monte_carlo(network, weights, torch.ones(1, 1)).draws.flatten().tolist() == [1.0, 2.0, 3.0]
    assert bnn.monte_carlo(network, weights, torch.ones(1, 1), num_samples=8).draws.shape == (8, 1, 1)


def test_buffers_go_with_their_draw():
    network = nn.Sequential(nn.BatchNorm1d(1, affine=False, eps=0.0), nn.Linear(1, 1))
    weights = bnn.SampledWeights(
        {"1.weight": torch.ones(2, 1, 1), "1.bias": torch.zeros(2, 1)},
        {"0.running_mean": torch.tensor([[0.0], [1.0]]), "0.running_var": torch.ones(2, 1)},
    )
    assert bnn.monte_carlo(network, weights, torch.ones(1, 1)).draws.flatten().tolist() == [1.0, 0.0]


def test_prior_scales_with_fan_in_and_centers_normalization_at_one():
    network = nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2))
    weights = bnn.gaussian_prior(network, precision=2.0).weights
    variances = unflatten(weights.covariance.diagonal(), weights.mean)
    assert variances["0.weight"].unique().tolist() == [0.125] and variances["0.bias"].unique().tolist() == [0.5]
    assert weights.mean["1.weight"].tolist() == [1.0, 1.0] and weights.mean["1.bias"].tolist() == [0.0, 0.0]


def test_a_network_without_parameters_is_refused():
    with pytest.raises(ValueError, match="nothing to learn"):
        bnn.gaussian_prior(nn.ReLU())


def test_gradients_flow_to_the_inputs_and_not_to_the_network(generator):
    network = bnn.MLP(2, 1, hidden=(4,), dtype=torch.float64)
    x = torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    for values in (
        bnn.linearize(network, gaussian(network, generator), x),
        bnn.linearize(network, gaussian(network, generator, ["3.weight"]), x),
        bnn.gaussian_prior(network)(x),
    ):
        (gradient,) = torch.autograd.grad(values.mean.sum() + values.variance.sum(), x)
        assert gradient.abs().sum() > 0
    assert not bnn.linearize(network, gaussian(network, generator, ["3.weight"]), x.detach()).variance.requires_grad


def test_gaussian_log_prob_is_that_of_torch(generator):
    mean = {"a": torch.randn(2, 2, generator=generator), "b": torch.randn(1, generator=generator)}
    root = torch.randn(5, 5, generator=generator)
    covariance = root @ root.mT + torch.eye(5)
    reference = torch.distributions.MultivariateNormal(flatten(mean, mean), covariance)
    params = {"a": torch.randn(7, 2, 2, generator=generator), "b": torch.randn(7, 1, generator=generator)}
    weights = bnn.GaussianWeights(mean, Inverse(torch.linalg.inv(covariance)))
    assert torch.allclose(weights.log_prob(params), reference.log_prob(flatten(params, mean)), atol=1e-3)
    diagonal = bnn.GaussianWeights(mean, DiagLinearOperator(torch.arange(1.0, 6.0)))
    reference = torch.distributions.Normal(flatten(mean, mean), torch.arange(1.0, 6.0).sqrt())
    assert torch.allclose(diagonal.log_prob(params), reference.log_prob(flatten(params, mean)).sum(-1), atol=1e-4)


def test_sharpening_does_not_change_a_known_scale():
    weights = bnn.gaussian_prior(nn.Linear(1, 1)).weights
    assert weights.sharpened(4.0).covariance.diagonal().tolist() == [0.25, 0.25]
    known = bnn.GaussianWeights(weights.mean, weights.covariance)
    assert known.sharpened(4.0) is known

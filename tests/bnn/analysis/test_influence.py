"""Sensitivities against derivatives, and leave-one-out against closed forms, of a linear network."""

import pytest
import torch
from linear_operator.operators import DenseLinearOperator
from torch import nn

from bayeskit import bnn
from bayeskit.core.inference import Fit
from bayeskit.core.likelihood import Bernoulli, Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

NOISE = 0.3


def problem(generator, n=15):
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x, x.sum(-1, keepdim=True) + torch.randn(n, 2, generator=generator, dtype=torch.float64)


def exact(x, y, weights):
    """Bayesian regression on a linear network with k outputs, no bias and prior N(0, I), as a fit."""
    precision = x.mT @ (weights[:, None] * x) / NOISE + torch.eye(x.shape[1], dtype=x.dtype)
    mean = torch.linalg.solve(precision, x.mT @ (weights[:, None] * y) / NOISE)  # (d, k)
    network = nn.Linear(x.shape[1], y.shape[1], bias=False, dtype=x.dtype)
    covariance = torch.block_diag(*[torch.linalg.inv(precision)] * y.shape[1])
    weights = bnn.GaussianWeights({"weight": mean.mT.contiguous()}, DenseLinearOperator(covariance))
    return Fit(bnn.BayesNet(network, weights, bnn.Linearize()), Gaussian(torch.full((2,), NOISE).double()))


def test_sensitivity_is_the_derivative_in_the_weight_of_the_row(generator):
    x, y = problem(generator)
    weights = torch.rand(len(x), generator=generator, dtype=torch.float64) + 0.5
    found = bnn.sensitivity(exact(x, y, weights), Data(x, y, weights))
    step = 1e-6
    for i in range(len(x)):
        change = torch.zeros_like(weights)
        change[i] = step
        up, down = (exact(x, y, w).posterior(x[i : i + 1]).mean[0] for w in (weights + change, weights - change))
        derivative = (up - down) / (2 * step)
        assert torch.allclose(found[i], -weights[i] * derivative, rtol=1e-6, atol=1e-8)  # central differences


def test_leave_one_out_is_the_closed_form_to_first_order(generator):
    """Exactly, f_-i - f_i = s_i / (1 - v_i / noise) with s_i the sensitivity and v_i the variance of f_i."""
    x, y = problem(generator)
    ones = torch.ones(len(x), dtype=torch.float64)
    fit = exact(x, y, ones)
    moved, variance = bnn.sensitivity(fit, Data(x, y)), fit.posterior(x).variance
    for i in range(len(x)):
        rest = ones.clone()
        rest[i] = 0
        difference = exact(x, y, rest).posterior(x[i : i + 1]).mean[0] - fit.posterior(x[i : i + 1]).mean[0]
        assert torch.allclose(
            difference, moved[i] / (1 - variance[i] / NOISE), rtol=1e-6
        )  # the noise is stored to 1e-8
    predictive = bnn.leave_one_out(fit, Data(x, y))
    assert torch.allclose(predictive.mean, fit.posterior(x).mean + moved)
    assert torch.allclose(predictive.variance, variance + NOISE)


def test_leave_one_out_of_ivon_finds_mislabelled_data(generator):
    x = torch.randn(80, 2, generator=generator, dtype=torch.float64)
    y = (x[:, 0] > 0).long()
    wrong = x[:, 0].abs().topk(3).indices
    y[wrong] = 1 - y[wrong]
    network = nn.Linear(2, 1, dtype=torch.float64)
    nn.init.zeros_(network.weight)
    method = bnn.IVON(kl_weight=1.0, training=Training(max_epochs=150, batch_size=None))
    fit = method.infer(bnn.gaussian_prior(network), Bernoulli(), Data(x, y), generator=generator)
    predictive = bnn.leave_one_out(fit, Data(x, y))
    assert set(predictive.log_prob(y).topk(3, largest=False).indices.tolist()) == set(wrong.tolist())


def test_a_fit_without_gaussian_weights_is_refused():
    network = nn.Linear(2, 1)
    point = bnn.BayesNet(network, bnn.PointWeights(dict(network.named_parameters())), bnn.Linearize())
    with pytest.raises(TypeError, match="must hold a network with Gaussian weights.*got PointWeights"):
        bnn.sensitivity(Fit(point, Gaussian()), Data(torch.zeros(1, 2), torch.zeros(1, 1)))

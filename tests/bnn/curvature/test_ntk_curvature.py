"""The linearized network as a Gaussian process: the kernels give the same as the p x p matrix."""

import copy
import math

import pytest
import torch
from linear_operator.operators import DiagLinearOperator
from torch import nn

from bayeskit import bnn
from bayeskit.bnn.curvature import ggn, ntk_curvature
from bayeskit.bnn.curvature.linearized_evidence import Expansion
from bayeskit.bnn.curvature.prior_precision import PriorPrecision
from bayeskit.bnn.networks.functional import NetworkFunction, flatten, parameters
from bayeskit.bnn.weights import low_rank_update
from bayeskit.core import operators
from bayeskit.core.likelihood import Categorical, Gaussian, Poisson
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

from ..example_networks import seeded

SHORT = Training(lr=1e-2, max_epochs=5, batch_size=32)


def case(name, generator, n=12):
    """A network of three outputs, data with case weights, and a likelihood."""
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    weights = 0.5 + torch.rand(n, generator=generator, dtype=torch.float64)
    y = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    if name == "gaussian":
        y[2, 1] = math.nan  # an output that was not observed
    targets = {
        "gaussian": y,
        "classes": torch.arange(n) % 3,
        "counts": torch.poisson(torch.ones_like(y), generator=generator),
    }
    network = seeded(lambda: bnn.MLP(3, 3, hidden=(5,), dtype=torch.float64))
    likelihood = {
        "gaussian": Gaussian(torch.tensor([0.1, 0.2, 0.3]), learn=False),
        "classes": Categorical(3),
        "counts": Poisson(),
    }[name]
    return network, Data(x, targets[name], weights), likelihood


every_likelihood = pytest.mark.parametrize("name", ["gaussian", "classes", "counts"])


@every_likelihood
@pytest.mark.parametrize("prior_precision", [0.7, {"1": 3.0, "": 0.4}])
def test_evidence_and_posterior_are_those_of_the_full_matrix(name, prior_precision, generator):
    network, data, likelihood = case(name, generator)
    prior, x = bnn.gaussian_prior(network), torch.randn(4, 3, generator=generator, dtype=torch.float64)
    fits = [
        bnn.Laplace("all", structure, prior_precision, pretrained=True).infer(
            prior, likelihood, data, generator=generator
        )
        for structure in ("full", "kernel")
    ]
    values, expected = fits[1].posterior(x), fits[0].posterior(x)
    assert float(fits[1].log_evidence) == pytest.approx(float(fits[0].log_evidence), abs=1e-8)
    assert torch.allclose(values.mean, expected.mean, atol=1e-10)
    assert torch.allclose(values.covariance.to_dense(), expected.covariance.to_dense(), atol=1e-8)
    assert torch.allclose(values.variance, expected.variance, atol=1e-8)


@every_likelihood
def test_steps_to_the_most_probable_weights_are_the_same(name, generator):
    network, data, likelihood = case(name, generator)
    prior = bnn.gaussian_prior(network)
    fits = [
        bnn.Laplace("all", structure, 1.0, training=SHORT).infer(
            prior, likelihood, data, generator=torch.Generator().manual_seed(0)
        )
        for structure in ("full", "kernel")
    ]
    weights = [flatten(fit.posterior.weights.mean, fit.posterior.weights.mean) for fit in fits]
    assert torch.allclose(*weights, atol=1e-8)
    assert float(fits[1].log_evidence) == pytest.approx(float(fits[0].log_evidence), abs=1e-8)


@every_likelihood
@pytest.mark.parametrize("at_mode", [True, False])
def test_three_coordinates_of_one_evidence(name, at_mode, generator):
    """Weights, function, and eigenvectors where there is one group: one number at any precision and noise."""
    network, data, likelihood = case(name, generator)
    function = NetworkFunction(network, parameters(network))
    flat = flatten(function.like, function.like)
    p = len(flat)
    groups = (torch.arange(p) >= 20).long()
    base = 0.5 + torch.rand(p, generator=generator, dtype=torch.float64)
    offset, noise = torch.randn(p, generator=generator, dtype=torch.float64), torch.tensor(0.3).double()
    gradient = torch.autograd.functional.jacobian(
        lambda w: data.total(likelihood.log_prob(function(w, data.x), data.y)), flat
    )
    for names, log_precision in ((("",), torch.tensor([0.4])), (("a", "b"), torch.tensor([0.4, -0.7]))):
        prior = PriorPrecision(base, groups if len(names) > 1 else torch.zeros_like(groups), names, known=False)
        expansion = Expansion(offset, gradient, torch.tensor(-1.0).double(), None, prior)
        models = [
            ggn.full(function, flat, data, likelihood).evidence(expansion),
            ntk_curvature.kernel(function, flat, data, likelihood, prior).evidence(expansion),
        ]
        at = (log_precision.double(), noise)
        values = [(model.value_at_mode if at_mode else model.value)(*at) for model in models]
        assert torch.allclose(values[0], values[1], atol=1e-8)
        assert torch.allclose(models[0].mode(*at), models[1].mode(*at), atol=1e-8)


def test_the_slope_of_the_evidence_is_its_closed_form(generator):
    """`d log Z / d log d_g = (p_g - d_g tr(P0 S)_g - d_g w*' P0 w*_g) / 2`, S the posterior covariance."""
    network, data, likelihood = case("gaussian", generator)
    function = NetworkFunction(network, parameters(network))
    flat = flatten(function.like, function.like)
    groups = (torch.arange(len(flat)) >= 20).long()
    prior = PriorPrecision(torch.ones(len(flat)).double(), groups, ("a", "b"), known=False)
    found = ntk_curvature.kernel(function, flat, data, likelihood, prior)
    zero = torch.zeros((), dtype=torch.float64)
    model = found.evidence(Expansion(flat, zero, zero, None, prior))
    at = torch.tensor([0.4, -0.7], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(model.value(at, zero), at)
    covariance = found.covariance(prior, at.detach(), torch.ones(()).double(), dtype=torch.float64)
    spread = prior.quadratics(flat) + torch.zeros(2).double().index_add(0, groups, covariance.diagonal())
    assert torch.allclose(slope, 0.5 * (groups.bincount() - at.exp() * spread), atol=1e-8)


def conditioned_and_matrix(generator, before=None):
    network, data, likelihood = case("classes", generator, n=4)
    function = NetworkFunction(network, parameters(network))
    flat = flatten(function.like, function.like)
    known = before or DiagLinearOperator(0.5 + torch.rand(len(flat), generator=generator, dtype=torch.float64))
    linearized = operators.Linearized(flat, known, data.x, function=function)
    root = ggn.curvature_root(likelihood, network(data.x).detach(), data)
    jacobian = linearized.jacobian(data.x)
    rows = torch.einsum("nab,nap->nbp", root, jacobian).flatten(0, 1)
    matrix = torch.linalg.inv(torch.linalg.inv(known.to_dense()) + rows.mT @ rows)
    return low_rank_update.conditioned(linearized, root), matrix


@pytest.mark.monte_carlo
@pytest.mark.parametrize("twice", [False, True])
def test_conditioned_weights_do_what_their_matrix_does(twice, generator):
    op, dense = conditioned_and_matrix(generator)
    if twice:  # more data after the first
        op, dense = conditioned_and_matrix(generator, before=op)
    p = len(dense)
    v = torch.randn(p, 2, generator=generator, dtype=torch.float64)
    assert torch.allclose(op.to_dense(), dense, atol=1e-10)
    assert torch.allclose(op.diagonal(), dense.diagonal(), atol=1e-10)
    assert torch.allclose(op @ v, dense @ v, atol=1e-10)
    assert torch.allclose(op @ v[:, 0], dense @ v[:, 0], atol=1e-10)
    assert torch.allclose(operators.solve(op, v), torch.linalg.solve(dense, v), atol=1e-8)
    assert torch.allclose(operators.logdet(op), torch.logdet(dense), atol=1e-8)
    half = operators.half_product(op, v)
    assert torch.allclose(half.mT @ half, v.mT @ dense @ v, atol=1e-10)
    assert torch.allclose(copy.deepcopy(op) @ v, op @ v)
    draws = operators.draw(op, 20_000, generator=generator)
    error = (draws.mT @ draws / 20_000 - dense).abs()
    spread = (dense.square() + torch.outer(dense.diagonal(), dense.diagonal())).sqrt()
    assert (error < 5 * spread / 20_000**0.5).all()  # 5 standard errors of 38^2 entries


def test_kernels_of_large_networks_are_those_of_small_ones(generator, monkeypatch):
    """Beyond the budget the matrix is made of products with some columns at a time."""
    op, dense = conditioned_and_matrix(generator)
    x = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    values = operators.Linearized(op.before.mean, op, x, function=op.before.function)
    jacobian = values.jacobian(x).flatten(0, 1)
    for budget in (10**6, 100):
        monkeypatch.setattr("bayeskit.core.operators.chunking.CHUNK_ELEMENTS", budget)
        monkeypatch.setattr("bayeskit.core.operators.chunking.CACHE_ELEMENTS", budget)
        assert torch.allclose(values.to_dense(), jacobian @ dense @ jacobian.mT, atol=1e-10)
        assert torch.allclose(values.diagonal(), values.to_dense().diagonal(), atol=1e-10)


def test_data_beyond_the_limit_are_refused_with_a_remedy(generator):
    network, data, likelihood = case("classes", generator, n=1_700)
    with pytest.raises(ValueError, match=r"5100 x 5100 matrix.*limit is 5000.*'kronecker'"):
        bnn.Laplace("all", "kernel").infer(bnn.gaussian_prior(network), likelihood, data, generator=generator)


def test_single_precision(generator):
    x = torch.randn(9, 3, generator=generator)
    prior = bnn.gaussian_prior(seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))))
    fits = [
        bnn.Laplace("all", structure, 1.0, pretrained=True).infer(
            prior, Gaussian(0.1, learn=False), Data(x, x[:, :1]), generator=generator
        )
        for structure in ("full", "kernel")
    ]
    variances = [fit.posterior(x).variance for fit in fits]
    assert variances[1].dtype == torch.float32
    assert torch.allclose(*variances, rtol=1e-3)  # of single precision, with prior precisions up to 4 and noise 0.1

"""Covariances of functions are those by way of the weights, and never take the memory of p x p numbers."""

import pickle

import pytest
import torch
from linear_operator import LinearOperator
from linear_operator.operators import RootLinearOperator

from bayeskit import BNNRegressor, bnn, load, registry, save
from bayeskit.bnn.pushforward.kfac_function_covariance import DiagonalFunctionCovariance, KroneckerFunctionCovariance
from bayeskit.bnn.pushforward.low_rank_function_covariance import ConditionedFunctionCovariance
from bayeskit.core import operators
from bayeskit.core.likelihood import Categorical, Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

from ..example_networks import Convolutional, images, seeded

KINDS = {
    "kernel": ConditionedFunctionCovariance,
    "kronecker": KroneckerFunctionCovariance,
    "diagonal": DiagonalFunctionCovariance,
}


def case(generator, outputs, dtype=torch.float64, factor=2.0, structure="kernel"):
    x = torch.randn(9, 3, generator=generator, dtype=dtype)
    network = seeded(lambda: bnn.MLP(3, outputs, hidden=(6, 5), dtype=dtype))
    y, likelihood = (x[:, :1], Gaussian(0.1, learn=False)) if outputs == 1 else (torch.arange(9) % 3, Categorical(3))
    inference = bnn.Laplace("all", structure, factor, pretrained=True)
    return inference.infer(bnn.gaussian_prior(network), likelihood, Data(x, y), generator=generator).posterior


@pytest.mark.monte_carlo
@pytest.mark.parametrize("structure", KINDS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_it_is_the_covariance_in_weight_space(structure, outputs, generator, monkeypatch):
    posterior = case(generator, outputs, structure=structure)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    op = posterior(x).covariance
    assert isinstance(op, KINDS[structure])
    for mode in (torch.no_grad(), torch.inference_mode()):  # as predictions are
        with mode:
            assert isinstance(posterior(x).covariance, KINDS[structure])
    jacobian = op.values.jacobian(x).flatten(0, 1)
    dense = jacobian @ op.values.weight_covariance.to_dense() @ jacobian.mT
    v = torch.randn(len(dense), 2, generator=generator, dtype=torch.float64)
    half = operators.half_product(op, v)
    assert torch.allclose(op @ v, dense @ v, atol=1e-10)
    assert torch.allclose(half.mT @ half, v.mT @ dense @ v, atol=1e-10)
    assert torch.equal(pickle.loads(pickle.dumps(op)).diagonal(), op.diagonal())
    draws = operators.draw(op, 20_000, generator=generator)
    error = (draws.mT @ draws / 20_000 - dense).abs()
    spread = (dense.square() + torch.outer(dense.diagonal(), dense.diagonal())).sqrt()
    assert (error < 5 * spread / 20_000**0.5).all()
    for budget in (2**24, 300):  # all at once, and a few at a time
        monkeypatch.setattr("bayeskit.core.operators.chunking.CHUNK_ELEMENTS", budget)
        assert torch.allclose(op.to_dense(), dense, atol=1e-10)
        assert torch.allclose(op.diagonal(), dense.diagonal(), atol=1e-10)
        expected = dense.reshape(5, outputs, 5, outputs).diagonal(dim1=0, dim2=2).movedim(-1, 0)
        assert torch.allclose(operators.block_diagonal(op, outputs), expected, atol=1e-10)


@pytest.mark.parametrize("structure", KINDS)
def test_gradients_reach_the_inputs(structure, generator):
    posterior = case(generator, 1, structure=structure)
    x = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    values = posterior(x)
    assert isinstance(values.covariance, operators.Linearized)
    (slope,) = torch.autograd.grad(values.covariance.diagonal().sum(), x)
    step = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    around = [posterior((x + h * step).detach()).variance.sum() for h in (1e-4, -1e-4)]
    assert float((slope * step).sum()) == pytest.approx(float(around[0] - around[1]) / 2e-4, rel=1e-5)


def test_biases_alone_go_through_the_weights(generator):
    x = torch.randn(9, 1, generator=generator, dtype=torch.float64)
    prior = bnn.gaussian_prior(seeded(lambda: bnn.MLP(1, 1, hidden=(6,), dtype=torch.float64)))
    inference = bnn.Laplace(["1.bias", "3.weight"], "diagonal", 1.0, pretrained=True)
    covariance = inference.infer(prior, Gaussian(0.1), Data(x, x), generator=generator).posterior(x).covariance
    assert isinstance(covariance, operators.Linearized)
    jacobian = covariance.jacobian(x).flatten(0, 1)
    dense = jacobian @ covariance.weight_covariance.to_dense() @ jacobian.mT
    assert torch.allclose(covariance.diagonal(), dense.diagonal(), atol=1e-10)


def test_other_layers_go_through_the_weights(generator):
    x, y = images(generator, n=6)
    prior, data = bnn.gaussian_prior(seeded(Convolutional)), Data(x, y)
    fits = [
        bnn.Laplace("all", structure, 1.0, pretrained=True).infer(prior, Categorical(3), data, generator=generator)
        for structure in ("kernel", "full")
    ]
    values, expected = (fit.posterior(x) for fit in fits)
    assert isinstance(values.covariance, operators.Linearized)
    assert torch.allclose(values.variance, expected.variance, rtol=1e-3)  # single precision


@pytest.mark.monte_carlo
def test_single_precision_at_the_data_is_no_difference_of_rounded_numbers(generator):
    """Of a prior variance a million times the noise, variances at the data are differences of almost equal numbers."""
    single = case(generator.manual_seed(0), 1, dtype=torch.float32, factor=1e-6)
    double = case(generator.manual_seed(0), 1, dtype=torch.float32, factor=1e-6, structure="full")
    x = torch.randn(9, 3, generator=generator.manual_seed(0))
    assert (single(x).variance > 0).all()
    # the noise variance is 0.1, and the prior's that of a million: 1e-7 of it is the rounding of single precision
    assert torch.allclose(single(x).variance, double(x).variance, rtol=0.05)


@pytest.mark.monte_carlo
@pytest.mark.parametrize(
    "settings", [{"subset": "all", "structure": "kernel"}, {"subset": "all", "structure": "kronecker"}, {"subset": 20}]
)
def test_estimators_fit_continue_and_are_saved(settings, generator, tmp_path):
    x = torch.randn(30, 3, generator=generator, dtype=torch.float64).numpy()
    inference = bnn.Laplace(**settings, training=Training(lr=1e-2, max_epochs=3))
    model = BNNRegressor(inference=inference, random_state=0).fit(x, x[:, 0])
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert (again.predict(x, return_std=True)[1] == model.predict(x, return_std=True)[1]).all()
    assert torch.equal(again.latent(x).covariance.to_dense(), model.latent(x).covariance.to_dense())
    if settings.get("structure") == "kernel":
        narrowed = model.latent(x).variance
        assert (model.partial_fit(x, x[:, 0]).latent(x).variance < narrowed).all()


# One Markov chain for all: their draws are pushed forward alike.
CHAINS = [name for name in registry.names("regression", family="bnn") if registry.inference_class(name) is bnn.MCMC]
NETWORKS = [name for name in registry.names("regression", family="bnn") if name not in CHAINS or name == "sgld"]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_method_has_a_joint_distribution_at_few_inputs_of_a_network_of_many_weights(name, generator):
    """Forty thousand weights, whose covariance would be 13 GB: an operator over ten inputs and two outputs."""
    x = torch.randn(10, 3, generator=generator)
    prior = bnn.gaussian_prior(seeded(lambda: bnn.MLP(3, 2, hidden=(200, 200))))
    settings = {"subset": "all", "structure": "diagonal"} if name == "laplace" else {}
    short = {"training": Training(lr=1e-3, max_epochs=1), **settings}
    inference = registry.quick(name) if name in CHAINS else registry.get(name, **short)()
    values = inference.infer(prior, Gaussian(), Data(x, x[:, :2]), generator=generator).posterior(x)
    assert isinstance(values.covariance, LinearOperator)
    assert values.covariance.shape == (20, 20)
    dense = values.covariance.to_dense()
    assert dense.shape == (20, 20)
    assert torch.allclose(dense.diagonal(), values.variance.flatten(), rtol=1e-3, atol=1e-6)
    assert torch.linalg.eigvalsh(dense.double()).min() >= -1e-5 * dense.diagonal().max() - 1e-12
    root = values.covariance.base_linear_op if hasattr(values.covariance, "base_linear_op") else values.covariance
    assert isinstance(root, LinearOperator | RootLinearOperator)


@pytest.mark.parametrize("structure", KINDS)
def test_laplace_of_many_weights_by_every_structure(structure, generator):
    x = torch.randn(10, 3, generator=generator)
    prior = bnn.gaussian_prior(seeded(lambda: bnn.MLP(3, 2, hidden=(200, 200))))
    inference = bnn.Laplace("all", structure, pretrained=True)
    values = inference.infer(prior, Gaussian(), Data(x, x[:, :2]), generator=generator).posterior(x)
    assert isinstance(values.covariance, KINDS[structure])
    assert torch.allclose(values.covariance.to_dense().diagonal(), values.variance.flatten(), rtol=1e-3)

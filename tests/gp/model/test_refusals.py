"""What cannot be done is said in a sentence that names the argument and the way out."""

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.kernels import RBFKernel
from torch import nn

from bayeskit import GPRegressor, gp, registry

RNG = np.random.default_rng(0)
X = RNG.random((20, 2))
Y = np.column_stack([X.sum(1), X[:, 0], X[:, 1] ** 2]) + 0.1 * RNG.standard_normal((20, 3))


def correlated(name):
    return GPRegressor(inference=registry.quick(name), num_latents=2, random_state=0).fit(X, Y)


def test_correlated_outputs():
    exact = correlated("exact")
    with pytest.raises(ValueError, match="Exact has no coreset here: its posterior, a StackedProcess"):
        exact.coreset()
    for model in (exact, correlated("svgp")):
        with pytest.raises(TypeError, match="correlated outputs .* have no leave-one-out"):
            model.leave_one_out(X, Y)
    with pytest.raises(ValueError, match="FullyBayesian models outputs independently"):
        correlated("fully_bayesian")


def test_an_exported_mixing_is_applied():
    model = correlated("svgp")
    mean, std = model.predict(X, return_std=True)
    exported = gp.predictive_module(model)(torch.tensor(X))
    assert np.allclose(exported[0], mean, rtol=1e-8)
    assert np.allclose(exported[1], std**2, rtol=1e-8)


def test_only_fitted_estimators_are_exported():
    with pytest.raises(TypeError, match="got a GPRegressor that is not fitted"):
        gp.predictive_module(GPRegressor())
    posterior = GPRegressor(inference=registry.quick("exact")).fit(X, Y).posterior_
    with pytest.raises(TypeError, match="`estimator` must be a fitted .*; got a GaussianProcess$"):
        gp.predictive_module(posterior)


def test_parts_of_a_deep_kernel():
    with pytest.raises(TypeError, match="`base_kernel` must be a gpytorch kernel; got Linear"):
        gp.DeepKernel(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"`network` must be a torch\.nn\.Module; got function"):
        gp.DeepKernel(lambda x: x, RBFKernel())


def test_what_is_not_a_gpytorch_model():
    class Model(gpytorch.models.ExactGP):
        def __init__(self, likelihood):
            super().__init__(torch.rand(4, 1), torch.rand(4), likelihood)

    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = Model(likelihood)
    with pytest.raises(TypeError, match="got the likelihood GaussianLikelihood"):
        gp.from_gpytorch(likelihood, model)
    with pytest.raises(TypeError, match="`likelihood` must be a gpytorch likelihood; got Model"):
        gp.from_gpytorch(model, model)
    with pytest.raises(TypeError, match="`model` must be a gpytorch model, such as .*; got Linear"):
        gp.from_gpytorch(nn.Linear(2, 2))

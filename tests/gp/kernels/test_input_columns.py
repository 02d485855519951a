"""Inputs of another number of columns than the process has are refused, where broadcasting would give numbers."""

import pytest
import torch
from gpytorch.kernels import RBFKernel, RQKernel, ScaleKernel
from gpytorch.means import ZeroMean

from bayeskit import GPRegressor, gp
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data
from bayeskit.gp import default_prior

from ..problems import generator

X = torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X.sum(-1, keepdim=True).sin()


def fitted(method):
    return method.quickly().infer(default_prior(X), Gaussian(), Data(X, Y), generator=generator()).posterior


@pytest.mark.parametrize("method", [gp.Exact, gp.SGPR, gp.SVGP, gp.SWSGP, gp.DualSVGP])
def test_a_posterior_refuses_inputs_of_another_number_of_columns(method):
    posterior = fitted(method)
    with pytest.raises(ValueError, match="have 1 columns where those of the process have 2"):
        posterior(X[:, :1])
    with pytest.raises(ValueError, match="have 1 columns"):
        posterior.kernel(X[:, :1]).to_dense()
    with pytest.raises(ValueError, match="have 1 columns"):
        posterior.sample_functions(1, generator=generator())(X[:, :1])


@pytest.mark.parametrize("inference", ["exact", "swsgp"])
@pytest.mark.parametrize(
    "kernel",
    [
        RBFKernel(ard_num_dims=3),
        ScaleKernel(RBFKernel(ard_num_dims=3, active_dims=[0, 1])),
        RBFKernel() + ScaleKernel(RBFKernel(ard_num_dims=3)),
    ],
)
def test_lengthscales_of_another_number_of_columns(kernel, inference):
    with pytest.raises(ValueError, match=r"RBFKernel has `ard_num_dims=3`, and its inputs have 2 columns"):
        GPRegressor(kernel, inference=inference).fit(X.numpy(), Y.numpy())


def test_lengthscales_of_the_columns_that_a_kernel_selects_are_welcome():
    for kernel in (
        RBFKernel(ard_num_dims=1, active_dims=[1]),
        ScaleKernel(RQKernel(ard_num_dims=2), active_dims=[0, 1]),
    ):
        prior = gp.GaussianProcess(ZeroMean(), kernel)
        fit = gp.Exact(max_iter=2).infer(prior, Gaussian(), Data(X, Y), generator=generator())
        assert fit.posterior(X).mean.isfinite().all()


def test_a_dual_process_refuses_rows_that_do_not_fit():
    posterior = fitted(gp.DualSVGP)
    with pytest.raises(ValueError, match=r"`x` must have shape \(b, 2\)"):
        posterior.condition(X[:, :1], Y, Gaussian())
    with pytest.raises(ValueError, match=r"`x` must have shape \(b, 2\)"):
        posterior.fantasies(X[:, :1], Y[None], Gaussian())
    with pytest.raises(ValueError, match="same number of rows; got 20 and 4"):
        posterior.condition(X, Y[:4], Gaussian())
    with pytest.raises(ValueError, match="weights` must have the same number of rows"):
        posterior.condition(X, Y, Gaussian(), weights=torch.ones(3))

"""Mean and variance of conditioned processes read one k(z, x), whatever method conditioned them."""

import pytest
import torch

from bayeskit.core.operators import chunking
from bayeskit.estimators import GPRegressor
from bayeskit.gp import SGPR, SVGP, CoresetGP, DualSVGP, Exact

from ..problems import Counted, close, generator, noise, process, regression, test_inputs

METHODS = {
    "exact": Exact(learn=False),
    "sgpr": SGPR(num_inducing=8, learn=False, learn_inducing=False),
    "svgp": SVGP(num_inducing=8, learn=False),
    "dual_svgp": DualSVGP(num_inducing=8, learn=False),
    "coreset": CoresetGP(num_points=8, learn=False),
}


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


@pytest.fixture
def asked():
    """Numbers of inputs x at which the user's kernel was evaluated as k(z, x), one entry each time."""
    Counted.columns.clear()
    return Counted.columns


@pytest.mark.parametrize("k", [1, 2])
def test_moments_in_one_pass_equal_mean_and_variance_by_themselves(method, k, monkeypatch):
    fit = method.infer(process(k=k), noise(), regression(k=k), generator=generator())
    x = test_inputs()
    mean, diagonal = fit.posterior(x).mean, fit.posterior(x).covariance.diagonal(dim1=-1, dim2=-2)
    monkeypatch.setattr(chunking, "CACHE_ELEMENTS", 6 * 2 * fit.posterior.kernel.width)  # 6, 6 and 5 inputs
    together = fit.posterior(x).moments
    # sums over 8 or 30 points in another order; variances are differences of numbers of order one
    close(together[0], mean, 1e-12)
    close(together[1].reshape(-1), diagonal, 1e-12)


@pytest.mark.parametrize("k", [1, 2])
def test_moments_evaluate_the_kernel_once_for_each_input(method, k, asked, monkeypatch):
    fit = method.infer(process(Counted(), k=k), noise(), regression(k=k), generator=generator())
    monkeypatch.setattr(chunking, "CACHE_ELEMENTS", 6 * 2 * fit.posterior.kernel.width)
    asked.clear()
    fit.posterior(test_inputs()).moments
    assert sum(asked) == 17 and max(asked) <= 6


def test_predictive_distributions_evaluate_the_kernel_once(method, asked):
    fit = method.infer(process(Counted()), noise(), regression(), generator=generator())
    predictive = fit.likelihood.predictive(fit.posterior(test_inputs()))
    asked.clear()
    assert len(predictive.interval(0.9)) == 2 and predictive.mean.shape == predictive.std.shape
    assert sum(asked) == 17


def test_estimators_evaluate_the_kernel_once(method, asked):
    data = regression()
    model = GPRegressor(Counted(), inference=method, random_state=0).fit(data.x, data.y[:, 0])
    asked.clear()
    mean, std = model.predict(test_inputs(), return_std=True)
    assert sum(asked) == 17
    assert mean.shape == std.shape == (17,)
    assert model.latent(test_inputs()).moments[0].shape == (17, 1) and sum(asked) == 2 * 17


def test_gradients_in_the_inputs_are_those_of_two_passes(method):
    posterior = method.infer(process(), noise(), regression(), generator=generator()).posterior
    x = test_inputs().requires_grad_(True)
    mean, variance = posterior(x).moments
    apart = posterior(x).mean.sum() + posterior(x).covariance.diagonal(dim1=-1, dim2=-2).sum()
    close(torch.autograd.grad(mean.sum() + variance.sum(), x)[0], torch.autograd.grad(apart, x)[0], 1e-10)


def test_inputs_of_another_width_are_refused_at_the_call(method):
    posterior = method.infer(process(), noise(), regression(), generator=generator()).posterior
    with pytest.raises(ValueError, match="columns"):
        posterior(torch.zeros(3, 5))

"""Inference for correlated outputs: against closed forms and GPyTorch, over tasks, gaps, copies and odd data."""

import copy
import pickle
from dataclasses import replace

import gpytorch
import pytest
import torch
from gpytorch.kernels import MultitaskKernel
from gpytorch.means import ZeroMean

from bayeskit.core.inference import Evidence
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data
from bayeskit.gp import SGPR, SVGP, Exact, GaussianProcess, StackedProcess, coregionalized, default_prior

from ..mixtures import EXACT, SPARSE, W, covariances, mixed, own_kernels, posterior
from ..problems import close, constant, generator, noise, rbf, regression, same_gp, test_inputs


@pytest.mark.parametrize("kernel", [own_kernels(), rbf()], ids=["LMC", "ICM"])
def test_exact_posterior_is_the_dense_closed_form(kernel):
    data, x = regression(k=3), test_inputs()
    prior = mixed(kernel, mean=constant([0.2, 0.5], 2))
    fit = EXACT.infer(prior, noise(0.05), data, generator=generator())
    shift = prior(data.x).mean
    total = covariances(prior, data.x) + 0.05 * torch.eye(90, dtype=torch.float64)
    cross = covariances(prior, x, data.x)
    normal = torch.distributions.MultivariateNormal(shift.flatten(), total)
    assert fit.log_evidence.value == pytest.approx(normal.log_prob(data.y.flatten()).item(), abs=1e-8)
    values = fit.posterior(x)
    mean = prior(x).mean.flatten() + cross @ torch.linalg.solve(total, (data.y - shift).flatten())
    close(values.mean.flatten(), mean, 1e-8)
    expected = covariances(prior, x) - cross @ torch.linalg.solve(total, cross.mT)
    close(values.covariance.to_dense(), expected, 1e-8)
    close(values.output_covariance(), expected.reshape(17, 3, 17, 3).diagonal(dim1=0, dim2=2).movedim(-1, 0), 1e-8)


def test_exact_posterior_is_that_of_gpytorch():
    data, x = regression(k=3), test_inputs()

    class Multitask(gpytorch.models.ExactGP):
        def __init__(self, likelihood):
            super().__init__(data.x, data.y, likelihood)
            self.mean_module = gpytorch.means.MultitaskMean(ZeroMean(), num_tasks=3)
            self.covar_module = MultitaskKernel(rbf(), num_tasks=3, rank=2)
            self.covar_module.task_covar_module.covar_factor.data = W.clone()
            self.covar_module.task_covar_module.raw_var.data.fill_(-800.0)

        def forward(self, x):
            return gpytorch.distributions.MultitaskMultivariateNormal(self.mean_module(x), self.covar_module(x))

    likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=3, has_task_noise=False).double()
    likelihood.noise = torch.tensor(0.05, dtype=torch.float64)
    model = Multitask(likelihood).double().eval()
    with torch.no_grad(), gpytorch.settings.max_cholesky_size(10_000):
        theirs = model(x)
        ours = posterior(mixed(rbf()))(x)
        close(ours.mean, theirs.mean, 1e-6)
        close(ours.covariance.to_dense(), theirs.covariance_matrix, 1e-6)


@pytest.mark.monte_carlo
@pytest.mark.parametrize("method", [EXACT, SVGP(num_inducing=10, learn=False, learn_inducing=False)])
def test_a_fold_of_tasks(method):
    """Two halves one after the other: for the exact method what all the data give at once."""
    data = regression(k=3)
    first = posterior(mixed(), method, data=data.rows(slice(0, 15)))
    second = posterior(first, method, data=data.rows(slice(15, 30)))
    x = test_inputs()
    if method is EXACT:
        assert isinstance(second, StackedProcess)
        same_gp(second, posterior(mixed(), method, data=data), x)
    else:
        close(second.mixing, W, 0)
        assert bool((second(x).variance < first(x).variance + 1e-10).all())


@pytest.mark.monte_carlo
def test_exact_goes_on_from_a_sparse_posterior():
    first = posterior(mixed(), SPARSE)
    x = test_inputs()
    second = posterior(first, EXACT, data=regression(9, k=3, seed=7))
    assert bool((second(x).variance < first(x).variance + 1e-10).all())
    assert second.sample_functions(2, generator=generator())(x).shape == (2, 17, 3)


def test_missing_targets_are_rows_that_are_not_there():
    data = regression(k=3)
    y = data.y.clone()
    y[:20, 1], y[5:, 2] = torch.nan, torch.nan
    prior = mixed()
    seen = ~y.flatten().isnan()
    total = (covariances(prior, data.x) + 0.05 * torch.eye(90, dtype=torch.float64))[seen][:, seen]
    cross = covariances(prior, test_inputs(), data.x)[:, seen]
    values = posterior(prior, data=Data(data.x, y))(test_inputs())
    close(values.mean.flatten(), cross @ torch.linalg.solve(total, y.flatten()[seen]), 1e-8)


@pytest.mark.monte_carlo
@pytest.mark.parametrize("kernel", [None, "one"])
def test_a_sparse_output_learns_from_its_neighbor(kernel):
    """Two outputs that are nearly multiples; the second is seen at 6 of 60 inputs."""
    g = generator()
    x = torch.linspace(0, 6, 60, dtype=torch.float64).unsqueeze(-1)
    truth = torch.cat([(2 * x).sin(), -0.8 * (2 * x).sin() + 0.1 * x.cos()], -1)
    y = truth + 0.05 * torch.randn(60, 2, dtype=torch.float64, generator=g)
    y[torch.arange(60) % 10 != 5, 1] = torch.nan
    prior = default_prior(x, 2, num_latents=2) if kernel is None else coregionalized(default_prior(x, 2), 2)
    fit = Exact().infer(prior, Gaussian(), Data(x, y), generator=g)
    seen = ~y[:, 1].isnan()
    alone = Exact().infer(default_prior(x), Gaussian(), Data(x[seen], y[seen, 1:]), generator=g)
    error = (fit.posterior(x).mean[:, 1] - truth[:, 1]).square().mean().sqrt()
    assert error < 0.5 * (alone.posterior(x).mean[:, 0] - truth[:, 1]).square().mean().sqrt()
    covariance = fit.posterior.process.kernel.base.mixing @ fit.posterior.process.kernel.base.mixing.mT
    assert covariance[0, 1] < 0  # the outputs move in opposite directions


@pytest.mark.monte_carlo
def test_learning_the_mixing():
    data = regression(60, k=3)
    prior = default_prior(data.x, 3, num_latents=2)
    before = prior.mixing.detach().clone()
    for method in (Exact(max_iter=20), SVGP(num_inducing=15, training=Training(lr=0.05, max_epochs=30))):
        fit = method.infer(prior, Gaussian(), data, generator=generator())
        frozen = replace(method, learn=False).infer(prior, Gaussian(), data, generator=generator())
        assert fit.log_evidence.value > frozen.log_evidence.value
        assert torch.equal(prior.mixing, before) and prior.mixing.requires_grad
        if isinstance(fit.posterior, GaussianProcess):
            assert not fit.posterior.mixing.requires_grad and not torch.equal(fit.posterior.mixing, before)
    kept = GaussianProcess(prior.mean, prior.kernel, mixing=before)  # needs no gradient, so it stays
    assert torch.equal(posterior(kept, SVGP.quickly(), Gaussian(), data).mixing, before)


def test_mean_and_kernel_share_what_is_learned():
    data = regression(k=3)
    prior = default_prior(data.x, 3, num_latents=2)
    process = Exact(max_iter=5).infer(prior, Gaussian(), data, generator=generator()).posterior.process
    assert torch.equal(process.kernel.base.mixing, process.mean.base_mean.mixing)


@pytest.mark.parametrize("make", [posterior, lambda p: posterior(p, SPARSE), lambda p: p])
def test_copies_and_pickles(make):
    f, x = make(mixed()), test_inputs()
    for again in (copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        close(again(x).mean, f(x).mean, 0)
        close(again(x).variance, f(x).variance, 0)


@pytest.mark.parametrize(("rows", "copies"), [(1, 1), (1, 4), (12, 3)])
@pytest.mark.parametrize("method", [Exact(max_iter=10), SVGP.quickly()], ids=["exact", "SVGP"])
def test_few_and_repeated_rows_in_single_precision(rows, copies, method):
    data = regression(rows, k=3)
    data = Data(data.x.float().repeat(copies, 1), data.y.float().repeat(copies, 1))
    fit = method.infer(default_prior(data.x, 3, num_latents=2), Gaussian(), data, generator=generator())
    assert bool((fit.posterior(data.x).variance >= 0).all())


def test_methods_that_cannot_mix_say_so():
    data = regression(k=3)
    with pytest.raises(ValueError, match=r"mixing.*gp.SVGP"):
        SGPR().infer(mixed(), noise(), data, generator=generator())
    with pytest.raises(TypeError, match="StackedProcess"):
        SPARSE.infer(posterior(mixed()), noise(), data, generator=generator())
    with pytest.raises(ValueError, match="num_outputs=3"):
        EXACT.infer(mixed(), noise(), regression(k=2), generator=generator())
    with pytest.raises(ValueError, match="num_outputs=3"):
        SPARSE.infer(mixed(), noise(), regression(k=2), generator=generator())


def test_no_data_returns_the_prior():
    prior = mixed()
    for method in (EXACT, SPARSE):
        fit = method.infer(prior, noise(), regression(0, k=3), generator=generator())
        assert fit.log_evidence == Evidence(0.0, "exact")
        same_gp(fit.posterior, prior, test_inputs())


def test_weights_count_copies():
    data, x = regression(k=3), test_inputs()
    weighted = Data(data.x, data.y, torch.arange(30) % 3 + 1.0)
    repeated = Data(*(t.repeat_interleave(torch.arange(30) % 3 + 1, 0) for t in (data.x, data.y)))
    for method in (EXACT, SPARSE):
        one, other = (method.infer(mixed(), noise(), rows, generator=generator()) for rows in (weighted, repeated))
        assert one.log_evidence.value == pytest.approx(other.log_evidence.value, abs=1e-7)
        same_gp(one.posterior, other.posterior, x)

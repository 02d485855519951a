"""Methods that never met, on a model where both are exact: they must say the same, to 1e-8 in float64."""

import pytest
import torch
from gpytorch.kernels import LinearKernel
from gpytorch.means import ZeroMean
from torch import nn

from bayeskit import bnn, gp
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data

TOLERANCE = {"rtol": 1e-8, "atol": 1e-8}
NOISE = 0.3


def generator():
    return torch.Generator().manual_seed(0)


def rows(n, outputs):
    x = torch.randn(n, 3, generator=generator(), dtype=torch.float64)
    noise = torch.randn(n, outputs, generator=generator(), dtype=torch.float64)
    return Data(x, x[:, :1] - 2 * x[:, 1:2] + noise)


def linear_process(outputs):
    """x'w for w ~ N(0, 1/3): what `gaussian_prior` gives a linear layer of three inputs without bias."""
    kernel = LinearKernel().double()
    kernel.raw_variance.data.fill_(torch.tensor(1 / 3, dtype=torch.float64).expm1().log())  # softplus of it is 1/3
    return gp.GaussianProcess(ZeroMean(), kernel.requires_grad_(False), num_outputs=outputs)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("structure", ["full", "kronecker"])
def test_laplace_on_a_linear_network_is_the_exact_gp_with_the_linear_kernel(structure, outputs):
    data, likelihood = rows(25, outputs), Gaussian(noise=NOISE, learn=False)
    network = nn.Linear(3, outputs, bias=False, dtype=torch.float64)
    laplace = bnn.Laplace(subset="all", structure=structure, prior_precision=1.0)
    weights = laplace.infer(bnn.gaussian_prior(network), likelihood, data, generator=generator())
    process = gp.Exact(learn=False).infer(linear_process(outputs), likelihood, data, generator=generator())
    x = torch.randn(6, 3, generator=generator(), dtype=torch.float64)
    ours, theirs = weights.posterior(x), process.posterior(x)
    assert torch.allclose(ours.mean, theirs.mean, **TOLERANCE)
    assert torch.allclose(ours.covariance.to_dense(), theirs.covariance.to_dense(), **TOLERANCE)
    assert float(weights.log_evidence) == pytest.approx(float(process.log_evidence), abs=1e-8)
    density = [fit.likelihood.predictive(v).log_prob(data.y[:6]) for fit, v in ((weights, ours), (process, theirs))]
    assert torch.allclose(*density, **TOLERANCE)


@pytest.mark.parametrize(
    "method", [gp.Exact(learn=False), gp.SGPR(num_inducing=40, learn=False)], ids=["exact", "sgpr"]
)
def test_three_tasks_are_one_batch_for_a_process(method):
    data, likelihood = rows(30, 1), Gaussian(noise=NOISE, learn=False)
    prior = gp.default_prior(data.x)
    batch = method.infer(prior, likelihood, data, generator=generator())
    posterior, evidence = prior, 0.0
    for start in (0, 10, 20):
        fit = method.infer(posterior, likelihood, data.rows(torch.arange(start, start + 10)), generator=generator())
        posterior, evidence = fit.posterior, evidence + float(fit.log_evidence)
    x = torch.randn(6, 3, generator=generator(), dtype=torch.float64)
    assert torch.allclose(posterior(x).mean, batch.posterior(x).mean, **TOLERANCE)
    assert torch.allclose(posterior(x).covariance.to_dense(), batch.posterior(x).covariance.to_dense(), **TOLERANCE)
    assert evidence == pytest.approx(float(batch.log_evidence), abs=1e-8)


def test_three_tasks_are_one_batch_for_a_linear_network():
    data, likelihood = rows(30, 1), Gaussian(noise=NOISE, learn=False)
    prior = bnn.gaussian_prior(nn.Linear(3, 1, dtype=torch.float64))
    method = bnn.Laplace(subset="all", prior_precision=1.0)
    batch = method.infer(prior, likelihood, data, generator=generator())
    posterior = prior
    for start in (0, 10, 20):
        part = data.rows(torch.arange(start, start + 10))
        posterior = method.infer(posterior, likelihood, part, generator=generator()).posterior
    x = torch.randn(6, 3, generator=generator(), dtype=torch.float64)
    assert torch.allclose(posterior(x).mean, batch.posterior(x).mean, **TOLERANCE)
    assert torch.allclose(posterior(x).covariance.to_dense(), batch.posterior(x).covariance.to_dense(), **TOLERANCE)


def test_sparse_methods_with_every_input_are_exact():
    data, likelihood = rows(20, 1), Gaussian(noise=NOISE, learn=False)
    prior = gp.default_prior(data.x)
    x = torch.randn(6, 3, generator=generator(), dtype=torch.float64)
    exact = gp.Exact(learn=False).infer(prior, likelihood, data, generator=generator())
    for method in (gp.SGPR(num_inducing=20, learn=False), gp.SVGP(num_inducing=20, learn=False)):
        sparse = method.infer(prior, likelihood, data, generator=generator())
        assert torch.allclose(sparse.posterior(x).mean, exact.posterior(x).mean, **TOLERANCE)
        assert torch.allclose(sparse.posterior(x).variance, exact.posterior(x).variance, **TOLERANCE)
        assert float(sparse.log_evidence) == pytest.approx(float(exact.log_evidence), abs=1e-8)


def test_the_exact_process_is_sgpr_is_a_coreset_where_all_inputs_are_points():
    data, likelihood = rows(20, 1), Gaussian(noise=NOISE, learn=False)
    prior = gp.default_prior(data.x)
    methods = (
        gp.Exact(learn=False),
        gp.SGPR(num_inducing=20, learn=False),
        gp.CoresetGP(num_points=20, learn=False),
    )
    exact, *others = (m.infer(prior, likelihood, data, generator=generator()) for m in methods)
    x = torch.randn(6, 3, generator=generator(), dtype=torch.float64)
    for fit in others:
        assert torch.allclose(fit.posterior(x).mean, exact.posterior(x).mean, **TOLERANCE)
        assert torch.allclose(
            fit.posterior(x).covariance.to_dense(), exact.posterior(x).covariance.to_dense(), rtol=1e-6, atol=1e-7
        )  # weights of the coreset are found by a search
        assert float(fit.log_evidence) == pytest.approx(float(exact.log_evidence), abs=1e-7)

"""Networks whose data are distributed over clients: `bnn.MCMC(mcmc.Federated(...))`."""

import itertools

import pytest
import torch
from torch import nn

from bayeskit import bnn, mcmc
from bayeskit.bnn.training.log_posterior import LogPosterior, Model
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.types import Data

NOISE = 0.25


def rows(generator, n=24):
    """Observations with one nonzero feature each, so that all Hessians are diagonal; weights of different sizes."""
    x = torch.eye(3, dtype=torch.float64).repeat(n // 3, 1)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    noise = 0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return Data(x, y + noise, 0.5 + torch.rand(n, generator=generator, dtype=torch.float64))


def model(data):
    prior = bnn.gaussian_prior(nn.Linear(3, 1, bias=False, dtype=torch.float64))
    return prior, Model(prior.network, prior.weights, Gaussian(NOISE, learn=False))


def test_a_log_posterior_is_the_sum_of_prior_and_observations(generator):
    data = rows(generator)
    density = LogPosterior(model(data)[1], data)
    assert isinstance(density, mcmc.Divisible)
    q = {"weights": torch.randn(5, 3, generator=generator, dtype=torch.float64)}
    parts = [density.of_rows(some)(q) for some in torch.arange(24).split(7)]
    assert torch.allclose(density.log_prior(q) + sum(parts), density(q), rtol=1e-12)
    assert torch.equal(density.order, data.y[:, 0])


@pytest.mark.monte_carlo
@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_exact_surrogates_equal_the_kernel_on_all_data(generator, skew):
    data = rows(generator)
    density = LogPosterior(model(data)[1], data)
    start = {"weights": torch.randn(6, 3, generator=generator, dtype=torch.float64)}
    inside = mcmc.SGLD(lr=0.02, temperature=0.0)  # without noise, which is drawn in another order

    def end(kernel, steps):
        return mcmc.run(kernel, density, start, num_samples=1, burn_in=steps, generator=generator).samples["weights"]

    exact = mcmc.Federated(inside, 10, clients=3, skew=skew, refresh=None, num_probes=8)
    alone, federated = end(inside, 59), end(exact, 5)
    # The diagonal of the Hessian is a difference of gradients, right to 1e-8.
    assert torch.allclose(federated, alone, atol=1e-6)
    if skew == 1:
        drifted = end(mcmc.Federated(inside, 10, clients=3, skew=skew, conducive=False), 5)
        assert (drifted - alone).abs().max() > 0.1  # so the test can fail


@pytest.mark.monte_carlo
def test_only_clients_with_surrogates_sample_the_posterior(generator):
    data = rows(generator)
    prior, _ = model(data)
    precision = prior.weights.covariance.inverse().to_dense() + data.x.mT * data.weights @ data.x / NOISE
    mean = torch.linalg.solve(precision, data.x.mT * data.weights @ data.y / NOISE)[:, 0]
    sd = precision.diagonal().rsqrt()

    def draws(conducive):
        kernel = mcmc.Federated(local_steps=20, clients=3, skew=1.0, conducive=conducive, num_probes=8)
        method = bnn.MCMC(kernel, num_chains=4, num_samples=100, burn_in=10)
        fit = method.infer(prior, Gaussian(NOISE, learn=False), data, generator=generator)
        return fit.posterior.weights.draws["weight"][:, 0].reshape(4, 100, 3)

    x = draws(True)
    size = mcmc.ess(x).clamp(max=400)
    assert ((x.mean((0, 1)) - mean).abs() < 5 / size.sqrt() * sd).all()
    spread = mcmc.ess((x - mean) ** 2).clamp(max=400)
    assert ((x.flatten(0, 1).std(0) / sd - 1).abs() < 5 * (0.5 / spread).sqrt() + 0.1).all()  # 0.1: SGLD's own
    assert (draws(False).flatten(0, 1).std(0) / sd).max() > 1.5


@pytest.mark.parametrize("inside", [mcmc.SGHMC(), mcmc.EntropySGLD(), mcmc.PSGLD()], ids=lambda k: type(k).__name__)
def test_other_kernels_with_clients(generator, inside):
    data = rows(generator)
    prior, _ = model(data)
    method = bnn.MCMC(mcmc.Federated(inside, clients=3), num_chains=2, num_samples=4, burn_in=3)
    fit = method.infer(prior, Gaussian(), data, generator=generator)
    assert torch.isfinite(fit.posterior(data.x).mean).all()


def test_surrogates_are_refreshed_at_the_current_positions(generator):
    data = rows(generator)
    density = LogPosterior(model(data)[1], data)
    start = {"weights": torch.randn(2, 3, generator=generator, dtype=torch.float64)}
    kernel = mcmc.Federated(mcmc.SGLD(lr=0.02), 2, clients=3, refresh=2)
    state, seen = kernel.init(start, density, generator=generator), []
    for _ in range(5):
        state, _ = kernel.step(state, density, generator=generator)
        seen.append(state.surrogates["linear"])
    assert [torch.equal(*pair) for pair in itertools.pairwise(seen)] == [True, False, True, False]
    assert state.surrogates["linear"].shape == (2, 3, 3) and not state.surrogates["precision"].any()


def test_an_interrupted_run_resumes(tmp_path, generator):
    data = rows(generator)
    prior, _ = model(data)

    def infer(**settings):
        method = bnn.MCMC(mcmc.Federated(clients=3), num_chains=2, num_samples=6, burn_in=3, start_steps=5)
        method.set_params(**settings)
        fit = method.infer(prior, Gaussian(), data, generator=torch.Generator().manual_seed(0))
        return fit.posterior(data.x).draws

    whole = infer()
    infer(checkpoint=tmp_path / "run", num_samples=3)
    assert torch.equal(whole, infer(checkpoint=tmp_path / "run"))


def test_given_clients_and_a_density_without_observations(generator):
    data = rows(generator)
    prior, _ = model(data)
    own = mcmc.Federated(clients=torch.arange(24) % 5)
    fit = bnn.MCMC(own, num_chains=2, num_samples=4, burn_in=2).infer(prior, Gaussian(), data, generator=generator)
    assert torch.isfinite(fit.posterior(data.x).mean).all()
    with pytest.raises(ValueError, match="`Federation` as its log density, or one that knows its rows"):
        mcmc.Federated().prepared(lambda q: -q["x"].square(), {"x": torch.zeros(2)}, generator=generator)

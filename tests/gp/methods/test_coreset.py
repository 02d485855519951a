import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from bayeskit import GPClassifier, GPRegressor, gp, registry
from bayeskit.core.likelihood import Bernoulli, Gaussian
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data
from bayeskit.gp import SGPR, SVGP, CoresetGP, Exact, default_prior
from bayeskit.gp.kernels.evaluate import gram, mean_rows
from bayeskit.gp.model.hyperparameters import learnable
from bayeskit.gp.model.training_set import training_set
from bayeskit.gp.variational.collapsed_bound import collapsed
from bayeskit.gp.variational.pseudo_data import PseudoObservations, _divergence, bound, nearest, pseudo_observations
from bayeskit.gp.variational.whitened_gaussian import WhitenedGaussian
from bayeskit.gp.variational.whitened_posterior import optimal_q

from ..problems import close, constant, generator, matern, noise, process, rbf, regression, same_gp, test_inputs

FROZEN = {"learn": False, "learn_points": False}
SHORT = CoresetGP(num_points=12, max_iter=10, training=Training(lr=0.02, max_epochs=10, batch_size=32))


def fit(data, prior, likelihood, method=SHORT):
    return method.infer(prior, likelihood, data, generator=generator())


def observed(model, z, y, weights):
    """Pseudo observations with these outputs (k, m): q = L^-1 (y - m(z))."""
    rows = PseudoObservations(z, weights, y)
    tril = torch.linalg.cholesky(gram(model.kernel, z, z) + torch.diag_embed(rows.noise(model)))
    centered = model.residual(z, y.mT).unsqueeze(-1)
    return PseudoObservations(z, weights, torch.linalg.solve_triangular(tril, centered, upper=False).squeeze(-1))


def problem(k=1, m=8, kernel=None):
    """A model at fixed hyperparameters, rows, and some coreset."""
    data = regression(40, k=k)
    prior, likelihood = process(kernel, k=k, mean=constant(0.2, k)), noise([0.05, 0.2][:k])
    model = learnable(prior, likelihood, learn=False)
    weights = 0.5 + 3 * torch.rand(1, m, dtype=torch.float64, generator=generator(3))
    y = torch.randn(k, m, dtype=torch.float64, generator=generator(5))
    return model, training_set(prior, likelihood, data), observed(model, test_inputs(m), y, weights)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("k", [1, 2])
def test_the_data_as_coreset_are_exact(k, weighted):
    model, rows, _ = problem(k)
    if weighted:
        rows = Data(rows.x, rows.y, 0.5 + torch.rand(len(rows), dtype=torch.float64, generator=generator()))
    weights = torch.ones(1, len(rows), dtype=torch.float64) if rows.weights is None else rows.weights.unsqueeze(0)
    coreset = observed(model, rows.x, rows.y.mT, weights)
    exact = fit(rows, model.process(), model.frozen_likelihood(), Exact(learn=False))
    same_gp(coreset.posterior(model), exact.posterior, test_inputs())
    assert abs(bound(model, coreset, rows).item() - float(exact.log_evidence)) < 1e-8 * 40


@pytest.mark.parametrize("k", [1, 2])
def test_with_all_inputs_as_points_the_method_is_exact(k):
    data = regression(30, k=k)
    prior, likelihood = process(k=k, mean=constant(0.2, k)), noise([0.05, 0.2][:k])
    result = fit(data, prior, likelihood, CoresetGP(num_points=30, **FROZEN))
    exact = fit(data, prior, likelihood, Exact(learn=False))
    # the weights are found by a search, which ends where its gradient is 1e-7
    same_gp(result.posterior, exact.posterior, test_inputs(), 1e-6)
    assert abs(float(result.log_evidence) - float(exact.log_evidence)) < 1e-6
    _, y, variances = pseudo_observations(result.posterior)
    close(y, training_set(prior, likelihood, data).y, 1e-5)
    close(variances, likelihood.noise.expand(30, k), 1e-5)


@pytest.mark.parametrize("kernel", [None, rbf()], ids=["matern", "rbf"])
def test_no_coreset_beats_the_collapsed_bound(kernel):
    model, rows, coreset = problem(kernel=kernel)
    best = collapsed(model, coreset.z, rows)
    anywhere = bound(model, coreset, rows).item()
    variational, _ = optimal_q(model, coreset.z, WhitenedGaussian.prior(1, coreset.z), rows, max_steps=1)
    found = nearest(model, coreset.z, variational, coreset.weights)
    reached = bound(model, found, rows).item()
    assert anywhere < reached <= best.bound.item() + 1e-8
    close(found.posterior(model)(rows.x).mean, best.posterior(model.process(), coreset.z)(rows.x).mean)


@pytest.mark.monte_carlo
def test_the_nearest_coreset_is_where_the_bound_is_stationary():
    model, rows, start = problem(k=2)
    variational, _ = optimal_q(model, start.z, WhitenedGaussian.prior(2, start.z), rows, max_steps=1)
    found = nearest(model, start.z, variational, start.weights, max_iter=300)
    logs, q = found.weights.log().requires_grad_(True), found.whitened.clone().requires_grad_(True)
    value = bound(model, PseudoObservations(found.z, logs.exp(), q), rows)
    by_weights, by_outputs = torch.autograd.grad(value, [logs, q])
    assert by_outputs.abs().max() < 1e-6
    assert by_weights.abs().max() < 5e-3  # where the search for them stops


def test_the_divergence_is_that_of_two_normals():
    model, _, coreset = problem(k=2)
    covariance, variances = gram(model.kernel, coreset.z, coreset.z), coreset.noise(model)
    noisy = covariance + torch.diag_embed(variances)
    tril = torch.linalg.cholesky(noisy)
    at = coreset.posterior(model)(coreset.z)
    posterior = at.covariance.to_dense().reshape(8, 2, 8, 2)
    total = 0.0
    for j in range(2):
        prior = MultivariateNormal(torch.full((8,), 0.2, dtype=torch.float64), covariance)
        total += kl_divergence(MultivariateNormal(at.mean[:, j], posterior[:, j, :, j]), prior)
    close(_divergence(covariance, tril, variances, coreset.whitened), total)


def test_a_point_of_no_weight_is_not_there():
    model, rows, coreset = problem()
    y = coreset_outputs(model, coreset)
    weights = coreset.weights.clone()
    weights[:, 3] = 1e-12
    keep = torch.arange(8) != 3
    without = observed(model, coreset.z[keep], y[:, keep], weights[:, keep])
    light = observed(model, coreset.z, y, weights)
    same_gp(light.posterior(model), without.posterior(model), test_inputs())
    close(bound(model, light, rows), bound(model, without, rows))


def test_a_point_twice_at_half_its_weight_is_the_point():
    model, rows, coreset = problem()
    y, copies = coreset_outputs(model, coreset), torch.tensor([*range(8), 3])
    weights = coreset.weights[:, copies].clone()
    weights[:, [3, 8]] /= 2
    twice = observed(model, coreset.z[copies], y[:, copies], weights)
    same_gp(twice.posterior(model), coreset.posterior(model), test_inputs())
    close(bound(model, twice, rows), bound(model, coreset, rows))


def test_heavy_points_are_interpolated():
    model, _, coreset = problem()
    y = coreset_outputs(model, coreset)
    heavy = observed(model, coreset.z, y, torch.full_like(coreset.weights, 1e12))
    values = heavy.posterior(model)(coreset.z)
    close(values.mean, y.mT)
    assert values.variance.max() < 1e-10


def coreset_outputs(model, coreset):
    return pseudo_observations(coreset.posterior(model))[1].mT


def test_pseudo_observations_are_read_off_the_process():
    model, _, coreset = problem(k=2)
    y = torch.randn(2, 8, dtype=torch.float64, generator=generator(9))
    z, outputs, variances = pseudo_observations(observed(model, coreset.z, y, coreset.weights).posterior(model))
    close(z, coreset.z)
    close(outputs, y.mT)
    close(variances, coreset.noise(model).mT)
    sparse = fit(regression(30), process(), noise(), SGPR(num_inducing=5, learn=False))
    assert pseudo_observations(sparse.posterior) is None
    assert pseudo_observations(process()) is None


def test_mini_batches_estimate_the_bound():
    model, rows, coreset = problem()
    parts = [bound(model, coreset, batch) for batch in rows.batches(10, generator=generator())]
    close(torch.stack(parts).mean(), bound(model, coreset, rows))  # batches of equal size partition the rows


@pytest.mark.monte_carlo
def test_mini_batches_of_many_rows_improve_on_the_subset():
    data = regression(120)
    prior = default_prior(data.x)
    settings = {"num_points": 8, "subset": 40, "max_iter": 20}
    short = CoresetGP(**settings, training=Training(lr=1e-6, max_epochs=1, batch_size=60))
    long = CoresetGP(**settings, training=Training(lr=0.02, max_epochs=30, batch_size=60, schedule="cosine"))
    before, after = (float(fit(data, prior, Gaussian(), method).log_evidence) for method in (short, long))
    assert after > before + 1
    assert fit(data, prior, Gaussian(), short).diagnostics["rows of the first phase"] == 40


@pytest.mark.monte_carlo
def test_other_likelihoods_lose_little_to_a_full_covariance():
    data = regression(80)
    labels = Data(data.x, (data.y[:, 0] > 0).long())
    prior, g = process(), generator
    full = SVGP(num_inducing=12, learn=False, learn_inducing=False).infer(prior, Bernoulli(), labels, generator=g())
    small = CoresetGP(num_points=12, **FROZEN).infer(prior, Bernoulli(), labels, generator=g())
    assert float(full.log_evidence) - 0.5 < float(small.log_evidence) <= float(full.log_evidence) + 1e-6


def test_kernels_and_noise_of_their_own_for_each_output():
    data = regression(40, k=2)
    kernel = matern()
    kernel.base_kernel.raw_lengthscale = torch.nn.Parameter(torch.zeros(2, 1, 2, dtype=torch.float64))
    kernel.base_kernel.batch_shape = kernel.batch_shape = torch.Size([2])
    kernel.raw_outputscale = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    result = fit(data, process(kernel, k=2), Gaussian(noise=[0.05, 0.2]))
    _, y, variances = pseudo_observations(result.posterior)
    assert y.shape == variances.shape == (12, 2)
    assert (result.posterior(test_inputs()).variance >= 0).all()


@pytest.mark.monte_carlo
def test_entries_that_are_missing_have_weights_of_their_own_for_each_output():
    data = regression(60, k=2)
    y = data.y.clone()
    y[::2, 1] = torch.nan
    result = fit(Data(data.x, y), default_prior(data.x, 2), Gaussian())
    _, outputs, variances = pseudo_observations(result.posterior)
    counts = (result.likelihood.noise / variances).sum(0)
    assert outputs.isfinite().all()
    assert counts[1] < 0.8 * counts[0]


def test_degenerate_data_never_fail():
    one = regression(1)
    flat = Data(torch.zeros(20, 2), torch.zeros(20, 1))
    twice = regression(20).rows(torch.arange(20).repeat(2))
    for data in (one, flat, twice):
        for dtype in (torch.float32, torch.float64):
            rows = data.to(dtype=dtype)
            values = fit(rows, default_prior(rows.x), Gaussian()).posterior(rows.x)
            assert torch.isfinite(values.mean).all() and (values.variance >= 0).all()


@pytest.mark.monte_carlo
def test_draws_have_the_law_of_the_posterior():
    result = fit(regression(40), process(), noise())
    x = test_inputs(5)
    draws = result.posterior.sample_functions(1000, generator=generator())(x)[..., 0]
    values = result.posterior(x)
    std = values.variance[:, 0].sqrt()
    assert ((draws.mean(0) - values.mean[:, 0]).abs() < 5 * std / 1000**0.5).all()
    assert (torch.cov(draws.mT) - values.covariance.to_dense()).abs().max() < 5 * (2 / 1000) ** 0.5 * std.max() ** 2


# -- the table of an estimator ----------------------------------------------------------------------------------------


def table(k=1):
    data = regression(40, k=k)
    return pd.DataFrame(data.x.numpy() * 5 + 30, columns=["height", "width"]), data.y.numpy() * 100 + 7


def test_the_table_is_in_original_units():
    X, y = table()
    model = GPRegressor(inference=registry.quick("coreset").set_params(num_points=6), random_state=0).fit(X, y.ravel())
    rows = model.coreset()
    assert list(rows.columns) == ["height", "width", "y", "weight"]
    assert len(rows) == 6 and rows["weight"].is_monotonic_decreasing
    # Exact regression on the table, each row's noise divided by its weight, is the model.
    base, (shift, scale) = model.posterior_.mean, (model.target_scaler_.shift, model.target_scaler_.scale)
    z = model.input_scaler_(torch.tensor(rows[["height", "width"]].values))
    y = torch.tensor(rows[["y"]].values)
    C = gram(base.base_kernel, z, z) + torch.diag(model.likelihood_.noise / torch.tensor(rows["weight"].values))
    center = mean_rows(base.base_mean, z, 1).mT
    solution = torch.linalg.solve(C, (y - shift) / scale - center)
    cross = gram(base.base_kernel, model.input_scaler_(torch.tensor(X.values)), z)
    mean = shift + scale * (center[0] + cross @ solution)
    assert np.allclose(model.predict(X), mean.detach().numpy().ravel())


@pytest.mark.parametrize("k", [1, 2])
def test_the_coreset_of_an_exact_process_is_the_data(k):
    X, y = table(k)
    weight = np.arange(1.0, 41.0)
    rows = GPRegressor(inference="exact", random_state=0).fit(X.values, y, sample_weight=weight).coreset()
    expected = np.column_stack([X.values, y, weight])[::-1]
    assert list(rows.columns) == ["x0", "x1", *(["y"] if k == 1 else ["y0", "y1"]), "weight"]
    assert np.allclose(rows.values, expected, rtol=1e-6)


def test_labels_have_latents_and_precisions():
    X, y = table()
    model = GPClassifier(inference=registry.quick("coreset"), random_state=0).fit(X, y.ravel() > 7)
    assert list(model.coreset().columns) == ["height", "width", "latent", "precision"]
    model = GPClassifier(inference=registry.quick("coreset"), random_state=0).fit(X, y.ravel() // 60)
    latents = len(model.classes_)
    assert list(model.coreset().columns)[2:4] == ["latent0", "latent1"]
    assert model.coreset().shape == (20, 2 + 2 * latents)


def test_other_methods_refuse_by_name():
    X, y = table()
    model = GPRegressor(inference=gp.SGPR(num_inducing=5, max_iter=5), random_state=0).fit(X, y.ravel())
    with pytest.raises(ValueError, match="SGPR has no coreset"):
        model.coreset()


def test_partial_fit_joins_the_coresets():
    X, y = table()
    model = GPRegressor(inference=registry.quick("coreset").set_params(num_points=6), random_state=0)
    model.partial_fit(X[:20], y[:20].ravel()).partial_fit(X[20:], y[20:].ravel())
    assert len(model.coreset()) == 12


@pytest.mark.monte_carlo
def test_training_never_ends_below_where_it_began():
    """Steps a hundred times too long for data without noise, whose best bound the first phase has found."""
    x = torch.linspace(0, 6, 40, dtype=torch.float64).unsqueeze(-1)
    data, long = Data(x, x.sin()), Training(lr=1.0, max_epochs=5, batch_size=20)
    alone, trained = (fit(data, default_prior(x), Gaussian(), CoresetGP(10, training=t)) for t in (None, long))
    assert float(trained.log_evidence) >= float(alone.log_evidence) - 1e-6 * abs(float(alone.log_evidence))
    assert trained.diagnostics["bound lost by training, which was therefore taken back"] > 0

"""Noise variances that are known for each observation: closed forms, every method, streams, routing and refusals."""

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from gpytorch.kernels import MaternKernel, RBFKernel
from gpytorch.means import ZeroMean
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import bayeskit
from bayeskit import GPRegressor, gp
from bayeskit.core.likelihood import Conjugate, Gaussian, KnownNoise, Poisson, StudentT
from bayeskit.core.optimize import Training
from bayeskit.core.types import Data

QUICK = Training(lr=0.05, max_epochs=40, batch_size=256)
EXACT = [
    gp.Exact(),
    gp.Exact(solver="cg"),
    gp.SGPR(num_inducing=100),
    gp.SVGP(num_inducing=100, training=QUICK),
    gp.DualSVGP(num_inducing=100),
    gp.MemoryDualGP(num_inducing=100),
]
APPROXIMATE = [
    gp.OrthogonalSVGP(training=QUICK),
    gp.CoresetGP(num_points=40, training=QUICK),
    gp.SWSGP(training=QUICK),
    gp.FullyBayesian(num_chains=2, num_samples=4, burn_in=4, num_components=4),
]


def named(method):
    return type(method).__name__ + getattr(method, "solver", "")


def problem(n=40, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 5, n)
    noise = np.where(rng.random(n) < 0.5, 1.0, 1e-2)
    return x, np.sin(x) + np.sqrt(noise) * rng.standard_normal(n), noise


def rbf(a, b):
    return np.exp(-0.5 * (a[:, None] - b[None]) ** 2)


def closed_form(x, y, noise, new):
    """Evidence, mean and variance."""
    covariance = rbf(x, x) + np.diag(noise)
    inverse = np.linalg.inv(covariance)
    evidence = -0.5 * y @ inverse @ y - 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    cross = rbf(new, x)
    return evidence, cross @ inverse @ y, 1 - np.einsum("ij,jk,ik->i", cross, inverse, cross)


def frozen_prior():
    kernel = RBFKernel().double().requires_grad_(False)
    kernel.raw_lengthscale = torch.nn.Parameter(
        kernel.raw_lengthscale_constraint.inverse_transform(torch.ones(1, 1)).double()
    )
    return gp.GaussianProcess(ZeroMean(), kernel.requires_grad_(False))


def paired(y, noise):
    return torch.tensor(np.stack([y, noise], axis=-1))


class InOrder(Conjugate):
    """The route without `KnownNoise`: variances in the order of the rows."""

    def __init__(self, noise):
        super().__init__()
        self.register_buffer("noise", torch.as_tensor(noise).double())

    def num_latents(self, y):
        return 1

    def distribution(self, f):
        return torch.distributions.Independent(torch.distributions.Normal(f, torch.ones_like(f)), 1)

    def observations(self, y):
        return y, self.noise[:, None]


@pytest.mark.parametrize("order", ["sorted", "as drawn", "one input twice"])
@pytest.mark.parametrize("route", ["KnownNoise", "Conjugate"])
@pytest.mark.parametrize("method", EXACT, ids=named)
def test_closed_form(method, route, order):
    x, y, noise = problem()
    if order == "sorted":
        index = np.argsort(x)
        x, y, noise = x[index], y[index], noise[index]
    if order == "one input twice":
        x, y, noise = np.r_[x, x[3]], np.r_[y, y[3] + 0.3], np.r_[noise, 0.5]
    new = np.linspace(0, 5, 7)
    evidence, mean, variance = closed_form(x, y, noise, new)
    if route == "KnownNoise":
        likelihood, targets = KnownNoise(), paired(y, noise)
    else:
        likelihood, targets = InOrder(noise), torch.tensor(y)[:, None]
    data = Data(torch.tensor(x)[:, None], targets)
    fit = method.infer(frozen_prior(), likelihood, data, generator=torch.Generator().manual_seed(0))
    found = fit.posterior(torch.tensor(new)[:, None])
    assert type(fit.likelihood) is type(likelihood)
    # Jitter of 1e-6 in K against noise of 1e-2 changes a solution by 1e-4 relative, and log |C| by as much for a row.
    np.testing.assert_allclose(found.mean[:, 0].numpy(), mean, atol=2e-3)
    np.testing.assert_allclose(found.variance[:, 0].numpy(), variance, atol=2e-3)
    tolerance = 5.0 if getattr(method, "solver", "") == "cg" else 0.05  # an estimate by Lanczos quadrature
    assert abs(fit.log_evidence.value - evidence) < tolerance


def test_weight_two_equals_twice():
    x, y, noise = problem()
    data, twice = Data(torch.tensor(x)[:, None], paired(y, noise)), np.tile(np.arange(len(x)), 2)
    weighted = Data(data.x, data.y, torch.full((len(x),), 2.0))
    fits = [
        gp.Exact().infer(frozen_prior(), KnownNoise(), one, generator=torch.Generator())
        for one in (weighted, data.rows(torch.tensor(twice)))
    ]
    np.testing.assert_allclose(*(fit.log_evidence.value for fit in fits), rtol=1e-10)
    in_order = Data(data.x, data.y[:, :1], weighted.weights)
    other = gp.Exact().infer(frozen_prior(), InOrder(noise), in_order, generator=torch.Generator())
    np.testing.assert_allclose(other.log_evidence.value, fits[0].log_evidence.value, rtol=1e-10)


@pytest.mark.parametrize("learned", [False, True], ids=["known alone", "learned on top"])
@pytest.mark.parametrize("method", EXACT + APPROXIMATE, ids=named)
def test_every_method_weighs_observations_by_their_noise(method, learned):
    x, y, noise = problem(60)
    new = np.linspace(0.3, 4.7, 50)[:, None]
    error = lambda **given: np.sqrt(  # noqa: E731
        np.mean(
            (GPRegressor(inference=method, random_state=0).fit(x[:, None], y, **given).predict(new) - np.sin(new[:, 0]))
            ** 2
        )
    )
    model = GPRegressor(inference=method, likelihood=Gaussian() if learned else None, random_state=0)
    model.fit(x[:, None], y, noise_variance=noise)
    mean, std = model.predict(new, return_std=True)
    assert np.sqrt(np.mean((mean - np.sin(new[:, 0])) ** 2)) < 0.12 < error() + 0.05
    assert np.isfinite(std).all() and (std > 0).all()


def test_units_of_the_targets():
    x, y, noise = problem()
    new = np.linspace(0, 5, 9)[:, None]
    small = GPRegressor(inference="exact", random_state=0).fit(x[:, None], y, noise_variance=noise)
    large = GPRegressor(inference="exact", random_state=0).fit(x[:, None], 7 + 1e3 * y, noise_variance=1e6 * noise)
    mean, std = small.predict(new, return_std=True)
    other, wide = large.predict(new, return_std=True)
    np.testing.assert_allclose(other, 7 + 1e3 * mean, rtol=1e-4)
    np.testing.assert_allclose(wide, 1e3 * std, rtol=1e-3)
    shift = len(y) * np.log(1e3)
    np.testing.assert_allclose(large.log_evidence_.value, small.log_evidence_.value - shift, rtol=1e-6)


def test_one_number_is_the_same_for_all():
    x, y, _ = problem()
    fits = [GPRegressor(inference="exact").fit(x[:, None], y, noise_variance=s) for s in (0.5, np.full(len(x), 0.5))]
    np.testing.assert_allclose(*(fit.predict(x[:, None]) for fit in fits))


def test_exact_observations_are_interpolated():
    x, y, noise = problem()
    noise[:5] = 0.0
    model = GPRegressor(inference="exact").fit(x[:, None], y, noise_variance=noise)
    np.testing.assert_allclose(model.predict(x[:5, None]), y[:5], atol=1e-3)


def test_outputs_of_their_own_noise_and_missing_entries():
    x, y, noise = problem(60)
    both = np.stack([y, np.cos(x)], axis=-1)
    variances = np.stack([noise, np.full(len(x), 1e-4)], axis=-1)
    both[::4, 0] = np.nan
    variances[::4, 0] = np.nan  # not asked where y is missing
    model = GPRegressor(inference="exact", random_state=0).fit(x[:, None], both, noise_variance=variances)
    mean, std = model.predict(np.linspace(0.5, 4.5, 30)[:, None], return_std=True)
    assert np.abs(mean[:, 1] - np.cos(np.linspace(0.5, 4.5, 30))).max() < 0.05
    assert std[:, 1].mean() < 0.05


@pytest.mark.parametrize("inference", ["exact", None, "dual_svgp"])
@pytest.mark.parametrize("likelihood", [None, Gaussian()], ids=["known alone", "learned on top"])
def test_streams(inference, likelihood):
    x, y, noise = problem(60)
    model = GPRegressor(inference=inference, likelihood=likelihood, random_state=0)
    for part in (slice(0, 40), slice(40, 60)):
        model.partial_fit(x[part, None], y[part], noise_variance=noise[part])
    new = np.linspace(0.3, 4.7, 50)[:, None]
    assert np.sqrt(np.mean((model.predict(new) - np.sin(new[:, 0])) ** 2)) < 0.15
    if likelihood is None:
        with pytest.raises(ValueError, match="`noise_variance` must be given in every call"):
            model.partial_fit(x[:, None], y)
    else:
        model.partial_fit(x[:5, None], y[:5])
        late = GPRegressor(inference=inference, likelihood=likelihood, random_state=0).partial_fit(x[:40, None], y[:40])
        assert np.isfinite(late.partial_fit(x[40:, None], y[40:], noise_variance=noise[40:]).predict(new)).all()


def test_leave_one_out_is_a_fit_without_the_observation():
    x, y, noise = problem(20)
    data = Data(torch.tensor(x)[:, None], paired(y, noise))
    fit = gp.Exact().infer(frozen_prior(), KnownNoise(), data, generator=torch.Generator())
    found = gp.leave_one_out(fit, data)
    for i in (0, 7):
        rest = np.arange(len(x)) != i
        _, mean, variance = closed_form(x[rest], y[rest], noise[rest], x[i : i + 1])
        np.testing.assert_allclose(found.mean[i, 0], mean[0], atol=1e-4)
        np.testing.assert_allclose(found.variance[i, 0], variance[0] + noise[i], rtol=1e-4)
    model = GPRegressor(inference="exact").fit(x[:, None], y, noise_variance=noise)
    assert bool(model.leave_one_out(x[:, None], y, noise_variance=noise).log_prob(y).isfinite().all())


@pytest.mark.parametrize("noise", ["per output", "per observation", "rows in order"])
def test_correlated_outputs(noise):
    """Exact inference for f = W g against the covariance of all entries."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 5, 20), rng.standard_normal((20, 2))
    weights = np.array([[1.0], [0.5]])
    prior = gp.GaussianProcess(ZeroMean(), frozen_prior().kernel, 2, torch.tensor(weights))
    variances = np.tile([0.01, 0.5], (20, 1)) if noise == "per output" else rng.uniform(0.01, 1, (20, 2))
    likelihood, targets = KnownNoise(), torch.tensor(np.concatenate([y, variances], axis=-1))
    if noise == "per output":
        likelihood, targets = Gaussian([0.01, 0.5], learn=False), torch.tensor(y)
    if noise == "rows in order":
        likelihood, targets = InOrder(variances), torch.tensor(y)
        likelihood.num_latents = lambda y: 2
        likelihood.observations = lambda y: (y, likelihood.noise)
    data = Data(torch.tensor(x)[:, None], targets)
    fit = gp.Exact().infer(prior, likelihood, data, generator=torch.Generator())
    covariance = np.kron(rbf(x, x), weights @ weights.T) + np.diag(variances.flatten())
    evidence = -0.5 * y.flatten() @ np.linalg.solve(covariance, y.flatten())
    evidence -= 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    np.testing.assert_allclose(fit.log_evidence.value, evidence, rtol=1e-4)
    cross = np.kron(rbf(np.array([2.0]), x), weights @ weights.T)
    mean = fit.posterior(torch.tensor([[2.0]])).mean[0].numpy()
    np.testing.assert_allclose(mean, cross @ np.linalg.solve(covariance, y.flatten()), atol=1e-3)
    assert type(fit.likelihood) is type(likelihood)


def test_noise_of_each_correlated_output_is_learned():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 5, 100)
    y = torch.tensor(np.stack([np.sin(x), np.sin(x)], axis=-1) + [0.05, 0.5] * rng.standard_normal((100, 2)))
    x = torch.tensor(x)[:, None]
    prior = gp.default_prior(x, 2, num_latents=1)
    fit = gp.Exact().infer(prior, Gaussian([0.1, 0.1]), Data(x, y), generator=torch.Generator())
    std = fit.likelihood.noise.sqrt()
    assert 0.03 < std[0] < 0.08 and 0.35 < std[1] < 0.7  # a standard error of the second is 0.035


def test_pipeline_routes_it():
    x, y, noise = problem()
    with sklearn.config_context(enable_metadata_routing=True):
        model = GPRegressor(inference="exact", random_state=0).set_fit_request(noise_variance=True)
        pipeline = make_pipeline(StandardScaler(), model).fit(x[:, None], y, noise_variance=noise)
    plain = GPRegressor(inference="exact", random_state=0).fit(x[:, None], y, noise_variance=noise)
    np.testing.assert_allclose(pipeline.predict(x[:, None]), plain.predict(x[:, None]), rtol=1e-3, atol=1e-3)


def test_containers_and_saving(tmp_path):
    x, y, noise = problem()
    frame = pd.DataFrame({"x": x})
    model = GPRegressor(inference="exact", random_state=0).fit(frame, pd.Series(y), noise_variance=pd.Series(noise))
    other = GPRegressor(inference="exact", random_state=0).fit(frame, y, noise_variance=torch.tensor(noise))
    np.testing.assert_allclose(model.predict(frame), other.predict(frame))
    bayeskit.save(model, tmp_path / "model")
    np.testing.assert_allclose(bayeskit.load(tmp_path / "model").predict(frame), model.predict(frame))
    assert model.sample_y(frame, 3).shape == (40, 3)
    assert np.isfinite(model.predict(frame, return_cov=True)[1]).all()


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (np.ones(39), "must be a number, or have shape"),
        (np.ones((40, 2)), "must be a number, or have shape"),
        (-np.ones(40), "must not be negative"),
        (np.r_[np.nan, np.ones(39)], "must not be negative, infinite or NaN"),
        (np.r_[np.inf, np.ones(39)], "must not be negative, infinite or NaN"),
    ],
)
def test_refusals(noise, message):
    x, y, _ = problem()
    with pytest.raises(ValueError, match=message):
        GPRegressor(inference="exact").fit(x[:, None], y, noise_variance=noise)


@pytest.mark.parametrize("likelihood", [Poisson(), StudentT()])
def test_other_noise_is_refused(likelihood):
    x, _, noise = problem()
    with pytest.raises(ValueError, match="`noise_variance` needs Gaussian noise"):
        GPRegressor(likelihood=likelihood, kernel=MaternKernel()).fit(x[:, None], np.ones(40), noise_variance=noise)


def test_a_likelihood_of_the_wrong_length_is_named():
    x, y, noise = problem()
    data = Data(torch.tensor(x)[:, None], torch.tensor(y)[:, None])
    with pytest.raises(ValueError, match="`observations` of InOrder must give a noise variance for each"):
        gp.Exact().infer(frozen_prior(), InOrder(noise[:-1]), data, generator=torch.Generator())
    with pytest.raises(ValueError, match="k values and then k noise variances"):
        gp.Exact().infer(frozen_prior(), KnownNoise(), data, generator=torch.Generator())

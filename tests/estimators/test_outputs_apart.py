"""Several outputs have a noise and lengthscales each, by default."""

import numpy as np
import pytest
from gpytorch.kernels import MaternKernel, ScaleKernel

from bayeskit import GPRegressor, gp
from bayeskit.core.likelihood import Gaussian
from bayeskit.core.optimize import Training
from bayeskit.estimators.gp_estimators import APART_ROWS

NOISE = np.array([0.01, 0.7])
GRID = np.linspace(0.3, 5.7, 200)[:, None]
QUICK = Training(lr=0.05, max_epochs=100, batch_size=256)
METHODS = [
    gp.Exact(),
    gp.SGPR(),
    gp.SVGP(training=QUICK),
    gp.DualSVGP(),
    gp.OrthogonalSVGP(training=QUICK),
    gp.CoresetGP(num_points=40),
    gp.MemoryDualGP(),
    gp.FullyBayesian(num_chains=2, num_samples=4, burn_in=4, num_components=4),
]


def truth(x):
    return np.column_stack([np.sin(x[:, 0]), np.sin(4 * x[:, 0])])


def problem(n=60, seed=0):
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(0, 6, n))[:, None]
    return x, truth(x) + NOISE * rng.standard_normal((n, 2))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_clean_and_a_noisy_output(method):
    x, y = problem()
    model = GPRegressor(inference=method, random_state=0).fit(x, y)
    _, std = model.predict(GRID, return_std=True)
    assert std[:, 0].mean() < 0.06
    assert 0.45 < std[:, 1].mean() < 1.1
    model.partial_fit(x[:5], y[:5])
    assert model.sample_functions(2)(GRID[:3]).shape == (2, 3, 2)


@pytest.mark.parametrize("method", ["exact", "svgp", "dual_svgp"])
def test_mixtures_of_latent_functions(method):
    x, y = problem()
    model = GPRegressor(inference=method, num_latents=2, random_state=0).fit(x, y)
    _, std = model.predict(GRID, return_std=True)
    assert std[:, 0].mean() < 0.06
    assert 0.45 < std[:, 1].mean() < 1.1


def test_sites_follow_the_noise_of_mixed_outputs():
    """With as many inducing points as inputs, the bound of `DualSVGP` comes near to the evidence."""
    x, y = problem()
    exact, dual = (
        GPRegressor(inference=method, num_latents=2, random_state=0).fit(x, y).log_evidence_.value
        for method in (gp.Exact(), gp.DualSVGP(max_iter=300))
    )
    assert exact - 20 < dual < exact + 1  # sites rescaled by the average noise ended 130 below


def test_each_output_is_the_fit_of_it_alone():
    x, y = problem()
    both = GPRegressor(inference="exact", random_state=0).fit(x, y)
    alone = [GPRegressor(inference="exact", random_state=0).fit(x, column) for column in y.T]
    np.testing.assert_allclose(both.predict(GRID), np.stack([one.predict(GRID) for one in alone], -1), atol=2e-2)
    evidence = sum(one.log_evidence_.value for one in alone)
    assert abs(both.log_evidence_.value - evidence) < 0.1


def test_what_is_given_stays_shared():
    x, y = problem()
    model = GPRegressor(ScaleKernel(MaternKernel()), "exact", Gaussian(), random_state=0).fit(x, y)
    assert model.likelihood_.noise.numel() == 1
    assert not model.posterior_.kernel.base.batch_shape


def test_a_single_kernel_where_matrices_are_large_or_never_formed():
    x, y = problem()
    model = GPRegressor(inference=gp.Exact(solver="cg"), random_state=0).fit(x, y)
    assert model.likelihood_.noise.numel() == 1
    assert model._are_apart(int(APART_ROWS / 2**0.5)) is False
    assert GPRegressor(inference="exact", random_state=0).fit(x, y)._are_apart(APART_ROWS) is False


def test_a_second_fit_with_another_number_of_outputs():
    x, y = problem()
    model = GPRegressor(inference="exact", random_state=0)
    assert [model.fit(x, y[:, :k]).likelihood_.noise.numel() for k in (2, 1, 2)] == [2, 1, 2]

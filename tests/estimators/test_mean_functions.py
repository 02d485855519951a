"""`mean` of a Gaussian-process regressor: trends by name, any GPyTorch mean, refusals."""

import numpy as np
import pytest
from gpytorch.means import LinearMean, ZeroMean

from bayeskit import GPRegressor, gp, load, save

X = np.linspace(0, 5, 50)[:, None]
Y = np.stack([3 + 2 * X[:, 0] + np.sin(3 * X[:, 0]), 10 - 5 * X[:, 0]], -1)
Y = Y + 0.1 * np.random.default_rng(0).standard_normal((50, 2))
FAR = np.array([[50.0]])


@pytest.mark.parametrize(
    "method", [gp.Exact(), gp.SGPR(), gp.DualSVGP(), gp.MemoryDualGP()], ids=lambda m: type(m).__name__
)
def test_a_linear_trend_continues_far_from_the_data(method):
    model = GPRegressor(inference=method, mean="linear", random_state=0).fit(X, Y[:, 0])
    assert abs(model.predict(FAR)[0] - 103) < 10
    constant = GPRegressor(inference=method, random_state=0).fit(X, Y[:, 0])
    assert constant.predict(FAR)[0] < 30


def test_each_output_has_its_trend(tmp_path):
    model = GPRegressor(inference="exact", mean="linear", random_state=0).fit(X, Y)
    np.testing.assert_allclose(model.predict(FAR)[0], [103, -240], rtol=0.1)
    save(model, tmp_path / "model")
    np.testing.assert_allclose(load(tmp_path / "model").predict(FAR), model.predict(FAR))


def test_zero_is_the_average_of_the_targets():
    model = GPRegressor(inference="exact", mean="zero", random_state=0).fit(X, Y[:, 0])
    np.testing.assert_allclose(model.predict([[1e4]])[0], Y[:, 0].mean(), rtol=1e-6)


def test_a_mean_of_gpytorch_is_copied():
    mean = LinearMean(1).double()
    before = mean.weights.detach().clone()
    GPRegressor(inference="exact", mean=mean, random_state=0).fit(X, Y[:, 0])
    assert bool((mean.weights == before).all())
    models = [GPRegressor(inference="exact", mean=one, random_state=0) for one in ("zero", ZeroMean())]
    named, given = (model.fit(X, Y[:, 0]).predict(X) for model in models)
    np.testing.assert_allclose(named, given)


def test_refusals():
    with pytest.raises(ValueError, match="`mean` must be one of"):
        GPRegressor(mean="linaer").fit(X, Y)
    with pytest.raises(TypeError, match="`mean` must be one of .* or a gpytorch.means.Mean"):
        GPRegressor(mean=3.0).fit(X, Y)


def test_mixtures_of_latent_functions():
    model = GPRegressor(inference="exact", mean="linear", num_latents=2, random_state=0).fit(X, Y)
    np.testing.assert_allclose(model.predict(FAR)[0], [103, -240], rtol=0.2)

"""Draws in the array convention of BaaL."""

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from bayeskit import BNNClassifier, BNNRegressor, GPClassifier, GPRegressor, bnn, gp
from bayeskit.integrations import baal

X = np.random.default_rng(0).uniform(-2, 2, (40, 2))
LABELS = np.array(list("abc"))[np.digitize(X[:, 0], [-0.5, 0.5])]


def bald(p):
    """The convention's own formula: entropy of the mean less mean of the entropy, over the last axis."""
    mean = p.mean(-1)
    return -(mean * np.log(mean)).sum(1) + (p * np.log(p)).sum(1).mean(-1)


@pytest.mark.monte_carlo
def test_probabilities_agree_with_the_estimators_own():
    model = BNNClassifier(inference=bnn.Laplace.quickly(), random_state=0).fit(X, LABELS)
    p = baal.draws(model, X, iterations=4000)
    assert p.shape == (40, 3, 4000)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    # Stored draws are drawn from again: 4 standard errors of 256 functions.
    assert np.abs(p.mean(-1) - model.predict_proba(X)).max() < 5 * 0.5 / 256**0.5
    assert np.abs(bald(p) - model.predictive(X).epistemic.numpy()).max() < 5 * 0.5 / 256**0.5


@pytest.mark.parametrize("estimator", [GPClassifier(inference=gp.SVGP.quickly()), BNNClassifier(inference="map")])
def test_every_kind_of_posterior_has_draws(estimator):
    drawn = baal.draws(estimator.set_params(random_state=0).fit(X, LABELS), X, iterations=7)
    assert drawn.shape == (40, 3, 7) and np.isfinite(drawn).all()


@pytest.mark.monte_carlo
@pytest.mark.parametrize("y, k", [(X[:, 0], 1), (X, 2)])
def test_numbers_come_in_the_targets_units(y, k):
    model = GPRegressor(inference=gp.Exact(), random_state=0).fit(X, 100 + 10 * y)
    drawn = baal.draws(model, X, iterations=500)
    assert drawn.shape == (40, k, 500)
    values = model.latent(X)
    error = values.variance.sqrt().numpy() / 500**0.5
    assert (np.abs(drawn.mean(-1) - values.mean.numpy()) < 5 * error + 1e-6).all()


def test_rows_beyond_a_block_are_there(monkeypatch):
    model = BNNRegressor(inference=bnn.DeepEnsemble.quickly(), random_state=0).fit(X, X[:, 0])
    members = model.latent(X).draws[..., 0]
    monkeypatch.setattr(baal, "ROWS", 16)
    drawn = baal.draws(model, X, iterations=6)[:, 0]  # stored functions, drawn from again in each block
    assert drawn.shape == (40, 6)
    assert np.abs(drawn[:, :, None] - members.numpy().T[:, None, :]).min(-1).max() < 1e-6
    assert np.array_equal(drawn, baal.draws(model, X, iterations=6)[:, 0])


@pytest.mark.monte_carlo
def test_several_outputs_keep_their_units_and_their_joint_law():
    y = np.stack([X[:, 0], 1000 + 100 * X[:, 0] * X[:, 1], X[:, 1] ** 2], 1)
    for estimator in (GPRegressor(inference=gp.Exact()), BNNRegressor(inference=bnn.VBLL.quickly())):
        model = estimator.set_params(random_state=0).fit(X, y)
        drawn, values = baal.draws(model, X, iterations=400), model.latent(X)
        assert drawn.shape == (40, 3, 400)
        std = values.variance.sqrt().numpy()
        assert (np.abs(drawn.mean(-1) - values.mean.numpy()) < 5 * std / 400**0.5 + 1e-6).all()
        # a deviation of 400 draws is known to a share of 1 / sqrt(800)
        np.testing.assert_allclose(drawn.std(-1), std, rtol=5 / 800**0.5)


def test_what_has_no_draws_says_so():
    with pytest.raises(TypeError, match="must be a GP or BNN estimator of this library.*got LogisticRegression"):
        baal.draws(LogisticRegression().fit(X, X[:, 0] > 0), X)
    with pytest.raises(NotFittedError):
        baal.draws(GPRegressor(), X)
    model = GPRegressor(inference=gp.Exact(), random_state=0).fit(X, X[:, 0])
    with pytest.raises(ValueError, match="`iterations` must be"):
        baal.draws(model, X, iterations=0)
    with pytest.raises(ValueError, match="minimum of 1 is required"):
        baal.draws(model, X[:0])

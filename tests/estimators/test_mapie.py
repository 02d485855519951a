"""The extra `conformal`: MAPIE says the same where both can, and takes bayeskit's estimators where only it can."""

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from mapie.conformity_scores.bounds.std_normalised import StdConformityScore
from mapie.regression import ConformalizedQuantileRegressor, CrossConformalRegressor, SplitConformalRegressor
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import BayesianRidge

from bayeskit import BNNClassifier, Conformal, GPRegressor, registry

RNG = np.random.default_rng(0)
X = RNG.normal(size=(240, 2))
Y = np.sin(2 * X[:, 0]) + (0.1 + 0.3 * np.abs(X[:, 1])) * RNG.normal(size=240)
FIT, REST, NEW = slice(0, 60), slice(60, 160), slice(160, 240)


@pytest.fixture(scope="module")
def process():
    return GPRegressor(inference=registry.quick("exact"), random_state=0).fit(X[FIT], Y[FIT])


class Quantile(RegressorMixin, BaseEstimator):
    """One quantile of a fitted estimator, as MAPIE wants its three."""

    def __init__(self, model, level):
        self.model, self.level = model, level

    def fit(self, X, y):
        return self

    def predict(self, X):
        return self.model.predictive(X).quantile(self.level).numpy()

    @property
    def n_features_in_(self):
        return self.model.n_features_in_


class OneSpread(BayesianRidge):
    """A regression that is as sure everywhere."""

    def predict(self, X, return_std=False):
        mean = super().predict(X)
        return (mean, np.ones(len(mean))) if return_std else mean


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95])
def test_split_conformal(confidence):
    model = OneSpread().fit(X[FIT], Y[FIT])
    theirs = SplitConformalRegressor(model, confidence, "absolute", prefit=True).conformalize(X[REST], Y[REST])
    expected = theirs.predict_interval(X[NEW])[1][..., 0]
    ours = Conformal(FrozenEstimator(model), "split", confidence=confidence).fit(X[REST], Y[REST])
    assert np.allclose(np.stack(ours.predict_interval(X[NEW]), -1), expected, rtol=1e-10)


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95])
def test_split_conformal_scaled_by_the_spread(process, confidence):
    theirs = SplitConformalRegressor(process, confidence, StdConformityScore(), prefit=True)
    theirs.conformalize(X[REST], Y[REST])
    expected = theirs.predict_interval(X[NEW])[1][..., 0]
    ours = Conformal(FrozenEstimator(process), "split", confidence=confidence).fit(X[REST], Y[REST])
    low, high = ours.predict_interval(X[NEW])
    assert np.allclose(high, expected[:, 1], rtol=1e-10)
    # MAPIE 1.6 takes one rank less for the lower end, which is then nearer to the mean than the upper one
    assert (low < expected[:, 0]).all()


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95])
def test_conformalized_quantiles(process, confidence):
    levels = ((1 - confidence) / 2, (1 + confidence) / 2, 0.5)
    theirs = ConformalizedQuantileRegressor([Quantile(process, q) for q in levels], confidence, prefit=True)
    theirs.conformalize(X[REST], Y[REST])
    expected = theirs.predict_interval(X[NEW], symmetric_correction=True)[1][..., 0]
    ours = Conformal(FrozenEstimator(process), "cqr", confidence=confidence).fit(X[REST], Y[REST])
    assert np.allclose(np.stack(ours.predict_interval(X[NEW]), -1), expected, rtol=1e-10)


@pytest.mark.parametrize("confidence", [0.8, 0.9])
def test_least_ambiguous_sets(confidence):
    labels = np.digitize(Y, [-0.3, 0.4])
    model = BNNClassifier(inference=registry.quick("map"), random_state=0).fit(X[FIT], labels[FIT])
    theirs = SplitConformalClassifier(model, confidence, "lac", prefit=True).conformalize(X[REST], labels[REST])
    ours = Conformal(FrozenEstimator(model), "lac", confidence=confidence).fit(X[REST], labels[REST])
    assert (ours.predict_set(X[NEW]) == theirs.predict_set(X[NEW])[1][..., 0]).all()


def test_cross_conformal_around_an_estimator_of_ours():
    model = GPRegressor(inference=registry.quick("exact"), random_state=0)
    around = CrossConformalRegressor(model, 0.9, cv=4).fit_conformalize(X[:80], Y[:80])
    mean, interval = around.predict_interval(X[NEW])
    assert mean.shape == (80,) and (interval[:, 0] < interval[:, 1]).all()
